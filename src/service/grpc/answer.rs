//! A `ScoreRequest`, answered: what `Score` and `ScoreStream` share.

use prost::Message;
use tokio::time::Instant;

use crate::metrics::Method;
use crate::proto;
use crate::service::budget::Room;
use crate::service::grpc::inbound::Admitted;
use crate::service::grpc::request::Names;
use crate::service::grpc::request::check;
use crate::service::origin::Origin;
use crate::service::score;
use crate::service::score::SampleFailure;
use crate::service::score::Score;
use crate::service::score::Scored;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// Answers a message that was read, or could not be. The answer has the room that it needs.
pub(super) async fn answer(
    state: &State,
    method: Method,
    read: Result<Admitted<proto::ScoreRequest>, ServiceError>,
    deadline: Option<Instant>,
    origin: Origin,
) -> Result<(proto::ScoreResponse, Room), ServiceError> {
    let mut names = None;
    let request = read.and_then(|(message, room)| {
        // Who cannot be served is told so first.
        state.serving()?;
        let (request, its_names) = check(message, state.limits.max_samples_per_request, false)?;
        names = Some(its_names);
        Ok((request, room))
    });
    let (scored, mut room) = score::answer(state, method, request, deadline, origin).await?;
    let response = response(scored, names.expect("what was served was checked"));
    room.shrink_to(response.encoded_len());
    Ok((response, room))
}

fn response(scored: Scored, names: Names) -> proto::ScoreResponse {
    let Scored { served, results, timing } = scored;
    let results = names.samples.into_iter().zip(results).map(|(id, result)| {
        let outcome = match result {
            Ok(score) => proto::sample_result::Outcome::Score(score_of(score)),
            Err(failure) => proto::sample_result::Outcome::Error(error_of(failure)),
        };
        proto::SampleResult { id, outcome: Some(outcome) }
    });
    proto::ScoreResponse {
        request_id: names.request,
        results: results.collect(),
        variant: served.info.name.clone(),
        fingerprint: served.info.fingerprint.clone(),
        timing: Some(proto::Timing {
            tokenize_seconds: timing.tokenize.as_secs_f64(),
            queue_seconds: timing.queue.as_secs_f64(),
            compute_seconds: timing.compute.as_secs_f64(),
        }),
        error: None,
    }
}

fn score_of(score: Score) -> proto::Score {
    proto::Score {
        reward: score.reward,
        member_rewards: score.member_rewards,
        reward_std: score.reward_std,
        tokens: proto::count(score.tokens),
        truncated_tokens: proto::count(score.truncated_tokens),
    }
}

fn error_of(failure: SampleFailure) -> proto::Error {
    proto::Error { code: failure.code as i32, message: failure.message, retry_after_seconds: None }
}
