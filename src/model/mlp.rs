//! An MLP: all that a layer does after attention, or one of several that are.

use std::sync::Arc;

use crate::model::ModelError;
use crate::model::plan::InsidePlan;
use crate::model::plan::MlpPlan;
use crate::model::weights::Weights;
use crate::ops::Activation;
use crate::ops::Clamp;
use crate::ops::Ops;
use crate::ops::Precision::Working;
use crate::ops::error::Result;

/// What an [`MlpPlan`] describes.
#[derive(Debug)]
pub struct Mlp<O: Ops> {
    inside: Inside<O>,
    activation: Activation,
    clamp: Option<Clamp>,
    /// The last layer.
    pub down: Arc<O::Linear>,
}

/// What is done before `down`.
#[derive(Debug)]
enum Inside<O: Ops> {
    Gated(Arc<O::Gated>),
    Plain(Arc<O::Linear>),
}

impl<O: Ops> Mlp<O> {
    /// Reads what the plan names.
    pub fn load(weights: &mut Weights<'_, O>, plan: &MlpPlan) -> std::result::Result<Self, ModelError> {
        let inside = match &plan.inside {
            InsidePlan::Gated { gate, up } => Inside::Gated(weights.gated(gate, up)?),
            InsidePlan::Plain(up) => Inside::Plain(weights.linear(up, Working)?),
        };
        let &MlpPlan { activation, clamp, .. } = plan;
        Ok(Self { inside, activation, clamp, down: weights.linear(&plan.down, Working)? })
    }

    /// What `down` reads.
    pub fn inside(&self, ops: &O, input: &O::Rows) -> Result<O::Rows> {
        match &self.inside {
            Inside::Gated(gate_up) => match self.clamp {
                Some(clamp) => ops.gated_clamped(input, gate_up, clamp),
                None => ops.gated(input, gate_up, self.activation),
            },
            Inside::Plain(up) => ops.linear_act(input, up, self.activation),
        }
    }
}
