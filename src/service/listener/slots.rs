//! Who may be connected to a port: a bound for all, one per peer, and who goes first when it is full.
//!
//! A newcomer has not made a call yet. When there is no room for another connection, the newcomer that came first
//! makes room, those that have not even begun to speak before the others: so silent connections, however many,
//! keep nobody out. A gRPC connection that has made a call is never closed for another: when all have, who comes
//! is refused. One to the metrics port stays a newcomer, and makes room between two requests.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::metrics::Closed;
use crate::metrics::Port;

/// How long a displaced connection may take to go, before the one that came for its place is refused.
const DISPLACE_WAIT: Duration = Duration::from_millis(100);

/// How far a newcomer has come; who has come less far goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Silent,
    Speaks,
}

/// The places of one port.
pub(super) struct Slots {
    port: Port,
    free: Arc<Semaphore>,
    max_per_peer: Option<usize>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_peer: HashMap<IpAddr, usize>,
    newcomers: BTreeMap<(Progress, u64), CancellationToken>,
}

impl Slots {
    pub(super) fn new(port: Port, max: usize, max_per_peer: Option<usize>) -> Self {
        let free = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self { port, free, max_per_peer, open: Mutex::default() }
    }

    /// A place for a connection of `peer`, or why there is none.
    pub(super) async fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Ticket, Closed> {
        let peer = peer.to_canonical();
        if let Some(max) = self.max_per_peer
            && self.open().by_peer.get(&peer).is_some_and(|count| *count >= max)
        {
            return Err(Closed::PeerFull);
        }
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if self.displace() => {
                match timeout(DISPLACE_WAIT, self.free.clone().acquire_owned()).await {
                    Ok(Ok(permit)) => permit,
                    _ => return Err(Closed::Full),
                }
            }
            Err(_) => return Err(Closed::Full),
        };
        let displaced = CancellationToken::new();
        let mut open = self.open();
        let id = open.next;
        open.next += 1;
        if self.max_per_peer.is_some() {
            *open.by_peer.entry(peer).or_default() += 1;
        }
        open.newcomers.insert((Progress::Silent, id), displaced.clone());
        drop(open);
        metrics::connection_opened(self.port);
        Ok(Ticket { slots: self.clone(), id, peer, displaced, _permit: permit })
    }

    /// Tells one newcomer to go; false if there is none.
    pub(super) fn displace(&self) -> bool {
        let first = self.open().newcomers.pop_first();
        first.map(|(_, displaced)| displaced.cancel()).is_some()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; dropped with it.
pub(super) struct Ticket {
    slots: Arc<Slots>,
    id: u64,
    peer: IpAddr,
    displaced: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Ticket {
    /// Returns when the connection must make room.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    /// The connection has begun to speak.
    pub(super) fn speaks(&self) {
        let mut open = self.slots.open();
        if let Some(displaced) = open.newcomers.remove(&(Progress::Silent, self.id)) {
            open.newcomers.insert((Progress::Speaks, self.id), displaced);
        }
    }

    /// The connection has made a call: it stays.
    pub(super) fn stays(&self) {
        self.forget(&mut self.slots.open());
    }

    fn forget(&self, open: &mut Open) {
        for progress in [Progress::Silent, Progress::Speaks] {
            open.newcomers.remove(&(progress, self.id));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        metrics::connection_left(self.slots.port);
        let mut open = self.slots.open();
        self.forget(&mut open);
        if let Some(count) = open.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn slots(max: usize, max_per_peer: Option<usize>) -> Arc<Slots> {
        Arc::new(Slots::new(Port::Reward, max, max_per_peer))
    }

    async fn goes(ticket: Ticket) {
        ticket.displaced().await;
    }

    #[tokio::test]
    async fn the_silent_make_room_before_those_who_speak_and_callers_stay() {
        let slots = slots(3, None);
        let caller = slots.admit(HERE).await.unwrap();
        let speaker = slots.admit(HERE).await.unwrap();
        let silent = slots.admit(HERE).await.unwrap();
        caller.stays();
        speaker.speaks();

        let (admitted, ()) = tokio::join!(slots.admit(HERE), goes(silent));
        let first = admitted.unwrap();
        first.stays();
        let (admitted, ()) = tokio::join!(slots.admit(HERE), goes(speaker));
        let second = admitted.unwrap();
        second.stays();

        assert_eq!(slots.admit(HERE).await.err(), Some(Closed::Full));
        assert!(!caller.displaced.is_cancelled());
        drop(caller);
        assert!(slots.admit(HERE).await.is_ok());
    }

    #[tokio::test]
    async fn one_that_does_not_go_in_time_keeps_its_place() {
        let slots = slots(1, None);
        let _stubborn = slots.admit(HERE).await.unwrap();
        assert_eq!(slots.admit(HERE).await.err(), Some(Closed::Full));
    }

    #[tokio::test]
    async fn a_peer_has_its_own_bound_by_whatever_form_of_its_address() {
        let slots = slots(10, Some(2));
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        let one = slots.admit(HERE).await.unwrap();
        let _two = slots.admit(mapped).await.unwrap();
        assert_eq!(slots.admit(HERE).await.err(), Some(Closed::PeerFull));
        assert!(slots.admit("::1".parse().unwrap()).await.is_ok());
        drop(one);
        assert!(slots.admit(mapped).await.is_ok());
    }
}
