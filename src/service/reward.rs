//! `RewardService`: what the callers on the main port ask.
//!
//! A service of our own instead of the generated one: the messages of `Score` and `ScoreStream` are read and
//! written by [`inbound`](super::inbound) and [`outbound`], which know what they cost.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http::Request;
use http::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::StdError;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::server::UnaryService;
use tonic_prost::ProstCodec;
use tower_service::Service;
use tracing::Instrument;

use crate::metrics;
use crate::metrics::Method;
use crate::model::device::Device;
use crate::model::variant::MemberInfo;
use crate::model::variant::VariantInfo;
use crate::proto;
use crate::proto::reward_service_server::SERVICE_NAME;
use crate::service::call;
use crate::service::inbound::Inbound;
use crate::service::inbound::Shape;
use crate::service::models::Serving;
use crate::service::outbound;
use crate::service::score;
use crate::service::state::State;
use crate::service::stream;
use crate::text::TextRule;

/// The handlers; all they know is in [`State`].
#[derive(Clone)]
pub(super) struct Reward(pub(super) Arc<State>);

impl NamedService for Reward {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<Request<B>> for Reward
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self(state) = self.clone();
        let method = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME));
        match method {
            Some("/Score") => Box::pin(async { Ok(score(state, request.map(Body::new)).await) }),
            Some("/ScoreStream") => Box::pin(ready(Ok(score_stream(state, request.map(Body::new))))),
            Some("/GetServerInfo") => {
                let mut grpc = Grpc::new(ProstCodec::default());
                Box::pin(async move { Ok(grpc.unary(ServerInfo(state), request).await) })
            }
            _ => Box::pin(ready(Ok(Status::unimplemented("RewardService has no such method").into_http()))),
        }
    }
}

async fn score(state: Arc<State>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let span = call::span(Method::Score.as_str(), &head.headers);
    let deadline = call::deadline_of(&head.extensions);
    let read = async {
        // Who cannot be served need not be listened to.
        state.serving()?;
        Inbound::new(Shape::Unary, &head.headers, body, state.limits, state.budget.clone())?.only().await
    };
    let read = score::before(deadline, read).await;
    let answer =
        |state: Arc<State>| async move { score::answer(&state, Method::Score, read, deadline).await };
    match state.run(answer).instrument(span).await {
        Ok((response, room)) => {
            let held: outbound::Held<()> = (Some(room), ());
            outbound::response(tokio_stream::once(Ok((response, held))))
        }
        Err(error) => Status::from(error).into_http(),
    }
}

fn score_stream(state: Arc<State>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let span = call::span(Method::ScoreStream.as_str(), &head.headers);
    let deadline = call::deadline_of(&head.extensions);
    let inbound = state
        .serving()
        .and_then(|_| Inbound::new(Shape::Stream, &head.headers, body, state.limits, state.budget.clone()));
    match inbound {
        Ok(inbound) => outbound::response(span.in_scope(|| stream::serve(state, inbound, deadline))),
        Err(error) => Status::from(error).into_http(),
    }
}

struct ServerInfo(Arc<State>);

impl UnaryService<proto::GetServerInfoRequest> for ServerInfo {
    type Response = proto::GetServerInfoResponse;
    type Future = std::future::Ready<Result<tonic::Response<Self::Response>, Status>>;

    fn call(&mut self, _request: tonic::Request<proto::GetServerInfoRequest>) -> Self::Future {
        let started = std::time::Instant::now();
        let result = self.0.serving();
        let code = result.as_ref().err().map_or(tonic::Code::Ok, |error| error.code());
        metrics::request_finished(Method::GetServerInfo, code as i32, "", started.elapsed());
        let info = result.map(|serving| proto::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            variants: variants(&serving),
            routing: Some(routing(&serving)),
            max_samples_per_request: proto::count(self.0.limits.max_samples_per_request),
        });
        ready(info.map(tonic::Response::new).map_err(Status::from))
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
        reduction: info.reduction_name(),
        dtype: info.dtype.name().to_owned(),
        device: info.placement.to_string(),
        max_tokens: proto::count(info.max_tokens),
        fingerprint: info.fingerprint.clone(),
        architecture: info.architecture.clone(),
        pooling: info.pooling.name().to_owned(),
        text_rule: TextRule::name_of(info.text_rule).to_owned(),
        notes: info.notes.clone(),
        devices: info.placement.devices.iter().zip(&info.placement.left).map(device).collect(),
    }
}

fn device((device, left): (&Device, &Option<u64>)) -> proto::Device {
    proto::Device {
        name: device.name(),
        model: device.card().map(|card| card.name.clone()).unwrap_or_default(),
        memory_bytes: device.card().map_or(0, |card| card.memory),
        memory_left_bytes: left.unwrap_or(0),
    }
}

fn member(info: &MemberInfo) -> proto::MemberInfo {
    proto::MemberInfo {
        path: info.path.clone(),
        source: info.source.clone().unwrap_or_default(),
        coefficient: info.coefficient,
        digest: info.digest.clone(),
        calibration: info
            .calibration
            .map(|calibration| proto::Calibration { mean: calibration.mean, std: calibration.std }),
    }
}
