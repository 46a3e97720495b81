//! The online softmax: scores of a block of positions → weights.

use std::ops::Range;

use half::bf16;

use super::bias::OfHead;
use super::tile::MAX_QUERIES;
use super::tile::SCORE_STRIDE;
use super::tile::WEIGHT_STRIDE;
use crate::isa::Kernel;
use crate::simd::Simd;

/// `weight` takes an unrounded product from the largest score, which was rounded. What is between the two is next to
/// nothing, or, of scores as large as 2^30, more than any exponential can hold: those are rounded first.
const ROUND_ABOVE: f32 = 65536.0;

/// Scores → weights, not yet divided by their sum.
pub(super) struct Softmax<'a, F> {
    pub(super) scores: &'a mut [f32],
    /// Where the weights go rounded; else they take the place of the scores.
    pub(super) weights: Option<&'a mut [bf16]>,
    pub(super) count: usize,
    pub(super) columns: Range<usize>,
    /// The columns that a query sees.
    pub(super) visible: F,
    pub(super) scale: f32,
    /// What a scaled score has for where the key is.
    pub(super) biases: Option<OfHead<'a>>,
    pub(super) softcap: Option<f32>,
    pub(super) largest: &'a mut [f32; MAX_QUERIES],
    pub(super) total: &'a mut [f32; MAX_QUERIES],
    pub(super) keep: &'a mut [f32; MAX_QUERIES],
}

impl<F: Fn(usize) -> Range<usize>> Kernel for Softmax<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let lowest = simd.splat(f32::NEG_INFINITY);
        for query in 0..self.count {
            let row = &mut self.scores[query * SCORE_STRIDE..][..SCORE_STRIDE];
            let visible = (self.visible)(query);
            let weights =
                self.weights.as_mut().map(|weights| &mut weights[query * WEIGHT_STRIDE..][..WEIGHT_STRIDE]);
            // whole vectors: what a query does not see in them counts as minus infinity
            let (start, end) = (visible.start / S::LANES * S::LANES, visible.end.next_multiple_of(S::LANES));
            if visible.is_empty() {
                self.keep[query] = 1.0;
                match weights {
                    Some(weights) => weights[self.columns.clone()].fill(bf16::ZERO),
                    None => row[self.columns.clone()].fill(0.0),
                }
                continue;
            }
            row[start..visible.start].fill(f32::NEG_INFINITY);
            row[visible.end..end].fill(f32::NEG_INFINITY);
            let mut scale = self.scale;
            if let Some(biases) = self.biases {
                let factor = simd.splat(scale);
                let (biases, own) = biases.from(query, start);
                let scores = row[start..end].chunks_exact_mut(S::LANES).zip(biases.chunks_exact(S::LANES));
                match own.map(|own| simd.splat(own)) {
                    None => scores.for_each(|(x, bias)| {
                        simd.store(x, simd.mul_add(simd.load(x), factor, simd.load(bias)));
                    }),
                    Some(own) => scores.for_each(|(x, bias)| {
                        let sum = simd.add(simd.load(x), simd.sub(simd.load(bias), own));
                        simd.store(x, simd.mul(sum, factor));
                    }),
                }
                scale = 1.0;
            }
            if let Some(cap) = self.softcap {
                let (factor, cap) = (simd.splat(scale / cap), simd.splat(cap));
                for x in row[start..end].chunks_exact_mut(S::LANES) {
                    let score = simd.load(x);
                    let capped = simd.mul(simd.tanh(simd.mul(score, factor)), cap);
                    // what is hidden stays so
                    let capped = simd.where_less(lowest, score, capped, score);
                    simd.store(x, capped);
                }
                scale = 1.0;
            }
            let mut largest = lowest;
            for x in row[start..end].chunks_exact(S::LANES) {
                largest = simd.max(largest, simd.load(x));
            }
            let before = self.largest[query];
            let largest = simd.largest(largest) * scale;
            let largest = if before > largest { before } else { largest };
            if largest.abs() > ROUND_ABOVE {
                for x in row[start..end].chunks_exact_mut(S::LANES) {
                    simd.store(x, simd.mul(simd.load(x), simd.splat(scale)));
                }
                scale = 1.0;
            }
            let (factor, offset) = (simd.splat(scale), simd.splat(-largest));
            let mut total = simd.splat(0.0);
            match weights {
                Some(weights) => {
                    weights[self.columns.start..start.max(self.columns.start)].fill(bf16::ZERO);
                    weights[end.min(self.columns.end)..self.columns.end].fill(bf16::ZERO);
                    let to = weights[start..end].chunks_exact_mut(S::LANES);
                    for (x, to) in row[start..end].chunks_exact(S::LANES).zip(to) {
                        let weight = weight(simd, simd.load(x), factor, offset);
                        total = simd.add(total, weight);
                        simd.store_bf16(to, weight);
                    }
                }
                None => {
                    for x in row[start..end].chunks_exact_mut(S::LANES) {
                        let weight = weight(simd, simd.load(x), factor, offset);
                        total = simd.add(total, weight);
                        simd.store(x, weight);
                    }
                    row[self.columns.start..start.max(self.columns.start)].fill(0.0);
                    row[end.min(self.columns.end)..self.columns.end].fill(0.0);
                }
            }
            let keep = if before == f32::NEG_INFINITY { 0.0 } else { (before - largest).exp() };
            self.keep[query] = keep;
            self.total[query] = self.total[query] * keep + simd.sum(total);
            self.largest[query] = largest;
        }
    }
}

/// `exp(factor · x + offset)`, and zero where that is nothing.
#[inline(always)]
fn weight<S: Simd>(simd: S, x: S::V, factor: S::V, offset: S::V) -> S::V {
    let power = simd.mul_add(x, factor, offset);
    simd.where_less(power, simd.splat(-87.3), simd.splat(0.0), simd.exp(power))
}
