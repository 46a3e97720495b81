//! A model whose weights change: loaded from any served family, asked for gradients, and written again.
//!
//! ```text
//! checkpoint (with or without a reward head) → Trainable ⇄ gradients → AdamW → checkpoint
//! pairs → micro-batches, packed → forward, loss, backward (one thread each) → sum in order
//! ```
//!
//! The model is the one that serves, in [`Training`]'s form of the operations. Everything is `f32`, on the CPU.
//!
//! # The same result on any number of threads
//!
//! A step's pairs are cut into micro-batches by their tokens alone. Each runs on one thread, where every sum has one
//! order; and gradients are summed in the order of the micro-batches. So threads decide how long a step takes, and
//! nothing else.

mod gradients;
mod load;
mod save;
mod threads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use serde_json::Map;
use serde_json::Value;

pub use gradients::Objective;
pub use gradients::StepGradients;
pub use gradients::TokenPair;
pub use load::LoadOptions;
use threads::Threads;

use crate::learn::memory::Needed;
use crate::learn::parameter::Parameter;
use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::fill;
use crate::model::plan::Part;
use crate::model::plan::Role;
use crate::model::steps::Steps;
use crate::model::together;
use crate::model::together::Participant;
use crate::ops;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::composed::Batch;
use crate::ops::training::Parameters;
use crate::ops::training::Training;
use crate::text::SampleTokenizer;
use candle_core::Var;

/// Tokens of one forward without gradients.
const SCORED_TOKENS: usize = 2048;

/// A reward model in training.
#[derive(Debug)]
pub struct Trainable {
    dir: PathBuf,
    /// `config.json`, as it will be written but for the precision.
    config: Map<String, Value>,
    tokenizer: SampleTokenizer,
    model: RewardModel<Training>,
    /// All, in the order in which the model asked for them.
    tensors: Vec<Held>,
    /// Those of them that are trained.
    parameters: Vec<Parameter>,
    /// By the base's names: with gradients where a parameter is trained.
    tracked: Arc<Parameters>,
    /// The same values, all without.
    detached: Arc<Parameters>,
    threads: Threads,
    needed: Needed,
}

/// One tensor of the model.
#[derive(Debug)]
struct Held {
    /// In the base.
    base_name: String,
    /// In the checkpoint that is written.
    name: String,
    var: Var,
    trained: bool,
    part: Part,
    role: Role,
}

impl Trainable {
    /// What makes token ids of samples.
    pub fn tokenizer(&self) -> &SampleTokenizer {
        &self.tokenizer
    }

    /// Why steps of so many tokens, in micro-batches of so many, may not fit into the memory that is left beside the weights.
    pub fn memory_doubt(
        &self,
        step_tokens: usize,
        micro_batch_tokens: usize,
        left: Option<u64>,
    ) -> Option<String> {
        let tokens = micro_batch_tokens.min(step_tokens);
        let micro_batches = step_tokens.div_ceil(tokens.max(1));
        self.needed.doubt(micro_batches.min(self.threads.count()), tokens, left)
    }

    /// Width of what the head reads.
    pub fn features_width(&self) -> usize {
        let output = self.tensors.iter().find(|held| held.part == Part::Output && held.role == Role::Weight);
        output.and_then(|held| held.var.dims().last().copied()).unwrap_or(0)
    }

    /// How many threads work on a step.
    pub fn num_threads(&self) -> usize {
        self.threads.count()
    }

    /// What is trained, always in the same order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The reward of each sequence, without dropout.
    pub fn rewards(&self, sequences: &[&Sequence]) -> Result<Vec<f32>, ModelError> {
        let head = self.model.head();
        self.score(sequences, |ops, hidden, batch| {
            let logits = ops.read(&[head.logits(ops, hidden, batch)?])?;
            Ok(head.rewards(logits.concat()))
        })
    }

    /// What the last layer of the head reads of each sequence, `[batch][hidden]`, without dropout.
    pub fn features(&self, sequences: &[&Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.score(sequences, |ops, hidden, batch| {
            let features = ops.read(&[self.model.head().features(ops, hidden, batch)?])?.concat();
            let width = features.len() / batch.inputs().packed.len();
            Ok(features.chunks(width).map(<[f32]>::to_vec).collect())
        })
    }

    /// Gives the last layer of the head these weights, and no bias.
    pub fn set_head(&mut self, weight: &[f32]) -> Result<(), ModelError> {
        for held in self.tensors.iter().filter(|held| held.part == Part::Output) {
            match held.role {
                Role::Weight => {
                    held.var.set(&Tensor::from_slice(weight, held.var.dims(), held.var.device())?)?
                }
                _ => held.var.set(&held.var.zeros_like()?)?,
            }
        }
        Ok(())
    }

    /// Forwards of packed batches, on all threads; results in the order of the sequences.
    fn score<T: Send>(
        &self,
        sequences: &[&Sequence],
        read: impl Fn(&Training, &[Tensor], &Batch<'_>) -> ops::error::Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>, ModelError> {
        let lengths = sequences.iter().map(|sequence| sequence.token_ids.len());
        let batches = fill::runs(lengths, SCORED_TOKENS);
        let mut scored = Vec::with_capacity(sequences.len());
        let run = |index: usize| {
            let batch = PackedBatch::pack(sequences[batches[index].clone()].iter().copied());
            let ops = Training::new(self.detached.clone(), None);
            self.forward(&ops, &batch, |hidden, batch| read(&ops, hidden, batch))
        };
        self.threads.in_order(batches.len(), run, |of_batch| {
            scored.extend(of_batch);
            Ok(())
        })?;
        Ok(scored)
    }

    /// Hands the hidden states that the head wants to `read`.
    fn forward<T>(
        &self,
        ops: &Training,
        batch: &PackedBatch,
        read: impl Fn(&[Tensor], &Batch<'_>) -> ops::error::Result<T>,
    ) -> Result<T, ModelError> {
        let model = Participant { model: &self.model.backbone, wanted: self.model.head.wanted(batch) };
        let (mut spent, mut steps) = ([Duration::ZERO], Steps::whole());
        let read = |_, hidden: &[Tensor], batch: &Batch<'_>| read(hidden, batch);
        Ok(together::forward_together(ops, &[model], batch, &mut spent, &mut steps, read, |made, _| {
            Ok(made)
        })?
        .remove(0))
    }
}
