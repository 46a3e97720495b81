//! Norms of either kind.

use std::sync::Arc;

use candle_core::Result;

use crate::model::ModelError;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::model::weights::Weights;
use crate::ops::Ops;

/// A norm with its weights.
#[derive(Debug)]
pub enum Norm<O: Ops> {
    /// `x / rms(x) · weight`
    Rms {
        /// The unit offset added already.
        weight: Arc<O::Vector>,
        /// Added to the mean square.
        eps: f64,
    },
    /// `(x - mean) / std · weight + bias`
    Layer {
        /// Factors.
        weight: Arc<O::Vector>,
        /// Offsets.
        bias: Arc<O::Vector>,
        /// Added to the variance.
        eps: f64,
    },
}

impl<O: Ops> Norm<O> {
    /// Reads what the plan names; a weight that it does not name is one, a bias zero.
    pub fn load(weights: &mut Weights<'_, O>, plan: &NormPlan) -> std::result::Result<Self, ModelError> {
        let NormPlan { kind, weight, bias, width, eps } = plan;
        let has_offset = matches!(kind, NormKind::RmsUnitOffset | NormKind::LayerUnitOffset);
        let offset = if has_offset { 1.0 } else { 0.0 };
        let weight = weights.vector(weight.as_deref(), *width, offset, 1.0)?;
        Ok(match kind {
            NormKind::Rms | NormKind::RmsUnitOffset => Self::Rms { weight, eps: *eps },
            NormKind::Layer | NormKind::LayerUnitOffset => {
                Self::Layer { weight, bias: weights.vector(bias.as_deref(), *width, 0.0, 0.0)?, eps: *eps }
            }
        })
    }

    /// Norms each row, or each run of as many columns as the norm is wide.
    pub fn forward(&self, ops: &O, x: &O::Rows) -> Result<O::Rows> {
        match self {
            Self::Rms { weight, eps } => ops.rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => ops.layer_norm(x, weight, bias, *eps),
        }
    }
}
