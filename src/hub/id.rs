//! What names a model of the hub: an id in a configuration, a path that stands for it until it is fetched, and the directory that it
//! is then.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

/// What a path begins with that means the hub's, whatever directories there are.
const SCHEME: &str = "hf://";
/// Where no revision is given.
const DEFAULT_REVISION: &str = "main";
/// The longest name of a repository.
const MAX_REPO_BYTES: usize = 96;
const MAX_REVISION_BYTES: usize = 250;
/// Before a repository's name in the cache, whose slash is two dashes there.
pub(super) const FOLDER_PREFIX: &str = "models--";
/// The folder of commits.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// A repository of models at a revision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubId {
    /// "org/name"
    pub(super) repo: String,
    /// A branch, a tag, or a commit.
    pub(super) revision: String,
}

impl HubId {
    /// Reads `org/name` and `org/name@revision`.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let (org, name) = repo.split_once('/')?;
        // as the hub allows them; the second line keeps folder names of the cache apart
        let is_plain = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty()
                && part.bytes().all(plain)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        let is_apart = !repo.contains("--") && !repo.contains("..");
        let is_revision = revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && revision.bytes().all(|byte| byte.is_ascii_graphic() && !b"@?*:[\\^~%#".contains(&byte))
            && revision.len() <= MAX_REVISION_BYTES;
        let is_id =
            is_plain(org) && is_plain(name) && is_apart && is_revision && repo.len() <= MAX_REPO_BYTES;
        is_id.then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// Of a path that [`place`] made.
    pub fn of(path: &Path) -> Option<Self> {
        Self::parse(path.to_str()?.strip_prefix(SCHEME)?)
    }

    /// After `hf download`.
    pub fn download_arguments(&self) -> String {
        format!("{} --revision {}", self.repo, self.revision)
    }

    /// The commit, where that is the revision.
    pub(super) fn pinned(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.repo, self.revision)
    }
}

/// What a path in a configuration or a flag names: a directory, below `folder` unless it is absolute, or, as a path that begins with
/// `hf://`, a model of the hub. The error says what it was taken for.
pub fn place(named: &Path, folder: &Path) -> Result<PathBuf, String> {
    let text = named.to_str().unwrap_or_default();
    if text.starts_with(SCHEME) {
        return match HubId::of(named) {
            Some(_) => Ok(named.to_owned()),
            None => {
                Err(format!("`{text}` is no hub id: it is {SCHEME}org/name or {SCHEME}org/name@revision"))
            }
        };
    }
    let path = folder.join(named);
    if path.is_dir() {
        return Ok(path);
    }
    let is_path = text.starts_with(['.', '/', '~']) || path.exists();
    match HubId::parse(text).filter(|_| !is_path) {
        None if path.exists() => {
            Err(format!("`{}` is not a directory, but a file: name the directory around it", path.display()))
        }
        None => Err(format!("`{}` is not a directory: there is nothing of that name", path.display())),
        // `members/4` where there are members/0 to members/3
        Some(id) => {
            match id.repo.split_once('/').map(|(first, _)| folder.join(first)).filter(|first| first.is_dir())
            {
                Some(first) => Err(format!(
                    "`{}` is not a directory (nor taken for a model of the hub, because {} is a directory: write \
                 {SCHEME}{text} if you mean the hub's)",
                    path.display(),
                    first.display()
                )),
                None => Ok(PathBuf::from(format!("{SCHEME}{text}"))),
            }
        }
    }
}

/// A commit of a repository, as a directory of a cache: whoever filled it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// "org/name"
    pub repo: String,
    /// In hexadecimal.
    pub commit: String,
}

impl Snapshot {
    /// What the name of a directory says.
    pub fn of(dir: &Path) -> Option<Self> {
        let mut names = dir.components().rev().map(|part| part.as_os_str().to_str());
        let (commit, snapshots, folder) = (names.next()??, names.next()??, names.next()??);
        let repo = folder.strip_prefix(FOLDER_PREFIX)?.replacen("--", "/", 1);
        (snapshots == SNAPSHOTS && is_commit(commit)).then(|| Self { repo, commit: commit.to_owned() })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.repo, self.commit)
    }
}

/// Becomes a part of paths, so nothing else may pass.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_id_is_two_plain_names_and_a_revision() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, shown) in [
            ("org/name", "org/name@main"),
            ("o.r-g/n_a.m-e@v1.0", "o.r-g/n_a.m-e@v1.0"),
            ("org/name@refs/pr/3", "org/name@refs/pr/3"),
            (&format!("org/name@{commit}"), &format!("org/name@{commit}")),
        ] {
            let id = HubId::parse(text).unwrap();
            assert_eq!(id.to_string(), shown);
            assert_eq!(id.pinned().is_some(), text.ends_with(commit), "{text}");
        }
        let long = format!("org/{}", "a".repeat(93));
        for text in [
            "name",
            "",
            "/",
            "org/",
            "/name",
            "org/name/more",
            "./name",
            "../name",
            "org/.name",
            "o--g/name",
            "org/n..e",
            "org/name@",
            "org/name@a b",
            "org/name@../x",
            "org/name@a//b",
            "org/na me",
            "org/näme",
            "a@b/c",
            &long,
        ] {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_directory_wins_and_what_looks_like_a_path_is_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("members/0")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let place = |text: &str| place(Path::new(text), folder.path()).map(|path| path.display().to_string());
        let members = folder.path().join("members/0").display().to_string();
        assert_eq!(place("members/0"), Ok(members.clone()));
        assert_eq!(place(&members), Ok(members));
        assert_eq!(place("org/name@v1"), Ok("hf://org/name@v1".to_owned()));
        assert_eq!(place("hf://members/0"), Ok("hf://members/0".to_owned()));
        for (text, problem) in [
            ("members/4", "write hf://members/4 if you mean"),
            ("./org/name", "/./org/name` is not a directory"),
            ("/org/name", "`/org/name` is not a directory"),
            ("name", "/name` is not a directory"),
            ("file", "/file` is not a directory"),
            ("a/b/c", "/a/b/c` is not a directory"),
            ("hf://name", "`hf://name` is no hub id"),
        ] {
            let error = place(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_snapshot_is_known_by_its_directory() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |path: &str| Snapshot::of(Path::new(path)).map(|snapshot| snapshot.to_string());
        let dir = format!("/c/hub/models--org--a-name/snapshots/{commit}");
        assert_eq!(of(&dir), Some(format!("org/a-name@{commit}")));
        assert_eq!(of(&format!("{dir}/")), Some(format!("org/a-name@{commit}")));
        for other in
            ["/c/hub/models--org--name/snapshots/main", "models/llama", "", &format!("{dir}/1_Pooling")]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
