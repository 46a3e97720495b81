//! The gated delta rule: attention whose memory of a sequence is one matrix for each head, however long it is.
//!
//! ```text
//! a row       q, k, v of its own and of the positions before → convolution → activation; q, k → length one
//!             keep = exp(-e^rate · softplus(forget + offset))      learn = sigmoid(learn)
//! a sequence  memory [key_dim, value_dim] = 0
//!             memory *= keep;  memory += k ⊗ learn · (v - memoryᵀ k);  output = memoryᵀ q      row after row
//! ```
//!
//! A row's output is one chain of operations from the first row of its sequence on, wherever these lie; so segments that continue
//! another begin with the memory at its end, and no bit depends on what is shared, or beside it.
//!
//! # Why row after row?
//!
//! Chunks of rows could go through products (Yang et al. 2024, arXiv:2412.06464), if they were cut by position. But a memory is cut by
//! its columns: those of one vector unit and 128 key columns are 8 KB, which stay in the first-level cache for a whole
//! sequence, and each row is two passes over them. Other heads and columns run beside.

#![expect(unsafe_code, reason = "threads that share heads write columns of the same rows")]

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::Activation;
use crate::Segment;
use crate::attention::Blocks;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::product::Number;
use crate::rows::Rows;
use crate::rows::activate;
use crate::shared::Shared;
use crate::simd::Simd;

/// Added to a sum of squares.
const EPS: f32 = 1e-6;

/// Rows that one thread prepares at a time.
const ROWS: usize = 64;

/// Sizes of a gated delta rule, and what follows its convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaSpec {
    /// Heads of queries and keys; divides those of values.
    pub key_heads: usize,
    /// Heads of values, each with a memory of its own.
    pub value_heads: usize,
    /// Width of a head's queries and keys.
    pub key_dim: usize,
    /// Width of a head's values.
    pub value_dim: usize,
    /// How many positions the convolution sees, the row's own the last.
    pub kernel: usize,
    /// After it.
    pub activation: Activation,
}

impl DeltaSpec {
    /// Columns of queries, keys and values.
    pub fn widths(&self) -> [usize; 3] {
        let keys = self.key_heads * self.key_dim;
        [keys, keys, self.value_heads * self.value_dim]
    }
}

/// A gated delta rule with its parameters.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    /// What computes.
    pub isa: Isa,
    /// All of the batch: parents before their children.
    pub segments: &'a [Segment],
    /// Sizes.
    pub spec: DeltaSpec,
    /// Of queries, keys and values, one after the other: `[columns, kernel]`.
    pub convolution: &'a [f32],
    /// Of each value head.
    pub rates: &'a [f32],
    /// Of each value head.
    pub offsets: &'a [f32],
}

impl Delta<'_> {
    /// What all rows of a batch read of their memories, `[rows, value_heads · value_dim]`. Queries, keys and values are as wide
    /// as [`DeltaSpec::widths`] says; gates, `[rows, value_heads]` each, say how much is learned, and how much forgotten.
    pub fn run(&self, inputs: [Blocks<'_>; 3], gates: [Blocks<'_>; 2], in_parallel: bool) -> Rows {
        let rows = self.segments.iter().map(|segment| segment.rows.end).max().unwrap_or(0);
        let prepared = [0, 1, 2].map(|part| self.prepare(rows, &inputs[part], part, in_parallel));
        let gates = self.gates(rows, gates);
        let mut output = Rows::new(Number::F32, rows, self.spec.value_heads * self.spec.value_dim);
        let shared = Shared::new(&mut output);
        let (lanes, continued) = (self.isa.run(Lanes), self.continued());
        let mut tasks = Vec::new();
        for tree in self.trees() {
            for head in 0..self.spec.value_heads {
                let first = head * self.spec.value_dim;
                let columns = (0..self.spec.value_dim).step_by(lanes);
                let until = |at: usize| (at + lanes).min(self.spec.value_dim);
                tasks.extend(columns.map(|at| (tree.clone(), head, first + at..first + until(at))));
            }
        }
        let remember = |(tree, head, columns): (Vec<usize>, usize, Range<usize>)| {
            let [queries, keys, values] = &prepared;
            let group = self.spec.value_heads / self.spec.key_heads;
            let of_key = head / group * self.spec.key_dim..(head / group + 1) * self.spec.key_dim;
            let inputs = [queries, keys, values];
            self.isa.run(Remember {
                delta: self,
                continued: &continued,
                tree,
                head,
                of_key,
                columns,
                inputs,
                gates: &gates,
                to: shared,
            });
        };
        if in_parallel {
            tasks.into_par_iter().for_each(remember);
        } else {
            tasks.into_iter().for_each(remember);
        }
        output
    }

    /// Segments with all that continue them, parents first.
    fn trees(&self) -> Vec<Vec<usize>> {
        let mut trees: Vec<Vec<usize>> = Vec::new();
        let mut tree_of = Vec::with_capacity(self.segments.len());
        for (index, segment) in self.segments.iter().enumerate() {
            let tree = match segment.parent {
                Some(parent) => tree_of[parent],
                None => {
                    trees.push(Vec::new());
                    trees.len() - 1
                }
            };
            tree_of.push(tree);
            trees[tree].push(index);
        }
        trees
    }

    /// Of each segment whether it is continued.
    fn continued(&self) -> Vec<bool> {
        let mut continued = vec![false; self.segments.len()];
        self.segments.iter().filter_map(|segment| segment.parent).for_each(|parent| continued[parent] = true);
        continued
    }

    /// The row before another of its sequence.
    fn before(&self, segment: &mut usize, row: usize) -> Option<usize> {
        let Segment { rows, parent, .. } = &self.segments[*segment];
        if row > rows.start {
            return Some(row - 1);
        }
        *segment = (*parent)?;
        Some(self.segments[*segment].rows.end - 1)
    }

    /// Queries (0), keys (1) or values (2) after the convolution, and what else is done to each row.
    fn prepare(&self, rows: usize, from: &Blocks<'_>, part: usize, in_parallel: bool) -> Rows {
        let DeltaSpec { kernel, key_dim, activation, .. } = self.spec;
        let widths = self.spec.widths();
        let (first, width) = (widths[..part].iter().sum::<usize>(), widths[part]);
        // [kernel, columns]
        let mut weights = vec![0.0; kernel * width];
        for (column, of_column) in
            self.convolution[first * kernel..].chunks_exact(kernel).take(width).enumerate()
        {
            for (at, weight) in of_column.iter().enumerate() {
                weights[at * width + column] = *weight;
            }
        }
        // scaled as scores are
        let factor = if part == 0 { (key_dim as f32).powf(-0.5) } else { 1.0 };
        let norm = (part < 2).then_some((key_dim, factor));
        let mut prepared = Rows::new(Number::F32, rows, width);
        let stride = prepared.stride();
        let fill = |(chunk, to): (usize, &mut [f32])| {
            let first_row = chunk * ROWS;
            let mut segment = self.segments.partition_point(|segment| segment.rows.end <= first_row);
            for (row, to) in (first_row..).zip(to.chunks_exact_mut(stride)) {
                if row >= self.segments[segment].rows.end {
                    segment += 1;
                }
                let mut seen = Vec::with_capacity(kernel);
                let (mut current, mut at) = (Some(row), segment);
                while let Some(row) = current.filter(|_| seen.len() < kernel) {
                    seen.push(from.row(row));
                    current = self.before(&mut at, row);
                }
                let (seen, weights) = (&seen[..], &weights[..]);
                self.isa.run(Convolve { seen, weights, kernel, activation, norm, to: &mut to[..width] });
            }
        };
        let chunks = prepared.values_mut();
        if in_parallel {
            chunks.par_chunks_mut(ROWS * stride).enumerate().for_each(fill);
        } else {
            chunks.chunks_mut(ROWS * stride).enumerate().for_each(fill);
        }
        prepared
    }

    /// For each row how much its heads keep, and how much they learn: `[rows, 2 · value_heads]`.
    fn gates(&self, rows: usize, [learn, forget]: [Blocks<'_>; 2]) -> Rows {
        let heads = self.spec.value_heads;
        let mut gates = Rows::new(Number::F32, rows, 2 * heads);
        for row in 0..rows {
            let (keep_to, learn_to) = gates.row_mut(row).split_at_mut(heads);
            for (to, learn) in learn_to.iter_mut().zip(learn.row(row)) {
                *to = 1.0 / (1.0 + (-learn).exp());
            }
            let parameters = self.rates.iter().zip(self.offsets);
            for ((to, forget), (rate, offset)) in keep_to.iter_mut().zip(forget.row(row)).zip(parameters) {
                *to = (-rate.exp() * softplus(forget + offset)).exp();
            }
        }
        gates
    }
}

/// `ln(1 + e^x)`
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// How many columns a vector has.
struct Lanes;

impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// Convolution, activation, and length of heads, of one row.
struct Convolve<'a> {
    /// The row, and those before it, the nearest first.
    seen: &'a [&'a [f32]],
    /// `[kernel, columns]`, the row's own last.
    weights: &'a [f32],
    kernel: usize,
    activation: Activation,
    /// Columns whose length becomes this.
    norm: Option<(usize, f32)>,
    to: &'a mut [f32],
}

impl Kernel for Convolve<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.to.len();
        for first in (0..width).step_by(S::LANES) {
            let columns = first..(first + S::LANES).min(width);
            let mut sum = simd.splat(0.0);
            // the first position first
            for (back, row) in self.seen.iter().enumerate().rev() {
                let weights = &self.weights[(self.kernel - 1 - back) * width..][columns.clone()];
                sum = simd.mul_add(simd.load(&row[columns.clone()]), simd.load(weights), sum);
            }
            simd.store(&mut self.to[columns], activate(simd, self.activation, sum));
        }
        let Some((head_dim, factor)) = self.norm else { return };
        for head in self.to.chunks_exact_mut(head_dim) {
            let mut squares = simd.splat(0.0);
            for x in head.chunks(S::LANES) {
                let x = simd.load(x);
                squares = simd.mul_add(x, x, squares);
            }
            let scale = simd.splat(factor / (simd.sum(squares) + EPS).sqrt());
            for x in head.chunks_mut(S::LANES) {
                let scaled = simd.mul(simd.load(x), scale);
                simd.store(x, scaled);
            }
        }
    }
}

/// The memories of one head in one tree of segments: some columns of them, as many as a vector has at most.
struct Remember<'a> {
    delta: &'a Delta<'a>,
    /// Of each segment whether its memory is read at its end.
    continued: &'a [bool],
    /// Parents first.
    tree: Vec<usize>,
    head: usize,
    /// Columns of its queries and keys.
    of_key: Range<usize>,
    /// Of values and output.
    columns: Range<usize>,
    /// Queries, keys and values.
    inputs: [&'a Rows; 3],
    gates: &'a Rows,
    to: Shared<'a>,
}

impl Kernel for Remember<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let DeltaSpec { key_dim, value_heads, .. } = self.delta.spec;
        let [queries, keys, values] = self.inputs;
        let mut memory = vec![0.0; key_dim * S::LANES];
        let mut at_ends: HashMap<usize, Vec<f32>> = HashMap::new();
        for &index in &self.tree {
            let Segment { rows, parent, .. } = &self.delta.segments[index];
            match parent {
                None => memory.fill(0.0),
                Some(parent) => memory.copy_from_slice(&at_ends[parent]),
            }
            for row in rows.clone() {
                let gates = self.gates.row(row);
                let (keep, learn) =
                    (simd.splat(gates[self.head]), simd.splat(gates[value_heads + self.head]));
                let [q, k] = [queries, keys].map(|rows| &rows.row(row)[self.of_key.clone()]);
                // four sums, so that none waits for the one before
                let mut known = [simd.splat(0.0); 4];
                for (memory, k) in memory.chunks_mut(4 * S::LANES).zip(k.chunks(4)) {
                    for ((memory, k), known) in memory.chunks_exact_mut(S::LANES).zip(k).zip(&mut known) {
                        let kept = simd.mul(simd.load(memory), keep);
                        simd.store(memory, kept);
                        *known = simd.mul_add(kept, simd.splat(*k), *known);
                    }
                }
                let known = simd.add(simd.add(known[0], known[1]), simd.add(known[2], known[3]));
                let value = simd.load(&values.row(row)[self.columns.clone()]);
                let change = simd.mul(simd.sub(value, known), learn);
                let mut read = [simd.splat(0.0); 4];
                let qk = q.chunks(4).zip(k.chunks(4));
                for (memory, (q, k)) in memory.chunks_mut(4 * S::LANES).zip(qk) {
                    let qk = q.iter().zip(k);
                    for ((memory, (q, k)), read) in memory.chunks_exact_mut(S::LANES).zip(qk).zip(&mut read) {
                        let changed = simd.mul_add(change, simd.splat(*k), simd.load(memory));
                        simd.store(memory, changed);
                        *read = simd.mul_add(changed, simd.splat(*q), *read);
                    }
                }
                let read = simd.add(simd.add(read[0], read[1]), simd.add(read[2], read[3]));
                // SAFETY: nobody else has these columns of the head, nor rows of the tree
                simd.store(unsafe { self.to.f32(row, self.columns.clone()) }, read);
            }
            if self.continued[index] {
                at_ends.insert(index, memory.clone());
            }
        }
    }
}
