//! What is asked with GET: health, models, and what other servers tell of themselves.

use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::model::variant::VariantInfo;
use crate::service::http::dialect::created;
use crate::service::http::options::Asked;
use crate::service::http::own;
use crate::service::models::Serving;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// A page that is asked for with GET.
pub(super) type Page = fn(&State, &Asked) -> Result<Value, ServiceError>;

/// `/health`: whether callers should come.
pub(super) fn health(state: &State, _asked: &Asked) -> Result<Value, ServiceError> {
    state.serving()?;
    match state.is_ready() {
        true => Ok(json!({"status": "ready"})),
        false => Err(ServiceError::Draining),
    }
}

/// `/rewarm/v1/info`.
pub(super) fn info(state: &State, _asked: &Asked) -> Result<Value, ServiceError> {
    own::info(state)
}

/// `/v1/models`: the variants.
pub(super) fn models(state: &State, _asked: &Asked) -> Result<Value, ServiceError> {
    let created = created();
    let model = |info: &VariantInfo| {
        json!({
            "id": info.name,
            "object": "model",
            "created": created,
            "owned_by": "rewarm",
            "root": source(info),
            "max_model_len": info.max_tokens,
            "fingerprint": info.fingerprint,
        })
    };
    Ok(json!({"object": "list", "data": state.serving()?.infos().map(model).collect::<Value>()}))
}

/// TEI's `/info`, of the variant that is asked for, or of the one that most requests go to.
pub(super) fn tei_info(state: &State, asked: &Asked) -> Result<Value, ServiceError> {
    let serving: Arc<Serving> = state.serving()?;
    let largest = || {
        let weights = serving.routing.weights().iter();
        weights.max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(name, _)| name.clone())
    };
    let name = Some(asked.variant.clone()).filter(|name| !name.is_empty()).or_else(largest);
    let info = serving.infos().find(|info| Some(&info.name) == name.as_ref()).ok_or_else(|| {
        let names: Vec<&str> = serving.variants.keys().map(String::as_str).collect();
        ServiceError::UnknownVariant { known: names.join(", ") }
    })?;
    let dtype = match info.dtype.name() {
        "f32" => "float32",
        "f16" => "float16",
        "bf16" => "bfloat16",
        other => other,
    };
    Ok(json!({
        "model_id": source(info),
        "model_sha": info.fingerprint,
        "model_dtype": dtype,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": info.max_tokens,
        "max_client_batch_size": state.limits.max_samples_per_request,
        "auto_truncate": false,
        "version": env!("CARGO_PKG_VERSION"),
        "variant": info.name,
        "fingerprint": info.fingerprint,
    }))
}

/// Where the first member came from.
fn source(info: &VariantInfo) -> &str {
    info.members.first().map_or(&info.name, |member| member.source.as_ref().unwrap_or(&member.path))
}
