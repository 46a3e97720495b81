//! Listens on a port: accepts connections, bounds them, and sees each of them to its end.
//!
//! ```text
//! accept ─▶ slots.rs: is there room? ─▶ connection.rs: TLS, first bytes, HTTP/2 or HTTP/1, the end
//!               │ no                         │ reads and writes through wire.rs
//!               ▼                            ▼
//!            closed, counted            each call goes to the port's router
//! ```
//!
//! # Why not tonic's own server?
//!
//! Its connections live as long as their peers like: one that says nothing is never closed, and a stop waits for
//! it. Its timer answers CANCELLED where the protocol says DEADLINE_EXCEEDED. And the HTTP/2 layer below ends a
//! whole connection, with everybody's calls on it, when a few dozen calls are cancelled at a time (wire.rs).

mod connection;
mod descriptors;
mod slots;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::metrics::Closed;
use crate::metrics::Port;
pub(super) use crate::service::listener::descriptors::Bounds;
pub use crate::service::listener::descriptors::TooFew;
use crate::service::listener::slots::Slots;
use crate::service::seldom::Seldom;
use crate::service::tls::Tls;

/// After a connection that could not be accepted for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of one reason, a log line for each connection would be a way to fill the disk.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// How connections are bounded, watched and ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Connections {
    /// On each port that callers use, at a time; fewer where file descriptors do not suffice.
    pub max: usize,
    /// From one address on one port at a time.
    pub max_per_peer: Option<usize>,
    /// A connection has so long to begin: with HTTP/2's preface, or with a whole HTTP/1 request.
    pub first_bytes: Duration,
    /// On a port of HTTP/1, a connection on which no byte moves for so long is closed.
    pub idle: Duration,
    /// An HTTP/2 connection that is silent for so long is asked whether it lives.
    pub keepalive: Duration,
    /// It is closed when it has not answered for so long. While it answers it is not idle: trainers wait for minutes.
    pub keepalive_timeout: Duration,
    /// A connection that is so old, a tenth more or less, is ended between two calls, so that its peer connects anew and
    /// finds servers that came later. None: never.
    pub max_age: Option<Duration>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max: 8192,
            max_per_peer: None,
            first_bytes: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_age: None,
        }
    }
}

/// What a port speaks.
pub(super) enum Protocol {
    /// HTTP/2 only.
    Grpc {
        /// What whoever comes with HTTP/1 is told.
        notice: String,
    },
    /// HTTP/1 only.
    Http1 {
        /// What whoever comes with HTTP/2 is told.
        notice: String,
    },
}

/// When the connections of a port end.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// Once cancelled nobody is accepted, and connections end as soon as their calls have.
    pub(super) closing: CancellationToken,
    /// Once cancelled they end at once.
    pub(super) cutting: CancellationToken,
}

/// Whose connection a call came on.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The name in the client certificate that it showed, which the server's client CA has signed.
    pub(super) certificate: Option<Arc<str>>,
}

/// A port that is served.
pub(super) struct Listener {
    pub(super) port: Port,
    pub(super) protocol: Protocol,
    tls: Option<Arc<Tls>>,
    pub(super) router: Router,
    pub(super) config: Connections,
    ending: Ending,
    slots: Arc<Slots>,
    /// When to write a line about each reason.
    said: Mutex<BTreeMap<Closed, Seldom>>,
}

impl Listener {
    /// `max`: how many connections at a time.
    pub(super) fn new(
        port: Port,
        protocol: Protocol,
        tls: Option<Arc<Tls>>,
        router: Router,
        config: &Connections,
        max: usize,
        ending: Ending,
    ) -> Self {
        let slots = Arc::new(Slots::new(port, max, config.max_per_peer));
        Self { port, protocol, tls, router, config: config.clone(), ending, slots, said: Mutex::default() }
    }

    /// Serves until it is told to close, and then until the last connection has ended. How many were cut.
    pub(super) async fn serve(self, listener: TcpListener) -> usize {
        let this = Arc::new(self);
        // Aborted when this future is dropped.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = this.ending.closing.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => this.admit(stream, peer, &mut connections).await,
                    Err(error) => this.not_accepted(&error).await,
                },
            }
        }
        // The port is free from here on: who comes now is refused at once, and looks elsewhere.
        drop(listener);
        let mut num_cut = 0;
        while let Some(ended) = connections.join_next().await {
            num_cut += usize::from(matches!(ended, Ok(Closed::DrainLimit)));
        }
        num_cut
    }

    async fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<Closed>) {
        match self.slots.admit(peer.ip()).await {
            Ok(ticket) => {
                let this = self.clone();
                connections.spawn(async move {
                    let reason = tokio::select! {
                        reason = connection::serve(stream, peer, &this, &ticket) => reason,
                        () = this.ending.cutting.cancelled() => Closed::DrainLimit,
                    };
                    // Its descriptor is closed by now: the next may come.
                    drop(ticket);
                    this.closed(reason, peer);
                    reason
                });
            }
            Err(reason) => {
                drop(stream);
                self.closed(reason, peer);
            }
        }
    }

    async fn not_accepted(&self, error: &io::Error) {
        const OUT_OF_DESCRIPTORS: [i32; 2] = [23, 24]; // ENFILE, EMFILE
        if error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code)) {
            tracing::warn!(port = self.port.as_str(), %error, "accept failed: who has said nothing yet must go");
            self.slots.displace();
            // Trying again at once would burn a core.
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        // Otherwise the peer had left before it was accepted.
    }

    /// Tells of a handshake that failed, which the end of its connection counts.
    fn handshake_failed(&self, peer: SocketAddr, error: &io::Error) {
        if let Some(closed) = self.to_say(Closed::Handshake) {
            tracing::warn!(port = self.port.as_str(), %peer, %error, closed, "the handshake of TLS failed");
        }
    }

    /// Counts the end of a connection, and tells of it.
    fn closed(&self, reason: Closed, peer: SocketAddr) {
        metrics::connection_closed(self.port, reason);
        if reason == Closed::Handshake {
            return; // told where it failed, with the reason
        }
        let Some(closed) = self.to_say(reason) else { return };
        let port = self.port.as_str();
        match reason {
            Closed::ByPeer | Closed::Handshake => {}
            Closed::Silent | Closed::Idle | Closed::Aged | Closed::Drained => {
                tracing::debug!(port, reason = reason.as_str(), %peer, closed, "closed connections");
            }
            Closed::Tls => tracing::warn!(
                port,
                reason = reason.as_str(),
                %peer,
                closed,
                "closed connections that began with TLS (an https:// address, or a client's secure channel): this port \
                 speaks without; [server.tls] gives it a certificate"
            ),
            // A check of health beside the server tries both, and every few seconds.
            Closed::WithoutTls if peer.ip().is_loopback() => {
                tracing::debug!(port, reason = reason.as_str(), %peer, closed, "closed connections");
            }
            Closed::WithoutTls => tracing::warn!(
                port,
                reason = reason.as_str(),
                %peer,
                closed,
                "closed connections that began without TLS (an http:// address, or a client's plain channel): this port \
                 speaks TLS"
            ),
            Closed::OtherProtocol | Closed::KeepAlive => {
                tracing::info!(port, reason = reason.as_str(), %peer, closed, "closed connections");
            }
            Closed::ProtocolError
            | Closed::Displaced
            | Closed::Full
            | Closed::PeerFull
            | Closed::DrainLimit => {
                tracing::warn!(port, reason = reason.as_str(), %peer, closed, "closed connections");
            }
        }
    }

    /// How many there were since the last line about this reason, if it is time for another.
    fn to_say(&self, reason: Closed) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.entry(reason).or_insert_with(|| Seldom::new(LOG_PAUSE)).pass()
    }
}
