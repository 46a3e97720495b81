//! What serves, and within which limits, as the contract says it.

use crate::model::device::Device;
use crate::model::variant::MemberInfo;
use crate::model::variant::VariantInfo;
use crate::proto;
use crate::service::models::Change;
use crate::service::models::Functions;
use crate::service::models::Serving;
use crate::service::routing::ShadowRouting;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::text::TextRule;

/// All that a caller may want to know before it asks.
pub(in crate::service) fn server(state: &State) -> Result<proto::GetServerInfoResponse, ServiceError> {
    let serving = state.serving()?;
    let limits = &state.limits;
    Ok(proto::GetServerInfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        variants: variants(&serving),
        routing: Some(routing(&serving)),
        max_samples_per_request: proto::count(limits.max_samples_per_request),
        max_message_bytes: limits.max_message_bytes as u64,
        max_in_flight_bytes: limits.max_in_flight_bytes as u64,
        max_queue_tokens: state.engine.config().max_queue_tokens as u64,
    })
}

/// What serves, by name.
pub(in crate::service) fn variants(serving: &Serving) -> Vec<proto::VariantInfo> {
    serving.infos().map(variant).collect()
}

/// What is served otherwise than before.
pub(in crate::service) fn changes(before: &Functions, after: &Serving) -> Vec<proto::VariantChange> {
    let change = |Change { variant, before, after, parts }: Change<'_>| proto::VariantChange {
        variant: variant.to_owned(),
        before: before.unwrap_or_default().to_owned(),
        after: after.unwrap_or_default().to_owned(),
        parts: parts.into_iter().map(str::to_owned).collect(),
    };
    after.changes(before).into_iter().map(change).collect()
}

/// How requests without a variant are spread.
pub(in crate::service) fn routing(serving: &Serving) -> proto::Routing {
    let shadow =
        |shadow: &ShadowRouting| proto::Shadow { variant: shadow.variant.clone(), fraction: shadow.fraction };
    proto::Routing {
        weights: serving.routing.weights().clone().into_iter().collect(),
        shadow: serving.routing.shadow().map(shadow),
    }
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
