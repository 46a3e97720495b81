//! From what came over the wire to what the rooms below understand; a request that cannot be served as a
//! whole is refused with every bad field named.

use tonic_types::FieldViolation;

use crate::engine::Priority;
use crate::proto;
use crate::service::routing::prompt_key;
use crate::service::status::ServiceError;
use crate::text::Input;
use crate::text::Message;
use crate::text::Truncation;

/// The longest `request_id`, `routing_key` and `Sample.id`, in bytes.
const MAX_KEY_BYTES: usize = 256;
/// A thousand bad samples are usually one mistake.
const MAX_VIOLATIONS: usize = 16;

/// A request that can be served.
pub(super) struct Request {
    pub(super) request_id: String,
    /// One per sample.
    pub(super) sample_ids: Vec<String>,
    /// One per sample.
    pub(super) inputs: Vec<Input>,
    pub(super) target: Target,
    pub(super) priority: Priority,
    pub(super) truncation: Truncation,
    pub(super) return_members: bool,
    pub(super) expected_fingerprint: Option<String>,
}

/// Who shall score.
pub(super) enum Target {
    /// The variant of this name.
    Variant(String),
    /// The one that routing finds for this key.
    Routed(Vec<u8>),
}

/// Checks all that can be checked without a model.
pub(super) fn check(request: proto::ScoreRequest, max_samples: usize) -> Result<Request, ServiceError> {
    let mut violations = Violations::default();
    violations.check_length("request_id", &request.request_id);
    violations.check_length("routing_key", &request.routing_key);
    let priority = priority(request.priority, &mut violations);
    let truncation = truncation(request.truncation, &mut violations);
    let count = request.samples.len();
    if count == 0 {
        violations.add("samples", "is empty: send at least one");
    }
    if count > max_samples {
        violations.add("samples", format!("has {count} samples, the limit is {max_samples}"));
    }

    let target = match (request.variant, request.routing_key, request.samples.first()) {
        (variant, _, _) if !variant.is_empty() => Target::Variant(variant),
        (_, key, _) if !key.is_empty() => Target::Routed(key.into_bytes()),
        (_, _, first) => Target::Routed(first.map(prompt_key).unwrap_or_default()),
    };

    let mut sample_ids = Vec::with_capacity(count);
    let mut inputs = Vec::with_capacity(count);
    for (index, sample) in request.samples.into_iter().enumerate() {
        violations.check_length(&format!("samples[{index}].id"), &sample.id);
        sample_ids.push(sample.id);
        match sample.input {
            Some(sample) => inputs.push(input(sample)),
            None => violations.add(
                &format!("samples[{index}].input"),
                "is not set: send one of text, conversation, formatted, token_ids",
            ),
        }
    }
    violations.none()?;
    Ok(Request {
        request_id: request.request_id,
        sample_ids,
        inputs,
        target,
        priority,
        truncation,
        return_members: request.return_members,
        expected_fingerprint: Some(request.expected_fingerprint).filter(|expected| !expected.is_empty()),
    })
}

fn input(input: proto::sample::Input) -> Input {
    use proto::sample::Input as Wire;
    match input {
        Wire::Text(proto::Text { prompt, response }) => Input::Text { prompt, response },
        Wire::Conversation(conversation) => Input::Conversation(
            conversation
                .messages
                .into_iter()
                .map(|proto::Message { role, content }| Message { role, content })
                .collect(),
        ),
        Wire::Formatted(text) => Input::Formatted(text),
        Wire::TokenIds(tokens) => Input::TokenIds(tokens.ids),
    }
}

fn priority(value: i32, violations: &mut Violations) -> Priority {
    match proto::Priority::try_from(value) {
        Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Priority::Normal,
        Ok(proto::Priority::Interactive) => Priority::Interactive,
        Ok(proto::Priority::Background) => Priority::Background,
        Err(_) => {
            violations.add("priority", format!("{value} is not a Priority"));
            Priority::Normal
        }
    }
}

fn truncation(value: i32, violations: &mut Violations) -> Truncation {
    match proto::Truncation::try_from(value) {
        Ok(proto::Truncation::Unspecified | proto::Truncation::Reject) => Truncation::Reject,
        Ok(proto::Truncation::Left) => Truncation::Left,
        Ok(proto::Truncation::Right) => Truncation::Right,
        Err(_) => {
            violations.add("truncation", format!("{value} is not a Truncation"));
            Truncation::Reject
        }
    }
}

#[derive(Default)]
struct Violations(Vec<FieldViolation>);

impl Violations {
    fn add(&mut self, field: &str, problem: impl Into<String>) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(FieldViolation::new(field, problem));
        }
    }

    fn check_length(&mut self, field: &str, value: &str) {
        if value.len() > MAX_KEY_BYTES {
            self.add(field, format!("has {} bytes, the limit is {MAX_KEY_BYTES}", value.len()));
        }
    }

    fn none(self) -> Result<(), ServiceError> {
        if self.0.is_empty() { Ok(()) } else { Err(ServiceError::BadRequest(self.0)) }
    }
}
