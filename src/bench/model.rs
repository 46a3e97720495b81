//! `rewarm bench model`: the bare packed forward, one variant beside another.

use serde::Serialize;

use crate::bench::Control;
use crate::bench::Label;
use crate::bench::Spread;
use crate::bench::batches;
use crate::bench::check_fits;
use crate::bench::ens_and_warm;
use crate::bench::lengths::Lengths;
use crate::bench::num_tokens;
use crate::bench::report::digits;
use crate::bench::report::spread;
use crate::bench::take_turns;
use crate::bench::time_forwards;
use crate::bench::tokenize;
use crate::model::variant::Variant;
use crate::offline::table::Table;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The samples of a round.
    pub lengths: Lengths,
    /// Of random token ids.
    pub seed: u64,
    /// A batch takes samples up to this many tokens; a longer sample goes alone.
    pub max_batch_tokens: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rounds that count.
    pub rounds: usize,
    /// Whether the run was stopped before its last round.
    pub is_interrupted: bool,
    /// In their order.
    pub variants: Vec<Forward>,
    /// What each ensemble costs beside the merge of the same members.
    pub costs: Vec<Cost>,
}

/// How fast one variant is.
#[derive(Clone, Debug, Serialize)]
pub struct Forward {
    /// Which.
    #[serde(flatten)]
    pub label: Label,
    /// Of a round.
    pub samples: usize,
    /// Of a round.
    pub tokens: usize,
    /// Of a round.
    pub batches: usize,
    /// Of each round that counts.
    pub seconds: Vec<f64>,
    /// Over the rounds.
    pub samples_per_second: Spread,
    /// Over the rounds.
    pub tokens_per_second: Spread,
    /// Over the rounds; of a round the mean.
    pub ms_per_batch: Spread,
}

/// The price of an ensemble.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Name of the ensemble.
    pub ens: String,
    /// Name of the merge of the same members.
    pub warm: String,
    /// Time of the ensemble over time of the merge, for the same samples: about the number of members.
    pub ens_over_warm: f64,
}

/// Measures all variants on the same samples, in turns.
pub fn run(variants: &[Variant], plan: &Plan, control: &mut Control<'_>) -> anyhow::Result<Report> {
    let labels: Vec<Label> = variants.iter().map(|variant| Label::from(&variant.info)).collect();
    labels.iter().try_for_each(|label| check_fits(label, plan.lengths.longest(), "--lengths"))?;
    let vocab_size = variants.iter().map(|variant| variant.tokenizer.vocab_size()).min().unwrap_or(0);
    let inputs = plan.lengths.inputs(vocab_size, plan.seed);
    let sequences =
        variants.iter().map(|variant| tokenize(variant, &inputs)).collect::<anyhow::Result<Vec<_>>>()?;
    let batches: Vec<_> =
        sequences.iter().map(|sequences| batches(sequences, plan.max_batch_tokens)).collect();

    let names: Vec<String> = labels.iter().map(|label| label.name.clone()).collect();
    let turns = take_turns(control, &names, |index, _, stop| {
        time_forwards(&variants[index], &batches[index], false, stop)
    })?;

    let forward = |(index, (label, seconds)): (usize, (Label, Vec<f64>))| {
        let (samples, tokens) = (sequences[index].len(), num_tokens(&sequences[index]));
        let batches = batches[index].len();
        let of_rounds =
            |figure: &dyn Fn(f64) -> f64| Spread::of(seconds.iter().map(|&seconds| figure(seconds)));
        Forward {
            label,
            samples,
            tokens,
            batches,
            samples_per_second: of_rounds(&|seconds| samples as f64 / seconds),
            tokens_per_second: of_rounds(&|seconds| tokens as f64 / seconds),
            ms_per_batch: of_rounds(&|seconds| seconds * 1e3 / batches as f64),
            seconds,
        }
    };
    let rounds = turns.of[0].len();
    let variants: Vec<Forward> = labels.into_iter().zip(turns.of).enumerate().map(forward).collect();
    let median_seconds = |index: usize| Spread::of(variants[index].seconds.iter().copied()).median;
    let cost = |(ens, warm): (usize, usize)| Cost {
        ens: variants[ens].label.name.clone(),
        warm: variants[warm].label.name.clone(),
        ens_over_warm: median_seconds(ens) / median_seconds(warm),
    };
    let costs = ens_and_warm(variants.iter().map(|variant| &variant.label)).into_iter().map(cost).collect();
    Ok(Report { rounds, is_interrupted: turns.is_interrupted, variants, costs })
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new(&[
            "variant",
            "models",
            "dtype",
            "samples",
            "tokens",
            "samples/s",
            "tokens/s",
            "ms a batch",
        ]);
        for variant in &self.variants {
            table.row([
                variant.label.name.clone(),
                variant.label.kind(),
                variant.label.dtype.clone(),
                variant.samples.to_string(),
                variant.tokens.to_string(),
                spread(&variant.samples_per_second),
                digits(variant.tokens_per_second.median),
                spread(&variant.ms_per_batch),
            ]);
        }
        write!(f, "{table}")?;
        for Cost { ens, warm, ens_over_warm } in &self.costs {
            writeln!(f, "\n{ens} costs {} times {warm}", digits(*ens_over_warm))?;
        }
        Ok(())
    }
}
