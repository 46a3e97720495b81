//! A request that has ended, as spans: one of the whole, and one of each part of it.
//!
//! ```text
//! Score ───────────────────────────────────────────┐  the caller's span is its parent, if a traceparent came
//!   read ──▶ tokenize ──▶ queue ──▶ compute
//! ```
//!
//! They are made at its end, from the durations that the metrics have too: while it is served nothing is recorded.

use std::time::Duration;
use std::time::SystemTime;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::Status;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tonic::Code;

use crate::metrics;
use crate::service::ended::Ended;
use crate::service::otlp::attribute;
use crate::service::otlp::nanoseconds;
use crate::service::otlp::random;
use crate::service::otlp::settings::Sampler;

/// Source: W3C Trace Context, section 3.2.2.5.
const SAMPLED: u32 = 1;

/// The whole first; none if the request is not sampled.
pub(super) fn of(ended: &Ended<'_>, sampler: Sampler) -> Option<Vec<Span>> {
    let parent = ended.origin.parent.as_ref();
    let trace_id = parent.map_or_else(
        || u128::from_be_bytes([random(), random()].concat().try_into().expect("two halves")),
        |parent| parent.trace_id,
    );
    let is_sampled = match parent {
        Some(parent) if sampler.follows_parent => parent.is_sampled,
        _ => is_among(trace_id, sampler.ratio),
    };
    if !is_sampled {
        return None;
    }
    let trace_id = trace_id.to_be_bytes().to_vec();
    let (begun, own) = (ended.origin.begun, random().to_vec());
    let span = |name: &str, from: Duration, lasts: Duration| Span {
        trace_id: trace_id.clone(),
        span_id: random().to_vec(),
        parent_span_id: own.clone(),
        flags: SAMPLED,
        name: name.to_owned(),
        kind: SpanKind::Internal as i32,
        start_time_unix_nano: at(begun, from),
        end_time_unix_nano: at(begun, from + lasts),
        ..Default::default()
    };
    let mut whole = span(ended.method.as_str(), Duration::ZERO, ended.elapsed);
    whole.kind = SpanKind::Server as i32;
    whole.span_id.clone_from(&own);
    whole.parent_span_id = parent.map(|parent| parent.span_id.to_be_bytes().to_vec()).unwrap_or_default();
    whole.trace_state = parent.map(|parent| parent.state.clone()).unwrap_or_default();
    whole.status = is_error(ended.code).then(|| Status {
        message: metrics::code_name(ended.code as i32).to_owned(),
        code: StatusCode::Error as i32,
    });
    whole.attributes = vec![
        attribute("rewarm.variant", ended.variant),
        attribute("rewarm.fingerprint", ended.fingerprint),
        attribute("rewarm.samples", ended.facts.samples),
        attribute("rewarm.tokens", ended.facts.tokens),
        attribute("rpc.grpc.status_code", ended.code as i32 as usize),
    ];
    if !ended.token.is_empty() {
        whole.attributes.push(attribute("rewarm.token", ended.token));
    }
    if let Some(peer) = ended.origin.peer {
        whole.attributes.push(attribute("client.address", peer.ip().to_canonical().to_string().as_str()));
    }
    let mut spans = vec![whole];
    let mut from = Duration::ZERO;
    for (name, lasts) in ended.parts() {
        let Some(lasts) = lasts else { break };
        let mut part = span(name, from, lasts);
        match name {
            "tokenize" => part.attributes.push(attribute("rewarm.samples", ended.facts.samples)),
            "compute" => {
                part.attributes.push(attribute("rewarm.tokens", ended.facts.tokens));
                part.attributes.push(attribute("rewarm.batch_samples", ended.facts.batch_samples));
            }
            _ => {}
        }
        spans.push(part);
        from += lasts;
    }
    Some(spans)
}

/// As OpenTelemetry's SDKs decide by a trace's id, so that all who have a part in it agree.
fn is_among(trace_id: u128, ratio: f64) -> bool {
    ratio >= 1.0 || ((trace_id as u64) >> 1) < (ratio * (1_u64 << 63) as f64) as u64
}

/// Of whom a span tells that it failed. Source: OpenTelemetry semantic conventions for gRPC, server spans.
fn is_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn at(begun: SystemTime, after: Duration) -> u64 {
    nanoseconds(begun.checked_add(after).unwrap_or(begun))
}
