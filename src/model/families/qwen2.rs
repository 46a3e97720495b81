//! Qwen2: Llama with biases on queries, keys and values, and a window from some layer on.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Always("Qwen2Tokenizer"),
    nested: None,
    parse,
};

/// Qwen3's too.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate: 22_016,
    kv_heads: Some(32),
    head_dim_may_be_null: false,
    max_positions: 32_768,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    Ok(Blueprint { qkv_bias: true, windows: windows(fields, config.num_layers)?, ..config }.into())
}

/// Qwen3's too.
pub(super) fn windows(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<Option<usize>>, String> {
    let window = decoder::sliding_window(fields, Some(4096))?;
    let uses_windows = fields.or_default("use_sliding_window", false)?;
    let full_layers = fields.optional("max_window_layers")?.unwrap_or(28);
    decoder::windows(fields, num_layers, window, |layer| uses_windows && layer >= full_layers)
}
