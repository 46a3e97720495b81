//! What encoders have alike: BERT's keys, tensors and order.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_on_pooler;
use crate::model::families::parse_activation;
use crate::model::plan::PositionRule;
use crate::ops::Distance;

pub(super) const BERT_NAMES: Names = Names {
    prefixes: &["bert.", ""],
    unused: &["pooler."], // below another head
    words: "embeddings.word_embeddings",
    types: "embeddings.token_type_embeddings",
    tasks: "embeddings.task_type_embeddings",
    positions: "embeddings.position_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    embedding_projection: "embeddings_project",
    layers: "encoder.layer",
    qkv: QkvNames::Apart(["attention.self.query", "attention.self.key", "attention.self.value"]),
    output: "attention.output.dense",
    inside: InsideNames::Plain("intermediate.dense"),
    down: "output.dense",
    norm: "encoder.LayerNorm",
    are_transposed: false,
};

/// An encoder as BERT is one, with BERT's sizes where keys are absent, but for the vocabulary.
pub(super) fn read(fields: &Fields<'_>, vocab_size: usize) -> Result<Blueprint, String> {
    let is_no = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    fields.refuse_unless(
        "position_embedding_type",
        |value| value.is_null() || value == "absolute",
        "only absolute position embeddings are supported",
    )?;
    fields.refuse_unless("is_decoder", is_no, "a BERT that is a decoder is not supported")?;
    fields.refuse_unless("is_causal", is_no, "an encoder that is causal is not supported")?;
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let hidden = fields.size("hidden_size", 768, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", 12, at_most::HEADS)?;
    if !hidden.is_multiple_of(heads) {
        return Err(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}"));
    }
    let activation: String = fields.or_default("hidden_act", "gelu".to_owned())?;
    let max_positions = fields.size("max_position_embeddings", 512, at_most::POSITIONS)?;
    let num_layers = fields.size("num_hidden_layers", 12, at_most::LAYERS)?;
    let head_dim = hidden / heads;
    let norm_eps = fields.number_or("layer_norm_eps", 1e-12, |eps| (0.0..1.0).contains(&eps))?;
    Ok(Blueprint {
        vocab_size: fields.size("vocab_size", vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: Some(fields.size("type_vocab_size", 2, at_most::TOKEN_TYPES)?),
        task_vocab_size: None,
        positions: Some((max_positions, PositionRule::From(0))),
        embedding_width: hidden,
        embedding_scale: None,
        norms_embedding: true,
        hidden,
        intermediate: fields.size("intermediate_size", 3072, at_most::WIDTH)?,
        num_layers,
        heads,
        kv_heads: heads,
        head_dim,
        max_tokens: max_positions,
        norm: NormStyle::layer(norm_eps),
        norms: Norms::of_sums("attention.output.LayerNorm", "output.LayerNorm"),
        norms_output: false,
        qk_norm: None,
        activation: parse_activation("hidden_act", &activation)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        is_parallel: false,
        is_causal: false,
        ropes: Vec::new(),
        rope_of: vec![None; num_layers],
        turns_neighbours: false,
        windows: vec![None; num_layers],
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_softcap: None,
        distance: Distance::Ignored,
        names: BERT_NAMES,
        shared_layers: None,
        head: head_on_pooler("pooler.dense", hidden),
    })
}

impl Blueprint {
    /// Positions that count from this padding id on (RoBERTa).
    pub(super) fn counting_after(self, padding: u32) -> Self {
        let rows = self.positions.map_or(0, |(rows, _)| rows);
        Self {
            positions: Some((rows, PositionRule::AfterPadding(padding))),
            max_tokens: rows.saturating_sub(padding as usize + 1),
            ..self
        }
    }
}
