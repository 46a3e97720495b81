//! A variant: from its configuration to a scorer, a tokenizer, and a fingerprint.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::model::ModelError;
use crate::model::scorer::Calibration;
use crate::model::scorer::Reduction;
use crate::model::scorer::Scorer;
use crate::text::SampleTokenizer;

/// How members become one reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One model: merged already, or members merged at load.
    Warm,
    /// N members, whose rewards are reduced.
    Ens,
}

/// What the weights and activations are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// Hidden states → one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean over tokens.
    Mean,
    /// The last token, whatever it is.
    LastToken,
    /// The rightmost token that is not the padding token: transformers' rule. With pad == eos it stops before the eos.
    LastNonPadToken,
    /// The first end-of-sequence token.
    FirstEos,
}

/// One variant, as configured. `config.rs` has checked it: the lists agree in length, there is at least one member.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantConfig {
    /// As in requests and metrics.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// Checkpoint directories; one for a merged model.
    pub members: Vec<PathBuf>,
    /// Mode `warm`: one per member, summing to 1; equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// Mode `ens`.
    pub reduction: Reduction,
    /// What to compute in.
    pub dtype: Dtype,
    /// "cpu", "cuda" or "cuda:N".
    pub device: String,
    /// Lowers the model's own limit.
    pub max_tokens: Option<usize>,
    /// Overrides the checkpoint's pooling.
    pub pooling: Option<Pooling>,
}

/// What is told of a loaded variant.
#[derive(Clone, Debug)]
pub struct VariantInfo {
    /// As configured.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// In configured order.
    pub members: Vec<MemberInfo>,
    /// For example "mean" or "uwo(lambda=0.5)"; empty in mode `warm`.
    pub reduction: String,
    /// "f32", "f16" or "bf16".
    pub dtype: &'static str,
    /// For example "cpu" or "cuda:0".
    pub device: String,
    /// The longest sample.
    pub max_tokens: usize,
    /// Hex digest of everything that determines a reward.
    pub fingerprint: String,
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// For example "last_non_pad_token".
    pub pooling: &'static str,
}

/// One of the models that a variant was made from.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    /// As configured.
    pub path: String,
    /// Its share in a merge, else 1.
    pub coefficient: f64,
    /// Hex digest of its weights.
    pub digest: String,
    /// As applied.
    pub calibration: Option<Calibration>,
}

/// A loaded variant.
pub struct Variant {
    /// What is told of it.
    pub info: VariantInfo,
    /// Gives rewards.
    pub scorer: Scorer,
    /// Gives token ids; shared between variants with equal text files.
    pub tokenizer: Arc<SampleTokenizer>,
}

/// Loads variants, and shares between them what is equal: tensors and tokenizers.
#[derive(Default)]
pub struct Loader {}

impl Loader {
    /// Loads one variant. `progress` is told (bytes read, bytes in all) as often as something was read.
    pub fn load(
        &mut self,
        _config: &VariantConfig,
        _progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Variant, ModelError> {
        Err(ModelError::Other("not yet".into()))
    }

    /// Checks everything that can be checked without reading weights: files, configs, tokenizers, shapes.
    pub fn check(&mut self, _config: &VariantConfig) -> Result<(), ModelError> {
        Ok(())
    }
}
