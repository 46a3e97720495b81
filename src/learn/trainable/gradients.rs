//! From preference pairs to the gradient of every parameter.

use candle_core::Device;
use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::Trainable;
use crate::learn::adamw::with_values;
use crate::learn::loss;
use crate::learn::loss::PairLoss;
use crate::model::ModelError;
use crate::model::fill;
use crate::model::plan::Part;
use crate::model::plan::Role;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::training::Dropout;
use crate::ops::training::Training;

/// A preference pair in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPair {
    /// What was preferred.
    pub chosen: Sequence,
    /// To this.
    pub rejected: Sequence,
}

impl TokenPair {
    /// Of both sequences.
    pub fn num_tokens(&self) -> usize {
        self.chosen.token_ids.len() + self.rejected.token_ids.len()
    }
}

/// What one step makes smaller, and how it is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Weight of the mean of `(chosen + rejected)²`; 0 is none.
    pub centering: f64,
    /// Share of activations that is dropped, 0..1.
    pub dropout: f64,
    /// Of this step: the same seed drops the same values.
    pub dropout_seed: u64,
    /// At most so many tokens (or one pair) go through the model at a time. The order of sums, and what is dropped, depend
    /// on it.
    pub micro_batch_tokens: usize,
}

/// What one step found out.
#[derive(Clone, Debug)]
pub struct StepGradients {
    /// In nats: the mean over pairs, with the regulariser.
    pub loss: f64,
    /// Rewards in the order of the pairs, with dropout.
    pub chosen: Vec<f32>,
    /// The same of the rejected ones.
    pub rejected: Vec<f32>,
    /// In the order of the parameters.
    pub gradients: Vec<Tensor>,
}

/// What came of a micro-batch.
struct Backward {
    /// Of each of its pairs, and their losses.
    rewards: Vec<(f32, f32)>,
    losses: Vec<f64>,
    /// Of each parameter that is not a table.
    gradients: Vec<Option<Tensor>>,
    lookups: Vec<Lookup>,
}

/// Gradients of rows of a table.
struct Lookup {
    parameter: usize,
    ids: Vec<u32>,
    rows: Tensor,
    scale: f32,
}

impl Trainable {
    /// The loss of these pairs and its gradient by every parameter.
    ///
    /// The bias of the head's last layer moves all rewards alike, which Bradley–Terry does not see: its gradient is exactly
    /// zero without [centering](Objective::centering). Every other parameter gets a gradient, or this fails and names
    /// those that get none. Fails too if a reward or a gradient is not finite.
    pub fn gradients(
        &self,
        pairs: &[&TokenPair],
        objective: &Objective,
    ) -> Result<StepGradients, ModelError> {
        if !(0.0..1.0).contains(&objective.dropout) {
            let problem = format!("dropout is {}, expected 0 or more and less than 1", objective.dropout);
            return Err(ModelError::Unsupported(problem));
        }
        let batches = fill::runs(pairs.iter().map(|pair| pair.num_tokens()), objective.micro_batch_tokens);
        let mut sums: Vec<Vec<f32>> =
            self.parameters.iter().map(|parameter| vec![0.0; parameter.var.elem_count()]).collect();
        let (mut loss, mut chosen, mut rejected) = (0.0, Vec::new(), Vec::new());
        let run = |index: usize| {
            let range = batches[index].clone();
            self.backward(&pairs[range.clone()], range.start, pairs.len(), objective, index)
        };
        self.threads.in_order(batches.len(), run, |of_batch: Backward| {
            loss += of_batch.losses.iter().sum::<f64>();
            chosen.extend(of_batch.rewards.iter().map(|(chosen, _)| chosen));
            rejected.extend(of_batch.rewards.iter().map(|(_, rejected)| rejected));
            self.accumulate(&mut sums, of_batch)
        })?;
        let trained = self.tensors.iter().filter(|held| held.trained);
        let gradients = sums.into_iter().zip(trained).map(|(mut sum, parameter)| {
            if objective.centering == 0.0 && (parameter.part, parameter.role) == (Part::Output, Role::Bias) {
                sum.fill(0.0); // what is left is rounding noise, and an optimiser would follow it
            }
            if let Some(value) = sum.iter().find(|value| !value.is_finite()) {
                let what = format!("a gradient of `{}`", parameter.name);
                return Err(ModelError::NotFinite { what, value: f64::from(*value) });
            }
            Ok(Tensor::from_vec(sum, parameter.var.dims(), &Device::Cpu)?)
        });
        let gradients = gradients.collect::<Result<_, _>>()?;
        Ok(StepGradients { loss: loss / pairs.len() as f64, chosen, rejected, gradients })
    }

    /// Forward, loss and backward of one micro-batch, whose first pair is the `first` of `num_pairs` of the step.
    fn backward(
        &self,
        pairs: &[&TokenPair],
        first: usize,
        num_pairs: usize,
        objective: &Objective,
        index: usize,
    ) -> Result<Backward, ModelError> {
        let batch = PackedBatch::pack(pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]));
        let mut random = ChaCha8Rng::seed_from_u64(objective.dropout_seed);
        random.set_stream(index as u64);
        let ops = Training::new(self.tracked.clone(), Dropout::new(objective.dropout, random));
        let head = self.model.head();
        let logits = self.forward(&ops, &batch, |hidden, batch| head.logits(&ops, hidden, batch))?;

        let normalization = head.normalization();
        let std = normalization.map_or(1.0, |of| of.std);
        let read = ops.read(std::slice::from_ref(&logits))?.concat();
        let logits = logits.into_iter().next().expect("training has one block");
        let normalize = |logit| normalization.map_or(logit, |of| of.apply(f64::from(logit)) as f32);
        let normalized: Vec<f32> = read.into_iter().map(normalize).collect();
        let (mut rewards, mut losses, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for (place, pair) in normalized.chunks_exact(2).enumerate() {
            for (which, &reward) in ["chosen", "rejected"].iter().zip(pair) {
                if !reward.is_finite() {
                    let what = format!("the {which} reward of pair {}", first + place);
                    return Err(ModelError::NotFinite { what, value: f64::from(reward) });
                }
            }
            let PairLoss { loss, by_chosen, by_rejected } =
                loss::pair_loss(pair[0], pair[1], objective.centering);
            rewards.push((pair[0], pair[1]));
            losses.push(loss);
            slopes.extend([by_chosen, by_rejected].map(|slope| (slope / (std * num_pairs as f64)) as f32));
        }

        // this sum's gradient by a logit is the loss's
        let slopes = Tensor::from_vec(slopes, logits.shape(), &Device::Cpu)?;
        let mut store = (logits * slopes)?.sum_all()?.backward()?;
        let mut lookups = Vec::new();
        for embedded in ops.take_embedded() {
            let Some(rows) = store.remove(&embedded.rows) else { continue };
            for (name, ids) in embedded.tables {
                let parameter = self.trained_place(&name);
                lookups.push(Lookup {
                    parameter,
                    ids,
                    rows: rows.contiguous()?,
                    scale: embedded.scale as f32,
                });
            }
        }
        let gradients: Vec<Option<Tensor>> = self
            .parameters
            .iter()
            .map(|parameter| store.remove(&parameter.var).map(|gradient| gradient.contiguous()).transpose())
            .collect::<Result<_, _>>()?;
        let lacking = gradients.iter().zip(&self.parameters).enumerate().filter(|(place, (gradient, _))| {
            gradient.is_none() && !lookups.iter().any(|lookup| lookup.parameter == *place)
        });
        let names: Vec<String> = lacking.map(|(_, (_, parameter))| parameter.name.clone()).collect();
        if !names.is_empty() {
            return Err(ModelError::NoGradient { names });
        }
        Ok(Backward { rewards, losses, gradients, lookups })
    }

    fn accumulate(&self, sums: &mut [Vec<f32>], of_batch: Backward) -> Result<(), ModelError> {
        for (sum, gradient) in sums.iter_mut().zip(of_batch.gradients) {
            let Some(gradient) = gradient else { continue };
            with_values(&gradient, |values| {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                Ok(())
            })?;
        }
        for Lookup { parameter, ids, rows, scale } in of_batch.lookups {
            let width = rows.dim(1)?;
            with_values(&rows, |values| {
                for (&id, row) in ids.iter().zip(values.chunks_exact(width)) {
                    let sum = &mut sums[parameter][id as usize * width..][..width];
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * scale);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Place among the parameters of one with this name in the base.
    fn trained_place(&self, base_name: &str) -> usize {
        let mut trained = self.tensors.iter().filter(|held| held.trained);
        trained.position(|held| held.base_name == base_name).expect("only what is trained is tracked")
    }
}
