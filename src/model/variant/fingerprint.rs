//! What tells one function from another, whatever it is called and wherever it lies.

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
/// the variant's name count, nor which card it is.
pub(super) fn fingerprint(
    config: &VariantConfig,
    members: &[Member],
    infos: &[MemberInfo],
    heads: &[(HeadKind, Pooling)],
    dtype: Format,
    device: &Device,
) -> Result<String, ModelError> {
    let configs: Vec<_> = members.iter().map(|member| &member.config).collect();
    let parts: Vec<_> =
        infos.iter().map(|info| (&info.digest, info.coefficient.to_bits(), info.calibration)).collect();
    let mut content = serde_json::json!({
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
    Ok(blake3::hash(content.to_string().as_bytes()).to_hex().to_string())
}
