//! One request, whichever door it came through.
//!
//! ```text
//! request → route → tokenize → queue, batch, forward → results in the order of the samples
//! ```

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant as Clock;

use tokio::time::Instant;
use tokio::time::timeout_at;
use tonic::Code;

use crate::engine::Call;
use crate::engine::EngineError;
use crate::engine::Outcome;
use crate::engine::SampleError;
use crate::metrics;
use crate::metrics::Method;
use crate::metrics::Rejection;
use crate::metrics::drift;
use crate::model::scorer::Reward;
use crate::ops::batch::Sequence;
use crate::service::access::Share;
use crate::service::budget::Room;
use crate::service::ended::Ended;
use crate::service::ended::Facts;
use crate::service::models::ServedVariant;
use crate::service::models::Serving;
use crate::service::origin::Origin;
use crate::service::request::Options;
use crate::service::request::Request;
use crate::service::request::Target;
use crate::service::shadow::Shadow;
use crate::service::state::State;
use crate::service::status::FailedSample;
use crate::service::status::ServiceError;
use crate::service::status::brief;
use crate::service::tokenize::TokenizeError;
use crate::service::witness::Witness;

/// What became of a request that was served.
pub(super) struct Scored {
    /// Who scored.
    pub(super) served: Arc<ServedVariant>,
    /// One per sample, in their order.
    pub(super) results: Vec<Result<Score, SampleFailure>>,
    pub(super) timing: Timing,
}

impl Scored {
    /// Fails if a sample has no score; `field` is what the door calls their list.
    fn all(&self, field: &str) -> Result<(), ServiceError> {
        let failed = self.results.iter().enumerate().filter_map(|(index, result)| {
            let SampleFailure { code, message } = result.as_ref().err()?;
            let name = match self.results.len() {
                1 => field.to_owned(),
                _ => format!("{field}[{index}]"),
            };
            Some(FailedSample { name, index, code: *code, problem: message.clone() })
        });
        let failed: Vec<FailedSample> = failed.collect();
        if failed.is_empty() { Ok(()) } else { Err(ServiceError::SamplesFailed(failed)) }
    }
}

/// A reward, and what it was computed from.
pub(super) struct Score {
    /// Finite.
    pub(super) reward: f32,
    /// Empty unless asked for.
    pub(super) member_rewards: Vec<f32>,
    /// Of an ensemble.
    pub(super) reward_std: Option<f32>,
    pub(super) tokens: usize,
    pub(super) truncated_tokens: usize,
}

/// Why one sample has no score; its neighbours have theirs.
#[derive(Debug)]
pub(super) struct SampleFailure {
    /// INVALID_ARGUMENT where the sample is to blame, INTERNAL where the model is.
    pub(super) code: Code,
    pub(super) message: String,
}

/// Where the time of a request went.
pub(super) struct Timing {
    /// Rendering and tokenizing all samples.
    pub(super) tokenize: Duration,
    /// Until the last sample's batch started, and while it stood still for others.
    pub(super) queue: Duration,
    /// The batches that the samples were in.
    pub(super) compute: Duration,
}

/// Answers one request that was read, or could not be: the whole way, counted and logged once, whatever
/// happens. Dropping the future withdraws what the model has not begun. The answer keeps the request's room until its
/// door says what it needs.
pub(super) async fn answer(
    state: &State,
    method: Method,
    read: Result<(Request, Room), ServiceError>,
    deadline: Option<Instant>,
    origin: Origin,
) -> Result<(Scored, Room), ServiceError> {
    let facts = Facts { read: Some(origin.arrived.elapsed()), ..Facts::default() };
    let mut record = Record {
        method,
        served: None,
        started: Clock::now(),
        deadline,
        code: Code::Cancelled,
        facts,
        origin,
        witness: Some(state.witness.clone()).filter(|witness| !witness.is_idle()),
    };
    let result = match read.and_then(|(mut request, mut room)| {
        if let Some(share) = room.share() {
            request.options.priority = share.priority(request.options.priority);
        }
        Ok((find(state, &request)?, request, room))
    }) {
        Ok((found, request, mut room)) => {
            record.served = Some(found.served.clone());
            let whole = request.options.all_or_none;
            let scored =
                before(deadline, score(state, found, request, (room.share(), &mut record.facts), deadline))
                    .await;
            scored.and_then(|scored| whole.map_or(Ok(()), |field| scored.all(field)).map(|()| (scored, room)))
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

/// Who scores a request.
struct Found {
    served: Arc<ServedVariant>,
    /// Who scores it again, if it is in the sample.
    shadow: Option<Arc<ServedVariant>>,
}

/// The variant that shall score, and the one that shadows it.
fn find(state: &State, request: &Request) -> Result<Found, ServiceError> {
    let serving = state.serving()?;
    let served = served(&serving, request)?;
    metrics::request_received(&served.info.name, request.inputs.len());
    let shadow = serving.routing.shadow_of(&served.info.name, &request.target.key);
    let shadow = shadow.and_then(|shadow| serving.variants.get(shadow)).cloned();
    Ok(Found { served, shadow })
}

/// The variant that a request asks for, or that routing finds for it.
pub(super) fn served(serving: &Serving, request: &Request) -> Result<Arc<ServedVariant>, ServiceError> {
    let Target { variant, key } = &request.target;
    let pinned = request.options.expected_fingerprint.as_deref();
    let name = variant.as_deref().unwrap_or_else(|| routed(serving, key, pinned));
    let Some(served) = serving.variants.get(name).cloned() else {
        let names: Vec<&str> = serving.variants.keys().map(String::as_str).collect();
        return Err(ServiceError::UnknownVariant { known: names.join(", ") });
    };
    if let Some(expected) = &request.options.expected_fingerprint
        && *expected != served.info.fingerprint
    {
        return Err(ServiceError::WrongFingerprint {
            variant: served.info.name.clone(),
            actual: served.info.fingerprint.clone(),
            expected: expected.clone(),
        });
    }
    Ok(served)
}

/// The variant that routing finds for `key`; but a caller who has pinned a fingerprint stays with the variant that has it,
/// wherever weights move his key.
fn routed<'a>(serving: &'a Serving, key: &[u8], pinned: Option<&str>) -> &'a str {
    let chosen = serving.routing.choose(key);
    let Some(pinned) = pinned else { return chosen };
    let has_it =
        |name: &str| serving.variants.get(name).is_some_and(|served| served.info.fingerprint == pinned);
    match has_it(chosen) {
        true => chosen,
        false => serving.variants.keys().find(|name| has_it(name)).map_or(chosen, String::as_str),
    }
}

async fn score(
    state: &State,
    Found { served, shadow }: Found,
    request: Request,
    (share, facts): (Option<&mut Share>, &mut Facts),
    deadline: Option<Instant>,
) -> Result<Scored, ServiceError> {
    let Request { inputs, options, .. } = request;
    let variant = &served.info.name;
    facts.samples = inputs.len();

    let started = Clock::now();
    let tokenized = {
        let Options { truncation, max_tokens, .. } = options;
        let tokenizer = served.tokenizer.clone();
        state.tokenizers.tokenize(tokenizer, inputs, truncation, max_tokens.unwrap_or(usize::MAX)).await
    };
    let tokenize = started.elapsed();
    metrics::request_tokenized(variant, tokenize);
    facts.tokenize = Some(tokenize);

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

    facts.tokens = sequences.iter().map(|sequence| sequence.token_ids.len()).sum();
    let token = share.as_ref().map(|share| share.name().clone());
    if let Some(share) = share {
        share.hold(facts.tokens)?;
    }
    // No sequences, no wait: the call is still OK.
    let call = Call { priority: options.priority, deadline };
    let shadow = shadow.map(|shadow| Shadow::of(&served, shadow, &sequences));
    let scored = served.lane.score(sequences, call).await?;
    (facts.queue, facts.compute) = (Some(scored.queue), Some(scored.compute));
    facts.batch_samples = scored.batch_samples;
    watch(&served, token.as_deref().unwrap_or_default(), &samples, &scored.outcomes);
    if let Some(shadow) = shadow {
        shadow.begin(&scored.outcomes);
    }

    let mut outcomes = scored.outcomes.into_iter();
    let results = samples.into_iter().map(|sample| match sample {
        Ok(tokens) => match outcomes.next() {
            Some(Ok(reward)) => Ok(score_of(reward, tokens, options.return_members)),
            Some(Err(error)) => Err(failure(Code::Internal, &error)),
            // The engine owes an outcome for each sequence; a missing reward must not shift the others.
            None => Err(failure(Code::Internal, &SampleError::ForwardFailed)),
        },
        Err(error) => Err(untokenized(&error)),
    });
    Ok(Scored {
        results: results.collect(),
        timing: Timing { tokenize, queue: scored.queue, compute: scored.compute },
        served,
    })
}

/// Tells what drifts.
fn watch(
    served: &ServedVariant,
    token: &str,
    samples: &[Result<SampleTokens, TokenizeError>],
    outcomes: &[Outcome],
) {
    let seen = samples.iter().flatten().zip(outcomes).filter_map(|(sample, outcome)| {
        let reward = outcome.as_ref().ok()?;
        Some(drift::Seen {
            reward: reward.reward,
            tokens: sample.tokens,
            is_truncated: sample.truncated > 0,
            reward_std: reward.reward_std,
        })
    });
    let seen: Vec<drift::Seen> = seen.collect();
    drift::seen(&served.info.name, &served.info.fingerprint, token, &seen);
}

/// What is told of a sample's tokens once they are with the model.
struct SampleTokens {
    tokens: usize,
    truncated: usize,
}

fn score_of(reward: Reward, tokens: SampleTokens, return_members: bool) -> Score {
    Score {
        reward: reward.reward,
        member_rewards: if return_members { reward.member_rewards } else { Vec::new() },
        reward_std: reward.reward_std,
        tokens: tokens.tokens,
        truncated_tokens: tokens.truncated,
    }
}

/// Of a sample without tokens.
pub(super) fn untokenized(error: &TokenizeError) -> SampleFailure {
    match error {
        TokenizeError::Text(_) => failure(Code::InvalidArgument, error),
        TokenizeError::Panicked => failure(Code::Internal, error),
    }
}

fn failure(code: Code, error: &dyn std::error::Error) -> SampleFailure {
    SampleFailure { code, message: brief(&error.to_string()).into_owned() }
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
    /// None until a variant is chosen.
    served: Option<Arc<ServedVariant>>,
    started: Clock,
    deadline: Option<Instant>,
    code: Code,
    facts: Facts,
    origin: Origin,
    /// None where nobody is told.
    witness: Option<Arc<Witness>>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { method, served, started, deadline, code, facts, origin, witness } = self;
        let (variant, fingerprint) =
            served.as_ref().map_or(("", ""), |served| (&served.info.name, &served.info.fingerprint));
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
        if let Some(token) = &origin.token {
            let answered = if code == Code::Ok { facts.samples } else { 0 };
            metrics::token_request_finished(token, code as i32, answered);
        }
        tracing::debug!(variant, ?code, seconds = elapsed.as_secs_f64(), "request finished");
        if let Some(witness) = witness {
            let (token, elapsed) = (origin.token.as_deref().unwrap_or_default(), origin.arrived.elapsed());
            let method = *method;
            witness.tell(&Ended { origin, method, variant, fingerprint, token, code, facts, elapsed });
        }
    }
}

/// What the metrics call a refusal; none for what the engine counts itself, and for what was not refused.
fn rejection(error: &ServiceError) -> Option<Rejection> {
    match error {
        ServiceError::BadRequest(_)
        | ServiceError::UnknownContentType { .. }
        | ServiceError::TooLarge { .. }
        | ServiceError::Malformed(_)
        | ServiceError::Undecodable { .. }
        | ServiceError::UnknownEncoding { .. } => Some(Rejection::InvalidArgument),
        ServiceError::UnknownVariant { .. } | ServiceError::UnknownModel { .. } => {
            Some(Rejection::UnknownVariant)
        }
        ServiceError::WrongFingerprint { .. } => Some(Rejection::FingerprintMismatch),
        ServiceError::TokenLimit { .. } | ServiceError::TokenLimitTooSmall { .. } => {
            Some(Rejection::TokenLimit)
        }
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
        | ServiceError::Unauthenticated { .. }
        | ServiceError::Forbidden { .. }
        | ServiceError::SamplesFailed(_)
        | ServiceError::OtherWeights { .. }
        | ServiceError::ReloadUnderWay
        | ServiceError::ReloadFailed(_)
        | ServiceError::NothingServes(_)
        | ServiceError::Panicked => None,
    }
}
