//! What text-embeddings-inference answers at `/predict`, as `huggingface_hub`'s client asks for it too; its `/rerank` is in
//! pairs.rs.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::Value;
use serde_json::json;

use crate::service::budget::Room;
use crate::service::http::classify::LABEL;
use crate::service::http::dialect::Activation;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Understood;
use crate::service::http::dialect::scores;
use crate::service::http::json::parse;
use crate::service::request::Received;
use crate::service::score::Score;
use crate::service::status::ServiceError;
use crate::text::Input;

#[derive(Deserialize)]
struct Body {
    inputs: Inputs,
    raw_scores: Option<bool>,
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    parameters: Option<Parameters>,
}

/// What `huggingface_hub` sends, even where it is empty.
#[derive(Deserialize)]
struct Parameters {
    function_to_apply: Option<String>,
}

/// A text or a pair, or a list of such.
enum Inputs {
    One(Received),
    Many(Vec<Received>),
}

/// A text alone, or in a list.
enum Element {
    Text(String),
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text, or a list of one or two texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Element::List(texts))
            }
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

/// One text, or the two of a pair.
fn sample<E: serde::de::Error>(texts: Vec<String>) -> Result<Received, E> {
    let count = texts.len();
    let mut texts = texts.into_iter();
    match (texts.next(), texts.next(), texts.next()) {
        (Some(text), None, _) => Ok(Received::Plain(text)),
        (Some(prompt), Some(response), None) => Ok(Received::Input(Input::Text { prompt, response })),
        _ => Err(E::custom(format_args!(
            "invalid length {count}, expected one text or two; several texts are [[\"a\"], [\"b\"], [\"c\"]]"
        ))),
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputsVisitor;
        impl<'de> Visitor<'de> for InputsVisitor {
            type Value = Inputs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text, a pair of texts, or a list of lists of one or two texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs::One(Received::Plain(text.to_owned())))
            }

            /// A list that begins with a text is one sample.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
                let mut texts = Vec::new();
                let mut samples = Vec::new();
                while let Some(element) = list.next_element()? {
                    match element {
                        Element::Text(text) if samples.is_empty() => texts.push(text),
                        Element::List(list) if texts.is_empty() => samples.push(sample(list)?),
                        _ => return Err(A::Error::custom("invalid value: texts beside lists of texts")),
                    }
                }
                match texts.is_empty() {
                    true => Ok(Inputs::Many(samples)),
                    false => sample(texts).map(Inputs::One),
                }
            }
        }
        deserializer.deserialize_any(InputsVisitor)
    }
}

/// `/predict`. One input has a flat list of its labels; but `huggingface_hub` takes the first element of what it gets, and
/// its requests have `parameters`.
pub(super) fn predict(
    bytes: &[u8],
    mut context: Context,
    _room: &mut Room,
) -> Result<Understood, ServiceError> {
    let body: Body = parse(bytes)?;
    context.truncate(body.truncate, "truncation_direction", body.truncation_direction.as_deref());
    let is_nested = body.parameters.is_some();
    let function = body.parameters.and_then(|parameters| parameters.function_to_apply);
    let named = match function.as_deref() {
        None => None,
        Some("none") => Some(false),
        Some("sigmoid") => Some(true),
        Some(_) => {
            let problem = "only none and sigmoid are known: the softmax of one label is always 1";
            context.violations.add("parameters.function_to_apply", problem);
            None
        }
    };
    let activation = Activation::asked(named.or(body.raw_scores.map(|is_raw| !is_raw)));
    let labels = move |score: &Score| json!([{"label": LABEL, "score": activation.of(score)}]);
    match body.inputs {
        Inputs::Many(inputs) => {
            context.understand(inputs, "inputs", move |scored| scores(scored).map(labels).collect())
        }
        Inputs::One(input) => context.understand(vec![input], "inputs", move |scored| {
            let all: Vec<Value> = scores(scored).map(labels).collect();
            if is_nested { all.into() } else { all.into_iter().next().unwrap_or_default() }
        }),
    }
}
