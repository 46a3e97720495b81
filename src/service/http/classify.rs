//! Texts, one reward each: vLLM's `/classify` and `/pooling`, SGLang's `/classify` and `/v1/embeddings`.
//!
//! `/classify` is both servers': `input` or `messages` is vLLM's, `text` or `input_ids` SGLang's.

use serde_json::Value;
use serde_json::json;

use crate::service::budget::Room;
use crate::service::http::dialect::Activation;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Understood;
use crate::service::http::dialect::conversation;
use crate::service::http::dialect::created;
use crate::service::http::dialect::id;
use crate::service::http::dialect::message;
use crate::service::http::dialect::model;
use crate::service::http::dialect::samples;
use crate::service::http::dialect::scores;
use crate::service::http::dialect::tokens;
use crate::service::http::fields::Fields;
use crate::service::http::json::Inputs;
use crate::service::http::json::parse;
use crate::service::request::Received;
use crate::service::score::Score;
use crate::service::score::Scored;
use crate::service::status::ServiceError;
use crate::text::Input;

/// `/classify`, `/v1/classify`.
pub(super) fn classify(bytes: &[u8], context: Context, _room: &mut Room) -> Result<Understood, ServiceError> {
    let body: Fields = parse(bytes)?;
    match (body.input.is_some() || body.messages.is_some(), body.text.is_some() || body.input_ids.is_some()) {
        (true, false) => vllm(body, context, classified),
        (false, true) => sglang(body, context),
        (false, false) => Err(ServiceError::field(
            "body",
            "has none of `input` and `messages`, which vLLM's clients send, and of `text` and `input_ids`, which SGLang's do",
        )),
        (true, true) => Err(ServiceError::field(
            "body",
            "has fields of two dialects: send `input` or `messages`, or else `text` or `input_ids`",
        )),
    }
}

/// `/pooling`.
pub(super) fn pooling(bytes: &[u8], context: Context, _room: &mut Room) -> Result<Understood, ServiceError> {
    let body: Fields = parse(bytes)?;
    if body.input.is_none() && body.messages.is_none() {
        return Err(ServiceError::field("body", "has neither `input` nor `messages`"));
    }
    vllm(body, context, pooled)
}

/// `/v1/embeddings`.
pub(super) fn embeddings(
    bytes: &[u8],
    mut context: Context,
    _room: &mut Room,
) -> Result<Understood, ServiceError> {
    let mut body: Fields = parse(bytes)?;
    let Some(input) = body.input.take() else { return Err(ServiceError::field("input", "is not set")) };
    body.openai(&mut context);
    let encode = encoding(&mut context, body.encoding_format.as_deref());
    context.understand(samples(input, Received::Plain), "input", move |scored| {
        let embedding =
            |(index, score)| json!({"object": "embedding", "index": index, "embedding": encode(score)});
        json!({
            "object": "list",
            "model": model(scored),
            "data": scores(scored).enumerate().map(embedding).collect::<Value>(),
            "usage": usage(scored),
        })
    })
}

/// How vLLM shows the outcome.
type Show = fn(&str, &Scored, Activation, &dyn Fn(&Score) -> Value) -> Value;

fn vllm(mut body: Fields, mut context: Context, show: Show) -> Result<Understood, ServiceError> {
    let activation = body.vllm(&mut context);
    let encode = encoding(&mut context, body.encoding_format.as_deref());
    let is_chat = body.messages.is_some();
    context.refuse(is_chat && body.input.is_some(), "input", "goes not with `messages`: send one of them");
    context.refuse(
        body.add_generation_prompt == Some(true),
        "add_generation_prompt",
        "a reward is of a whole conversation",
    );
    context.refuse(
        body.continue_final_message == Some(true),
        "continue_final_message",
        "a reward is of a whole conversation",
    );
    context.refuse(body.chat_template.is_some(), "chat_template", "the model's own counts: leave it out");
    context.refuse(
        is_chat && body.add_special_tokens == Some(true),
        "add_special_tokens",
        "goes not with `messages`: the chat template has them",
    );
    let (inputs, field) = match (body.messages, body.input) {
        (Some(messages), _) => {
            let messages = messages.iter().map(message).collect();
            (vec![conversation(messages, body.chat_template_kwargs)], "messages")
        }
        (None, input) => {
            let input = input.unwrap_or(Inputs::Texts(Vec::new()));
            let inputs = match body.add_special_tokens {
                Some(false) => samples(input, |text| Received::Input(Input::Formatted(text))),
                None | Some(true) => samples(input, Received::Plain),
            };
            (inputs, "input")
        }
    };
    let request_id = context.asked.request_id.clone();
    context.understand(inputs, field, move |scored| show(&request_id, scored, activation, &encode))
}

fn classified(
    request_id: &str,
    scored: &Scored,
    activation: Activation,
    _encode: &dyn Fn(&Score) -> Value,
) -> Value {
    let class = |(index, score)| json!({"index": index, "label": LABEL, "probs": [activation.of(score)], "num_classes": 1});
    json!({
        "id": id("classify", request_id),
        "object": "list",
        "created": created(),
        "model": model(scored),
        "data": scores(scored).enumerate().map(class).collect::<Value>(),
        "usage": usage(scored),
    })
}

fn pooled(
    request_id: &str,
    scored: &Scored,
    activation: Activation,
    encode: &dyn Fn(&Score) -> Value,
) -> Value {
    let data = |(index, score)| {
        let data = match activation {
            Activation::Raw => encode(score),
            Activation::Sigmoid => json!([activation.of(score)]),
        };
        json!({"index": index, "object": "pooling", "data": data})
    };
    json!({
        "id": id("pool", request_id),
        "object": "list",
        "created": created(),
        "model": model(scored),
        "data": scores(scored).enumerate().map(data).collect::<Value>(),
        "usage": usage(scored),
    })
}

fn sglang(mut body: Fields, mut context: Context) -> Result<Understood, ServiceError> {
    context.model(body.model.take());
    let (input, field) = match (body.text, body.input_ids) {
        (Some(text), None) => (text, "text"),
        (None, Some(ids)) => (ids, "input_ids"),
        _ => return Err(ServiceError::field("text", "goes not with `input_ids`: send one of them")),
    };
    let is_ids = matches!(input, Inputs::Ids(_) | Inputs::IdLists(_));
    context.refuse(field == "text" && is_ids, "text", "is a list of numbers: send them as `input_ids`");
    let is_list = matches!(input, Inputs::Texts(_) | Inputs::IdLists(_));
    let request_id = context.asked.request_id.clone();
    context.understand(samples(input, Received::Plain), field, move |scored| {
        let one = |score: &Score| {
            let meta = json!({"id": id("reward", &request_id), "prompt_tokens": score.tokens});
            json!({"embedding": [Activation::Raw.of(score)], "meta_info": meta})
        };
        let mut all = scores(scored).map(one);
        if is_list { all.collect() } else { all.next().unwrap_or_default() }
    })
}

/// The name that transformers gives to a label without a name.
pub(super) const LABEL: &str = "LABEL_0";

pub(super) fn usage(scored: &Scored) -> Value {
    let tokens = tokens(scored);
    json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0})
}

/// Numbers, or what OpenAI's client asks for on its own: the base64 of `f32`, little-endian.
fn encoding(context: &mut Context, asked: Option<&str>) -> fn(&Score) -> Value {
    match asked {
        None | Some("float") => |score| json!([Activation::Raw.of(score)]),
        Some("base64") => |score| base64(score.reward.to_le_bytes()).into(),
        Some(_) => {
            context.violations.add("encoding_format", "is neither float nor base64");
            |_| Value::Null
        }
    }
}

/// Source: RFC 4648, section 4.
fn base64(bytes: [u8; 4]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(u32::from_be_bytes(bytes)) << 4; // 36 bits are six letters
    let letters = (0..6).rev().map(|place| char::from(ALPHABET[(bits >> (6 * place)) as usize & 63]));
    letters.chain("==".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `base64.b64encode(struct.pack("<f", x))` of Python made them.
    #[test]
    fn base64_is_as_python_makes_it() {
        for (reward, expected) in [(1.0_f32, "AACAPw=="), (-2.5, "AAAgwA=="), (0.1, "zczMPQ==")] {
            assert_eq!(base64(reward.to_le_bytes()), expected);
        }
    }
}
