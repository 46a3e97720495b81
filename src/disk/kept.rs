//! A folder of files that would take time to make again, and that nobody else may have touched.
//!
//! The folder and the files in it belong to the user of this process and are open to nobody else; what is not so is refused.
//! A file appears whole, under its last name, and is never changed afterwards. One that is half written has another
//! name, and a lock while its writer lives; the others are taken away by whoever writes next.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::Metadata;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use crate::disk::remove_if_there;
use crate::disk::write::PARTIAL;
use crate::disk::write::sync_folder;

/// Of those who are not the owner.
const OTHERS: u32 = 0o077;

/// Such a folder.
#[derive(Clone, Debug)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// One that is there, if it is. Fails if it is not private to us.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {
                check_private(&metadata)?;
                Ok(Some(Self { dir: dir.to_owned() }))
            }
            Ok(_) => Err(io::Error::new(ErrorKind::NotADirectory, "it is not a folder")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same; if it is not there, it is made.
    pub fn create(dir: &Path) -> io::Result<Self> {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Self::open(dir)?.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of files that end so, and what is known of them.
    pub fn list(&self, end: &str) -> io::Result<Vec<(String, Metadata)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata())
                && name.ends_with(end)
                && !name.starts_with(PARTIAL)
            {
                found.push((name, metadata));
            }
        }
        Ok(found)
    }

    /// Opens a file for reading. Fails if it is not private to us.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(self.dir.join(name), flags, Mode::empty()).map_err(io::Error::from)?;
        let file = File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        check_private(&metadata)?;
        Ok(file)
    }

    /// Reads a small file that was written by [`Self::write`], if it is there and whole.
    pub fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        self.file(name).ok()?.take(limit).read_to_end(&mut content).ok()?;
        let digest = content.split_off(content.len().checked_sub(blake3::OUT_LEN)?);
        (blake3::hash(&content).as_bytes()[..] == digest[..]).then_some(content)
    }

    /// Writes a small file, in the place of one that is there.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let partial = self.partial()?;
        fs::write(partial.path(), [content, blake3::hash(content).as_bytes()].concat())?;
        partial.as_file().sync_all()?;
        partial.persist(self.dir.join(name))?;
        sync_folder(&self.dir)
    }

    /// A file to be written, and then to be given a name; first what others left is taken away.
    pub fn partial(&self) -> io::Result<NamedTempFile> {
        let folder = File::open(&self.dir)?;
        folder.lock()?; // until it is dropped: nobody takes away what is not locked yet
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let is_partial = entry.file_name().to_str().is_some_and(|name| name.starts_with(PARTIAL));
            // whose writer lives has a lock
            if is_partial && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(&self.dir)?;
        partial.as_file().lock()?;
        Ok(partial)
    }

    /// Takes a file away; whoever has it open, or mapped, still has it.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        remove_if_there(&self.dir.join(name))
    }
}

fn check_private(metadata: &Metadata) -> io::Result<()> {
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != us {
        let problem = format!("it belongs to user {owner}, this process runs as {us}");
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS != 0 {
        let problem = format!("others may use it (mode {mode:o}): take that from them with `chmod go=`");
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    Ok(())
}
