//! Gemma: Llama with scaled embeddings, norms that multiply by 1 + weight, wide heads and a tanh GELU.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma",
    class: "Gemma",
    pad_token_id: Some(0),
    eos_token_id: Some(1),
    tokenizer: FamilyTokenizer::Unless("GemmaTokenizer"),
    nested: None,
    parse,
};

/// Gemma-2's too, but for its sizes.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden: 3072,
    intermediate: 24_576,
    num_layers: 28,
    heads: 16,
    kv_heads: Some(16),
    kv_heads_may_be_null: false,
    head_dim: Some(256),
    head_dim_may_be_null: false,
    max_positions: 8192,
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        norm: NormStyle { kind: NormKind::RmsUnitOffset, ..config.norm },
        // files of the first release say "gelu" and mean this
        activation: match config.activation {
            Activation::GeluErf => Activation::GeluTanh,
            other => other,
        },
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        embedding_scale: Some((config.hidden as f64).sqrt()),
        ..config
    }
    .into())
}
