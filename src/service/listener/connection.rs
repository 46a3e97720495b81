//! One connection, from its first byte to its end.
//!
//! It ends when its peer leaves, or by one of the reasons in [`Closed`]. When the server closes, the peer is told
//! (GOAWAY); it is left alone as long as calls that it made before are answered and it reads the answers, and is
//! then closed, whether it has gone or not.
//!
//! One that is as old as it may become is never cut: over HTTP/2 the peer is told to make its next calls elsewhere, and
//! those that it has made are answered, however long they take; over HTTP/1 the next answer says that it is the last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use axum::body::Body;
use hyper::Request;
use hyper::body::Bytes;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::body::SizeHint;
use hyper::header::CONNECTION;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tonic::Status;

use crate::metrics::Closed;
use crate::service::call;
use crate::service::chance;
use crate::service::listener::Connections;
use crate::service::listener::Listener;
use crate::service::listener::Peer;
use crate::service::listener::Protocol;
use crate::service::listener::slots::Ticket;
use crate::service::listener::wire::First;
use crate::service::listener::wire::MAX_RESETS;
use crate::service::listener::wire::PREFACE;
use crate::service::listener::wire::Pulse;
use crate::service::listener::wire::Stream;
use crate::service::listener::wire::Wire;
use crate::service::listener::wire::is_tls;
use crate::service::tls;
use crate::service::tls::Tls;

/// Once all calls of a connection are answered: time for the answers to get there, and for the peer to go.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// Of one connection: a trainer that opens one stream per sample waits its turn instead of failing.
const MAX_STREAMS: u32 = 1024;
/// HTTP/2's own 64 KiB would make a large request wait for a round trip every 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// More of a request that is refused is not read.
const MAX_REFUSED_BYTES: usize = 64 << 10;

/// What HTTP/1 without TLS is told on a port that has it.
const WITHOUT_TLS: &str =
    "this port of rewarm speaks TLS: use an https:// address, or a secure channel for gRPC\n";

/// The status of that answer, and the field that goes with it. Source: RFC 9110, section 15.5.22. gRPC's clients repeat the
/// number, by which ours tells this from other ports of HTTP/1.
const UPGRADE: &str = "426 Upgrade Required\r\nUpgrade: TLS/1.2, HTTP/1.1";

/// Serves a connection to its end; says why it ended.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    listener: &Arc<Listener>,
    ticket: &Ticket,
) -> Closed {
    // It may be gone already: then the first read says so.
    let _ = stream.set_nodelay(true);
    let (stream, certificate) = match &listener.tls {
        None => (Stream::Left(stream), None),
        Some(tls) => {
            let shaken = tokio::select! {
                shaken = timeout(listener.config.first_bytes, shake_hands(stream, address, tls, listener)) => shaken,
                () = ticket.displaced() => return Closed::Displaced,
                () = listener.ending.closing.cancelled() => return Closed::Drained,
            };
            match shaken {
                Err(_) => return Closed::Silent,
                Ok(Err(reason)) => return reason,
                Ok(Ok((stream, certificate))) => (Stream::Right(Box::new(stream)), certificate),
            }
        }
    };
    let mut wire = Wire::new(stream);
    let peer = Peer { address, certificate };
    let life = Life { listener, ticket, peer, pulse: wire.pulse(), calls: Arc::default() };
    let first = tokio::select! {
        first = timeout(listener.config.first_bytes, wire.first()) => first,
        () = ticket.displaced() => return Closed::Displaced,
        () = listener.ending.closing.cancelled() => return Closed::Drained,
    };
    let (first, notice) = match (first, &listener.protocol) {
        (Err(_), _) => return Closed::Silent,
        (Ok(Err(_)), _) => return Closed::ByPeer,
        (Ok(Ok(First::Other(bytes))), _) if bytes.is_empty() => return Closed::ByPeer,
        (Ok(Ok(First::Other(bytes))), _) if is_tls(&bytes) => return Closed::Tls,
        (Ok(Ok(First::Preface)), Protocol::Grpc { .. }) => {
            ticket.speaks();
            return life.http2(wire).await;
        }
        (Ok(Ok(First::Other(bytes))), Protocol::Http1 { .. }) => {
            wire.put_back(bytes);
            return life.http1(wire).await;
        }
        (Ok(Ok(First::Other(bytes))), Protocol::Grpc { notice }) => (bytes, notice),
        // its preface is, on purpose, a whole request of HTTP/1, and is answered as one
        (Ok(Ok(First::Preface)), Protocol::Http1 { notice }) => (PREFACE.to_vec(), notice),
    };
    let refused = refuse(wire.into_stream(), first, "505 HTTP Version Not Supported", notice);
    // Whether it was told or not, it is over.
    let _ = timeout(listener.config.first_bytes, refused).await;
    Closed::OtherProtocol
}

/// A handshake of TLS, and who the client is by its certificate. Whoever speaks without TLS is told so, if it is HTTP/1.
async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    listener: &Listener,
) -> Result<(TlsStream<TcpStream>, Option<Arc<str>>), Closed> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(Closed::ByPeer),
        Ok(_) if !is_tls(&first) => {
            // Whether it was told or not, it is over. HTTP/2 is answered in HTTP/1, too: gRPC's clients call that a failed
            // attempt, and wait longer and longer before the next; after SETTINGS and a GOAWAY they come back at once.
            let _ = refuse(stream, Vec::new(), UPGRADE, WITHOUT_TLS).await;
            return Err(Closed::WithoutTls);
        }
        Ok(_) => {}
    }
    let is_http2 = matches!(listener.protocol, Protocol::Grpc { .. });
    let stream = tls.acceptor(is_http2).accept(stream).await.map_err(|error| {
        listener.handshake_failed(address, &error);
        Closed::Handshake
    })?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let name = certificate.map(|certificate| tls::subject(certificate).unwrap_or_default().into());
    Ok((stream, name))
}

/// What is known of a connection that speaks.
struct Life<'c> {
    listener: &'c Arc<Listener>,
    ticket: &'c Ticket,
    peer: Peer,
    pulse: Arc<Pulse>,
    calls: Arc<Calls>,
}

impl Life<'_> {
    async fn http2(&self, wire: Wire) -> Closed {
        let Connections { keepalive, keepalive_timeout, .. } = self.listener.config;
        let router = TowerToHyperService::new(self.listener.router.clone());
        let (calls, peer) = (self.calls.clone(), self.peer.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let call = OpenCall::begin(&calls);
            request.extensions_mut().insert(peer.clone());
            let answer = call::note_deadline(&mut request).map(|deadline| (deadline, router.call(request)));
            async move {
                let response = match answer {
                    Ok((deadline, answer)) => call::answer_in_time(deadline, answer).await,
                    Err(error) => Status::from(error).into_http(),
                };
                Ok::<_, Infallible>(response.map(|body| Answer { body, _call: call }))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive_timeout)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // Never reached: wire.rs bounds what can come at a time, and what answers can pile up.
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(None)
            .serve_connection(TokioIo::new(wire), service);
        let patience = keepalive + keepalive_timeout;
        let look = || {
            let is_stuck = self.pulse.blocked_since().is_some_and(|since| since.elapsed() >= patience);
            if is_stuck { Err(Closed::KeepAlive) } else { Ok(Instant::now() + keepalive_timeout) }
        };
        let close = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
        self.drive(pin!(connection), close, close, look, true).await
    }

    async fn http1(&self, wire: Wire) -> Closed {
        let Connections { first_bytes, idle, .. } = self.listener.config;
        let router = TowerToHyperService::new(self.listener.router.clone());
        let (calls, peer) = (self.calls.clone(), self.peer.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let call = OpenCall::begin(&calls);
            request.extensions_mut().insert(peer.clone());
            let answer = router.call(request);
            async move {
                let mut response = answer.await?;
                if call.calls.is_aged.load(Ordering::Relaxed) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Answer { body, _call: call }))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Of every request. It runs while nothing comes, too.
            .header_read_timeout(idle)
            .serve_connection(TokioIo::new(wire), service);
        let begun = Instant::now();
        let look = || {
            if !self.calls.have_begun() {
                let end = begun + first_bytes;
                return if Instant::now() >= end { Err(Closed::Silent) } else { Ok(end) };
            }
            if self.calls.are_live() && self.pulse.blocked_since().is_none() {
                return Ok(Instant::now() + idle); // it waits for us: a trainer does so for minutes
            }
            let end = Instant::from_std(self.pulse.still_since()) + idle;
            if Instant::now() >= end { Err(Closed::Idle) } else { Ok(end) }
        };
        let close = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
        // Closed between two calls, it would cross the next one on its way: the next answer is its last.
        let age = |_: Pin<&mut _>| {};
        match self.drive(pin!(connection), close, age, look, false).await {
            Closed::KeepAlive => Closed::Idle,
            reason => reason,
        }
    }

    /// Lets the connection run until it ends, until `look` finds that it must, or until the server has closed.
    /// `look` says when it wants to look again. `age` tells the peer of one that is old enough. One that does not `stay` after its first call, since its client
    /// connects again as easily, makes room whenever it is between two calls.
    async fn drive<C>(
        &self,
        mut connection: Pin<&mut C>,
        close: impl Fn(Pin<&mut C>),
        age: impl Fn(Pin<&mut C>),
        look: impl Fn() -> Result<Instant, Closed>,
        stays: bool,
    ) -> Closed
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut next_look = Instant::now();
        let aged = self.listener.config.max_age.map(|age| next_look + jittered(age));
        let mut is_aged = false;
        let mut may_be_displaced = true;
        loop {
            let turn = poll_fn(|context| {
                self.pulse.turn(self.calls.are_too_many(context));
                let end = connection.as_mut().poll(context);
                if stays && self.calls.have_just_begun() {
                    self.ticket.stays();
                }
                end
            });
            tokio::select! {
                end = turn => return match reason(end) {
                    Closed::ByPeer if is_aged => Closed::Aged,
                    reason => reason,
                },
                () = until(aged), if !is_aged => {
                    is_aged = true;
                    self.calls.is_aged.store(true, Ordering::Relaxed);
                    age(connection.as_mut());
                }
                () = self.ticket.displaced(), if may_be_displaced => {
                    // Asked now, since its first call may have come while this waited.
                    let has_its_place = stays && self.calls.have_begun();
                    if !has_its_place && !self.calls.are_live() {
                        return Closed::Displaced;
                    }
                    may_be_displaced = false;
                    if !stays {
                        close(connection.as_mut());
                    }
                }
                () = sleep_until(next_look) => match look() {
                    Ok(next) => next_look = next,
                    Err(reason) => return reason,
                },
                () = self.listener.ending.closing.cancelled() => break,
            }
        }
        self.calls.close();
        close(connection.as_mut());
        let mut written = self.pulse.wrote_at();
        loop {
            let turn = poll_fn(|context| {
                self.pulse.turn(self.calls.are_too_many(context));
                connection.as_mut().poll(context)
            });
            tokio::select! {
                end = turn => return reason(end),
                () = tokio::time::sleep(CLOSE_GRACE) => {
                    let is_read = self.pulse.wrote_at() > written;
                    if !self.calls.are_open() || !is_read {
                        return Closed::Drained;
                    }
                    written = self.pulse.wrote_at();
                }
            }
        }
    }
}

/// So long, a tenth more or less: the connections of a server that started with all its callers do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * chance::share())
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn reason(end: hyper::Result<()>) -> Closed {
    let Err(error) = end else { return Closed::ByPeer };
    let http2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    if error.is_parse() || http2.is_some_and(|error| error.is_library()) {
        Closed::ProtocolError
    } else if http2.is_none() && error.is_timeout() {
        Closed::KeepAlive
    } else {
        Closed::ByPeer
    }
}

/// Answers HTTP/1, and closes.
async fn refuse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut head: Vec<u8>,
    status: &str,
    notice: &str,
) -> std::io::Result<()> {
    while !is_head(&head) {
        if !may_be_http1(&head) || head.len() > MAX_REFUSED_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let length = notice.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{notice}"
    );
    stream.write_all(answer.as_bytes()).await?;
    end(stream).await
}

/// Closes a connection whose peer may still write.
async fn end(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    stream.shutdown().await?;
    // Closed with bytes unread, the connection would be reset, and the answer lost.
    let mut rest = stream.take(MAX_REFUSED_BYTES as u64);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Whether it begins with a method, as all of HTTP/1 does, and TLS does not.
fn may_be_http1(bytes: &[u8]) -> bool {
    const LONGEST_METHOD: usize = 20;
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    method.len() <= LONGEST_METHOD && method.iter().all(u8::is_ascii_uppercase)
}

fn is_head(bytes: &[u8]) -> bool {
    [&b"\r\n\r\n"[..], b"\n\n"].iter().any(|end| bytes.windows(end.len()).any(|window| window == *end))
}

/// The calls of one connection.
#[derive(Default)]
struct Calls {
    have_begun: AtomicBool,
    is_told: AtomicBool,
    /// Those that are not done with: answered, or dropped after they were reset.
    live: AtomicUsize,
    /// Those of them that began before the server closed.
    open: AtomicUsize,
    is_closing: AtomicBool,
    /// Answers end the connection.
    is_aged: AtomicBool,
    /// The connection's task, while it waits for some to end.
    waiting: Mutex<Option<Waker>>,
}

impl Calls {
    fn have_begun(&self) -> bool {
        self.have_begun.load(Ordering::Relaxed)
    }

    /// True once: when the first call has begun.
    fn have_just_begun(&self) -> bool {
        self.have_begun() && !self.is_told.swap(true, Ordering::Relaxed)
    }

    fn are_live(&self) -> bool {
        self.live.load(Ordering::SeqCst) > 0
    }

    fn are_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Whether there are more than a peer may have open: some were reset, and end without another byte of the
    /// connection. Then `context` is woken when there are no longer too many.
    fn are_too_many(&self, context: &Context<'_>) -> bool {
        let are = || self.live.load(Ordering::SeqCst) > MAX_STREAMS as usize;
        if !are() {
            return false;
        }
        *self.waiting() = Some(context.waker().clone());
        // Asked again, since the last may have ended before it could see who waits.
        are()
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }
}

/// One call, until its answer is handed over or it is dropped.
struct OpenCall {
    calls: Arc<Calls>,
    /// A stop waits for it.
    is_open: bool,
}

impl OpenCall {
    fn begin(calls: &Arc<Calls>) -> Self {
        let is_open = !calls.is_closing.load(Ordering::Relaxed);
        calls.have_begun.store(true, Ordering::Relaxed);
        calls.live.fetch_add(1, Ordering::SeqCst);
        calls.open.fetch_add(usize::from(is_open), Ordering::Relaxed);
        Self { calls: calls.clone(), is_open }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Self { calls, is_open } = self;
        calls.open.fetch_sub(usize::from(*is_open), Ordering::Relaxed);
        if calls.live.fetch_sub(1, Ordering::SeqCst) == MAX_STREAMS as usize + 1
            && let Some(waiting) = calls.waiting().take()
        {
            waiting.wake();
        }
    }
}

/// The body of an answer, and the call that it ends.
struct Answer {
    body: Body,
    _call: OpenCall,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
