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
        let proto::SetRoutingRequest { weights, expected } = request.into_inner();
        let expected: Vec<_> = expected.into_iter().map(|one| one.weights.into_iter().collect()).collect();
        let result = self.0.set_routing(weights.into_iter().collect(), &expected);
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

/// Reloads whenever a signal asks for it, after what is under way: whoever changed the configuration meanwhile is not
/// forgotten. Never ends.
pub(super) async fn reload_when_wanted(state: Arc<State>) {
    loop {
        state.reload_wanted.notified().await;
        let state = state.clone();
        // On a task of its own: a panic in one reload is not the end of all.
        let reload = tokio::spawn(async move {
            let audit = Audit { action: Action::Reload, by: By::Signal, before: serving(&state) };
            audit.end(&state, &state.reload_after_others().await);
        });
        let _ = reload.await;
    }
}

/// Who asks for an act.
enum By {
    /// SIGHUP, from this machine.
    Signal,
    /// A call, with the name of its token where callers have some.
    Call { token: Option<Arc<str>>, peer: Option<Peer> },
}

/// What is told of one act.
struct Audit {
    action: Action,
    by: By,
    before: String,
}

impl Audit {
    fn begin(state: &State, action: Action, call: &Extensions) -> Self {
        let token = call.get::<Caller>().map(|caller| caller.name().clone());
        Self { action, by: By::Call { token, peer: call.get().cloned() }, before: serving(state) }
    }

    fn end<T>(self, state: &State, result: &Result<T, ServiceError>) {
        let Self { action, by, before } = self;
        metrics::admin_acted(action, result.is_ok());
        let (is_routing, action) = (action == Action::SetRouting, action.as_str());
        let (signal, token, peer) = match &by {
            By::Signal => (Some("SIGHUP"), None, None),
            By::Call { token, peer } => (None, token.as_deref(), peer.as_ref()),
        };
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let (peer, after) = (peer.map(|peer| peer.address.to_string()), serving(state));
        match result {
            Ok(_) if is_routing && before == after => {
                tracing::debug!(target: "rewarm::audit", action, token, certificate, peer, after, "as before");
            }
            Ok(_) => {
                tracing::info!(target: "rewarm::audit", action, signal, token, certificate, peer, before, after, "done");
            }
            Err(error) => {
                tracing::warn!(target: "rewarm::audit", action, signal, token, certificate, peer, before, %error, "refused");
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
