//! The greedy soup: members are added in order of their own accuracy, while that of the merge does not fall.
//!
//! Merges are made in memory, with equal shares, and scored in `f32`. A pair in which a sample has no reward (too long,
//! for example) is left out for all members alike, and counted.
//!
//! Source: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482), algorithm 1.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use crate::checkpoint::hex;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;
use crate::offline::score::Backend;
use crate::offline::score::DEFAULT_BATCH_TOKENS;
use crate::offline::score::Local;
use crate::text::Truncation;
use crate::text::dataset::Dataset;

/// Pairs that are scored between two looks at the clock.
const CHUNK_PAIRS: usize = 256;

/// How members were chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Greedy {
    /// The file of pairs.
    pub pairs_file: PathBuf,
    /// blake3 of its content.
    pub pairs_digest: String,
    /// Pairs that were scored.
    pub pairs: usize,
    /// Pairs in which a sample had no reward.
    pub left_out: usize,
    /// In the order of the members' own accuracies, best first.
    pub steps: Vec<Step>,
}

/// One member's turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// As given.
    pub member: PathBuf,
    /// Its own; a tie is wrong.
    pub accuracy: f64,
    /// Of the merge with it.
    pub merged_accuracy: f64,
    /// Whether it stayed in the merge.
    pub is_kept: bool,
}

impl Greedy {
    /// Chooses among members. `progress` is told (what is being done, pairs scored, pairs in all) and answers whether to
    /// go on.
    pub fn choose(
        members: &[PathBuf],
        base: Option<&Path>,
        pairs_file: &Path,
        progress: &mut dyn FnMut(&str, u64, u64) -> bool,
    ) -> anyhow::Result<Self> {
        let dataset = Dataset::read(pairs_file)?;
        let mut judge = Judge { dataset: &dataset, base, scored: None, progress };
        let mut ranked = Vec::with_capacity(members.len());
        for (index, member) in members.iter().enumerate() {
            let doing = format!("score member {} of {}", index + 1, members.len());
            ranked.push((judge.accuracy(std::slice::from_ref(member), &doing)?, member));
        }
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a)); // stable: of equals the first given comes first
        let mut kept: Vec<PathBuf> = Vec::new();
        let mut best = f64::NEG_INFINITY;
        let mut steps = Vec::with_capacity(ranked.len());
        for (index, (accuracy, member)) in ranked.into_iter().enumerate() {
            kept.push(member.clone());
            let doing = format!("score the merge with member {} of {}", index + 1, members.len());
            let merged_accuracy = if index == 0 { accuracy } else { judge.accuracy(&kept, &doing)? };
            let is_kept = merged_accuracy >= best;
            if is_kept {
                best = merged_accuracy;
            } else {
                kept.pop();
            }
            steps.push(Step { member: member.clone(), accuracy, merged_accuracy, is_kept });
        }
        let scored = judge.scored.as_ref().map_or(0, Vec::len);
        Ok(Self {
            pairs_file: pairs_file.to_owned(),
            pairs_digest: hex(&dataset.digest),
            pairs: scored,
            left_out: dataset.pairs.len() - scored + dataset.equal_lines.len(),
            steps,
        })
    }

    /// The members to merge, the best first.
    pub fn kept(&self) -> Vec<PathBuf> {
        self.steps.iter().filter(|step| step.is_kept).map(|step| step.member.clone()).collect()
    }
}

/// Tells the accuracy of merges.
struct Judge<'a> {
    dataset: &'a Dataset,
    base: Option<&'a Path>,
    /// Lines of the pairs in which both samples have a reward: the same for all.
    scored: Option<Vec<usize>>,
    progress: &'a mut dyn FnMut(&str, u64, u64) -> bool,
}

impl Judge<'_> {
    /// The share of pairs in which the merge gives the chosen response more.
    fn accuracy(&mut self, members: &[PathBuf], doing: &str) -> anyhow::Result<f64> {
        let config = VariantConfig {
            base: self.base.map(Path::to_owned),
            ..VariantConfig::new("merge", Mode::Warm, members.to_vec())
        };
        let variant = Loader::default().load(&config, &mut |_, _| ())?;
        let max_batch_tokens = DEFAULT_BATCH_TOKENS as usize;
        let mut local = Local { variant, truncation: Truncation::Reject, max_batch_tokens };
        let (pairs, mut right, mut scored) = (&self.dataset.pairs, 0_usize, Vec::new());
        let mut first_problem = None;
        for (chunk, pairs_of_chunk) in pairs.chunks(CHUNK_PAIRS).enumerate() {
            let done = (chunk * CHUNK_PAIRS) as u64;
            if !(self.progress)(doing, done, pairs.len() as u64) {
                bail!("interrupted: nothing was written");
            }
            let inputs = pairs_of_chunk.iter().flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]);
            let outcomes = local.score(inputs.collect())?;
            for (pair, outcomes) in pairs_of_chunk.iter().zip(outcomes.chunks_exact(2)) {
                match outcomes {
                    [Ok(chosen), Ok(rejected)] => {
                        scored.push(pair.line);
                        right += usize::from(chosen.reward.reward > rejected.reward.reward);
                    }
                    [Err(problem), _] | [_, Err(problem)] => {
                        first_problem.get_or_insert_with(|| format!("line {}: {problem}", pair.line));
                    }
                    _ => unreachable!("two outcomes for a pair"),
                }
            }
        }
        let problem = || first_problem.as_deref().unwrap_or("all have rewards").to_owned();
        if scored.is_empty() {
            bail!("{}: no pair can be scored: {}", self.dataset.path.display(), problem());
        }
        let known = self.scored.get_or_insert_with(|| scored.clone());
        if *known != scored {
            let members = members.iter().map(|member| member.display().to_string()).collect::<Vec<_>>();
            bail!("{} cannot score the same pairs as the others: {}", members.join(" + "), problem());
        }
        Ok(right as f64 / scored.len() as f64)
    }
}

impl fmt::Display for Greedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left_out = match self.left_out {
            0 => String::new(),
            count => format!(" ({count} left out)"),
        };
        writeln!(f, "greedy, on {} pairs of {}{left_out}", self.pairs, self.pairs_file.display())?;
        writeln!(f, "accuracy  merged with it  member")?;
        for step in &self.steps {
            let outcome = if step.is_kept { "kept" } else { "dropped" };
            writeln!(
                f,
                "{:<8.4}  {:<6.4} {outcome:<7}  {}",
                step.accuracy,
                step.merged_accuracy,
                step.member.display()
            )?;
        }
        Ok(())
    }
}
