//! The HTTP door: what trainers that speak JSON ask, each in its own dialect.
//!
//! ```text
//! body.rs: bytes, bounded ─▶ json.rs: counted, parsed ─▶ a dialect (table.rs) ─▶ score.rs, below all doors ─▶ JSON
//! options.rs: headers and query ───────────────────────────┘                                      (answer.rs)
//! ```
//!
//! | path | of | told by | special tokens added | reward |
//! | --- | --- | --- | --- | --- |
//! | `/rewarm/v1/score` | rewarm | `samples` | as over gRPC | `results[].score.reward` |
//! | `/get_reward` | OpenRLHF | `query` | never | `rewards[]` |
//! | `/classify`, `/v1/classify` | vLLM (verl) | `input` or `messages` | `add_special_tokens`, true by default | `data[].probs[0]` |
//! | `/classify`, `/v1/classify` | SGLang | `text` or `input_ids` | always | `[].embedding[0]` |
//! | `/pooling` | vLLM | `input` or `messages` | `add_special_tokens`, true by default | `data[].data[0]` |
//! | `/score`, `/v1/score` | vLLM | `queries` and `documents` or `items`; `data_1`, `data_2`; `text_1`, `text_2` | by the model's text rule | `data[].score` |
//! | `/rerank`, `/v1/rerank`, `/v2/rerank` | vLLM | `documents` | by the model's text rule | `results[].relevance_score` |
//! | `/rerank`, `/v1/rerank`, `/v2/rerank` | TEI | `texts` | by the model's text rule | `[].score` |
//! | `/v1/embeddings` | SGLang (verl) | `input` | always | `data[].embedding[0]` |
//! | `/rm` | slime | `prompt` and `response` | a rendered prompt: never; else by the model's text rule | a bare number |
//! | `/v1/score/evaluation` | LLaMA-Factory | `messages` | never | `scores[]` |
//! | `/predict`, `/` | TEI, huggingface_hub | `inputs` | always; of a pair by the model's text rule | `[][].score` |
//!
//! `/rewarm/v1/tokens` takes what `/rewarm/v1/score` takes, and tells what the model reads of it.
//!
//! Rules that hold on all:
//!
//! - A reward is the raw logit. vLLM and TEI apply an activation unless they are told not to; here one is applied only
//!   where a request asks for it by name (`use_activation: true`, `raw_scores: false`, `function_to_apply: "sigmoid"`):
//!   the sigmoid, which is what they apply to one label. A softmax of one label says nothing, and is refused.
//! - Rewards are as many as samples, in their order; only `/rerank` sorts, and has indices. An empty list has an empty
//!   answer. Where a dialect has no place for the error of a sample, one sample without a reward fails the request, which
//!   names it: never null, never 0.
//! - Full, loading and draining are 503 with `Retry-After`, never 429: trainers give up at any 4xx.
//! - "never" means that the text is taken as it is: the special tokens in it are found, and no others are added. Where
//!   they are added to a text that has them already, `rewarm_double_bos_total` counts it.
//! - "by the model's text rule": a prompt and a response become one sequence as `text` does over gRPC; `/rm` takes a
//!   prompt in which a special token of the model stands for one that is rendered (`?rendered=true` and `=false` say it).
//! - Samples that are too long are errors unless `truncation` says otherwise, or the dialect's own field does.
//! - `model` is the variant where it is the name of one and nothing else names one; else it means nothing.
//! - What is no HTTP at all (a broken head: 400; one of more than 100 fields: 431; a longer target than 64 KiB: 414) has an
//!   answer without a body, and the connection ends: the layer below answers before anybody here is asked.
//! - What a dialect does not know is ignored, since clients send much; what it knows and this server does not do is
//!   refused by name.

pub(super) mod answer;
pub(super) mod body;
pub(super) mod options;
pub(super) mod table;

mod classify;
mod dialect;
mod fields;
mod json;
mod openapi;
mod own;
mod pages;
mod pairs;
mod tei;
mod tokens;
mod trainers;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::HeaderValue;
use http::Method as Verb;
use http::Response;
use http::StatusCode;
use http::header::ALLOW;
use http::request::Parts;
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;
use tracing::Instrument;

use crate::metrics::Method;
use crate::service::call;
use crate::service::http::answer::Signature;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Read;
use crate::service::http::options::Asked;
use crate::service::http::table::Elsewhere;
use crate::service::http::table::Kind;
use crate::service::http::table::ROUTES;
use crate::service::http::table::Route;
use crate::service::origin::Origin;
use crate::service::score;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// All routes; `elsewhere` are answered by others, and told here. What is none of them is answered too.
pub(super) fn router(state: Arc<State>, elsewhere: Vec<&'static Elsewhere>) -> Router {
    let elsewhere: Arc<[&Elsewhere]> = elsewhere.into();
    Router::new().fallback(move |request: Request| {
        let (state, elsewhere) = (state.clone(), elsewhere.clone());
        async move { dispatch(&state, &elsewhere, request).await }
    })
}

async fn dispatch(state: &Arc<State>, elsewhere: &[&Elsewhere], request: Request) -> Response<Body> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let Some(route) = table::find(head.uri.path()) else {
        body::discard(state, &head.headers, body).await;
        let response = not_found(head.uri.path(), elsewhere);
        return answer::counted(Method::Unknown, Code::NotFound, begun, response);
    };
    let (method, code, response) = match (&route.kind, &head.method) {
        // counted by whoever scores
        (Kind::Score { method, read, .. }, &Verb::POST) => {
            return scored(state, *method, *read, head, body).await;
        }
        (Kind::Tokens { .. }, &Verb::POST) => match tokens::tokens(state, head, body).await {
            Ok(response) => (Method::Page, Code::Ok, response),
            Err(error) => (Method::Page, error.code(), answer::failed(&error)),
        },
        (Kind::Page { page, .. }, &Verb::GET | &Verb::HEAD) => {
            // whoever asks for health may add to the URL what he likes
            match page(state, &Asked::read(&head).unwrap_or_default()) {
                Ok(value) => (Method::Page, Code::Ok, answer::json(StatusCode::OK, &value)),
                Err(error) => (Method::Page, error.code(), answer::failed(&error)),
            }
        }
        (Kind::OpenApi, &Verb::GET | &Verb::HEAD) => {
            let document = openapi::document(elsewhere);
            (Method::Page, Code::Ok, answer::json(StatusCode::OK, &document))
        }
        (_, &Verb::OPTIONS) => {
            let response = allowing(route, StatusCode::OK, &json!({"allow": [route.verb()]}));
            (Method::Page, Code::Ok, response)
        }
        (_, verb) => {
            let error = format!("{} is not for {verb}: send {}", head.uri.path(), route.verb());
            body::discard(state, &head.headers, body).await;
            let problem = json!({"error": error, "code": "UNIMPLEMENTED"});
            let response = allowing(route, StatusCode::METHOD_NOT_ALLOWED, &problem);
            (Method::Unknown, Code::Unimplemented, response)
        }
    };
    answer::counted(method, code, begun, response)
}

/// Answers a request for rewards.
async fn scored(state: &Arc<State>, method: Method, read: Read, head: Parts, body: Body) -> Response<Body> {
    let span = call::span(method.as_str(), &head.headers);
    let origin = Origin::new(&head.headers, &head.extensions);
    let asked = Asked::read(&head);
    let deadline = asked.as_ref().ok().and_then(|asked| asked.deadline);
    let understood = score::before(deadline, understand(state, read, asked, &head, body)).await;
    let call = |state: Arc<State>| async move {
        let (mut request_id, mut write) = (String::new(), None);
        let request = understood.map(|(understood, room)| {
            request_id = understood.request_id;
            write = Some(understood.write);
            (understood.request, room)
        });
        let (scored, mut room) = score::answer(&state, method, request, deadline, origin).await?;
        let write = write.expect("what was scored was understood");
        let bytes = write(&scored).to_string();
        room.shrink_to(bytes.len());
        let mut response = answer::bytes(answer::JSON, bytes.into(), room);
        Signature::of(&scored, request_id).sign(response.headers_mut());
        Ok(response)
    };
    state.run(call).instrument(span).await.unwrap_or_else(|error| answer::failed(&error))
}

async fn understand(
    state: &Arc<State>,
    read: Read,
    asked: Result<Asked, ServiceError>,
    head: &Parts,
    body: Body,
) -> Result<(dialect::Understood, crate::service::budget::Room), ServiceError> {
    let checked = asked.and_then(|asked| {
        // Who cannot be served need not be listened to.
        let serving = state.serving()?;
        body::check_type(&head.headers, "application/json", |essence| {
            essence == "application/json"
                || (essence.starts_with("application/") && essence.ends_with("+json"))
        })?;
        Ok((asked, serving))
    });
    let ((asked, serving), bytes, room) = body::read_if(checked, state, head, body).await?;
    let (max_samples, max_bytes) = (state.limits.max_samples_per_request, state.limits.max_message_bytes);
    let variants = serving.variants.keys().cloned().collect();
    let context = Context { asked, max_samples, max_bytes, variants, violations: Default::default() };
    json::within_bounds(bytes, room, max_samples, move |bytes, room| read(bytes, context, room)).await
}

fn not_found(path: &str, elsewhere: &[&Elsewhere]) -> Response<Body> {
    let path: String = path.chars().take(100).collect();
    let here = ROUTES.iter().map(|route| (route.verb(), route.paths));
    let all = here.chain(elsewhere.iter().map(|route| (route.verb, route.paths)));
    let list: Vec<String> =
        all.flat_map(|(verb, paths)| paths.iter().map(move |path| format!("{verb} {path}"))).collect();
    let error = format!("there is no {path} here: see `paths`, and /openapi.json");
    answer::json(StatusCode::NOT_FOUND, &json!({"error": error, "code": "NOT_FOUND", "paths": list}))
}

fn allowing(route: &Route, status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = answer::json(status, body);
    let allow = match route.verb() {
        "GET" => "GET, HEAD, OPTIONS",
        _ => "POST, OPTIONS",
    };
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}
