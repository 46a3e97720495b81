//! One request as all doors hand it over: what is to be scored, by whom, and how.
//!
//! It knows no wire: a door reads its own dialect and makes one of these, or refuses with every bad field named.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use tonic_types::FieldViolation;

use crate::engine::Priority;
use crate::service::status::ServiceError;
use crate::text::Conversation;
use crate::text::Input;
use crate::text::Message;
use crate::text::Progress;
use crate::text::SampleTokenizer;
use crate::text::TextError;
use crate::text::Truncation;

/// The longest name that a request may give or ask for, in bytes: of a request, a sample, a routing key, a variant, a
/// fingerprint. They are echoed.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// Of `tools_json` and `chat_template_kwargs_json`, which are read anew for each sample that they hold for.
const MAX_TEMPLATE_JSON_BYTES: usize = 256 << 10;
/// Of one JSON text.
const MAX_JSON_VALUES: usize = 64 << 10;
/// A thousand bad samples are usually one mistake.
const MAX_VIOLATIONS: usize = 16;

/// A request that can be served.
pub(super) struct Request {
    /// One per sample.
    pub(super) inputs: Vec<Received>,
    pub(super) target: Target,
    pub(super) options: Options,
}

/// What holds for all samples of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) priority: Priority,
    pub(super) truncation: Truncation,
    /// Of a sample; it counts where it is below the model's limit.
    pub(super) max_tokens: Option<usize>,
    pub(super) return_members: bool,
    /// None: any.
    pub(super) expected_fingerprint: Option<String>,
    /// Where the answer has no place for the error of a sample: what the door calls the list of them. One sample that has
    /// no score fails the request then.
    pub(super) all_or_none: Option<&'static str>,
}

/// What a door has received as one sample.
pub(super) enum Received {
    /// Without JSON in it.
    Input(Input),
    /// A text that the tokenizer adds its own special tokens to, those that stand in it already kept.
    Plain(String),
    /// A prompt, and the response that follows it, of which the caller does not say whether they are rendered: they are if
    /// a special token of the model stands in the prompt, and are then scored as they are.
    MaybeRendered { prompt: String, response: String },
    /// With JSON, which a tokenizer thread reads: the async ones shall not wait for megabytes of it.
    Json(JsonConversation),
}

/// A conversation of which some is JSON text, empty where there is none.
pub(super) struct JsonConversation {
    pub(super) messages: Vec<JsonMessage>,
    pub(super) own: TemplateArguments,
    /// What its request says for all conversations.
    pub(super) defaults: Arc<TemplateArguments>,
}

/// A role and a text, or the JSON of a whole message.
pub(super) struct JsonMessage {
    pub(super) role: String,
    pub(super) content: String,
    pub(super) json: String,
}

/// What templates read beside messages, as JSON text; empty where nothing is said.
#[derive(Default)]
pub(super) struct TemplateArguments {
    pub(super) tools: String,
    pub(super) chat_template_kwargs: String,
}

/// Who shall score.
pub(super) struct Target {
    /// Of this name; else the one that routing finds for the key.
    pub(super) variant: Option<String>,
    /// What has the same key is never split.
    pub(super) key: Vec<u8>,
}

impl Target {
    /// Of a request that may name a variant, and may give a key: without one (empty) its first sample's prompt takes the
    /// key's place, so that a group of responses to one prompt is never split.
    pub(super) fn new(variant: String, routing_key: String, first: Option<&Received>) -> Self {
        let key = match routing_key.is_empty() {
            false => routing_key.into_bytes(),
            true => first.map(Received::prompt_key).unwrap_or_default(),
        };
        Self { variant: Some(variant).filter(|variant| !variant.is_empty()), key }
    }
}

impl Received {
    /// A conversation; without JSON it is read at once.
    pub(super) fn conversation(conversation: JsonConversation) -> Self {
        let has_json = conversation.messages.iter().any(|message| !message.json.is_empty())
            || !conversation.own.are_empty()
            || !conversation.defaults.are_empty();
        if has_json {
            return Self::Json(conversation);
        }
        let plain = |JsonMessage { role, content, json: _ }| Message::new(role, content);
        let messages: Vec<Message> = conversation.messages.into_iter().map(plain).collect();
        Self::Input(Input::Conversation(messages.into()))
    }

    /// Renders the sample, to be tokenized. Fails where JSON is not what it should be, naming the field.
    pub(super) fn begin(
        &self,
        tokenizer: &SampleTokenizer,
        truncation: Truncation,
    ) -> Result<Progress, TextError> {
        match self {
            Self::Input(input) => tokenizer.begin(input, truncation),
            Self::Plain(text) => tokenizer.begin_plain(text, truncation),
            Self::MaybeRendered { prompt, response } if tokenizer.has_special_tokens(prompt) => {
                tokenizer.begin(&Input::Formatted(format!("{prompt}{response}")), truncation)
            }
            Self::MaybeRendered { prompt, response } => {
                let (prompt, response) = (prompt.clone(), response.clone());
                tokenizer.begin(&Input::Text { prompt, response }, truncation)
            }
            Self::Json(conversation) => match conversation.read() {
                Ok(conversation) => tokenizer.begin(&Input::Conversation(conversation), truncation),
                Err(problem) => Err(TextError::BadConversation { problem }),
            },
        }
    }

    /// What stands for a request without a routing key: of a text the prompt, of a conversation the messages that the
    /// response answers, and all else as a whole.
    fn prompt_key(&self) -> Vec<u8> {
        match self {
            Self::Input(Input::Text { prompt, .. }) | Self::MaybeRendered { prompt, .. } => {
                prompt.clone().into_bytes()
            }
            Self::Input(Input::Conversation(conversation)) => {
                conversation_key(conversation.messages.iter().map(Turn::of))
            }
            Self::Input(Input::Formatted(text)) | Self::Plain(text) => text.clone().into_bytes(),
            Self::Input(Input::TokenIds(ids)) => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            Self::Json(conversation) => conversation_key(conversation.messages.iter().map(JsonMessage::turn)),
        }
    }
}

/// What of a message counts for the key of its conversation.
struct Turn<'a> {
    role: Cow<'a, str>,
    /// Role, text, and JSON in their place.
    said: [&'a str; 3],
}

impl<'a> Turn<'a> {
    /// Of a message that came without JSON.
    fn of(message: &'a Message) -> Self {
        let (role, content) = message.plain().unwrap_or_default();
        Self { role: Cow::Borrowed(role), said: [role, content, ""] }
    }
}

/// The messages that the response answers: up to the user's last, so that a response of several messages (a tool
/// call, its result, an answer) does not count; where nothing follows that, or there is none, all but the last.
fn conversation_key<'a>(turns: impl Iterator<Item = Turn<'a>>) -> Vec<u8> {
    let turns: Vec<Turn<'_>> = turns.collect();
    let before_last = turns.len().saturating_sub(1);
    let users_last = turns[..before_last].iter().rposition(|turn| turn.role == "user");
    let prompt = &turns[..users_last.map_or(before_last, |index| index + 1)];
    // Roles and contents may hold any character: lengths keep them apart.
    let mut key = Vec::new();
    let mut add = |text: &str| {
        key.extend((text.len() as u64).to_le_bytes());
        key.extend(text.as_bytes());
    };
    for Turn { said: [role, content, json], .. } in prompt {
        add(role);
        add(content);
        if !json.is_empty() {
            add(json);
        }
    }
    key
}

impl JsonMessage {
    fn turn(&self) -> Turn<'_> {
        Turn { role: self.role(), said: [&self.role, &self.content, &self.json] }
    }

    /// Without reading all of its JSON into memory.
    fn role(&self) -> Cow<'_, str> {
        #[derive(serde::Deserialize)]
        struct Role<'a> {
            #[serde(borrow)]
            role: Cow<'a, str>,
        }
        match self.json.as_str() {
            "" => Cow::Borrowed(&self.role),
            json => serde_json::from_str(json).map_or(Cow::Borrowed(""), |Role { role }| role),
        }
    }
}

impl TemplateArguments {
    fn are_empty(&self) -> bool {
        self.given().next().is_none()
    }

    /// The fields that say something.
    pub(super) fn given(&self) -> impl Iterator<Item = &'static str> {
        let fields = [("tools_json", &self.tools), ("chat_template_kwargs_json", &self.chat_template_kwargs)];
        fields.into_iter().filter(|(_, json)| !json.is_empty()).map(|(field, _)| field)
    }
}

impl JsonConversation {
    fn read(&self) -> Result<Conversation, String> {
        let message = |(index, message): (usize, &JsonMessage)| {
            let name = format!("messages[{index}]");
            match message {
                JsonMessage { role, content, json } if json.is_empty() => Ok(Message::new(role, content)),
                JsonMessage { role, content, json } if role.is_empty() && content.is_empty() => {
                    Message::read(parse(json, &format!("{name}.json"))?, &name)
                }
                _ => Err(format!("{name} has `json`, and beside it a role or a content: leave those empty")),
            }
        };
        let messages = self.messages.iter().enumerate().map(message).collect::<Result<_, _>>()?;
        let Self { own, defaults, .. } = self;
        let tools = given(&own.tools, &defaults.tools, "tools_json")?;
        let arguments =
            given(&own.chat_template_kwargs, &defaults.chat_template_kwargs, "chat_template_kwargs_json")?;
        Conversation::new(messages, tools, arguments)
    }
}

/// A conversation's own, or its request's.
fn given(own: &str, default: &str, name: &str) -> Result<Option<Value>, String> {
    let json = if own.is_empty() { default } else { own };
    if json.len() > MAX_TEMPLATE_JSON_BYTES {
        return Err(format!("{name} has {} bytes, the limit is {MAX_TEMPLATE_JSON_BYTES}", json.len()));
    }
    if json.is_empty() { Ok(None) } else { parse(json, name).map(Some) }
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

/// The bad fields of a request, as its door calls them.
#[derive(Default)]
pub(super) struct Violations(Vec<FieldViolation>);

impl Violations {
    pub(super) fn add(&mut self, field: &str, problem: impl Into<String>) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(FieldViolation::new(field, problem));
        }
    }

    /// Of a name.
    pub(super) fn check_length(&mut self, field: &str, value: &str) {
        if value.len() > MAX_NAME_BYTES {
            self.add(field, format!("has {} bytes, the limit is {MAX_NAME_BYTES}", value.len()));
        }
    }

    /// Refuses the request if there are any.
    pub(super) fn none(self) -> Result<(), ServiceError> {
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
        let error = given("", &large, "tools_json").unwrap_err();
        assert_eq!(error, "tools_json has 262148 bytes, the limit is 262144");
    }

    #[test]
    fn the_messages_before_the_last_are_a_conversations_prompt() {
        let key = |contents: &[&str]| {
            let messages = contents.iter().map(|content| Message::new("user", *content)).collect::<Vec<_>>();
            Received::Input(Input::Conversation(messages.into())).prompt_key()
        };
        assert_eq!(key(&["q", "one"]), key(&["q", "two"]));
        assert_ne!(key(&["q", "one"]), key(&["p", "one"]));
        assert_eq!(key(&[]), b"");
    }

    #[test]
    fn a_response_of_several_messages_is_not_part_of_its_prompt() {
        const SYSTEM: [&str; 3] = ["system", "s", ""];
        const ASK: [&str; 3] = ["user", "q", ""];
        const SAY: [&str; 3] = ["assistant", "a", ""];
        const CALL: [&str; 3] =
            ["", "", r#"{"content": null, "tool_calls": [{"id": 1}], "role": "assistant"}"#];
        const RESULT: [&str; 3] = ["", "", r#"{"role": "tool", "content": "user"}"#];
        let key = |messages: &[[&str; 3]]| {
            let message = |[role, content, json]: [&str; 3]| JsonMessage {
                role: role.to_owned(),
                content: content.to_owned(),
                json: json.to_owned(),
            };
            let messages: Vec<JsonMessage> = messages.iter().copied().map(message).collect();
            conversation_key(messages.iter().map(JsonMessage::turn))
        };
        let prompt = key(&[SYSTEM, ASK, SAY]);
        for response in [&[["assistant", "b", ""]][..], &[CALL, RESULT, SAY], &[CALL]] {
            assert_eq!(key(&[&[SYSTEM, ASK], response].concat()), prompt);
        }
        assert_ne!(key(&[ASK, SAY]), prompt);
        assert_ne!(key(&[SYSTEM, ["", "", r#"{"role": "user", "content": "q"}"#], SAY]), prompt);
        // no user before the last: all but the last
        assert_eq!(key(&[SYSTEM, SAY, ASK]), key(&[SYSTEM, SAY, SAY]));
    }

    #[test]
    fn a_conversation_has_one_key_whether_it_came_with_json_or_not() {
        let conversation = |tools: &str| {
            let message = |role: &str| JsonMessage {
                role: role.to_owned(),
                content: "x".to_owned(),
                json: String::new(),
            };
            Received::conversation(JsonConversation {
                messages: ["user", "assistant"].map(message).into(),
                own: TemplateArguments { tools: tools.to_owned(), ..Default::default() },
                defaults: Arc::default(),
            })
        };
        let (plain, json) = (conversation(""), conversation("[]"));
        assert!(matches!((&plain, &json), (Received::Input(_), Received::Json(_))));
        assert_eq!(plain.prompt_key(), json.prompt_key());
    }
}
