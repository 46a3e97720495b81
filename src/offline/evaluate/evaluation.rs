//! What an evaluation found: the fields of `evaluation.json`.
//!
//! Lists `models` of one entry a model, and the rows and columns of matrices, are in the order of
//! [`Evaluation::models`]. Accuracies and shares are from 0 to 1; an absent figure is `null` and means that it does
//! not exist (no pair with a longer chosen response, a constant to correlate with).

use serde::Deserialize;
use serde::Serialize;

use crate::model::scorer::Calibration;
use crate::offline::evaluate::curves::Interpolation;
use crate::offline::evaluate::curves::MemberCount;
use crate::offline::evaluate::interval::Discordant;
use crate::offline::evaluate::interval::Interval;
use crate::offline::evaluate::metrics::LengthControlled;
use crate::offline::evaluate::metrics::Reliability;
use crate::ops::machine::Machine;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Of this layout: 2.
    pub format: u32,
    /// Version of the program.
    pub rewarm: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// What it comes to, in words; the first sentence is the headline.
    pub verdict: Vec<String>,
    /// Members in their order, then WARM and ENS where there are several members, then the start where it is known.
    pub models: Vec<ModelInfo>,
    /// One for each file of pairs; one with a training record becomes several.
    pub sets: Vec<SetResult>,
    /// Lines between members; empty when they were not asked for.
    pub interpolations: Vec<Interpolation>,
    /// From one member to all; empty when it was not asked for.
    pub member_counts: Vec<MemberCount>,
    /// The set that the curves were measured on.
    pub curves_on: Option<String>,
    /// With WARM and ENS.
    pub cost: Option<Cost>,
    /// With a gold model.
    pub best_of_n: Option<BestOfN>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// "f32", "bf16" or "f16".
    pub dtype: &'static str,
    /// For example "cpu".
    pub device: String,
    /// The longest sample, in tokens.
    pub max_tokens: usize,
    /// What became of longer ones: "reject", "left" or "right".
    pub truncation: &'static str,
    /// How ENS makes one reward of its members'.
    pub reduction: String,
    /// Of each bootstrap.
    pub resamples: usize,
    /// Of everything random.
    pub seed: u64,
}

/// A model that was evaluated.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    /// A member's folder, "WARM", "ENS" or "start".
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Checkpoint directories: of a member its own, of a merge at load and of ENS the members'.
    pub paths: Vec<String>,
    /// Hex digest of everything that determines a reward; of a member, of its weights.
    pub fingerprint: String,
    /// Of a merge at load: one per path.
    pub coefficients: Option<Vec<f64>>,
    /// Of ENS: applied to each member before the reduction. A member on its own has its raw reward.
    pub calibrations: Option<Vec<Option<Calibration>>>,
}

/// What a model is among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One fine-tuned model.
    Member,
    /// The members' averaged weights.
    Warm,
    /// The members' reduced rewards.
    Ens,
    /// What the members were before fine-tuning: their base with the shared head.
    Start,
}

/// Which pairs of a file a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All: there is no training record of this file.
    All,
    /// Those trained on with their right label.
    Clean,
    /// Those trained on with a flipped label. The file still has the right one, and so do all figures: an accuracy of
    /// 1 means that the wrong labels left no trace.
    Corrupted,
    /// Those not trained on.
    HeldOut,
}

/// What was found on one set of pairs.
#[derive(Clone, Debug, Serialize)]
pub struct SetResult {
    /// As given, with the part behind it: "train (clean)".
    pub name: String,
    /// Which pairs of the file.
    pub part: Part,
    /// The file.
    pub path: String,
    /// Hex blake3 of the file's content, unpacked.
    pub digest: String,
    /// Pairs that were scored: all figures are of these.
    pub pairs: usize,
    /// Among those, with a response that was truncated.
    pub truncated_pairs: usize,
    /// Pairs that could not be scored.
    pub unscorable: Vec<Unscorable>,
    /// Lines of the file whose two responses are the same; they are in no set.
    pub equal_lines: Vec<usize>,
    /// The rule "the response with more tokens is better".
    pub length_baseline: LengthBaseline,
    /// One per model.
    pub models: Vec<ModelResult>,
    /// Of accuracies.
    pub differences: Vec<Difference>,
    /// Of accuracies, from the models of another evaluation of the same pairs; empty without one.
    pub differences_against: Vec<Difference>,
    /// Of shares memorised, in a corrupted set.
    pub memorised_differences: Vec<Difference>,
    /// Between models.
    pub agreement: Agreement,
    /// By the pairs' `source`, in alphabetical order; empty when no pair has one.
    pub sources: Vec<SourceResult>,
}

/// A pair without rewards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unscorable {
    /// In the file, from 1.
    pub line: usize,
    /// For example that it is too long.
    pub problem: String,
}

/// What length alone achieves. Lengths are tokens of prompt and response, before truncation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LengthBaseline {
    /// Share of pairs whose chosen response is longer; equally long is wrong.
    pub accuracy: f64,
    /// The same, with equally long counted as half right.
    pub accuracy_ties_half: f64,
}

/// A figure with its intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// As measured.
    pub value: f64,
    /// 95%: of a share Wilson's, of a difference between two models Tango's, of one from the members' mean Bonett and Price's, and
    /// of anything else the bootstrap's.
    #[serde(flatten)]
    pub interval: Interval,
    /// The bootstrap's, percentiles of its resamples: beside the other, since it knows nothing of what was not seen.
    pub bootstrap: Interval,
}

impl Estimate {
    /// Of what only the bootstrap has an interval for.
    pub fn by_bootstrap(value: f64, bootstrap: Interval) -> Self {
        Self { value, interval: bootstrap, bootstrap }
    }
}

/// One model on one set.
#[derive(Clone, Debug, Serialize)]
pub struct ModelResult {
    /// Its name.
    pub name: String,
    /// Share of pairs with a margin above zero: a tie is wrong.
    pub accuracy: Estimate,
    /// The same, with a tie counted as half right.
    pub accuracy_ties_half: f64,
    /// Share of pairs whose two rewards are equal.
    pub ties: f64,
    /// Mean of `chosen_reward - rejected_reward`.
    pub mean_margin: f64,
    /// Bradley–Terry loss, mean over pairs, in nats; ln 2 is chance.
    pub log_loss: f64,
    /// Confidence against accuracy.
    pub reliability: Reliability,
    /// Accuracy balanced by length.
    pub length_controlled: LengthControlled,
    /// Correlation of rewards with lengths, over the responses of all pairs: Pearson's.
    pub reward_length_pearson: Option<f64>,
    /// Spearman's.
    pub reward_length_spearman: Option<f64>,
    /// In a corrupted set: share of pairs in which the given, wrong label is reproduced (a margin below zero).
    pub memorised: Option<Estimate>,
}

/// Two models, or a model and the members' mean, on the same pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// For example "WARM".
    pub of: String,
    /// For example "ENS", "start", "mean member" or "best member (member-2)". The best is the one with the highest accuracy on
    /// these very pairs, which flatters it.
    pub against: String,
    /// `of` − `against`, with intervals of paired figures.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Where two models are compared, and not a mean.
    #[serde(flatten)]
    pub paired: Option<Paired>,
}

/// What two models on the same pairs come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// How often only one of them is right.
    #[serde(flatten)]
    pub discordant: Discordant,
    /// McNemar's exact test.
    pub p_value: f64,
    /// The smallest true difference that so many pairs would show four times in five; none if none would.
    pub detectable: Option<f64>,
}

impl From<Discordant> for Paired {
    fn from(discordant: Discordant) -> Self {
        Self { discordant, p_value: discordant.p_value(), detectable: discordant.detectable() }
    }
}

/// How alike the models judge; `[models][models]`.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Share of pairs in which both prefer the same side, or both tie.
    pub same_side: Vec<Vec<f64>>,
    /// Pearson's correlation of rewards, over the responses of all pairs.
    pub pearson: Vec<Vec<Option<f64>>>,
    /// Spearman's.
    pub spearman: Vec<Vec<Option<f64>>>,
}

/// The pairs of one source.
#[derive(Clone, Debug, Serialize)]
pub struct SourceResult {
    /// As in the file; absent for pairs that have none.
    pub source: Option<String>,
    /// How many.
    pub pairs: usize,
    /// One per model; a tie is wrong.
    pub accuracy: Vec<f64>,
}

/// What WARM and ENS took for the same batches, turn by turn in this run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Different samples; each was forwarded once by each.
    pub samples: usize,
    /// Tokens of those.
    pub tokens: u64,
    /// Members of ENS.
    pub members: usize,
    /// WARM's forwards, in all.
    pub warm_seconds: f64,
    /// ENS's forwards, in all.
    pub ens_seconds: f64,
    /// WARM's, for one sample.
    pub warm_seconds_per_sample: f64,
    /// ENS's, for one sample.
    pub ens_seconds_per_sample: f64,
    /// How many times as much ENS takes.
    pub ens_over_warm: f64,
}

/// Best-of-n by each model, judged by a gold model.
#[derive(Clone, Debug, Serialize)]
pub struct BestOfN {
    /// The file of prompts with responses.
    pub path: String,
    /// The gold model's directory.
    pub gold: String,
    /// Its fingerprint.
    pub gold_fingerprint: String,
    /// Prompts that count.
    pub prompts: usize,
    /// The fewest responses that a prompt has: the largest n.
    pub responses: usize,
    /// Prompts left out, because a response cannot be scored.
    pub unscorable: Vec<Unscorable>,
    /// n = 1, 2, 4, ..
    pub points: Vec<BestOfNPoint>,
}

/// One n.
#[derive(Clone, Debug, Serialize)]
pub struct BestOfNPoint {
    /// Responses to choose from.
    pub n: usize,
    /// ln n − (n − 1)/n, in nats.
    pub kl: f64,
    /// Mean gold reward of what each model chooses; the interval is over prompts.
    pub models: Vec<Estimate>,
    /// Mean gold reward of what the gold model itself would choose: nothing can do better.
    pub gold: f64,
}

impl Evaluation {
    /// The number of the one model of this kind.
    pub fn position(&self, kind: Kind) -> Option<usize> {
        self.models.iter().position(|model| model.kind == kind)
    }
}

impl SetResult {
    /// The difference between these two.
    pub fn difference(&self, of: &str, against: &str) -> Option<&Difference> {
        self.differences.iter().find(|difference| difference.of == of && difference.against == against)
    }
}
