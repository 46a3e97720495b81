//! Qwen3.5's text model: gated delta rules in three of four layers, and attention whose output has a gate in the others.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::decoder::Defaults;
use crate::model::families::delta::DeltaTensors;
use crate::model::families::qwen2;
use crate::model::families::qwen3_next;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_5_text",
    class: "Qwen3_5Text",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("Qwen3_5Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 248_320,
    intermediate: 12_288,
    heads: 16,
    kv_heads: Some(4),
    kv_heads_may_be_null: false,
    head_dim: Some(256),
    rope_share: Some(("partial_rotary_factor", 0.25)),
    ..qwen2::DEFAULTS
};

/// The composite's too.
pub(super) fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(qwen3_next::read(fields, &DEFAULTS, DeltaTensors::Apart)?.into())
}
