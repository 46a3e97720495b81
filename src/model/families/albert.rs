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
use crate::model::families::encoder::BERT_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::LinearPlan;
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

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    let sizes = [("hidden_size", 4096), ("num_attention_heads", 64), ("intermediate_size", 16_384)];
    for (key, default) in sizes {
        given.entry(key).or_insert(default.into());
    }
    given.entry("hidden_act").or_insert("gelu_new".into());
    let config = encoder::read(&Fields(&given), 30_000)?;
    let layers = config.num_layers;
    let groups = fields.size("num_hidden_groups", 1, layers)?;
    let inner = fields.size("inner_group_num", 1, at_most::LAYERS / layers)?;
    let prefix = |layer: usize| {
        let group = (layer / inner) * groups / layers;
        format!("encoder.albert_layer_groups.{group}.albert_layers.{}", layer % inner)
    };
    let num_layers = layers * inner;
    let mut plan = BackbonePlan::from(Blueprint {
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
    // there whatever the widths
    let (hidden, width) = (plan.hidden(), plan.embedding.words.width);
    plan.embedding.projection =
        Some(LinearPlan::new("encoder.embedding_hidden_mapping_in", hidden, width, true));
    Ok(plan)
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
