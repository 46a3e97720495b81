//! From what came over the wire to what the rooms below understand; a request that cannot be served as a
//! whole is refused with every bad field named.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use tonic_types::FieldViolation;

use crate::engine::Priority;
use crate::proto;
use crate::service::routing::prompt_key;
use crate::service::status::ServiceError;
use crate::text::Conversation;
use crate::text::Input;
use crate::text::Message;
use crate::text::TextError;
use crate::text::Truncation;

/// The longest name that a request may give or ask for, in bytes: `request_id`, `routing_key`, `variant`,
/// `expected_fingerprint` and `Sample.id`. They are echoed.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// Of `tools_json` and `chat_template_kwargs_json`, which are read anew for each sample that they hold for.
const MAX_TEMPLATE_JSON_BYTES: usize = 256 << 10;
/// Of one JSON text.
const MAX_JSON_VALUES: usize = 64 << 10;
/// A thousand bad samples are usually one mistake.
const MAX_VIOLATIONS: usize = 16;

/// A request that can be served.
pub(super) struct Request {
    pub(super) request_id: String,
    /// One per sample.
    pub(super) sample_ids: Vec<String>,
    /// One per sample.
    pub(super) inputs: Vec<Received>,
    pub(super) target: Target,
    pub(super) priority: Priority,
    pub(super) truncation: Truncation,
    pub(super) return_members: bool,
    pub(super) expected_fingerprint: Option<String>,
}

/// What came over the wire as one sample.
pub(super) enum Received {
    /// Without JSON in it.
    Input(Input),
    /// With JSON, which a tokenizer thread reads: the async ones shall not wait for megabytes of it.
    Json(proto::Conversation, Arc<TemplateDefaults>),
}

/// What a request says for all its conversations; empty where it says nothing.
#[derive(Default)]
pub(super) struct TemplateDefaults {
    tools_json: String,
    chat_template_kwargs_json: String,
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
    violations.check_length("variant", &request.variant);
    violations.check_length("expected_fingerprint", &request.expected_fingerprint);
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

    let defaults = TemplateDefaults {
        tools_json: request.tools_json,
        chat_template_kwargs_json: request.chat_template_kwargs_json,
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
            Some(sample) => inputs.push(Received::new(sample, &defaults, index, &mut violations)),
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

impl Received {
    fn new(
        sample: proto::sample::Input,
        defaults: &Arc<TemplateDefaults>,
        index: usize,
        violations: &mut Violations,
    ) -> Self {
        use proto::sample::Input as Wire;
        let mut only_for_conversations = || {
            for (field, _) in defaults.fields().into_iter().filter(|(_, json)| !json.is_empty()) {
                violations.add(field, format!("goes with conversations, and samples[{index}] is none"));
            }
        };
        Self::Input(match sample {
            Wire::Conversation(conversation) => return Self::conversation(conversation, defaults),
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

    fn conversation(conversation: proto::Conversation, defaults: &Arc<TemplateDefaults>) -> Self {
        let of_template = [&conversation.tools_json, &conversation.chat_template_kwargs_json];
        let of_messages = conversation.messages.iter().map(|message| &message.json);
        let of_request = defaults.fields().map(|(_, json)| json);
        if of_messages.chain(of_template).chain(of_request).any(|json| !json.is_empty()) {
            return Self::Json(conversation, defaults.clone());
        }
        let plain = |proto::Message { role, content, json: _ }| Message::new(role, content);
        let messages: Vec<Message> = conversation.messages.into_iter().map(plain).collect();
        Self::Input(Input::Conversation(messages.into()))
    }

    /// Fails where JSON is not what it should be, naming the field.
    pub(super) fn read(&self) -> Result<Cow<'_, Input>, TextError> {
        match self {
            Self::Input(input) => Ok(Cow::Borrowed(input)),
            Self::Json(conversation, defaults) => match read_conversation(conversation, defaults) {
                Ok(conversation) => Ok(Cow::Owned(Input::Conversation(conversation))),
                Err(problem) => Err(TextError::BadConversation { problem }),
            },
        }
    }
}

impl TemplateDefaults {
    fn fields(&self) -> [(&'static str, &String); 2] {
        [("tools_json", &self.tools_json), ("chat_template_kwargs_json", &self.chat_template_kwargs_json)]
    }
}

fn read_conversation(
    conversation: &proto::Conversation,
    defaults: &TemplateDefaults,
) -> Result<Conversation, String> {
    let message = |(index, message): (usize, &proto::Message)| {
        let name = format!("messages[{index}]");
        match message {
            proto::Message { role, content, json } if json.is_empty() => Ok(Message::new(role, content)),
            proto::Message { role, content, json } if role.is_empty() && content.is_empty() => {
                Message::read(parse(json, &format!("{name}.json"))?, &name)
            }
            _ => Err(format!("{name} has `json`, and beside it a role or a content: leave those empty")),
        }
    };
    let messages = conversation.messages.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    let given = |own: &String, default: &String, name| {
        let json = if own.is_empty() { default } else { own };
        if json.len() > MAX_TEMPLATE_JSON_BYTES {
            return Err(format!("{name} has {} bytes, the limit is {MAX_TEMPLATE_JSON_BYTES}", json.len()));
        }
        if json.is_empty() { Ok(None) } else { parse(json, name).map(Some) }
    };
    let tools = given(&conversation.tools_json, &defaults.tools_json, "tools_json")?;
    let arguments = given(
        &conversation.chat_template_kwargs_json,
        &defaults.chat_template_kwargs_json,
        "chat_template_kwargs_json",
    )?;
    Conversation::new(messages, tools, arguments)
}

fn parse(json: &str, name: &str) -> Result<Value, String> {
    let values = json_values(json);
    if values > MAX_JSON_VALUES {
        return Err(format!("{name} has about {values} values, the limit is {MAX_JSON_VALUES}"));
    }
    serde_json::from_str(json).map_err(|error| format!("{name} is not JSON: {error}"))
}

/// About how many values JSON has: each takes memory of its own, however short it is.
fn json_values(json: &str) -> usize {
    let (mut values, mut is_string, mut is_escaped) = (0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_string,
            b'"' => is_string = !is_string,
            b',' | b'[' | b'{' if !is_string => values += 1,
            _ => {}
        }
    }
    values
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
        if value.len() > MAX_NAME_BYTES {
            self.add(field, format!("has {} bytes, the limit is {MAX_NAME_BYTES}", value.len()));
        }
    }

    fn none(self) -> Result<(), ServiceError> {
        if self.0.is_empty() { Ok(()) } else { Err(ServiceError::BadRequest(self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_small_and_holds_much_is_refused() {
        assert_eq!(json_values(r#"{"a": [1, 2, "x, \", [y]"], "b": {}}"#), 6);
        let zeros = format!("[{}0]", "0,".repeat(MAX_JSON_VALUES));
        let error = parse(&zeros, "tools_json").unwrap_err();
        assert_eq!(error, "tools_json has about 65537 values, the limit is 65536");
        assert!(parse(&format!("[\"{}\"]", "a, [".repeat(MAX_JSON_VALUES)), "x").is_ok(), "text is no value");

        let large = format!("[\"{}\"]", "x".repeat(MAX_TEMPLATE_JSON_BYTES));
        let defaults = TemplateDefaults { tools_json: large, ..Default::default() };
        let error = read_conversation(&proto::Conversation::default(), &defaults).unwrap_err();
        assert_eq!(error, "tools_json has 262148 bytes, the limit is 262144");
    }
}
