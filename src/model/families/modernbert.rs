//! ModernBERT: Llama's order with layer norms, seen from both sides, two layers of three within a radius, a rope for each of the two
//! kinds.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::check_head_dim;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::parse_activation;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::LinearPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "modernbert",
    class: "ModernBert",
    pad_token_id: Some(50_283),
    eos_token_id: Some(50_282),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_368,
    hidden: 768,
    intermediate: 1152,
    num_layers: 22,
    heads: 12,
    max_positions: 8192,
    norm_eps: ("norm_eps", 1e-5),
    activation: ("hidden_activation", "gelu"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = read(fields, reach(fields)? + 1)?;
    let pooling = match fields.or_default("classifier_pooling", "cls".to_owned())?.as_str() {
        "cls" => Pooling::Cls,
        "mean" => Pooling::Mean,
        other => return Err(format!("`classifier_pooling` is `{other}`: expected cls or mean")),
    };
    let head = head(fields, &config, pooling, true)?;
    let names = Names { qkv: QkvNames::Together("attn.Wqkv"), ..config.names };
    Ok(Blueprint { is_causal: false, head, names, ..config }.into())
}

/// How far local layers see: half of `local_attention`, or, before it, `sliding_window`, which the decoder's files say too.
pub(super) fn reach(fields: &Fields<'_>) -> Result<usize, String> {
    match fields.0.contains_key("sliding_window") {
        true => fields.size("sliding_window", 64, at_most::POSITIONS),
        false => Ok(fields.size("local_attention", 128, at_most::POSITIONS)? / 2),
    }
}

/// The encoder's and the decoder's, with this window in local layers.
pub(super) fn read(fields: &Fields<'_>, window: usize) -> Result<Blueprint, String> {
    let config = decoder::read_with_plain_heads(fields, &DEFAULTS)?;
    check_head_dim(fields, config.head_dim)?; // its rope reads it
    let full_every = fields.size("global_attn_every_n_layers", 3, usize::MAX)?;
    let slides = |layer: usize| !layer.is_multiple_of(full_every);
    let has_bias = fields.or_default("attention_bias", false)?;
    let config = Blueprint {
        norms_embedding: true,
        norm: NormStyle {
            has_bias: fields.or_default("norm_bias", false)?,
            ..NormStyle::layer(config.norm.eps)
        },
        norms: Norms { skips_first: true, ..Norms::before("attn_norm", "mlp_norm") },
        qkv_bias: has_bias,
        output_bias: has_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        windows: decoder::windows(fields, config.num_layers, Some(window), slides)?,
        names: NAMES,
        ..config
    };
    let defaults = decoder::rope_defaults(&config, &DEFAULTS);
    let [full, local] = [("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)];
    let ropes = [full, local].map(|theta| RopeDefaults { theta, ..defaults });
    config.with_ropes_by_type(fields, true, ropes)
}

/// Dense, activation, norm, and the last layer.
pub(super) fn head(
    fields: &Fields<'_>,
    config: &Blueprint,
    pooling: Pooling,
    has_output_bias: bool,
) -> Result<HeadPlan, String> {
    let key = "classifier_activation";
    let activation = parse_activation(key, &fields.or_default::<String>(key, "gelu".to_owned())?)?;
    let has_bias = fields.or_default("classifier_bias", false)?;
    let dense = DensePlan {
        linear: LinearPlan::new("head.dense", config.hidden, config.hidden, has_bias),
        is_in_backbone: false,
        activation,
        norm: Some(config.norm.plan("head.norm", config.hidden)),
        drops_input: false,
    };
    let output =
        HeadPlan::linear(HeadKind::Classifier, "classifier", config.hidden, has_output_bias, pooling);
    Ok(HeadPlan { dense: Some(dense), ..output })
}

const NAMES: Names = Names {
    prefixes: &["model.", ""],
    unused: &["decoder."], // the head of a language model
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    qkv: QkvNames::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
    output: "attn.Wo",
    inside: InsideNames::GateUp("mlp.Wi"),
    down: "mlp.Wo",
    norm: "final_norm",
    ..LLAMA_NAMES
};
