//! Where a request comes from: what is told of it at its end begins here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::Extensions;
use http::HeaderMap;
use tokio::time::Instant;

use crate::service::access::Caller;
use crate::service::call::traceparent;
use crate::service::listener::Peer;

/// Whose request it is, since when.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// When its head, or its message in a stream, was there.
    pub(super) begun: SystemTime,
    /// The same, for durations.
    pub(super) arrived: Instant,
    pub(super) peer: Option<SocketAddr>,
    /// The name of its caller's token, where callers have some.
    pub(super) token: Option<Arc<str>>,
    pub(super) parent: Option<Parent>,
}

/// The caller's span.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    pub(super) is_sampled: bool,
    /// What others have noted; handed on as it is.
    pub(super) state: String,
}

impl Origin {
    pub(super) fn new(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let peer = extensions.get::<Peer>().map(|peer| peer.address);
        let token = extensions.get::<Caller>().map(|caller| caller.name().clone());
        Self { begun: SystemTime::now(), arrived: Instant::now(), peer, token, parent: parent(headers) }
    }

    /// Of another message of the same call.
    pub(super) fn again(&self) -> Self {
        Self { begun: SystemTime::now(), arrived: Instant::now(), ..self.clone() }
    }
}

fn parent(headers: &HeaderMap) -> Option<Parent> {
    let (trace_id, span_id, flags) = traceparent(headers)?;
    let state = headers.get("tracestate").and_then(|state| state.to_str().ok());
    Some(Parent {
        trace_id: u128::from_str_radix(trace_id, 16).ok()?,
        span_id: u64::from_str_radix(span_id, 16).ok()?,
        is_sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        state: state.filter(|state| state.len() <= MAX_STATE_BYTES).unwrap_or_default().to_owned(),
    })
}

/// Of `tracestate`. Source: W3C Trace Context, section 3.3.1.5.
const MAX_STATE_BYTES: usize = 512;
