//! Norms of either kind.

use std::sync::Arc;

use crate::ops::error::Result;

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
        /// Factors of all columns, after that.
        of_heads: Option<Arc<O::Vector>>,
    },
}

impl<O: Ops> Norm<O> {
    /// Reads what the plan names; a weight that it does not name is one, a bias zero.
    pub fn load(weights: &mut Weights<'_, O>, plan: &NormPlan) -> std::result::Result<Self, ModelError> {
        let NormPlan { kind, weight, weights_of_heads, bias, width, eps } = plan;
        let has_offset = matches!(kind, NormKind::RmsUnitOffset | NormKind::LayerUnitOffset);
        let offset = if has_offset { 1.0 } else { 0.0 };
        let weight = weights.vector(weight, *width, offset, 1.0)?;
        Ok(match kind {
            NormKind::Rms | NormKind::RmsUnitOffset => Self::Rms { weight, eps: *eps },
            NormKind::Layer | NormKind::LayerUnitOffset => {
                let bias = weights.vector(bias, *width, 0.0, 0.0)?;
                let has_more = !weights_of_heads.is_empty();
                let of_heads = has_more.then(|| weights.vector(weights_of_heads, *width, offset, 1.0));
                Self::Layer { weight, bias, eps: *eps, of_heads: of_heads.transpose()? }
            }
        })
    }

    /// Norms each row, or each run of as many columns as the norm is wide.
    pub fn forward(&self, ops: &O, x: &O::Rows) -> Result<O::Rows> {
        match self {
            Self::Rms { weight, eps } => ops.rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps, of_heads } => {
                let normed = ops.layer_norm(x, weight, bias, *eps)?;
                match of_heads {
                    Some(factors) => ops.scale(normed, factors),
                    None => Ok(normed),
                }
            }
        }
    }
}
