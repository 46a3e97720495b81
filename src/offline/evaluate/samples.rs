//! Samples → raw rewards: tokenized, each different one once, in packed batches.
//!
//! A response that stands in several pairs is one sample, and is forwarded once for each model.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use rayon::iter::IntoParallelRefIterator;
use rayon::iter::ParallelIterator;

use crate::model::fill;
use crate::model::scorer::Scorer;
use crate::offline::evaluate::Progress;
use crate::offline::evaluate::Unit;
use crate::ops::batch::Sequence;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::TokenizedSample;
use crate::text::Truncation;

/// Where a sample comes from, for errors.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) file: Arc<Path>,
    /// From 1.
    pub(super) line: usize,
    /// For example "chosen".
    pub(super) part: String,
}

/// A sample of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// In the pool.
    pub(super) index: usize,
    /// Of prompt and response together, before anything was dropped.
    pub(super) tokens: usize,
    /// Of those, dropped to fit.
    pub(super) truncated_tokens: usize,
}

/// Different samples, each with where it was seen first.
#[derive(Default)]
pub(super) struct Pool {
    sequences: Vec<Sequence>,
    origins: Vec<Origin>,
    index: HashMap<blake3::Hash, usize>,
}

impl Pool {
    /// Tokenizes and adds samples; says for each where it is, or why it cannot be scored.
    pub(super) fn add(
        &mut self,
        tokenizer: &SampleTokenizer,
        truncation: Truncation,
        samples: &[(&Input, Origin)],
    ) -> Vec<Result<Sample, String>> {
        let tokenized: Vec<_> =
            samples.par_iter().map(|(input, _)| tokenizer.tokenize(input, truncation)).collect();
        tokenized
            .into_iter()
            .zip(samples)
            .map(|(sample, (_, origin))| sample.map(|sample| self.place(sample, origin)))
            .map(|sample| sample.map_err(|error| error.to_string()))
            .collect()
    }

    fn place(&mut self, sample: TokenizedSample, origin: &Origin) -> Sample {
        let TokenizedSample { token_ids, type_ids, truncated_tokens, .. } = sample;
        let tokens = token_ids.len() + truncated_tokens;
        let sequence = Sequence { token_ids, type_ids };
        let next = self.sequences.len();
        let index = *self.index.entry(digest(&sequence)).or_insert(next);
        if index == next {
            self.sequences.push(sequence);
            self.origins.push(origin.clone());
        }
        Sample { index, tokens, truncated_tokens }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens of these samples.
    pub(super) fn tokens(&self, samples: &[usize]) -> u64 {
        samples.iter().map(|&sample| self.sequences[sample].token_ids.len() as u64).sum()
    }

    /// Neighbours in length make batches that are full; a sample above the budget goes alone.
    fn batches(&self, samples: &[usize], max_batch_tokens: usize) -> Vec<Vec<usize>> {
        let tokens = |sample: usize| self.sequences[sample].token_ids.len();
        let mut order = samples.to_vec();
        order.sort_by_key(|&sample| (std::cmp::Reverse(tokens(sample)), sample));
        let lengths = order.iter().map(|&sample| tokens(sample));
        let runs = fill::runs(lengths, max_batch_tokens).into_iter();
        runs.map(|run| order[run].to_vec()).collect()
    }
}

fn digest(sequence: &Sequence) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    // equally long, both: where one ends is clear
    for id in sequence.token_ids.iter().chain(&sequence.type_ids) {
        hasher.update(&id.to_le_bytes());
    }
    hasher.finalize()
}

/// Models that run together.
pub(super) struct Runner<'a> {
    /// Of each model, for errors.
    pub(super) names: Vec<&'a str>,
    /// Runs them.
    pub(super) scorer: &'a Scorer,
}

/// What one runner gave.
pub(super) struct Scores {
    /// Raw rewards, `[models][samples of the pool]`, all finite; zero for a sample that was not asked for.
    pub(super) raw: Vec<Vec<f32>>,
    /// Of the forwards.
    pub(super) time: Duration,
}

/// Runs every runner on each of these samples of the pool.
///
/// The runners see the same batches and take turns in going first, so that their times compare. Fails when a forward
/// does, or at a reward that is not finite.
pub(super) fn score(
    pool: &Pool,
    samples: &[usize],
    runners: &[Runner<'_>],
    max_batch_tokens: usize,
    what: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> anyhow::Result<Vec<Scores>> {
    let empty = |runner: &Runner<'_>| Scores {
        raw: vec![vec![0.0; pool.len()]; runner.names.len()],
        time: Duration::ZERO,
    };
    let mut scores: Vec<Scores> = runners.iter().map(empty).collect();
    let total = pool.tokens(samples);
    let mut done = 0;
    progress(Progress { what, done, total, unit: Unit::Tokens });
    for (turn, batch) in pool.batches(samples, max_batch_tokens).into_iter().enumerate() {
        let sequences: Vec<&Sequence> = batch.iter().map(|&sample| &pool.sequences[sample]).collect();
        for step in 0..runners.len() {
            let at = (turn + step) % runners.len();
            let Runner { names, scorer } = &runners[at];
            let packed = scorer.pack_shared(&sequences);
            let mut spent = vec![Duration::ZERO; names.len()];
            let raw = scorer
                .forward(&packed, &mut spent)
                .with_context(|| format!("run {} on {} samples", names.join(", "), batch.len()))?;
            scores[at].time += spent.iter().sum::<Duration>();
            for (model, rewards) in raw.iter().enumerate() {
                for (&sample, &reward) in batch.iter().zip(rewards) {
                    if !reward.is_finite() {
                        let Origin { file, line, part } = &pool.origins[sample];
                        let (file, name) = (file.display(), names[model]);
                        bail!(
                            "{file}:{line}: {name} gives the {part} response a reward that is not finite ({reward})"
                        );
                    }
                    scores[at].raw[model][sample] = reward;
                }
            }
        }
        done += pool.tokens(&batch);
        progress(Progress { what, done, total, unit: Unit::Tokens });
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelError;
    use crate::model::scorer::Forward;
    use crate::ops::batch::PackedBatch;

    /// The reward is the sum of the token ids; 13 has none.
    struct Sum;

    impl Forward for Sum {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            let reward = |ids: Vec<u32>| match ids.contains(&13) {
                true => f32::NAN,
                false => ids.iter().sum::<u32>() as f32,
            };
            Ok(batch.sequences().map(|ids| reward(ids.to_vec())).collect())
        }
    }

    fn pool(sequences: &[&[u32]]) -> Pool {
        let sequence = |ids: &&[u32]| Sequence { token_ids: ids.to_vec(), type_ids: vec![0; ids.len()] };
        let origin = |index| Origin {
            file: Path::new("pairs.jsonl").into(),
            line: index + 1,
            part: "rejected".to_owned(),
        };
        Pool {
            sequences: sequences.iter().map(sequence).collect(),
            origins: (0..sequences.len()).map(origin).collect(),
            index: HashMap::new(),
        }
    }

    #[test]
    fn batches_hold_each_sample_once_and_keep_the_budget_where_they_can() {
        let pool = pool(&[&[1], &[1, 2, 3, 4, 5, 6], &[2, 2], &[3, 3, 3], &[4]]);
        // longest first
        assert_eq!(pool.batches(&[0, 1, 2, 3, 4], 4), [vec![1], vec![3], vec![2, 0, 4]]);
        assert_eq!(pool.batches(&[4, 0], 100), [vec![0, 4]]);
    }

    #[test]
    fn rewards_stand_where_their_samples_do() {
        let pool = pool(&[&[1], &[1, 2, 3], &[7, 7]]);
        let scorer = Scorer::warm(Arc::new(Sum));
        let runner = || Runner { names: vec!["sum"], scorer: &scorer };
        let mut seen = Vec::new();
        let scores = score(&pool, &[2, 0], &[runner(), runner()], 2, "score", &mut |progress| {
            seen.push((progress.done, progress.total));
        });
        let raw: Vec<_> = scores.unwrap().into_iter().map(|scores| scores.raw).collect();
        assert_eq!(raw, vec![vec![vec![1.0, 0.0, 14.0]]; 2]);
        assert_eq!(seen, [(0, 3), (2, 3), (3, 3)]);
    }

    #[test]
    fn a_reward_that_is_not_finite_names_file_and_line() {
        let pool = pool(&[&[1], &[13]]);
        let scorer = Scorer::warm(Arc::new(Sum));
        let runner = Runner { names: vec!["member-3"], scorer: &scorer };
        let error = score(&pool, &[0, 1], &[runner], 64, "score", &mut |_| {}).err().unwrap().to_string();
        assert_eq!(
            error,
            "pairs.jsonl:2: member-3 gives the rejected response a reward that is not finite (NaN)"
        );
    }
}
