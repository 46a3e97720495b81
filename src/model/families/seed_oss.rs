//! Seed-OSS: Llama with biases on queries, keys and values unless the file says otherwise, and heads of their own width.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "seed_oss",
    class: "SeedOss",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 155_136,
    intermediate: 27_648,
    num_layers: 64,
    heads: 80,
    kv_heads: Some(8),
    head_dim: Some(128),
    max_positions: 524_288,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(Blueprint {
        qkv_bias: fields.or_default("attention_bias", true)?,
        output_bias: fields.or_default("attention_out_bias", false)?,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        ..decoder::read(fields, &DEFAULTS)?
    }
    .into())
}
