//! BioGPT: OPT whose words are scaled before positions are added.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::PositionRule;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "biogpt",
    class: "BioGpt",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("BioGptTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 42_384,
    hidden: 1024,
    intermediate: 4096,
    num_layers: 24,
    heads: 16,
    max_positions: 1024,
    activation: ("hidden_act", "gelu"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_with_plain_heads(fields, &DEFAULTS)?;
    let is_scaled = fields.or_default("scale_embedding", true)?;
    let mut plan = BackbonePlan::from(Blueprint {
        positions: Some((config.max_tokens + 2, PositionRule::From(2))),
        embedding_scale: is_scaled.then(|| (config.hidden as f64).sqrt()),
        norm: NormStyle::layer(1e-5), // whatever `layer_norm_eps` is
        norms: Norms::before("self_attn_layer_norm", "final_layer_norm"),
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        names: NAMES,
        ..config
    });
    plan.embedding.adds_positions_last = true;
    Ok(plan)
}

const NAMES: Names = Names {
    prefixes: &["biogpt.", ""],
    unused: &["output_projection."], // the head of a language model
    output: "self_attn.out_proj",
    inside: InsideNames::Plain("fc1"),
    down: "fc2",
    norm: "layer_norm",
    ..LLAMA_NAMES
};
