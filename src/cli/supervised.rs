//! What a server owes the program that started it: word of where it listens, and an end when that program has ended.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use rustix::process::Pid;
use rustix::process::getppid;

use crate::disk::write::write_whole;
use crate::service::Ports;

/// Soon enough for whoever waits for the ports to be free, and a system call that costs nothing.
const LOOK: Duration = Duration::from_millis(100);

/// The process that this one does not outlive.
///
/// # Why not `PR_SET_PDEATHSIG`?
///
/// It goes by the *thread* that started us: a program that starts its servers from a pool of threads, as actors and tests
/// do, would lose them when that thread retires. And it is Linux's alone. Whose child we are changes when the process ends,
/// whether or not anybody reaps it.
pub(super) struct Parent(Pid);

impl Parent {
    /// Fails if `given` is not the parent: it may have ended before we could look.
    pub(super) fn new(given: NonZeroU32) -> anyhow::Result<Self> {
        let found = getppid();
        let found_id = found.map_or(0, Pid::as_raw_pid);
        match found {
            Some(parent) if i64::from(found_id) == i64::from(given.get()) => Ok(Self(parent)),
            _ => anyhow::bail!(
                "--end-with-parent {given}: the parent of this process is {found_id}: process {given} has ended, or \
                 another program stands between"
            ),
        }
    }

    /// Returns once it has ended.
    pub(super) async fn ended(&self) {
        let mut looks = tokio::time::interval(LOOK);
        while !self.has_ended() {
            looks.tick().await;
        }
    }

    fn has_ended(&self) -> bool {
        getppid() != Some(self.0)
    }
}

/// A blocked signal stays so in children: those of a Ray worker would never see Ctrl-C. Before threads are started, which
/// inherit it too.
pub(super) fn unblock_interrupt() -> anyhow::Result<()> {
    nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGINT)
        .thread_unblock()
        .context("unblock SIGINT")
}

/// Writes where the server listens, as one JSON object: whoever finds the file, finds the whole. `start` is another one for
/// each start, so that an old server, which may still drain, is not taken for the new one.
pub(super) fn publish(path: &Path, ports: &Ports) -> anyhow::Result<()> {
    let pid = std::process::id();
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let start = format!("{began:x}-{pid:x}");
    let mut told = serde_json::json!({ "start": start, "pid": pid });
    for (port, address) in ports.iter() {
        told[port.key()] = address.to_string().into();
    }
    write_whole(path, format!("{told}\n").as_bytes())
        .with_context(|| format!("write --addresses {}", path.display()))?;
    tracing::info!(start, path = %path.display(), "wrote the addresses");
    Ok(())
}
