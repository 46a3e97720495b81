//! Token ids → rewards. No async, no channels, no gRPC.
//!
//! ```text
//! config.json, rewarm.json → config ┐
//! safetensors → weights (→ merge) ──┴→ decoder | encoder → head → RewardModel → scorer → variant
//!                                        └ transformer, of ops
//! ```
//!
//! Beside a checkpoint, a [`manifest`] (`rewarm.json`) says what its own files do not, and [`golden`] rewards what
//! it is known to answer. A [`variant`] is loaded from its configuration; it holds a [`scorer`], which runs one
//! [`RewardModel`] or several, a [`family`], on a [`batch`] of packed sequences.
//!
//! And back, from rewards to weights:
//!
//! ```text
//! weights → trainable (transformer, of ops::training) → loss → gradients → adamw ─┐
//! members, or adapters over a base (lora) → merge, likeness ──────────────────────┴→ save → safetensors
//! ```

pub mod adamw;
pub mod ahead;
pub mod batch;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod family;
mod foreign;
pub mod golden;
pub mod head;
pub mod likeness;
pub mod lora;
pub mod loss;
pub mod manifest;
pub mod memory;
pub mod merge;
pub mod norm;
pub mod ops;
pub mod origin;
pub mod rope;
pub mod save;
pub mod scorer;
pub mod steps;
pub mod together;
pub mod trainable;
pub mod transformer;
pub mod trial;
pub mod variant;
pub mod weights;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::batch::PackedBatch;
use crate::model::config::BackboneConfig;
use crate::model::config::CheckpointConfig;
use crate::model::head::Head;
use crate::model::ops::Ops;
use crate::model::scorer::Forward;
use crate::model::steps::Steps;
use crate::model::transformer::Transformer;
use crate::model::weights::Weights;
use crate::text::TextError;

/// A transformer with a reward head: token ids → one raw reward for each sequence.
#[derive(Debug)]
pub struct RewardModel<O: Ops> {
    ops: Arc<O>,
    backbone: Transformer<O>,
    head: Head<O>,
}

impl<O: Ops> RewardModel<O> {
    /// Takes from `weights` what `config` asks for.
    pub fn load(weights: &mut Weights<'_, O>, config: &CheckpointConfig) -> Result<Self, ModelError> {
        let head = Head::load(weights, config)?;
        let backbone = match &config.backbone {
            BackboneConfig::Decoder(config) => decoder::load(weights, config)?,
            BackboneConfig::Encoder(config) => encoder::load(weights, config)?,
        };
        Ok(Self { ops: weights.ops().clone(), backbone, head })
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
        let mut rewards = family::forward_together(&*self.ops, model, batch, &mut spent, steps)?;
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
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a checkpoint directory.
    #[error("{}: {problem}", path.display())]
    NoCheckpoint {
        /// Which directory.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        problem: String,
    },
    /// A JSON file says something that we cannot follow.
    #[error("{}: {problem}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Names the field and the value.
        problem: String,
    },
    /// A weights file that is not whole.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What was found wrong in a trial, by another process.
    #[error("{0}")]
    Refused(String),
    /// Something that we cannot run faithfully.
    #[error("{0}")]
    Unsupported(String),
    /// The config promises a tensor that the files do not hold.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Which.
        name: String,
    },
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
    /// NaN or infinity among the weights.
    #[error("tensor `{name}` holds a value that is not finite in this precision ({value})")]
    NotFiniteWeight {
        /// Which tensor.
        name: String,
        /// The value.
        value: f64,
    },
    /// A reward, loss or gradient in training.
    #[error("{what} is {value}, which is not finite")]
    NotFinite {
        /// Names it.
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
        /// Why.
        source: Box<ModelError>,
    },
    /// The tokenizer or the template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    fn config(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Config { path: path.to_owned(), problem: problem.to_string() }
    }
}
