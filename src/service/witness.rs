//! What is told of a request once it has ended, beside the metrics: a line in the access log, and spans.
//!
//! Both are off unless they are configured; then a request costs nothing here but a look at that.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::time::Duration;

use tonic::Code;

use crate::metrics;
use crate::service::ended::Ended;
use crate::service::ended::Facts;
use crate::service::otlp::Tracer;

/// Of a fingerprint, in the log: enough to tell two apart.
const PREFIX: usize = 12;

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
    fraction >= 1.0 || ((RandomState::new().hash_one(0) >> 11) as f64) < fraction * (1_u64 << 53) as f64
}
