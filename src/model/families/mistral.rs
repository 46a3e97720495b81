//! Mistral: Llama with a window in all layers. A file with `layer_types` is Ministral's, whatever it calls itself:
//! transformers reads it so.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    class: "Mistral",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { intermediate: 14_336, kv_heads: Some(8), max_positions: 131_072, ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    if fields.0.contains_key("layer_types") {
        return parse_ministral(fields);
    }
    let config = decoder::read(fields, &DEFAULTS)?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    Ok(Blueprint { windows: vec![window; config.num_layers], ..config }.into())
}

/// The same with a window in the layers that `layer_types` names.
pub(super) fn parse_ministral(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let head_dim: usize = fields.required("head_dim")?; // transformers takes it as it is
    let config = decoder::read(fields, &Defaults { head_dim: Some(head_dim), ..DEFAULTS })?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    let windows = decoder::windows(fields, config.num_layers, window, |_| true)?;
    Ok(Blueprint { windows, ..config }.into())
}
