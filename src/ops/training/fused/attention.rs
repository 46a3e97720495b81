//! Attention over all sequences of a batch, which keeps its weights for the gradient.
//!
//! One sequence at a time, in one product for all its heads; nothing is copied out of the rows before. Where several
//! query heads share a key head, the first of each key head go together, then the second of each, and so on.

use std::ops::Range;

use candle_core::CpuStorage;
use candle_core::CustomOp3;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Storage;
use candle_core::Tensor;

use super::Kept;
use super::Matrices;
use super::exp;
use super::storage;
use super::sum_of;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::rounded_slope;

/// `query` is `[queries, heads · head_dim]`, of the rows that `which` says; key and value are `[rows, kv_heads · head_dim]`,
/// of all rows of a batch that shares no prefixes.
pub(in crate::ops::training) fn attention(
    [query, key, value]: [&Tensor; 3],
    which: &Which,
    inputs: &Inputs<'_>,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    let op = Attention { spec: spec.clone(), runs: runs(which, inputs)?, weights: Kept::new() };
    query.contiguous()?.apply_op3(&key.contiguous()?, &value.contiguous()?, op)
}

/// Queries of one sequence.
struct Run {
    /// Of the sequence.
    rows: Range<usize>,
    /// In `query`.
    first: usize,
    /// In the sequence.
    position: usize,
    queries: usize,
}

/// Each sequence as a whole, or its single queries.
fn runs(which: &Which, inputs: &Inputs<'_>) -> Result<Vec<Run>> {
    let batch = inputs.packed;
    let segments = batch.segments();
    if segments.iter().any(|segment| segment.parent.is_some()) {
        candle_core::bail!("training shares no prefixes");
    }
    let single = |(first, row): (usize, usize)| {
        let rows = segments[batch.segment_of(row)].rows.clone();
        Run { position: row - rows.start, rows, first, queries: 1 }
    };
    Ok(match *which == Which::Run(0..batch.num_rows()) {
        true => segments
            .iter()
            .map(|segment| Run {
                rows: segment.rows.clone(),
                first: segment.rows.start,
                position: 0,
                queries: segment.rows.len(),
            })
            .collect(),
        false => inputs.rows(which).enumerate().map(single).collect(),
    })
}

struct Attention {
    spec: AttentionSpec,
    runs: Vec<Run>,
    /// For each run, and each of the query heads that share a key head.
    weights: Kept<Vec<Weights>>,
}

/// What queries make of keys, `[kv_heads, queries, keys]`.
struct Weights {
    /// Zero where a query does not see a key.
    shares: CpuStorage,
    /// The slope of the soft cap, if there is one.
    slopes: Option<Vec<f32>>,
}

impl Attention {
    /// As many heads of some rows as there are key heads: `first`, and every `step`th from there.
    fn heads<'a>(
        &self,
        values: &'a CpuStorage,
        rows: &Range<usize>,
        first: usize,
        step: usize,
    ) -> Matrices<'a> {
        let AttentionSpec { kv_heads, head_dim, .. } = self.spec;
        let width = step * kv_heads * head_dim;
        Matrices {
            values,
            start: rows.start * width + first * head_dim,
            count: kv_heads,
            apart: step * head_dim,
            rows: rows.len(),
            columns: head_dim,
            strides: [width, 1],
        }
    }

    /// Adds `[kv_heads, rows, head_dim]` to the same heads.
    fn add_heads(&self, to: &mut [f32], values: &[f32], rows: &Range<usize>, first: usize, step: usize) {
        let AttentionSpec { kv_heads, head_dim, .. } = self.spec;
        let width = step * kv_heads * head_dim;
        for (place, of_head) in values.chunks_exact(rows.len() * head_dim).enumerate() {
            for (row, part) in rows.clone().zip(of_head.chunks_exact(head_dim)) {
                let to = &mut to[row * width + (first + place * step) * head_dim..][..head_dim];
                to.iter_mut().zip(part).for_each(|(to, part)| *to += part);
            }
        }
    }

    /// `[kv_heads, queries, keys]`
    fn scores<'a>(&self, values: &'a CpuStorage, run: &Run) -> Matrices<'a> {
        let keys = run.rows.len();
        Matrices {
            values,
            start: 0,
            count: self.spec.kv_heads,
            apart: run.queries * keys,
            rows: run.queries,
            columns: keys,
            strides: [keys, 1],
        }
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// Each run with each query head of a group.
    fn parts(&self) -> impl Iterator<Item = (&Run, usize)> {
        let group = self.group();
        self.runs.iter().flat_map(move |run| (0..group).map(move |head| (run, head)))
    }

    /// The keys that a query sees.
    fn seen(&self, run: &Run, query: usize) -> Range<usize> {
        self.spec.seen(run.position + query, run.rows.len())
    }

    /// Scores of the `head`th of each group.
    fn weigh(&self, run: &Run, head: usize, mut scores: Vec<f32>) -> Weights {
        let keys = run.rows.len();
        let scale = self.spec.scale as f32;
        if let Distance::RoundedSlopes(slopes) = &self.spec.distance {
            for (of_head, scores) in scores.chunks_exact_mut(run.queries * keys).enumerate() {
                let slope = slopes[of_head * self.group() + head];
                let of_keys: Vec<f32> = (0..keys).map(|key| rounded_slope(slope, key)).collect();
                for (query, row) in scores.chunks_exact_mut(keys).enumerate() {
                    let own = of_keys[run.position + query];
                    row.iter_mut().zip(&of_keys).for_each(|(score, of_key)| *score += of_key - own);
                }
            }
        }
        scores.iter_mut().for_each(|score| *score *= scale);
        if let Distance::Slopes(slopes) = &self.spec.distance {
            for (place, row) in scores.chunks_exact_mut(keys).enumerate() {
                let slope = slopes[place / run.queries * self.group() + head];
                let own_key = (run.position + place % run.queries) as f32;
                row.iter_mut().zip(0..).for_each(|(score, key)| *score += slope * (key as f32 - own_key));
            }
        }
        let slopes = self.spec.softcap.map(|cap| {
            let cap = cap as f32;
            let cap_one = |score: &mut f32| {
                let share = (*score / cap).tanh();
                *score = cap * share;
                1.0 - share * share
            };
            scores.iter_mut().map(cap_one).collect()
        });
        for (place, row) in scores.chunks_exact_mut(keys).enumerate() {
            let seen = self.seen(run, place % run.queries);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|score| *score = exp(*score - largest));
            let factor = 1.0 / sum_of(row, row, |share, _| share);
            row.iter_mut().for_each(|share| *share *= factor);
        }
        Weights { shares: CpuStorage::F32(scores), slopes }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for layout in [query_layout, key_layout, value_layout] {
            if layout.start_offset() != 0 || !layout.is_contiguous() {
                candle_core::bail!("queries, keys and values must be tensors of their own");
            }
        }
        let group = self.group();
        let mut attended = vec![0.0; query_layout.shape().elem_count()];
        let mut kept = Vec::with_capacity(self.runs.len() * group);
        for (run, head) in self.parts() {
            let places = run.first..run.first + run.queries;
            let query = self.heads(query, &places, head, group);
            let (key, value) = (self.heads(key, &run.rows, 0, 1), self.heads(value, &run.rows, 0, 1));
            let weights = self.weigh(run, head, query.times(key.t())?);
            let of_heads = self.scores(&weights.shares, run).times(value)?;
            self.add_heads(&mut attended, &of_heads, &places, head, group);
            kept.push(weights);
        }
        self.weights.keep(kept);
        Ok(storage(attended, query_layout.shape().clone()))
    }

    fn bwd(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (group, scale) = (self.group(), self.spec.scale as f32);
        let of_result = of_result.contiguous()?;
        let tensors = [query, key, value, &of_result];
        let guards = tensors.map(Tensor::storage_and_layout);
        let mut storages = Vec::with_capacity(guards.len());
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cpu(storage) if layout.start_offset() == 0 => storages.push(storage),
                _ => candle_core::bail!("an operand of attention is not on the CPU, or part of another"),
            }
        }
        let [mut by_query, mut by_key, mut by_value] =
            [query, key, value].map(|tensor| vec![0.0; tensor.elem_count()]);
        for ((run, head), weights) in self.parts().zip(self.weights.get()?) {
            let (places, keys) = (run.first..run.first + run.queries, run.rows.len());
            let query = self.heads(storages[0], &places, head, group);
            let key = self.heads(storages[1], &run.rows, 0, 1);
            let value = self.heads(storages[2], &run.rows, 0, 1);
            let of_result = self.heads(storages[3], &places, head, group);
            let shares = self.scores(&weights.shares, run);
            self.add_heads(&mut by_value, &shares.t().times(of_result)?, &run.rows, 0, 1);

            let mut by_scores = of_result.times(value.t())?; // by the shares, so far
            let rows = weights.shares.as_slice::<f32>()?.chunks_exact(keys);
            for (by_row, shares) in by_scores.chunks_exact_mut(keys).zip(rows) {
                let common = sum_of(by_row, shares, |by, share| by * share);
                for (by, share) in by_row.iter_mut().zip(shares) {
                    *by = (*by - common) * share * scale;
                }
            }
            if let Some(slopes) = &weights.slopes {
                by_scores.iter_mut().zip(slopes).for_each(|(by, slope)| *by *= slope);
            }
            let by_scores = CpuStorage::F32(by_scores);
            let by_scores = self.scores(&by_scores, run);
            self.add_heads(&mut by_query, &by_scores.times(key)?, &places, head, group);
            self.add_heads(&mut by_key, &by_scores.t().times(query)?, &run.rows, 0, 1);
        }
        drop(guards);
        let [query, key, value] = [(by_query, query), (by_key, key), (by_value, value)]
            .map(|(gradient, tensor)| super::like(gradient, tensor).map(Some));
        Ok((query?, key?, value?))
    }
}
