//! EXAONE 4: norms after attention and MLP instead of before, and of each query and key head. Where there are windows, the
//! layers without one have no rotary positions.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "exaone4",
    class: "Exaone4",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 102_400,
    intermediate: 16_384,
    kv_heads: Some(32),
    kv_heads_may_be_null: false,
    head_dim_may_be_null: false,
    norm_eps: ("rms_norm_eps", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    let full_every = match (window, fields.optional::<Value>("layer_types")?) {
        (_, Some(_)) => 1, // they tell
        (Some(_), None) => fields.size("sliding_window_pattern", 4, usize::MAX)?,
        // transformers divides by zero then
        (None, None) => return Err("`sliding_window` is null, and `layer_types` is missing".to_owned()),
    };
    let windows =
        decoder::windows(fields, config.num_layers, window, |layer| !(layer + 1).is_multiple_of(full_every))?;
    Ok(Blueprint {
        norms: Norms::AFTER,
        qk_norm: Some(QkNorm::HEADS),
        rope_of: windows.iter().map(|own| (window.is_none() || own.is_some()).then_some(0)).collect(),
        windows,
        ..config
    }
    .into())
}
