//! `RewardService`: what the callers on the main port ask.

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tracing::Instrument;

use crate::metrics;
use crate::metrics::Method;
use crate::model::variant::MemberInfo;
use crate::model::variant::VariantInfo;
use crate::proto;
use crate::proto::reward_service_server::RewardService;
use crate::service::call;
use crate::service::models::Serving;
use crate::service::score;
use crate::service::state::State;
use crate::service::stream;

/// The handlers; all they know is in [`State`].
pub(super) struct Reward(pub(super) Arc<State>);

#[tonic::async_trait]
impl RewardService for Reward {
    async fn score(
        &self,
        request: Request<proto::ScoreRequest>,
    ) -> Result<Response<proto::ScoreResponse>, Status> {
        let span = call::span(Method::Score.as_str(), request.metadata());
        let deadline = call::deadline_of(&request);
        let request = request.into_inner();
        let answer =
            |state: Arc<State>| async move { score::answer(&state, Method::Score, request, deadline).await };
        let response = self.0.run(answer).instrument(span).await?;
        Ok(Response::new(response))
    }

    type ScoreStreamStream = stream::Outbox;

    async fn score_stream(
        &self,
        request: Request<Streaming<proto::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let span = call::span(Method::ScoreStream.as_str(), request.metadata());
        let deadline = call::deadline_of(&request);
        self.0.serving()?;
        let outbox = span.in_scope(|| stream::serve(self.0.clone(), request.into_inner(), deadline));
        Ok(Response::new(outbox))
    }

    async fn get_server_info(
        &self,
        _request: Request<proto::GetServerInfoRequest>,
    ) -> Result<Response<proto::GetServerInfoResponse>, Status> {
        let started = std::time::Instant::now();
        let result = self.0.serving();
        let code = result.as_ref().err().map_or(tonic::Code::Ok, |error| error.code());
        metrics::request_finished(Method::GetServerInfo, code as i32, "", started.elapsed());
        let serving = result?;
        Ok(Response::new(proto::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            variants: variants(&serving),
            routing: Some(routing(&serving)),
            max_samples_per_request: self.0.limits.max_samples_per_request as u32,
        }))
    }
}

/// What serves, by name.
pub(super) fn variants(serving: &Serving) -> Vec<proto::VariantInfo> {
    serving.infos().map(variant).collect()
}

/// How requests without a variant are spread.
pub(super) fn routing(serving: &Serving) -> proto::Routing {
    proto::Routing { weights: serving.routing.weights().clone().into_iter().collect() }
}

fn variant(info: &VariantInfo) -> proto::VariantInfo {
    proto::VariantInfo {
        name: info.name.clone(),
        mode: info.mode.name().to_owned(),
        members: info.members.iter().map(member).collect(),
        reduction: info.reduction.clone(),
        dtype: info.dtype.to_owned(),
        device: info.device.clone(),
        max_tokens: info.max_tokens as u32,
        fingerprint: info.fingerprint.clone(),
        architecture: info.architecture.clone(),
        pooling: info.pooling.to_owned(),
    }
}

fn member(info: &MemberInfo) -> proto::MemberInfo {
    proto::MemberInfo {
        path: info.path.clone(),
        coefficient: info.coefficient,
        digest: info.digest.clone(),
        calibration: info
            .calibration
            .map(|calibration| proto::Calibration { mean: calibration.mean, std: calibration.std }),
    }
}
