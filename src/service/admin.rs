//! `AdminService`: what the operator asks, on a listener of its own. Each act is counted, and told in the log with who
//! asked for it, what it changed, and how it ended: target `rewarm::audit`.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Extensions;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::metrics;
use crate::metrics::Action;
use crate::proto;
use crate::proto::admin_service_server::AdminService;
use crate::service::access::Caller;
use crate::service::grpc::info::changes;
use crate::service::grpc::info::routing;
use crate::service::grpc::info::variants;
use crate::service::listener::Peer;
use crate::service::models::Serving;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// The handlers; all they know is in [`State`].
pub(super) struct Admin(pub(super) Arc<State>);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn reload(
        &self,
        request: Request<proto::ReloadRequest>,
    ) -> Result<Response<proto::ReloadResponse>, Status> {
        let state = self.0.clone();
        let audit = Audit::begin(&state, Action::Reload, request.extensions());
        // On a task that outlives the call: a reload whose operator has gone is still finished, and told.
        let reload = tokio::spawn(async move {
            let before = state.serving().map(|serving| serving.functions()).unwrap_or_default();
            let result = state.reload().await;
            audit.end(&state, &result);
            result.map(|serving| (before, serving))
        });
        let (before, serving) = reload.await.unwrap_or(Err(ServiceError::Panicked))?;
        let changes = changes(&before, &serving);
        Ok(Response::new(proto::ReloadResponse { variants: variants(&serving), changes }))
    }

    async fn set_routing(
        &self,
        request: Request<proto::SetRoutingRequest>,
    ) -> Result<Response<proto::SetRoutingResponse>, Status> {
        let audit = Audit::begin(&self.0, Action::SetRouting, request.extensions());
        let weights = request.into_inner().weights.into_iter().collect();
        let result = self.0.set_routing(weights);
        audit.end(&self.0, &result);
        Ok(Response::new(proto::SetRoutingResponse { routing: Some(routing(&*result?)) }))
    }

    async fn drain(
        &self,
        request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        let audit = Audit::begin(&self.0, Action::Drain, request.extensions());
        self.0.leaving.cancel();
        audit.end(&self.0, &Ok::<_, ServiceError>(()));
        Ok(Response::new(proto::DrainResponse {}))
    }
}

/// What is told of one act.
struct Audit {
    action: Action,
    /// The name of the caller's token.
    token: Option<Arc<str>>,
    peer: Option<Peer>,
    before: String,
}

impl Audit {
    fn begin(state: &State, action: Action, call: &Extensions) -> Self {
        let token = call.get::<Caller>().map(|caller| caller.name().clone());
        Self { action, token, peer: call.get().cloned(), before: serving(state) }
    }

    fn end<T>(self, state: &State, result: &Result<T, ServiceError>) {
        let Self { action, token, peer, before } = self;
        metrics::admin_acted(action, result.is_ok());
        let action = action.as_str();
        let peer_address = peer.as_ref().map(|peer| peer.address.to_string());
        let certificate = peer.as_ref().and_then(|peer| peer.certificate.as_deref());
        let (token, after) = (token.as_deref(), serving(state));
        match result {
            Ok(_) if action == Action::SetRouting.as_str() && before == after => {
                tracing::debug!(target: "rewarm::audit", action, token, certificate, peer = peer_address, after, "as before");
            }
            Ok(_) => {
                tracing::info!(target: "rewarm::audit", action, token, certificate, peer = peer_address, before, after, "done");
            }
            Err(error) => {
                tracing::warn!(target: "rewarm::audit", action, token, certificate, peer = peer_address, before, %error, "refused");
            }
        }
    }
}

/// What serves, in a line: each variant with its share and fingerprint.
fn serving(state: &State) -> String {
    match state.serving() {
        Ok(serving) => shares(&serving),
        Err(error) => error.to_string(),
    }
}

fn shares(Serving { variants, routing, .. }: &Serving) -> String {
    let weights: &BTreeMap<String, f64> = routing.weights();
    let sum: f64 = weights.values().sum();
    let one = |(name, served): (&String, &Arc<crate::service::models::ServedVariant>)| {
        let share = weights.get(name).unwrap_or(&0.0) / sum;
        format!("{name} {:.1}% {}", 100.0 * share, served.info.fingerprint)
    };
    variants.iter().map(one).collect::<Vec<_>>().join(", ")
}
