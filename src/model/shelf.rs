//! Packed weights in files, so that a start packs nothing and clears no memory: they are mapped, and all processes and generations
//! on a machine have one copy of them, in the page cache.
//!
//! ```text
//! first start   checkpoint: read, digest → pack → a file beside it is written → synced, named   → then as below
//! other starts  checkpoint: known by its times, or digested → digests → parts → mapped, held against their digests
//! ```
//!
//! The folder is `weights` in the cache directory (`REWARM_CACHE_DIR`, else `~/.cache/rewarm`). A file holds *parts*: weights that
//! are loaded and used as one. A part is known by the digests of the tensors that it is made of (each member's, with its share),
//! by which of their rows and how they are used, by instruction set and precision, and by a digest of what the kernels make of
//! small layers: whoever changes how they pack need not think of files. So a merge of members is one set of parts,
//! members that share layers share them here too, and what a checkpoint's directory is called does not matter.
//!
//! # What may be wrong with a file
//!
//! - *It is not ours alone* ([`crate::disk::kept`]): not used, and told.
//! - *It was cut, or changed*: each part is digested, mapped, before it is used, and under a promise of the system that
//!   from then on nobody changes it unseen ([`Mapped`]): an operator who cuts it while it is served from waits until the server
//!   has a copy. A file with a wrong part is taken away, and written again at the next start.
//! - *Half of it is there*: it has another name until it is whole and on the disk. Two processes that write the same one
//!   at the same time end with one file.
//! - *It cannot be written, or mapped*: weights are packed in memory at each start, as without it; told once.
//!
//! To digest is most of what such a start costs.
//!
//! # How large it gets
//!
//! `REWARM_CACHE_BYTES`: nothing is kept unless it is set, for the first start waits until the file is on the disk. Never more than half of what the file system has left. What was used longest ago is
//! dropped first; whoever serves from it goes on. Parts below a megabyte, and models below 16, are not
//! worth a file.

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Once;
use std::time::SystemTime;

use rewarm_cuda::compile::cache_dir;
use serde::Deserialize;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::checkpoint::Digest;
use crate::checkpoint::hex;
use crate::disk::kept::Kept;
use crate::disk::write::LargeFile;
use crate::disk::write::sync_folder;
use crate::ops::Ops;
use crate::ops::packed;
use crate::ops::packed::Kind;
use crate::ops::packed::Mapped;
use crate::ops::packed::Packed;
use crate::ops::packed::Region;
use crate::ops::packed::Shape;

/// At the end of a file; changes with its layout.
const MAGIC: &[u8; 8] = b"rewarm 1";
/// What names of files end with.
const WEIGHTS: &str = ".weights";
/// After the table: its length, its digest, the magic.
const END_BYTES: usize = 8 + blake3::OUT_LEN + MAGIC.len();
/// Of a table: some hundred parts take some tens of kilobytes.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Pieces begin at a multiple of so many bytes: a cache line.
const ALIGNMENT: u64 = 64;
/// What is smaller is read from the checkpoint.
const MIN_PART_BYTES: usize = 1 << 20;
const MIN_FILE_BYTES: u64 = 16 << 20;
/// Names how large all files may get; nothing is kept without it.
const LIMIT: &str = "REWARM_CACHE_BYTES";

/// Of a part, in a file's table.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    /// In hexadecimal, as the other digests.
    key: String,
    kind: Kind,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Piece {
    shape: Shape,
    start: u64,
    bytes: u64,
    digest: String,
}

/// A file that is whole.
struct Shelved {
    name: String,
    /// When a part of it is asked for.
    mapped: Option<Arc<Mapped>>,
}

struct Writing {
    partial: NamedTempFile,
    file: LargeFile,
    entries: Vec<Entry>,
}

/// All packed weights that are kept, and those of a model that is loaded for the first time.
pub struct Shelf {
    kept: Option<Kept>,
    dir: PathBuf,
    limit: u64,
    files: Vec<Shelved>,
    /// By key.
    parts: HashMap<String, (usize, Entry)>,
    writing: Option<Writing>,
    has_given_up: bool,
    was_damaged: bool,
}

impl Shelf {
    /// The one of this user on this machine; `None` where there is no place for it, or nobody asked for one.
    pub fn of_user() -> Option<Self> {
        let limit = match std::env::var(LIMIT) {
            Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| {
                tracing::warn!(value = text, "{LIMIT} is not a number of bytes: no packed weights are kept");
                0
            }),
            _ => 0,
        };
        (limit > 0).then(|| Self::open(&cache_dir()?.join("weights"), limit)).flatten()
    }

    /// In a directory, which is made when something is written.
    fn open(dir: &Path, limit: u64) -> Option<Self> {
        let kept = Kept::open(dir).map_err(|error| tell(dir, &error)).ok()?;
        let mut shelf = Self {
            kept,
            dir: dir.to_owned(),
            limit,
            files: Vec::new(),
            parts: HashMap::new(),
            writing: None,
            has_given_up: false,
            was_damaged: false,
        };
        let names = shelf.kept.as_ref().and_then(|kept| kept.list(WEIGHTS).ok()).unwrap_or_default();
        names.into_iter().for_each(|(name, _)| shelf.add(name));
        Some(shelf)
    }

    /// Where digests of checkpoints can be noted.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Whether anything is there.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes in a file's table.
    fn add(&mut self, name: String) {
        let Some(kept) = &self.kept else { return };
        let entries = match kept.file(&name).and_then(|file| read_table(&file)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(file = name, %error, "packed weights are not what was written: taken away");
                let _ = kept.remove(&name);
                return;
            }
            Err(error) => return tell(&self.dir.join(name), &error),
        };
        let file = self.files.len();
        self.files.push(Shelved { name, mapped: None });
        self.parts.extend(entries.into_iter().map(|entry| (entry.key.clone(), (file, entry))));
    }

    /// A part, if it is there and what it was.
    pub fn find<O: Ops>(&mut self, ops: &O, key: &Digest) -> Option<packed::Weights> {
        let (file, entry) = self.parts.get(&hex(key))?.clone();
        let mapped = self.map(file)?;
        let pieces = entry.pieces.iter().map(|piece| Some((piece.shape, piece.of(&mapped)?)));
        let found = pieces.collect::<Option<Vec<_>>>().and_then(|pieces| ops.mapped(entry.kind, pieces));
        if found.is_none() {
            let name = self.files[file].name.clone();
            tracing::warn!(file = name, "packed weights are not what was written: taken away");
            let _ = self.kept.as_ref()?.remove(&name);
            self.parts.retain(|_, (of, _)| *of != file);
            self.was_damaged = true;
        }
        found
    }

    fn map(&mut self, file: usize) -> Option<Arc<Mapped>> {
        let shelved = &mut self.files[file];
        if shelved.mapped.is_none() {
            let path = self.dir.join(&shelved.name);
            let told = move |copied: &io::Result<()>| match copied {
                Ok(()) => tracing::warn!(
                    file = %path.display(),
                    "somebody changes packed weights that are in use: they were copied into memory first"
                ),
                Err(error) => tracing::error!(
                    file = %path.display(),
                    %error,
                    "somebody changes packed weights that are in use, and there is no memory for a copy"
                ),
            };
            let open = || {
                let opened = self.kept.as_ref().ok_or(io::ErrorKind::NotFound)?.file(&shelved.name)?;
                let _ = opened.set_modified(SystemTime::now()); // used last is dropped last
                Mapped::new(opened, told)
            };
            match open() {
                Ok(mapped) => shelved.mapped = Some(mapped),
                Err(error) => {
                    tell(&self.dir.join(&shelved.name), &error);
                    self.parts.retain(|_, (of, _)| *of != file);
                    self.has_given_up = true; // what cannot be mapped need not be written
                    return None;
                }
            }
        }
        self.files[file].mapped.clone()
    }

    /// Writes a part, if it is worth it and not there.
    pub fn put<O: Ops>(&mut self, ops: &O, key: &Digest, weights: &(dyn Any + Send + Sync)) {
        let Some(packed) = ops.packed(weights).filter(|_| !self.has_given_up) else { return };
        let bytes: usize = packed.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        let key = hex(key);
        let is_written = |writing: &Writing| writing.entries.iter().any(|entry| entry.key == key);
        if bytes < MIN_PART_BYTES
            || self.parts.contains_key(&key)
            || self.writing.as_ref().is_some_and(is_written)
        {
            return;
        }
        if let Err(error) = self.try_put(key, packed, bytes as u64) {
            self.give_up(&error);
        }
    }

    fn try_put(&mut self, key: String, packed: Packed<'_>, bytes: u64) -> io::Result<()> {
        if self.writing.is_none() {
            let kept = Kept::create(&self.dir)?;
            let partial = kept.partial()?;
            self.kept = Some(kept);
            let file = LargeFile::new(partial.as_file().try_clone()?);
            self.writing = Some(Writing { partial, file, entries: Vec::new() });
        }
        let Some(writing) = &mut self.writing else { unreachable!("begun above") };
        let left = rustix::fs::statvfs(&self.dir).map_err(io::Error::from)?;
        let left = left.f_bavail.saturating_mul(left.f_frsize) / 2;
        if writing.file.bytes() + bytes > self.limit || bytes > left {
            let problem = format!(
                "the model takes more than {LIMIT}, {} bytes, or than half of what the file system has left, {left} bytes",
                self.limit
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, problem));
        }
        writing.add(key, packed)
    }

    fn give_up(&mut self, error: &io::Error) {
        tell(&self.dir, error);
        self.writing = None;
        self.has_given_up = true;
    }

    /// Whether a file was taken away since this was asked last. Other parts of it were found before: only a load from the beginning
    /// writes them again.
    pub fn was_damaged(&mut self) -> bool {
        if self.was_damaged {
            self.writing = None;
        }
        std::mem::take(&mut self.was_damaged)
    }

    /// Completes what was written, if it is worth a file. Says whether it can be mapped now.
    pub fn finish(&mut self) -> bool {
        let Some(writing) = self.writing.take() else { return false };
        if writing.file.bytes() < MIN_FILE_BYTES {
            return false;
        }
        let finish = || -> io::Result<String> {
            let name = writing.finish(&self.dir)?;
            drop_oldest(self.kept.as_ref().ok_or(io::ErrorKind::NotFound)?, self.limit, &name)?;
            Ok(name)
        };
        match finish() {
            Ok(name) => {
                self.add(name);
                self.files.len().checked_sub(1).and_then(|file| self.map(file)).is_some()
            }
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }
}

impl Piece {
    /// Its bytes, if they are what they were.
    fn of(&self, mapped: &Arc<Mapped>) -> Option<Region> {
        let (start, bytes) = (usize::try_from(self.start).ok()?, usize::try_from(self.bytes).ok()?);
        let region = mapped.region(start..start.checked_add(bytes)?)?;
        (blake3::Hasher::new().update_rayon(&region).finalize().to_string() == self.digest).then_some(region)
    }
}

impl Writing {
    fn add(&mut self, key: String, packed: Packed<'_>) -> io::Result<()> {
        let mut pieces = Vec::new();
        for (shape, bytes) in packed.pieces {
            let start = self.file.bytes().next_multiple_of(ALIGNMENT);
            self.file.write(&[0; ALIGNMENT as usize][..(start - self.file.bytes()) as usize])?;
            self.file.write(&bytes)?;
            let digest = blake3::Hasher::new().update_rayon(&bytes).finalize().to_string();
            pieces.push(Piece { shape, start, bytes: bytes.len() as u64, digest });
        }
        self.entries.push(Entry { key, kind: packed.kind, pieces });
        Ok(())
    }

    /// Gives it its name, by what is in it.
    fn finish(mut self, dir: &Path) -> io::Result<String> {
        let table = serde_json::to_vec(&self.entries).map_err(io::Error::other)?;
        let digest = blake3::hash(&table);
        self.file.write(&table)?;
        self.file.write(&(table.len() as u64).to_le_bytes())?;
        self.file.write(digest.as_bytes())?;
        self.file.write(MAGIC)?;
        self.file.finish()?;
        let name = format!("{}{WEIGHTS}", digest.to_hex().split_at(32).0);
        match self.partial.persist_noclobber(dir.join(&name)) {
            Ok(_) => {}
            // written by another process meanwhile
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.error),
        }
        sync_folder(dir)?;
        Ok(name)
    }
}

fn read_table(file: &File) -> io::Result<Vec<Entry>> {
    let damaged = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let size = file.metadata()?.len();
    let end_at = size.checked_sub(END_BYTES as u64).ok_or_else(|| damaged("it is cut"))?;
    let mut end = [0; END_BYTES];
    file.read_exact_at(&mut end, end_at)?;
    let (length, rest) = end.split_first_chunk().expect("it is longer");
    let length = u64::from_le_bytes(*length);
    let (digest, magic) = rest.split_at(blake3::OUT_LEN);
    if magic != MAGIC || length > MAX_TABLE_BYTES.min(end_at) {
        return Err(damaged("it is cut, or of another version"));
    }
    let mut table = vec![0; length as usize];
    file.read_exact_at(&mut table, end_at - length)?;
    if blake3::hash(&table).as_bytes()[..] != *digest {
        return Err(damaged("its table was changed"));
    }
    serde_json::from_slice(&table).map_err(|_| damaged("its table is of another version"))
}

/// Takes away what was used longest ago, until the rest fits.
fn drop_oldest(kept: &Kept, limit: u64, but: &str) -> io::Result<()> {
    let mut files = kept.list(WEIGHTS)?;
    files.sort_by_key(|(_, metadata)| metadata.modified().ok());
    let mut total: u64 = files.iter().map(|(_, metadata)| metadata.len()).sum();
    for (name, metadata) in files {
        if total <= limit {
            break;
        }
        if name != but {
            total -= metadata.len();
            kept.remove(&name)?;
            tracing::info!(file = name, limit, "packed weights that were used longest ago are dropped");
        }
    }
    Ok(())
}

/// Once in the life of a process: the plain way is as right, and slower.
fn tell(path: &Path, error: &io::Error) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::warn!(
            path = %path.display(),
            %error,
            "packed weights cannot be kept: they are packed in memory at every start (REWARM_CACHE_DIR names another folder, \
             REWARM_CACHE_BYTES = 0 switches it off)"
        );
    });
}
