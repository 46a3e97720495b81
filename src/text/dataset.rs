//! Preference pairs from JSON lines; an error names file and line.
//!
//! ```json
//! {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Eight.", "source": "arithmetic"}
//! {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}], "rejected": "Go away."}
//! {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "rejected": [...]}
//! ```
//!
//! Three strings become prompt and response, as in a `Score` request. Where one of them is a list of messages, all become
//! conversations: a string prompt is a user turn, a string response an assistant turn. `tools` (a list of JSON schemas,
//! or a string that holds one) and `chat_template_kwargs` (an object) go to the chat template with every message, as in
//! trl. Other keys are allowed and ignored, but for those that look like a part of the conversation.
//!
//! # Where the prompt is
//!
//! As `maybe_extract_prompt` of trl 1.16 has it: beside a list of messages that begins with the user, a string prompt is
//! only a copy, and ignored (a blank or a system turn may differ); without a prompt, or with a list of messages in all
//! three, what is scored is prompt + response. Where trl would lose a part or say it twice, we do not follow: responses
//! that begin with the assistant answer a string prompt, a response that begins with the listed prompt's messages is the
//! whole conversation, and what is neither is refused.

use std::io;
use std::io::BufRead;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::text::Conversation;
use crate::text::Input;
use crate::text::Message;
use crate::text::conversation::messages;
use crate::text::lines;

/// A longer line is an error: more than any model's context.
const MAX_LINE_BYTES: u64 = 32 << 20;
/// Keys that trl does not read, and that may hold a part of what the model should see.
const NEAR_MISSES: [(&str, &str); 14] = [
    ("tool", "the list of tools is called `tools`"),
    ("functions", "the list of tools is called `tools`"),
    ("function", "the list of tools is called `tools`"),
    ("tools_json", "in a file the list of tools is called `tools`"),
    ("template_kwargs", "the template's arguments are called `chat_template_kwargs`"),
    ("chat_template_args", "the template's arguments are called `chat_template_kwargs`"),
    ("chat_template_kwargs_json", "in a file the template's arguments are called `chat_template_kwargs`"),
    ("image", "only text is scored"),
    ("images", "only text is scored"),
    ("audio", "only text is scored"),
    ("audios", "only text is scored"),
    ("video", "only text is scored"),
    ("videos", "only text is scored"),
    ("system", "write the system turn into the messages: {\"role\": \"system\", \"content\": ..}"),
];

/// One human judgement: two responses to a prompt, and which is better.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// The better one, with its prompt.
    pub chosen: Input,
    /// The other, with the same prompt.
    pub rejected: Input,
    /// Where the pair comes from, for breakdowns.
    pub source: Option<String>,
    /// In its file, from 1.
    pub line: usize,
}

/// The pairs of one file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Which file.
    pub path: PathBuf,
    /// In the order of the file; at least one.
    pub pairs: Vec<PreferencePair>,
    /// Lines whose two responses are the same: nothing can be learnt or judged from those, so they are left out.
    pub equal_lines: Vec<usize>,
    /// blake3 of the file's content, unpacked.
    pub digest: [u8; 32],
}

/// Why a file of pairs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Of the file.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Of one line.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// No pair in it.
    #[error("{} holds no preference pairs{}", path.display(), if *equal_lines > 0 { format!(": in all {equal_lines} lines both responses are the same") } else { String::new() })]
    Empty {
        /// Which file.
        path: PathBuf,
        /// Lines that were left out.
        equal_lines: usize,
    },
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<Value>,
    chosen: Value,
    rejected: Value,
    source: Option<Value>,
    #[serde(flatten)]
    beside: Beside,
}

/// What may stand beside the texts of a line.
#[derive(Deserialize)]
pub struct Beside {
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

/// A prompt or a response.
#[derive(Clone)]
enum Turns {
    Text(String),
    Messages(Vec<Message>),
}

impl Dataset {
    /// Reads JSON lines, plain or gzipped; blank lines are skipped.
    pub fn read(path: &Path) -> Result<Self, DatasetError> {
        Self::collect(path, |each| read_lines(path, each))
    }

    /// `read` calls what it is given with each line, and returns the digest.
    fn collect(
        path: &Path,
        read: impl FnOnce(&mut EachLine<'_>) -> Result<[u8; 32], DatasetError>,
    ) -> Result<Self, DatasetError> {
        let mut dataset =
            Self { path: path.to_owned(), pairs: Vec::new(), equal_lines: Vec::new(), digest: [0; 32] };
        dataset.digest = read(&mut |line, text| {
            let read: Line = serde_json::from_str(text)
                .map_err(|error| format!("not a pair: {}", lines::explain(text, &error)))?;
            let pair = read.into_pair(line)?;
            if pair.chosen == pair.rejected {
                dataset.equal_lines.push(line);
            } else {
                dataset.pairs.push(pair);
            }
            Ok(())
        })?;
        if dataset.pairs.is_empty() {
            return Err(DatasetError::Empty {
                path: path.to_owned(),
                equal_lines: dataset.equal_lines.len(),
            });
        }
        Ok(dataset)
    }
}

/// Is told a line's number, from 1, and its text; says what is wrong with it.
pub type EachLine<'a> = dyn FnMut(usize, &str) -> Result<(), String> + 'a;

/// Reads the lines of a file, plain or gzipped, that are not blank. Returns the blake3 of its content, unpacked.
pub fn read_lines(path: &Path, each: &mut EachLine<'_>) -> Result<[u8; 32], DatasetError> {
    let input = lines::open(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    lines_of(path, input, each)
}

fn lines_of(path: &Path, mut input: impl BufRead, each: &mut EachLine<'_>) -> Result<[u8; 32], DatasetError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        let wrong = |problem: String| DatasetError::Line { path: path.to_owned(), line, problem };
        bytes.clear();
        let read = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|source| DatasetError::Read { path: path.to_owned(), source })? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(wrong(format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        hasher.update(&bytes);
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(format!("not UTF-8: {error}")))?;
        if !text.trim().is_empty() {
            each(line, text).map_err(wrong)?;
        }
    }
    Ok(hasher.finalize().into())
}

impl Line {
    fn into_pair(self, line: usize) -> Result<PreferencePair, String> {
        let Self { prompt, chosen, rejected, source, beside } = self;
        let responses = vec![("chosen".to_owned(), chosen), ("rejected".to_owned(), rejected)];
        let mut inputs = inputs(prompt, responses, beside)?.into_iter();
        let (Some(chosen), Some(rejected)) = (inputs.next(), inputs.next()) else {
            unreachable!("one for each response")
        };
        let source = match source {
            Some(Value::String(source)) => Some(source),
            None | Some(Value::Null) => None,
            Some(other) => return Err(format!("source is {other}: expected a string")),
        };
        Ok(PreferencePair { chosen, rejected, source, line })
    }
}

/// What is scored of the named responses to one prompt: all strings, or all conversations.
///
/// Fails, in words that name the field, where something is not understood.
pub fn inputs(
    prompt: Option<Value>,
    responses: Vec<(String, Value)>,
    beside: Beside,
) -> Result<Vec<Input>, String> {
    let prompt = match prompt {
        None | Some(Value::Null) => None,
        Some(prompt) => Some(Turns::read(prompt, "prompt")?),
    };
    let named = responses.into_iter().map(|(name, turns)| {
        let turns = Turns::read(turns, &name)?;
        Ok((name, turns))
    });
    let responses = named.collect::<Result<Vec<_>, String>>()?;
    let is_text = |turns: &Turns| matches!(turns, Turns::Text(_));
    if prompt.is_none() && responses.iter().any(|(_, response)| is_text(response)) {
        let problem =
            "`prompt` is missing: only lists of messages, as `chosen` and `rejected`, can do without";
        return Err(problem.to_owned());
    }
    if let Some(Turns::Text(prompt)) = &prompt
        && responses.iter().all(|(_, response)| is_text(response))
    {
        beside.none_for_strings()?;
        let text = |(_, response)| match response {
            Turns::Text(response) => Input::Text { prompt: prompt.clone(), response },
            Turns::Messages(_) => unreachable!("all are strings"),
        };
        return Ok(responses.into_iter().map(text).collect());
    }
    let whole = responses.iter().find(|(_, response)| response.is_whole(prompt.as_ref()));
    let short = responses.iter().find(|(_, response)| is_text(response));
    if let (Some((whole, _)), Some((short, _)), Some(Turns::Text(_))) = (whole, short, &prompt) {
        return Err(format!(
            "{whole} is a whole conversation, and {short} a string: write both the same way"
        ));
    }
    let joined = responses.into_iter().map(|(name, response)| join(prompt.as_ref(), response, &name));
    let joined = joined.collect::<Result<Vec<_>, _>>()?;
    beside.check(joined.iter().flatten().any(|message| message.role() == "system"))?;
    let Beside { tools, chat_template_kwargs, .. } = beside;
    let Conversation { tools, arguments, .. } = Conversation::new(Vec::new(), tools, chat_template_kwargs)?;
    let conversation = |messages| {
        Input::Conversation(Conversation { messages, tools: tools.clone(), arguments: arguments.clone() })
    };
    Ok(joined.into_iter().map(conversation).collect())
}

impl Beside {
    /// Strings go to no template by themselves, so that tools beside them would be lost.
    fn none_for_strings(&self) -> Result<(), String> {
        for (name, value) in [("tools", &self.tools), ("chat_template_kwargs", &self.chat_template_kwargs)] {
            if value.as_ref().is_some_and(says_something) {
                return Err(format!(
                    "{name} goes with messages: write prompt and responses as lists of those"
                ));
            }
        }
        self.check(false)
    }

    /// Refuses what looks like a part of the conversation and is not read.
    fn check(&self, has_system_turn: bool) -> Result<(), String> {
        for (name, fix) in NEAR_MISSES {
            let is_copy = name == "system" && has_system_turn;
            if !is_copy && self.others.get(name).is_some_and(says_something) {
                return Err(format!("`{name}` is not read: {fix}, or leave the key out"));
            }
        }
        Ok(())
    }
}

/// An empty column is in many data sets.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !matches!(text.trim(), "" | "[]" | "{}" | "null"),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

impl Turns {
    fn read(value: Value, name: &str) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(_) => messages(value, name).map(Self::Messages),
            Value::Null => Err(format!("{name} is null: expected a string or a list of messages")),
            _ => Err(format!("{name} is neither a string nor a list of messages")),
        }
    }

    /// Whether this response has the prompt within it.
    fn is_whole(&self, prompt: Option<&Self>) -> bool {
        match (self, prompt) {
            (Self::Text(_), _) => false,
            (Self::Messages(_), None) => true,
            (Self::Messages(response), Some(Self::Text(_))) => first_role(response) == Some("user"),
            (Self::Messages(response), Some(Self::Messages(prompt))) => begins_with(response, prompt),
        }
    }
}

fn join(prompt: Option<&Turns>, response: Turns, name: &str) -> Result<Vec<Message>, String> {
    let is_whole = response.is_whole(prompt);
    let response = match response {
        Turns::Text(response) => vec![Message::new("assistant", response)],
        Turns::Messages(response) if response.is_empty() => return Err(format!("{name} has no messages")),
        Turns::Messages(response) if is_whole => return Ok(response),
        Turns::Messages(response) => response,
    };
    let mut joined = match prompt {
        None => Vec::new(),
        Some(Turns::Text(prompt)) => vec![Message::new("user", prompt)],
        Some(Turns::Messages(prompt)) => prompt.clone(),
    };
    let begins_with_system = response[0].role() == "system" && !joined.is_empty();
    let asks_twice =
        joined.last().is_some_and(|last| last.role() == "user") && first_role(&response) == Some("user");
    if begins_with_system || asks_twice {
        return Err(format!(
            "{name} begins with the {}, and not with the messages of `prompt`: should it go on from there, or is it the \
             whole conversation? Leave `prompt` out if it is",
            response[0].role()
        ));
    }
    joined.extend(response);
    Ok(joined)
}

/// Of the first turn that is not the system's.
fn first_role(messages: &[Message]) -> Option<&str> {
    messages.iter().map(Message::role).find(|role| *role != "system")
}

/// Whether a response has a prompt's messages at its beginning, but for blanks, and for a system turn that the prompt
/// lacks.
fn begins_with(response: &[Message], prompt: &[Message]) -> bool {
    let has_system = |messages: &[Message]| messages.first().is_some_and(|first| first.role() == "system");
    let start = usize::from(has_system(response) && !has_system(prompt));
    let rest = &response[start..];
    prompt.len() < rest.len() && prompt.iter().zip(rest).all(|(one, other)| one.says_the_same_as(other))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn read(text: &str) -> Result<Dataset, DatasetError> {
        let path = Path::new("pairs.jsonl");
        Dataset::collect(path, |each| lines_of(path, text.as_bytes(), each))
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn strings_are_prompt_and_response() {
        let data =
            read("{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"source\":\"s\",\"id\":7}\n\n")
                .unwrap();
        let text = |response: &str| Input::Text { prompt: "p".to_owned(), response: response.to_owned() };
        let expected =
            PreferencePair { chosen: text("a"), rejected: text("b"), source: Some("s".to_owned()), line: 1 };
        assert_eq!(data.pairs, [expected]);
    }

    #[test]
    fn all_ways_to_write_a_conversation_are_the_same_pair() {
        let (user, yes, no) = (
            r#"{"role":"user","content":"p"}"#,
            r#"{"role":"assistant","content":"a"}"#,
            r#"{"role":"assistant","content":"b"}"#,
        );
        let lines = [
            format!(r#"{{"prompt":"p","chosen":[{yes}],"rejected":"b"}}"#),
            format!(r#"{{"prompt":[{user}],"chosen":"a","rejected":"b"}}"#),
            format!(r#"{{"prompt":[{user}],"chosen":[{yes}],"rejected":[{no}]}}"#),
            format!(r#"{{"prompt":"p","chosen":[{user},{yes}],"rejected":[{user},{no}]}}"#),
            format!(r#"{{"chosen":[{user},{yes}],"rejected":[{user},{no}]}}"#),
        ];
        let data = read(&lines.join("\n")).unwrap();
        let conversation = |response| {
            Input::Conversation(vec![Message::new("user", "p"), Message::new("assistant", response)].into())
        };
        assert_eq!(data.pairs.len(), lines.len());
        for pair in data.pairs {
            assert_eq!(
                (pair.chosen, pair.rejected),
                (conversation("a"), conversation("b")),
                "line {}",
                pair.line
            );
        }
    }

    #[test]
    fn an_error_names_file_and_line() {
        let good = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
        for (bad, reason) in [
            ("{", "not a pair"),
            (r#"{"prompt":"p","chosen":"a"}"#, "missing field `rejected`"),
            (
                r#"{"prompt":"p","chosen":"a","rejected":7}"#,
                "rejected is neither a string nor a list of messages",
            ),
            (r#"{"prompt":"p","chosen":null,"rejected":"b"}"#, "chosen is null"),
            (r#"{"prompt":"p","chosen":"a","rejected":"b","score":NaN}"#, "NaN is no JSON"),
            (r#"{"prompt":"p","chosen":"a","rejected":"b","source":7}"#, "source is 7"),
            (r#"{"prompt":"p","chosen":"a","rejected":"b","system":"Be kind."}"#, "`system` is not read"),
            (r#"{"prompt":"p","chosen":"a","rejected":"b","images":["x.png"]}"#, "`images` is not read"),
            (
                r#"{"prompt":"p","chosen":"a","rejected":"b","tools":[{"type":"function"}]}"#,
                "tools goes with messages",
            ),
            (
                r#"{"prompt":[{"role":"user","content":"p"}],"chosen":"a","rejected":"b","functions":[{}]}"#,
                "`functions` is not read",
            ),
            (
                r#"{"prompt":[{"role":"user","content":"p"}],"chosen":"a","rejected":[{"role":"assistant","content":null}]}"#,
                "rejected[0] says nothing",
            ),
            (
                r#"{"prompt":"p","chosen":[{"role":"user","content":"p"},{"role":"assistant","content":"a"}],"rejected":"b"}"#,
                "chosen is a whole conversation, and rejected a string",
            ),
            (
                r#"{"prompt":[{"role":"user","content":"q"}],"chosen":"a","rejected":[{"role":"user","content":"p"},{"role":"assistant","content":"a"}]}"#,
                "rejected begins with the user",
            ),
            (
                r#"{"prompt":"p","chosen":[{"role":"system","content":"s"},{"role":"assistant","content":"a"}],"rejected":"b"}"#,
                "chosen begins with the system",
            ),
            (r#"{"chosen":"a","rejected":"b"}"#, "`prompt` is missing"),
            (r#"{"prompt":"p","chosen":"a","rejected":[]}"#, "no messages"),
        ] {
            let error = error(&format!("{good}\n\n{bad}\n"));
            assert!(error.starts_with("pairs.jsonl:3: ") && error.contains(reason), "{error}");
        }
    }

    /// `tests/reference/pairs.py` compares with trl itself, on random pairs.
    #[test]
    fn a_prompt_is_never_said_twice_and_never_lost() {
        let (s, u, p) = (
            r#"{"role":"system","content":"s"}"#,
            r#"{"role":"user","content":"p"}"#,
            r#"{"role":"user","content":"p "}"#,
        );
        let (a, b, again) = (
            r#"{"role":"assistant","content":"a"}"#,
            r#"{"role":"assistant","content":"b"}"#,
            r#"{"role":"user","content":"q"}"#,
        );
        let roles = |input: &Input| match input {
            Input::Conversation(conversation) => {
                conversation.messages.iter().map(|message| message.role()[..1].to_owned()).collect::<String>()
            }
            other => panic!("{other:?}"),
        };
        for (prompt, before, expected) in [
            (r#""p""#.to_owned(), u.to_owned() + ",", "ua"),
            (r#""p""#.to_owned(), format!("{s},{u},"), "sua"),
            (r#""p ""#.to_owned(), format!("{u},"), "ua"),
            (r#""p""#.to_owned(), String::new(), "ua"),
            ("null".to_owned(), format!("{u},"), "ua"),
            (format!("[{u}]"), String::new(), "ua"),
            (format!("[{u}]"), format!("{s},{u},"), "sua"),
            (format!("[{p}]"), format!("{u},"), "ua"),
            (format!("[{s},{u}]"), format!("{s},{u},"), "sua"),
            (format!("[{u},{a}]"), format!("{again},"), "uaua"),
            (format!("[{u},{a},{again}]"), String::new(), "uaua"),
        ] {
            let line = format!(r#"{{"prompt":{prompt},"chosen":[{before}{a}],"rejected":[{before}{b}]}}"#);
            let data = read(&line).unwrap();
            assert_eq!(
                (roles(&data.pairs[0].chosen), roles(&data.pairs[0].rejected)),
                (expected.to_owned(), expected.to_owned()),
                "{line}"
            );
        }
    }

    #[test]
    fn what_the_template_reads_is_kept() {
        let call = |place: &str| {
            format!(
                r#"{{"role":"assistant","content":null,"tool_calls":[{{"function":{{"name":"tide","arguments":{{"place":"{place}"}}}}}}]}}"#
            )
        };
        let user = r#"{"role":"user","content":[{"type":"text","text":"Tide?"}]}"#;
        let tools = r#"[{"b":1,"a":2.0}]"#;
        let line = format!(
            r#"{{"prompt":[{user}],"chosen":[{}],"rejected":[{}],"tools":{tools},"chat_template_kwargs":{{"x":1}},"system":""}}"#,
            call("Porto"),
            call("Paris")
        );
        let data = read(&line).unwrap();
        let (Input::Conversation(chosen), Input::Conversation(rejected)) =
            (&data.pairs[0].chosen, &data.pairs[0].rejected)
        else {
            panic!("{data:?}")
        };
        assert_eq!(serde_json::to_string(&chosen.messages).unwrap(), format!("[{user},{}]", call("Porto")));
        assert_eq!(serde_json::to_string(&rejected.messages).unwrap(), format!("[{user},{}]", call("Paris")));
        for conversation in [chosen, rejected] {
            assert_eq!(serde_json::to_string(&conversation.tools).unwrap(), tools);
            assert_eq!(serde_json::to_string(&conversation.arguments).unwrap(), r#"{"x":1}"#);
        }
        // as a column of one type has it
        let quoted = line.replace(tools, &format!("{tools:?}"));
        assert_eq!(read(&quoted).unwrap().pairs[0].chosen, data.pairs[0].chosen);
    }

    #[test]
    fn equal_responses_are_left_out_and_counted() {
        let equal = r#"{"prompt":"p","chosen":"a","rejected":"a"}"#;
        let data =
            read(&format!("{equal}\n{{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}}\n{equal}"))
                .unwrap();
        assert_eq!((data.pairs.len(), data.equal_lines), (1, vec![1, 3]));
        assert!(error(equal).contains("both responses are the same"));
        assert_eq!(error("\n"), "pairs.jsonl holds no preference pairs");
    }

    #[test]
    fn gzip_is_known_by_its_content_and_a_torn_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(text.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Dataset::read(&path)
        };
        let (plain, gzip) = (write("plain", text.as_bytes()).unwrap(), write("packed", &packed).unwrap());
        assert_eq!((plain.pairs, plain.digest), (gzip.pairs, gzip.digest));
        assert!(write("torn", &packed[..packed.len() - 9]).unwrap_err().to_string().contains("torn"));
        assert!(write("latin1", b"\xe9\n").unwrap_err().to_string().contains("latin1:1: not UTF-8"));
        assert!(Dataset::read(&dir.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
