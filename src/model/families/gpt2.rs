//! GPT-2: learned positions, layer norms, a plain MLP, all three projections in one tensor, linear layers the other way round.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::is_no;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::plan::PositionRule;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    class: "GPT2",
    pad_token_id: None,
    eos_token_id: Some(50_256),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let config = read(fields, &DEFAULTS)?;
    let names = Names { qkv: QkvNames::Together("attn.c_attn"), are_transposed: true, ..config.names };
    let attention_scale = attention_scale(fields, &config)?;
    let mut plan = BackbonePlan::from(Blueprint { attention_scale, names, ..config });
    if fields.or_default("scale_attn_by_inverse_layer_idx", false)? {
        for (layer, index) in plan.layers.iter_mut().zip(1..) {
            layer.attention.spec.scale /= f64::from(index);
        }
    }
    Ok(plan)
}

/// What GPT-2 and its like have alike, under names of which the projections of attention are still to be said.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
    renamed(fields, &KEYS, |fields| {
        let fields = decoder::with_mlp_or_fourfold(fields, defaults)?;
        let config = decoder::read_with_plain_heads(&Fields(&fields), defaults)?;
        Ok(Blueprint {
            positions: Some((config.max_tokens, PositionRule::From(0))),
            norm: NormStyle::layer(config.norm.eps),
            norms: Norms::before("ln_1", "ln_2"),
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            names: NAMES,
            ..config
        })
    })
}

/// Factor on the scores of those that may have none.
pub(super) fn attention_scale(fields: &Fields<'_>, config: &Blueprint) -> Result<f64, String> {
    Ok(if fields.or_default("scale_attn_weights", true)? { config.attention_scale } else { 1.0 })
}

/// The names that GPT-2 and its like have for keys, and those of most others.
pub(super) const KEYS: [Key; 7] = [
    Key::Either("n_embd", "hidden_size"),
    Key::Either("n_head", "num_attention_heads"),
    Key::Either("n_layer", "num_hidden_layers"),
    Key::Either("n_positions", "max_position_embeddings"),
    Key::Only("n_inner", "intermediate_size"),
    Key::Only("activation_function", "hidden_act"),
    Key::Only("layer_norm_epsilon", "norm_eps"),
];

/// GPT-2's, and what others of its kind take of it.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_257,
    hidden: 768,
    intermediate: 3072,
    num_layers: 12,
    heads: 12,
    max_positions: 1024,
    norm_eps: ("norm_eps", 1e-5),
    activation: ("hidden_act", "gelu_new"),
    ..LLAMA
};

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    unused: &[".attn.bias", ".attn.masked_bias", ".attn.embed_positions"], // masks, and GPT-J's angles
    words: "wte",
    positions: "wpe",
    layers: "h",
    output: "attn.c_proj",
    inside: InsideNames::Plain("mlp.c_fc"),
    down: "mlp.c_proj",
    norm: "ln_f",
    ..LLAMA_NAMES
};
