//! What tells one function from another, whatever it is called and wherever it lies; and in which part two differ.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::checkpoint::hex;
use crate::model::ModelError;
use crate::model::device::Device;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::variant::config::Mode;
use crate::model::variant::config::VariantConfig;
use crate::model::variant::info::MemberInfo;
use crate::model::variant::members::Member;
use crate::values::Format;

/// Hex digest of everything that determines a reward: weights, config, head, pooling rule, tokenizer, template,
/// limit, reduction, calibration, dtype and arithmetic: a card's sums are in another order than a CPU's. Neither paths nor
/// the variant's name count, nor which card it is. Beside it a digest of each part, by its name.
pub(super) fn fingerprint(
    config: &VariantConfig,
    members: &[Member],
    infos: &[MemberInfo],
    heads: &[(HeadKind, Pooling)],
    dtype: Format,
    device: &Device,
) -> Result<(String, FingerprintParts), ModelError> {
    let configs: Vec<_> = members.iter().map(|member| &member.config).collect();
    let parts: Vec<_> =
        infos.iter().map(|info| (&info.digest, info.coefficient.to_bits(), info.calibration)).collect();
    let mut content = json!({
        "fingerprint_version": 2,
        "mode": config.mode,
        "members": parts,
        "configs": configs,
        "heads": heads,
        "reduction": (config.mode == Mode::Ens).then_some(config.reduction),
        "dtype": dtype.name(),
        "text": hex(&members[0].tokenizer.digest()),
    });
    // added where there was none before, so that what is served on a CPU keeps its fingerprint
    if let Device::Card(_) = device {
        content["arithmetic"] = device.arithmetic().into();
    }
    let of_members = |part: fn(&MemberInfo) -> Value| infos.iter().map(part).collect::<Value>();
    let parts = [
        ("mode", content["mode"].clone()),
        ("weights", of_members(|info| json!(info.digest))),
        ("coefficients", of_members(|info| json!(info.coefficient.to_bits()))),
        ("calibration", of_members(|info| json!(info.calibration))),
        ("config", content["configs"].clone()),
        ("head or pooling", content["heads"].clone()),
        ("reduction", content["reduction"].clone()),
        ("dtype", content["dtype"].clone()),
        ("tokenizer, template or limit", content["text"].clone()),
        ("arithmetic", content["arithmetic"].clone()),
    ];
    let parts = parts.map(|(name, part)| (name, digest_of(&part)));
    Ok((digest_of(&content), parts.into()))
}

/// Of each part of a fingerprint a digest, by its name.
pub type FingerprintParts = BTreeMap<&'static str, String>;

fn digest_of(content: &Value) -> String {
    blake3::hash(content.to_string().as_bytes()).to_hex().to_string()
}
