//! What a checkpoint answered on the references of `rewarm calibrate`, in `rewarm.reference.json` beside it: of each text
//! its length and its raw reward.
//!
//! So a server knows what is usual for whatever it makes of its members: an ensemble's reduced rewards and how far
//! members are apart are computed from what each answered on the same texts. A model that is merged when it is loaded
//! has no rewards of its own here: its are taken to be the weighted mean of its members', as they are to first order.
//! They determine no reward: no fingerprint depends on them.

use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::checkpoint::write::replace_file;
use crate::disk;
use crate::model::ModelError;
use crate::model::scorer::Calibration;
use crate::model::scorer::Scorer;
use crate::values::reference::Reference;
use crate::values::reference::Spread;

/// The file's name in a checkpoint directory.
pub const FILE_NAME: &str = "rewarm.reference.json";

/// Of this form of the file.
const FORMAT: u32 = 1;

/// More say nothing new.
pub const MAX_SAMPLES: usize = 10_000;

/// Of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceRewards {
    format: u32,
    /// Digest of the texts: other members' rewards are of the same ones, or not comparable sample by sample.
    references: String,
    /// How many texts were longer than the limit.
    too_long: usize,
    /// Of each text that was scored.
    tokens: Vec<u32>,
    /// The same.
    rewards: Vec<f32>,
}

impl ReferenceRewards {
    /// Of texts with this digest, lengths and raw rewards.
    pub fn new(references: String, too_long: usize, samples: impl Iterator<Item = (usize, f32)>) -> Self {
        let samples = samples.map(|(tokens, reward)| (u32::try_from(tokens).unwrap_or(u32::MAX), reward));
        let (tokens, rewards) = samples.take(MAX_SAMPLES).unzip();
        Self { format: FORMAT, references, too_long, tokens, rewards }
    }

    /// Those of a checkpoint directory, if it has some.
    pub fn load(dir: &Path) -> Result<Option<Self>, ModelError> {
        let path = dir.join(FILE_NAME);
        let Some(text) = ModelError::read_if_there(&path, disk::VOCABULARY_BYTES)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&text).map_err(|error| error.to_string()).and_then(Self::checked);
        parsed.map(Some).map_err(|problem| ModelError::config(&path, problem))
    }

    fn checked(self) -> Result<Self, String> {
        let Self { format, tokens, rewards, .. } = &self;
        if *format != FORMAT {
            return Err(format!("`format` is {format}, this program reads {FORMAT}"));
        }
        if tokens.len() != rewards.len() || tokens.is_empty() {
            return Err(format!(
                "there are {} tokens and {} rewards: expected as many, and some",
                tokens.len(),
                rewards.len()
            ));
        }
        Ok(self)
    }

    /// Writes them beside a checkpoint, in the place of older ones.
    pub fn write(&self, dir: &Path) -> Result<(), ModelError> {
        let text = serde_json::to_string(self).expect("strings and numbers are JSON") + "\n";
        Ok(replace_file(&dir.join(FILE_NAME), text.as_bytes())?)
    }

    /// Takes those of a directory away; says whether there were some.
    pub fn remove(dir: &Path) -> Result<bool, ModelError> {
        let path = dir.join(FILE_NAME);
        disk::remove_if_there(&path).map_err(|source| ModelError::write(&path, source))
    }
}

/// What a model that is served alone answered on its references, by an older `rewarm calibrate`.
pub fn of_calibration(Calibration { mean, std }: Calibration) -> Reference {
    Reference { reward: Some(Spread { mean, std }), ..Reference::default() }
}

/// What a variant would have answered, whose members' answers these are, with their shares in a merge. None if they are of
/// different texts.
pub fn of_members(members: &[ReferenceRewards], coefficients: &[f64], scorer: &Scorer) -> Option<Reference> {
    let (first, others) = members.split_first()?;
    if others.iter().any(|other| (&other.references, &other.tokens) != (&first.references, &first.tokens)) {
        return None;
    }
    let lengths = || first.tokens.iter().map(|&tokens| f64::from(tokens));
    let of_sample = |sample: usize| -> Vec<f32> { members.iter().map(|of| of.rewards[sample]).collect() };
    let samples = first.tokens.len();
    let (rewards, disagreement): (Vec<f64>, Option<Vec<f64>>) = if scorer.num_members() == members.len() {
        let reduced: Vec<_> = (0..samples).map(|sample| scorer.reduce(&of_sample(sample))).collect();
        let disagreement = reduced.iter().map(|reward| reward.reward_std.map(f64::from)).collect();
        (reduced.iter().map(|reward| f64::from(reward.reward)).collect(), disagreement)
    } else {
        let share = coefficients.iter().sum::<f64>();
        let mean = |sample| {
            let weighted = of_sample(sample).into_iter().zip(coefficients);
            weighted.map(|(reward, share)| f64::from(reward) * share).sum::<f64>() / share
        };
        ((0..samples).map(mean).collect(), None)
    };
    let (reward, tokens) = (spread(rewards.iter().copied()), spread(lengths()));
    let products = rewards
        .iter()
        .zip(lengths())
        .map(|(reward_of, tokens_of)| (reward_of - reward.mean) * (tokens_of - tokens.mean));
    let correlation = products.sum::<f64>() / samples as f64 / (reward.std * tokens.std);
    let texts = samples + first.too_long;
    Some(Reference {
        reward: Some(reward),
        tokens: Some(tokens),
        length_correlation: Some(correlation).filter(|correlation| correlation.is_finite()),
        disagreement: disagreement.map(|of| spread(of.into_iter())),
        too_long: Some((first.too_long as f64 / texts as f64, texts)),
    })
}

fn spread(values: impl Iterator<Item = f64> + Clone) -> Spread {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    Spread { mean, std: (values.map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::scorer::Forward;
    use crate::model::scorer::Reduction;
    use crate::ops::batch::PackedBatch;

    /// Never asked.
    struct NoModel;

    impl Forward for NoModel {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            Ok(vec![0.0; batch.len()])
        }
    }

    fn rewards(references: &str, rewards: [f32; 4]) -> ReferenceRewards {
        ReferenceRewards::new(references.to_owned(), 1, [10, 20, 30, 40].into_iter().zip(rewards))
    }

    #[test]
    fn a_variants_reference_is_what_it_makes_of_its_members() {
        let members = [rewards("a", [0.0, 1.0, 2.0, 3.0]), rewards("a", [2.0, 3.0, 2.0, 1.0])];
        let of = |scorer: &Scorer| of_members(&members, &[0.5, 0.5], scorer).unwrap();
        let model = || Arc::new(NoModel) as Arc<dyn Forward>;
        let ens = |reduction| Scorer::ens(vec![(model(), None), (model(), None)], reduction);

        let mean = of(&ens(Reduction::Mean)); // 1, 2, 2, 2; members apart by 1, 1, 0, 1
        assert_eq!(mean.reward, Some(Spread { mean: 1.75, std: 0.1875f64.sqrt() }));
        assert_eq!(mean.disagreement, Some(Spread { mean: 0.75, std: 0.1875f64.sqrt() }));
        assert_eq!(mean.tokens, Some(Spread { mean: 25.0, std: 125f64.sqrt() }));
        assert_eq!(mean.too_long, Some((0.2, 5)));
        let correlation = mean.length_correlation.unwrap();
        assert!((correlation - 3.75 / (125f64 * 0.1875).sqrt()).abs() < 1e-12, "{correlation}");
        assert_eq!(of(&ens(Reduction::Min)).reward.unwrap().mean, 1.0); // 0, 1, 2, 1

        let warm = of(&Scorer::warm(model()));
        assert_eq!((warm.reward, warm.disagreement), (mean.reward, None));
        let others = [members[0].clone(), rewards("b", [0.0; 4])];
        assert_eq!(of_members(&others, &[0.5, 0.5], &ens(Reduction::Mean)), None);
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_refused_by_its_field() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ReferenceRewards::load(dir.path()).unwrap(), None);
        let written = rewards("a", [0.25, -1.5, 2.0, 1e-7]);
        written.write(dir.path()).unwrap();
        assert_eq!(ReferenceRewards::load(dir.path()).unwrap(), Some(written));
        for (text, says) in [
            (r#"{"format":2,"references":"","too_long":0,"tokens":[1],"rewards":[1.0]}"#, "`format` is 2"),
            (
                r#"{"format":1,"references":"","too_long":0,"tokens":[1],"rewards":[]}"#,
                "1 tokens and 0 rewards",
            ),
            (r#"{"format":1,"references":"","too_long":0,"tokens":[1],"rewards":[1e39]}"#, "out of range"),
            (r#"{"format":1,"tokens":[1]}"#, "missing field"),
        ] {
            std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
            let error = format!("{:?}", ReferenceRewards::load(dir.path()).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
        assert!(
            ReferenceRewards::remove(dir.path()).unwrap() && !ReferenceRewards::remove(dir.path()).unwrap()
        );
    }
}
