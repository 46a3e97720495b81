//! Mistral: Llama with a window in all layers, or in those that `layer_types` names (transformers reads such a file as
//! [`ministral`](super::ministral)).

use crate::checkpoint::fields::Fields;
use crate::model::backbone::BackboneConfig;
use crate::model::backbone::DecoderConfig;
use crate::model::families::Family;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    class: "Mistral",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    parse,
};

/// Ministral's too.
pub(super) const DEFAULTS: Defaults =
    Defaults { intermediate: 14_336, kv_heads: Some(8), max_positions: 131_072, ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackboneConfig, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    let windows = decoder::windows(fields, config.num_layers, window, |_| true)?;
    Ok(DecoderConfig { windows, ..config }.into())
}
