//! Every error of the service, and the one mapping from errors to statuses of gRPC and of HTTP.
//!
//! The code tells the client what to do. What may help it is in the details: a `google.rpc.BadRequest` that
//! names every bad field, or a `google.rpc.RetryInfo` with the same delay in `grpc-retry-pushback-ms`, which
//! gRPC clients with a retry policy obey by themselves.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use tonic::Code;
use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic_types::ErrorDetails;
use tonic_types::FieldViolation;
use tonic_types::StatusExt;

use crate::engine::EngineError;
use crate::proto;

/// While the models load, here or in the process that takes the place of one that lost its card, there is nothing to say about how long it takes: a second is polite.
const LOADING_RETRY: Duration = Duration::from_secs(1);
/// A draining server does not come back: the delay is only for finding another one.
const DRAINING_RETRY: Duration = Duration::from_millis(100);
/// Budgets in use become free within a batch or two.
const BUSY_RETRY: Duration = Duration::from_millis(500);
/// The longest message of an error. It may quote what the caller sent, and goes into a header, of which clients
/// take a few kilobytes: a longer one would look like another failure altogether.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Why a call as a whole has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    /// The request can never succeed as it is.
    #[error("{}", list(.0))]
    BadRequest(Vec<FieldViolation>),
    #[error(
        "the message has more than {limit} bytes, the limit; of a compressed one what it holds is counted"
    )]
    TooLarge { limit: usize },
    #[error("the message is not a request of this method: {0}")]
    Malformed(&'static str),
    #[error("the message is not a request of this method: {reason}")]
    Undecodable { reason: String },
    #[error("the message is compressed with {encoding:?}: send it as it is, or with gzip")]
    UnknownEncoding { encoding: String },
    #[error("Content-Type is {content_type:?}: send {expected}, or no Content-Type")]
    UnknownContentType { content_type: String, expected: &'static str },
    #[error("the message was not whole {limit:?} after its first byte, the limit")]
    Stalled { limit: Duration },
    #[error("the caller has gone")]
    CallerLeft,
    #[error("variant: is unknown, the variants are {known}")]
    UnknownVariant { known: String },
    /// Of the Open Inference Protocol, whose models are our variants.
    #[error("model {problem}")]
    UnknownModel { problem: String },
    #[error("variant `{variant}` has fingerprint {actual}, not the expected {expected}")]
    WrongFingerprint { variant: String, actual: String, expected: String },
    #[error("{problem}")]
    Unauthenticated { problem: &'static str },
    #[error("token `{name}` is not for this: it lacks the permission `{needed}`")]
    Forbidden { name: String, needed: &'static str },
    #[error("token `{name}` has {limit} {what} in flight, its limit; retry in {BUSY_RETRY:?}")]
    TokenLimit { name: String, what: &'static str, limit: usize },
    #[error(
        "the request has {tokens} tokens, and token `{name}` may have {limit} in flight: send less in one request"
    )]
    TokenLimitTooSmall { name: String, tokens: usize, limit: usize },
    #[error("the models are still loading")]
    Loading,
    #[error("the server is draining")]
    Draining,
    #[error("requests in flight hold {limit} bytes, the limit; retry in {BUSY_RETRY:?}")]
    TooMuchInFlight { limit: usize },
    #[error("the deadline passed before all samples were scored")]
    DeadlineExceeded,
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Some samples have no reward, and the answer has no place to say so beside the others.
    #[error("{}", failed(.0))]
    SamplesFailed(Vec<FailedSample>),
    #[error("somebody else has set the weights meanwhile, which stay: {actual}")]
    OtherWeights { actual: String },
    #[error("a reload is already under way")]
    ReloadUnderWay,
    #[error("the old models serve on: {0}")]
    ReloadFailed(String),
    #[error("no models serve: {0}")]
    NothingServes(String),
    /// A defect of ours; the panic's own message is in the log.
    #[error("the server failed on this request")]
    Panicked,
}

/// A sample without a reward.
#[derive(Debug)]
pub(super) struct FailedSample {
    /// As its door calls it.
    pub(super) name: String,
    /// Its place among the samples.
    pub(super) index: usize,
    pub(super) code: Code,
    pub(super) problem: String,
}

impl ServiceError {
    /// One bad field.
    pub(super) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::BadRequest(vec![FieldViolation::new(field, problem)])
    }

    /// What the client should do.
    pub(super) fn code(&self) -> Code {
        self.code_and_retry().0
    }

    /// The code, and when to try again if that would help.
    fn code_and_retry(&self) -> (Code, Option<Duration>) {
        match self {
            Self::BadRequest(_) => (Code::InvalidArgument, None),
            Self::TooLarge { .. } => (Code::OutOfRange, None),
            Self::Malformed(_) | Self::Undecodable { .. } => (Code::InvalidArgument, None),
            Self::UnknownEncoding { .. } => (Code::Unimplemented, None),
            Self::UnknownContentType { .. } => (Code::InvalidArgument, None),
            Self::Stalled { .. } => (Code::DeadlineExceeded, None),
            Self::CallerLeft => (Code::Cancelled, None),
            Self::UnknownVariant { .. } => (Code::InvalidArgument, None),
            Self::UnknownModel { .. } => (Code::NotFound, None),
            Self::WrongFingerprint { .. } => (Code::FailedPrecondition, None),
            Self::Unauthenticated { .. } => (Code::Unauthenticated, None),
            Self::Forbidden { .. } => (Code::PermissionDenied, None),
            Self::TokenLimit { .. } => (Code::ResourceExhausted, Some(BUSY_RETRY)),
            Self::TokenLimitTooSmall { .. } => (Code::InvalidArgument, None),
            Self::Loading => (Code::Unavailable, Some(LOADING_RETRY)),
            Self::Draining => (Code::Unavailable, Some(DRAINING_RETRY)),
            Self::TooMuchInFlight { .. } => (Code::ResourceExhausted, Some(BUSY_RETRY)),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, None),
            Self::Engine(EngineError::TooLarge { .. }) => (Code::InvalidArgument, None),
            Self::Engine(EngineError::QueueFull { retry_after, .. }) => {
                (Code::ResourceExhausted, Some(*retry_after))
            }
            Self::Engine(EngineError::WouldExpire { wait, left }) => {
                // whoever comes back at once finds the same queue: half of it should have gone by then
                (Code::ResourceExhausted, Some(wait.saturating_sub(*left).max(*wait / 2)))
            }
            Self::Engine(EngineError::DeadlineExceeded) => (Code::DeadlineExceeded, None),
            Self::Engine(EngineError::Draining) => (Code::Unavailable, Some(DRAINING_RETRY)),
            Self::Engine(EngineError::DeviceLost) => (Code::Unavailable, Some(LOADING_RETRY)),
            Self::SamplesFailed(failed) => {
                let is_ours = failed.iter().any(|sample| sample.code != Code::InvalidArgument);
                (if is_ours { Code::Internal } else { Code::InvalidArgument }, None)
            }
            Self::OtherWeights { .. } => (Code::FailedPrecondition, None),
            Self::ReloadUnderWay => (Code::Aborted, None),
            Self::ReloadFailed(_) | Self::NothingServes(_) => (Code::FailedPrecondition, None),
            Self::Panicked => (Code::Internal, None),
        }
    }

    /// When to try again, if that would help.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.code_and_retry().1
    }

    /// What an HTTP client should do. Never 429: trainers take any 4xx for the end of the matter.
    pub(super) fn http_status(&self) -> StatusCode {
        match self {
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownEncoding { .. } | Self::UnknownContentType { .. } => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Self::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::WrongFingerprint { .. } => StatusCode::PRECONDITION_FAILED,
            _ => match self.code() {
                Code::InvalidArgument => StatusCode::BAD_REQUEST,
                Code::Unauthenticated => StatusCode::UNAUTHORIZED,
                Code::PermissionDenied => StatusCode::FORBIDDEN,
                Code::NotFound => StatusCode::NOT_FOUND,
                Code::ResourceExhausted | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
                Code::Cancelled => StatusCode::from_u16(499).expect("a code of three digits"),
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// The bad fields, by their names.
    pub(super) fn fields(&self) -> Vec<FieldViolation> {
        match self {
            Self::BadRequest(violations) => violations.clone(),
            Self::UnknownVariant { .. } => vec![FieldViolation::new("variant", self.to_string())],
            Self::Engine(EngineError::TooLarge { .. }) => {
                vec![FieldViolation::new("samples", self.to_string())]
            }
            _ => Vec::new(),
        }
    }

    fn details(&self, retry: Option<Duration>) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        let fields = self.fields();
        if !fields.is_empty() {
            details.set_bad_request(fields);
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        details
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let (code, retry) = error.code_and_retry();
        let message = brief(&error.to_string()).into_owned();
        let mut status = Status::with_error_details(code, message, error.details(retry));
        if let ServiceError::UnknownEncoding { .. } = error {
            // Source: gRPC's document on compression
            status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("gzip,identity"));
        }
        if let Some(retry) = retry {
            status.metadata_mut().insert("grpc-retry-pushback-ms", (retry.as_millis() as u64).into());
        }
        status
    }
}

/// In a stream, one request's failure is a response.
impl From<ServiceError> for proto::Error {
    fn from(error: ServiceError) -> Self {
        let (code, retry) = error.code_and_retry();
        proto::Error {
            code: code as i32,
            message: brief(&error.to_string()).into_owned(),
            retry_after_seconds: retry.map(|retry| retry.as_secs_f64()),
        }
    }
}

/// A message as it is sent: its start, where it is very long.
pub(super) fn brief(message: &str) -> Cow<'_, str> {
    match message.len() <= MAX_MESSAGE_BYTES {
        true => Cow::Borrowed(message),
        false => Cow::Owned(format!("{}…", &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)])),
    }
}

/// The first failures, and how many there are.
fn failed(samples: &[FailedSample]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> =
        samples.iter().take(SHOWN).map(|sample| format!("{}: {}", sample.name, sample.problem)).collect();
    match samples.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more samples have no reward", shown.join("; ")),
    }
}

fn list(violations: &[FieldViolation]) -> String {
    let problems: Vec<String> = violations
        .iter()
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .collect();
    problems.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_codes_and_only_passing_ones_a_pushback() {
        struct Case {
            error: ServiceError,
            code: Code,
            http: u16,
            retry_ms: Option<&'static str>,
        }
        let ms = Duration::from_millis;
        let case = |error, code, http, retry_ms| Case { error, code, http, retry_ms };
        let sample = |code| FailedSample { name: "input[3]".into(), index: 3, code, problem: "x".into() };
        let cases = [
            case(
                ServiceError::UnknownContentType { content_type: "x".into(), expected: "y" },
                Code::InvalidArgument,
                415,
                None,
            ),
            case(
                ServiceError::SamplesFailed(vec![sample(Code::InvalidArgument)]),
                Code::InvalidArgument,
                400,
                None,
            ),
            case(
                ServiceError::SamplesFailed(vec![sample(Code::InvalidArgument), sample(Code::Internal)]),
                Code::Internal,
                500,
                None,
            ),
            case(ServiceError::field("samples", "empty"), Code::InvalidArgument, 400, None),
            case(ServiceError::UnknownVariant { known: "a".into() }, Code::InvalidArgument, 400, None),
            case(ServiceError::UnknownModel { problem: "a".into() }, Code::NotFound, 404, None),
            case(ServiceError::TooLarge { limit: 1 }, Code::OutOfRange, 413, None),
            case(ServiceError::Malformed("x"), Code::InvalidArgument, 400, None),
            case(ServiceError::Undecodable { reason: "x".into() }, Code::InvalidArgument, 400, None),
            case(ServiceError::UnknownEncoding { encoding: "x".into() }, Code::Unimplemented, 415, None),
            case(ServiceError::Stalled { limit: ms(1) }, Code::DeadlineExceeded, 408, None),
            case(ServiceError::CallerLeft, Code::Cancelled, 499, None),
            case(
                ServiceError::WrongFingerprint {
                    variant: "a".into(),
                    actual: "b".into(),
                    expected: "c".into(),
                },
                Code::FailedPrecondition,
                412,
                None,
            ),
            case(ServiceError::Loading, Code::Unavailable, 503, Some("1000")),
            case(ServiceError::Draining, Code::Unavailable, 503, Some("100")),
            case(ServiceError::TooMuchInFlight { limit: 1 }, Code::ResourceExhausted, 503, Some("500")),
            case(ServiceError::DeadlineExceeded, Code::DeadlineExceeded, 504, None),
            case(EngineError::TooLarge { tokens: 2, limit: 1 }.into(), Code::InvalidArgument, 400, None),
            case(
                EngineError::QueueFull { waiting: 1, limit: 1, retry_after: ms(70) }.into(),
                Code::ResourceExhausted,
                503,
                Some("70"),
            ),
            case(
                EngineError::WouldExpire { wait: ms(90), left: ms(50) }.into(),
                Code::ResourceExhausted,
                503,
                Some("45"),
            ),
            case(EngineError::DeadlineExceeded.into(), Code::DeadlineExceeded, 504, None),
            case(EngineError::Draining.into(), Code::Unavailable, 503, Some("100")),
            case(EngineError::DeviceLost.into(), Code::Unavailable, 503, Some("1000")),
            case(
                ServiceError::OtherWeights { actual: "warm 100.0%".into() },
                Code::FailedPrecondition,
                500,
                None,
            ),
            case(ServiceError::ReloadUnderWay, Code::Aborted, 500, None),
            case(ServiceError::ReloadFailed("x".into()), Code::FailedPrecondition, 500, None),
            case(ServiceError::NothingServes("x".into()), Code::FailedPrecondition, 500, None),
            case(ServiceError::Panicked, Code::Internal, 500, None),
        ];
        let mut failures = Vec::new();
        for Case { error, code, http, retry_ms } in cases {
            let name = format!("{error:?}");
            if error.http_status().as_u16() != http {
                failures.push(format!("{name}: {}", error.http_status()));
            }
            let status = Status::from(error);
            let pushback = status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .map(|value| value.to_str().unwrap().to_owned());
            let retry_info = status.get_details_retry_info().is_some();
            if (status.code(), pushback.as_deref(), retry_info) != (code, retry_ms, retry_ms.is_some()) {
                failures.push(format!("{name}: {status:?}"));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn a_long_message_is_cut_at_a_letter() {
        let status = Status::from(ServiceError::ReloadFailed("é".repeat(5000)));
        assert!(status.message().len() <= MAX_MESSAGE_BYTES + 3, "{}", status.message().len());
        assert!(status.message().ends_with("é…"));
    }

    #[test]
    fn a_bad_request_names_every_field() {
        let error = ServiceError::BadRequest(vec![
            FieldViolation::new("samples[3].input", "is not set"),
            FieldViolation::new("priority", "9 is unknown"),
        ]);
        let status = Status::from(error);
        assert_eq!(status.message(), "samples[3].input: is not set; priority: 9 is unknown");
        let fields: Vec<String> = status
            .get_details_bad_request()
            .unwrap()
            .field_violations
            .into_iter()
            .map(|violation| violation.field)
            .collect();
        assert_eq!(fields, ["samples[3].input", "priority"]);
    }
}
