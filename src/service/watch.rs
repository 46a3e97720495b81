//! Files that a running server reads again when they change: certificates and tokens, which others renew.
//!
//! They are looked at every second, by name. What the system can tell of changes is about a file, and a mounted Secret is
//! renewed by turning a link to another folder.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics;
use crate::metrics::Renewed;
use crate::model::chain;

const PAUSE: Duration = Duration::from_secs(1);

/// Something that was read from files.
pub(super) struct Watched {
    /// What it is called in log and metrics.
    pub(super) what: Renewed,
    pub(super) files: Vec<PathBuf>,
    /// Reads them again.
    pub(super) reread: Box<dyn Fn() -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>,
}

/// Reads again what has changed since `begun`, the stamps from before it was read first. Never ends.
pub(super) async fn watch(watched: Watched, begun: Vec<Option<Stamp>>) {
    let watched = Arc::new(watched);
    let mut seen = begun;
    loop {
        tokio::time::sleep(PAUSE).await;
        let (now, before) = (watched.clone(), seen.clone());
        // A network's file system may let one wait: not on an async thread.
        let looked = tokio::task::spawn_blocking(move || {
            let stamps = stamps(&now.files);
            // Before it is read: what changes meanwhile is seen the next time.
            if stamps != before {
                now.renew();
            }
            stamps
        });
        if let Ok(stamps) = looked.await {
            seen = stamps;
        }
    }
}

impl Watched {
    fn renew(&self) {
        let what = self.what.as_str();
        let result = (self.reread)();
        metrics::renewed(self.what, result.is_ok());
        match result {
            Ok(()) => tracing::info!(what, "files have changed, and hold from now on"),
            Err(error) => {
                tracing::warn!(
                    what,
                    error = chain(&*error),
                    "files have changed and cannot be used: the old ones hold on"
                );
            }
        }
    }
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// One per file; none where there is no such file.
pub(super) fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &Path| {
        let file = fs::metadata(path).ok()?;
        Some(Stamp {
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    };
    files.iter().map(|path| stamp(path)).collect()
}
