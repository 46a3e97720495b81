//! Gemma-3, its text model: Gemma-2 without caps (`attn_logit_softcapping` is not read), with norms of queries and keys, five layers of six with a window, and
//! a rope for each of the two kinds.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::gemma;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3Text",
    pad_token_id: Some(0),
    eos_token_id: Some(1),
    tokenizer: FamilyTokenizer::Unless("GemmaTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    hidden: 2304,
    intermediate: 9216,
    num_layers: 26,
    heads: 8,
    kv_heads: Some(4),
    max_positions: 131_072,
    rope_theta: 1e6,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    ..gemma::DEFAULTS
};

/// Also of the text model inside Gemma-3's composite.
pub(super) fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    let window = decoder::sliding_window_of_some(fields, 4096)?;
    let full_every = fields.size("sliding_window_pattern", 6, usize::MAX)?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(full_every);
    let defaults = decoder::rope_defaults(&config, &DEFAULTS);
    let local = RopeDefaults { theta: ("rope_local_base_freq", 10_000.0), ..defaults };
    let config = Blueprint {
        norm: NormStyle { kind: NormKind::RmsUnitOffset, ..config.norm },
        norms: Norms::AROUND,
        qk_norm: Some(QkNorm::HEADS),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows: decoder::windows(fields, config.num_layers, window, slides)?,
        attention_scale: (fields.size("query_pre_attn_scalar", 256, at_most::WIDTH)? as f64).powf(-0.5),
        embedding_scale: Some((config.hidden as f64).sqrt()),
        ..config
    };
    Ok(config.with_ropes_by_type(fields, false, [defaults, local])?.into())
}
