//! Golden rewards: a few samples, with the rewards that a checkpoint gave them, in `rewarm.golden.json` beside it.
//!
//! `rewarm calibrate` writes them, computed in `f32`. A server scores them again before it serves the checkpoint,
//! and refuses when they disagree: something that determines rewards has changed since, on disk or in the
//! program. Samples are stored as they were given, with a digest of their tokens, so that another tokenizer or
//! template is told from other weights. Golden rewards determine no reward: no fingerprint depends on them.
//!
//! # How far may a reward be off?
//!
//! By `share · max(1, |reward|, s)`, where `s` is the standard deviation of the golden rewards: a reward near
//! zero is a sum of larger terms, and as inexact as its neighbours. The shares have room for another order of
//! summation, other instructions, other neighbours in the batch. Largest seen, on that scale: in `f32` 7e-6, in
//! `bf16` 0.026 (SmolLM2-135M; 0.05 in torch), in `f16`, with three bits more, an eighth of it. Other weights, a
//! swapped pooling rule or a lost layer are further off.

use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::checkpoint::write::replace_file;
use crate::disk;
use crate::model::ModelError;
use crate::model::pooling::Pooling;
use crate::ops::batch::Sequence;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::Truncation;
use crate::values::Format;

/// The file's name in a checkpoint directory.
pub const FILE_NAME: &str = "rewarm.golden.json";

/// Of this form of the file.
const FORMAT: u32 = 1;

/// Each is a forward at every start.
pub const MAX_SAMPLES: usize = 4096;

const F32_SHARE: f64 = 1e-4;
const F16_SHARE: f64 = 0.02;
const BF16_SHARE: f64 = 0.1;

/// The golden rewards of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRewards {
    format: u32,
    /// By which hidden states became one vector: a variant that is told another rule cannot be compared.
    pub pooling: Pooling,
    /// Never empty.
    pub samples: Vec<GoldenSample>,
}

/// A sample and its reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenSample {
    /// As it was given.
    pub input: Input,
    /// How many tokens it has.
    pub tokens: usize,
    /// Of token ids and types.
    pub token_digest: String,
    /// The raw reward of the checkpoint, before any calibration.
    pub reward: f32,
}

/// How a checkpoint's rewards disagree with its golden ones. Samples count from 1, in the order of the file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GoldenError {
    /// The text became other tokens.
    #[error(
        "golden sample {sample} of {of} gives {found}, not the {expected} that were scored: tokenizer, chat template \
         or text rule have changed since `rewarm calibrate`"
    )]
    Tokens {
        /// Which.
        sample: usize,
        /// How many there are.
        of: usize,
        /// What it becomes now.
        found: String,
        /// How many tokens it had.
        expected: usize,
    },
    /// The tokens got another reward.
    #[error(
        "golden sample {sample} of {of} ({tokens} tokens): expected reward {expected}, got {got}, tolerance \
         {tolerance:.1e} in {dtype}; {wrong} of {of} disagree. Weights, config.json or pooling have changed since \
         `rewarm calibrate`, or this program computes something else{}. If the change is wanted: \
         `rewarm calibrate --golden-only`, or remove {FILE_NAME}",
        if *dtype == Format::F32 { "" } else { ", or the model needs f32" }
    )]
    Reward {
        /// Which: the one that is furthest off.
        sample: usize,
        /// How many there are.
        of: usize,
        /// Its length.
        tokens: usize,
        /// By the file.
        expected: f32,
        /// By the model; may be not finite.
        got: f32,
        /// By how much they may differ.
        tolerance: f64,
        /// What the model computes in.
        dtype: Format,
        /// How many samples disagree.
        wrong: usize,
    },
    /// All were left out.
    #[error(
        "none of the {of} golden samples was scored: the shortest has {shortest} tokens, more than max_tokens or \
         max_queue_tokens. A test that compares nothing proves nothing: raise the limit, or make golden rewards of \
         shorter texts (`rewarm calibrate --golden-only`), or remove {FILE_NAME}"
    )]
    NothingCompared {
        /// How many there are.
        of: usize,
        /// Tokens.
        shortest: usize,
    },
}

impl GoldenRewards {
    /// Golden rewards of samples; at least one.
    pub fn new(pooling: Pooling, samples: Vec<GoldenSample>) -> Self {
        Self { format: FORMAT, pooling, samples }
    }

    /// Those of a checkpoint directory, if it has some.
    pub fn load(dir: &Path) -> Result<Option<Self>, ModelError> {
        let path = dir.join(FILE_NAME);
        let Some(text) = ModelError::read_if_there(&path, disk::VOCABULARY_BYTES)? else { return Ok(None) };
        Self::parse(&text).map(Some).map_err(|problem| ModelError::config(&path, problem))
    }

    /// Sample by sample, so that an error names the one that is wrong.
    fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            format: u32,
            pooling: Pooling,
            samples: Vec<serde_json::Value>,
        }
        let File { format, pooling, samples } =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if format != FORMAT {
            return Err(format!("`format` is {format}, this program reads {FORMAT}"));
        }
        if samples.is_empty() {
            return Err("`samples` is empty: expected golden rewards".to_owned());
        }
        if samples.len() > MAX_SAMPLES {
            return Err(format!("`samples` has {} entries, the limit is {MAX_SAMPLES}", samples.len()));
        }
        let parse = |(index, sample): (usize, serde_json::Value)| {
            let sample: GoldenSample =
                serde_json::from_value(sample).map_err(|error| format!("`samples[{index}]`: {error}"))?;
            // a number that `f32` cannot hold is read as infinite, and any reward is within its tolerance
            if !sample.reward.is_finite() {
                return Err(format!(
                    "`samples[{index}].reward` is {} in f32: expected a finite number",
                    sample.reward
                ));
            }
            if sample.tokens == 0 {
                return Err(format!("`samples[{index}].tokens` is 0: expected a number above zero"));
            }
            Ok(sample)
        };
        let samples = samples.into_iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { format, pooling, samples })
    }

    /// Writes them beside a checkpoint, in the place of older ones: one sample a line.
    pub fn write(&self, dir: &Path) -> Result<(), ModelError> {
        let line = |sample| serde_json::to_string(sample).expect("strings and numbers are JSON");
        let samples: Vec<String> = self.samples.iter().map(line).collect();
        let (format, pooling) = (self.format, self.pooling.name());
        let text = format!(
            "{{\n\"format\": {format},\n\"pooling\": \"{pooling}\",\n\"samples\": [\n{}\n]\n}}\n",
            samples.join(",\n")
        );
        Ok(replace_file(&dir.join(FILE_NAME), text.as_bytes())?)
    }

    /// Takes those of a directory away; says whether there were some.
    pub fn remove(dir: &Path) -> Result<bool, ModelError> {
        let path = dir.join(FILE_NAME);
        disk::remove_if_there(&path).map_err(|source| ModelError::write(&path, source))
    }

    /// The tokens of each sample; none of one that is longer than the tokenizer's limit, which a configuration
    /// may lower.
    pub fn sequences(&self, tokenizer: &SampleTokenizer) -> Result<Vec<Option<Sequence>>, GoldenError> {
        let tokenize = |(index, golden): (usize, &GoldenSample)| {
            if golden.tokens > tokenizer.max_tokens() {
                return Ok(None);
            }
            let wrong = |found: String| GoldenError::Tokens {
                sample: index + 1,
                of: self.samples.len(),
                found,
                expected: golden.tokens,
            };
            let tokenized = tokenizer.tokenize(&golden.input, Truncation::Reject);
            let tokenized = tokenized.map_err(|error| wrong(format!("an error ({error})")))?;
            let sequence = Sequence { token_ids: tokenized.token_ids, type_ids: tokenized.type_ids };
            if token_digest(&sequence) != golden.token_digest {
                return Err(wrong(format!("{} other tokens", sequence.token_ids.len())));
            }
            Ok(Some(sequence))
        };
        self.samples.iter().enumerate().map(tokenize).collect()
    }

    /// Compares raw rewards, one per sample or none where it was not scored, with the golden ones. Returns the
    /// largest difference. What is not finite never agrees, and to compare nothing is no agreement.
    pub fn compare(&self, rewards: &[Option<f32>], dtype: Format) -> Result<f64, GoldenError> {
        let spread = self.standard_deviation();
        let mut largest = 0.0_f64;
        let mut compared = 0;
        let mut wrong = Vec::new(); // index, reward, tolerance, and by how much it is exceeded
        for (index, (golden, got)) in self.samples.iter().zip(rewards).enumerate() {
            let Some(got) = *got else { continue };
            let expected = f64::from(golden.reward);
            let tolerance = share(dtype) * expected.abs().max(spread).max(1.0);
            let difference = (f64::from(got) - expected).abs();
            compared += 1;
            if difference <= tolerance && tolerance.is_finite() {
                largest = largest.max(difference);
            } else {
                // what is not finite is further off than anything
                let is_finite = got.is_finite() && tolerance.is_finite();
                let excess = if is_finite { difference / tolerance } else { f64::INFINITY };
                wrong.push((index, got, tolerance, excess));
            }
        }
        let worst = wrong.iter().max_by(|(.., one), (.., other)| one.total_cmp(other));
        if compared == 0 {
            let (shortest, of) = (self.samples.iter().map(|sample| sample.tokens).min(), self.samples.len());
            return Err(GoldenError::NothingCompared { of, shortest: shortest.unwrap_or(0) });
        }
        let Some(&(index, got, tolerance, _)) = worst else { return Ok(largest) };
        let golden = &self.samples[index];
        Err(GoldenError::Reward {
            sample: index + 1,
            of: self.samples.len(),
            tokens: golden.tokens,
            expected: golden.reward,
            got,
            tolerance,
            dtype,
            wrong: wrong.len(),
        })
    }

    fn standard_deviation(&self) -> f64 {
        let count = self.samples.len() as f64;
        let rewards = || self.samples.iter().map(|sample| f64::from(sample.reward));
        let mean = rewards().sum::<f64>() / count;
        (rewards().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count).sqrt()
    }
}

/// A digest of token ids and types; 16 hex digits, for this guards against mistakes, not against enemies.
pub fn token_digest(sequence: &Sequence) -> String {
    let mut hasher = blake3::Hasher::new();
    for ids in [&sequence.token_ids, &sequence.type_ids] {
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn share(dtype: Format) -> f64 {
    match dtype {
        Format::F64 | Format::F32 => F32_SHARE,
        Format::F16 => F16_SHARE,
        Format::Bf16 => BF16_SHARE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(rewards: &[f32]) -> GoldenRewards {
        let sample = |(index, &reward): (usize, &f32)| GoldenSample {
            input: Input::Text { prompt: "p".to_owned(), response: format!("\"{index}\"\n") },
            tokens: 5 + index,
            token_digest: "0123456789abcdef".to_owned(),
            reward,
        };
        GoldenRewards::new(Pooling::Cls, rewards.iter().enumerate().map(sample).collect())
    }

    #[test]
    fn what_is_written_is_read_and_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(GoldenRewards::load(dir.path()).unwrap(), None);
        assert!(!GoldenRewards::remove(dir.path()).unwrap());
        let mut second = golden(&[1.0 / 3.0, -1e-30, 16_777_217.0]);
        second.samples[1].input = Input::TokenIds(vec![1, 2]);
        for rewards in [golden(&[0.5]), second] {
            rewards.write(dir.path()).unwrap();
            assert_eq!(GoldenRewards::load(dir.path()).unwrap(), Some(rewards));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        assert!(GoldenRewards::remove(dir.path()).unwrap());
        assert_eq!(GoldenRewards::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        for (text, problem) in [
            ("{", "EOF"),
            (r#"{"format": 2, "pooling": "cls", "samples": []}"#, "`format` is 2, this program reads 1"),
            (r#"{"format": 1, "pooling": "cls", "samples": []}"#, "`samples` is empty"),
            (
                r#"{"format": 1, "pooling": "cls", "samples": [{"reward": 1}]}"#,
                "`samples[0]`: missing field `input`",
            ),
            (r#"{"format": 1, "pooling": "cls"}"#, "missing field `samples`"),
            (r#"{"format": 1, "pooling": "cls", "samples": "all"}"#, "invalid type: string"),
            (
                r#"{"format": 1, "pooling": "cls", "samples": [], "tolerance": 1e9}"#,
                "unknown field `tolerance`",
            ),
            (&with_reward("NaN"), "expected value"),
            (&with_reward("null"), "`samples[0]`: invalid type: null"),
            (&with_reward("\"1.5\""), "`samples[0]`: invalid type: string"),
            (&with_reward("[]"), "`samples[0]`: invalid type: sequence"),
            (&with_reward("1e999"), "number out of range"),
            (&with_reward("-1e39"), "`samples[0].reward` is -inf in f32"),
            (
                &format!(r#"{{"samples": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000)),
                "recursion limit",
            ),
        ] {
            std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
            let error = GoldenRewards::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(FILE_NAME) && error.contains(problem), "{error}");
        }
    }

    /// A file with one sample whose reward is written so.
    fn with_reward(reward: &str) -> String {
        format!(
            r#"{{"format": 1, "pooling": "cls", "samples":
                [{{"input": {{"formatted": "a"}}, "tokens": 1, "token_digest": "0", "reward": {reward}}}]}}"#
        )
    }

    /// An infinite tolerance lets a zeroed classifier pass, and so does a test without samples.
    #[test]
    fn what_is_not_finite_and_what_was_not_compared_never_agree() {
        for expected in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for got in [0.0, expected] {
                let outcome = golden(&[expected, 0.0]).compare(&[Some(got), Some(0.0)], Format::Bf16);
                assert!(matches!(outcome, Err(GoldenError::Reward { .. })), "{expected} {got}: {outcome:?}");
            }
        }
        let error = golden(&[1.0, 2.0]).compare(&[None, None], Format::F32).unwrap_err().to_string();
        assert!(
            error.contains("none of the 2 golden samples was scored: the shortest has 5 tokens"),
            "{error}"
        );
    }

    #[test]
    fn a_difference_is_measured_by_precision_and_size() {
        struct Case {
            dtype: Format,
            expected: f32,
            got: f32,
            agrees: bool,
        }
        let cases = [
            Case { dtype: Format::F32, expected: 0.01, got: 0.010_09, agrees: true },
            Case { dtype: Format::F32, expected: 0.01, got: 0.010_2, agrees: false },
            Case { dtype: Format::F32, expected: -50.0, got: -50.004, agrees: true },
            Case { dtype: Format::F32, expected: -50.0, got: -50.006, agrees: false },
            Case { dtype: Format::F16, expected: 0.5, got: 0.515, agrees: true },
            Case { dtype: Format::F16, expected: 0.5, got: 0.525, agrees: false },
            Case { dtype: Format::Bf16, expected: 0.5, got: 0.59, agrees: true },
            Case { dtype: Format::Bf16, expected: 0.5, got: 0.39, agrees: false },
            Case { dtype: Format::Bf16, expected: 0.5, got: f32::NAN, agrees: false },
        ];
        for Case { dtype, expected, got, agrees } in cases {
            let found = golden(&[expected]).compare(&[Some(got)], dtype);
            assert_eq!(found.is_ok(), agrees, "{dtype} {expected} {got}: {found:?}");
        }
        // among rewards that are far apart, one near zero is allowed what they are
        assert!(golden(&[0.0, 40.0, -40.0]).compare(&[Some(0.003), None, None], Format::F32).is_ok());
    }

    #[test]
    fn the_sample_that_is_furthest_off_is_named() {
        let golden = golden(&[0.0, 0.5, 1.0, 0.2]);
        let error = golden.compare(&[Some(0.1), Some(0.5), Some(1.5), None], Format::F32).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sample 3 of 4 (7 tokens): expected reward 1, got 1.5"), "{text}");
        assert!(text.contains("tolerance 1.0e-4 in f32; 2 of 4 disagree"), "{text}");
        assert_eq!(golden.compare(&[Some(0.0), Some(0.5), Some(1.0), Some(0.2)], Format::Bf16), Ok(0.0));
    }
}
