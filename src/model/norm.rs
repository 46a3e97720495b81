//! Norms of either kind.

use std::sync::Arc;

use candle_core::Result;

use crate::model::ModelError;
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
    /// Reads `name.weight`; `offset` is added to it (Gemma: 1).
    pub fn rms(
        weights: &mut Weights<'_, O>,
        name: &str,
        width: usize,
        offset: f32,
        eps: f64,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self::Rms { weight: weights.vector(&format!("{name}.weight"), width, offset)?, eps })
    }

    /// Reads `name.weight` and `name.bias`, or does without: ones and zeros take their place.
    pub fn layer(
        weights: &mut Weights<'_, O>,
        name: &str,
        width: usize,
        has_weight: bool,
        has_bias: bool,
        eps: f64,
    ) -> std::result::Result<Self, ModelError> {
        let mut vector = |has: bool, end: &str, constant: f32| match has {
            true => weights.vector(&format!("{name}.{end}"), width, 0.0),
            false => Ok(Arc::new(weights.ops().constant(vec![constant; width])?)),
        };
        Ok(Self::Layer {
            weight: vector(has_weight, "weight", 1.0)?,
            bias: vector(has_bias, "bias", 0.0)?,
            eps,
        })
    }

    /// Norms each row, or, of a norm of that width, each head.
    pub fn forward(&self, ops: &O, x: &O::Rows) -> Result<O::Rows> {
        match self {
            Self::Rms { weight, eps } => ops.rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => ops.layer_norm(x, weight, bias, *eps),
        }
    }
}
