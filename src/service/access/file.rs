//! The file of tokens: TOML, checked whole. A problem never repeats a line, since there are secrets in it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::disk;
use crate::engine::Priority;
use crate::service::access::Digest;
use crate::service::access::Grant;
use crate::service::access::Permission;
use crate::service::access::digest_of;

/// Names are labels of metrics, and those are a small closed set.
const MAX_NAMES: usize = 32;
const MAX_NAME_CHARS: usize = 64;
/// A shorter token can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It is not there, or too large.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is wrong in it, in words.
    #[error("{}: {}", .path.display(), .problems.join("; "))]
    Wrong {
        /// Which.
        path: PathBuf,
        /// All of it.
        problems: Vec<String>,
    },
}

/// One name of the file.
pub(super) struct Read {
    pub(super) name: String,
    pub(super) digests: Vec<Digest>,
    pub(super) grant: Grant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tokens: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    token: OneOrMore,
    #[serde(default)]
    sha256: OneOrMore,
    #[serde(default = "score")]
    allow: Vec<Permission>,
    max_requests: Option<usize>,
    max_tokens: Option<usize>,
    #[serde(default)]
    max_priority: Ceiling,
}

/// Several are valid at a time while one takes the other's place.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ceiling {
    #[default]
    Interactive,
    Normal,
    Background,
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(all) => all,
        }
    }
}

fn score() -> Vec<Permission> {
    vec![Permission::Score]
}

/// All names, or all that is wrong.
pub(super) fn read(path: &Path) -> Result<Vec<Read>, TokensError> {
    let text = disk::read_to_string(path, disk::HAND_WRITTEN_BYTES)
        .map_err(|source| TokensError::Read { path: path.to_owned(), source })?;
    let (read, problems) = match toml::from_str::<File>(&text) {
        Ok(file) => check(file),
        Err(error) => {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count()) + 1;
            (Vec::new(), vec![format!("line {line}: {}", without_values(error.message()))])
        }
    };
    if problems.is_empty() { Ok(read) } else { Err(TokensError::Wrong { path: path.to_owned(), problems }) }
}

/// A parser's message without what it quotes of a value, which may be a secret that stands in the wrong place.
fn without_values(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(start), Some(end)) if start < end => {
            format!("{}\"…\"{}", &message[..start], &message[end + 1..])
        }
        _ => message.to_owned(),
    }
}

fn check(File { tokens }: File) -> (Vec<Read>, Vec<String>) {
    let mut problems = Vec::new();
    if tokens.is_empty() {
        problems.push("it lists no token, so nobody could call: write [tokens.NAME]".to_owned());
    }
    if tokens.len() > MAX_NAMES {
        problems.push(format!("it has {} names, the limit is {MAX_NAMES}", tokens.len()));
    }
    let mut read: Vec<Read> = Vec::new();
    for (name, entry) in tokens {
        let is_name = (1..=MAX_NAME_CHARS).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if !is_name {
            let name: String = name.chars().take(MAX_NAME_CHARS).collect();
            problems
                .push(format!("{name:?} is not a name: 1 to {MAX_NAME_CHARS} of a-z, A-Z, 0-9, _, - and ."));
            continue;
        }
        let mut digests = Vec::new();
        for token in entry.token.all() {
            if token.len() < MIN_TOKEN_BYTES || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
                problems.push(format!(
                    "tokens.{name}: a token must be {MIN_TOKEN_BYTES} or more characters of ASCII without spaces \
                     (openssl rand -hex 32 makes one)"
                ));
            }
            digests.push(digest_of(token.as_bytes()));
        }
        for hex in entry.sha256.all() {
            match digest_from(hex) {
                Some(digest) => digests.push(digest),
                None => problems.push(format!("tokens.{name}: sha256 is not 64 hexadecimal digits")),
            }
        }
        if entry.token.all().is_empty() && entry.sha256.all().is_empty() {
            problems.push(format!("tokens.{name} has neither `sha256` nor `token`"));
        }
        if digests.contains(&digest_of(b"")) {
            problems.push(format!("tokens.{name}: sha256 is that of nothing: whatever made it had no token"));
        }
        for digest in &digests {
            if let Some(other) = read.iter().find(|other| other.digests.contains(digest)) {
                problems.push(format!("tokens.{name} and tokens.{} have the same token", other.name));
            }
        }
        for (key, limit) in [("max_requests", entry.max_requests), ("max_tokens", entry.max_tokens)] {
            if limit == Some(0) {
                problems.push(format!("tokens.{name}: {key} must be above 0; without it there is no limit"));
            }
        }
        if entry.allow.is_empty() {
            problems.push(format!("tokens.{name}: allow is empty: give score, admin or metrics"));
        }
        let grant = Grant {
            allow: entry.allow,
            max_requests: entry.max_requests,
            max_tokens: entry.max_tokens,
            max_priority: match entry.max_priority {
                Ceiling::Interactive => Priority::Interactive,
                Ceiling::Normal => Priority::Normal,
                Ceiling::Background => Priority::Background,
            },
        };
        read.push(Read { name, digests, grant });
    }
    (read, problems)
}

fn digest_from(hex: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if hex.len() != 2 * digest.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn every_problem_is_named_and_no_secret_is() {
        let secret = "0123456789abcdef-secret";
        let hash = "a".repeat(64);
        let cases = [
            (String::new(), "it lists no token"),
            ("[tokens.a]".to_owned(), "tokens.a has neither `sha256` nor `token`"),
            ("[tokens.a]\ntoken = 'short'".to_owned(), "16 or more characters"),
            ("[tokens.a]\nsha256 = 'xyz'".to_owned(), "64 hexadecimal digits"),
            (format!("[tokens.a]\nsha256 = '{}'", "é".repeat(32)), "64 hexadecimal digits"),
            (format!("[tokens.a]\nsha256 = '+{}'", &hash[1..]), "64 hexadecimal digits"),
            (format!("[tokens.'a b']\nsha256 = '{hash}'"), "is not a name"),
            (format!("[tokens.a]\nsha256 = '{hash}'\nmax_tokens = 0"), "max_tokens must be above 0"),
            (format!("[tokens.a]\nsha256 = '{hash}'\nallow = []"), "allow is empty"),
            (format!("[tokens.a]\nsha256 = '{hash}'\nallow = ['all']"), "line 3: unknown variant `all`"),
            (format!("[tokens.a]\ntoken = '{secret}'\nlimit = 3"), "line 3: unknown field `limit`"),
            (format!("[tokens.a]\ntoken = '{secret}\n"), "line 2:"),
            (format!("[tokens]\na = '{secret}'"), "line 2: invalid type: string \"…\", expected"),
            (format!("tokens = '{secret}'"), "line 1: invalid type: string \"…\", expected"),
            (
                format!("[tokens.a]\nmax_requests = '{secret}'"),
                "line 2: invalid type: string \"…\", expected",
            ),
            (
                "[tokens.a]\ntoken = 1234567890123456".to_owned(),
                "line 2: expected a string or a list of strings",
            ),
            (
                "[tokens.a]\nsha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'"
                    .to_owned(),
                "is that of nothing",
            ),
            (
                format!("[tokens.a]\ntoken = '{secret}'\n[tokens.b]\ntoken = '{secret}'"),
                "have the same token",
            ),
            (
                (0..33).map(|index| format!("[tokens.t{index}]\ntoken = '{secret}{index}'\n")).collect(),
                "it has 33 names, the limit is 32",
            ),
        ];
        for (text, expected) in cases {
            let found = problems(&text);
            assert!(found.contains(expected), "{text}: {found}");
            assert!(!found.contains(secret), "{found}");
        }
        assert_eq!(problems(&format!("[tokens.a]\nsha256 = '{hash}'\ntoken = ['{secret}']")), "");
    }
}
