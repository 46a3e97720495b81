//! Preference pairs from JSON lines; an error names file and line.
//!
//! ```json
//! {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Eight.", "source": "arithmetic"}
//! {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}], "rejected": "Go away."}
//! {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "rejected": [...]}
//! ```
//!
//! Three strings become prompt and response, as in a `Score` request. Where one of them is a list of messages, all
//! become conversations: a string prompt is a user turn, a string response an assistant turn, and a response that begins
//! with the prompt's messages (or has no prompt) is the whole conversation. Other keys are allowed and ignored.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;

use crate::disk;
use crate::text::Input;
use crate::text::Message;

/// A longer line is an error: more than any model's context.
const MAX_LINE_BYTES: u64 = 32 << 20;
/// What a gzip file starts with, whatever it is called.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// One human judgement: two responses to a prompt, and which is better.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// The better one, with its prompt.
    pub chosen: Input,
    /// The other, with the same prompt.
    pub rejected: Input,
    /// Where the pair comes from, for breakdowns.
    pub source: Option<String>,
    /// In its file, from 1.
    pub line: usize,
}

/// The pairs of one file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Which file.
    pub path: PathBuf,
    /// In the order of the file; at least one.
    pub pairs: Vec<PreferencePair>,
    /// Lines whose two responses are the same: nothing can be learnt or judged from those, so they are left out.
    pub equal_lines: Vec<usize>,
    /// blake3 of the file's content, unpacked.
    pub digest: [u8; 32],
}

/// Why a file of pairs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Of the file.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Of one line.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// No pair in it.
    #[error("{} holds no preference pairs{}", path.display(), if *equal_lines > 0 { format!(": in all {equal_lines} lines both responses are the same") } else { String::new() })]
    Empty {
        /// Which file.
        path: PathBuf,
        /// Lines that were left out.
        equal_lines: usize,
    },
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<Turns>,
    chosen: Turns,
    rejected: Turns,
    source: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of messages, {\"role\", \"content\"}")]
enum Turns {
    Text(String),
    Messages(Vec<Message>),
}

impl Dataset {
    /// Reads JSON lines, plain or gzipped; blank lines are skipped.
    pub fn read(path: &Path) -> Result<Self, DatasetError> {
        Self::collect(path, |each| read_lines(path, each))
    }

    /// `read` calls what it is given with each line, and returns the digest.
    fn collect(
        path: &Path,
        read: impl FnOnce(&mut EachLine<'_>) -> Result<[u8; 32], DatasetError>,
    ) -> Result<Self, DatasetError> {
        let mut dataset =
            Self { path: path.to_owned(), pairs: Vec::new(), equal_lines: Vec::new(), digest: [0; 32] };
        dataset.digest = read(&mut |line, text| {
            let read: Line = serde_json::from_str(text).map_err(|error| format!("not a pair: {error}"))?;
            let pair = read.into_pair(line)?;
            if pair.chosen == pair.rejected {
                dataset.equal_lines.push(line);
            } else {
                dataset.pairs.push(pair);
            }
            Ok(())
        })?;
        if dataset.pairs.is_empty() {
            return Err(DatasetError::Empty {
                path: path.to_owned(),
                equal_lines: dataset.equal_lines.len(),
            });
        }
        Ok(dataset)
    }
}

/// A file of lines, unpacked if it is gzipped.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(disk::open(path)?);
    if file.fill_buf()?.starts_with(&GZIP_MAGIC) {
        Ok(Box::new(BufReader::new(MultiGzDecoder::new(file))))
    } else {
        Ok(Box::new(file))
    }
}

/// Is told a line's number, from 1, and its text; says what is wrong with it.
pub type EachLine<'a> = dyn FnMut(usize, &str) -> Result<(), String> + 'a;

/// Reads the lines of a file, plain or gzipped, that are not blank. Returns the blake3 of its content, unpacked.
pub fn read_lines(path: &Path, each: &mut EachLine<'_>) -> Result<[u8; 32], DatasetError> {
    let input = open(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    lines_of(path, input, each)
}

fn lines_of(path: &Path, mut input: impl BufRead, each: &mut EachLine<'_>) -> Result<[u8; 32], DatasetError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        let wrong = |problem: String| DatasetError::Line { path: path.to_owned(), line, problem };
        bytes.clear();
        let read = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|source| DatasetError::Read { path: path.to_owned(), source })? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(wrong(format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        hasher.update(&bytes);
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(format!("not UTF-8: {error}")))?;
        if !text.trim().is_empty() {
            each(line, text).map_err(wrong)?;
        }
    }
    Ok(hasher.finalize().into())
}

impl Line {
    fn into_pair(self, line: usize) -> Result<PreferencePair, String> {
        let Self { prompt, chosen, rejected, source } = self;
        let is_text = |turns: &Turns| matches!(turns, Turns::Text(_));
        if prompt.is_none() && (is_text(&chosen) || is_text(&rejected)) {
            return Err(
                "`prompt` is missing: only lists of messages, as `chosen` and `rejected`, can do without"
                    .to_owned(),
            );
        }
        let response = |response: Turns| match (&prompt, response) {
            (Some(Turns::Text(prompt)), Turns::Text(response)) if is_text(&chosen) && is_text(&rejected) => {
                Ok(Input::Text { prompt: prompt.clone(), response })
            }
            (prompt, response) => {
                conversation(prompt.clone(), response).map(|messages| Input::Conversation(messages.into()))
            }
        };
        let (chosen, rejected) = (response(chosen.clone())?, response(rejected.clone())?);
        Ok(PreferencePair { chosen, rejected, source, line })
    }
}

fn conversation(prompt: Option<Turns>, response: Turns) -> Result<Vec<Message>, String> {
    let mut messages = match prompt {
        None => Vec::new(),
        Some(Turns::Text(prompt)) => vec![Message::new("user", prompt)],
        Some(Turns::Messages(messages)) => messages,
    };
    match response {
        Turns::Text(response) => messages.push(Message::new("assistant", response)),
        Turns::Messages(response) if response.is_empty() => {
            return Err("a response has no messages".to_owned());
        }
        Turns::Messages(response) if response.starts_with(&messages) => messages = response,
        Turns::Messages(response) => messages.extend(response),
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn read(text: &str) -> Result<Dataset, DatasetError> {
        let path = Path::new("pairs.jsonl");
        Dataset::collect(path, |each| lines_of(path, text.as_bytes(), each))
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn strings_are_prompt_and_response() {
        let data =
            read("{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"source\":\"s\",\"id\":7}\n\n")
                .unwrap();
        let text = |response: &str| Input::Text { prompt: "p".to_owned(), response: response.to_owned() };
        let expected =
            PreferencePair { chosen: text("a"), rejected: text("b"), source: Some("s".to_owned()), line: 1 };
        assert_eq!(data.pairs, [expected]);
    }

    #[test]
    fn all_ways_to_write_a_conversation_are_the_same_pair() {
        let (user, yes, no) = (
            r#"{"role":"user","content":"p"}"#,
            r#"{"role":"assistant","content":"a"}"#,
            r#"{"role":"assistant","content":"b"}"#,
        );
        let lines = [
            format!(r#"{{"prompt":"p","chosen":[{yes}],"rejected":"b"}}"#),
            format!(r#"{{"prompt":[{user}],"chosen":"a","rejected":"b"}}"#),
            format!(r#"{{"prompt":[{user}],"chosen":[{yes}],"rejected":[{no}]}}"#),
            format!(r#"{{"prompt":"p","chosen":[{user},{yes}],"rejected":[{user},{no}]}}"#),
            format!(r#"{{"chosen":[{user},{yes}],"rejected":[{user},{no}]}}"#),
        ];
        let data = read(&lines.join("\n")).unwrap();
        let conversation = |response| {
            Input::Conversation(vec![Message::new("user", "p"), Message::new("assistant", response)].into())
        };
        assert_eq!(data.pairs.len(), lines.len());
        for pair in data.pairs {
            assert_eq!(
                (pair.chosen, pair.rejected),
                (conversation("a"), conversation("b")),
                "line {}",
                pair.line
            );
        }
    }

    #[test]
    fn an_error_names_file_and_line() {
        let good = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
        for (bad, reason) in [
            ("{", "not a pair"),
            (r#"{"prompt":"p","chosen":"a"}"#, "missing field `rejected`"),
            (r#"{"prompt":"p","chosen":"a","rejected":7}"#, "list of messages"),
            (r#"{"chosen":"a","rejected":"b"}"#, "`prompt` is missing"),
            (r#"{"prompt":"p","chosen":"a","rejected":[]}"#, "no messages"),
        ] {
            let error = error(&format!("{good}\n\n{bad}\n"));
            assert!(error.starts_with("pairs.jsonl:3: ") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn equal_responses_are_left_out_and_counted() {
        let equal = r#"{"prompt":"p","chosen":"a","rejected":"a"}"#;
        let data =
            read(&format!("{equal}\n{{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}}\n{equal}"))
                .unwrap();
        assert_eq!((data.pairs.len(), data.equal_lines), (1, vec![1, 3]));
        assert!(error(equal).contains("both responses are the same"));
        assert_eq!(error("\n"), "pairs.jsonl holds no preference pairs");
    }

    #[test]
    fn gzip_is_known_by_its_content_and_a_torn_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(text.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Dataset::read(&path)
        };
        let (plain, gzip) = (write("plain", text.as_bytes()).unwrap(), write("packed", &packed).unwrap());
        assert_eq!((plain.pairs, plain.digest), (gzip.pairs, gzip.digest));
        assert!(write("torn", &packed[..packed.len() - 9]).unwrap_err().to_string().contains("torn"));
        assert!(write("latin1", b"\xe9\n").unwrap_err().to_string().contains("latin1:1: not UTF-8"));
        assert!(Dataset::read(&dir.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
