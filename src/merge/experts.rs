//! Whether members have the same experts at the same places: an average of different ones is neither of them.
//!
//! Nothing makes a training keep experts in their order but that it started from one pretrain; tools that make experts of MLPs put
//! them into any. So each expert's row of a router is held against all rows of the first member's, and weights against those at their
//! own place.

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::merge::kinship::Kinship;
use crate::values::Values;

/// Of experts at one place, what were fine-tuned from one expert are more alike than this.
const SAME_EXPERT_COSINE: f64 = 0.5;
/// Values in the middle of each tensor of experts that are compared.
const COMPARED_VALUES: usize = 1 << 16;

/// The tensors of a model's experts, by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertTensors {
    /// `[experts, hidden]` of each layer.
    pub routers: Vec<String>,
    /// Weights of all experts, each tensor once.
    pub experts: Vec<String>,
}

/// Looks for members whose experts are others than the first one's at the same places, and tells how far.
pub fn misplaced(
    checkpoints: &[&Checkpoint],
    tensors: &ExpertTensors,
) -> Result<Vec<Kinship>, CheckpointError> {
    let mut findings = Vec::new();
    for (member, checkpoint) in checkpoints.iter().enumerate().skip(1) {
        let (mut moved, mut rows) = (0, 0);
        for router in &tensors.routers {
            let (of_layer, of_rows) = moved_rows(checkpoints[0], checkpoint, router)?;
            moved += of_layer;
            rows += of_rows;
        }
        let mut sums = [0.0; 3];
        for name in &tensors.experts {
            let [ours, theirs] = [checkpoints[0], checkpoint].map(|of| of.sample(name, COMPARED_VALUES));
            let (ours, theirs) = (ours?, theirs?);
            let of_tensor = products(&numbers(&ours.values), &numbers(&theirs.values));
            sums.iter_mut().zip(of_tensor).for_each(|(sum, product)| *sum += product);
        }
        let cosine = cosine(sums);
        // of nothing there is none
        if moved > 0 || cosine < SAME_EXPERT_COSINE {
            let finding = format!(
                "has other experts than member 0 at the same places: {moved} of {rows} rows of its routers are more like another \
                 expert's of member 0 than their own, and the cosine of experts' weights is {cosine:.3} (near 1 in members of \
                 one pretrain): an average mixes experts that have nothing in common"
            );
            findings.push(Kinship { member, finding });
        }
    }
    Ok(findings)
}

/// How many rows of a router are more like another row of the first member's than the one at their place, and of how many.
fn moved_rows(
    first: &Checkpoint,
    other: &Checkpoint,
    router: &str,
) -> Result<(usize, usize), CheckpointError> {
    let [ours, theirs] = [first, other].map(|of| of.read(router));
    let (ours, theirs) = (ours?, theirs?);
    let width = ours.shape.last().copied().unwrap_or(1).max(1);
    let (ours, theirs) = (numbers(&ours.values), numbers(&theirs.values));
    let rows: Vec<(&[f64], f64)> = ours.chunks_exact(width).map(|row| (row, product(row, row))).collect();
    let is_moved = |(place, row): (usize, &[f64])| {
        let square = product(row, row);
        let to = |&(other, of_other): &(&[f64], f64)| cosine([product(other, row), of_other, square]);
        let own = to(&rows[place]);
        rows.iter().any(|other| to(other) > own)
    };
    let moved = theirs.par_chunks_exact(width).enumerate().filter(|&(place, row)| is_moved((place, row)));
    Ok((moved.count(), rows.len()))
}

/// None of what is no number.
fn numbers(values: &Values) -> Vec<f64> {
    let count = values.format().map_or(0, |_| values.count());
    let mut numbers = vec![0.0; count];
    values.to_f64s(0..numbers.len(), &mut numbers);
    numbers
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Of two vectors, and of each with itself.
fn products(a: &[f64], b: &[f64]) -> [f64; 3] {
    [product(a, b), product(a, a), product(b, b)]
}

/// Of zeros, that of equal vectors.
fn cosine([product, a, b]: [f64; 3]) -> f64 {
    if a == 0.0 || b == 0.0 { 1.0 } else { product / (a * b).sqrt() }
}
