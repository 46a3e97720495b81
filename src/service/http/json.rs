//! JSON within bounds, and the shapes that several dialects share.
//!
//! Bytes in alone bound nothing: `[[[[` is deep, and `{},{},` takes a hundred bytes of memory for three. So what a body
//! holds is counted, and its memory taken from the budget, before any of it is parsed. A large one is counted and parsed
//! on a thread of its own.
//!
//! A mistake is named by its place: `input[3]: invalid type: integer, expected a string`. What the caller sent is not
//! quoted, since errors are logged and texts never are.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::DeserializeOwned;
use serde::de::Error as _;
use serde::de::IgnoredAny;
use serde::de::SeqAccess;
use serde::de::Unexpected;
use serde::de::Visitor;

use crate::service::aside::aside;
use crate::service::budget::Room;
use crate::service::status::ServiceError;

/// Deeper is not parsed.
const MAX_DEPTH: usize = 100;
/// Of strings, lists and objects, for each sample that a request may have.
const PARTS_PER_SAMPLE: usize = 512;
/// The memory that a list or an object takes beside what is in it, a string beside its bytes, and any other value. A growing
/// list doubles.
const LIST_BYTES: usize = 256;
const STRING_BYTES: usize = 96;
const VALUE_BYTES: usize = 8;

/// Runs `read` on a body's bytes once they are counted, aside if they are many; `read` may take more room for what it
/// makes of them.
pub(super) async fn within_bounds<T: Send + 'static>(
    bytes: Vec<u8>,
    mut room: Room,
    max_samples: usize,
    read: impl FnOnce(&[u8], &mut Room) -> Result<T, ServiceError> + Send + 'static,
) -> Result<(T, Room), ServiceError> {
    aside(bytes.len(), move || {
        let held = count(&bytes, max_samples.saturating_mul(PARTS_PER_SAMPLE))?;
        room.grow_to(held)?;
        let read = read(&bytes, &mut room)?;
        Ok((read, room))
    })
    .await
}

/// About what the bytes take in memory once they are parsed, themselves included.
fn count(bytes: &[u8], max_parts: usize) -> Result<usize, ServiceError> {
    let (mut depth, mut lists, mut strings, mut values) = (0_usize, 0, 0, 0);
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => {
                strings += 1;
                let mut is_escaped = false;
                for &byte in rest.by_ref() {
                    match byte {
                        b'"' if !is_escaped => break,
                        _ => is_escaped = byte == b'\\' && !is_escaped,
                    }
                }
            }
            b'[' | b'{' => {
                lists += 1;
                depth += 1;
                if depth > MAX_DEPTH {
                    let problem = format!("is JSON of more than {MAX_DEPTH} levels, the limit");
                    return Err(ServiceError::field("body", problem));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if lists + strings > max_parts {
            let problem = format!("holds more than {max_parts} strings, lists and objects, the limit");
            return Err(ServiceError::field("body", problem));
        }
    }
    Ok(2 * bytes.len() + LIST_BYTES * lists + STRING_BYTES * strings + VALUE_BYTES * values)
}

/// Reads a body; a mistake is named by the field that it is in.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(bytes).map_err(|error| {
        if !error.is_data() {
            return ServiceError::field("body", format!("is not JSON: {error}"));
        }
        // again, since looking where one is slows everybody down
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let path = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
            Err(error) => error.path().to_string(),
            Ok(_) => String::new(),
        };
        let field = if path.is_empty() || path == "." { "body" } else { &path };
        ServiceError::field(field, unquoted(&error.to_string()))
    })
}

/// The error without the string that it is about.
fn unquoted(error: &str) -> String {
    let Some((before, quoted)) = error.split_once("string \"") else { return error.to_owned() };
    let after = quoted.rfind("\", expected").map_or("", |end| &quoted[end + 1..]);
    format!("{before}string{after}")
}

/// Texts, or token ids: one, or a list of them.
#[derive(Debug, PartialEq)]
pub(super) enum Inputs {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text, a list of texts, a list of token ids, or a list of such lists")
    }

    fn visit_str<E>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Inputs, E> {
        Ok(Inputs::Text(text))
    }

    /// What the first element is, all are.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
        Ok(match list.next_element::<Element>()? {
            None => Inputs::Texts(Vec::new()),
            Some(Element::Text(first)) => Inputs::Texts(rest(first, list)?),
            Some(Element::Id(first)) => Inputs::Ids(rest(first, list)?),
            Some(Element::Ids(first)) => Inputs::IdLists(rest(first, list)?),
        })
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}

enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text, a token id, or a list of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Element, E> {
                Ok(Element::Text(text))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Element, E> {
                let id = u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
                Ok(Element::Id(id))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                match list.next_element()? {
                    None => Ok(Element::Ids(Vec::new())),
                    Some(first) => Ok(Element::Ids(rest(first, list)?)),
                }
            }
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

/// One text or a list of them; a text may stand in an object, `{"text": ".."}`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Texts {
    pub(super) texts: Vec<String>,
    /// They came as a list.
    pub(super) is_list: bool,
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts { texts: vec![text.to_owned()], is_list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(Wrapped(text)) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts { texts, is_list: true })
            }
        }
        deserializer.deserialize_any(TextsVisitor)
    }
}

/// A text, or an object with nothing of interest but a text.
struct Wrapped(String);

impl<'de> Deserialize<'de> for Wrapped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WrappedVisitor;
        impl<'de> Visitor<'de> for WrappedVisitor {
            type Value = Wrapped;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text: a string, or an object with a string `text`")
            }

            fn visit_str<E>(self, text: &str) -> Result<Wrapped, E> {
                Ok(Wrapped(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Wrapped, E> {
                Ok(Wrapped(text))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Wrapped, A::Error> {
                let mut text = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "text" => text = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                text.map(Wrapped).ok_or_else(|| A::Error::missing_field("text"))
            }
        }
        deserializer.deserialize_any(WrappedVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it is read matters")]
    struct Body {
        input: Inputs,
        documents: Option<Texts>,
    }

    #[test]
    fn what_a_body_holds_is_counted_before_it_is_parsed() {
        assert!(count(br#"{"a": ["[[[[\"[", 1, 2]}"#, 4).is_ok(), "brackets in strings are none");
        assert!(count(br#"{"a": ["x", 1, 2]}"#, 3).unwrap_err().to_string().contains("more than 3 strings"));
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert!(count(deep.as_bytes(), 1000).unwrap_err().to_string().contains("levels"));
        let ids = format!("[{}0]", "0,".repeat(1000));
        assert!(count(ids.as_bytes(), 1).unwrap() >= 8 * 1000);
    }

    #[test]
    fn inputs_are_texts_or_ids_and_never_both() {
        let inputs = |json: &str| parse::<Body>(format!(r#"{{"input": {json}, "more": {{}}}}"#).as_bytes());
        assert_eq!(inputs(r#""a""#).unwrap().input, Inputs::Text("a".into()));
        assert_eq!(inputs(r#"["a", "b"]"#).unwrap().input, Inputs::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(inputs("[1, 2]").unwrap().input, Inputs::Ids(vec![1, 2]));
        assert_eq!(inputs("[[1], []]").unwrap().input, Inputs::IdLists(vec![vec![1], vec![]]));
        assert_eq!(inputs("[]").unwrap().input, Inputs::Texts(vec![]));
        for (json, place) in [
            (r#"["a", 1]"#, "input[1]: "),
            (r#"[1, "secret"]"#, "input[1]: "),
            ("[[1], [2, -1]]", "input[1][1]: "),
            ("[4294967296]", "input[0]: "),
            ("{}", "input: "),
            ("null", "input: "),
            (r#"["a""#, "body: is not JSON"),
            ("[NaN]", "body: is not JSON"),
        ] {
            let error = inputs(json).unwrap_err().to_string();
            assert!(error.starts_with(place) && !error.contains("secret"), "{json}: {error}");
        }
        let error = parse::<Body>(br#"{"input": "a", "documents": ["a", {"txt": 1}]}"#).unwrap_err();
        assert!(error.to_string().starts_with("documents[1]: missing field `text`"), "{error}");
        assert!(parse::<Body>(b"[]").unwrap_err().to_string().starts_with("body: "));
    }
}
