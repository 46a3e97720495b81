//! Pooling, then the reward head.
//!
//! ```text
//! wanted rows of hidden states → (mean →) [batch, hidden] → (dense → tanh) → linear → [batch]
//! ```
//!
//! Dropout, in training, is where transformers has it: before the last layer, and in RoBERTa before the dense one.
//!
//! Nothing follows the last linear layer: a reward is a logit. Everything here is `f32`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::ModelError;
use crate::model::backbone::BackboneConfig;
use crate::model::backbone::EncoderHead;
use crate::model::config::CheckpointConfig;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::model::transformer::Wanted;
use crate::model::weights::Weights;
use crate::ops::Activation;
use crate::ops::Ops;
use crate::ops::Precision;
use crate::ops::batch::PackedBatch;

/// The reward head of a model, with the pooling before it.
#[derive(Debug)]
pub struct Head<O: Ops> {
    kind: HeadKind,
    last_layer: String,
    pooling: Pooling,
    pad_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    dense: Option<Arc<O::Linear>>,
    output: Arc<O::Linear>,
    normalization: Option<Calibration>,
}

impl<O: Ops> Head<O> {
    /// Finds the head among the checkpoint's tensors, and loads it.
    pub fn load(weights: &mut Weights<'_, O>, config: &CheckpointConfig) -> Result<Self, ModelError> {
        let hidden = config.backbone.hidden();
        let (kind, last_layer) = find(weights, config)?;
        if let (Some(doubt), HeadKind::Score, None) = (&config.origin.pad_doubt, kind, config.pooling) {
            return Err(ModelError::Unsupported(doubt.clone()));
        }
        let pooling = config.pooling(kind);
        if pooling == Pooling::FirstEos && config.eos_token_ids.is_empty() {
            return Err(ModelError::Unsupported(
                "pooling first_eos needs an `eos_token_id` in config.json".to_owned(),
            ));
        }
        let dense = match kind {
            HeadKind::BertClassifier => Some(format!("{}pooler.dense", weights.backbone_prefix())),
            HeadKind::RobertaClassifier => Some("classifier.dense".to_owned()),
            HeadKind::Score | HeadKind::OpenRlhf | HeadKind::TrlValueHead | HeadKind::ValueHead => None,
        };
        let rows = weights.rows(&format!("{last_layer}.weight"))?;
        if rows != 1 {
            return Err(ModelError::Unsupported(format!(
                "the head `{last_layer}` has {rows} labels, a reward model has 1"
            )));
        }
        let dense =
            dense.map(|name| weights.linear(&name, hidden, hidden, true, Precision::F32)).transpose()?;
        let bias = format!("{last_layer}.bias");
        let has_bias = match kind {
            HeadKind::Score | HeadKind::OpenRlhf => {
                weights.ignore(&bias, "the class of the model has no bias there");
                false
            }
            HeadKind::TrlValueHead | HeadKind::BertClassifier | HeadKind::RobertaClassifier => true,
            HeadKind::ValueHead => weights.contains(&bias), // of nobody's class
        };
        let output = weights.linear(&last_layer, 1, hidden, has_bias, Precision::F32)?;
        Ok(Self {
            kind,
            last_layer,
            pooling,
            pad_token_id: config.pad_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            dense,
            output,
            normalization: config.normalization,
        })
    }

    /// Where the head comes from.
    pub fn kind(&self) -> HeadKind {
        self.kind
    }

    /// The name of the last layer, without `.weight` and `.bias`.
    pub fn last_layer(&self) -> &str {
        &self.last_layer
    }

    /// The rule that picks the hidden states.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The rows that the head reads: one per sequence, or all.
    pub fn wanted(&self, batch: &PackedBatch) -> Wanted {
        if self.pooling == Pooling::Mean {
            return Wanted::All;
        }
        let tokens = batch.sequences().enumerate();
        Wanted::Rows(tokens.map(|(index, tokens)| batch.row_of(index, self.position(&tokens))).collect())
    }

    /// Rewards `[batch]` from the hidden states of the rows that are [wanted](Self::wanted).
    pub fn forward(&self, ops: &O, hidden: &[O::Rows], batch: &PackedBatch) -> candle_core::Result<Vec<f32>> {
        let mut rewards = ops.to_vec(&self.logits(ops, hidden, batch)?)?;
        if let Some(normalization) = self.normalization {
            rewards.iter_mut().for_each(|reward| *reward = normalization.apply(f64::from(*reward)) as f32);
        }
        Ok(rewards)
    }

    /// What the last layer makes of the same, `[batch, 1]`, in blocks: rewards before they are
    /// [normalized](Self::normalization).
    pub fn logits(
        &self,
        ops: &O,
        hidden: &[O::Rows],
        batch: &PackedBatch,
    ) -> candle_core::Result<Vec<O::Rows>> {
        let pooled = self.pooled(ops, hidden, batch)?;
        ops.each(pooled.iter().collect(), |x| ops.linear(&*self.feature(ops, x)?, &self.output))
    }

    /// What the last layer reads, `[batch, hidden]`, in blocks.
    pub fn features(
        &self,
        ops: &O,
        hidden: &[O::Rows],
        batch: &PackedBatch,
    ) -> candle_core::Result<Vec<O::Rows>> {
        let pooled = self.pooled(ops, hidden, batch)?;
        ops.each(pooled.iter().collect(), |x| Ok(self.feature(ops, x)?.into_owned()))
    }

    /// Of an OpenRLHF checkpoint that asks for it.
    pub fn normalization(&self) -> Option<Calibration> {
        self.normalization
    }

    /// One row for each sequence, `[batch, hidden]`.
    fn pooled<'h>(
        &self,
        ops: &O,
        hidden: &'h [O::Rows],
        batch: &PackedBatch,
    ) -> candle_core::Result<Cow<'h, [O::Rows]>> {
        Ok(match self.pooling {
            Pooling::Mean => {
                let rows = |sequence| batch.runs(sequence).into_iter().flatten().collect();
                ops.mean(hidden, &(0..batch.len()).map(rows).collect::<Vec<_>>())?.into()
            }
            _ => Cow::Borrowed(hidden),
        })
    }

    fn feature<'x>(&self, ops: &O, x: &'x O::Rows) -> candle_core::Result<Cow<'x, O::Rows>> {
        Ok(match (&self.dense, self.kind) {
            (Some(dense), HeadKind::RobertaClassifier) => {
                let x = ops.dropout(x.clone())?;
                Cow::Owned(ops.dropout(ops.linear_act(&x, dense, Activation::Tanh)?)?)
            }
            (Some(dense), _) => Cow::Owned(ops.dropout(ops.linear_act(x, dense, Activation::Tanh)?)?),
            (None, _) => Cow::Owned(ops.dropout(x.clone())?),
        })
    }

    /// Which token of a sequence the head reads.
    fn position(&self, tokens: &[u32]) -> usize {
        let last = tokens.len() - 1;
        match self.pooling {
            Pooling::Cls | Pooling::Mean => 0,
            Pooling::LastToken => last,
            // transformers takes the argmax over `index · (token is not pad)`: position 0 if all are padding
            Pooling::LastNonPad => match self.pad_token_id {
                Some(pad) => tokens.iter().rposition(|&token| token != pad).unwrap_or(0),
                None => last,
            },
            // a truncated sequence has none
            Pooling::FirstEos => {
                tokens.iter().position(|token| self.eos_token_ids.contains(token)).unwrap_or(last)
            }
        }
    }
}

/// Names and shapes of the head that transformers puts on this backbone.
pub fn native(config: &CheckpointConfig, backbone_prefix: &str) -> BTreeMap<String, Vec<usize>> {
    let hidden = config.backbone.hidden();
    let layer = |name: &str, output: usize| {
        [(format!("{name}.weight"), vec![output, hidden]), (format!("{name}.bias"), vec![output])]
    };
    let layers = match &config.backbone {
        BackboneConfig::Decoder(_) => return [("score.weight".to_owned(), vec![1, hidden])].into(),
        BackboneConfig::Encoder(encoder) => match encoder.head {
            EncoderHead::Pooler => {
                [layer(&format!("{backbone_prefix}pooler.dense"), hidden), layer("classifier", 1)]
            }
            EncoderHead::TwoLayers => [layer("classifier.dense", hidden), layer("classifier.out_proj", 1)],
        },
    };
    layers.into_iter().flatten().collect()
}

/// The head's kind and the name of its last layer.
fn find<O: Ops>(
    weights: &Weights<'_, O>,
    config: &CheckpointConfig,
) -> Result<(HeadKind, String), ModelError> {
    let is_encoder = matches!(config.backbone, BackboneConfig::Encoder(_));
    let is_openrlhf = config.architecture == "RewardModel" || config.value_head_prefix.is_some();
    let prefixed = config.value_head_prefix.as_ref().map(|prefix| format!("{prefix}.weight"));
    let heads: &[(&str, HeadKind)] = match &prefixed {
        _ if is_encoder => &[
            ("classifier.weight", HeadKind::BertClassifier),
            ("classifier.out_proj.weight", HeadKind::RobertaClassifier),
        ],
        Some(name) => &[(name, HeadKind::OpenRlhf)],
        // files that OpenRLHF wrote before it wrote the prefix
        None if is_openrlhf => {
            &[("score.weight", HeadKind::OpenRlhf), ("value_head.weight", HeadKind::OpenRlhf)]
        }
        None => &[
            ("score.weight", HeadKind::Score),
            ("v_head.summary.weight", HeadKind::TrlValueHead),
            ("v_head.weight", HeadKind::ValueHead),
        ],
    };
    let found: Vec<_> = heads.iter().filter(|(name, _)| weights.contains(name)).collect();
    match found.as_slice() {
        [(name, kind)] => Ok((*kind, name.trim_end_matches(".weight").to_owned())),
        [] => Err(ModelError::NoHead {
            looked_for: heads.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        }),
        several => Err(ModelError::Unsupported(format!(
            "the checkpoint has several heads: {}",
            several.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        ))),
    }
}
