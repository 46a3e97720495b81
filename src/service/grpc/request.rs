//! From `ScoreRequest` to the request that all doors make.

use std::sync::Arc;

use crate::engine::Priority;
use crate::proto;
use crate::service::request::JsonConversation;
use crate::service::request::JsonMessage;
use crate::service::request::MAX_NAME_BYTES;
use crate::service::request::Options;
use crate::service::request::Received;
use crate::service::request::Request;
use crate::service::request::Target;
use crate::service::request::TemplateArguments;
use crate::service::request::Violations;
use crate::service::status::ServiceError;
use crate::text::Input;
use crate::text::Truncation;

/// The names that the answer repeats.
pub(in crate::service) struct Names {
    pub(in crate::service) request: String,
    /// One per sample.
    pub(in crate::service) samples: Vec<String>,
}

/// Checks all that can be checked without a model; a request that cannot be served as a whole is refused with every bad
/// field named. Whether it may have no samples is a matter of the door.
pub(in crate::service) fn check(
    request: proto::ScoreRequest,
    max_samples: usize,
    may_be_empty: bool,
) -> Result<(Request, Names), ServiceError> {
    let mut violations = Violations::default();
    violations.check_length("request_id", &request.request_id);
    violations.check_length("routing_key", &request.routing_key);
    violations.check_length("variant", &request.variant);
    violations.check_length("expected_fingerprint", &request.expected_fingerprint);
    let priority = priority(request.priority, &mut violations);
    let truncation = truncation(request.truncation, &mut violations);
    let count = request.samples.len();
    if count == 0 && !may_be_empty {
        violations.add("samples", "is empty: send at least one");
    }
    if count > max_samples {
        violations.add("samples", format!("has {count} samples, the limit is {max_samples}"));
    }

    let defaults = TemplateArguments {
        tools: request.tools_json,
        chat_template_kwargs: request.chat_template_kwargs_json,
    };
    let defaults = Arc::new(defaults);
    let mut sample_ids = Vec::with_capacity(count);
    let mut inputs = Vec::with_capacity(count);
    for (index, sample) in request.samples.into_iter().enumerate() {
        if sample.id.len() > MAX_NAME_BYTES {
            violations.check_length(&format!("samples[{index}].id"), &sample.id);
        }
        sample_ids.push(sample.id);
        match sample.input {
            Some(sample) => inputs.push(received(sample, &defaults, index, &mut violations)),
            None => violations.add(
                &format!("samples[{index}].input"),
                "is not set: send one of text, conversation, formatted, token_ids",
            ),
        }
    }
    violations.none()?;
    let expected_fingerprint = Some(request.expected_fingerprint).filter(|expected| !expected.is_empty());
    let return_members = request.return_members;
    let options = Options {
        priority,
        truncation,
        max_tokens: None,
        return_members,
        expected_fingerprint,
        all_or_none: None,
    };
    let target = Target::new(request.variant, request.routing_key, inputs.first());
    Ok((Request { inputs, target, options }, Names { request: request.request_id, samples: sample_ids }))
}

fn received(
    sample: proto::sample::Input,
    defaults: &Arc<TemplateArguments>,
    index: usize,
    violations: &mut Violations,
) -> Received {
    use proto::sample::Input as Wire;
    let mut only_for_conversations = || {
        for field in defaults.given() {
            violations.add(field, format!("goes with conversations, and samples[{index}] is none"));
        }
    };
    Received::Input(match sample {
        Wire::Conversation(conversation) => return conversation_of(conversation, defaults),
        Wire::Text(proto::Text { prompt, response }) => {
            only_for_conversations();
            Input::Text { prompt, response }
        }
        Wire::Formatted(text) => {
            only_for_conversations();
            Input::Formatted(text)
        }
        Wire::TokenIds(tokens) => {
            only_for_conversations();
            Input::TokenIds(tokens.ids)
        }
    })
}

fn conversation_of(conversation: proto::Conversation, defaults: &Arc<TemplateArguments>) -> Received {
    let proto::Conversation { messages, tools_json, chat_template_kwargs_json } = conversation;
    let message = |proto::Message { role, content, json }| JsonMessage { role, content, json };
    Received::conversation(JsonConversation {
        messages: messages.into_iter().map(message).collect(),
        own: TemplateArguments { tools: tools_json, chat_template_kwargs: chat_template_kwargs_json },
        defaults: defaults.clone(),
    })
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
