//! Answers in JSON: what they always have, and how an error looks.
//!
//! An answer that has a reward says which variant gave it and that variant's fingerprint, in headers, whatever the
//! dialect. An error is an object with a string `error`, which every client here can show, and beside it what a program
//! may want: `code` (as the metrics call it), `fields`, `samples`, `retry_after_seconds`.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::CONNECTION;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use http::header::WWW_AUTHENTICATE;
use http_body::Frame;
use http_body::SizeHint;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use crate::metrics;
use crate::metrics::Method;
use crate::service::budget::Room;
use crate::service::score::Scored;
use crate::service::status::ServiceError;
use crate::service::status::brief;

pub(in crate::service) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const VARIANT: HeaderName = HeaderName::from_static("x-rewarm-variant");
const FINGERPRINT: HeaderName = HeaderName::from_static("x-rewarm-fingerprint");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-rewarm-request-id");

/// Handed to the transport at a time.
const PIECE_BYTES: usize = 16 << 10;

/// An answer of these bytes, which keep the room of their request until the transport has the last of them.
pub(in crate::service) fn bytes(content_type: HeaderValue, bytes: Bytes, room: Room) -> Response<Body> {
    let mut response = Response::new(Body::new(Held { left: bytes, room: Some(room) }));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// An answer that holds nothing.
pub(in crate::service) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// What the headers of an answer with rewards tell: who scored, and what the request was called.
pub(in crate::service) struct Signature {
    pub(in crate::service) variant: String,
    pub(in crate::service) fingerprint: String,
    pub(in crate::service) request_id: String,
}

impl Signature {
    pub(in crate::service) fn of(scored: &Scored, request_id: String) -> Self {
        let info = &scored.served.info;
        Self { variant: info.name.clone(), fingerprint: info.fingerprint.clone(), request_id }
    }

    pub(in crate::service) fn sign(self, headers: &mut HeaderMap) {
        let Self { variant, fingerprint, request_id } = self;
        for (name, value) in [(VARIANT, variant), (FINGERPRINT, fingerprint), (REQUEST_ID, request_id)] {
            // what no header can hold is left out: a name of a variant may be any text
            if let Ok(value) = HeaderValue::try_from(value)
                && !value.is_empty()
            {
                headers.insert(name, value);
            }
        }
    }
}

/// What a counted answer was counted as, for whoever else tells of it.
#[derive(Clone, Copy)]
pub(in crate::service) struct Counted(pub(in crate::service) Method, pub(in crate::service) Code);

/// Counts an answer that no variant has a part in, and hands it on.
pub(in crate::service) fn counted(
    method: Method,
    code: Code,
    begun: Instant,
    mut response: Response<Body>,
) -> Response<Body> {
    metrics::request_finished(method, code as i32, "", begun.elapsed());
    response.extensions_mut().insert(Counted(method, code));
    response
}

/// The answer of a request that has none.
pub(in crate::service) fn failed(error: &ServiceError) -> Response<Body> {
    let mut body = Map::new();
    body.insert("error".to_owned(), brief(&error.to_string()).into());
    body.insert("code".to_owned(), metrics::code_name(error.code() as i32).into());
    let fields = error.fields();
    if !fields.is_empty() {
        let field = |field: tonic_types::FieldViolation| json!({"field": field.field, "problem": brief(&field.description)});
        body.insert("fields".to_owned(), fields.into_iter().map(field).collect());
    }
    if let ServiceError::SamplesFailed(samples) = error {
        let samples = samples
            .iter()
            .map(|sample| json!({"index": sample.index, "field": sample.name, "problem": sample.problem}));
        body.insert("samples".to_owned(), samples.collect());
    }
    let retry = error.retry_after();
    if let Some(retry) = retry {
        body.insert("retry_after_seconds".to_owned(), retry.as_secs_f64().into());
    }
    let mut response = json(error.http_status(), &Value::Object(body));
    if let Some(retry) = retry {
        response.headers_mut().insert(RETRY_AFTER, seconds(retry).into());
    }
    if let ServiceError::Unauthenticated { .. } = error {
        // each in a header of its own: of several in one, Chromium sees the first alone
        for scheme in ["Basic realm=\"rewarm\"", "Bearer"] {
            response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
    }
    if matches!(error, ServiceError::TooLarge { .. } | ServiceError::Stalled { .. }) {
        // the rest of its body would be taken for the next request
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whole ones, never none. Source: RFC 9110, section 10.2.3.
fn seconds(retry: Duration) -> u64 {
    retry.as_millis().div_ceil(1000).max(1) as u64
}

/// The body of an answer, and what its request holds.
struct Held {
    left: Bytes,
    room: Option<Room>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            self.room = None;
            return Poll::Ready(None);
        }
        let length = self.left.len().min(PIECE_BYTES);
        let piece = self.left.split_to(length);
        if self.left.is_empty() {
            self.room = None;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
