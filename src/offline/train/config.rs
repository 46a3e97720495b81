//! What a training run is told. `crate::config` makes it from file and flags; here it is what the loop reads.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use rand_chacha::rand_core::Rng;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::offline::random;
use crate::offline::train::purpose::Purpose;
use crate::text::Truncation;
use crate::values::Format;

/// All that `rewarm train` must know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The checkpoint that all members start from, but those that name their own.
    pub base: PathBuf,
    /// The folder of the family.
    pub output: PathBuf,
    /// Of everything random that has no seed of its own: the split, the draws, the parts that a base lacks.
    pub seed: u64,
    /// What is learnt from.
    pub data: DataConfig,
    /// The shared head.
    pub probe: ProbeConfig,
    /// What all members have in common.
    pub recipe: Recipe,
    /// In what they differ; at least one.
    pub members: Vec<Member>,
    /// Those of them whose learning rate is still a share of the one that is proposed.
    pub proposed: BTreeSet<usize>,
    /// Steps between states on the disk; changes no result.
    pub checkpoint_every: usize,
}

/// Which pairs are learnt from, and which ones judge.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// Files to train on.
    pub pairs: Vec<PathBuf>,
    /// Files to validate on.
    pub validation: Vec<PathBuf>,
    /// Without such files: the share of the training pairs that is set aside.
    pub validation_fraction: f64,
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
    /// Of pairs that are too long; `Reject` leaves them out, and counts them.
    pub truncation: Truncation,
    /// The share of the training pairs whose label is turned round.
    pub corrupt: f64,
    /// Decides which.
    pub corrupt_seed: u64,
}

/// The linear probe that makes the shared head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeConfig {
    /// Without it, members start from the head that the base has, or from a random one.
    pub enabled: bool,
    /// Strength of the penalty on the head's weights, in units of the features' own variance; else it is chosen.
    pub l2: Option<f64>,
}

/// The settings of the loop that all members share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// A step takes pairs up to this many tokens.
    pub batch_tokens: Option<usize>,
    /// A step takes at most so many pairs.
    pub batch_pairs: Option<usize>,
    /// What is computed at a time, on one thread.
    pub micro_batch_tokens: usize,
    /// The share of the steps in which the learning rate rises.
    pub warmup_fraction: f64,
    /// How it falls after that.
    pub decay: Decay,
    /// Of AdamW, decoupled; on matrices only.
    pub weight_decay: f64,
    /// Of AdamW.
    pub betas: [f64; 2],
    /// Of AdamW.
    pub eps: f64,
    /// The gradients' norm is cut to this; 0: it is not.
    pub clip_norm: f64,
    /// Weight of the mean of `(chosen + rejected)²` in the loss.
    pub centering: f64,
    /// So many first layers stay as they are, and the embeddings with them.
    pub frozen_layers: usize,
    /// The embeddings stay as they are.
    pub frozen_embeddings: bool,
    /// What the members are stored in.
    pub dtype: Format,
    /// Which step of a member is written, where there are validation pairs.
    pub keep: Keep,
    /// A member stops after so many validations in a row without a lower loss; 0: never. Only where the best is kept.
    pub patience: usize,
    /// Steps between validations; without, `VALIDATIONS` of them over a member.
    pub validate_every: Option<usize>,
}

/// Validations of a member, where the settings do not say.
const VALIDATIONS: usize = 10;

/// Which step of a member is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The first of those of least validation loss; step 0, the head before fine-tuning, is one of them.
    #[default]
    Best,
    /// The last.
    Last,
}

/// How the learning rate falls after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// In a straight line, to zero.
    #[default]
    Linear,
    /// In half a cosine, to zero.
    Cosine,
    /// Not at all.
    Constant,
}

/// In what a member differs from the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Where it starts.
    pub base: PathBuf,
    /// The highest.
    pub learning_rate: f64,
    /// The probability that a hidden value is dropped.
    pub dropout: f64,
    /// How often it sees each pair.
    pub epochs: usize,
    /// Of its data order and its dropout.
    pub seed: u64,
}

/// One value for all members, or what each draws its own from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a number, a list of numbers, or { min, max }")]
pub enum Choice {
    /// The same for all.
    One(f64),
    /// All are used before one is used again, in an order of the seed's.
    OneOf(Vec<f64>),
    /// Anything between the two.
    Between(Range),
}

/// Two limits.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// What members draw from.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// Ranges of them are drawn from by factors.
    pub learning_rate: Choice,
    /// Ranges of them are drawn from evenly.
    pub dropout: Choice,
}

impl Choices {
    /// Members that start from `base`; the first ones do not depend on how many follow.
    pub fn draw(&self, members: usize, base: &Path, epochs: usize, seed: u64) -> Vec<Member> {
        let learning_rates =
            self.learning_rate.draw(members, Scale::Logarithmic, seed, Purpose::LearningRates);
        let dropouts = self.dropout.draw(members, Scale::Linear, seed, Purpose::Dropouts);
        let mut seeds = Purpose::Members.stream(seed);
        let member = |(learning_rate, dropout)| Member {
            base: base.to_owned(),
            learning_rate,
            dropout,
            epochs,
            seed: seeds.next_u32().into(),
        };
        learning_rates.into_iter().zip(dropouts).map(member).collect()
    }
}

/// How a value between two limits is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// All values are as likely.
    Linear,
    /// All factors are.
    Logarithmic,
}

impl Choice {
    /// What can be drawn: all of it, or its limits.
    pub fn values(&self) -> Vec<f64> {
        match self {
            Self::One(value) => vec![*value],
            Self::OneOf(values) => values.clone(),
            Self::Between(Range { min, max }) => vec![*min, *max],
        }
    }

    /// One value for each of `members`; the first ones do not depend on how many follow.
    fn draw(&self, members: usize, scale: Scale, seed: u64, purpose: Purpose) -> Vec<f64> {
        let mut random = purpose.stream(seed);
        match self {
            Self::One(value) => vec![*value; members],
            Self::OneOf(values) => {
                let mut drawn = Vec::new();
                while drawn.len() < members {
                    let mut deck = values.clone();
                    random::shuffle(&mut deck, &mut random);
                    drawn.extend(deck);
                }
                drawn.truncate(members);
                drawn
            }
            Self::Between(Range { min, max }) => {
                let mut between = |low: f64, high: f64| low + (high - low) * random::unit(&mut random);
                let draw = |_| match scale {
                    Scale::Linear => between(*min, *max),
                    Scale::Logarithmic => between(min.ln(), max.ln()).exp().clamp(*min, *max),
                };
                (0..members).map(draw).collect()
            }
        }
    }
}

/// A base this wide, at [`STEPS`] steps, has [`RATE`] proposed.
const WIDTH: f64 = 128.0;
const STEPS: f64 = 100.0;
const RATE: f64 = 4e-4;
/// No proposal is outside of these.
const RATES: (f64, f64) = (2e-6, 2e-3);

/// The learning rate that is proposed for a base this wide (its head's features) and members of so many steps, rounded
/// to two digits.
///
/// It is `4e-4 · (128 / width) · √(100 / steps)`, the root between a third and two. A step of AdamW moves every
/// weight by about the learning rate, whatever the gradient: what a layer makes of that grows with its width (Yang et al. 2022,
/// arXiv:2203.03466: rates of like models go as 1 / width), and what many steps make of it with the root of their number at least.
/// The factor is measured, on the demo's base; for a width of 4096 it says 1.3e-5, where rates of 1e-5 to 4e-5 are usual.
pub fn proposed_learning_rate(width: usize, steps: usize) -> f64 {
    let of_steps = (STEPS / steps.max(1) as f64).sqrt().clamp(1.0 / 3.0, 2.0);
    let rate = RATE * WIDTH / width.max(1) as f64 * of_steps;
    two_digits(rate.clamp(RATES.0, RATES.1))
}

/// Rounded to two digits.
fn two_digits(value: f64) -> f64 {
    // as decimal text, which a record and a person hold exactly
    format!("{value:.1e}").parse().expect("a float that was just written")
}

impl Config {
    /// With the learning rates that nobody gave; `steps` tells how many a member has.
    pub fn settled(&self, width: usize, steps: impl Fn(&Member) -> usize) -> Self {
        let mut settled = Self { proposed: BTreeSet::new(), ..self.clone() };
        for &member in &self.proposed {
            let own = &mut settled.members[member];
            own.learning_rate = two_digits(own.learning_rate * proposed_learning_rate(width, steps(own)));
        }
        settled
    }

    /// What determines the results, but for the members' own settings, for the record and for resuming.
    pub fn settings(&self) -> Value {
        let data = &self.data;
        json!({
            "base": self.base,
            "seed": self.seed,
            "validation_fraction": data.validation_fraction,
            "max_tokens": data.max_tokens,
            "truncation": truncation_name(data.truncation),
            "corrupt": data.corrupt,
            "corrupt_seed": data.corrupt_seed,
            "probe": self.probe,
            "recipe": self.recipe,
        })
    }
}

/// As in configuration files.
fn truncation_name(truncation: Truncation) -> &'static str {
    match truncation {
        Truncation::Reject => "reject",
        Truncation::Left => "left",
        Truncation::Right => "right",
    }
}

impl Decay {
    /// What is left of the highest learning rate when this share of the steps after the warm-up is done.
    pub fn factor(self, done: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Self::Constant => 1.0,
        }
    }
}

impl Recipe {
    /// Whether a member stops whose validation loss did not fall so many times in a row.
    pub fn is_out_of_patience(&self, worse_since: usize) -> bool {
        self.patience > 0 && worse_since >= self.patience
    }

    /// Steps between the validations of a member of so many.
    pub fn validate_every(&self, steps: usize) -> usize {
        self.validate_every.unwrap_or(steps.div_ceil(VALIDATIONS)).max(1)
    }

    /// The learning rate of a step (from 0) among `steps`: up in a straight line, then down as [`Decay`] says.
    ///
    /// The first step has one already, and the last one still has one.
    pub fn learning_rate(&self, highest: f64, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_fraction * steps as f64).ceil() as usize;
        if step < warmup {
            return highest * (step + 1) as f64 / warmup as f64;
        }
        highest * self.decay.factor((step - warmup) as f64 / (steps - warmup) as f64)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn a_list_is_used_up_before_a_value_comes_again() {
        let list = Choice::OneOf(vec![1.0, 2.0, 3.0]);
        for seed in 0..5 {
            let drawn = list.draw(7, Scale::Linear, seed, Purpose::LearningRates);
            for part in [&drawn[..3], &drawn[3..6]] {
                let mut sorted = part.to_vec();
                sorted.sort_by(f64::total_cmp);
                assert_eq!(sorted, [1.0, 2.0, 3.0], "{drawn:?}");
            }
            let fewer = list.draw(4, Scale::Linear, seed, Purpose::LearningRates);
            assert_eq!(fewer, drawn[..4], "more members change no draw");
        }
    }

    #[test]
    fn a_range_is_kept_and_a_logarithmic_one_has_its_middle_at_the_geometric_mean() {
        let range = Choice::Between(Range { min: 1e-6, max: 1e-2 });
        let drawn = range.draw(1000, Scale::Logarithmic, 7, Purpose::LearningRates);
        assert!(drawn.iter().all(|value| (1e-6..=1e-2).contains(value)));
        let below = drawn.iter().filter(|value| **value < 1e-4).count();
        assert!((400..600).contains(&below), "{below}");
        assert_eq!(drawn[..3], range.draw(3, Scale::Logarithmic, 7, Purpose::LearningRates));
        assert_ne!(drawn[..3], range.draw(3, Scale::Logarithmic, 7, Purpose::Dropouts));
    }

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let mut recipe = recipe();
        let rates =
            |recipe: &Recipe| (0..10).map(|step| recipe.learning_rate(1.0, step, 10)).collect::<Vec<_>>();
        recipe.warmup_fraction = 0.2;
        let expected = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        assert_eq!(rates(&recipe), expected);
        recipe.decay = Decay::Constant;
        assert_eq!(rates(&recipe)[1..], [1.0; 9]);
        recipe.decay = Decay::Cosine;
        let cosine = rates(&recipe);
        assert!((cosine[6] - 0.5).abs() < 1e-12 && cosine[9] > 0.0, "{cosine:?}");
        recipe.warmup_fraction = 0.0;
        assert_eq!(rates(&recipe)[0], 1.0);
        assert_eq!(recipe.learning_rate(1.0, 0, 1), 1.0, "a single step");
    }

    #[test]
    fn a_proposal_falls_with_width_and_steps_and_has_two_digits() {
        assert_eq!(proposed_learning_rate(128, 100), 4e-4);
        assert_eq!(proposed_learning_rate(4096, 100), 1.3e-5);
        assert_eq!(proposed_learning_rate(384, 200), 9.4e-5);
        assert_eq!(proposed_learning_rate(128, 100_000), 1.3e-4);
        assert_eq!(proposed_learning_rate(16, 1), 2e-3);
    }

    pub(in crate::offline::train) fn recipe() -> Recipe {
        Recipe {
            batch_tokens: Some(1),
            batch_pairs: None,
            micro_batch_tokens: 1,
            warmup_fraction: 0.0,
            decay: Decay::Linear,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            clip_norm: 0.0,
            centering: 0.0,
            frozen_layers: 0,
            frozen_embeddings: false,
            dtype: Format::F32,
            keep: Keep::Best,
            patience: 0,
            validate_every: None,
        }
    }
}
