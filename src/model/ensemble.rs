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
    let participants: Vec<_> = models
        .iter()
        .map(|model| Participant { model: &model.backbone, wanted: model.head.wanted(batch) })
        .collect();
    ops.run(|| {
        let logits = |index: usize, hidden: &[O::Rows], batch: &O::Batch<'_>| {
            models[index].head.logits(ops, hidden, batch)
        };
        let logits = together::forward_together(ops, &participants, batch, spent, steps, logits)?;
        let read = ops.read(&logits)?;
        Ok(models.iter().zip(read).map(|(model, logits)| model.head.rewards(logits)).collect())
    })
}
