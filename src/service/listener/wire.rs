//! A connection's bytes: what was read ahead, how much is read at a time, and when something last moved.
//!
//! # Why reading is paced
//!
//! A call that is reset before anybody took notice of it costs its peer 26 bytes, and the server a request. The
//! HTTP/2 layer takes notice of calls only when it has read all that has arrived, counts those that are reset by
//! then, and ends the connection at 20: the defence against a flood of such pairs (CVE-2023-44487). But 256 calls
//! with a deadline of 2 ms, on a busy machine, look the same, and everybody's calls on that connection were lost.
//! Here the connection reads some [`READ_BYTES`] before calls are taken notice of, and before others have
//! their turn on the thread. So what a flood can pile up is bounded ([`MAX_RESETS`]) without ending a connection.
//!
//! A call that was taken notice of and then reset is still some work, though it no longer counts among the calls
//! that a peer may have open. While there are more of both than that, nothing is read (`Calls` in connection.rs):
//! without this, resets at the speed of the network kept a neighbour waiting ten times as long as calls did.
//!
//! Nothing is read while the peer does not read what was written: answers to frames that need no permission to be
//! sent (pings, resets) cannot pile up either (RUSTSEC-2024-0003).

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// Once so much is read, the next read waits for the next turn. Large enough that a large message costs nothing
/// by it: its frames have 16 KiB.
const READ_BYTES: usize = 64 << 10;
/// The shortest HEADERS frame that opens a call has 13 bytes, and so has RST_STREAM. Twice [`READ_BYTES`]: one
/// buffer more than that may be read, and one may have waited, read before.
pub(super) const MAX_RESETS: usize = 2 * READ_BYTES / (13 + 13);

/// What every HTTP/2 connection begins with. Source: RFC 9113, section 3.4.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection began with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// HTTP/2. It is still there to be read.
    Preface,
    /// Something else, or a shorter preface and then the end.
    Other(Vec<u8>),
}

/// Whether bytes begin a TLS handshake: a record of type 22, version 3.x. Source: RFC 8446, section 5.1.
pub(super) fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [22] | [22, 3, ..])
}

/// A connection, as it is or within TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A connection's two directions.
pub(super) struct Wire {
    stream: Stream,
    /// Read already, to be read again.
    ahead: Vec<u8>,
    pulse: Arc<Pulse>,
}

/// What a wire tells whoever watches it.
pub(super) struct Pulse {
    started: Instant,
    may_read: AtomicUsize,
    is_held: AtomicBool,
    /// Nanoseconds after `started`, of the last byte in either direction.
    moved: AtomicU64,
    /// Nanoseconds after `started`, of the last byte that could be written.
    wrote: AtomicU64,
    is_blocked: AtomicBool,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        let pulse = Pulse {
            started: Instant::now(),
            may_read: AtomicUsize::new(READ_BYTES),
            is_held: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            wrote: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
        };
        Self { stream, ahead: Vec::new(), pulse: Arc::new(pulse) }
    }

    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Reads until it is clear what the connection begins with.
    pub(super) async fn first(&mut self) -> io::Result<First> {
        let mut seen = Vec::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() {
            let mut rest = [0; PREFACE.len()];
            let rest = &mut rest[seen.len()..];
            let count = self.stream.read(rest).await?;
            seen.extend_from_slice(&rest[..count]);
            if count == 0 || !PREFACE.starts_with(&seen) {
                return Ok(First::Other(seen));
            }
        }
        self.ahead = seen;
        Ok(First::Preface)
    }

    /// The stream, for who takes it from here.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Lets bytes that were read be read again.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.ahead = bytes;
    }
}

impl Pulse {
    /// The connection has its turn: it may read again, unless it is held; then whoever holds it wakes its task.
    pub(super) fn turn(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
        self.may_read.store(READ_BYTES, Ordering::Relaxed);
    }

    /// Since when no byte moved.
    pub(super) fn still_since(&self) -> Instant {
        self.started + Duration::from_nanos(self.moved.load(Ordering::Relaxed))
    }

    /// Since when the peer takes nothing of what waits to be written.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.is_blocked.load(Ordering::Relaxed).then(|| self.wrote_at())
    }

    /// When a byte was last written.
    pub(super) fn wrote_at(&self) -> Instant {
        self.started + Duration::from_nanos(self.wrote.load(Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        self.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            let now = self.now();
            self.moved.store(now, Ordering::Relaxed);
            self.wrote.store(now, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..count]);
            this.ahead.drain(..count);
            return Poll::Ready(Ok(()));
        }
        if this.pulse.is_blocked.load(Ordering::Relaxed) || this.pulse.is_held.load(Ordering::Relaxed) {
            // The write that waits wakes this task, or who holds it.
            return Poll::Pending;
        }
        let may_read = this.pulse.may_read.load(Ordering::Relaxed);
        if may_read == 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let count = buffer.filled().len() - before;
        this.pulse.may_read.store(may_read.saturating_sub(count), Ordering::Relaxed);
        this.pulse.moved.store(this.pulse.now(), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.pulse.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.pulse.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
