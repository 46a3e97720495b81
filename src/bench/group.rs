//! `rewarm bench group`: several responses to one prompt, with the prompt computed once and computed each time.

use serde::Serialize;

use crate::bench::Control;
use crate::bench::Label;
use crate::bench::Spread;
use crate::bench::batches;
use crate::bench::check_fits;
use crate::bench::lengths::random_ids;
use crate::bench::noise::Noise;
use crate::bench::report::digits;
use crate::bench::report::spread;
use crate::bench::take_turns;
use crate::bench::time_forwards;
use crate::bench::tokenize;
use crate::model::variant::Variant;
use crate::offline::table::Table;
use crate::text::Input;

/// What to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Plan {
    /// Of a round, each with a prompt of its own.
    pub groups: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Responses to a prompt.
    pub responses: usize,
    /// Tokens of a response.
    pub response_tokens: usize,
    /// Of the random token ids.
    pub seed: u64,
    /// A batch takes samples up to this many tokens, shared ones counted each time.
    pub max_batch_tokens: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rounds that count.
    pub rounds: usize,
    /// Whether the run was stopped before its last round.
    pub is_interrupted: bool,
    /// Tokens of a round, as the samples have them.
    pub tokens: usize,
    /// Tokens of a round when each prompt counts once.
    pub distinct_tokens: usize,
    /// In their order.
    pub variants: Vec<Group>,
}

/// One variant, both ways.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Which.
    #[serde(flatten)]
    pub label: Label,
    /// Whether its models can share at all; where they cannot, both ways do the same work.
    pub shares_prefixes: bool,
    /// Seconds of a round, each prompt computed for each of its responses.
    pub unshared_seconds: Spread,
    /// Seconds of a round, each prompt computed once.
    pub shared_seconds: Spread,
    /// Samples a second, unshared.
    pub unshared_samples_per_second: f64,
    /// Samples a second, shared.
    pub shared_samples_per_second: f64,
    /// Unshared over shared seconds: how many times faster sharing is.
    pub speedup: f64,
}

impl Plan {
    /// All samples of a round, group by group.
    fn inputs(&self, vocab_size: usize) -> Vec<Input> {
        let mut noise = Noise::new(self.seed);
        let mut ids = |tokens| match random_ids(&mut noise, tokens, vocab_size) {
            Input::TokenIds(ids) => ids,
            _ => Vec::new(),
        };
        let mut inputs = Vec::with_capacity(self.groups * self.responses);
        for _ in 0..self.groups {
            let prompt = ids(self.prompt_tokens);
            for _ in 0..self.responses {
                inputs.push(Input::TokenIds([prompt.clone(), ids(self.response_tokens)].concat()));
            }
        }
        inputs
    }
}

/// Measures all variants both ways, in turns.
pub fn run(variants: &[Variant], plan: &Plan, control: &mut Control<'_>) -> anyhow::Result<Report> {
    let labels: Vec<Label> = variants.iter().map(|variant| Label::from(&variant.info)).collect();
    let sample_tokens = plan.prompt_tokens + plan.response_tokens;
    let flags = "--prompt-tokens and --response-tokens";
    labels.iter().try_for_each(|label| check_fits(label, sample_tokens, flags))?;
    let vocab_size = variants.iter().map(|variant| variant.tokenizer.vocab_size()).min().unwrap_or(0);
    let inputs = plan.inputs(vocab_size);
    let sequences =
        variants.iter().map(|variant| tokenize(variant, &inputs)).collect::<anyhow::Result<Vec<_>>>()?;
    let batches: Vec<_> =
        sequences.iter().map(|sequences| batches(sequences, plan.max_batch_tokens)).collect();

    // Each variant is two subjects: unshared, then shared.
    let ways = ["unshared", "shared"];
    let names: Vec<String> =
        labels.iter().flat_map(|label| ways.map(|way| format!("{} {way}", label.name))).collect();
    let turns = take_turns(control, &names, |subject, _, stop| {
        let (index, share_prefixes) = (subject / 2, subject % 2 == 1);
        time_forwards(&variants[index], &batches[index], share_prefixes, stop)
    })?;

    let group = |(index, label): (usize, Label)| {
        let [unshared, shared] = [0, 1].map(|way| Spread::of(turns.of[2 * index + way].iter().copied()));
        Group {
            label,
            shares_prefixes: batches[index].iter().all(|batch| variants[index].scorer.shares_prefixes(batch)),
            unshared_seconds: unshared,
            shared_seconds: shared,
            unshared_samples_per_second: inputs.len() as f64 / unshared.median,
            shared_samples_per_second: inputs.len() as f64 / shared.median,
            speedup: unshared.median / shared.median,
        }
    };
    Ok(Report {
        rounds: turns.of[0].len(),
        is_interrupted: turns.is_interrupted,
        tokens: inputs.len() * sample_tokens,
        distinct_tokens: plan.groups * (plan.prompt_tokens + plan.responses * plan.response_tokens),
        variants: labels.into_iter().enumerate().map(group).collect(),
    })
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new(&[
            "variant",
            "models",
            "dtype",
            "unshared s",
            "shared s",
            "unshared samples/s",
            "shared samples/s",
            "shared is faster by",
        ]);
        for group in &self.variants {
            table.row([
                group.label.name.clone(),
                group.label.kind(),
                group.label.dtype.clone(),
                spread(&group.unshared_seconds),
                spread(&group.shared_seconds),
                digits(group.unshared_samples_per_second),
                digits(group.shared_samples_per_second),
                digits(group.speedup),
            ]);
        }
        writeln!(f, "{table}")?;
        for group in self.variants.iter().filter(|group| !group.shares_prefixes) {
            writeln!(f, "{} cannot share prefixes: both ways are the same work\n", group.label.name)?;
        }
        let Self { tokens, distinct_tokens, .. } = self;
        let share = digits(*tokens as f64 / *distinct_tokens as f64);
        writeln!(
            f,
            "{tokens} tokens a round, {distinct_tokens} when each prompt counts once: {share} times fewer"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_of_a_group_share_its_prompt_and_nothing_else() {
        let plan = Plan {
            groups: 2,
            prompt_tokens: 6,
            responses: 3,
            response_tokens: 4,
            seed: 1,
            max_batch_tokens: 100,
        };
        let inputs = plan.inputs(1000);
        let ids: Vec<&Vec<u32>> = (inputs.iter())
            .map(|input| match input {
                Input::TokenIds(ids) => ids,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids.iter().map(|ids| ids.len()).collect::<Vec<_>>(), [10; 6]);
        assert_eq!(ids[0][..6], ids[2][..6]);
        assert_ne!(ids[0][6..], ids[2][6..]);
        assert_ne!(ids[0][..6], ids[3][..6]);
        assert_eq!(inputs, plan.inputs(1000));
    }
}
