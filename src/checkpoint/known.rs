//! Digests of a file that was read before: to read all of it again, only to learn that it has not changed, would be most of a start.
//!
//! A file is the one that was read if device and inode, size, and the times of the last change of its content and of its
//! inode (which nobody can set) are equal. Who reads a file within [`SETTLED`] of its last change notes nothing: the next
//! change might have the same time.
//!
//! What is read is compared with what was noted, and what is not read is never used: weights that are taken in the name of a
//! digest were kept by it, and are held against their own. So at worst, where a file system tells no true times, what
//! serves is what was there before, under the fingerprint that it had.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;

use crate::checkpoint::extent::Extent;
use crate::disk::kept::Kept;

/// More than the step of any file system's clock (FAT: 2 seconds).
const SETTLED: Duration = Duration::from_secs(3);
/// Of a file of digests: some hundred thousand tensors.
const MAX_BYTES: u64 = 64 << 20;
/// What the names of such files end with.
const DIGESTS: &str = ".digests";
/// So many of them are kept.
const MAX_FILES: usize = 1000;

type Digest = [u8; 32];

/// By what is where in the file, in hexadecimal.
type Digests = HashMap<String, String>;

/// What is known of a file.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// When it was opened; `None` if that cannot be told.
    opened: Option<Stat>,
    digests: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    read: Digests,
    /// Noted by who read it before, and where.
    recalled: Digests,
    kept: Option<Kept>,
}

/// Tells a file from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    it: [i64; 7],
    is_settled: bool,
}

impl Stat {
    fn of(file: &File) -> io::Result<Self> {
        let it = file.metadata()?;
        let changed =
            SystemTime::UNIX_EPOCH + Duration::new(it.ctime().max(0) as u64, it.ctime_nsec() as u32);
        let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED);
        let [dev, ino, size] = [it.dev(), it.ino(), it.size()].map(|number| number as i64);
        let it = [dev, ino, size, it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
        Ok(Self { it, is_settled })
    }

    /// Of each version of a file there is one.
    fn name(&self) -> String {
        format!("{}{DIGESTS}", blake3::hash(format!("{:?}", self.it).as_bytes()).to_hex().split_at(32).0)
    }
}

impl Known {
    /// Of a file that was just opened.
    pub(super) fn of(file: &File) -> Self {
        Self { opened: Stat::of(file).ok(), digests: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a digest of what was read.
    pub(super) fn was_read(&self, extent: &Extent, digest: &Digest) {
        if let Some(place) = place_of(extent) {
            self.state().read.insert(place, blake3::Hash::from_bytes(*digest).to_string());
        }
    }

    /// The digest of what is there, by who read it before.
    pub(super) fn recalled(&self, extent: &Extent) -> Option<Digest> {
        let state = self.state();
        Some(*blake3::Hash::from_hex(state.recalled.get(&place_of(extent)?)?).ok()?.as_bytes())
    }

    /// Learns what was noted.
    pub(super) fn recall(&self, kept: &Kept) {
        let Some(stat) = &self.opened else { return };
        let noted = kept.read(&stat.name(), MAX_BYTES).and_then(|noted| serde_json::from_slice(&noted).ok());
        let mut state = self.state();
        state.recalled = noted.unwrap_or_default();
        state.kept = Some(kept.clone());
    }

    /// Forgets what was noted, for it was wrong.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.recalled.clear();
        if let (Some(kept), Some(stat)) = (&state.kept, &self.opened) {
            let _ = kept.remove(&stat.name()); // as it will be with the next change
        }
    }

    /// Notes what was read, if the file has not changed since long before.
    pub(super) fn note(&self, file: &File, kept: &Kept) -> io::Result<()> {
        let state = self.state();
        let is_news = state.read.iter().any(|(place, digest)| state.recalled.get(place) != Some(digest));
        let Some(stat) = self.opened.filter(|stat| stat.is_settled && is_news) else { return Ok(()) };
        if Stat::of(file)?.it != stat.it {
            return Ok(());
        }
        let all: HashMap<&String, &String> = state.recalled.iter().chain(&state.read).collect();
        kept.write(&stat.name(), &serde_json::to_vec(&all).map_err(io::Error::other)?)?;
        let mut files = kept.list(DIGESTS)?;
        files.sort_by_key(|(_, metadata)| metadata.modified().ok());
        let too_many = files.len().saturating_sub(MAX_FILES);
        files.iter().take(too_many).try_for_each(|(name, _)| kept.remove(name).map(drop))
    }
}

/// What a digest is of; `None` of values that are not one after the other.
fn place_of(extent: &Extent) -> Option<String> {
    let info = &extent.info;
    let place = || format!("{} {:?} {:?}", info.data_offsets.0, info.dtype, info.shape);
    extent.view.is_none().then(place)
}
