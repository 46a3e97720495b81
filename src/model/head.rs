//! Pooling, then the reward head.
//!
//! ```text
//! [tokens, hidden] → pool → [batch, hidden] → (dense → tanh) → linear → [batch]
//! ```
//!
//! Nothing follows the last linear layer: a reward is a logit. Everything here is `f32`.

use candle_core::D;
use candle_core::DType;
use candle_core::Tensor;
use serde::Serialize;

use crate::model::ModelError;
use crate::model::batch::PackedBatch;
use crate::model::config::BackboneConfig;
use crate::model::config::CheckpointConfig;
use crate::model::ops;
use crate::model::ops::Linear;
use crate::model::scorer::Calibration;
use crate::model::variant::Pooling;
use crate::model::weights::Weights;

/// Where a checkpoint's head comes from; decides the default pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// transformers' `score` of the decoders.
    Score,
    /// OpenRLHF's `value_head_prefix`.
    OpenRlhf,
    /// TRL's `v_head.summary`.
    TrlValueHead,
    /// A linear layer named `v_head`.
    ValueHead,
    /// BERT's pooler and `classifier`.
    BertClassifier,
    /// RoBERTa's two-layer `classifier`.
    RobertaClassifier,
}

/// The reward head of a model, with the pooling before it.
#[derive(Debug)]
pub struct Head {
    kind: HeadKind,
    pooling: Pooling,
    pad_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    dense: Option<Linear>,
    output: Linear,
    normalization: Option<Calibration>,
}

impl Head {
    /// Finds the head among the checkpoint's tensors, and loads it.
    pub fn load(weights: &mut Weights<'_>, config: &CheckpointConfig) -> Result<Self, ModelError> {
        let hidden = config.backbone.hidden();
        let (kind, output) = find(weights, config)?;
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
        let rows = weights.rows(&format!("{output}.weight"))?;
        if rows != 1 {
            return Err(ModelError::Unsupported(format!(
                "the head `{output}` has {rows} labels, a reward model has 1"
            )));
        }
        let dense = dense.map(|name| weights.linear_f32(&name, hidden, hidden, true)).transpose()?;
        let has_bias = weights.contains(&format!("{output}.bias"));
        let output = weights.linear_f32(&output, 1, hidden, has_bias)?;
        Ok(Self {
            kind,
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

    /// The rule that picks the hidden states.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Rewards `[batch]` in `f32` from hidden states `[tokens, hidden]`.
    pub fn forward(&self, hidden: &Tensor, batch: &PackedBatch) -> Result<Tensor, ModelError> {
        let mut pooled = self.pool(hidden, batch)?; // [batch, hidden]
        if let Some(dense) = &self.dense {
            pooled = ops::linear(&pooled, dense)?.tanh()?;
        }
        let rewards = ops::linear(&pooled, &self.output)?.squeeze(D::Minus1)?; // [batch]
        Ok(match self.normalization {
            Some(Calibration { mean, std }) => ((rewards - mean)? / std)?,
            None => rewards,
        })
    }

    fn pool(&self, hidden: &Tensor, batch: &PackedBatch) -> Result<Tensor, ModelError> {
        if self.pooling == Pooling::Mean {
            let means = batch
                .offsets()
                .windows(2)
                .map(|ends| hidden.narrow(0, ends[0], ends[1] - ends[0])?.to_dtype(DType::F32)?.mean(0))
                .collect::<Result<Vec<_>, _>>()?;
            return Ok(Tensor::stack(&means, 0)?);
        }
        let rows: Vec<u32> = batch
            .sequences()
            .zip(batch.offsets())
            .map(|(tokens, start)| (start + self.position(tokens)) as u32)
            .collect();
        let rows = Tensor::new(rows, hidden.device())?;
        Ok(hidden.index_select(&rows, 0)?.to_dtype(DType::F32)?)
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

/// The head's kind and the name of its last layer.
fn find(weights: &Weights<'_>, config: &CheckpointConfig) -> Result<(HeadKind, String), ModelError> {
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
