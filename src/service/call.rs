//! What the metadata of a call says: its deadline, and the trace it belongs to.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use http::Extensions;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tonic::Status;
use tracing::Span;

use crate::service::status::ServiceError;

/// A caller has a timer of its own, and leaves when it ends. Ours ends a little earlier, so that the caller is
/// told why, and the call is known here as one that was late, not as one that was left.
const EARLIER: Duration = Duration::from_millis(5);
/// Whoever works on a call ends at its deadline, and counts it. Where nobody does yet, since the message is still
/// on its way, or where nobody looks at deadlines, the call ends so much later.
const LATER: Duration = Duration::from_millis(50);

/// When the answer to a call is of no use any more.
#[derive(Clone, Copy)]
struct Deadline(Option<Instant>);

/// Notes a call's deadline as it arrives: its message, which may be large, is read and decoded after that.
pub(super) fn note_deadline<B>(request: &mut Request<B>) -> Result<Option<Instant>, ServiceError> {
    let deadline = deadline(request.headers())?;
    request.extensions_mut().insert(Deadline(deadline));
    Ok(deadline)
}

/// What `work` answers, or that it did not in time, however far it is.
pub(super) async fn answer_in_time(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Response<Body> {
    let answered = match deadline {
        None => work.await,
        Some(deadline) => match timeout_at(deadline + LATER, work).await {
            Ok(answered) => answered,
            Err(_) => return Status::from(ServiceError::DeadlineExceeded).into_http(),
        },
    };
    answered.unwrap_or_else(|never| match never {})
}

/// The deadline that [`note_deadline`] noted.
pub(super) fn deadline_of(extensions: &Extensions) -> Option<Instant> {
    extensions.get::<Deadline>().and_then(|deadline| deadline.0)
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ServiceError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        ServiceError::field(
            "grpc-timeout",
            format!("{:?} is not up to 8 digits and one of H M S m u n", quoted(value)),
        )
    })?;
    Ok(deadline_in(timeout))
}

/// Of a caller that waits so long from now on.
pub(super) fn deadline_in(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout - EARLIER.min(timeout / 10))
}

/// The start of a header's value, to be quoted.
fn quoted(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).chars().take(32).collect()
}

/// Source: gRPC over HTTP/2, "Timeout".
fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The span of a call. It continues the caller's trace when `traceparent` is there and well formed, so that
/// our log lines are found by the trace id.
pub(super) fn span(method: &'static str, headers: &HeaderMap) -> Span {
    match traceparent(headers) {
        Some((trace_id, parent_id, _)) => tracing::info_span!("call", method, trace_id, parent_id),
        None => tracing::info_span!("call", method),
    }
}

/// The trace that a caller continues: its id, that of the caller's span, and flags, in hexadecimal digits.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<(&str, &str, &str)> {
    headers.get("traceparent")?.to_str().ok().and_then(parse_traceparent)
}

/// Trace id, parent id and flags. Source: W3C Trace Context, section 3.2: later versions may append fields.
fn parse_traceparent(value: &str) -> Option<(&str, &str, &str)> {
    let mut fields = value.split('-');
    let (version, trace_id, parent_id, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let is_valid = is_hex(version, 2)
        && version != "ff"
        && (version != "00" || fields.next().is_none())
        && is_hex(trace_id, 32)
        && !is_zero(trace_id)
        && is_hex(parent_id, 16)
        && !is_zero(parent_id)
        && is_hex(flags, 2);
    is_valid.then_some((trace_id, parent_id, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        let cases = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("+1S", None),
            ("1s", None),
            ("1.5S", None),
            ("1é", None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse_timeout(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_traceparent_is_continued_only_when_well_formed() {
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent_id = "00f067aa0ba902b7";
        let expected = Some((trace_id, parent_id, "01"));
        let cases = [
            (format!("00-{trace_id}-{parent_id}-01"), expected),
            (format!("cc-{trace_id}-{parent_id}-01-more"), expected),
            (format!("00-{trace_id}-{parent_id}-01-more"), None),
            (format!("ff-{trace_id}-{parent_id}-01"), None),
            (format!("00-{}-{parent_id}-01", "0".repeat(32)), None),
            (format!("00-{trace_id}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{parent_id}-01", trace_id.to_uppercase()), None),
            (format!("00-{trace_id}-{parent_id}"), None),
            (String::new(), None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse_traceparent(&value), expected, "{value:?}");
        }
    }
}
