//! What is read from disk: regular files, up to a size, and known by their digests.
//!
//! Whoever names a file may name anything: a pipe that nobody writes to, which would hold the reader for ever, a device
//! without an end, ten gigabytes of blanks. All files of a checkpoint, and the configuration, are read through here.
//! Links are followed (a hub's cache and a Kubernetes mount consist of them); what they lead to has to be a file.
//!
//! # What was tried is what is loaded
//!
//! A checkpoint is tried in a child process before this one reads it. The child notes the digest of all that it
//! read ([`noting`]), and the parent accepts no other content ([`holding_to`]). Both are kept per thread: readers need
//! not know of it, and what other threads read is their own affair.

pub mod kept;
pub mod write;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::Serialize;

/// The folder of templates that have names, `tool_use.jinja` among them.
pub const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

/// The target of the events that tell, in a trial, what is done next: if that never ends, it is known what it was.
pub const STEP: &str = "rewarm::step";

/// Tells what is done next with a file or a directory.
pub fn step(doing: &str, path: &Path) {
    tracing::trace!(target: STEP, doing, path = %path.display());
}

/// Of a file that people write, such as `rewarm.toml`.
pub const HAND_WRITTEN_BYTES: u64 = 1 << 20;
/// Of a file of settings, such as `config.json`: some kilobytes, where each token has a name some megabytes.
pub const SETTINGS_BYTES: u64 = 32 << 20;
/// Of a `tokenizer.json` and other vocabularies. The largest that is known to us has 35 MB.
pub const VOCABULARY_BYTES: u64 = 256 << 20;

/// The first line of what a Git clone has in the place of a large file that was not downloaded.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What to do about such a file.
pub const LFS_CURE: &str = "it is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone (`git lfs \
                            install` once before), or download the file again with `hf download`";

/// Whether a file that begins so is a Git LFS pointer.
pub fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(LFS_POINTER)
}

/// Opens a regular file for reading, and never waits for one that is not.
pub fn open(path: &Path) -> io::Result<File> {
    step("reading it", path);
    // looked at before, for to open a device may do something; and after, for it may have been replaced
    check_kind(&fs::metadata(path).map_err(|error| dangling(path, error))?)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    check_kind(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most so many bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let content = open(path).and_then(|file| read_open(&file, limit));
    let content = content.and_then(|bytes| refuse_mark(path, bytes));
    match &content {
        Ok(bytes) => seen(path, Some(bytes))?,
        Err(error) if error.kind() == ErrorKind::NotFound => seen(path, None)?,
        Err(_) => {}
    }
    content
}

/// The same; none if there is nothing of this name.
pub fn read_if_there(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    match read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a file away; says whether there was one.
pub fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a regular file of text.
pub fn read_to_string(path: &Path, limit: u64) -> io::Result<String> {
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(read(path, limit)?).map_err(not_text)
}

/// Bytes that may still be written where something of this name is, or would be; none where the file system does not tell.
pub fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists()).filter(|path| *path != Path::new(""));
    let system = rustix::fs::statvfs(there.unwrap_or(Path::new("."))).ok()?;
    // those without a size of their own, as some of a network, say 0 of everything
    (system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize))
}

/// Whether something has this name, be it a link to nothing.
pub fn is_there(path: &Path) -> bool {
    !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == ErrorKind::NotFound)
}

/// At most so many bytes from where the file stands; it may grow meanwhile.
fn read_open(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let too_large = |bytes: u64| {
        let problem = format!("it has {bytes} bytes, the limit for such a file is {limit}");
        io::Error::new(ErrorKind::FileTooLarge, problem)
    };
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    if is_lfs_pointer(&bytes) {
        return Err(io::Error::new(ErrorKind::InvalidData, LFS_CURE));
    }
    Ok(bytes)
}

/// JSON begins with JSON: an editor's mark before it is an error to every reader of checkpoints, but a dark one.
fn refuse_mark(path: &Path, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "json")
        && bytes.starts_with("\u{feff}".as_bytes())
    {
        let problem = "it begins with a byte order mark (BOM): save it as UTF-8 without one";
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    Ok(bytes)
}

fn check_kind(metadata: &fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

/// A link to nothing is not the same as nothing: an optional file would be left out in silence.
fn dangling(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_ok() {
        return io::Error::new(ErrorKind::InvalidInput, "it is a link to a file that does not exist");
    }
    error
}

/// What was read: for each path the digest of its content, or that there was nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// A list, for JSON has no keys that are not Unicode.
    files: Vec<(OsString, Option<String>)>,
}

/// A file is not what it was when it was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} changed while it was loaded", .0.display())]
pub struct Changed(pub PathBuf);

#[derive(Default)]
struct Witness {
    files: BTreeMap<PathBuf, Option<String>>,
    /// Whether to take nothing that is not in `files`.
    is_closed: bool,
    changed: Option<Changed>,
}

thread_local! {
    static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
}

/// Notes what this thread reads meanwhile. A file that changes between two readings is an error to its reader.
pub fn noting<T>(work: impl FnOnce() -> T) -> (T, Proof) {
    let (outcome, witness) = under(Witness::default(), work);
    let files = witness.files.into_iter().map(|(path, digest)| (path.into_os_string(), digest));
    (outcome, Proof { files: files.collect() })
}

/// Lets this thread read nothing meanwhile but what was noted. If it tried to, the outcome is worth nothing.
pub fn holding_to<T>(proof: &Proof, work: impl FnOnce() -> T) -> Result<T, Changed> {
    let files = proof.files.iter().map(|(path, digest)| (PathBuf::from(path), digest.clone())).collect();
    let (outcome, witness) = under(Witness { files, is_closed: true, changed: None }, work);
    witness.changed.map_or(Ok(outcome), Err)
}

fn under<T>(witness: Witness, work: impl FnOnce() -> T) -> (T, Witness) {
    /// Puts back what was there, also when `work` panics.
    struct Restore(Option<Witness>);
    impl Drop for Restore {
        fn drop(&mut self) {
            WITNESS.set(self.0.take());
        }
    }
    let _restore = Restore(WITNESS.replace(Some(witness)));
    let outcome = work();
    (outcome, WITNESS.take().unwrap_or_default())
}

/// Tells what was found at a path by a reader of its own: the part of a file that decides, or nothing. Fails if it
/// was something else before.
pub fn seen(path: &Path, content: Option<&[u8]>) -> io::Result<()> {
    WITNESS.with_borrow_mut(|witness| {
        let Some(witness) = witness else { return Ok(()) };
        let digest = content.map(|content| blake3::hash(content).to_string());
        let is_as_before = match witness.files.get(path) {
            Some(known) => *known == digest,
            None if witness.is_closed => false,
            None => {
                witness.files.insert(path.to_owned(), digest);
                true
            }
        };
        if is_as_before {
            return Ok(());
        }
        witness.changed.get_or_insert_with(|| Changed(path.to_owned()));
        Err(io::Error::other("it changed while it was loaded"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
            .unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        symlink("loop", path("loop")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("pipe", path("to-pipe")).unwrap();
        symlink("/dev/zero", path("to-zero")).unwrap();
        File::create(path("sparse")).unwrap().set_len(1 << 40).unwrap();
        let cases = [
            ("pipe", "a named pipe"),
            ("to-pipe", "a named pipe"),
            ("socket", "a socket"),
            ("folder", "a directory"),
            ("to-zero", "a device"),
            ("loop", "ymbolic link"),
            ("dangling", "a link to a file that does not exist"),
            ("sparse", "1099511627776 bytes, the limit for such a file is 1000"),
        ];
        for (name, problem) in cases {
            for outcome in [read(&path(name), 1000).map(Some), read_if_there(&path(name), 1000)] {
                let error = outcome.expect_err(name).to_string();
                assert!(error.contains(problem), "{name}: {error}");
            }
            assert!(is_there(&path(name)), "{name}");
        }
        fs::write(path("file"), "text").unwrap();
        symlink("file", path("to-file")).unwrap();
        assert_eq!(read_to_string(&path("to-file"), 4).unwrap(), "text");
        assert!(read_to_string(&path("to-file"), 3).is_err());
        assert_eq!(read_if_there(&path("absent"), 3).unwrap(), None);
        assert!(!is_there(&path("absent")));
    }

    #[test]
    fn what_is_free_is_told_of_names_that_are_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(&dir.path().join("a/b/c")).unwrap() > 0);
        assert!(free(Path::new("not-there/yet")).is_some());
        assert_eq!(free(Path::new("/proc/self")), None, "no disk");
    }

    #[test]
    fn a_pointer_to_a_large_file_is_told_with_its_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9085657\n";
        fs::write(&path, pointer).unwrap();
        let error = read(&path, 1000).unwrap_err().to_string();
        assert!(error.contains("Git LFS pointer") && error.contains("`git lfs pull`"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_before_json_is_named_and_left_in_other_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, is_refused) in [("config.json", true), ("chat_template.jinja", false)] {
            let path = dir.path().join(name);
            fs::write(&path, "\u{feff}{}").unwrap();
            match read(&path, 1000) {
                Ok(bytes) => assert!(!is_refused && bytes.len() == 5, "{name}"),
                Err(error) => assert!(is_refused && error.to_string().contains("(BOM)"), "{name}: {error}"),
            }
        }
    }

    #[test]
    fn only_what_was_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "1").unwrap();
        let read_both = || {
            let _ = read_if_there(&path("a"), 9);
            let _ = read_if_there(&path("b"), 9);
        };
        let ((), proof) = noting(read_both);
        let proof: Proof = serde_json::from_str(&serde_json::to_string(&proof).unwrap()).unwrap();
        assert_eq!(holding_to(&proof, read_both), Ok(()));

        fs::write(path("b"), "new").unwrap();
        assert_eq!(holding_to(&proof, read_both), Err(Changed(path("b"))));
        fs::remove_file(path("b")).unwrap();
        fs::write(path("a"), "2").unwrap();
        assert_eq!(holding_to(&proof, read_both), Err(Changed(path("a"))));
        fs::write(path("a"), "1").unwrap();
        fs::write(path("c"), "").unwrap();
        assert_eq!(holding_to(&proof, || drop(read(&path("c"), 9))), Err(Changed(path("c"))));
        assert!(read(&path("c"), 9).is_ok(), "outside of it everything can be read");
    }
}
