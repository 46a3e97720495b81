//! One variant, as configured.

use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::model::ModelError;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::golden::GoldenRewards;
use crate::model::paths;
use crate::model::pooling::Pooling;
use crate::model::scorer::Reduction;

/// How members become one reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One model: merged already, or members merged at load.
    Warm,
    /// N members, whose rewards are reduced.
    Ens,
}

impl Mode {
    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Ens => "ens",
        }
    }
}

/// One variant, as configured. `config.rs` has checked it: the lists agree in length, there is at least one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantConfig {
    /// As in requests and metrics.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// Checkpoint directories, or LoRA adapters over `base`; one for a merged model. What is still at a hub has a path that
    /// `hub::place` made, and is fetched before a variant is loaded.
    #[serde(with = "paths::many")]
    pub members: Vec<PathBuf>,
    /// What members that are adapters were trained on.
    #[serde(with = "paths::optional")]
    pub base: Option<PathBuf>,
    /// Mode `warm`: one per member, summing to 1; equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// Mode `ens`.
    pub reduction: Reduction,
    /// What to compute in.
    pub dtype: Dtype,
    /// Where.
    pub device: DeviceName,
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
    /// Overrides the checkpoint's pooling.
    pub pooling: Option<Pooling>,
}

impl VariantConfig {
    /// On the CPU in `f32`, equal coefficients or the mean, everything else as the checkpoints say.
    pub fn new(name: &str, mode: Mode, members: Vec<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            mode,
            members,
            base: None,
            coefficients: None,
            reduction: Reduction::default(),
            dtype: Dtype::default(),
            device: DeviceName::Cpu,
            max_tokens: None,
            pooling: None,
        }
    }

    /// The share of each member: in a merge equal where nothing is said, in an ensemble 1.
    pub fn coefficients(&self) -> Vec<f64> {
        match (self.mode, &self.coefficients) {
            (Mode::Warm, Some(coefficients)) => coefficients.clone(),
            (Mode::Warm, None) => vec![1.0 / self.members.len() as f64; self.members.len()],
            (Mode::Ens, _) => vec![1.0; self.members.len()],
        }
    }

    /// The golden rewards that hold for its models, one for each, in configured order; which do not is told.
    pub fn golden_rewards(&self) -> Result<Vec<Option<GoldenRewards>>, ModelError> {
        let tell = |member: &Path, why: &str| {
            tracing::info!(variant = self.name, member = %member.display(), why, "golden rewards do not apply");
        };
        let mut of_members =
            self.members.iter().map(|path| GoldenRewards::load(path)).collect::<Result<Vec<_>, _>>()?;
        if self.mode == Mode::Warm && self.members.len() > 1 {
            if let Some(member) = of_members.iter().position(Option::is_some) {
                tell(&self.members[member], "they are a member's, and several are merged");
            }
            return Ok(vec![None]);
        }
        for (golden, path) in of_members.iter_mut().zip(&self.members) {
            let overrides =
                |golden: &mut GoldenRewards| self.pooling.is_some_and(|rule| rule != golden.pooling);
            if golden.take_if(overrides).is_some() {
                tell(path, "the configuration overrides the pooling rule that they were taken with");
            }
        }
        Ok(of_members)
    }
}
