//! Attention of a tile: queries of one sequence that follow each other, with one head at a time.

#![expect(unsafe_code, reason = "the heads of a block are written by several threads")]

use std::ops::Range;

use half::bf16;

use super::Attention;
use super::bias::Biases;
use super::cache::Cache;
use super::cache::Piece;
use super::cache::Sizes;
use super::relative::Columns;
use super::relative::Distances;
use super::relative::OfPanel;
use super::relative::Relative;
use super::softmax::Softmax;
use crate::AttentionSpec;
use crate::buffer::Buffer;
use crate::isa::Kernel;
use crate::product::Epilogue;
use crate::product::Multiplier;
use crate::product::Number;
use crate::product::Operand;
use crate::product::Part;
use crate::rows::Rows;
use crate::rows::round;
use crate::shared::Shared;
use crate::simd::Simd;

/// Positions that the online softmax takes at a time; a multiple of every panel's width.
const BLOCK: usize = 512;

/// Queries that go together.
pub(super) const MAX_QUERIES: usize = 64;

/// A product of bfloat16 reads 16 rows at a time, wherever they begin.
const ROOM: usize = 16;

/// An odd number of cache lines, so that rows do not fall into the same set.
pub(super) const SCORE_STRIDE: usize = BLOCK + 16;
pub(super) const WEIGHT_STRIDE: usize = BLOCK + 32;

/// Queries of one sequence that follow each other.
pub(super) struct Tile<'a> {
    pub(super) queries: &'a Rows,
    pub(super) rows: Range<usize>,
    pub(super) first_position: usize,
    /// Where the segment of the queries ends.
    pub(super) end_position: usize,
    pub(super) path: Vec<Piece>,
}

impl Tile<'_> {
    /// The queries in runs: where each sees only itself and what is before it, those of a panel of positions, else all.
    /// What is cut by position is the same wherever a tile begins.
    fn seeing_alike(&self, spec: &AttentionSpec, width: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, count, causal) = (self.first_position, self.rows.len(), spec.causal);
        let mut start = 0;
        std::iter::from_fn(move || {
            let panel = (first + start) / width;
            let end = if causal { ((panel + 1) * width - first).min(count) } else { count };
            let run = start..end;
            start = end;
            (!run.is_empty()).then_some(run)
        })
    }
}

/// Memory of one thread.
pub(super) struct Work<'a> {
    multiplier: Multiplier,
    /// `[queries, BLOCK]`; for `f32` the softmax weights take their place.
    scores: Buffer,
    /// Queries and softmax weights in bfloat16.
    queries: Buffer,
    weights: Buffer,
    /// `[queries, columns]`
    sums: Buffer,
    /// Of each query: the largest score, and the sum of the weights.
    largest: [f32; MAX_QUERIES],
    total: [f32; MAX_QUERIES],
    /// What the sums so far are worth under the new largest score.
    keep: [f32; MAX_QUERIES],
    distances: Option<Distances<'a>>,
}

impl<'a> Work<'a> {
    pub(super) fn new(attention: &Attention<'_>, distances: Option<&'a (&'a Relative, Columns)>) -> Self {
        let Sizes { depth, columns, .. } = attention.sizes();
        Self {
            multiplier: Multiplier::new(attention.isa, attention.number),
            scores: Buffer::for_numbers::<f32>(MAX_QUERIES * SCORE_STRIDE),
            queries: Buffer::for_numbers::<bf16>((MAX_QUERIES + ROOM) * depth),
            weights: Buffer::for_numbers::<bf16>((MAX_QUERIES + ROOM) * WEIGHT_STRIDE),
            sums: Buffer::for_numbers::<f32>(MAX_QUERIES * columns),
            largest: [0.0; MAX_QUERIES],
            total: [0.0; MAX_QUERIES],
            keep: [0.0; MAX_QUERIES],
            distances: distances.map(|(relative, columns)| Distances::new(relative, columns)),
        }
    }

    /// Attention of a tile and a head, into `sums` and `total`.
    pub(super) fn attend(
        &mut self,
        attention: &Attention<'_>,
        cache: &Cache,
        biases: Option<&Biases>,
        tile: &Tile<'_>,
        head: usize,
    ) {
        let spec = attention.spec;
        let count = tile.rows.len();
        let first_key = spec.seen(tile.first_position, tile.end_position).start;
        let last_key = spec.seen(tile.first_position + count - 1, tile.end_position).end;
        if attention.number == Number::Bf16 {
            attention.isa.run(RoundQueries {
                queries: tile.queries,
                rows: tile.rows.clone(),
                of_head: head * spec.head_dim..(head + 1) * spec.head_dim,
                depth: cache.sizes.depth,
                to: self.queries.numbers_mut(),
            });
        }
        self.largest[..count].fill(f32::NEG_INFINITY);
        self.total[..count].fill(0.0);
        for block in first_key / BLOCK..last_key.div_ceil(BLOCK) {
            let positions = block * BLOCK..(block + 1) * BLOCK;
            let width = cache.sizes.width;
            let panels = positions.start.max(first_key) / width..positions.end.min(last_key).div_ceil(width);
            self.score(attention, cache, tile, head, &panels);
            attention.isa.run(Softmax {
                scores: self.scores.numbers_mut(),
                weights: (attention.number == Number::Bf16).then_some(self.weights.numbers_mut()),
                count,
                columns: panels.start * width - positions.start..panels.end * width - positions.start,
                visible: |query: usize| {
                    let seen = spec.seen(tile.first_position + query, tile.end_position);
                    let inside = |key: usize| key.clamp(positions.start, positions.end) - positions.start;
                    inside(seen.start)..inside(seen.end)
                },
                scale: spec.scale as f32,
                biases: biases.map(|biases| biases.of(head, tile.first_position, positions.start)),
                softcap: spec.softcap.map(|cap| cap as f32),
                largest: &mut self.largest,
                total: &mut self.total,
                keep: &mut self.keep,
            });
            let is_first = block == first_key / BLOCK;
            self.add_values(attention, cache, tile, head, &panels, is_first);
        }
    }

    /// Queries times keys, at some panels of positions.
    fn score(
        &mut self,
        attention: &Attention<'_>,
        cache: &Cache,
        tile: &Tile<'_>,
        head: usize,
        panels: &Range<usize>,
    ) {
        let Sizes { width, depth, .. } = cache.sizes;
        // from one of the queries on
        let queries_from = |query: usize| match attention.number {
            Number::F32 => {
                let (stride, first) = (tile.queries.stride(), tile.rows.start + query);
                Operand::F32(
                    &tile.queries.values()[first * stride + head * attention.spec.head_dim..],
                    stride,
                )
            }
            Number::Bf16 => Operand::Bf16(&self.queries.numbers()[query * depth..], depth),
        };
        let queries = queries_from(0);
        let kv_head = attention.spec.kv_head(head);
        let positions = tile.first_position..tile.first_position + tile.rows.len();
        if let Some(distances) = &mut self.distances {
            let keys = panels.start * width..panels.end * width;
            distances.multiply(&mut self.multiplier, (kv_head, queries), &positions, &keys);
        }
        for piece in &tile.path {
            for panel in piece.panels.start.max(panels.start)..piece.panels.end.min(panels.end) {
                let scores = &mut self.scores.numbers_mut()[panel * width % BLOCK..];
                let keys = cache.keys(piece, kv_head, panel);
                match &mut self.distances {
                    None => {
                        // those before the panel see nothing of it
                        let first = match attention.spec.causal {
                            true => (panel * width).saturating_sub(tile.first_position),
                            false => 0,
                        };
                        let part = std::iter::once(Part { rows: queries_from(first), panel: keys, depth });
                        let mut to = Store { to: &mut scores[first * SCORE_STRIDE..], stride: SCORE_STRIDE };
                        self.multiplier.multiply(tile.rows.len() - first, part, 0, &mut to);
                    }
                    Some(distances) => {
                        let part = std::iter::once(Part { rows: queries, panel: keys, depth });
                        let of_panel = (head, keys, panel * width);
                        let add = distances.of_panel(&mut self.multiplier, of_panel, &positions);
                        let mut to = StoreWith { to: scores, count: tile.rows.len(), add };
                        self.multiplier.multiply(tile.rows.len(), part, 0, &mut to);
                    }
                }
            }
        }
    }

    /// Adds the values at some panels of positions, each as often as its weight says.
    fn add_values(
        &mut self,
        attention: &Attention<'_>,
        cache: &Cache,
        tile: &Tile<'_>,
        head: usize,
        panels: &Range<usize>,
        is_first: bool,
    ) {
        let Sizes { width, columns, .. } = cache.sizes;
        let kv_head = attention.spec.kv_head(head);
        for queries in tile.seeing_alike(attention.spec, width) {
            // what comes after them has no weight
            let last = match attention.spec.causal {
                true => (tile.first_position + queries.start) / width + 1,
                false => panels.end,
            };
            let panels = panels.start..panels.end.min(last);
            for of_columns in 0..columns / width {
                let parts = tile.path.iter().filter_map(|piece| {
                    let panels = piece.panels.start.max(panels.start)..piece.panels.end.min(panels.end);
                    let at = panels.start * width % BLOCK;
                    (!panels.is_empty()).then(|| Part {
                        rows: match attention.number {
                            Number::F32 => {
                                let weights = &self.scores.numbers()[queries.start * SCORE_STRIDE + at..];
                                Operand::F32(weights, SCORE_STRIDE)
                            }
                            Number::Bf16 => {
                                let weights = &self.weights.numbers()[queries.start * WEIGHT_STRIDE + at..];
                                Operand::Bf16(weights, WEIGHT_STRIDE)
                            }
                        },
                        panel: cache.values(piece, kv_head, &panels, of_columns),
                        depth: panels.len() * width,
                    })
                });
                let to = &mut self.sums.numbers_mut()[queries.start * columns..];
                let mut to = Sums { to, columns, keep: &self.keep[queries.clone()], is_first };
                self.multiplier.multiply(queries.len(), parts, of_columns, &mut to);
            }
        }
    }

    /// Writes a head's result.
    ///
    /// # Safety
    /// Nobody else may have the columns of the head.
    pub(super) unsafe fn write(
        &self,
        attention: &Attention<'_>,
        sink: Option<f32>,
        output: Shared<'_>,
        tile: &Tile<'_>,
        head: usize,
    ) {
        let Attention { isa, spec, .. } = attention;
        let mut total = self.total;
        if let Some(sink) = sink {
            for (total, largest) in total.iter_mut().zip(&self.largest).take(tile.rows.len()) {
                *total += (sink - largest).exp();
            }
        }
        isa.run(Finish {
            sums: self.sums.numbers(),
            columns: attention.sizes().columns,
            total: &total,
            output,
            rows: tile.rows.clone(),
            of_head: head * spec.value_dim..(head + 1) * spec.value_dim,
        });
    }
}

struct RoundQueries<'a> {
    queries: &'a Rows,
    rows: Range<usize>,
    of_head: Range<usize>,
    depth: usize,
    to: &'a mut [bf16],
}

impl Kernel for RoundQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, to) in self.rows.zip(self.to.chunks_exact_mut(self.depth)) {
            let (to, rest) = to.split_at_mut(self.of_head.len());
            rest.fill(bf16::ZERO);
            round(simd, &self.queries.row(row)[self.of_head.clone()], to);
        }
    }
}

/// Keeps sums as they are, a row every `stride` numbers.
pub(super) struct Store<'a> {
    pub(super) to: &'a mut [f32],
    pub(super) stride: usize,
}

impl Epilogue for Store<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, _: usize, sums: &[f32]) {
        let width = 2 * S::LANES;
        for (row, sums) in rows.zip(sums.chunks_exact(width)) {
            let to = &mut self.to[row * self.stride..][..width];
            for (sums, to) in sums.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                simd.store(to, simd.load(sums));
            }
        }
    }
}

/// Keeps scores with what they have for distances.
struct StoreWith<'a> {
    to: &'a mut [f32],
    /// How many queries there are.
    count: usize,
    add: OfPanel<'a>,
}

impl Epilogue for StoreWith<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, _: usize, sums: &[f32]) {
        let width = 2 * S::LANES;
        for (row, sums) in rows.zip(sums.chunks_exact(width)) {
            let to = &mut self.to[row * SCORE_STRIDE..][..width];
            let parts = sums.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES));
            for (half, (sums, to)) in parts.enumerate() {
                let (before_last, key) = (self.count - 1 - row, half * S::LANES);
                simd.store(to, self.add.add(simd, row, before_last, key, simd.load(sums)));
            }
        }
    }
}

struct Sums<'a> {
    to: &'a mut [f32],
    columns: usize,
    keep: &'a [f32],
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

/// Divides by the sum of the weights.
struct Finish<'a> {
    sums: &'a [f32],
    columns: usize,
    total: &'a [f32; MAX_QUERIES],
    /// Of which nobody else has those of the head.
    output: Shared<'a>,
    rows: Range<usize>,
    of_head: Range<usize>,
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for ((row, sums), &total) in self.rows.zip(self.sums.chunks_exact(self.columns)).zip(self.total) {
            let factor = simd.splat(1.0 / total);
            let sums = sums[..self.of_head.len()].chunks(S::LANES);
            match self.output.number() {
                Number::F32 => {
                    // SAFETY: nobody else has the columns of the head
                    let to = unsafe { self.output.f32(row, self.of_head.clone()) };
                    for (sums, to) in sums.zip(to.chunks_mut(S::LANES)) {
                        simd.store(to, simd.mul(simd.load(sums), factor));
                    }
                }
                Number::Bf16 => {
                    // SAFETY: as above
                    let to = unsafe { self.output.bf16(row, self.of_head.clone()) };
                    for (sums, to) in sums.zip(to.chunks_mut(S::LANES)) {
                        simd.store_bf16(to, simd.mul(simd.load(sums), factor));
                    }
                }
            }
        }
    }
}
