//! Jina's embeddings v3: RoBERTa with a rope in place of positions.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
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

const DEFAULTS: Defaults = Defaults {
    vocab_size: 250_002,
    types: 1,
    hidden: 1024,
    num_layers: 24,
    heads: 16,
    intermediate: 4096,
    max_positions: 8194,
    norm_eps: 1e-5,
    ..BERT
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let layers = ["classifier.dense", "classifier.out_proj"];
    let config = Blueprint {
        norms: Norms::of_sums("norm1", "norm2"),
        names: NAMES,
        head: head_of_two_layers(layers, config.hidden, Activation::Tanh),
        ..config
    };
    Ok(config.turning(fields, 20_000.0)?.into())
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
