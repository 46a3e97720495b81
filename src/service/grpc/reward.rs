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

use crate::metrics;
use crate::metrics::Method;
use crate::proto;
use crate::proto::reward_service_server::SERVICE_NAME;
use crate::service::call;
use crate::service::grpc::answer;
use crate::service::grpc::inbound::Inbound;
use crate::service::grpc::inbound::Shape;
use crate::service::grpc::info;
use crate::service::grpc::outbound;
use crate::service::grpc::stream;
use crate::service::grpc::unary::Asked;
use crate::service::grpc::unary::unary;
use crate::service::origin::Origin;
use crate::service::state::State;

/// The handlers; all they know is in [`State`].
#[derive(Clone)]
pub(in crate::service) struct Reward(pub(in crate::service) Arc<State>);

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
    let method = Method::Score;
    let answer = |state: Arc<State>, (read, deadline, origin): Asked<proto::ScoreRequest>| async move {
        answer::answer(&state, method, read, deadline, origin).await
    };
    unary(state, method, request, answer).await
}

fn score_stream(state: Arc<State>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let span = call::span(Method::ScoreStream.as_str(), &head.headers);
    let origin = Origin::new(&head.headers, &head.extensions);
    let deadline = call::deadline_of(&head.extensions);
    let inbound = state.serving().and_then(|_| {
        Inbound::new(Shape::Stream, &head.headers, body, state.limits, state.budget.of(&head.extensions))
    });
    match inbound {
        Ok(inbound) => outbound::response(span.in_scope(|| stream::serve(state, inbound, deadline, origin))),
        Err(error) => Status::from(error).into_http(),
    }
}

struct ServerInfo(Arc<State>);

impl UnaryService<proto::GetServerInfoRequest> for ServerInfo {
    type Response = proto::GetServerInfoResponse;
    type Future = std::future::Ready<Result<tonic::Response<Self::Response>, Status>>;

    fn call(&mut self, _request: tonic::Request<proto::GetServerInfoRequest>) -> Self::Future {
        let started = std::time::Instant::now();
        let info = info::server(&self.0);
        let code = info.as_ref().err().map_or(tonic::Code::Ok, |error| error.code());
        metrics::request_finished(Method::GetServerInfo, code as i32, "", started.elapsed());
        ready(info.map(tonic::Response::new).map_err(Status::from))
    }
}
