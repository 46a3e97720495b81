//! What encoders have alike: BERT's keys, tensors and order.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::parse_activation;
use crate::model::plan::AttentionPlan;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::EmbeddingPlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::LayerPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::MlpPlan;
use crate::model::plan::NormPlan;
use crate::model::plan::NormsPlan;
use crate::model::plan::PositionRule;
use crate::model::plan::PositionsPlan;
use crate::model::plan::TablePlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;

/// An encoder, in words that its tensors follow from.
#[derive(Clone)]
pub(super) struct Encoder {
    pub(super) prefixes: &'static [&'static str],
    pub(super) head: Head,
    pub(super) vocab_size: usize,
    /// Rows of the token type embedding.
    pub(super) type_vocab_size: usize,
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Width inside the MLP.
    pub(super) intermediate: usize,
    pub(super) num_layers: usize,
    pub(super) heads: usize,
    /// Rows of the position embedding.
    pub(super) max_positions: usize,
    pub(super) position_rule: PositionRule,
    /// Added to the variance in layer norms.
    pub(super) norm_eps: f64,
    /// Of the MLP.
    pub(super) activation: Activation,
}

/// The head of an encoder's `*ForSequenceClassification`.
#[derive(Clone, Copy)]
pub(super) enum Head {
    /// BERT's: the pooler of the backbone, then `classifier`.
    Pooler,
    /// RoBERTa's: `classifier.dense`, then `classifier.out_proj`.
    TwoLayers,
}

impl Head {
    fn plan(self, hidden: usize) -> HeadPlan {
        let (dense, output) = match self {
            Self::Pooler => ("pooler.dense", "classifier"),
            Self::TwoLayers => ("classifier.dense", "classifier.out_proj"),
        };
        let is_pooler = matches!(self, Self::Pooler);
        let dense = DensePlan {
            linear: LinearPlan::new(dense, hidden, hidden, true),
            is_in_backbone: is_pooler,
            activation: Activation::Tanh,
            norm: None,
            drops_input: !is_pooler,
        };
        let output = HeadPlan::linear(HeadKind::Classifier, output, hidden, true, Pooling::Cls);
        HeadPlan { dense: Some(dense), ..output }
    }
}

/// An encoder as BERT is one, with BERT's sizes where keys are absent, but for the vocabulary.
pub(super) fn read(fields: &Fields<'_>, vocab_size: usize) -> Result<Encoder, String> {
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
    Ok(Encoder {
        prefixes: &["bert.", ""],
        head: Head::Pooler,
        vocab_size: fields.size("vocab_size", vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: fields.size("type_vocab_size", 2, at_most::TOKEN_TYPES)?,
        hidden,
        intermediate: fields.size("intermediate_size", 3072, at_most::WIDTH)?,
        num_layers: fields.size("num_hidden_layers", 12, at_most::LAYERS)?,
        heads,
        max_positions: fields.size("max_position_embeddings", 512, at_most::POSITIONS)?,
        position_rule: PositionRule::From(0),
        norm_eps: fields.number_or("layer_norm_eps", 1e-12, |eps| (0.0..1.0).contains(&eps))?,
        activation: parse_activation("hidden_act", &activation)?,
    })
}

impl From<Encoder> for BackbonePlan {
    fn from(encoder: Encoder) -> Self {
        let Encoder { hidden, max_positions, num_layers, position_rule, .. } = encoder;
        let table = |name: &str, rows: usize| TablePlan {
            name: format!("embeddings.{name}.weight"),
            rows,
            width: hidden,
        };
        Self {
            prefixes: encoder.prefixes,
            unused: &["pooler."], // below another head
            embedding: EmbeddingPlan {
                words: table("word_embeddings", encoder.vocab_size),
                types: Some(table("token_type_embeddings", encoder.type_vocab_size)),
                positions: Some(PositionsPlan {
                    table: table("position_embeddings", max_positions),
                    rule: position_rule,
                }),
                scale: None,
                norm: Some(NormPlan::layer("embeddings.LayerNorm", hidden, encoder.norm_eps)),
                projection: None,
            },
            ropes: Vec::new(),
            layers: (0..num_layers).map(|index| encoder.layer(index)).collect(),
            norm: None,
            max_tokens: match position_rule {
                PositionRule::From(first) => max_positions.saturating_sub(first as usize),
                PositionRule::AfterPadding(padding) => max_positions.saturating_sub(padding as usize + 1),
            },
            head: encoder.head.plan(hidden),
        }
    }
}

impl Encoder {
    fn layer(&self, index: usize) -> LayerPlan {
        let Self { hidden, intermediate, heads, .. } = *self;
        let of = |name: &str| format!("encoder.layer.{index}.{name}");
        let linear = |name: &str, output, input| LinearPlan::new(&of(name), output, input, true);
        let norm = |name: &str| Some(NormPlan::layer(&of(name), hidden, self.norm_eps));
        let head_dim = hidden / heads;
        LayerPlan {
            norms: NormsPlan {
                attention_sum: norm("attention.output.LayerNorm"),
                mlp_sum: norm("output.LayerNorm"),
                ..NormsPlan::default()
            },
            attention: AttentionPlan {
                query: linear("attention.self.query", hidden, hidden),
                key: linear("attention.self.key", hidden, hidden),
                value: linear("attention.self.value", hidden, hidden),
                output: linear("attention.output.dense", hidden, hidden),
                qk_norms: None,
                norms_turned: false,
                ropes: None,
                spec: AttentionSpec {
                    heads,
                    kv_heads: heads,
                    head_dim,
                    causal: false,
                    window: None,
                    scale: (head_dim as f64).powf(-0.5),
                    distance: Distance::Ignored,
                    softcap: None,
                },
                relative: None,
            },
            mlp: MlpPlan {
                inside: InsidePlan::Plain(linear("intermediate.dense", intermediate, hidden)),
                activation: self.activation,
                down: linear("output.dense", hidden, intermediate),
            },
            is_parallel: false,
        }
    }
}
