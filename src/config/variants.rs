//! `[variants.NAME]`, and the flags that say the same for `rewarm score`.

use std::path::Path;
use std::path::PathBuf;

use crate::checkpoint::lora;
use crate::config::ConfigError;
use crate::config::file::Problems;
use crate::config::file::Section;
use crate::hub;
use crate::hub::HubId;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::manifest::MAX_COUNT;
use crate::model::pooling::Pooling;
use crate::model::scorer::Reduction;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;

/// Of all variants.
pub(super) const TABLE: &str = "variants";

/// A name becomes a metric label and a health service: it stays short and plain.
const MAX_NAME_BYTES: usize = 64;

/// A variant as the user wrote it.
#[derive(Clone, Debug, Default)]
pub struct VariantOptions {
    /// "warm" or "ens".
    pub mode: Option<Mode>,
    /// One checkpoint: a directory, or a model of the hub.
    pub model: Option<String>,
    /// Several checkpoints.
    pub members: Option<Vec<String>>,
    /// What those that are LoRA adapters were trained on.
    pub base: Option<String>,
    /// One per member.
    pub coefficients: Option<Vec<f64>>,
    /// How members' rewards become one.
    pub reduction: Option<Reduction>,
    /// What to compute in.
    pub dtype: Option<Dtype>,
    /// What to compute it on.
    pub device: Option<DeviceName>,
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
    /// Overrides the checkpoint's.
    pub pooling: Option<Pooling>,
}

/// All `[variants.*]`, and what can be said of those with problems; paths are relative to `folder`.
pub(super) fn take(
    file: &mut Section<'_>,
    folder: &Path,
    problems: &mut Problems,
) -> (Vec<VariantConfig>, Vec<VariantConfig>) {
    let mut variants = file.section(TABLE, problems);
    let names = variants.keys();
    if names.is_empty() {
        problems.add("there is no variant: add a [variants.NAME]");
    }
    let (mut checked, mut partial) = (Vec::new(), Vec::new());
    for name in names {
        let mut section = variants.section(&name, problems);
        let problems_before = problems.0.len();
        section.settle(["model", "members"]);
        let options = VariantOptions {
            mode: section.take("mode", problems),
            model: section.take("model", problems),
            members: section.take("members", problems),
            base: section.take("base", problems),
            coefficients: section.take("coefficients", problems),
            reduction: section.take("reduction", problems),
            dtype: section.take("dtype", problems),
            device: section.take("device", problems),
            max_tokens: section.take("max_tokens", problems),
            pooling: section.take("pooling", problems),
        };
        let is_read = problems.0.len() == problems_before;
        section.finish(problems);
        if !is_read {
            continue; // what is there, and could not be read, would be called missing
        }
        match options.check(&name, folder) {
            Ok(variant) => checked.push(variant),
            Err(found) => {
                partial.extend(found.readable);
                problems.0.extend(found.problems.iter().map(|problem| format!("variants.{name}: {problem}")));
            }
        }
    }
    (checked, partial)
}

/// The one that flags name, after its mode, and what can be said of it with problems.
pub(super) fn only(
    options: &VariantOptions,
    file: &mut Section<'_>,
    problems: &mut Problems,
) -> (Vec<VariantConfig>, Vec<VariantConfig>) {
    if file.has(TABLE) {
        let place = file.place_of(TABLE);
        problems.add(format!(
            "{place}: --model and --members name the only variant: leave them, or the variants of the configuration, out"
        ));
        file.section(TABLE, problems);
    }
    match options.clone().check_alone() {
        Ok(variant) => (vec![variant], Vec::new()),
        Err(found) => {
            problems.0.extend(found.problems);
            (Vec::new(), found.readable)
        }
    }
}

impl VariantOptions {
    /// One model is one reward, whatever that is called.
    fn mode(&self) -> Option<Mode> {
        self.mode.or(self.model.is_some().then_some(Mode::Warm))
    }

    /// As [`Self::check`], of a variant that has no name but that of its mode; paths are relative to the current folder.
    pub fn check_alone(self) -> Result<VariantConfig, ConfigError> {
        let name = self.mode().unwrap_or(Mode::Warm).name();
        self.check(name, Path::new(""))
    }

    /// The variant that this means, or all that speaks against it; paths are relative to `folder`.
    pub fn check(self, name: &str, folder: &Path) -> Result<VariantConfig, ConfigError> {
        let mut problems = Problems::default();
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_plain) {
            problems.add(format!("the name must be 1 to {MAX_NAME_BYTES} of a-z, 0-9, _ and -"));
        }
        let mode = self.mode();
        if mode.is_none() {
            problems.add("mode is missing: \"warm\" or \"ens\"");
        }
        let key = if self.model.is_some() { "model" } else { "members" };
        let members = match (self.model, self.members) {
            (Some(_), Some(_)) => {
                problems.add("model and members contradict each other: give one of them");
                Vec::new()
            }
            (None, None) => {
                problems.add("members is missing (or, in mode warm, model)");
                Vec::new()
            }
            (Some(model), None) => {
                if mode == Some(Mode::Ens) {
                    problems.add("model does not go with mode ens: give members");
                }
                vec![model]
            }
            (None, Some(members)) => {
                if members.is_empty() {
                    problems.add("members is empty");
                }
                members
            }
        };
        match mode {
            Some(Mode::Ens) if self.coefficients.is_some() => {
                problems
                    .add("coefficients do not go with mode ens: they merge weights, reduction joins rewards");
            }
            Some(Mode::Warm) if self.reduction.is_some() => {
                problems.add("reduction does not go with mode warm: there is one model, and one reward");
            }
            _ => {}
        }
        if let Some(coefficients) = &self.coefficients {
            problems.0.extend(coefficient_problems(coefficients, members.len()));
        }
        if let Some(Reduction::MeanStd { beta: cost } | Reduction::Uwo { lambda: cost }) = self.reduction
            && !(cost.is_finite() && cost >= 0.0)
        {
            problems.add(format!("reduction: {cost} must be finite and at least 0"));
        }
        match self.max_tokens {
            Some(0) => problems.add("max_tokens must be above 0"),
            Some(limit) if limit > MAX_COUNT => {
                problems.add(format!("max_tokens is {limit}: the limit is {MAX_COUNT}"));
            }
            _ => {}
        }
        let members: Vec<PathBuf> =
            members.iter().filter_map(|member| directory(key, member, folder, &mut problems)).collect();
        let base = self.base.and_then(|base| directory("base", &base, folder, &mut problems));
        // of what is still at a hub it is seen when it is here
        let may_be_adapter = |member: &PathBuf| lora::is_adapter(member) || HubId::of(member).is_some();
        if base.is_some() && !members.iter().any(may_be_adapter) {
            problems.add(lora::NO_ADAPTER);
        }
        let variant = mode.map(|mode| VariantConfig {
            name: name.to_owned(),
            mode,
            members,
            base,
            coefficients: self.coefficients.map(normalised),
            reduction: self.reduction.unwrap_or_default(),
            dtype: self.dtype.unwrap_or_default(),
            device: self.device.unwrap_or_default(),
            max_tokens: self.max_tokens,
            pooling: self.pooling,
        });
        match variant {
            Some(variant) if problems.0.is_empty() => Ok(variant),
            // with members missing, coefficients are too many; and what is wrong here is not to be found again
            partial => Err(ConfigError {
                problems: problems.0,
                readable: partial
                    .map(|variant| VariantConfig {
                        coefficients: None,
                        reduction: Reduction::default(),
                        ..variant
                    })
                    .into_iter()
                    .collect(),
            }),
        }
    }
}

/// All that speaks against these shares of so many members.
pub fn coefficient_problems(coefficients: &[f64], num_members: usize) -> Vec<String> {
    /// Room for thirds written by hand.
    const SUM_ATOL: f64 = 1e-3;
    let mut problems = Vec::new();
    if coefficients.len() != num_members {
        problems.push(format!("there are {} coefficients for {num_members} members", coefficients.len()));
    }
    let sum: f64 = coefficients.iter().sum();
    if !coefficients.iter().all(|coefficient| coefficient.is_finite()) {
        problems.push("coefficients must be finite".to_owned());
    } else if !coefficients.is_empty() && (sum - 1.0).abs() > SUM_ATOL {
        problems.push(format!(
            "coefficients sum to {sum}: they must sum to 1, or the merge changes the weights' size"
        ));
    }
    problems
}

/// Shares that were rounded by hand, such as three of 0.333, sum to 1: else the merge would be smaller than its members.
pub fn normalised(mut coefficients: Vec<f64>) -> Vec<f64> {
    /// What is left by the sum of shares that are as they were meant.
    const ROUNDING: f64 = 1e-9;
    let sum: f64 = coefficients.iter().sum();
    if (sum - 1.0).abs() > ROUNDING {
        coefficients.iter_mut().for_each(|coefficient| *coefficient /= sum);
    }
    coefficients
}

fn directory(key: &str, member: &str, folder: &Path, problems: &mut Problems) -> Option<PathBuf> {
    hub::place(Path::new(member), folder).map_err(|problem| problems.add(format!("{key}: {problem}"))).ok()
}
