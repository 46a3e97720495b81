//! Conversations as chat templates take them: messages, tools, and arguments of the template's own.
//!
//! A message is a JSON object in the caller's order of keys, and it is passed on whole: a role, and what else
//! the templates of `transformers` read (`content` as a string or as parts of text, `tool_calls`,
//! `tool_call_id`, `name`, `reasoning_content`, ..). The order matters to templates that print
//! `message | tojson`, and so does whether a number was written as an integer.
//!
//! What a template sees is what `apply_chat_template` of transformers 5.23 makes of a message: keys whose
//! value is null are left out, and reasoning has the names `thinking` and `reasoning_content`, whichever of
//! `reasoning_content`, `thinking` and `reasoning` it was given under.

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde_json::Map;
use serde_json::Value;

/// Where reasoning is looked for, in this order (transformers' `_REASONING_FIELDS`).
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// What `apply_chat_template` takes for itself: none of these reaches a template as an argument.
const RESERVED_ARGUMENTS: [&str; 14] = [
    "messages",
    "conversation",
    "tools",
    "chat_template",
    "continue_final_message",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];
/// Parts of a content that are no text, by `type` or by key.
const MEDIA: [&str; 10] = [
    "image",
    "image_url",
    "input_image",
    "audio",
    "audio_url",
    "input_audio",
    "video",
    "video_url",
    "file",
    "input_file",
];

/// What a chat template renders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns, in their order.
    pub messages: Vec<Message>,
    /// JSON schemas of functions; `None` and an empty list are two things to a template.
    pub tools: Option<Vec<Value>>,
    /// The template's own arguments (`chat_template_kwargs`), such as `enable_thinking`.
    pub arguments: Map<String, Value>,
}

/// One turn of a conversation: a JSON object with a `role`.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn that has a role and a text and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [("role", role.into()), ("content", content.into())];
        Self(fields.into_iter().map(|(key, value)| (key.to_owned(), Value::String(value))).collect())
    }

    /// Reads one message; `name` is what an error calls it.
    ///
    /// Fails, in words, if it is no object, has no role, or has a content that is neither text nor parts of text.
    pub fn read(value: Value, name: &str) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err(format!("{name} is {}: expected a message, {{\"role\", \"content\"}}", kind(&value)));
        };
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(format!("{name}.role is {}: expected a string", kind(other))),
            None if fields.contains_key("from") => {
                return Err(format!(
                    "{name} has `from` and `value`, and no `role`: name them `role` (user, assistant) and `content`"
                ));
            }
            None => return Err(format!("{name} has no `role`")),
        }
        if let Some(content) = fields.get("content") {
            check_content(content, name)?;
        }
        let is_given = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null());
        if let Some(media) = MEDIA.iter().find(|key| is_given(key)) {
            return Err(format!("{name}.{media}: only text is scored"));
        }
        if !fields.iter().any(|(key, value)| !value.is_null() && !["role", "name"].contains(&key.as_str())) {
            return Err(format!(
                "{name} says nothing: its content is null or missing, and so is all else. Write \"\" for an empty text"
            ));
        }
        exact(&fields, name)?;
        Ok(Self(fields))
    }

    /// "system", "user", "assistant", "tool", or what else the template knows.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).expect("checked when it was made")
    }

    /// A string, or a list of parts; `None` if there is none, as in a turn that is a tool call.
    pub fn content(&self) -> Option<&Value> {
        self.0.get("content").filter(|content| !content.is_null())
    }

    /// Role and text, if there is nothing else and they come in this order.
    pub fn plain(&self) -> Option<(&str, &str)> {
        let mut fields = self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        match (fields.next(), fields.next(), fields.next()) {
            (Some(("role", Some(role))), Some(("content", Some(content))), None) => Some((role, content)),
            _ => None,
        }
    }

    /// Whether both are equal, but for blanks around a text.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        let trimmed = |value: &Value| value.as_str().map(|text| text.trim().to_owned());
        self.0.len() == other.0.len()
            && self.0.iter().all(|(key, value)| {
                let Some(other) = other.0.get(key) else { return false };
                value == other
                    || (key == "content" && trimmed(value).is_some() && trimmed(value) == trimmed(other))
            })
    }

    /// The message with other texts in place of its own: of its reasoning, then of its content. `replace` is told which
    /// of the two it is. All else stays, tool calls too.
    pub(super) fn with_texts(&self, replace: &mut dyn FnMut(TextOf, &str) -> String) -> Self {
        let mut fields = self.0.clone();
        let mut replaced: Vec<(String, String)> = Vec::new(); // one reasoning may have several names
        for name in REASONING {
            if let Some(Value::String(text)) = fields.get_mut(name) {
                let known = replaced.iter().find(|(old, _)| old == text).map(|(_, new)| new.clone());
                let new = known.unwrap_or_else(|| replace(TextOf::Reasoning, text));
                replaced.push((std::mem::replace(text, new.clone()), new));
            }
        }
        match fields.get_mut("content") {
            Some(Value::String(text)) => *text = replace(TextOf::Content, text),
            Some(Value::Array(parts)) => {
                for part in parts {
                    if let Some(Value::String(text)) = part.get_mut("text") {
                        *text = replace(TextOf::Content, text);
                    }
                }
            }
            _ => {}
        }
        Self(fields)
    }

    /// The message as the template sees it.
    ///
    /// `{"thinking": reasoning, **message, "reasoning_content": reasoning}` without nulls, in Python's order: a key
    /// stays where it was first.
    pub(super) fn for_template(&self) -> Vec<(&str, &Value)> {
        let given = |key: &str| self.0.get(key).filter(|value| !value.is_null());
        let reasoning = REASONING.iter().find_map(|&key| given(key));
        // `thinking` comes first, and only once
        let first = reasoning.map(|reasoning| ("thinking", given("thinking").unwrap_or(reasoning)));
        let mut fields = Vec::with_capacity(self.0.len() + 2);
        fields.extend(first);
        let rest = self.0.iter().filter(|(key, value)| !value.is_null() && *key != "thinking");
        fields.extend(rest.map(|(key, value)| (key.as_str(), value)));
        if given("reasoning_content").is_none() {
            fields.extend(reasoning.map(|reasoning| ("reasoning_content", reasoning)));
        }
        fields
    }
}

/// What a text of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextOf {
    /// Many templates leave it out of all turns but the last.
    Reasoning,
    Content,
}

/// Reads a list of messages; `name` is what an error calls it.
pub fn messages(value: Value, name: &str) -> Result<Vec<Message>, String> {
    let Value::Array(values) = value else {
        return Err(format!("{name} is {}: expected a list of messages", kind(&value)));
    };
    let read = |(index, value)| Message::read(value, &format!("{name}[{index}]"));
    values.into_iter().enumerate().map(read).collect()
}

impl Conversation {
    /// Messages with the `tools` and `chat_template_kwargs` that came beside them, each as JSON or as a string
    /// that holds JSON.
    ///
    /// Fails, in words that name the field, if `tools` is no list of objects, or an argument is not the template's.
    pub fn new(
        messages: Vec<Message>,
        tools: Option<Value>,
        arguments: Option<Value>,
    ) -> Result<Self, String> {
        Ok(Self { messages, tools: read_tools(tools)?, arguments: read_arguments(arguments)? })
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

fn read_tools(value: Option<Value>) -> Result<Option<Vec<Value>>, String> {
    match unquoted(value, "tools")? {
        Value::Null => Ok(None),
        Value::Array(tools) => match tools.iter().position(|tool| !tool.is_object()) {
            Some(index) => {
                Err(format!("tools[{index}] is {}: expected a function's JSON schema", kind(&tools[index])))
            }
            None => {
                for (index, tool) in tools.iter().enumerate() {
                    exact_value(tool, &format!("tools[{index}]"))?;
                }
                Ok(Some(tools))
            }
        },
        other => Err(format!("tools is {}: expected a list of JSON schemas", kind(&other))),
    }
}

fn read_arguments(value: Option<Value>) -> Result<Map<String, Value>, String> {
    let arguments = match unquoted(value, "chat_template_kwargs")? {
        Value::Null => Map::new(),
        Value::Object(arguments) => arguments,
        other => return Err(format!("chat_template_kwargs is {}: expected an object", kind(&other))),
    };
    if let Some(name) = RESERVED_ARGUMENTS.iter().find(|name| arguments.contains_key(**name)) {
        let fix = if *name == "tools" { "give it beside the messages" } else { "leave it out" };
        return Err(format!("chat_template_kwargs.{name} is not the template's own: {fix}"));
    }
    exact(&arguments, "chat_template_kwargs")?;
    match arguments.get("documents") {
        None | Some(Value::Null) => {}
        Some(Value::Array(documents)) if documents.iter().all(Value::is_object) => {}
        Some(_) => return Err("chat_template_kwargs.documents is not a list of objects".to_owned()),
    }
    Ok(arguments)
}

/// The JSON in a string (as data sets keep it, whose columns have one type), or the value itself.
fn unquoted(value: Option<Value>, name: &str) -> Result<Value, String> {
    match value.unwrap_or_default() {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| format!("{name} is a string, and what it holds is not JSON: {error}")),
        value => Ok(value),
    }
}

fn check_content(content: &Value, name: &str) -> Result<(), String> {
    let parts = match content {
        Value::Null | Value::String(_) => return Ok(()),
        Value::Array(parts) => parts,
        other => {
            return Err(format!(
                "{name}.content is {}: expected a string, null, or a list of parts of text",
                kind(other)
            ));
        }
    };
    for (index, part) in parts.iter().enumerate() {
        let name = format!("{name}.content[{index}]");
        let Value::Object(fields) = part else {
            return Err(format!(
                "{name} is {}: expected a part, {{\"type\": \"text\", \"text\"}}",
                kind(part)
            ));
        };
        let part_type = fields.get("type").and_then(Value::as_str);
        let is_media =
            |key: &&str| part_type == Some(*key) || fields.get(*key).is_some_and(|value| !value.is_null());
        if let Some(media) = MEDIA.iter().find(|key| is_media(key)) {
            return Err(format!("{name} is of type {media}: only text is scored"));
        }
        if part_type == Some("text") && !fields.get("text").is_some_and(Value::is_string) {
            return Err(format!("{name} is of type text and has no string `text`"));
        }
    }
    Ok(())
}

/// Refuses numbers that are not kept as they were written: beyond 64 bits an integer is read as a double, and a template
/// prints the digits of that.
fn exact(fields: &Map<String, Value>, name: &str) -> Result<(), String> {
    fields.iter().try_for_each(|(key, value)| exact_value(value, &format!("{name}.{key}")))
}

fn exact_value(value: &Value, name: &str) -> Result<(), String> {
    match value {
        Value::Number(number)
            if number.as_f64().is_some_and(|value| number.is_f64() && value.abs() >= 2_f64.powi(63)) =>
        {
            Err(format!(
                "{name} is {number}: a number beyond 64 bits is not kept digit by digit, write it as a string"
            ))
        }
        Value::Array(values) => values
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| exact_value(value, &format!("{name}[{index}]"))),
        Value::Object(fields) => exact(fields, name),
        _ => Ok(()),
    }
}

/// What a value is, for an error: texts are not repeated.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(Value::deserialize(deserializer)?, "the message").map_err(D::Error::custom)
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A list of messages; an object, where there is more.
impl Serialize for Conversation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.tools.is_none() && self.arguments.is_empty() {
            return self.messages.serialize(serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("messages", &self.messages)?;
        if let Some(tools) = &self.tools {
            map.serialize_entry("tools", tools)?;
        }
        if !self.arguments.is_empty() {
            map.serialize_entry("chat_template_kwargs", &self.arguments)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Conversation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = || {
            let mut object = match Value::deserialize(deserializer).map_err(|error| error.to_string())? {
                Value::Object(object) => object,
                list => return Ok(messages(list, "messages")?.into()),
            };
            let mut take = |key: &str| object.shift_remove(key);
            let (turns, tools, arguments) = (take("messages"), take("tools"), take("chat_template_kwargs"));
            match object.keys().next() {
                Some(unknown) => Err(format!("unknown field `{unknown}` beside `messages`")),
                None => Self::new(messages(turns.unwrap_or_default(), "messages")?, tools, arguments),
            }
        };
        read().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Conversation, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// `tests/reference/messages.py` made the expected strings, with `render_jinja_template` of transformers 5.23.0.
    #[test]
    fn a_template_sees_what_transformers_makes_of_a_message() {
        for (message, expected) in [
            (r#"{"role":"user","content":"a"}"#, r#"{"role":"user","content":"a"}"#),
            (r#"{"content":"a","role":"user","name":null}"#, r#"{"content":"a","role":"user"}"#),
            (
                r#"{"role":"assistant","content":null,"tool_calls":[{"id":null,"n":1.0,"m":1}]}"#,
                r#"{"role":"assistant","tool_calls":[{"id":null,"n":1.0,"m":1}]}"#,
            ),
            (
                r#"{"role":"assistant","reasoning":"r","content":"a"}"#,
                r#"{"thinking":"r","role":"assistant","reasoning":"r","content":"a","reasoning_content":"r"}"#,
            ),
            (
                r#"{"role":"assistant","reasoning_content":"r","content":"a"}"#,
                r#"{"thinking":"r","role":"assistant","reasoning_content":"r","content":"a"}"#,
            ),
            (
                r#"{"role":"assistant","thinking":"t","content":"a"}"#,
                r#"{"thinking":"t","role":"assistant","content":"a","reasoning_content":"t"}"#,
            ),
            (
                r#"{"role":"assistant","thinking":"t","reasoning_content":"","content":"a"}"#,
                r#"{"thinking":"t","role":"assistant","reasoning_content":"","content":"a"}"#,
            ),
        ] {
            let message: Message = serde_json::from_str(message).unwrap();
            let fields = message.for_template().into_iter();
            let seen: Map<String, Value> =
                fields.map(|(key, value)| (key.to_owned(), value.clone())).collect();
            assert_eq!(serde_json::to_string(&seen).unwrap(), expected);
        }
    }

    #[test]
    fn a_conversation_is_a_list_or_an_object_and_is_written_as_it_was() {
        for text in [
            r#"[{"role":"user","content":"a"}]"#,
            r#"{"messages":[{"content":null,"role":"user","tool_calls":[]}],"tools":[]}"#,
            r#"{"messages":[],"tools":[{"b":1,"a":2.0}],"chat_template_kwargs":{"enable_thinking":false}}"#,
        ] {
            assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
        }
        let quoted = r#"{"messages":[],"tools":"[{\"b\": 1}]","chat_template_kwargs":"{\"c\": 2}"}"#;
        let conversation = read(quoted).unwrap();
        assert_eq!(json!(conversation.tools), json!([{"b": 1}]));
        assert_eq!(json!(conversation.arguments), json!({"c": 2}));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_field_name() {
        let message = |fields: &str| format!(r#"[{{"role":"user","content":"a"}},{{{fields}}}]"#);
        for (text, reason) in [
            (message(r#""content":"a""#), "messages[1] has no `role`"),
            (message(r#""from":"human","value":"a""#), "messages[1] has `from` and `value`"),
            (message(r#""role":7"#), "messages[1].role is a number"),
            (message(r#""role":"user","content":7"#), "messages[1].content is a number"),
            (message(r#""role":"user","content":{}"#), "messages[1].content is an object"),
            (message(r#""role":"user","content":["a"]"#), "messages[1].content[0] is a string"),
            (
                message(r#""role":"user","content":[{"type":"text","text":"a"},{"type":"image"}]"#),
                "messages[1].content[1] is of type image",
            ),
            (
                message(r#""role":"user","content":[{"type":"text","text":"a","input_audio":{}}]"#),
                "messages[1].content[0] is of type input_audio",
            ),
            (message(r#""role":"user","content":[{"type":"text"}]"#), "no string `text`"),
            (message(r#""role":"user","content":"a","video":"x.mp4""#), "messages[1].video"),
            (message(r#""role":"assistant","content":null,"tool_calls":null"#), "messages[1] says nothing"),
            (message(r#""role":"assistant","name":"a""#), "messages[1] says nothing"),
            (
                message(r#""role":"assistant","tool_calls":[{"id":123456789012345678901234567890}]"#),
                "messages[1].tool_calls[0].id is 1.2",
            ),
            (r#"["a"]"#.to_owned(), "messages[0] is a string"),
            (r#"{"messages":[],"functions":[]}"#.to_owned(), "unknown field `functions`"),
            (r#"{"messages":[],"tools":{}}"#.to_owned(), "tools is an object"),
            (r#"{"messages":[],"tools":["f"]}"#.to_owned(), "tools[0] is a string"),
            (r#"{"messages":[],"tools":"f"}"#.to_owned(), "tools is a string, and what it holds is not JSON"),
            (r#"{"messages":[],"chat_template_kwargs":[]}"#.to_owned(), "chat_template_kwargs is a list"),
            (
                r#"{"messages":[],"chat_template_kwargs":{"chat_template":"x"}}"#.to_owned(),
                "chat_template_kwargs.chat_template",
            ),
            (r#"{"messages":[],"chat_template_kwargs":{"documents":["a"]}}"#.to_owned(), "documents"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        // a null beside the text is what a data set with images in other rows says
        let null =
            message(r#""role":"user","content":[{"type":"text","text":"a","image":null}],"audio":null"#);
        assert!(read(&null).is_ok());
    }
}
