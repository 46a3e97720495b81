//! Qwen3-Next: gated delta rules in three of four layers, attention whose output has a gate in the others, and experts beside one
//! that all rows go through.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::delta::Delta;
use crate::model::families::delta::DeltaTensors;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::experts::Shared;
use crate::model::families::qwen2;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_next",
    class: "Qwen3Next",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("Qwen2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    hidden: 2048,
    intermediate: 5632,
    num_layers: 48,
    heads: 16,
    kv_heads: Some(2),
    kv_heads_may_be_null: false,
    head_dim: Some(256),
    rope_share: Some(("partial_rotary_factor", 0.25)),
    ..qwen2::DEFAULTS
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = read(fields, &DEFAULTS, DeltaTensors::ByHead)?;
    let [count, top_k] =
        experts::sizes(fields, config.num_layers, ("num_experts", 512), ("num_experts_per_tok", 10))?;
    let inside = fields.size("moe_intermediate_size", 512, at_most::WIDTH)?;
    let shared = Shared {
        name: "mlp.shared_expert",
        intermediate: fields.size("shared_expert_intermediate_size", 512, at_most::WIDTH)?,
        gate: Some("mlp.shared_expert_gate"),
        has_bias: false,
    };
    let routing = Routing::softmax(top_k, fields.or_default("norm_topk_prob", true)?);
    let experts = Experts {
        in_layers: experts::sparse_layers(fields, config.num_layers)?,
        shared: Some(shared),
        ..Experts::new(config.num_layers, [count, inside], routing)
    };
    Ok(Blueprint { experts: Some(experts), ..config }.into())
}

/// Qwen3.5's too, whose tensors are kept otherwise: but for what layers do after attention.
pub(super) fn read(
    fields: &Fields<'_>,
    defaults: &Defaults,
    tensors: DeltaTensors,
) -> Result<Blueprint, String> {
    let config = decoder::read(fields, defaults)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        norm: NormStyle { kind: NormKind::RmsUnitOffset, ..config.norm },
        qk_norm: Some(QkNorm::HEADS),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        gates_attention: true,
        delta: Some(Delta::read(fields, config.num_layers, tensors)?),
        names: Names { unused: &["mtp."], ..LLAMA_NAMES }, // what predicts several tokens at a time
        ..config
    })
}
