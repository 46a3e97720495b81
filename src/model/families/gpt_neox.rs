//! GPT-NeoX (Pythia): layer norms, all three of a head in one tensor, a plain MLP beside attention, a quarter of each head turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    class: "GPTNeoX",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("GPTNeoXTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_432,
    hidden: 6144,
    intermediate: 24_576,
    num_layers: 44,
    heads: 64,
    norm_eps: ("layer_norm_eps", 1e-5),
    rope_share: Some(("rotary_pct", 0.25)),
    activation: ("hidden_act", "gelu"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    let defaults =
        RopeDefaults { theta: ("rotary_emb_base", 10_000.0), ..decoder::rope_defaults(&config, &DEFAULTS) };
    let rope = RopeConfig::parse(fields, defaults)?;
    let config = config.with_rope(rope);
    let attention_bias = fields.or_default("attention_bias", true)?;
    Ok(Blueprint {
        kv_heads: config.heads, // the class reads no other number
        norm: NormStyle::layer(config.norm.eps),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: true,
        is_parallel: fields.or_default("use_parallel_residual", true)?,
        names: NAMES,
        ..config
    }
    .into())
}

const NAMES: Names = Names {
    prefixes: &["gpt_neox.", ""],
    // the language model's head, and masks of causality
    unused: &["embed_out.", ".attention.bias", ".attention.masked_bias"],
    words: "embed_in",
    qkv: QkvNames::ByHead("attention.query_key_value"),
    output: "attention.dense",
    inside: InsideNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    norm: "final_layer_norm",
    ..LLAMA_NAMES
};
