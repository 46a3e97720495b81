//! What a merge tells: a table at a terminal, and all of it as JSON beside the weights.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::merge::likeness::Likeness;
use crate::offline::merge::Averages;
use crate::offline::merge::greedy::Greedy;

/// Rounding that is more than this share of the update is warned of. A tenth turns the update by 6 degrees (a cosine of
/// 0.995) and adds a hundredth to its energy: what is rounded in more is no longer the average that was asked for.
const MAX_ROUNDING: f64 = 0.1;

/// How many of the tensors that are least alike are shown.
const SHOWN: usize = 3;

/// What was merged, and how alike it was.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of the program.
    pub rewarm_version: &'static str,
    /// Where the merge is.
    #[serde(skip)]
    pub output: PathBuf,
    /// In the order of their sum.
    pub members: Vec<MemberReport>,
    /// What adapters and task vectors are measured from.
    pub base: Option<PathBuf>,
    /// What the merge is stored in.
    pub dtype: &'static str,
    /// Whether nobody asked for that precision.
    #[serde(skip)]
    pub dtype_was_chosen: bool,
    /// What the members are stored in.
    pub stored: Vec<String>,
    /// How many tensors were averaged.
    pub averaged: usize,
    /// Those that were copied from the first member.
    pub copied: Vec<String>,
    /// Those that are no part of a reward model.
    pub left_out: Vec<String>,
    /// Of all tensors.
    #[serde(skip)]
    pub bytes: u64,
    /// What is odd.
    pub warnings: Vec<String>,
    /// How members were chosen, if they were.
    pub greedy: Option<Greedy>,
    /// Over all tensors.
    #[serde(flatten)]
    pub totals: LikenessTotals,
    /// What the output's precision costs.
    pub rounding: Rounding,
    /// Of each tensor with two dimensions.
    pub matrices: BTreeMap<String, Vec<Pair>>,
}

/// One member.
#[derive(Debug, Serialize)]
pub struct MemberReport {
    /// As given.
    pub path: PathBuf,
    /// Whether it is an adapter over the base.
    pub is_adapter: bool,
    /// Its share.
    pub coefficient: f64,
    /// blake3 of the tensors that a reward depends on, as `GetServerInfo` tells it.
    pub digest: String,
}

/// How two members lie to each other.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// Numbers of the two, from 0.
    pub members: [usize; 2],
    /// Of their weights; `None` if one is zero.
    pub cosine: Option<f64>,
    /// Relative to the first's size.
    pub relative_distance: Option<f64>,
}

/// What members have in common, over several tensors.
#[derive(Debug, Serialize)]
pub struct LikenessTotals {
    /// Over all tensors with two dimensions.
    pub pairs: Vec<Pair>,
    /// Of the head.
    pub head: Vec<Pair>,
    /// From the average, relative to its size, for each member.
    pub distance_from_average: Vec<f64>,
    /// Where there is a base.
    pub task_vectors: Option<TaskVectors>,
}

/// Members minus base.
#[derive(Debug, Serialize)]
pub struct TaskVectors {
    /// Of each member.
    pub norms: Vec<f64>,
    /// Of the merge.
    pub merged_norm: f64,
    /// Of the base.
    pub base_norm: f64,
    /// Between members.
    pub cosines: Vec<TaskCosine>,
    /// Tensors that are not part of it, because the base lacks them.
    pub not_in_base: usize,
}

/// Between two task vectors.
#[derive(Debug, Serialize)]
pub struct TaskCosine {
    /// Numbers of the two, from 0.
    pub members: [usize; 2],
    /// `None` if one is zero.
    pub cosine: Option<f64>,
}

/// What it costs to store the average in the output's precision.
#[derive(Debug, Serialize)]
pub struct Rounding {
    dtype: &'static str,
    /// ‖rounded − exact‖, over all averaged tensors.
    pub error: f64,
    /// ‖merged − base‖, or without a base the members' mean distance from their average.
    pub update: f64,
    /// What `update` is.
    pub update_is: &'static str,
    /// The first over the second; `None` if there is no update.
    pub relative: Option<f64>,
}

impl LikenessTotals {
    pub(super) fn new(averages: &Averages, coefficients: &[f64], has_base: bool) -> Self {
        let members = 0..averages.num_members;
        let size = averages.all.average_norm(coefficients);
        let in_base = &averages.in_base;
        let task_vectors = has_base.then(|| TaskVectors {
            norms: members.clone().map(|member| in_base.addition_norm(member)).collect(),
            merged_norm: in_base.average_addition_norm(coefficients),
            base_norm: in_base.reference_norm(),
            cosines: pairs_of(averages.num_members)
                .map(|[a, b]| TaskCosine { members: [a, b], cosine: in_base.addition_cosine(a, b) })
                .collect(),
            not_in_base: averages.not_in_base,
        });
        Self {
            pairs: pairs(&averages.two_dimensional, averages.num_members),
            head: pairs(&averages.head, averages.num_members),
            distance_from_average: members
                .map(|member| averages.all.distance_from_average(member, coefficients) / size)
                .collect(),
            task_vectors,
        }
    }
}

impl Rounding {
    pub(super) fn new(
        averages: &Averages,
        coefficients: &[f64],
        has_base: bool,
        dtype: &'static str,
    ) -> Self {
        let error = averages.squared_rounding_error.sqrt();
        let (update, update_is) = match has_base {
            true => (averages.in_base.average_addition_norm(coefficients), "merge - base"),
            false => {
                let distance = |member| averages.all.distance_from_average(member, coefficients);
                let sum: f64 = (0..averages.num_members).map(distance).sum();
                (sum / averages.num_members as f64, "the members' mean distance from their average")
            }
        };
        let relative = (update > 0.0).then(|| error / update);
        Self { dtype, error, update, update_is, relative }
    }

    pub(super) fn warning(&self) -> Option<String> {
        let relative = self.relative.filter(|relative| *relative > MAX_ROUNDING)?;
        Some(format!(
            "rounding to {} moves the weights by {:.0}% of the update ({}), more than {:.0}%: --dtype f32 keeps it",
            self.dtype,
            100.0 * relative,
            self.update_is,
            100.0 * MAX_ROUNDING
        ))
    }
}

/// All pairs of so many members.
fn pairs_of(members: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..members).flat_map(move |a| (a + 1..members).map(move |b| [a, b]))
}

pub(super) fn pairs(likeness: &Likeness, members: usize) -> Vec<Pair> {
    pairs_of(members)
        .map(|[a, b]| Pair {
            members: [a, b],
            cosine: likeness.cosine(a, b),
            relative_distance: likeness.relative_distance(a, b),
        })
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(greedy) = &self.greedy {
            writeln!(f, "{greedy}")?;
        }
        self.write_members(f)?;
        self.write_matrices(f)?;
        if let Some(task_vectors) = &self.totals.task_vectors {
            task_vectors.write(f)?;
        }
        let Rounding { dtype, error, relative, update_is, .. } = &self.rounding;
        write!(f, "\nrounding to {dtype}: {error:.3e}")?;
        match relative {
            Some(relative) => writeln!(f, ", {} of the update ({update_is})", percent(*relative))?,
            None => writeln!(f)?,
        }
        if !self.copied.is_empty() {
            writeln!(f, "copied from member 0, not averaged: {}", self.copied.join(", "))?;
        }
        if !self.left_out.is_empty() {
            writeln!(f, "left out, no part of a reward model: {}", self.left_out.join(", "))?;
        }
        let why = if self.dtype_was_chosen {
            format!(" (the members are stored in {})", self.stored.join(", ").to_lowercase())
        } else {
            String::new()
        };
        write!(
            f,
            "\n{}: {} tensors averaged, {} MB in {dtype}{why}",
            self.output.display(),
            self.averaged,
            megabytes(self.bytes)
        )
    }
}

/// In megabytes, with one digit where that says more.
fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.2}") } else { format!("{megabytes:.0}") }
}

fn percent(share: f64) -> String {
    if share < 0.001 { format!("{:.1e}", share) } else { format!("{:.1}%", 100.0 * share) }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.6}"))
}

impl Report {
    fn write_members(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "member  share   from average  digest    checkpoint")?;
        for (index, member) in self.members.iter().enumerate() {
            writeln!(
                f,
                "{index:>6}  {:<6.4}  {:<12.6}  {}  {}{}",
                member.coefficient,
                self.totals.distance_from_average[index],
                &member.digest[..8],
                member.path.display(),
                if member.is_adapter { " (adapter)" } else { "" },
            )?;
        }
        Ok(())
    }

    fn write_matrices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.members.len() < 2 {
            return Ok(());
        }
        writeln!(f, "\nbetween members  cosine    relative distance  cosine of heads")?;
        for (pair, head) in self.totals.pairs.iter().zip(&self.totals.head) {
            let [a, b] = pair.members;
            let (cosine, distance) = (number(pair.cosine), number(pair.relative_distance));
            writeln!(
                f,
                "{:<15}  {cosine:<8}  {distance:<17}  {}",
                format!("{a} and {b}"),
                number(head.cosine)
            )?;
        }
        let mut all: Vec<(f64, f64, &str, [usize; 2])> = Vec::new();
        for (name, pairs) in &self.matrices {
            for pair in pairs {
                if let (Some(cosine), Some(distance)) = (pair.cosine, pair.relative_distance) {
                    all.push((cosine, distance, name, pair.members));
                }
            }
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((least, _, _, _)) = all.first() else { return Ok(()) };
        let median = all[all.len() / 2].0;
        let tensors = self.matrices.len();
        writeln!(
            f,
            "\n{tensors} matrices, cosine between members: least {least:.6}, median {median:.6}; the least alike:"
        )?;
        for (cosine, distance, name, [a, b]) in all.iter().take(SHOWN) {
            writeln!(f, "  {cosine:.6}  distance {distance:.6}  {name} ({a} and {b})")?;
        }
        Ok(())
    }
}

impl TaskVectors {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.norms.len();
        let header: String =
            (0..members).map(|member| format!("  {:>9}", format!("with {member}"))).collect();
        writeln!(f, "\ntask vectors (member - base, relative to the base); cosines")?;
        writeln!(f, "member  size    {header}")?;
        for (member, norm) in self.norms.iter().enumerate() {
            write!(f, "{member:>6}  {:.6}", norm / self.base_norm)?;
            for other in 0..members {
                let pair = [member.min(other), member.max(other)];
                let cosine = self.cosines.iter().find(|cosine| cosine.members == pair);
                let cosine =
                    if member == other { "1".to_owned() } else { number(cosine.and_then(|c| c.cosine)) };
                write!(f, "  {cosine:>9}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "merged  {:.6}", self.merged_norm / self.base_norm)?;
        if self.not_in_base > 0 {
            writeln!(f, "without {} tensors that the base lacks", self.not_in_base)?;
        }
        Ok(())
    }
}
