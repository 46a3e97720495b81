//! Jina's embeddings v3: RoBERTa with a rope in place of positions.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::check_head_dim;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "jina_embeddings_v3",
    class: "JinaEmbeddingsV3",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("XLMRobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    let sizes = [
        ("hidden_size", 1024),
        ("num_hidden_layers", 24),
        ("num_attention_heads", 16),
        ("intermediate_size", 4096),
        ("max_position_embeddings", 8194),
        ("type_vocab_size", 1),
    ];
    for (key, default) in sizes {
        given.entry(key).or_insert(default.into());
    }
    given.entry("layer_norm_eps").or_insert(1e-5.into());
    let config = encoder::read(&Fields(&given), 250_002)?;
    check_head_dim(fields, config.head_dim)?;
    let defaults = RopeDefaults {
        head_dim: config.head_dim,
        max_positions: config.max_tokens,
        theta: ("rope_theta", 20_000.0),
        share: None,
    };
    let rope = RopeConfig::parse(fields, defaults)?;
    let layers = ["classifier.dense", "classifier.out_proj"];
    let config = Blueprint {
        positions: None,
        norms: Norms::of_sums("norm1", "norm2"),
        names: NAMES,
        head: head_of_two_layers(layers, config.hidden, Activation::Tanh),
        ..config
    };
    Ok(config.with_rope(rope).into())
}

const NAMES: Names = Names {
    prefixes: &["roberta.", ""],
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    qkv: QkvNames::Together("mixer.Wqkv"),
    output: "mixer.out_proj",
    inside: InsideNames::Plain("mlp.fc1"),
    down: "mlp.fc2",
    ..BERT_NAMES
};
