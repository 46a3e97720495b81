//! `/rewarm/v1/tokens`: what a model reads of samples, with the body of `/rewarm/v1/score`: for whoever wonders about a
//! chat template, a doubled token or a cut. Nothing is scored.

use std::sync::Arc;

use axum::body::Body;
use http::Response;
use http::request::Parts;
use serde_json::Value;
use serde_json::json;

use crate::metrics::code_name;
use crate::service::budget::Room;
use crate::service::http::answer;
use crate::service::http::options::Asked;
use crate::service::http::own;
use crate::service::http::understand;
use crate::service::models::ServedVariant;
use crate::service::request::Options;
use crate::service::request::Request;
use crate::service::score;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// Answers a request.
pub(super) async fn tokens(
    state: &Arc<State>,
    head: Parts,
    body: Body,
) -> Result<Response<Body>, ServiceError> {
    let asked = Asked::read(&head);
    let deadline = asked.as_ref().ok().and_then(|asked| asked.deadline);
    let work = async {
        let (understood, room) = understand(state, own::score, asked, &head, body).await?;
        let serving = state.serving()?;
        let served = score::served(&serving, &understood.request)?;
        state.run(|state| answered(state, served, understood.request, room)).await
    };
    score::before(deadline, work).await
}

async fn answered(
    state: Arc<State>,
    served: Arc<ServedVariant>,
    request: Request,
    mut room: Room,
) -> Result<Response<Body>, ServiceError> {
    let Options { truncation, max_tokens, .. } = request.options;
    let tokenizer = &served.tokenizer;
    let most = max_tokens.unwrap_or(usize::MAX);
    let outcomes = state.tokenizers.tokenize(tokenizer.clone(), request.inputs, truncation, most).await;
    let told = outcomes.into_iter().map(|outcome| match outcome {
        Ok(sample) => json!({
            "rendered": tokenizer.rendered(&sample.token_ids),
            "tokens": sample.token_ids.iter().map(|id| tokenizer.token(*id)).collect::<Vec<_>>(),
            "token_ids": sample.token_ids,
            "truncated_tokens": sample.truncated_tokens,
        }),
        Err(error) => {
            let failure = score::untokenized(&error);
            json!({"error": {"code": code_name(failure.code as i32), "message": failure.message}})
        }
    });
    let results: Value = told.collect();
    let info = &served.info;
    let answer = json!({"results": results, "variant": info.name, "fingerprint": info.fingerprint});
    let bytes = answer.to_string();
    room.grow_to(bytes.len())?;
    room.shrink_to(bytes.len());
    Ok(answer::bytes(answer::JSON, bytes.into(), room))
}
