//! What encoders have alike: BERT's keys, tensors and order.

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_on_pooler;
use crate::model::families::check_head_dim;
use crate::model::families::is_no;
use crate::model::families::parse_activation;
use crate::model::plan::BackbonePlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::PositionRule;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
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

/// What a class takes for keys that are absent.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    /// Of token types.
    pub(super) types: usize,
    /// Whether their number may be zero, for no embedding of them.
    pub(super) types_may_be_none: bool,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) num_layers: usize,
    pub(super) heads: usize,
    pub(super) max_positions: usize,
    pub(super) norm_eps: f64,
    pub(super) activation: &'static str,
}

pub(super) const BERT: Defaults = Defaults {
    vocab_size: 30_522,
    types: 2,
    types_may_be_none: false,
    hidden: 768,
    intermediate: 3072,
    num_layers: 12,
    heads: 12,
    max_positions: 512,
    norm_eps: 1e-12,
    activation: "gelu",
};

/// An encoder as BERT is one.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
    fields.refuse_unless(
        "position_embedding_type",
        |value| value.is_null() || value == "absolute",
        "only absolute position embeddings are supported",
    )?;
    fields.refuse_unless("is_decoder", is_no, "a BERT that is a decoder is not supported")?;
    fields.refuse_unless("is_causal", is_no, "an encoder that is causal is not supported")?;
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let hidden = fields.size("hidden_size", defaults.hidden, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", defaults.heads, at_most::HEADS)?;
    if !hidden.is_multiple_of(heads) {
        return Err(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}"));
    }
    let activation: String = fields.or_default("hidden_act", defaults.activation.to_owned())?;
    let max_positions = fields.size("max_position_embeddings", defaults.max_positions, at_most::POSITIONS)?;
    let num_layers = fields.size("num_hidden_layers", defaults.num_layers, at_most::LAYERS)?;
    let head_dim = hidden / heads;
    let norm_eps = fields.number_or("layer_norm_eps", defaults.norm_eps, |eps| (0.0..1.0).contains(&eps))?;
    Ok(Blueprint {
        vocab_size: fields.size("vocab_size", defaults.vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: types(fields, defaults)?,
        task_vocab_size: None,
        positions: Some((max_positions, PositionRule::From(0))),
        embedding_width: hidden,
        embedding_scale: None,
        norms_embedding: true,
        hidden,
        intermediate: fields.size("intermediate_size", defaults.intermediate, at_most::WIDTH)?,
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
        sinks: None,
        experts: None,
        latent: None,
        delta: None,
        gates_attention: false,
        added_scale: None,
        head: head_on_pooler("pooler.dense", hidden),
    })
}

/// Rows of the token type embedding, if there is one.
fn types(fields: &Fields<'_>, defaults: &Defaults) -> Result<Option<usize>, String> {
    let key = "type_vocab_size";
    let is_none = fields.0.get(key).map_or(defaults.types == 0, |types| *types == 0);
    if is_none && defaults.types_may_be_none {
        return Ok(None);
    }
    fields.size(key, defaults.types, at_most::TOKEN_TYPES).map(Some)
}

/// Embeddings that are projected to the width of the layers, were it their own (RemBERT, ALBERT).
pub(super) fn with_mapping_in(mut plan: BackbonePlan) -> BackbonePlan {
    let (hidden, width) = (plan.hidden(), plan.embedding.words.width);
    plan.embedding.projection =
        Some(LinearPlan::new("encoder.embedding_hidden_mapping_in", hidden, width, true));
    plan
}

impl Blueprint {
    /// A rope in place of positions, with this base where the file says none.
    pub(super) fn turning(self, fields: &Fields<'_>, theta: f64) -> Result<Self, String> {
        check_head_dim(fields, self.head_dim)?;
        let defaults = RopeDefaults {
            head_dim: self.head_dim,
            max_positions: self.max_tokens,
            theta: ("rope_theta", theta),
            share: None,
        };
        let rope = RopeConfig::parse(fields, defaults)?;
        Ok(Self { positions: None, ..self }.with_rope(rope))
    }

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
