//! How many connections each port may have, by what the process may open.
//!
//! A connection is a file descriptor, and so is a checkpoint that is read for a reload. When there are none left
//! nothing works any more, metrics and health included: so they are shared out at the start.

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

use crate::metrics::Port;
use crate::service::ports::Ports;

/// Connections of the admin and of the metrics port; more have no use. The others share what is left.
const MOST_ADMIN: usize = 32;
const MOST_METRICS: usize = 64;
/// For files, where there is plenty.
const MOST_FILES: usize = 64;
/// What a process has open that nobody can count, roughly: streams, listeners, the event queue.
const USUALLY_OPEN: usize = 16;

/// How many connections each port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Of each port that callers use.
    reward: usize,
    admin: usize,
    metrics: usize,
}

/// The process may open too few files to serve anybody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may have {limit} files open (ulimit -n), and {open} are: too few to serve; allow at least {needed}"
)]
pub struct TooFew {
    limit: usize,
    open: usize,
    needed: usize,
}

impl Bounds {
    /// Raises the soft limit of this process to its hard limit, and shares it out. `wanted` connections on each port that
    /// callers use need no more than they get.
    pub(crate) fn find(wanted: usize, ports: &Ports) -> Result<Self, TooFew> {
        let limit = raise();
        let open = std::fs::read_dir("/proc/self/fd").map_or(USUALLY_OPEN, Iterator::count);
        let doors = [Port::Reward, Port::Http].iter().filter(|port| ports.get(**port).is_some()).count();
        let bounds = Self::share(limit, open, doors.max(1), wanted)?;
        let Self { reward, admin, metrics } = bounds;
        if reward < wanted {
            tracing::warn!(
                max_connections = wanted,
                reward,
                file_descriptors = limit,
                "fewer connections than configured: the process may not open more (ulimit -n)"
            );
        }
        tracing::info!(reward, admin, metrics, file_descriptors = limit, "connections at a time");
        Ok(bounds)
    }

    /// How many connections `port` may have.
    pub(crate) fn of(&self, port: Port) -> usize {
        match port {
            Port::Reward | Port::Http => self.reward,
            Port::Admin => self.admin,
            Port::Metrics | Port::Ui => self.metrics,
        }
    }

    fn share(limit: usize, open: usize, doors: usize, wanted: usize) -> Result<Self, TooFew> {
        let left = limit.saturating_sub(open);
        let files = (left / 4).clamp(8, MOST_FILES);
        let metrics = (left / 8).clamp(2, MOST_METRICS);
        let admin = (left / 16).clamp(1, MOST_ADMIN);
        let reward = (left.saturating_sub(files + metrics + admin) / doors).min(wanted);
        if reward == 0 {
            return Err(TooFew { limit, open, needed: open + 64 });
        }
        Ok(Self { reward, admin, metrics })
    }
}

/// The limit on open files, raised as far as it goes.
fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit =
        if current != maximum && setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    // None is no limit.
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_metrics_and_admin_have_their_share_first() {
        let bounds = |reward, admin, metrics| Ok(Bounds { reward, admin, metrics });
        assert_eq!(Bounds::share(64, 16, 1, 8192), bounds(27, 3, 6));
        assert_eq!(Bounds::share(1024, 20, 1, 8192), bounds(1004 - 64 - 64 - 32, 32, 64));
        assert_eq!(Bounds::share(1 << 20, 20, 1, 8192), bounds(8192, 32, 64));
        assert_eq!(Bounds::share(usize::MAX, 20, 1, 8192), bounds(8192, 32, 64));
        assert_eq!(Bounds::share(1024, 20, 2, 8192), bounds((1004 - 64 - 64 - 32) / 2, 32, 64));
        assert_eq!(Bounds::share(24, 12, 1, 8192), bounds(1, 1, 2));
        assert_eq!(Bounds::share(20, 16, 1, 8192), Err(TooFew { limit: 20, open: 16, needed: 80 }));
        assert_eq!(Bounds::share(8, 16, 1, 8192), Err(TooFew { limit: 8, open: 16, needed: 80 }));
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let limit = raise();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert_eq!(current.map(|limit| limit as usize).unwrap_or(usize::MAX), limit);
    }
}
