//! One model, or N members and the reduction of their rewards.
//!
//! ```text
//! batch → each member → rewards `[members]` of each sample → calibrate → reduce → one reward
//! ```

use std::fmt;
use std::panic::resume_unwind;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde::de::value::MapAccessDeserializer;

use crate::model::ModelError;
use crate::model::steps::Meanwhile;
use crate::model::steps::Steps;
use crate::ops::Ahead;
use crate::ops::batch::MIN_SHARED_PREFIX;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;

/// A model that gives each sequence of a batch a raw reward.
///
/// A trait, so that the engine can be tested with models that are slow, fail, or answer NaN on demand.
pub trait Forward: Send + Sync {
    /// One raw reward for each sequence, `[batch]`. A reward may be NaN or infinite: the caller checks.
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError>;

    /// The same to the last bit, with pauses between `steps`, if the model [takes them](Self::takes_steps).
    fn forward_in_steps(&self, batch: &PackedBatch, steps: &mut Steps<'_>) -> Result<Vec<f32>, ModelError> {
        let _ = steps;
        self.forward(batch)
    }

    /// Whether a forward can pause.
    fn takes_steps(&self) -> bool {
        false
    }

    /// Whether sequences of up to `longest` tokens may be packed with their common prefixes shared.
    fn shares_prefixes(&self, longest: usize) -> bool {
        let _ = longest;
        false
    }
}

/// A batch on its way to the models of a scorer.
pub struct Prepared {
    batch: PackedBatch,
    /// What its device got of it.
    ahead: Option<Ahead>,
}

impl Prepared {
    /// As it was packed.
    pub fn batch(&self) -> &PackedBatch {
        &self.batch
    }
}

impl From<PackedBatch> for Prepared {
    fn from(batch: PackedBatch) -> Self {
        Self { batch, ahead: None }
    }
}

/// The models of a scorer.
pub trait Members: Send + Sync {
    /// How many; at least one.
    fn num_members(&self) -> usize;

    /// Raw rewards of each, `[members][batch]`. Adds to `spent[member]` what each took, also when one fails; what
    /// several share is divided among them, and pauses between `steps` are left out.
    fn forward(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Gives a device what it can take of a batch while it computes another one, for the `steps` of this one's forward.
    fn prepare(&self, batch: &PackedBatch) -> Result<Option<Ahead>, ModelError> {
        let _ = batch;
        Ok(None)
    }

    /// Whether all can pause, see [`Forward::takes_steps`].
    fn takes_steps(&self) -> bool;

    /// Whether all may read a batch with shared prefixes, see [`Forward::shares_prefixes`].
    fn shares_prefixes(&self, longest: usize) -> bool;
}

/// One after the other.
impl Members for Vec<Arc<dyn Forward>> {
    fn num_members(&self) -> usize {
        self.len()
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let forward = |(model, spent): (&Arc<dyn Forward>, &mut Duration)| {
            let (begun, paused) = (Instant::now(), steps.paused());
            let rewards = model.forward_in_steps(batch, steps);
            *spent += begun.elapsed().saturating_sub(steps.paused() - paused);
            rewards
        };
        self.iter().zip(spent).map(forward).collect()
    }

    fn takes_steps(&self) -> bool {
        self.iter().all(|model| model.takes_steps())
    }

    fn shares_prefixes(&self, longest: usize) -> bool {
        self.iter().all(|model| model.shares_prefixes(longest))
    }
}

/// Members that are spread over several devices: each part runs on its own, at the same time.
pub struct Spread(Vec<Box<dyn Members>>);

impl Spread {
    /// Of at least one part; the members of the first come first.
    pub fn new(parts: Vec<Box<dyn Members>>) -> Self {
        Self(parts)
    }
}

impl Members for Spread {
    fn num_members(&self) -> usize {
        self.0.iter().map(|part| part.num_members()).sum()
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        _steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut of_parts: Vec<(&dyn Members, &mut [Duration])> = Vec::with_capacity(self.0.len());
        let mut rest = spent;
        for part in &self.0 {
            let (own, others) = rest.split_at_mut(part.num_members());
            of_parts.push((&**part, own));
            rest = others;
        }
        let run =
            |(part, spent): (&dyn Members, &mut [Duration])| part.forward(batch, spent, &mut Steps::whole());
        let mut rewards = Vec::with_capacity(self.num_members());
        thread::scope(|scope| {
            let own = of_parts.remove(0);
            let others: Vec<_> =
                of_parts.into_iter().map(|of_part| scope.spawn(move || run(of_part))).collect();
            rewards.extend(run(own)?);
            for other in others {
                rewards.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            }
            Ok(rewards)
        })
    }

    /// Each part would have to stand still for all.
    fn takes_steps(&self) -> bool {
        false
    }

    fn shares_prefixes(&self, longest: usize) -> bool {
        self.0.iter().all(|part| part.shares_prefixes(longest))
    }
}

/// An affine calibration on a reference set: `(reward - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Mean reward of the reference set.
    pub mean: f64,
    /// Standard deviation of the rewards of the reference set; above zero.
    pub std: f64,
}

/// How the members' rewards become one. Written as `mean`, `min`, `median`, `mean-std=BETA` or `uwo=LAMBDA`, and in files as
/// `{ mean-std = { beta = BETA } }`, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, remote = "Self")]
pub enum Reduction {
    /// The mean.
    #[default]
    Mean,
    /// The smallest: optimistic members cannot pull a reward up.
    Min,
    /// The median; of an even number the mean of the middle two.
    Median,
    /// `mean − beta · std` (population standard deviation).
    MeanStd {
        /// How much disagreement costs; at least 0.
        beta: f64,
    },
    /// Uncertainty-weighted optimisation: `mean − lambda · var` (population variance). Source: Coste et al. 2023
    /// (arXiv:2310.02743).
    Uwo {
        /// How much disagreement costs; at least 0.
        lambda: f64,
    },
}

impl Calibration {
    /// What a raw reward is on the scale of the reference set.
    pub fn apply(self, raw_reward: f64) -> f64 {
        (raw_reward - self.mean) / self.std
    }

    /// What a reward on that scale was.
    pub fn undo(self, reward: f64) -> f64 {
        reward * self.std + self.mean
    }
}

impl FromStr for Reduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, cost) = match text.split_once('=') {
            Some((name, cost)) => {
                (name, Some(cost.trim().parse().map_err(|_| format!("`{cost}` is not a number"))?))
            }
            None => (text, None),
        };
        match (name.trim(), cost) {
            ("mean", None) => Ok(Self::Mean),
            ("min", None) => Ok(Self::Min),
            ("median", None) => Ok(Self::Median),
            ("mean-std", Some(beta)) => Ok(Self::MeanStd { beta }),
            ("uwo", Some(lambda)) => Ok(Self::Uwo { lambda }),
            (name @ ("mean-std" | "uwo"), None) => {
                Err(format!("`{name}` needs what disagreement costs, such as {name}=0.5"))
            }
            _ => Err(format!("`{text}` is none of mean, min, median, mean-std=BETA and uwo=LAMBDA")),
        }
    }
}

impl Serialize for Reduction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Reduction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = Reduction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("mean, min, median, mean-std=BETA, uwo=LAMBDA or a table such as { mean-std = { beta = 0.5 } }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Reduction, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Reduction, A::Error> {
                Reduction::deserialize(MapAccessDeserializer::new(table))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl Reduction {
    /// Makes one reward of the members' calibrated ones; NaN unless all are finite.
    pub fn apply(self, rewards: &[f64]) -> f64 {
        // `min` and `median` would step over a NaN: one member's failure is the ensemble's.
        if !rewards.iter().all(|reward| reward.is_finite()) {
            return f64::NAN;
        }
        let (mean, variance) = mean_and_variance(rewards);
        match self {
            Self::Mean => mean,
            Self::Min => rewards.iter().copied().fold(f64::INFINITY, f64::min),
            Self::Median => median(rewards),
            Self::MeanStd { beta } => mean - beta * variance.sqrt(),
            Self::Uwo { lambda } => mean - lambda * variance,
        }
    }
}

impl std::fmt::Display for Reduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mean => f.write_str("mean"),
            Self::Min => f.write_str("min"),
            Self::Median => f.write_str("median"),
            Self::MeanStd { beta } => write!(f, "mean-std(beta={beta})"),
            Self::Uwo { lambda } => write!(f, "uwo(lambda={lambda})"),
        }
    }
}

/// The reward of one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Reward {
    /// The reduced reward; not checked for finiteness.
    pub reward: f32,
    /// Calibrated rewards of the members, in their order.
    pub member_rewards: Vec<f32>,
    /// Population standard deviation of the member rewards; only for an ensemble.
    pub reward_std: Option<f32>,
}

/// What a variant scores with: one merged model (mode `warm`), or an ensemble (mode `ens`).
pub struct Scorer {
    members: Box<dyn Members>,
    /// One per member.
    calibrations: Vec<Option<Calibration>>,
    /// Only of an ensemble.
    reduction: Option<Reduction>,
}

impl Scorer {
    /// One model; its raw reward is the reward.
    pub fn warm(model: Arc<dyn Forward>) -> Self {
        Self::new(Box::new(vec![model]), vec![None], None)
    }

    /// Several members with their calibrations, reduced to one reward.
    pub fn ens(members: Vec<(Arc<dyn Forward>, Option<Calibration>)>, reduction: Reduction) -> Self {
        let (models, calibrations): (Vec<_>, _) = members.into_iter().unzip();
        Self::new(Box::new(models), calibrations, Some(reduction))
    }

    /// Members that may share work, each with its calibration; without a reduction there is one.
    pub fn new(
        members: Box<dyn Members>,
        calibrations: Vec<Option<Calibration>>,
        reduction: Option<Reduction>,
    ) -> Self {
        debug_assert_eq!(members.num_members(), calibrations.len());
        Self { members, calibrations, reduction }
    }

    /// How many models run for each batch.
    pub fn num_members(&self) -> usize {
        self.members.num_members()
    }

    /// Raw rewards of all members for a batch, `[members][batch]`. Adds to `spent[member]` what each took.
    pub fn forward(&self, batch: &PackedBatch, spent: &mut [Duration]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.forward_in_steps(batch, spent, &mut Steps::whole())
    }

    /// The same to the last bit, with pauses between `steps`, if the members [take them](Self::takes_steps).
    pub fn forward_in_steps(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        self.members.forward(batch, spent, steps)
    }

    /// Gives a device what it can take of a batch ahead of its turn. What fails here is tried again then.
    pub fn prepare(&self, batch: PackedBatch) -> Prepared {
        let ahead = self.members.prepare(&batch).unwrap_or_default();
        Prepared { batch, ahead }
    }

    /// The forward of a batch that was prepared by this scorer, or only packed. `meanwhile` is called at most once, where
    /// a device computes and this thread would wait for it.
    pub fn forward_prepared(
        &self,
        prepared: &mut Prepared,
        spent: &mut [Duration],
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let Prepared { batch, ahead } = prepared;
        self.members.forward(batch, spent, &mut Steps::beside(ahead.take(), meanwhile))
    }

    /// Whether a forward can pause. Those in the composed form cannot: they take a layer's rows at once, and on
    /// another device they are done long after they were called.
    pub fn takes_steps(&self) -> bool {
        self.members.takes_steps()
    }

    /// Packs sequences for [`Self::forward`]: with their common prefixes shared, if all members may read them so.
    pub fn pack_shared(&self, sequences: &[&Sequence]) -> PackedBatch {
        if self.shares_prefixes(sequences) {
            PackedBatch::pack_shared(sequences.iter().copied(), MIN_SHARED_PREFIX)
        } else {
            PackedBatch::pack(sequences.iter().copied())
        }
    }

    /// Whether all members may read the common prefixes of these sequences once.
    pub fn shares_prefixes(&self, sequences: &[&Sequence]) -> bool {
        let longest = sequences.iter().map(|sequence| sequence.token_ids.len()).max();
        self.members.shares_prefixes(longest.unwrap_or(0))
    }

    /// The reward of each sequence, in order, by one forward; not checked for finiteness.
    ///
    /// With `share_prefixes`, what sequences begin with alike is computed once, where the members can.
    pub fn score(&self, sequences: &[&Sequence], share_prefixes: bool) -> Result<Vec<Reward>, ModelError> {
        let batch = match share_prefixes {
            true => self.pack_shared(sequences),
            false => PackedBatch::pack(sequences.iter().copied()),
        };
        let members = self.forward(&batch, &mut vec![Duration::ZERO; self.num_members()])?;
        let raw_rewards = |sample: usize| members.iter().map(|rewards| rewards[sample]).collect::<Vec<f32>>();
        Ok((0..batch.len()).map(|sample| self.reduce(&raw_rewards(sample))).collect())
    }

    /// Calibrates and reduces the raw rewards that the members gave one sample, `[members]`.
    pub fn reduce(&self, raw_rewards: &[f32]) -> Reward {
        let rewards: Vec<f64> = self
            .calibrations
            .iter()
            .zip(raw_rewards)
            .map(|(calibration, &raw)| {
                let raw = f64::from(raw);
                calibration.map_or(raw, |calibration| calibration.apply(raw))
            })
            .collect();
        let member_rewards: Vec<f32> = rewards.iter().map(|&reward| reward as f32).collect();
        let Some(reduction) = self.reduction else {
            return Reward { reward: member_rewards[0], member_rewards, reward_std: None };
        };
        let (_, variance) = mean_and_variance(&rewards);
        let reward = reduction.apply(&rewards);
        Reward { reward: reward as f32, member_rewards, reward_std: Some(variance.sqrt() as f32) }
    }
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(f32);

    impl Forward for Constant {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            Ok(vec![self.0; batch.len()])
        }
    }

    fn reduced(reduction: Reduction, rewards: &[f32], calibration: Option<Calibration>) -> Reward {
        let members = rewards
            .iter()
            .map(|&reward| (Arc::new(Constant(reward)) as Arc<dyn Forward>, calibration))
            .collect();
        Scorer::ens(members, reduction).reduce(rewards)
    }

    #[test]
    fn each_reduction_is_what_its_name_says() {
        let rewards = [1.0, 5.0, 2.0, 4.0]; // mean 3, variance 2.5
        let cases = [
            (Reduction::Mean, 3.0),
            (Reduction::Min, 1.0),
            (Reduction::Median, 3.0),
            (Reduction::MeanStd { beta: 0.5 }, 3.0 - 0.5 * 2.5_f64.sqrt()),
            (Reduction::Uwo { lambda: 0.2 }, 2.5),
        ];
        for (reduction, expected) in cases {
            let reward = reduced(reduction, &rewards, None);
            assert!((f64::from(reward.reward) - expected).abs() < 1e-6, "{reduction}: {}", reward.reward);
            assert_eq!(reward.member_rewards, rewards);
            assert!((f64::from(reward.reward_std.unwrap()) - 2.5_f64.sqrt()).abs() < 1e-6);
        }
        assert_eq!(reduced(Reduction::Median, &[9.0, 1.0, 2.0], None).reward, 2.0);
    }

    #[test]
    fn members_are_calibrated_before_they_are_reduced() {
        let calibration = Some(Calibration { mean: 1.0, std: 2.0 });
        let reward = reduced(Reduction::Min, &[3.0, 7.0], calibration);
        assert_eq!((reward.reward, reward.member_rewards.as_slice()), (1.0, [1.0, 3.0].as_slice()));
    }

    #[test]
    fn no_reduction_hides_a_member_that_is_not_finite() {
        for reduction in
            [Reduction::Mean, Reduction::Min, Reduction::Median, Reduction::MeanStd { beta: 1.0 }]
        {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(
                    !reduced(reduction, &[1.0, bad, 2.0], None).reward.is_finite(),
                    "{reduction} of {bad}"
                );
            }
        }
    }

    #[test]
    fn a_single_model_is_not_reduced() {
        let reward = Scorer::warm(Arc::new(Constant(1.5))).reduce(&[1.5]);
        assert_eq!(reward, Reward { reward: 1.5, member_rewards: vec![1.5], reward_std: None });
    }
}
