//! A query with documents, one reward each: vLLM's `/score` and `/rerank`, TEI's `/rerank`.
//!
//! A pair is a prompt and a response, and becomes one sequence by the model's text rule, as `text` does over gRPC: a
//! sentence pair for encoders, two turns where there is a chat template; where nothing says how the model was trained on
//! two texts, the sample is refused.
//!
//! `/rerank` is both servers': `documents` is vLLM's (and Cohere's, Jina's), `texts` TEI's.

use serde_json::Value;
use serde_json::json;

use crate::service::budget::Room;
use crate::service::http::classify::usage;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Understood;
use crate::service::http::dialect::created;
use crate::service::http::dialect::id;
use crate::service::http::dialect::model;
use crate::service::http::dialect::scores;
use crate::service::http::fields::Fields;
use crate::service::http::json::Texts;
use crate::service::http::json::parse;
use crate::service::request::Received;
use crate::service::score::Scored;
use crate::service::status::ServiceError;
use crate::text::Input;

/// `/score`, `/v1/score`.
pub(super) fn score(bytes: &[u8], mut context: Context, room: &mut Room) -> Result<Understood, ServiceError> {
    let mut body: Fields = parse(bytes)?;
    let activation = body.vllm(&mut context);
    let queries = (body.queries.take(), "queries");
    let [documents, items] = [(body.documents.take(), "documents"), (body.items.take(), "items")];
    let second = if documents.0.is_some() { documents } else { items };
    let pairs = [
        [queries, second],
        [(body.data_1.take(), "data_1"), (body.data_2.take(), "data_2")],
        [(body.text_1.take(), "text_1"), (body.text_2.take(), "text_2")],
    ];
    let mut given = pairs.into_iter().filter_map(|[first, second]| match (first, second) {
        ((Some(first), name), (Some(second), field)) => Some((first, name, second, field)),
        _ => None,
    });
    let Some((first, name, second, field)) = given.next() else {
        return Err(ServiceError::field(
            "body",
            "has no pair of lists: send `queries` and `documents` (or `items`), `data_1` and `data_2`, or `text_1` and `text_2`",
        ));
    };
    if given.next().is_some() {
        return Err(ServiceError::field("body", "has several pairs of lists: send one"));
    }
    let (count, others) = (first.texts.len(), second.texts.len());
    context.refuse(
        count != others && (count != 1 || !second.is_list),
        name,
        &format!("has {count} texts, and `{field}` {others}: send one of the former, or as many"),
    );
    let request_id = context.asked.request_id.clone();
    let inputs = pairs_of(first, second, &context, room)?;
    context.understand(inputs, field, move |scored| {
        let one = |(index, score)| json!({"index": index, "object": "score", "score": activation.of(score)});
        json!({
            "id": id("score", &request_id),
            "object": "list",
            "created": created(),
            "model": model(scored),
            "data": scores(scored).enumerate().map(one).collect::<Value>(),
            "usage": usage(scored),
        })
    })
}

/// `/rerank`, `/v1/rerank`, `/v2/rerank`.
pub(super) fn rerank(
    bytes: &[u8],
    mut context: Context,
    room: &mut Room,
) -> Result<Understood, ServiceError> {
    let mut body: Fields = parse(bytes)?;
    let query = body.query.take().ok_or_else(|| ServiceError::field("query", "is not set"))?;
    let query = Texts { texts: vec![query], is_list: false };
    match (body.documents.take(), body.texts.take()) {
        (Some(documents), None) => vllm(body, query, documents, context, room),
        (None, Some(texts)) => {
            let activation = body.tei(&mut context);
            let is_echoed = body.return_text == Some(true);
            let echo = echoed(&texts, is_echoed, room)?;
            let inputs = pairs_of(query, texts, &context, room)?;
            context.understand(inputs, "texts", move |scored| {
                let rank = |index: usize| {
                    let score = activation.of(nth(scored, index));
                    match echo.get(index) {
                        Some(text) => json!({"index": index, "text": text, "score": score}),
                        None => json!({"index": index, "score": score}),
                    }
                };
                ranked(scored).into_iter().map(rank).collect()
            })
        }
        (None, None) => Err(ServiceError::field(
            "body",
            "has neither `documents`, which clients of vLLM, Cohere and Jina send, nor `texts`, which TEI's do",
        )),
        (Some(_), Some(_)) => {
            Err(ServiceError::field("body", "has fields of two dialects: send `documents` or `texts`"))
        }
    }
}

fn vllm(
    mut body: Fields,
    query: Texts,
    documents: Texts,
    mut context: Context,
    room: &mut Room,
) -> Result<Understood, ServiceError> {
    let activation = body.vllm(&mut context);
    let echo = echoed(&documents, body.return_documents != Some(false), room)?;
    let top = body.top_n.filter(|top| *top > 0).unwrap_or(usize::MAX);
    let inputs = pairs_of(query, documents, &context, room)?;
    let request_id = context.asked.request_id.clone();
    context.understand(inputs, "documents", move |scored| {
        let result = |index: usize| {
            let score = activation.of(nth(scored, index));
            match echo.get(index) {
                Some(text) => json!({"index": index, "document": {"text": text}, "relevance_score": score}),
                None => json!({"index": index, "relevance_score": score}),
            }
        };
        json!({
            "id": id("rerank", &request_id),
            "model": model(scored),
            "usage": usage(scored),
            "results": ranked(scored).into_iter().take(top).map(result).collect::<Value>(),
        })
    })
}

/// One sample for each of `second`; where `first` is one text, it goes with all of them, and takes room each time.
fn pairs_of(
    first: Texts,
    second: Texts,
    context: &Context,
    room: &mut Room,
) -> Result<Vec<Received>, ServiceError> {
    if let [prompt] = &first.texts[..] {
        let bytes = prompt.len().saturating_mul(second.texts.len());
        if bytes > context.max_bytes {
            let problem = format!(
                "{} times one text are {bytes} bytes, the limit of a request is {}: send fewer at a time",
                second.texts.len(),
                context.max_bytes
            );
            return Err(ServiceError::field("body", problem));
        }
        room.grow_by(bytes)?;
    }
    let mut prompts = first.texts.into_iter().cycle();
    let pair = |response| {
        let prompt = prompts.next().unwrap_or_default();
        Received::Input(Input::Text { prompt, response })
    };
    Ok(second.texts.into_iter().map(pair).collect())
}

/// The texts that the answer repeats.
fn echoed(texts: &Texts, is_echoed: bool, room: &mut Room) -> Result<Vec<String>, ServiceError> {
    if !is_echoed {
        return Ok(Vec::new());
    }
    room.grow_by(texts.texts.iter().map(String::len).sum())?;
    Ok(texts.texts.clone())
}

/// The samples by falling reward; equal ones in their order.
fn ranked(scored: &Scored) -> Vec<usize> {
    let mut order: Vec<(usize, f32)> = scores(scored).map(|score| score.reward).enumerate().collect();
    order.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    order.into_iter().map(|(index, _)| index).collect()
}

fn nth(scored: &Scored, index: usize) -> &crate::service::score::Score {
    scored.results[index].as_ref().unwrap_or_else(|_| unreachable!("each sample has a score"))
}
