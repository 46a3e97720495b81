//! GLM: Llama with biases of queries, keys and values, gate and up in one tensor, and half of each head turned, neighbours in pairs.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "glm",
    class: "Glm",
    pad_token_id: Some(151_329),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_552,
    intermediate: 13_696,
    num_layers: 40,
    kv_heads: Some(2),
    head_dim: Some(128),
    max_positions: 131_072,
    norm_eps: ("rms_norm_eps", 1.5625e-7),
    rope_share: Some(("partial_rotary_factor", 0.5)),
    ..LLAMA
};

/// GLM-4's too, but for its norms.
pub(super) fn read(fields: &Fields<'_>) -> Result<Blueprint, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    Ok(Blueprint {
        qkv_bias: fields.or_default("attention_bias", true)?,
        turns_neighbours: true,
        names: Names { inside: InsideNames::GateUp("mlp.gate_up_proj"), ..LLAMA_NAMES },
        ..config
    })
}

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(read(fields)?.into())
}
