//! `AdminService`: what the operator asks, on a listener of its own.

use std::sync::Arc;

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::proto;
use crate::proto::admin_service_server::AdminService;
use crate::service::grpc::info::routing;
use crate::service::grpc::info::variants;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// The handlers; all they know is in [`State`].
pub(super) struct Admin(pub(super) Arc<State>);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn reload(
        &self,
        _request: Request<proto::ReloadRequest>,
    ) -> Result<Response<proto::ReloadResponse>, Status> {
        let state = self.0.clone();
        // On a task that outlives the call: a reload whose operator has gone is still finished.
        let reload = tokio::spawn(async move { state.reload().await });
        let serving = reload.await.unwrap_or(Err(ServiceError::Panicked))?;
        Ok(Response::new(proto::ReloadResponse { variants: variants(&serving) }))
    }

    async fn set_routing(
        &self,
        request: Request<proto::SetRoutingRequest>,
    ) -> Result<Response<proto::SetRoutingResponse>, Status> {
        let weights = request.into_inner().weights.into_iter().collect();
        let serving = self.0.set_routing(weights)?;
        Ok(Response::new(proto::SetRoutingResponse { routing: Some(routing(&serving)) }))
    }

    async fn drain(
        &self,
        _request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        self.0.leaving.cancel();
        Ok(Response::new(proto::DrainResponse {}))
    }
}
