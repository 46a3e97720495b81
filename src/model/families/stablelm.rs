//! StableLM: Llama with layer norms, a quarter of each head turned, and, if it says so, attention and MLP beside each other.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "stablelm",
    class: "StableLm",
    pad_token_id: None,
    eos_token_id: Some(0),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    hidden: 2560,
    intermediate: 6912,
    kv_heads: Some(32),
    kv_heads_may_be_null: false,
    max_positions: 4096,
    norm_eps: ("layer_norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 0.25)),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless(
        "qk_layernorm",
        |value| *value == Value::Bool(false),
        "norms of queries and keys with weights of their own for each head are not supported",
    )?;
    let config = decoder::read(fields, &DEFAULTS)?;
    let is_parallel = fields.or_default("use_parallel_residual", false)?;
    Ok(Blueprint {
        norm: NormStyle::layer(config.norm.eps),
        // beside each other, they read the same
        norms: if is_parallel { Norms::shared("input_layernorm") } else { Norms::BEFORE },
        qkv_bias: fields.or_default("use_qkv_bias", false)?,
        is_parallel,
        ..config
    }
    .into())
}
