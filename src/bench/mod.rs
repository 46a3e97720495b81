//! `rewarm bench`: what a forward costs, what a server adds to it, and what shared prefixes save.
//!
//! ```text
//! lengths, shape ─▶ samples ─┬─▶ model     bare packed forwards of one variant beside another
//!                            ├─▶ server    load on a server, beside bare forwards of the same samples
//!                            └─▶ group     n responses to one prompt, with shared prefixes and without
//!                                  └─▶ report    a table, and every figure as JSON
//! ```
//!
//! What is compared takes turns, round by round (A B A B …), so that a machine that changes its speed changes
//! both; a figure is the median over the rounds, with the smallest and the largest beside it. Warm-up rounds run
//! first and are not counted. Everything random has a seed. A run that is told to stop drops its unfinished
//! round and reports the others.

pub mod group;
pub mod lengths;
pub mod load;
pub mod model;
mod noise;
pub mod report;
pub mod server;
pub mod shape;

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use serde::Serialize;

use crate::model::fill;
use crate::model::variant::Variant;
use crate::model::variant::VariantInfo;
use crate::offline::Stop;
use crate::ops::batch::Sequence;
use crate::text::Input;
use crate::text::Truncation;

/// How often everything is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rounds {
    /// Run first, and not counted.
    pub warmup: usize,
    /// Run after that, and told: one or more.
    pub counted: usize,
}

/// How long a run goes, and who watches it.
pub struct Control<'a> {
    /// How often everything is measured.
    pub rounds: Rounds,
    /// Set when the run shall stop.
    pub stop: Stop,
    /// Is told how many turns are done, how many there are, and what is measured next.
    pub progress: &'a mut dyn FnMut(usize, usize, &str),
}

/// Median, smallest and largest over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Of an even number the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        debug_assert!(!sorted.is_empty(), "there is at least one counted round");
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { median, min: sorted[0], max: sorted[sorted.len() - 1] }
    }
}

/// What a report tells of a variant, in this process or on a server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Label {
    /// As configured.
    pub name: String,
    /// "warm" or "ens".
    pub mode: String,
    /// The checkpoints it was made from.
    pub members: Vec<String>,
    /// "f32", "f16" or "bf16".
    pub dtype: String,
    /// For example "cpu".
    pub device: String,
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// The longest sample.
    pub max_tokens: usize,
    /// Of everything that determines a reward.
    pub fingerprint: String,
}

impl From<&VariantInfo> for Label {
    fn from(info: &VariantInfo) -> Self {
        Self {
            name: info.name.clone(),
            mode: info.mode.name().to_owned(),
            members: info.members.iter().map(|member| member.path.clone()).collect(),
            dtype: info.dtype.name().to_owned(),
            device: info.placement.to_string(),
            architecture: info.architecture.clone(),
            max_tokens: info.max_tokens,
            fingerprint: info.fingerprint.clone(),
        }
    }
}

impl Label {
    /// "warm of 4", as tables say it.
    fn kind(&self) -> String {
        format!("{} of {}", self.mode, self.members.len())
    }
}

/// Each ensemble with the merged model of the same members in the same precision on the same device: (ens, warm).
fn ens_and_warm<'a>(labels: impl IntoIterator<Item = &'a Label>) -> Vec<(usize, usize)> {
    let labels: Vec<&Label> = labels.into_iter().collect();
    let same = |a: &Label, b: &Label| (&a.members, &a.dtype, &a.device) == (&b.members, &b.dtype, &b.device);
    let warm_of = |ens: &Label| labels.iter().position(|label| label.mode == "warm" && same(label, ens));
    (labels.iter().enumerate())
        .filter(|(_, label)| label.mode == "ens")
        .filter_map(|(index, label)| Some((index, warm_of(label)?)))
        .collect()
}

/// What the turns gave.
struct Turns<M> {
    /// For each subject, one measure of each finished round.
    of: Vec<Vec<M>>,
    /// Whether the run was stopped before its last round was finished.
    is_interrupted: bool,
}

/// Measures each subject once a round, in turns; `measure` gets the subject and the round, and returns `None`
/// when the run was stopped meanwhile. Fails when not even one round was finished.
fn take_turns<M>(
    control: &mut Control<'_>,
    names: &[String],
    mut measure: impl FnMut(usize, usize, &Stop) -> anyhow::Result<Option<M>>,
) -> anyhow::Result<Turns<M>> {
    let Rounds { warmup, counted } = control.rounds;
    let total = (warmup + counted) * names.len();
    let mut of: Vec<Vec<M>> = names.iter().map(|_| Vec::new()).collect();
    'rounds: for round in 0..warmup + counted {
        let mut measures = Vec::with_capacity(names.len());
        for (subject, name) in names.iter().enumerate() {
            let kind = if round < warmup { "warm up " } else { "" };
            (control.progress)(round * names.len() + subject, total, &format!("{kind}{name}"));
            let measured = if control.stop.is_set() { None } else { measure(subject, round, &control.stop)? };
            match measured {
                Some(measure) => measures.push(measure),
                None => break 'rounds,
            }
        }
        if round >= warmup {
            of.iter_mut().zip(measures).for_each(|(rounds, measure)| rounds.push(measure));
        }
    }
    let done = of.first().map_or(0, Vec::len);
    ensure!(done > 0, "stopped before a round was finished: nothing was measured");
    Ok(Turns { of, is_interrupted: done < counted })
}

// ---- samples ----

/// The samples as this variant reads them. Fails at the first that it cannot score.
fn tokenize(variant: &Variant, inputs: &[Input]) -> anyhow::Result<Vec<Sequence>> {
    let tokenize = |(number, input): (usize, &Input)| {
        let sample = (variant.tokenizer.tokenize(input, Truncation::Reject))
            .with_context(|| format!("sample {number} for variant `{}`", variant.info.name))?;
        Ok(Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids })
    };
    (1..).zip(inputs).map(tokenize).collect()
}

/// Batches in the order of the samples, each of up to so many tokens; a longer sample goes alone.
fn batches(sequences: &[Sequence], max_batch_tokens: usize) -> Vec<Vec<&Sequence>> {
    let lengths = sequences.iter().map(|sequence| sequence.token_ids.len());
    let runs = fill::runs(lengths, max_batch_tokens).into_iter();
    runs.map(|run| sequences[run].iter().collect()).collect()
}

/// Seconds for all batches, one after the other; `None` if the run was stopped. Fails on a reward that is not
/// finite: a model that computes nonsense may be faster than one that works.
fn time_forwards(
    variant: &Variant,
    batches: &[Vec<&Sequence>],
    share_prefixes: bool,
    stop: &Stop,
) -> anyhow::Result<Option<f64>> {
    let name = &variant.info.name;
    let start = Instant::now();
    for batch in batches {
        if stop.is_set() {
            return Ok(None);
        }
        let rewards = variant
            .scorer
            .score(batch, share_prefixes)
            .with_context(|| format!("the forward of variant `{name}`"))?;
        if let Some(reward) = rewards.iter().find(|reward| !reward.reward.is_finite()) {
            bail!("variant `{name}` gave a reward that is not finite ({})", reward.reward);
        }
    }
    Ok(Some(start.elapsed().as_secs_f64()))
}

fn num_tokens(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.token_ids.len()).sum()
}

/// Fails unless samples of so many tokens fit the variant; `flag` says where the number came from.
fn check_fits(label: &Label, tokens: usize, flag: &str) -> anyhow::Result<()> {
    let Label { name, max_tokens, .. } = label;
    ensure!(
        tokens <= *max_tokens,
        "{flag}: a sample has {tokens} tokens, variant `{name}` takes {max_tokens} at most: ask for shorter ones"
    );
    Ok(())
}

/// Where a report goes: `FILE` of `--json`. Opened by the caller before anything slow.
pub fn write_json(
    file: &mut dyn std::io::Write,
    path: &Path,
    document: &impl Serialize,
) -> anyhow::Result<()> {
    let write = |file: &mut dyn std::io::Write| -> anyhow::Result<()> {
        serde_json::to_writer_pretty(&mut *file, document)?;
        file.write_all(b"\n")?;
        Ok(file.flush()?)
    };
    write(file).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: usize) -> Sequence {
        Sequence { token_ids: vec![1; tokens], type_ids: vec![0; tokens] }
    }

    #[test]
    fn batches_keep_the_order_and_the_budget() {
        let sequences: Vec<Sequence> = [3, 4, 4, 20, 1, 9].map(sequence).into();
        let lengths: Vec<Vec<usize>> = batches(&sequences, 10)
            .iter()
            .map(|batch| batch.iter().map(|sequence| sequence.token_ids.len()).collect())
            .collect();
        assert_eq!(lengths, [vec![3, 4], vec![4], vec![20], vec![1, 9]]);
        assert!(batches(&[], 10).is_empty());
    }

    #[test]
    fn a_spread_is_the_median_between_the_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 7.0]), Spread { median: 3.0, min: 1.0, max: 7.0 });
        assert_eq!(Spread::of([4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    fn turns(stop_at: Option<usize>) -> (Vec<String>, anyhow::Result<Turns<usize>>) {
        let mut told = Vec::new();
        let mut progress =
            |done: usize, total: usize, what: &str| told.push(format!("{done}/{total} {what}"));
        let rounds = Rounds { warmup: 1, counted: 2 };
        let mut control = Control { rounds, stop: Stop::default(), progress: &mut progress };
        let mut measured = 0;
        let turns = take_turns(&mut control, &["a".to_owned(), "b".to_owned()], |subject, round, stop| {
            measured += 1;
            if stop_at == Some(measured) {
                stop.set();
            }
            Ok((!stop.is_set()).then_some(10 * round + subject))
        });
        (told, turns)
    }

    #[test]
    fn subjects_take_turns_and_warm_up_rounds_do_not_count() {
        let (told, turns) = turns(None);
        let turns = turns.unwrap();
        assert_eq!(turns.of, [[10, 20], [11, 21]]);
        assert!(!turns.is_interrupted);
        assert_eq!(told, ["0/6 warm up a", "1/6 warm up b", "2/6 a", "3/6 b", "4/6 a", "5/6 b"]);
    }

    #[test]
    fn a_run_that_is_stopped_keeps_its_finished_rounds() {
        let stopped = turns(Some(6)).1.unwrap();
        assert_eq!((stopped.of, stopped.is_interrupted), (vec![vec![10], vec![11]], true));
        let error = turns(Some(4)).1.err().unwrap().to_string();
        assert_eq!(error, "stopped before a round was finished: nothing was measured");
    }

    #[test]
    fn an_ensemble_is_compared_with_the_merge_of_its_own_members() {
        let label = |mode: &str, members: &str, dtype: &str| Label {
            name: String::new(),
            mode: mode.to_owned(),
            members: members.split(' ').map(str::to_owned).collect(),
            dtype: dtype.to_owned(),
            device: "cpu".to_owned(),
            architecture: String::new(),
            max_tokens: 1,
            fingerprint: String::new(),
        };
        let labels = [
            label("warm", "a b", "f32"),
            label("ens", "a b", "bf16"),
            label("ens", "a b", "f32"),
            label("ens", "a c", "f32"),
            label("warm", "a b", "bf16"),
        ];
        assert_eq!(ens_and_warm(&labels), [(1, 4), (2, 0)]);
    }
}
