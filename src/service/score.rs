//! One request, from the wire and back: `Score`, and what `ScoreStream` shares with it.
//!
//! ```text
//! proto → check → route → tokenize → queue, batch, forward → results in the order of the samples
//! ```

use std::sync::Arc;
use std::time::Instant as Clock;

use prost::Message;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tonic::Code;

use crate::engine::Call;
use crate::engine::EngineError;
use crate::engine::SampleError;
use crate::metrics;
use crate::metrics::Method;
use crate::metrics::Rejection;
use crate::model::scorer::Reward;
use crate::ops::batch::Sequence;
use crate::proto;
use crate::service::budget::Room;
use crate::service::inbound;
use crate::service::models::ServedVariant;
use crate::service::request;
use crate::service::request::Request;
use crate::service::request::Target;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::service::status::brief;
use crate::service::tokenize::TokenizeError;

/// Answers one request that was read, or could not be: the whole way, counted and logged once, whatever
/// happens. Dropping the future withdraws what the model has not begun. The answer has the room that it needs.
pub(super) async fn answer(
    state: &State,
    method: Method,
    read: Result<inbound::Admitted, ServiceError>,
    deadline: Option<Instant>,
) -> Result<(proto::ScoreResponse, Room), ServiceError> {
    let mut record =
        Record { method, variant: String::new(), started: Clock::now(), deadline, code: Code::Cancelled };
    let result = match read.and_then(|(request, room)| Ok((admit(state, request)?, room))) {
        Ok((admitted, mut room)) => {
            record.variant.clone_from(&admitted.served.info.name);
            let scored = before(deadline, score(state, admitted, deadline)).await;
            scored.map(|response| {
                room.shrink_to(response.encoded_len());
                (response, room)
            })
        }
        Err(error) => Err(error),
    };
    record.code = match &result {
        Ok(_) => Code::Ok,
        Err(error) => error.code(),
    };
    if let Err(error) = &result {
        if let Some(reason) = rejection(error) {
            metrics::request_rejected(reason);
        }
        tracing::debug!(%error, "request failed");
    }
    result
}

/// A request that found its variant.
struct Admitted {
    request: Request,
    served: Arc<ServedVariant>,
}

fn admit(state: &State, request: proto::ScoreRequest) -> Result<Admitted, ServiceError> {
    let serving = state.serving()?;
    let request = request::check(request, state.limits.max_samples_per_request)?;
    let name = match &request.target {
        Target::Variant(name) => name,
        Target::Routed(key) => serving.routing.choose(key),
    };
    let Some(served) = serving.variants.get(name).cloned() else {
        let names: Vec<&str> = serving.variants.keys().map(String::as_str).collect();
        return Err(ServiceError::UnknownVariant { known: names.join(", ") });
    };
    if let Some(expected) = &request.expected_fingerprint
        && *expected != served.info.fingerprint
    {
        return Err(ServiceError::WrongFingerprint {
            variant: served.info.name.clone(),
            actual: served.info.fingerprint.clone(),
            expected: expected.clone(),
        });
    }
    metrics::request_received(&served.info.name, request.inputs.len());
    Ok(Admitted { request, served })
}

async fn score(
    state: &State,
    admitted: Admitted,
    deadline: Option<Instant>,
) -> Result<proto::ScoreResponse, ServiceError> {
    let Admitted { request, served } = admitted;
    let variant = &served.info.name;

    let started = Clock::now();
    let tokenized =
        state.tokenizers.tokenize(served.tokenizer.clone(), request.inputs, request.truncation).await;
    let tokenize = started.elapsed();
    metrics::request_tokenized(variant, tokenize);

    // The samples that have tokens go to the model; the others wait here with their errors.
    let mut sequences = Vec::with_capacity(tokenized.len());
    let mut double_bos = 0;
    let samples: Vec<Result<SampleTokens, TokenizeError>> = tokenized
        .into_iter()
        .map(|outcome| {
            outcome.map(|sample| {
                let tokens =
                    SampleTokens { tokens: sample.token_ids.len(), truncated: sample.truncated_tokens };
                double_bos += usize::from(sample.double_bos);
                sequences.push(Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids });
                tokens
            })
        })
        .collect();
    metrics::samples_invalid(variant, samples.len() - sequences.len());
    metrics::samples_truncated(
        variant,
        samples.iter().flatten().filter(|sample| sample.truncated > 0).count(),
    );
    metrics::double_bos_seen(variant, double_bos);

    // No sequences, no wait: the call is still OK.
    let scored = served.lane.score(sequences, Call { priority: request.priority, deadline }).await?;

    let mut outcomes = scored.outcomes.into_iter();
    let results = request.sample_ids.into_iter().zip(samples).map(|(id, sample)| {
        let outcome = match sample {
            Ok(tokens) => match outcomes.next() {
                Some(Ok(reward)) => Ok(score_of(reward, tokens, request.return_members)),
                Some(Err(error)) => Err(sample_error(Code::Internal, &error)),
                // The engine owes an outcome for each sequence; a missing reward must not shift the others.
                None => Err(sample_error(Code::Internal, &SampleError::ForwardFailed)),
            },
            Err(error @ TokenizeError::Text(_)) => Err(sample_error(Code::InvalidArgument, &error)),
            Err(error @ TokenizeError::Panicked) => Err(sample_error(Code::Internal, &error)),
        };
        let outcome = match outcome {
            Ok(score) => proto::sample_result::Outcome::Score(score),
            Err(error) => proto::sample_result::Outcome::Error(error),
        };
        proto::SampleResult { id, outcome: Some(outcome) }
    });
    Ok(proto::ScoreResponse {
        request_id: request.request_id,
        results: results.collect(),
        variant: variant.clone(),
        fingerprint: served.info.fingerprint.clone(),
        timing: Some(proto::Timing {
            tokenize_seconds: tokenize.as_secs_f64(),
            queue_seconds: scored.queue.as_secs_f64(),
            compute_seconds: scored.compute.as_secs_f64(),
        }),
        error: None,
    })
}

/// What is told of a sample's tokens once they are with the model.
struct SampleTokens {
    tokens: usize,
    truncated: usize,
}

fn score_of(reward: Reward, tokens: SampleTokens, return_members: bool) -> proto::Score {
    proto::Score {
        reward: reward.reward,
        member_rewards: if return_members { reward.member_rewards } else { Vec::new() },
        reward_std: reward.reward_std,
        tokens: proto::count(tokens.tokens),
        truncated_tokens: proto::count(tokens.truncated),
    }
}

fn sample_error(code: Code, error: &dyn std::error::Error) -> proto::Error {
    proto::Error {
        code: code as i32,
        message: brief(&error.to_string()).into_owned(),
        retry_after_seconds: None,
    }
}

/// Ends with [`ServiceError::DeadlineExceeded`] at the deadline, wherever the work is then.
pub(super) async fn before<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.unwrap_or(Err(ServiceError::DeadlineExceeded)),
        None => work.await,
    }
}

/// Counts a request when it is dropped: also one whose caller left half-way.
struct Record {
    method: Method,
    /// Empty until one is chosen.
    variant: String,
    started: Clock,
    deadline: Option<Instant>,
    code: Code,
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { method, variant, started, deadline, code } = self;
        let elapsed = started.elapsed();
        let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
        let code = match *code {
            // Half-way down a panic this is not the caller's doing.
            _ if std::thread::panicking() => Code::Internal,
            // Who leaves at the deadline does not change his mind.
            Code::Cancelled if is_late => Code::DeadlineExceeded,
            code => code,
        };
        metrics::request_finished(*method, code as i32, variant, elapsed);
        tracing::debug!(variant, ?code, seconds = elapsed.as_secs_f64(), "request finished");
    }
}

/// What the metrics call a refusal; none for what the engine counts itself, and for what was not refused.
fn rejection(error: &ServiceError) -> Option<Rejection> {
    match error {
        ServiceError::BadRequest(_)
        | ServiceError::TooLarge { .. }
        | ServiceError::Malformed(_)
        | ServiceError::Undecodable { .. }
        | ServiceError::UnknownEncoding { .. } => Some(Rejection::InvalidArgument),
        ServiceError::UnknownVariant { .. } => Some(Rejection::UnknownVariant),
        ServiceError::WrongFingerprint { .. } => Some(Rejection::FingerprintMismatch),
        ServiceError::Loading => Some(Rejection::Loading),
        ServiceError::Draining => Some(Rejection::Draining),
        ServiceError::TooMuchInFlight { .. } => Some(Rejection::QueueFull),
        ServiceError::Engine(
            EngineError::TooLarge { .. }
            | EngineError::QueueFull { .. }
            | EngineError::WouldExpire { .. }
            | EngineError::DeadlineExceeded
            | EngineError::Draining
            | EngineError::DeviceLost,
        )
        | ServiceError::DeadlineExceeded
        | ServiceError::Stalled { .. }
        | ServiceError::CallerLeft
        | ServiceError::ReloadUnderWay
        | ServiceError::ReloadFailed(_)
        | ServiceError::NothingServes(_)
        | ServiceError::Panicked => None,
    }
}
