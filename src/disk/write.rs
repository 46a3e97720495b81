//! What is written to disk: small files whole or not at all, and large ones, of which little is left to wait for at the end.

use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::thread::JoinHandle;

use tempfile::NamedTempFile;

/// What the names of files and folders begin with while they are written; a command that is killed may leave them.
pub const PARTIAL: &str = ".rewarm-partial-";

/// So many bytes are sent to the disk while more are made.
const SYNC_BYTES: usize = 64 << 20;

/// A file that is being written. It is sent to the disk meanwhile: to do so at the end would be waited for.
#[derive(Debug)]
pub struct LargeFile {
    file: BufWriter<File>,
    written: u64,
    unsynced: usize,
    /// Of a file that is large.
    ahead: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl LargeFile {
    /// A new file.
    pub fn new(file: File) -> Self {
        Self { file: BufWriter::new(file), written: 0, unsynced: 0, ahead: None }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.written
    }

    /// Adds these.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        self.unsynced += bytes.len();
        if self.unsynced < SYNC_BYTES {
            return Ok(());
        }
        self.unsynced = 0;
        if self.ahead.is_none() {
            let file = self.file.get_ref().try_clone()?;
            let (wake, woken) = sync_channel(1);
            let sync = move || woken.into_iter().try_for_each(|()| file.sync_data());
            self.ahead = Some((wake, thread::Builder::new().name("sync".to_owned()).spawn(sync)?));
        }
        // where it is busy or has failed, the end will tell
        let _ = self.ahead.as_ref().map(|(wake, _)| wake.try_send(()));
        Ok(())
    }

    /// Makes sure that all of it is on the disk.
    pub fn finish(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(|error| error.into_error())?;
        if let Some((wake, thread)) = self.ahead {
            drop(wake);
            // an error of the disk is told once: to whoever asked first
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        file.sync_all()
    }
}

/// Writes a file whole or not at all, for whoever reads it meanwhile: beside it, and then in its place.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// Makes sure that what a folder's files are called is on the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
