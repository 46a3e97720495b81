//! Files of weights that are mapped: all processes that read one have one copy of it, in the system's page cache.
//!
//! # Why is that safe?
//!
//! Whoever cuts a file that is mapped ends its readers (SIGBUS), and whoever writes into it changes what they read. So a
//! file is mapped under a *lease* (`F_SETLEASE`): the system tells us before it lets anybody write to the file or cut it, and lets them
//! wait (those that cannot wait are refused), 45 seconds unless it was told otherwise (`/proc/sys/fs/lease-break-time`). A
//! thread looks four times a second whether somebody waits; then it copies the file into memory of our own, puts that
//! in the place of the mapping, in one step and at the same addresses, and gives the lease back. No lease is
//! given while anybody has the file open for writing, nor by file systems that others change behind the
//! system's back (NFS): then nothing is mapped. Other names, and none, do a mapped file no harm.

#![expect(unsafe_code, reason = "files are mapped, and asked to stay as they are")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ops::Range;
use std::sync::Arc;

use crate::buffer::Line;

/// A file that stays as it is while it is mapped.
pub struct Mapped {
    address: *const u8,
    bytes: usize,
    #[cfg(target_os = "linux")]
    lease: linux::Lease,
}

// SAFETY: nothing but reads goes through the address, and what is there does not change
unsafe impl Send for Mapped {}
// SAFETY: as above
unsafe impl Sync for Mapped {}

/// Some bytes of it, which begin at a cache line.
#[derive(Clone)]
pub struct Region {
    file: Arc<Mapped>,
    range: Range<usize>,
}

impl Mapped {
    /// Maps a file that is open for reading alone. `told` hears what came of it if somebody wants to change the file.
    ///
    /// Fails where the system does not promise that the file stays as it is: nothing is mapped then.
    #[cfg(target_os = "linux")]
    pub fn new(file: File, told: impl Fn(&io::Result<()>) + Send + Sync + 'static) -> io::Result<Arc<Self>> {
        linux::map(file, Box::new(told))
    }

    /// Elsewhere nobody promises that a file stays as it is.
    #[cfg(not(target_os = "linux"))]
    pub fn new(file: File, told: impl Fn(&io::Result<()>) + Send + Sync + 'static) -> io::Result<Arc<Self>> {
        let _ = (file, told);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Of the whole file.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped there until `self` is dropped, and the lease keeps the file as it is
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }

    /// Some of its bytes; `None` where they are not all there, or do not begin at a cache line.
    pub fn region(self: &Arc<Self>, range: Range<usize>) -> Option<Region> {
        let is_there = range.start <= range.end && range.end <= self.bytes;
        (is_there && range.start.is_multiple_of(size_of::<Line>()))
            .then(|| Region { file: self.clone(), range })
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes)", self.range.len())
    }
}

/// Lines of weights: in memory of our own, or in a file.
pub(crate) enum Lines {
    Own(Vec<Line>),
    Mapped(Region),
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            // SAFETY: any bytes are lines; a mapping begins at a page, and a region in it at a line, and what does not fill
            // a line at the end is left out
            Self::Mapped(region) => unsafe {
                std::slice::from_raw_parts(region.as_ptr().cast(), region.len() / size_of::<Line>())
            },
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::ptr::null_mut;
    use std::sync::Arc;
    use std::sync::Mutex;
    use std::sync::Once;
    use std::sync::PoisonError;
    use std::sync::Weak;
    use std::thread;
    use std::time::Duration;

    use super::Mapped;

    /// How often is looked whether somebody wants to write.
    const LOOK_EVERY: Duration = Duration::from_millis(250);

    /// Hears whether a copy was taken.
    type Told = dyn Fn(&io::Result<()>) + Send + Sync;

    /// The open file, until the lease was given back.
    pub(super) struct Lease {
        file: Mutex<Option<File>>,
        told: Box<Told>,
    }

    /// Says which signal comes when somebody wants to write: <https://man7.org/linux/man-pages/man2/F_GETSIG.2const.html>
    const F_SETSIG: libc::c_int = 10;

    static MAPPED: Mutex<Vec<Weak<Mapped>>> = Mutex::new(Vec::new());

    /// Of a call of the system: what it returned, or why it failed.
    fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn placed(address: *mut libc::c_void) -> io::Result<*mut libc::c_void> {
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
    }

    pub(super) fn map(file: File, told: Box<Told>) -> io::Result<Arc<Mapped>> {
        watch()?;
        let descriptor = file.as_raw_fd();
        // SAFETY: integers go in and out. The signal that comes when somebody wants to write is one that nobody heeds
        // (what comes unasked, SIGIO, would end the process).
        unsafe {
            checked(libc::fcntl(descriptor, F_SETSIG, libc::SIGURG))?;
            checked(libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK))?;
        }
        let bytes = file.metadata()?.len() as usize; // from the lease on it is what it is
        // SAFETY: a new mapping, at an address that the system chooses
        let address = placed(unsafe {
            libc::mmap(null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, descriptor, 0)
        })?;
        let lease = Lease { file: Mutex::new(Some(file)), told };
        let mapped = Arc::new(Mapped { address: address.cast(), bytes, lease });
        MAPPED.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&mapped));
        Ok(mapped)
    }

    /// Starts the thread that looks whether somebody wants to write.
    fn watch() -> io::Result<()> {
        static START: Once = Once::new();
        let mut started = Ok(());
        START.call_once(|| {
            let look = || {
                loop {
                    thread::sleep(LOOK_EVERY);
                    let mut mapped = Vec::new();
                    MAPPED.lock().unwrap_or_else(PoisonError::into_inner).retain(|file| {
                        mapped.extend(file.upgrade());
                        file.strong_count() > 0
                    });
                    mapped.iter().for_each(|file| file.give_way());
                }
            };
            started = thread::Builder::new().name("leases".to_owned()).spawn(look).map(drop);
        });
        started
    }

    impl Mapped {
        /// If somebody waits for the lease: takes a copy, and gives it back.
        fn give_way(&self) {
            let mut file = self.lease.file.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(open) = &*file else { return };
            // SAFETY: integers go in and out
            if unsafe { libc::fcntl(open.as_raw_fd(), libc::F_GETLEASE) } == libc::F_RDLCK {
                return;
            }
            let copied = self.copy();
            (self.lease.told)(&copied);
            if copied.is_ok() {
                *file = None; // closed, which gives the lease back
            }
        }

        /// Puts a copy into the place of the mapping.
        fn copy(&self) -> io::Result<()> {
            // SAFETY: a new mapping of as many bytes is filled, then takes the place of the old one in one step. Others
            // read there meanwhile: the same bytes before and after, for the lease is still ours.
            unsafe {
                let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
                let own = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let copy = placed(libc::mmap(null_mut(), self.bytes, write, own, -1, 0))?;
                copy.cast::<u8>().copy_from_nonoverlapping(self.address, self.bytes);
                let moved = checked(libc::mprotect(copy, self.bytes, read)).and_then(|_| {
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    placed(libc::mremap(copy, self.bytes, self.bytes, flags, self.address.cast_mut()))
                });
                if moved.is_err() {
                    libc::munmap(copy, self.bytes);
                }
                moved.map(drop)
            }
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: mapped by us, and nobody has a reference into it any more
            unsafe { libc::munmap(self.address.cast_mut().cast(), self.bytes) };
        }
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn whoever_changes_a_mapped_file_waits_until_its_readers_have_a_copy() {
        static COPIES: AtomicUsize = AtomicUsize::new(0);
        let path = std::env::temp_dir().join(format!("rewarm-mapped-{}", std::process::id()));
        let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = || {
            let told = |copied: &io::Result<()>| {
                assert!(copied.is_ok(), "{copied:?}");
                COPIES.fetch_add(1, Ordering::Relaxed);
            };
            Mapped::new(File::open(&path).unwrap(), told)
        };
        let writing = File::options().write(true).open(&path).unwrap();
        assert!(map().is_err(), "somebody may write to it");
        drop(writing);

        let (mapped, another) = (map().unwrap(), map().unwrap());
        let region = another.region(64..999_999).unwrap();
        assert!(another.region(1..64).is_none() && another.region(64..1_000_001).is_none());
        let at_once = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(at_once.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        File::create(&path).unwrap(); // cuts it, when it may
        assert_eq!(COPIES.load(Ordering::Relaxed), 2);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert!(mapped.bytes() == content && *region == content[64..999_999]);
        std::fs::remove_file(&path).unwrap();
    }
}
