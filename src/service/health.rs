//! `grpc.health.v1`: `""` is the process, `rewarm.v1.RewardService` is ready or not, and each variant has its own.
//!
//! `""` serves from the first moment, for whoever would restart a process that does not live. The others
//! serve once the models are loaded and their first forward was finite; a variant whose forwards keep
//! failing stops, until one succeeds. All stop when somebody asks the server to.

use std::collections::BTreeSet;
use std::sync::Arc;

use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::metrics;
use crate::proto::reward_service_server::RewardServiceServer;
use crate::service::reward::Reward;
use crate::service::state::State;

const REWARD_SERVICE: &str = <RewardServiceServer<Reward> as NamedService>::NAME;

/// Reports until the server closes; then it ends the watches, which would hold their connections open.
pub(super) async fn report(state: Arc<State>, mut reporter: HealthReporter) {
    let mut known = BTreeSet::<String>::new();
    let mut was_ready = false;
    while !state.closing.is_cancelled() {
        let is_leaving = state.leaving.is_cancelled();
        let variants = state.variants_health();
        let is_ready = variants.values().any(|is_healthy| *is_healthy);
        for gone in known.iter().filter(|name| !variants.contains_key(*name)) {
            reporter.clear_service_status(gone).await;
        }
        for (name, is_healthy) in &variants {
            reporter.set_service_status(name, status(*is_healthy)).await;
        }
        reporter.set_service_status(REWARD_SERVICE, status(is_ready)).await;
        reporter.set_service_status("", status(!is_leaving)).await;
        if is_ready != was_ready {
            tracing::info!(is_ready, "readiness changed");
            metrics::readiness_changed(is_ready);
            was_ready = is_ready;
        }
        known = variants.into_keys().collect();
        tokio::select! {
            () = state.health_changed.notified() => {}
            () = state.leaving.cancelled(), if !is_leaving => {}
            () = state.closing.cancelled() => {}
        }
    }
    for name in known.iter().map(String::as_str).chain([REWARD_SERVICE, ""]) {
        reporter.clear_service_status(name).await;
    }
}

fn status(is_good: bool) -> ServingStatus {
    if is_good { ServingStatus::Serving } else { ServingStatus::NotServing }
}
