//! Phi-3: Llama with queries, keys and values in one tensor, gate and up in another, and long texts by longrope.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeScaling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3",
    pad_token_id: Some(32_000),
    eos_token_id: Some(32_000),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden: 3072,
    intermediate: 8192,
    max_positions: 4096,
    norm_eps: ("rms_norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 1.0)),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    if !matches!(config.ropes[0].scaling, RopeScaling::None | RopeScaling::Longrope { .. }) {
        return Err("the rope of Phi-3 is `default` or `longrope`: transformers takes no other".to_owned());
    }
    let window = decoder::sliding_window(fields, None)?;
    Ok(Blueprint { windows: vec![window; config.num_layers], names: NAMES, ..config }.into())
}

const NAMES: Names = Names {
    qkv: QkvNames::Together("self_attn.qkv_proj"),
    inside: InsideNames::GateUp("mlp.gate_up_proj"),
    ..LLAMA_NAMES
};
