//! Trainers that have a dialect of their own: OpenRLHF's `/get_reward`, slime's `/rm`, LLaMA-Factory's
//! `/v1/score/evaluation`. Their texts come rendered, so no special tokens are added to them.

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::service::budget::Room;
use crate::service::http::dialect::Activation;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Understood;
use crate::service::http::dialect::conversation;
use crate::service::http::dialect::id;
use crate::service::http::dialect::message;
use crate::service::http::dialect::model;
use crate::service::http::dialect::scores;
use crate::service::http::json::Texts;
use crate::service::http::json::parse;
use crate::service::request::JsonMessage;
use crate::service::request::Received;
use crate::service::score::Scored;
use crate::service::status::ServiceError;
use crate::text::Input;

fn formatted(texts: Texts) -> Vec<Received> {
    texts.texts.into_iter().map(|text| Received::Input(Input::Formatted(text))).collect()
}

fn rewards(scored: &Scored) -> Value {
    scores(scored).map(|score| Activation::Raw.of(score)).collect()
}

#[derive(Deserialize)]
struct GetReward {
    query: Texts,
    prompts: Option<Value>,
}

/// OpenRLHF's. `query` is prompt and response, with the chat's markup; the prompt beside it only decides the variant.
pub(super) fn get_reward(
    bytes: &[u8],
    mut context: Context,
    _room: &mut Room,
) -> Result<Understood, ServiceError> {
    let body: GetReward = parse(bytes)?;
    let prompt = body.prompts.as_ref().map(|prompts| prompts.get(0).unwrap_or(prompts));
    if let Some(prompt) = prompt.and_then(Value::as_str) {
        context.prompt(prompt);
    }
    context.understand(formatted(body.query), "query", |scored| json!({"rewards": rewards(scored)}))
}

#[derive(Deserialize)]
struct Rm {
    prompt: Value,
    response: String,
}

/// slime's. With its `--apply-chat-template` the prompt is a rendered text, without it what the user says: the special
/// tokens of the model tell them apart, or `rendered`, where the caller knows.
pub(super) fn rm(bytes: &[u8], context: Context, _room: &mut Room) -> Result<Understood, ServiceError> {
    let Rm { prompt, response } = parse(bytes)?;
    let input = match (prompt, context.asked.rendered) {
        (Value::String(prompt), None) => Received::MaybeRendered { prompt, response },
        (Value::String(prompt), Some(true)) => Received::Input(Input::Formatted(prompt + &response)),
        (Value::String(prompt), Some(false)) => Received::Input(Input::Text { prompt, response }),
        (Value::Array(messages), _) => {
            let mut messages: Vec<JsonMessage> = messages.iter().map(message).collect();
            let (role, content) = ("assistant".to_owned(), response);
            messages.push(JsonMessage { role, content, json: String::new() });
            conversation(messages, None)
        }
        _ => {
            return Err(ServiceError::field("prompt", "is neither a text nor a list of messages"));
        }
    };
    let write =
        |scored: &Scored| scores(scored).next().map_or(Value::Null, |score| Activation::Raw.of(score));
    context.understand(vec![input], "response", write)
}

#[derive(Deserialize)]
struct Evaluation {
    model: Option<String>,
    messages: Texts,
    max_length: Option<i64>,
}

/// LLaMA-Factory's.
pub(super) fn evaluation(
    bytes: &[u8],
    mut context: Context,
    _room: &mut Room,
) -> Result<Understood, ServiceError> {
    let body: Evaluation = parse(bytes)?;
    context.at_most(body.max_length, "max_length");
    context.truncate(body.max_length.map(|_| true), "truncation", None);
    context.model(body.model);
    let request_id = context.asked.request_id.clone();
    context.understand(formatted(body.messages), "messages", move |scored| {
        json!({
            "id": id("scoreval", &request_id),
            "object": "score.evaluation",
            "model": model(scored),
            "scores": rewards(scored),
        })
    })
}
