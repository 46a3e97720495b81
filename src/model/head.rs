//! Pooling, then the reward head.
//!
//! ```text
//! wanted rows of hidden states → (mean →) [batch, hidden] → (dense → activation → norm →) linear → [batch]
//! ```
//!
//! Dropout, in training, is where transformers has it: before the last layer, and in RoBERTa before the dense one.
//!
//! Nothing follows the last linear layer: a reward is a logit. Everything here is `f32`.

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::norm::Norm;
use crate::model::plan::HeadPlan;
use crate::model::plan::ModelPlan;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::model::transformer::Wanted;
use crate::model::weights::Weights;
use crate::ops::Activation;
use crate::ops::Ops;
use crate::ops::Precision;
use crate::ops::batch::PackedBatch;
use crate::ops::error::Result;

/// The reward head of a model, with the pooling before it.
#[derive(Debug)]
pub struct Head<O: Ops> {
    pooling: Pooling,
    pools_late: bool,
    pad_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    dense: Option<Dense<O>>,
    output: Arc<O::Linear>,
    normalization: Option<Calibration>,
}

/// The layer before the last.
#[derive(Debug)]
struct Dense<O: Ops> {
    linear: Arc<O::Linear>,
    activation: Activation,
    norm: Option<Norm<O>>,
    drops_input: bool,
}

impl<O: Ops> Head<O> {
    /// Reads what the plan names; the rest is as the config says.
    pub fn load(
        weights: &mut Weights<'_, O>,
        plan: &ModelPlan,
        config: &CheckpointConfig,
    ) -> std::result::Result<Self, ModelError> {
        let HeadPlan { dense, output, pools_late, label_weights, .. } = &plan.head;
        let dense = dense.as_ref().map(|dense| {
            let weights = weights.below(if dense.is_in_backbone { &plan.prefix } else { "" });
            Ok::<_, ModelError>(Dense {
                linear: weights.linear(&dense.linear, Precision::F32)?,
                activation: dense.activation,
                norm: dense.norm.as_ref().map(|norm| Norm::load(weights, norm)).transpose()?,
                drops_input: dense.drops_input,
            })
        });
        Ok(Self {
            pooling: config.pooling(&plan.head)?,
            pools_late: *pools_late,
            pad_token_id: config.pad_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            dense: dense.transpose()?,
            output: match label_weights {
                None => weights.below("").linear(output, Precision::F32)?,
                Some(shares) => weights.below("").sum_of_rows(output, shares, Precision::F32)?,
            },
            normalization: config.normalization,
        })
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

    /// Rewards of what the last layer made, `[batch]`.
    pub fn rewards(&self, mut logits: Vec<f32>) -> Vec<f32> {
        if let Some(normalization) = self.normalization {
            logits.iter_mut().for_each(|reward| *reward = normalization.apply(f64::from(*reward)) as f32);
        }
        logits
    }

    /// What the last layer makes of the hidden states of the rows that are [wanted](Self::wanted), `[batch, 1]`, in
    /// blocks: [rewards](Self::rewards) before they are [normalized](Self::normalization).
    pub fn logits(&self, ops: &O, hidden: &[O::Rows], batch: &O::Batch<'_>) -> Result<Vec<O::Rows>> {
        ops.each(self.pooled(ops, hidden, batch)?, |x| ops.linear(&x, &self.output))
    }

    /// What the last layer reads, `[batch, hidden]`, in blocks.
    pub fn features(&self, ops: &O, hidden: &[O::Rows], batch: &O::Batch<'_>) -> Result<Vec<O::Rows>> {
        Ok(self.pooled(ops, hidden, batch)?.into_iter().map(Cow::into_owned).collect())
    }

    /// Of an OpenRLHF checkpoint that asks for it.
    pub fn normalization(&self) -> Option<Calibration> {
        self.normalization
    }

    /// What the last layer reads, one row for each sequence, `[batch, hidden]`.
    fn pooled<'h>(
        &self,
        ops: &O,
        hidden: &'h [O::Rows],
        batch: &O::Batch<'_>,
    ) -> Result<Vec<Cow<'h, O::Rows>>> {
        let feature = |x: &'h O::Rows| self.feature(ops, x);
        if self.pooling != Pooling::Mean {
            return ops.each(hidden.iter().collect(), feature);
        }
        let mean = |blocks: &[O::Rows]| ops.mean(blocks, batch);
        if self.pools_late {
            let features = ops.each(hidden.iter().collect(), |x| Ok(self.feature(ops, x)?.into_owned()))?;
            return Ok(mean(&features)?.into_iter().map(Cow::Owned).collect());
        }
        ops.each(mean(hidden)?, |x| Ok(Cow::Owned(self.feature(ops, &x)?.into_owned())))
    }

    /// What the last layer reads of these hidden states.
    fn feature<'x>(&self, ops: &O, x: &'x O::Rows) -> Result<Cow<'x, O::Rows>> {
        let Some(dense) = &self.dense else { return Ok(Cow::Owned(ops.dropout(x.clone())?)) };
        let dropped = match dense.drops_input {
            true => Cow::Owned(ops.dropout(x.clone())?),
            false => Cow::Borrowed(x),
        };
        let mut x = ops.linear_act(&dropped, &dense.linear, dense.activation)?;
        if let Some(norm) = &dense.norm {
            x = norm.forward(ops, &x)?;
        }
        Ok(Cow::Owned(ops.dropout(x)?))
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
