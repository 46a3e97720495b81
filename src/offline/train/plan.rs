//! How much work a family is, told before it begins.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context;

use crate::learn::trainable::Objective;
use crate::learn::trainable::TokenPair;
use crate::learn::trainable::Trainable;
use crate::offline::train::config::Config;
use crate::offline::train::data::Data;
use crate::offline::train::data::Pair;
use crate::offline::train::data::both_sides;

/// A look at the speed that took so long is not repeated: the first is slower than those after it, but not by so much.
const LONG: Duration = Duration::from_secs(2);

/// Steps, tokens and time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Of all members.
    pub steps: usize,
    /// Of both sides of all pairs, over all epochs of all members.
    pub training_tokens: usize,
    /// That go through the model without gradients: for the probe, and for all validations.
    pub other_tokens: usize,
    /// That work on it.
    pub threads: usize,
    /// By a short look at the speed, on pairs of this run; less if members stop early.
    pub time: Duration,
}

impl Plan {
    /// Of the whole family; `base` is what members start from.
    pub(super) fn new(config: &Config, base: &Trainable, data: &Data) -> anyhow::Result<Self> {
        let (mut steps, mut training_tokens, mut validations) = (0, 0, 0);
        for own in &config.members {
            let batches = data.batches(&config.recipe, own);
            steps += batches.len();
            training_tokens += batches.iter().map(|batch| batch.tokens).sum::<usize>();
            validations += 1 + batches.len().div_ceil(config.recipe.validate_every(batches.len()));
        }
        let tokens = |pairs: &[Pair]| pairs.iter().map(|pair| pair.tokens.num_tokens()).sum::<usize>();
        let probed = if config.probe.enabled { tokens(&data.training) } else { 0 };
        let other_tokens = probed + validations * tokens(&data.validation);
        let (step, forward) = look(config, base, &data.training).context("look at the speed")?;
        let seconds = training_tokens as f64 * step + other_tokens as f64 * forward;
        let time = Duration::from_secs_f64(seconds);
        Ok(Self { steps, training_tokens, other_tokens, threads: base.num_threads(), time })
    }
}

/// Seconds that a token takes in a step, and in a forward without gradients, by the first pairs that fill all threads.
fn look(config: &Config, base: &Trainable, pairs: &[Pair]) -> anyhow::Result<(f64, f64)> {
    let enough = base.num_threads() * config.recipe.micro_batch_tokens;
    let mut tokens = 0;
    let is_part = |pair: &&Pair| {
        let is_part = tokens < enough;
        tokens += if is_part { pair.tokens.num_tokens() } else { 0 };
        is_part
    };
    let part: Vec<&Pair> = pairs.iter().take_while(is_part).collect();
    let objective = Objective {
        centering: config.recipe.centering,
        dropout: config.members[0].dropout,
        dropout_seed: 0,
        micro_batch_tokens: config.recipe.micro_batch_tokens,
    };
    let token_pairs: Vec<&TokenPair> = part.iter().map(|pair| &pair.tokens).collect();
    let sequences = both_sides(&pairs[..part.len()]);
    let step = fastest(|| base.gradients(&token_pairs, &objective).map(drop))?;
    let forward = fastest(|| base.rewards(&sequences).map(drop))?;
    let tokens = tokens.max(1) as f64;
    Ok((step.as_secs_f64() / tokens, forward.as_secs_f64() / tokens))
}

/// The second of two runs, or the first where that took long.
fn fastest<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    let mut time = || -> Result<Duration, E> {
        let start = Instant::now();
        run()?;
        Ok(start.elapsed())
    };
    let first = time()?;
    if first > LONG { Ok(first) } else { Ok(first.min(time()?)) }
}
