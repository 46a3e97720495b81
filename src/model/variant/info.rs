//! What is told of a loaded variant.

use crate::model::device::Placement;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::model::scorer::Reduction;
use crate::model::variant::FingerprintParts;
use crate::model::variant::config::Mode;
use crate::text::TextRule;
use crate::values::Format;

/// What is told of a loaded variant.
#[derive(Clone, Debug)]
pub struct VariantInfo {
    /// As configured.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// In configured order.
    pub members: Vec<MemberInfo>,
    /// Of the members' rewards, in mode `ens`.
    pub reduction: Option<Reduction>,
    /// What it is computed in; not `auto`.
    pub dtype: Format,
    /// Where it is.
    pub placement: Placement,
    /// The longest sample.
    pub max_tokens: usize,
    /// Hex digest of everything that determines a reward.
    pub fingerprint: String,
    /// Of each part of the fingerprint a digest.
    pub parts: FingerprintParts,
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// Which hidden states its heads read.
    pub pooling: Pooling,
    /// How a prompt and a response become one sequence, if they do.
    pub text_rule: Option<TextRule>,
    /// What of how it scores its config does not say, in words.
    pub notes: Vec<String>,
}

impl VariantInfo {
    /// The names of the parts in which its fingerprint differs from one that is made of `before`.
    pub fn changed_parts(&self, before: &FingerprintParts) -> Vec<&'static str> {
        let has_changed = |(name, digest): &(&&'static str, &String)| before.get(**name) != Some(*digest);
        self.parts.iter().filter(has_changed).map(|(name, _)| *name).collect()
    }

    /// For example "mean" or "uwo(lambda=0.5)"; empty in mode `warm`.
    pub fn reduction_name(&self) -> String {
        self.reduction.map(|reduction| reduction.to_string()).unwrap_or_default()
    }
}

/// One of the models that a variant was made from.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    /// The directory: as configured, or in the hub's cache.
    pub path: String,
    /// "org/name@COMMIT", where it is in a hub's cache.
    pub source: Option<String>,
    /// Its share in a merge, else 1.
    pub coefficient: f64,
    /// Hex digest of its weights.
    pub digest: String,
    /// As applied.
    pub calibration: Option<Calibration>,
}
