//! `grpc.health.v1`: `""` is the process, `rewarm.v1.RewardService` is ready or not, and each variant has its own.
//!
//! `""` serves from the first moment, for whoever would restart a process that does not live. The others
//! serve once the models are loaded and their first forward was finite; a variant whose forwards keep
//! failing stops, until one succeeds. All stop when somebody asks the server to.
//!
//! A name that nobody has is SERVICE_UNKNOWN to whoever watches it, and told when it comes: a variant may be
//! loaded by a reload. Whoever only checks it is told NOT_FOUND. Source: grpc.health.v1, the comments of the proto.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::server::NamedService;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::HealthCheckResponse;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::health_server::HealthServer;

use crate::metrics;
use crate::service::grpc::reward::Reward;
use crate::service::state::State;

const REWARD_SERVICE: &str = <Reward as NamedService>::NAME;
/// A request is the name of a service or a variant; a watch keeps it.
const MAX_REQUEST_BYTES: usize = 1024;

/// What is known by now, by name.
type Statuses = BTreeMap<String, ServingStatus>;

/// The handlers, and where [`report`] says what they tell.
pub(super) fn service() -> (watch::Sender<Statuses>, HealthServer<Statused>) {
    let (sender, statuses) = watch::channel(Statuses::from([(String::new(), ServingStatus::Serving)]));
    (sender, HealthServer::new(Statused(statuses)).max_decoding_message_size(MAX_REQUEST_BYTES))
}

/// Reports until the server closes; then the watches end, which would hold their connections open.
pub(super) async fn report(state: Arc<State>, reporter: watch::Sender<Statuses>) {
    let mut was_ready = false;
    loop {
        let (is_leaving, is_closing) = (state.leaving.is_cancelled(), state.closing.is_cancelled());
        let variants = state.variants_health();
        let is_ready = variants.values().any(|is_healthy| *is_healthy);
        let mut statuses: Statuses =
            variants.into_iter().map(|(name, is_healthy)| (name, status(is_healthy))).collect();
        statuses.insert(REWARD_SERVICE.to_owned(), status(is_ready));
        statuses.insert(String::new(), status(!is_leaving));
        reporter.send_replace(statuses);
        if is_ready != was_ready {
            tracing::info!(is_ready, "readiness changed");
            metrics::readiness_changed(is_ready);
            was_ready = is_ready;
        }
        if is_closing {
            return;
        }
        tokio::select! {
            () = state.health_changed.notified() => {}
            () = state.leaving.cancelled(), if !is_leaving => {}
            () = state.closing.cancelled() => {}
        }
    }
}

fn status(is_good: bool) -> ServingStatus {
    if is_good { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// The handlers.
pub(super) struct Statused(watch::Receiver<Statuses>);

#[tonic::async_trait]
impl Health for Statused {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.0.borrow().get(&request.get_ref().service).copied();
        let status = status.ok_or_else(|| Status::not_found("no service or variant has this name"))?;
        Ok(Response::new(response(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let mut last = None;
        let changes = WatchStream::new(self.0.clone()).filter_map(move |statuses| {
            let status = statuses.get(&name).copied().unwrap_or(ServingStatus::ServiceUnknown);
            (last.replace(status) != Some(status)).then(|| Ok(response(status)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
