//! Models that read a batch together, and share the forward of the layers that they have in common.

use std::sync::Arc;
use std::time::Duration;

use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::scorer::Members;
use crate::model::steps::Steps;
use crate::model::together;
use crate::model::together::Participant;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;

/// The models of a variant: one, or the members of an ensemble.
#[derive(Debug)]
pub struct Ensemble<O: Ops> {
    ops: Arc<O>,
    models: Vec<RewardModel<O>>,
}

impl<O: Ops> Ensemble<O> {
    /// At least one model, all loaded for `ops`.
    pub fn new(ops: Arc<O>, models: Vec<RewardModel<O>>) -> Self {
        Self { ops, models }
    }

    /// Makes sure of what batches of up to `tokens` tokens take on a device, in sequences of up to `longest`: of one token
    /// each, or as long as can be.
    pub fn reserve(&self, tokens: usize, longest: usize) -> Result<(), ModelError> {
        let sequence = |tokens: usize| Sequence { token_ids: vec![0; tokens], type_ids: vec![0; tokens] };
        let longest = longest.clamp(1, tokens);
        let long = std::iter::repeat_n(longest, tokens / longest).chain([tokens % longest]);
        let long: Vec<Sequence> = long.filter(|&tokens| tokens > 0).map(sequence).collect();
        let short = vec![sequence(1); tokens];
        Ok(self.ops.reserve(tokens, |ops| {
            for sequences in [&long, &short] {
                let (batch, mut spent) =
                    (PackedBatch::pack(sequences), vec![Duration::ZERO; self.models.len()]);
                run(ops, &self.models, &batch, &mut spent, &mut Steps::whole())?;
            }
            Ok(())
        })?)
    }

    /// How many layers run for a batch, and how many the models have together.
    pub fn count_layers(&self) -> (usize, usize) {
        let backbones: Vec<_> = self.models.iter().map(|model| &model.backbone).collect();
        together::count_layers(&backbones)
    }
}

impl<O: Ops> Members for Ensemble<O> {
    fn num_members(&self) -> usize {
        self.models.len()
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        forward_together(&*self.ops, &self.models, batch, spent, steps)
    }

    fn takes_steps(&self) -> bool {
        self.ops.at_once().is_some()
    }

    fn shares_prefixes(&self, longest: usize) -> bool {
        self.models.iter().all(|model| model.backbone.shares_prefixes(longest))
    }
}

/// Raw rewards of each model, `[models][batch]`. What each took is added to its place in `spent`; what several have
/// in common is computed once, and its time divided equally among them.
pub(super) fn forward_together<O: Ops>(
    ops: &O,
    models: &[RewardModel<O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    Ok(run(ops, models, batch, spent, steps)?)
}

fn run<O: Ops>(
    ops: &O,
    models: &[RewardModel<O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
) -> crate::ops::error::Result<Vec<Vec<f32>>> {
    let participants: Vec<_> = models
        .iter()
        .map(|model| Participant { model: &model.backbone, wanted: model.head.wanted(batch) })
        .collect();
    ops.run(|| {
        let logits = |index: usize, hidden: &[O::Rows], batch: &O::Batch<'_>| {
            models[index].head.logits(ops, hidden, batch)
        };
        let read = |logits: Vec<Vec<O::Rows>>| ops.read(&logits);
        let read = together::forward_together(ops, &participants, batch, spent, steps, logits, read)?;
        Ok(models.iter().zip(read).map(|(model, logits)| model.head.rewards(logits)).collect())
    })
}
