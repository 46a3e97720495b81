//! Attention of packed sequences.
//!
//! ```text
//! keys, values of a segment and a head → packed in panels of positions           (once)
//! a tile of queries, a head, a block of 512 positions:
//!     scores [queries, positions] = q · kᵀ → scale, cap, hide → online softmax → += weights · v
//! ```
//!
//! Panels and blocks are cut by a token's *position* in its sequence, never by where it lies in the batch. So a
//! query adds up the same numbers in the same order whatever is beside it, and whether its prefix is its own or
//! shared: a panel that a shared prefix does not fill is packed again for each continuation.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::AttentionSpec;
use super::buffer::Buffer;
use super::isa::Isa;
use super::isa::Kernel;
use super::product::BF16_DEPTH;
use super::product::Epilogue;
use super::product::Multiplier;
use super::product::Number;
use super::product::Operand;
use super::product::Panel;
use super::rows::Rows;
use super::simd::Simd;
use crate::model::batch::Segment;

/// Positions that the online softmax takes at a time; a multiple of every panel's width.
const BLOCK: usize = 512;
/// `weight` takes an unrounded product from the largest score, which was rounded. What is between the two is next to
/// nothing, or, of scores as large as 2^30, more than any exponential can hold: those are rounded first.
const ROUND_ABOVE: f32 = 65536.0;
/// Queries that go together.
const MAX_QUERIES: usize = 64;

/// Rows of a batch in blocks of equal size, but for the last.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    blocks: &'a [Rows],
    size: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(blocks: &'a [Rows]) -> Self {
        Self { blocks, size: blocks.first().map_or(1, Rows::len) }
    }

    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        self.blocks[row / self.size].row(row % self.size)
    }
}

/// One call of attention.
pub(super) struct Attention<'a> {
    pub(super) isa: Isa,
    pub(super) number: Number,
    pub(super) segments: &'a [Segment],
    pub(super) keys: Blocks<'a>,
    pub(super) values: Blocks<'a>,
    pub(super) spec: &'a AttentionSpec,
    /// Whether the blocks are worth several threads.
    pub(super) in_parallel: bool,
}

/// Keys and values of all segments and heads, in panels.
struct Cache {
    keys: Buffer,
    values: Buffer,
    /// Where each segment's panels begin, in positions of one head.
    starts: Vec<usize>,
}

/// Sizes of what is packed, for one head.
#[derive(Clone, Copy)]
struct Sizes {
    /// Positions in a panel of keys, and columns of a panel of values.
    width: usize,
    /// `head_dim`, filled up to what a product takes at a time.
    depth: usize,
    /// `head_dim`, filled up to whole panels.
    columns: usize,
}

impl Attention<'_> {
    fn sizes(&self) -> Sizes {
        let width = self.isa.panel_width();
        let head_dim = self.spec.head_dim;
        let depth = match self.number {
            Number::F32 => head_dim,
            Number::Bf16 => head_dim.next_multiple_of(BF16_DEPTH),
        };
        Sizes { width, depth, columns: head_dim.next_multiple_of(width) }
    }

    /// The panels of positions that a segment has packed for itself.
    fn own_panels(&self, segment: &Segment) -> Range<usize> {
        let width = self.isa.panel_width();
        segment.first_position / width..(segment.first_position + segment.rows.len()).div_ceil(width)
    }

    /// Attention of blocks of queries; `place(block, query)` is the segment and the position of a query.
    pub(super) fn forward(
        &self,
        queries: &[Rows],
        place: &(impl Fn(usize, usize) -> (usize, usize) + Sync),
    ) -> Vec<Rows> {
        let cache = self.pack();
        let attend =
            |(index, queries): (usize, &Rows)| self.attend(&cache, queries, &|query| place(index, query));
        if self.in_parallel {
            queries.par_iter().enumerate().map(attend).collect()
        } else {
            queries.iter().enumerate().map(attend).collect()
        }
    }

    fn pack(&self) -> Cache {
        let Sizes { width, depth, columns } = self.sizes();
        let mut starts = Vec::with_capacity(self.segments.len());
        let mut positions = 0;
        for segment in self.segments {
            starts.push(positions);
            positions += self.own_panels(segment).len() * width;
        }
        let count = positions * self.spec.kv_heads;
        let unit = match self.number {
            Number::F32 => 1,
            Number::Bf16 => 2,
        };
        // in words of 32 bits: a pair of bfloat16, or one `f32`
        let mut keys = Buffer::for_numbers::<u32>(count * depth / unit);
        let mut values = Buffer::for_numbers::<u32>(count * columns / unit);
        let mut parts = Vec::with_capacity(self.segments.len() * self.spec.kv_heads);
        let (mut keys_left, mut values_left) = (keys.numbers_mut::<u32>(), values.numbers_mut::<u32>());
        for segment in 0..self.segments.len() {
            let positions = self.own_panels(&self.segments[segment]).len() * width;
            for head in 0..self.spec.kv_heads {
                let (of_keys, rest) = keys_left.split_at_mut(positions * depth / unit);
                let (of_values, values_rest) = values_left.split_at_mut(positions * columns / unit);
                (keys_left, values_left) = (rest, values_rest);
                parts.push((segment, head, of_keys, of_values));
            }
        }
        let pack = |(segment, head, keys, values): (usize, usize, &mut [u32], &mut [u32])| {
            self.pack_head(segment, head, keys, values);
        };
        if self.in_parallel {
            parts.into_par_iter().for_each(pack);
        } else {
            parts.into_iter().for_each(pack);
        }
        Cache { keys, values, starts }
    }

    /// The row of each position of a panel; fewer at the end of a sequence.
    fn rows_of_panel(&self, segment: usize, panel: usize, rows: &mut Vec<usize>) {
        let width = self.isa.panel_width();
        let end = self.segments[segment].first_position + self.segments[segment].rows.len();
        rows.clear();
        rows.resize(((panel + 1) * width).min(end) - panel * width, 0);
        let mut current = Some(segment);
        let mut until = end;
        while let Some(index) = current {
            let Segment { rows: of_segment, first_position, parent } = &self.segments[index];
            for position in (*first_position).max(panel * width)..until.min((panel + 1) * width) {
                rows[position - panel * width] = of_segment.start + position - first_position;
            }
            if *first_position <= panel * width {
                return;
            }
            (current, until) = (*parent, *first_position);
        }
    }

    fn pack_head(&self, segment: usize, head: usize, keys: &mut [u32], values: &mut [u32]) {
        let Sizes { width, depth, .. } = self.sizes();
        let panels = self.own_panels(&self.segments[segment]);
        let head_dim = self.spec.head_dim;
        let of_head = head * head_dim..(head + 1) * head_dim;
        let mut rows = Vec::with_capacity(width);
        let positions = panels.len() * width;
        for (index, panel) in panels.enumerate() {
            self.rows_of_panel(segment, panel, &mut rows);
            match self.number {
                Number::F32 => {
                    let keys: &mut [f32] =
                        bytemuck::cast_slice_mut(&mut keys[index * width * depth..][..width * depth]);
                    let values: &mut [f32] = bytemuck::cast_slice_mut(values);
                    if rows.len() < width {
                        keys.fill(0.0);
                    }
                    for (column, &row) in rows.iter().enumerate() {
                        for (d, &x) in self.keys.row(row)[of_head.clone()].iter().enumerate() {
                            keys[d * width + column] = x;
                        }
                    }
                    for (of_columns, values) in values.chunks_exact_mut(positions * width).enumerate() {
                        let values = &mut values[index * width * width..][..width * width];
                        let from = of_columns * width..((of_columns + 1) * width).min(head_dim);
                        for (at, to) in values.chunks_exact_mut(width).enumerate() {
                            match rows.get(at) {
                                Some(&row) => {
                                    let row = &self.values.row(row)[of_head.clone()][from.clone()];
                                    to[..row.len()].copy_from_slice(row);
                                    to[row.len()..].fill(0.0);
                                }
                                None => to.fill(0.0),
                            }
                        }
                    }
                }
                Number::Bf16 => {
                    let panel_words = width * depth / 2;
                    let keys = &mut keys[index * panel_words..][..panel_words];
                    if rows.len() < width || depth > head_dim {
                        keys.fill(0);
                    }
                    let pair = |a: f32, b: f32| {
                        let (a, b) = (bf16::from_f32(a).to_bits(), bf16::from_f32(b).to_bits());
                        u32::from(a) | u32::from(b) << 16
                    };
                    for (column, &row) in rows.iter().enumerate() {
                        for (d, x) in self.keys.row(row)[of_head.clone()].chunks(2).enumerate() {
                            keys[d * width + column] = pair(x[0], x.get(1).copied().unwrap_or(0.0));
                        }
                    }
                    for (of_columns, values) in values.chunks_exact_mut(positions * width / 2).enumerate() {
                        let values = &mut values[index * width * width / 2..][..width * width / 2];
                        let from = of_columns * width..((of_columns + 1) * width).min(head_dim);
                        for (at, to) in values.chunks_exact_mut(width).enumerate() {
                            let row = |at: usize| {
                                rows.get(at).map_or(&[][..], |&row| {
                                    &self.values.row(row)[of_head.clone()][from.clone()]
                                })
                            };
                            let (a, b) = (row(2 * at), row(2 * at + 1));
                            for (column, to) in to.iter_mut().enumerate() {
                                let at = |row: &[f32]| row.get(column).copied().unwrap_or(0.0);
                                *to = pair(at(a), at(b));
                            }
                        }
                    }
                }
            }
        }
    }

    /// Attention of one block of queries, all heads.
    fn attend(&self, cache: &Cache, queries: &Rows, place: &dyn Fn(usize) -> (usize, usize)) -> Rows {
        let mut output = Rows::new(self.number, queries.len(), self.spec.heads * self.spec.head_dim);
        let mut work = Work::new(self);
        let mut first = 0;
        while first < queries.len() {
            let (segment, position) = place(first);
            let mut end = first + 1;
            while end < queries.len()
                && end - first < MAX_QUERIES
                && place(end) == (segment, position + end - first)
            {
                end += 1;
            }
            let path = self.path(segment);
            for head in 0..self.spec.heads {
                work.attend(self, cache, &path, queries, first..end, position, head);
                work.write(self, &mut output, first..end, head);
            }
            first = end;
        }
        output
    }

    /// The segments that hold a segment's sequence, each with the panels that it gives.
    fn path(&self, segment: usize) -> Vec<(usize, Range<usize>)> {
        let mut path = Vec::new();
        let mut current = Some(segment);
        let mut until = usize::MAX;
        while let Some(index) = current {
            let panels = self.own_panels(&self.segments[index]);
            if panels.start < until {
                path.push((index, panels.start..panels.end.min(until)));
                until = panels.start;
            }
            current = self.segments[index].parent;
        }
        path.reverse();
        path
    }
}

/// Memory of one thread.
struct Work {
    multiplier: Multiplier,
    /// `[queries, BLOCK]`, a row every `score_stride`.
    scores: Buffer,
    score_stride: usize,
    /// Bfloat16 only: queries, and softmax weights.
    queries: Buffer,
    weights: Buffer,
    weight_stride: usize,
    /// `[queries, columns]`
    sums: Buffer,
    /// Of each query: the largest score, and the sum of the weights.
    largest: [f32; MAX_QUERIES],
    total: [f32; MAX_QUERIES],
    /// What the sums so far are worth under the new largest score.
    keep: [f32; MAX_QUERIES],
}

impl Work {
    fn new(attention: &Attention<'_>) -> Self {
        let Sizes { depth, columns, .. } = attention.sizes();
        let score_stride = BLOCK + 16;
        let weight_stride = BLOCK + 32;
        Self {
            multiplier: Multiplier::new(attention.isa, attention.number),
            scores: Buffer::for_numbers::<f32>(MAX_QUERIES * score_stride),
            score_stride,
            queries: Buffer::for_numbers::<bf16>(MAX_QUERIES * depth),
            weights: Buffer::for_numbers::<bf16>(MAX_QUERIES * weight_stride),
            weight_stride,
            sums: Buffer::for_numbers::<f32>(MAX_QUERIES * columns),
            largest: [0.0; MAX_QUERIES],
            total: [0.0; MAX_QUERIES],
            keep: [0.0; MAX_QUERIES],
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one query tile of one head")]
    fn attend(
        &mut self,
        attention: &Attention<'_>,
        cache: &Cache,
        path: &[(usize, Range<usize>)],
        queries: &Rows,
        tile: Range<usize>,
        first_position: usize,
        head: usize,
    ) {
        let Attention { spec, segments, number, isa, .. } = *attention;
        let Sizes { width, depth, columns } = attention.sizes();
        let count = tile.len();
        let (segment, _) = path[path.len() - 1];
        let end = segments[segment].first_position + segments[segment].rows.len();
        let last_key = if spec.causal { first_position + count } else { end };
        let first_key = match spec.window {
            Some(window) if spec.causal => (first_position + 1).saturating_sub(window),
            _ => 0,
        };
        let kv_head = head * spec.kv_heads / spec.heads;
        let column = head * spec.head_dim;

        let query_operand = match number {
            Number::F32 => {
                Operand::F32(&queries.values()[tile.start * queries.stride() + column..], queries.stride())
            }
            Number::Bf16 => {
                let rounded: &mut [bf16] = self.queries.numbers_mut();
                isa.run(RoundQueries {
                    queries,
                    tile: tile.clone(),
                    column,
                    head_dim: spec.head_dim,
                    depth,
                    to: rounded,
                });
                Operand::Bf16(self.queries.numbers(), depth)
            }
        };
        self.largest[..count].fill(f32::NEG_INFINITY);
        self.total[..count].fill(0.0);
        let mut is_first = true;
        for block in first_key / BLOCK..last_key.div_ceil(BLOCK) {
            let positions = block * BLOCK..(block + 1) * BLOCK;
            let panels = positions.start.max(first_key) / width..positions.end.min(last_key).div_ceil(width);
            // scores
            for (part, of_part) in path {
                let shared = of_part.start.max(panels.start)..of_part.end.min(panels.end);
                for panel in shared {
                    let own = attention.own_panels(&segments[*part]);
                    let (begin, panel_in_part) = (cache.starts[*part], panel - own.start);
                    let base = begin * spec.kv_heads + kv_head * own.len() * width;
                    let at = (base + panel_in_part * width) * depth;
                    let keys = match number {
                        Number::F32 => Panel::F32(&cache.keys.numbers()[at..][..width * depth]),
                        Number::Bf16 => Panel::Bf16(&cache.keys.numbers()[at..][..width * depth]),
                    };
                    let mut to = Scores {
                        to: self.scores.numbers_mut(),
                        stride: self.score_stride,
                        first_panel: block * BLOCK / width,
                    };
                    self.multiplier.multiply(count, &[(query_operand, keys, depth)], panel, &mut to);
                }
            }
            // weights
            let columns_in_block =
                panels.start * width - positions.start..panels.end * width - positions.start;
            isa.run(Softmax {
                scores: self.scores.numbers_mut(),
                stride: self.score_stride,
                weights: (number == Number::Bf16).then_some((self.weights.numbers_mut(), self.weight_stride)),
                count,
                columns: columns_in_block.clone(),
                visible: |query: usize| {
                    let position = first_position + query;
                    let end = if spec.causal { position + 1 } else { end };
                    let start = spec.window.map_or(0, |window| (position + 1).saturating_sub(window));
                    let inside = |key: usize| key.clamp(positions.start, positions.end) - positions.start;
                    inside(start)..inside(end)
                },
                scale: spec.scale as f32,
                softcap: spec.softcap.map(|cap| cap as f32),
                largest: &mut self.largest,
                total: &mut self.total,
                keep: &mut self.keep,
            });
            // sums
            let mut parts = [(query_operand, Panel::F32(&[]), 0); 8];
            for of_columns in 0..columns / width {
                let mut used = 0;
                let mut more = Vec::new();
                for (part, of_part) in path {
                    let shared = of_part.start.max(panels.start)..of_part.end.min(panels.end);
                    if shared.is_empty() {
                        continue;
                    }
                    let own = attention.own_panels(&segments[*part]);
                    let base = (cache.starts[*part] * spec.kv_heads + kv_head * own.len() * width) * columns;
                    let at = base + (of_columns * own.len() + shared.start - own.start) * width * width;
                    let keys = shared.len() * width;
                    let from = shared.start * width - positions.start;
                    let part = match number {
                        Number::F32 => (
                            Operand::F32(&self.scores.numbers()[from..], self.score_stride),
                            Panel::F32(&cache.values.numbers()[at..][..keys * width]),
                            keys,
                        ),
                        Number::Bf16 => (
                            Operand::Bf16(&self.weights.numbers()[from..], self.weight_stride),
                            Panel::Bf16(&cache.values.numbers()[at..][..keys * width]),
                            keys,
                        ),
                    };
                    if used < parts.len() {
                        parts[used] = part;
                    } else {
                        if more.is_empty() {
                            more.extend_from_slice(&parts);
                        }
                        more.push(part);
                    }
                    used += 1;
                }
                let parts = if more.is_empty() { &parts[..used] } else { &more };
                let mut to = Sums { to: self.sums.numbers_mut(), columns, keep: &self.keep, is_first };
                self.multiplier.multiply(count, parts, of_columns, &mut to);
            }
            is_first = false;
        }
    }

    /// Writes a head's result.
    fn write(&mut self, attention: &Attention<'_>, output: &mut Rows, tile: Range<usize>, head: usize) {
        let columns = attention.sizes().columns;
        let head_dim = attention.spec.head_dim;
        attention.isa.run(Finish {
            sums: self.sums.numbers(),
            columns,
            total: &self.total,
            output,
            tile,
            of_head: head * head_dim..(head + 1) * head_dim,
        });
    }
}

struct RoundQueries<'a> {
    queries: &'a Rows,
    tile: Range<usize>,
    column: usize,
    head_dim: usize,
    depth: usize,
    to: &'a mut [bf16],
}

impl Kernel for RoundQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, to) in self.tile.zip(self.to.chunks_exact_mut(self.depth)) {
            let (to, rest) = to.split_at_mut(self.head_dim);
            rest.fill(bf16::ZERO);
            let from = &self.queries.row(row)[self.column..][..self.head_dim];
            for (to, from) in to.chunks_mut(S::LANES).zip(from.chunks(S::LANES)) {
                simd.store_bf16(to, simd.load(from));
            }
        }
    }
}

struct Scores<'a> {
    to: &'a mut [f32],
    stride: usize,
    first_panel: usize,
}

impl Epilogue for Scores<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32]) {
        let width = 2 * S::LANES;
        let at = (panel - self.first_panel) * width;
        let to = self.to[rows.start * self.stride..].chunks_mut(self.stride);
        for (sums, to) in sums.chunks_exact(width).zip(to) {
            for (sums, to) in sums.chunks_exact(S::LANES).zip(to[at..][..width].chunks_exact_mut(S::LANES)) {
                simd.store(to, simd.load(sums));
            }
        }
    }
}

struct Sums<'a> {
    to: &'a mut [f32],
    columns: usize,
    keep: &'a [f32; MAX_QUERIES],
    is_first: bool,
}

impl Epilogue for Sums<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32]) {
        let width = 2 * S::LANES;
        let to = self.to[rows.start * self.columns..].chunks_mut(self.columns);
        for ((row, sums), to) in rows.zip(sums.chunks_exact(width)).zip(to) {
            let to = to[panel * width..][..width].chunks_exact_mut(S::LANES);
            for (sums, to) in sums.chunks_exact(S::LANES).zip(to) {
                let mut sums = simd.load(sums);
                if !self.is_first {
                    sums = simd.mul_add(simd.load(to), simd.splat(self.keep[row]), sums);
                }
                simd.store(to, sums);
            }
        }
    }
}

/// Scores → weights, not yet divided by their sum.
struct Softmax<'a, F> {
    scores: &'a mut [f32],
    stride: usize,
    /// Where the weights go rounded; else they take the place of the scores.
    weights: Option<(&'a mut [bf16], usize)>,
    count: usize,
    columns: Range<usize>,
    /// The columns that a query sees.
    visible: F,
    scale: f32,
    softcap: Option<f32>,
    largest: &'a mut [f32; MAX_QUERIES],
    total: &'a mut [f32; MAX_QUERIES],
    keep: &'a mut [f32; MAX_QUERIES],
}

impl<F: Fn(usize) -> Range<usize>> Kernel for Softmax<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let lowest = simd.splat(f32::NEG_INFINITY);
        for query in 0..self.count {
            let row = &mut self.scores[query * self.stride..][..self.stride];
            let visible = (self.visible)(query);
            let weights =
                self.weights.as_mut().map(|(weights, stride)| &mut weights[query * *stride..][..*stride]);
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

/// Divides by the sum of the weights.
struct Finish<'a> {
    sums: &'a [f32],
    columns: usize,
    total: &'a [f32; MAX_QUERIES],
    output: &'a mut Rows,
    tile: Range<usize>,
    of_head: Range<usize>,
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let stride = self.output.stride();
        for ((row, sums), &total) in self.tile.zip(self.sums.chunks_exact(self.columns)).zip(self.total) {
            let factor = simd.splat(1.0 / total);
            let sums = sums[..self.of_head.len()].chunks(S::LANES);
            let at = row * stride + self.of_head.start;
            match self.output.number() {
                Number::F32 => {
                    let to = self.output.values_mut()[at..][..self.of_head.len()].chunks_mut(S::LANES);
                    for (sums, to) in sums.zip(to) {
                        simd.store(to, simd.mul(simd.load(sums), factor));
                    }
                }
                Number::Bf16 => {
                    let to = self.output.bf16_mut()[at..][..self.of_head.len()].chunks_mut(S::LANES);
                    for (sums, to) in sums.zip(to) {
                        simd.store_bf16(to, simd.mul(simd.load(sums), factor));
                    }
                }
            }
        }
    }
}
