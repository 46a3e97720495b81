//! The HTTP door: what trainers that speak JSON ask.

#[expect(dead_code, reason = "the dialects come next")]
pub(super) mod answer;
#[expect(dead_code, reason = "the dialects come next")]
pub(super) mod body;
#[expect(dead_code, reason = "the dialects come next")]
pub(super) mod options;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use crate::service::state::State;

/// All routes.
pub(super) fn router(state: Arc<State>) -> Router {
    let health = move || async move {
        let (status, body) = match state.is_ready() {
            true => (StatusCode::OK, r#"{"status":"ready"}"#),
            false => (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"no models serve"}"#),
        };
        (status, [(CONTENT_TYPE, "application/json")], body)
    };
    Router::new().route("/health", get(health))
}
