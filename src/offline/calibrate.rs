//! `rewarm calibrate`: what a member answers on reference texts → its calibration, and its golden rewards.
//!
//! ```text
//! references → texts → rewards of one member ┬→ mean, standard deviation   (rewarm.json)
//!                                            └→ a few samples, as they are (rewarm.golden.json)
//! ```
//!
//! Rewards are raw: what the member returns, before any earlier calibration. An OpenRLHF checkpoint that carries a
//! `mean` and `std` of its own has applied those already. Nothing is ever written into weights.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use rayon::iter::IntoParallelRefIterator;
use rayon::iter::ParallelIterator;
use serde_json::Value;

use crate::model::golden::GoldenRewards;
use crate::model::golden::GoldenSample;
use crate::model::golden::token_digest;
use crate::model::pooling::Pooling;
use crate::model::reference::ReferenceRewards;
use crate::model::scorer::Calibration;
use crate::offline::random;
use crate::offline::score::Local;
use crate::offline::score::read_inputs;
use crate::ops::batch::Sequence;
use crate::text::Input;
use crate::text::TextError;
use crate::text::Truncation;
use crate::text::dataset::Dataset;
use crate::text::lines;

/// With fewer, the standard deviation is a guess: its own standard error is `1 / sqrt(2 (n - 1))`, 7% at 100.
pub const MIN_SAMPLES: usize = 100;
/// Golden samples are not longer, if enough others are there: a server scores them at every start.
const MAX_GOLDEN_TOKENS: usize = 512;
/// Rewards that differ by less, as a share of the largest, are equal but for rounding in `f32`.
const MIN_RELATIVE_STD: f64 = 1e-6;
/// Scored at a time, between two steps of the progress bar.
const CHUNK_SAMPLES: usize = 256;

/// The texts of files: lines as for `rewarm score`, or preference pairs, of which both responses count.
pub fn read_references(paths: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        if holds_pairs(path).with_context(|| format!("read {}", path.display()))? {
            let pairs = Dataset::read(path)?.pairs;
            inputs.extend(pairs.into_iter().flat_map(|pair| [pair.chosen, pair.rejected]));
        } else {
            let read = || read_inputs(lines::open(path)?);
            inputs.extend(read().with_context(|| format!("read {}", path.display()))?);
        }
    }
    if inputs.is_empty() {
        bail!("the references hold no texts");
    }
    Ok(inputs)
}

/// By the first line that is not blank.
fn holds_pairs(path: &Path) -> std::io::Result<bool> {
    for line in lines::open(path)?.split(b'\n') {
        let line = line?;
        if !line.trim_ascii().is_empty() {
            let value: Value = serde_json::from_slice(&line).unwrap_or_default();
            return Ok(value.get("chosen").is_some() || value.get("rejected").is_some());
        }
    }
    Ok(false)
}

/// What one member answered on the references.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// In the order of the references, without those that could not be scored.
    pub samples: Vec<GoldenSample>,
    /// References that are longer than the member's limit.
    pub too_long: usize,
    /// Why other references have no tokens, one for each.
    pub unscorable: Vec<String>,
}

/// Scores `inputs`; `progress` is told how many are done. Fails if one that has tokens gets no finite reward.
pub fn measure(model: &Local, inputs: &[Input], progress: &mut dyn FnMut(usize)) -> anyhow::Result<Measured> {
    let mut measured = Measured { samples: Vec::new(), too_long: 0, unscorable: Vec::new() };
    let chunks = inputs.chunks(CHUNK_SAMPLES);
    for (chunk, first) in chunks.zip((0..).step_by(CHUNK_SAMPLES)) {
        let tokenizer = &model.variant.tokenizer;
        let tokenized: Vec<_> =
            chunk.par_iter().map(|input| tokenizer.tokenize(input, Truncation::Reject)).collect();
        let (mut scorable, mut sequences) = (Vec::new(), Vec::new());
        for (index, (input, tokenized)) in chunk.iter().zip(tokenized).enumerate() {
            match tokenized {
                Ok(sample) => {
                    scorable.push((first + index, input));
                    sequences.push(Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids });
                }
                Err(TextError::TooLong { .. }) => measured.too_long += 1,
                Err(error) => measured.unscorable.push(error.to_string()),
            }
        }
        let rewards = model.rewards(&sequences);
        for (((index, input), sequence), reward) in scorable.into_iter().zip(&sequences).zip(rewards) {
            let reward = match reward {
                Ok(reward) => reward.reward,
                Err(problem) => bail!("reference {} of {}: {problem}", index + 1, inputs.len()),
            };
            measured.samples.push(GoldenSample {
                input: input.clone(),
                tokens: sequence.token_ids.len(),
                token_digest: token_digest(sequence),
                reward,
            });
        }
        progress(first + chunk.len());
    }
    Ok(measured)
}

impl Measured {
    /// Mean and population standard deviation of the rewards, summed in `f64`; NaN of none.
    pub fn mean_and_std(&self) -> (f64, f64) {
        let count = self.samples.len() as f64;
        let rewards = || self.samples.iter().map(|sample| f64::from(sample.reward));
        let mean = rewards().sum::<f64>() / count;
        (mean, (rewards().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count).sqrt())
    }

    /// The calibration that these rewards mean.
    pub fn calibration(&self) -> anyhow::Result<Calibration> {
        let count = self.samples.len();
        if count < MIN_SAMPLES {
            bail!("{count} references were scored, a calibration needs {MIN_SAMPLES}: give more");
        }
        let (mean, std) = self.mean_and_std();
        let (min, max) = self.range();
        let largest = f64::from(min.abs().max(max.abs()));
        if std <= MIN_RELATIVE_STD * largest {
            bail!(
                "all {count} references got the same reward ({mean:.6}, standard deviation {std:.1e}): \
                 a member that tells nothing apart cannot be calibrated"
            );
        }
        Ok(Calibration { mean: rounded(mean), std: rounded(std) })
    }

    /// The smallest and the largest reward.
    pub fn range(&self) -> (f32, f32) {
        let rewards = || self.samples.iter().map(|sample| sample.reward);
        (rewards().fold(f32::INFINITY, f32::min), rewards().fold(f32::NEG_INFINITY, f32::max))
    }

    /// Up to `count` different samples of all lengths, the same for the same seed: the samples, in the order of
    /// their lengths, are cut into `count` parts, and one is drawn of each.
    pub fn golden_samples(&self, count: usize, seed: u64) -> Vec<GoldenSample> {
        let mut seen = HashSet::new();
        let is_new = |sample: &&GoldenSample| {
            seen.insert(serde_json::to_string(&sample.input).expect("strings and numbers are JSON"))
        };
        let mut candidates: Vec<&GoldenSample> = self.samples.iter().filter(is_new).collect();
        candidates.sort_by_key(|sample| sample.tokens); // stable: equal lengths stay in the order of the references
        let short = candidates.partition_point(|sample| sample.tokens <= MAX_GOLDEN_TOKENS);
        candidates.truncate(short.max(count));
        let count = count.min(candidates.len());
        let mut random = random::stream(seed, 0);
        let draw = |part: usize| {
            let bounds = [part, part + 1].map(|part| part * candidates.len() / count);
            let size = bounds[1] - bounds[0]; // at least 1
            candidates[bounds[0] + random::below(size, &mut random)].clone()
        };
        (0..count).map(draw).collect()
    }

    /// What was answered on these references, for a server to tell what is unusual.
    pub fn reference_rewards(&self, references: &[Input]) -> ReferenceRewards {
        let mut hasher = blake3::Hasher::new();
        for input in references {
            let text = serde_json::to_vec(input).expect("strings and numbers are JSON");
            hasher.update(&(text.len() as u64).to_le_bytes()).update(&text);
        }
        let samples = self.samples.iter().map(|sample| (sample.tokens, sample.reward));
        ReferenceRewards::new(hasher.finalize().to_hex().to_string(), self.too_long, samples)
    }

    /// Golden rewards for the self-test of a server.
    pub fn golden_rewards(&self, count: usize, seed: u64, pooling: Pooling) -> anyhow::Result<GoldenRewards> {
        let samples = self.golden_samples(count, seed);
        if samples.is_empty() {
            bail!("no reference could be scored: there is nothing to keep as golden rewards");
        }
        Ok(GoldenRewards::new(pooling, samples))
    }
}

/// To nine digits: more than a reward in `f32` has, and few enough that a file's reader gets the same number.
fn rounded(value: f64) -> f64 {
    format!("{value:.8e}").parse().expect("a number's own digits are a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, tokens: usize, reward: f32) -> GoldenSample {
        GoldenSample { input: Input::Formatted(text.to_owned()), tokens, token_digest: String::new(), reward }
    }

    fn measured(samples: Vec<GoldenSample>) -> Measured {
        Measured { samples, too_long: 0, unscorable: Vec::new() }
    }

    fn of_rewards(rewards: impl IntoIterator<Item = f32>) -> Measured {
        measured(
            rewards.into_iter().enumerate().map(|(i, reward)| sample(&i.to_string(), i, reward)).collect(),
        )
    }

    #[test]
    fn a_calibration_is_mean_and_population_standard_deviation() {
        // half 3 and half 5, far from zero: where a one-pass variance in f32 would be noise
        let rewards =
            |offset: f32| (0..MIN_SAMPLES).map(move |i| offset + if i % 2 == 0 { 3.0 } else { 5.0 });
        for offset in [0.0, 1e4, -1e4] {
            let Calibration { mean, std } = of_rewards(rewards(offset)).calibration().unwrap();
            assert_eq!((mean, std), (f64::from(offset) + 4.0, 1.0));
        }
        assert_eq!(of_rewards([2.0, -1.0, 7.0]).range(), (-1.0, 7.0));
        assert_eq!([rounded(-4.000_000_056_789), rounded(2e-9 / 3.0)], [-4.000_000_06, 6.666_666_67e-10]);
    }

    #[test]
    fn what_cannot_be_a_calibration_is_refused() {
        let few = of_rewards((0..MIN_SAMPLES - 1).map(|i| i as f32)).calibration().unwrap_err().to_string();
        assert!(few.contains("99 references were scored, a calibration needs 100"), "{few}");
        for constant in [0.0, 0.1, -7e8] {
            let error = of_rewards([constant; 150]).calibration().unwrap_err().to_string();
            assert!(error.contains("all 150 references got the same reward"), "{error}");
        }
        let noise = (0..150).map(|i| if i == 7 { 1.0 + f32::EPSILON } else { 1.0 });
        assert!(of_rewards(noise).calibration().is_err());
    }

    #[test]
    fn golden_samples_are_different_of_all_lengths_and_repeatable() {
        let samples: Vec<_> =
            (0..400).map(|i| sample(&format!("{}", i % 200), 1 + (i % 200) * 5, i as f32)).collect();
        let measured = measured(samples);
        let chosen = measured.golden_samples(32, 7);
        assert_eq!(chosen, measured.golden_samples(32, 7));
        assert_ne!(chosen, measured.golden_samples(32, 8));
        let lengths: Vec<usize> = chosen.iter().map(|sample| sample.tokens).collect();
        assert_eq!(lengths.len(), 32);
        assert!(lengths.windows(2).all(|pair| pair[0] < pair[1]), "each text once: {lengths:?}");
        assert!(lengths[0] < 20 && (480..=512).contains(&lengths[31]), "{lengths:?}");
        // more than there are short ones: then long ones, too, and each once
        assert_eq!(measured.golden_samples(150, 7).len(), 150);
        assert_eq!(measured.golden_samples(1000, 7).len(), 200);
        assert!(measured.golden_samples(0, 7).is_empty());
    }

    #[test]
    fn references_are_lines_to_score_or_both_responses_of_pairs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let pairs = write("pairs", "\n{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}\n");
        let lines = write("lines", "{\"formatted\":\"f\"}\n\n{\"token_ids\":[1]}\n");
        let text = |response: &str| Input::Text { prompt: "p".to_owned(), response: response.to_owned() };
        let expected = [text("a"), text("b"), Input::Formatted("f".to_owned()), Input::TokenIds(vec![1])];
        assert_eq!(read_references(&[pairs.clone(), lines]).unwrap(), expected);

        for (name, text, says) in [
            ("bad-pair", "{\"prompt\":\"p\",\"chosen\":\"a\"}", "bad-pair:1: not a pair"),
            ("bad-line", "{\"formatted\":\"f\"}\n{", "bad-line: line 2: EOF"),
            ("empty", "\n", "the references hold no texts"),
        ] {
            let error = format!("{:#}", read_references(&[write(name, text)]).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
        let error = format!("{:#}", read_references(&[dir.path().join("nowhere")]).unwrap_err());
        assert!(error.contains("nowhere"), "{error}");
    }
}
