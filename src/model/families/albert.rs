//! ALBERT: BERT whose layers share their tensors, with embeddings of another width.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_on_pooler;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "albert",
    class: "Albert",
    pad_token_id: Some(0),
    eos_token_id: Some(3),
    tokenizer: FamilyTokenizer::Unless("AlbertTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 30_000,
    hidden: 4096,
    heads: 64,
    intermediate: 16_384,
    activation: "gelu_new",
    ..BERT
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let layers = config.num_layers;
    let groups = fields.size("num_hidden_groups", 1, layers)?;
    let inner = fields.size("inner_group_num", 1, at_most::LAYERS / layers)?;
    let prefix = |layer: usize| {
        let group = (layer / inner) * groups / layers;
        format!("encoder.albert_layer_groups.{group}.albert_layers.{}", layer % inner)
    };
    let num_layers = layers * inner;
    let plan = BackbonePlan::from(Blueprint {
        embedding_width: fields.size("embedding_size", 128, at_most::WIDTH)?,
        num_layers,
        rope_of: vec![None; num_layers],
        windows: vec![None; num_layers],
        norms: Norms::of_sums("attention.LayerNorm", "full_layer_layer_norm"),
        names: NAMES,
        shared_layers: Some((0..num_layers).map(prefix).collect()),
        head: head_on_pooler("pooler", config.hidden),
        ..config
    });
    Ok(encoder::with_mapping_in(plan))
}

const NAMES: Names = Names {
    prefixes: &["albert.", ""],
    unused: &["pooler.", "predictions.", "sop_classifier."],
    qkv: QkvNames::Apart(["attention.query", "attention.key", "attention.value"]),
    output: "attention.dense",
    inside: InsideNames::Plain("ffn"),
    down: "ffn_output",
    ..BERT_NAMES
};
