//! BLOOM: ALiBi, layer norms, of the embeddings too, a plain MLP, all three projections of a head in one tensor.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::ops::Distance;
use crate::text::FamilyTokenizer;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "bloom",
    class: "Bloom",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 250_880,
    hidden: 64,
    num_layers: 2,
    heads: 8,
    norm_eps: ("layer_norm_epsilon", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless(
        "apply_residual_connection_post_layernorm",
        |value| *value == Value::Bool(false),
        "residuals after the norms are not supported",
    )?;
    let keys = [
        Key::Either("n_embed", "hidden_size"),
        Key::Either("n_head", "num_attention_heads"),
        Key::Either("n_layer", "num_hidden_layers"),
        Key::Only("seq_length", "max_position_embeddings"),
    ];
    let config = renamed(fields, &keys, |fields| {
        let fields = decoder::with_fourfold_mlp(fields, &DEFAULTS)?; // the class reads no other number
        decoder::read_with_plain_heads(&Fields(&fields), &DEFAULTS)
    })?;
    Ok(Blueprint {
        norms_embedding: true,
        norm: NormStyle::layer(config.norm.eps),
        activation: Activation::GeluTanh,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        distance: Distance::Slopes(slopes(config.heads).into()),
        names: NAMES,
        ..config
    }
    .into())
}

/// One for each head: a geometric series for a power of two of them, and for those that are left every other one of the
/// series for twice as many.
pub(super) fn slopes(heads: usize) -> Vec<f32> {
    let series = |heads: usize| {
        let base = 2_f64.powf(-8.0 / heads as f64) as f32;
        (1..=heads as i32).map(move |power| base.powi(power))
    };
    let closest = 1 << heads.ilog2();
    series(closest).chain(series(2 * closest).step_by(2)).take(heads).collect()
}

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    words: "word_embeddings",
    embedding_norm: "word_embeddings_layernorm",
    layers: "h",
    qkv: QkvNames::ByHead("self_attention.query_key_value"),
    output: "self_attention.dense",
    inside: InsideNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    norm: "ln_f",
    ..LLAMA_NAMES
};
