//! SmolLM3: Llama where every fourth layer does not turn queries and keys; those may see a window only.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    class: "SmolLM3",
    pad_token_id: Some(128_004),
    eos_token_id: Some(128_001),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden: 2048,
    num_layers: 36,
    heads: 16,
    kv_heads: Some(4),
    head_dim_may_be_null: false,
    max_positions: 32_768,
    rope_theta: 2e6,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    let rotary = rotary(fields, config.num_layers)?;
    let window = decoder::sliding_window(fields, None)?;
    let uses_windows: bool = fields.or_default("use_sliding_window", false)?;
    let slides = |layer: usize| uses_windows && !rotary[layer];
    let windows = decoder::windows(fields, config.num_layers, window, slides)?;
    if !uses_windows && windows.iter().any(Option::is_some) {
        // which of the two counts depends on the implementation of attention
        return Err("`layer_types` asks for a window, and `use_sliding_window` is false".to_owned());
    }
    Ok(Blueprint {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        rope_of: rotary.iter().map(|&turns| turns.then_some(0)).collect(),
        windows,
        ..config
    }
    .into())
}

/// By `no_rope_layers`, where 1 means that a layer *has* rotary positions.
fn rotary(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<bool>, String> {
    let Some(layers) = fields.optional::<Vec<u64>>("no_rope_layers")? else {
        let interval = fields.size("no_rope_layer_interval", 4, usize::MAX)?;
        return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    if layers.len() < num_layers {
        return Err(format!("`no_rope_layers` has {} entries for {num_layers} layers", layers.len()));
    }
    Ok(layers[..num_layers].iter().map(|&has_rope| has_rope != 0).collect())
}
