//! Helium: Llama that turns neighbours in pairs.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "helium",
    class: "Helium",
    pad_token_id: Some(3),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 48_000,
    hidden: 2560,
    intermediate: 7040,
    num_layers: 24,
    heads: 20,
    kv_heads: Some(20),
    kv_heads_may_be_null: false,
    head_dim: Some(128),
    head_dim_may_be_null: false,
    max_positions: 4096,
    norm_eps: ("rms_norm_eps", 1e-8),
    rope_theta: 100_000.0,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        qkv_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        turns_neighbours: true,
        ..decoder::read(fields, &DEFAULTS)?
    }
    .into())
}
