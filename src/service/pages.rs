//! The metrics listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts containers.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use crate::metrics::Exporter;
use crate::service::state::State;

/// `/healthz`: the process lives. `/readyz`: it takes requests and some variant serves.
pub(super) fn router(state: Arc<State>, exporter: Exporter) -> Router {
    let metrics = move || async move {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], exporter.render())
    };
    let ready = move || async move {
        if state.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}
