//! The cache on disk, in the layout of Python's `huggingface_hub` (2.4.0), which reads and writes it too.
//!
//! ```text
//! models--org--name/refs/main                        a commit
//! models--org--name/trees/COMMIT.json                what the commit consists of: sizes and digests
//! models--org--name/snapshots/COMMIT/config.json  →  ../../blobs/DIGEST
//! models--org--name/blobs/DIGEST.incomplete          what was cut, and goes on from there
//! .locks/models--org--name/DIGEST.lock               held while a blob is fetched
//! ```
//!
//! Names appear whole: what is written under another one is renamed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use crate::hub::HubError;
use crate::hub::choose;
use crate::hub::id::FOLDER_PREFIX;
use crate::hub::id::SNAPSHOTS;
use crate::hub::id::is_commit;
use crate::hub::tree::Entry;
use crate::hub::tree::Tree;

/// One repository in the cache.
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// "org/name" in this cache.
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("{FOLDER_PREFIX}{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name) }
    }

    /// Which commit a branch was, when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit a branch is now.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(()); // the cache may be one that we may only read
        }
        self.write(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// What a commit consists of, if somebody has asked.
    pub(super) fn tree(&self, commit: &str) -> Option<Tree> {
        let text = std::fs::read(self.tree_path(commit)).ok()?;
        serde_json::from_slice(&text).ok().filter(Tree::is_sound)
    }

    /// Keeps what a commit consists of, so that nobody has to ask again.
    pub(super) fn write_tree(&self, commit: &str, tree: &Tree) -> Result<(), HubError> {
        let text = serde_json::to_vec_pretty(tree).expect("strings and numbers are JSON");
        self.write(&self.tree_path(commit), &text)
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.folder.join(format!("trees/{commit}.json"))
    }

    /// Where the files of a commit are.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join(SNAPSHOTS).join(commit)
    }

    /// The same, if all of them are there that make a model, and are what is listed. The error says which is not.
    pub(super) fn whole(&self, commit: &str, tree: &Tree) -> Result<PathBuf, String> {
        self.check(commit, tree, &choose::small(tree))?;
        let dir = self.snapshot(commit);
        // the index, without which nobody knows the shards, is here now
        let weights = choose::weights(tree, &dir).map_err(|error| error.to_string())?;
        if weights.is_empty() {
            return Err("it has no weights".to_owned());
        }
        self.check(commit, tree, &weights)?;
        Ok(dir)
    }

    fn check(&self, commit: &str, tree: &Tree, files: &BTreeSet<String>) -> Result<(), String> {
        let fault = files.iter().find_map(|file| {
            let fault = self.fault(commit, file, tree.files.get(file)?)?;
            Some(format!("`{file}` {fault}"))
        });
        fault.map_or(Ok(()), Err)
    }

    /// Why a file of a commit cannot be used as it is here: it is missing or damaged. Of weights only the size is compared: what
    /// they are is told by the fingerprint, and reading them twice would double the time of a start.
    pub(super) fn fault(&self, commit: &str, file: &str, entry: &Entry) -> Option<String> {
        self.fault_of(&self.snapshot(commit).join(file), file, entry)
    }

    /// The same of the blob that it would be a link to.
    pub(super) fn fault_of_blob(&self, file: &str, entry: &Entry) -> Option<String> {
        self.fault_of(&self.blob(entry.etag()), file, entry)
    }

    fn fault_of(&self, path: &Path, name: &str, entry: &Entry) -> Option<String> {
        let compare = || -> io::Result<Option<String>> {
            let mut file = File::open(path)?;
            let bytes = file.metadata()?.len();
            if bytes != entry.size {
                return Ok(Some(format!("it has {bytes} bytes, the hub lists {}", entry.size)));
            }
            if choose::is_weights(name) {
                return Ok(None);
            }
            let mut digest = entry.digest();
            digest.update_from(&mut file)?;
            Ok(entry.difference(digest))
        };
        match compare() {
            Ok(difference) => {
                difference.map(|difference| format!("is damaged ({}): {difference}", path.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("is not there".to_owned()),
            Err(error) => Some(format!("cannot be read ({}): {error}", path.display())),
        }
    }

    /// Where a content is.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Bytes of these files that are not here yet.
    pub(super) fn lacks(&self, tree: &Tree, files: &BTreeSet<String>) -> u64 {
        let entries = files.iter().filter_map(|file| Some((file, tree.files.get(file)?)));
        let lacking = entries.filter(|(file, entry)| self.fault_of_blob(file, entry).is_some());
        let rest = lacking.map(|(_, entry)| {
            let partial = std::fs::metadata(self.blob(&format!("{}.incomplete", entry.etag())));
            entry.size.saturating_sub(partial.map_or(0, |partial| partial.len()))
        });
        rest.fold(0, u64::saturating_add)
    }

    /// Where all of it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it is until it is whole, in a folder that exists.
    pub(super) fn partial(&self, etag: &str) -> Result<PathBuf, HubError> {
        let path = self.blob(&format!("{etag}.incomplete"));
        make_room(&path)?;
        Ok(path)
    }

    /// Gives a whole content its name.
    pub(super) fn keep(&self, partial: &Path, etag: &str) -> Result<(), HubError> {
        std::fs::rename(partial, self.blob(etag)).map_err(|source| HubError::cache("rename", partial, source))
    }

    /// Makes a content a file of a commit, whatever was in its place.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make_room(&path)?;
        // relative, so that the cache can be moved and mounted elsewhere
        let up = "../".repeat(1 + file.split('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if std::fs::read_link(&path).is_ok_and(|linked| linked == target) {
            return Ok(());
        }
        let new = path.with_added_extension(format!("{}.new", std::process::id()));
        std::os::unix::fs::symlink(target, &new)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|source| HubError::cache("write", &path, source))
    }

    /// Lets nobody else fetch this content until it is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_room(&path)?;
        let failed = |source| HubError::cache("lock", &path, source);
        let options = || File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = options().map_err(failed)?;
        if file.try_lock().is_err() {
            tracing::info!(lock = %path.display(), "another process fetches this file, waiting for it");
            file.lock().map_err(failed)?;
        }
        Ok(file)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), HubError> {
        make_room(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(content)?;
            file.persist(path).map_err(|error| error.error)
        };
        write().map(drop).map_err(|source| HubError::cache("write", path, source))
    }
}

fn make_room(file: &Path) -> Result<(), HubError> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|source| HubError::cache("make", folder, source))
}
