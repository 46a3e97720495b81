//! Token ids → rewards. No async, no channels, no gRPC.
//!
//! ```text
//! config.json, rewarm.json → config → families → plan ┐
//! checkpoint: names → layout ─────────────────────────┤
//!             values → weights (→ merge) ─────────────┴→ transformer: embedding, layer → head → RewardModel → scorer → variant
//! ```
//!
//! Beside a checkpoint, a [`manifest`] (`rewarm.json`) says what its own files do not, and [`golden`] rewards what
//! it is known to answer. A [`variant`] is loaded from its configuration; it holds a [`scorer`], which runs one
//! [`RewardModel`] or several, an [`ensemble`], on a [`batch`](crate::ops::batch) of packed sequences. The way back, from rewards to weights,
//! is in [`learn`](crate::learn).

pub mod build;
pub mod compatible;
pub mod config;
pub mod device;
pub mod dtype;
pub mod embedding;
pub mod ensemble;
pub mod experts;
pub mod families;
pub mod fill;
pub mod golden;
pub mod head;
pub mod labels;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod memory;
pub mod mlp;
mod modules;
pub mod norm;
pub mod origin;
mod paths;
pub mod plan;
pub mod pooling;
#[cfg(test)]
mod published;
pub mod reference;
pub mod rope;
pub mod routing;
pub mod scorer;
pub mod shelf;
pub mod steps;
pub mod together;
pub mod transformer;
pub mod trial;
pub mod variant;
pub mod weights;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rewarm_cuda::driver::CudaError;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::disk;
use crate::model::config::CheckpointConfig;
use crate::model::head::Head;
use crate::model::plan::ModelPlan;
use crate::model::scorer::Forward;
use crate::model::steps::Steps;
use crate::model::transformer::Transformer;
use crate::model::weights::TensorStore;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::error::OpsError;
use crate::text::TextError;

/// A transformer with a reward head: token ids → one raw reward for each sequence.
#[derive(Debug)]
pub struct RewardModel<O: Ops> {
    ops: Arc<O>,
    pub(crate) backbone: Transformer<O>,
    pub(crate) head: Head<O>,
}

impl<O: Ops> RewardModel<O> {
    /// Takes from `weights` what the plan names.
    pub fn load(
        weights: &mut Weights<'_, O>,
        plan: &ModelPlan,
        config: &CheckpointConfig,
    ) -> Result<Self, ModelError> {
        let head = Head::load(weights, plan, config)?;
        let backbone = build::transformer(weights.below(&plan.prefix), &plan.backbone)?;
        Ok(Self { ops: weights.ops().clone(), backbone, head })
    }

    /// The model of one checkpoint. What the store holds already is shared.
    pub fn of_checkpoint(
        checkpoint: &Checkpoint,
        config: &CheckpointConfig,
        ops: &Arc<O>,
        store: &mut TensorStore,
    ) -> Result<Self, ModelError> {
        let plan = layout::plan(checkpoint, config)?;
        layout::check(&plan, [checkpoint])?;
        let (members, mut progress) = ([(checkpoint, 1.0)], |_| ());
        let mut weights = Weights::new(&plan, &members, ops, Some(store), &mut progress);
        Self::load(&mut weights, &plan, config)
    }

    /// The reward head.
    pub fn head(&self) -> &Head<O> {
        &self.head
    }
}

impl<O: Ops> Forward for RewardModel<O> {
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        self.forward_in_steps(batch, &mut Steps::whole())
    }

    fn forward_in_steps(&self, batch: &PackedBatch, steps: &mut Steps<'_>) -> Result<Vec<f32>, ModelError> {
        let (model, mut spent) = (std::slice::from_ref(self), [Duration::ZERO]);
        let mut rewards = ensemble::forward_together(&*self.ops, model, batch, &mut spent, steps)?;
        Ok(rewards.remove(0))
    }

    fn takes_steps(&self) -> bool {
        self.ops.at_once().is_some()
    }

    fn shares_prefixes(&self, longest: usize) -> bool {
        self.backbone.shares_prefixes(longest)
    }
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Several things at once, each of which has to be mended.
    #[error("{} problems\n  {}", .0.len(), self.problems().join("\n  "))]
    Several(Vec<ModelError>),
    /// What was found wrong in a trial, by another process.
    #[error("{0}")]
    Refused(String),
    /// Something that we cannot run faithfully.
    #[error("{0}")]
    Unsupported(String),
    /// The config lies about a tensor.
    #[error("tensor `{name}` has shape {found:?}, config.json implies {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// By the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// The files hold tensors that the model does not use.
    #[error("{}: {count} tensors are not part of the architecture that config.json names, the first is `{first}`", path.display())]
    UnusedTensors {
        /// Which checkpoint.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first in alphabetical order.
        first: String,
    },
    /// No reward head.
    #[error("the checkpoint has no reward head: looked for {looked_for}")]
    NoHead {
        /// Tensor names.
        looked_for: String,
    },
    /// A reward, loss or gradient in training.
    #[error("{what} is {value}, which is not finite")]
    NotFinite {
        /// What it is, "a gradient of `score.weight`" for example.
        what: String,
        /// The value.
        value: f64,
    },
    /// Parameters that training would leave as they are, in silence.
    #[error("no gradient reaches {}", names.join(", "))]
    NoGradient {
        /// Of the parameters.
        names: Vec<String>,
    },
    /// Members that cannot be averaged.
    #[error("{} and {} cannot be merged: {problem}", first.display(), member.display())]
    CannotMerge {
        /// The first member.
        first: PathBuf,
        /// The one that differs.
        member: PathBuf,
        /// In what.
        problem: String,
    },
    /// The weights take more memory than there is.
    #[error(transparent)]
    TooLarge(#[from] memory::TooLarge),
    /// Within the load of one member.
    #[error("load {}", path.display())]
    Member {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ModelError>,
    },
    /// The files of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer or the template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// An operation of the model.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The tensor library, where parameters are trained.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Fails with all of them, if there are any.
    pub fn check(problems: Vec<Self>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(problems.into_iter().collect()) }
    }

    /// All that is wrong, each with its causes, in one line.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Several(problems) => problems.iter().flat_map(Self::problems).collect(),
            problem => vec![chain(problem)],
        }
    }

    /// What a driver said of a card that is lost for this process, if that is what happened.
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Ops(OpsError::Cuda(error @ CudaError::Fault { .. })) => Some(error.to_string()),
            Self::Member { source, .. } => source.fault(),
            Self::Several(problems) => problems.iter().find_map(Self::fault),
            _ => None,
        }
    }

    /// Whether there was too little memory, here or on a card.
    pub fn lacks_memory(&self) -> bool {
        match self {
            Self::TooLarge(_) | Self::Ops(OpsError::Cuda(CudaError::OutOfMemory { .. })) => true,
            Self::Member { source, .. } => source.lacks_memory(),
            Self::Several(problems) => problems.iter().any(Self::lacks_memory),
            _ => false,
        }
    }

    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        CheckpointError::read(path, source).into()
    }

    /// A file that may be missing.
    pub(crate) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Self> {
        disk::read_if_there(path, limit).map_err(|source| Self::read(path, source))
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        CheckpointError::write(path, source).into()
    }

    pub(crate) fn config(path: &Path, problem: impl std::fmt::Display) -> Self {
        CheckpointError::config(path, problem).into()
    }
}

/// Of what is wrong, one or several.
impl FromIterator<ModelError> for ModelError {
    fn from_iter<I: IntoIterator<Item = Self>>(problems: I) -> Self {
        let mut problems: Vec<Self> = problems.into_iter().collect();
        if problems.len() == 1 { problems.remove(0) } else { Self::Several(problems) }
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
