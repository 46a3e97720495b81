//! What is told of a request once it has ended, beside the metrics: a line in the access log, and spans.
//!
//! Both are off unless they are configured; then a request costs nothing here but a look at that.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::Code;

use crate::metrics;
use crate::metrics::Port;
use crate::metrics::Refused;
use crate::service::chance;
use crate::service::ended::Ended;
use crate::service::ended::Facts;
use crate::service::otlp::Tracer;

/// Of a fingerprint, in the log: enough to tell two apart.
const PREFIX: usize = 12;

/// An answer that is none to a request for rewards: a page, or a call that was not let in.
pub(super) struct Aside<'a> {
    pub(super) port: Port,
    /// Of a page that is there; what others ask for may be anything.
    pub(super) page: Option<&'a str>,
    /// Why it was not let in.
    pub(super) refused: Option<Refused>,
    pub(super) code: Code,
    /// The name of its caller's; empty where callers have none.
    pub(super) token: &'a str,
    pub(super) peer: Option<SocketAddr>,
    pub(super) elapsed: Duration,
}

/// Who is told.
#[derive(Default)]
pub(super) struct Witness {
    /// Of the requests with an answer have a line; with any, those that failed all have one.
    access_log: f64,
    tracer: Option<Tracer>,
}

impl Witness {
    pub(super) fn new(access_log: f64, tracer: Option<Tracer>) -> Self {
        Self { access_log, tracer }
    }

    /// Whether there is an access log.
    pub(super) fn has_log(&self) -> bool {
        self.access_log > 0.0
    }

    /// A line about it. Of calls that were not let in the log has its fraction too: who is nobody's caller must not fill the disk.
    pub(super) fn tell_aside(&self, aside: &Aside<'_>) {
        let Aside { port, page, refused, code, token, peer, elapsed } = *aside;
        let is_failure = code != Code::Ok && refused.is_none();
        if !self.has_log() || !(is_failure || is_among(self.access_log)) {
            return;
        }
        tracing::info!(
            target: "rewarm::access",
            method = if refused.is_some() { "refused" } else { "page" },
            code = metrics::code_name(code as i32),
            port = port.as_str(),
            page,
            reason = refused.map(Refused::as_str),
            token,
            seconds = elapsed.as_secs_f64(),
            peer = peer.map(tracing::field::display),
            "request"
        );
    }

    /// Whether nobody is told.
    pub(super) fn is_idle(&self) -> bool {
        self.access_log == 0.0 && self.tracer.is_none()
    }

    pub(super) fn tell(&self, ended: &Ended<'_>) {
        let traced = self.tracer.as_ref().and_then(|tracer| tracer.trace(ended));
        let is_told = ended.code != Code::Ok || is_among(self.access_log);
        if self.access_log == 0.0 || !is_told {
            return;
        }
        let of_caller = || ended.origin.parent.as_ref().map(|parent| format!("{:032x}", parent.trace_id));
        let Facts { samples, tokens, batch_samples, read, tokenize, queue, compute } = *ended.facts;
        let seconds = |part: Option<Duration>| part.map(|part| part.as_secs_f64());
        tracing::info!(
            target: "rewarm::access",
            method = ended.method.as_str(),
            code = metrics::code_name(ended.code as i32),
            variant = ended.variant,
            fingerprint = ended.fingerprint.get(..PREFIX).unwrap_or(ended.fingerprint),
            token = ended.token,
            samples,
            tokens,
            batch_samples,
            seconds = ended.elapsed.as_secs_f64(),
            read_seconds = seconds(read),
            tokenize_seconds = seconds(tokenize),
            queue_seconds = seconds(queue),
            compute_seconds = seconds(compute),
            trace = traced.or_else(of_caller),
            peer = ended.origin.peer.map(tracing::field::display),
            "request"
        );
    }
}

fn is_among(fraction: f64) -> bool {
    fraction >= 1.0 || chance::share() < fraction
}
