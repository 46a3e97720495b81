//! What training takes at least, before anything of it is there.
//!
//! Weights, gradients and the moments of AdamW are known to the byte, and what they need and is not there is refused: the system
//! would end the process, hours later perhaps. What the backward pass needs of the forward pass is estimated from the plan
//! (what enters each linear layer that is trained, and queries, keys and values), and only warned of.

use crate::model::ModelError;
use crate::model::plan::FeedForwardPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::LayerPlan;
use crate::model::plan::MlpPlan;
use crate::model::plan::ModelPlan;
use crate::model::plan::Part;
use crate::model::plan::Role;

/// Of an `f32`.
const WIDTH: u64 = 4;

/// What one model in training takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// All weights.
    parameters: u64,
    /// Sums over a step, of what is trained.
    gradients: u64,
    /// What each micro-batch adds to them, until it is added; rows of tables come as they were looked up.
    of_micro_batch: u64,
    /// Two for each that is trained.
    moments: u64,
    /// The weights of the best step so far, where they are kept.
    best: u64,
    /// Of one token that goes through layers in training.
    of_token: u64,
}

impl Needed {
    /// Of a model of which these parts are trained, and whose best weights are kept beside, or not.
    pub(super) fn new(plan: &ModelPlan, is_trained: impl Fn(Part) -> bool, keeps_best: bool) -> Self {
        let sum = |filter: &dyn Fn(Part, Role) -> bool| -> u64 {
            let tensors = plan.tensors.iter().filter(|tensor| filter(tensor.part, tensor.role));
            tensors.map(|tensor| tensor.shape.iter().map(|&size| size as u64).product::<u64>() * WIDTH).sum()
        };
        let trained = sum(&|part, _| is_trained(part));
        let layers = plan.backbone.layers.iter().enumerate();
        let trained_layers = layers.filter(|(index, _)| is_trained(Part::Layer(*index)));
        Self {
            parameters: sum(&|_, _| true),
            gradients: trained,
            of_micro_batch: sum(&|part, role| is_trained(part) && role != Role::Table),
            moments: 2 * trained,
            best: if keeps_best { trained } else { 0 },
            of_token: trained_layers.map(|(_, layer)| kept_of_token(layer)).sum(),
        }
    }

    fn without_activations(&self) -> u64 {
        self.parameters + self.gradients + self.of_micro_batch + self.moments + self.best
    }

    /// Refuses what cannot be trained where so many bytes are left, and nothing of it is there yet.
    pub(super) fn check(&self, left: Option<u64>) -> Result<(), ModelError> {
        let Some(left) = left.filter(|left| self.without_activations() > *left) else { return Ok(()) };
        Err(ModelError::Unsupported(format!(
            "training takes {} at least, and {} of memory are left: the system would end the process. {}",
            self.told(1, 0),
            gigabytes(left),
            WAYS_OUT
        )))
    }

    /// What to warn of, where the weights are there and so many bytes are left: micro-batches of so many tokens, of which so
    /// many go through the model at a time.
    pub(super) fn doubt(&self, at_once: usize, tokens: usize, left: Option<u64>) -> Option<String> {
        let left = left?;
        let more = self.gradients + self.moments + self.best + at_once as u64 * self.of_pass(tokens);
        (more > left).then(|| {
            format!(
                "training takes about {}, and beside the weights {} of memory are left: the system may end the process. {}, or \
                 a smaller micro_batch_tokens, or fewer threads",
                self.told(at_once, tokens),
                gigabytes(left),
                WAYS_OUT
            )
        })
    }

    /// Of one micro-batch on its way through the model.
    fn of_pass(&self, tokens: usize) -> u64 {
        self.of_micro_batch + tokens as u64 * self.of_token
    }

    fn told(&self, at_once: usize, tokens: usize) -> String {
        let at_once = at_once as u64;
        let activations = at_once * tokens as u64 * self.of_token;
        let gradients = self.gradients + at_once * self.of_micro_batch;
        let sum = self.parameters + gradients + self.moments + self.best + activations;
        let mut parts = format!(
            "{} in f32 ({} of parameters, {} of gradients, {} of AdamW's moments",
            gigabytes(sum),
            gigabytes(self.parameters),
            gigabytes(gradients),
            gigabytes(self.moments)
        );
        if self.best > 0 {
            parts += &format!(", {} of the best step's weights", gigabytes(self.best));
        }
        if activations > 0 {
            parts += &format!(
                ", {} of activations: {at_once} micro-batches of {tokens} tokens at a time",
                gigabytes(activations)
            );
        }
        parts + ")"
    }
}

const WAYS_OUT: &str =
    "Give it more memory, or freeze what need not be trained (frozen_layers, frozen_embeddings)";

/// Bytes of a token that the backward pass of a layer needs.
fn kept_of_token(LayerPlan { attention, feed_forward, .. }: &LayerPlan) -> u64 {
    let of_attention =
        [attention.query.input, attention.query.output, attention.key.output, attention.value.output];
    let inside = match feed_forward {
        FeedForwardPlan::Mlp(MlpPlan { inside: InsidePlan::Gated { gate, up }, .. }) => {
            gate.input + gate.output + up.output
        }
        FeedForwardPlan::Mlp(MlpPlan { inside: InsidePlan::Plain(up), .. }) => up.input + up.output,
        FeedForwardPlan::Experts(_) => 0, // which are not trained
    };
    let values = of_attention.into_iter().sum::<usize>() + attention.output.input + inside;
    values as u64 * WIDTH
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a model of 7 GB, all of it trained, as Needed::new finds it.
    fn needed() -> Needed {
        Needed {
            parameters: 7_000_000_000,
            gradients: 7_000_000_000,
            of_micro_batch: 6_000_000_000,
            moments: 14_000_000_000,
            best: 0,
            of_token: 1_000_000,
        }
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_figures() {
        assert!(needed().check(None).is_ok() && needed().check(Some(34_000_000_000)).is_ok());
        let refused = needed().check(Some(33_000_000_000)).unwrap_err().to_string();
        assert_eq!(
            refused,
            "training takes 34.0 GB in f32 (7.0 GB of parameters, 13.0 GB of gradients, 14.0 GB of AdamW's moments) at least, and \
             33.0 GB of memory are left: the system would end the process. Give it more memory, or freeze what need not be \
             trained (frozen_layers, frozen_embeddings)"
        );
    }

    #[test]
    fn what_may_not_fit_is_warned_of_with_its_activations() {
        // 21 GB of sums and moments, and for each of two micro-batches 6 GB and 1 GB
        assert_eq!(needed().doubt(2, 1000, Some(35_000_000_000)), None);
        assert_eq!(needed().doubt(2, 1000, None), None);
        let doubt = needed().doubt(2, 1000, Some(34_999_999_999)).unwrap();
        for part in [
            "about 42.0 GB",
            "19.0 GB of gradients",
            "2.0 GB of activations: 2 micro-batches of 1000 tokens at a time",
            "35.0 GB of memory are left",
            "micro_batch_tokens",
        ] {
            assert!(doubt.contains(part), "{part}: {doubt}");
        }
    }
}
