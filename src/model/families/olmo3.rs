//! OLMo-3: OLMo-2 with a window in three of four layers, and a rope for each of the two kinds.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "olmo3",
    class: "Olmo3",
    pad_token_id: Some(1),
    eos_token_id: Some(50_279),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    head_dim_may_be_null: false,
    norm_eps: ("rms_norm_eps", 1e-5),
    rope_theta: 500_000.0,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    let window = decoder::sliding_window_of_some(fields, 4096)?;
    let windows =
        decoder::windows(fields, config.num_layers, window, |layer| !(layer + 1).is_multiple_of(4))?;
    let defaults = decoder::rope_defaults(&config, &DEFAULTS);
    // a `rope_theta` of transformers 4 reaches the full layers only
    let local = RopeDefaults {
        theta: ("rope_parameters.sliding_attention.rope_theta", DEFAULTS.rope_theta),
        ..defaults
    };
    let config = Blueprint {
        norms: Norms::AFTER,
        qk_norm: Some(QkNorm::WHOLE),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows,
        ..config
    };
    Ok(config.with_ropes_by_type(fields, false, [defaults, local])?.into())
}
