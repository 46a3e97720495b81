//! Disentangled attention: what a score has for the distance between its query and its key.
//!
//! ```text
//! score = query · key + query · keys[row of the distance] + key · queries[row of the distance]
//!
//! a tile of queries:  queries · keysᵀ          [queries, columns in reach]    once for a block of positions
//! a panel of keys:    queries in reach · keyᵀ  [columns in reach, positions]  with the panel that scores are made of
//! then each score takes its number of either: by distance, along a row of the one and a diagonal of the other
//! ```
//!
//! Tables are multiplied as they are, however many distances share a row, and only where a tile can reach. Their rows
//! are turned round to *columns*, which grow as keys go on.
//!
//! 512 tokens of a base model (12 heads of 64, logarithmic buckets), AVX2, one thread of an AMD EPYC: 23.6 ms, of which
//! plain attention is 12.1; products are 16 of it, at the machine's peak. The columns in reach are 0.75 (a tile of
//! queries) and 0.83 (a panel of keys) of the keys, where 0.67 is the least that there can be.

use std::ops::Range;

use half::bf16;

use super::Blocks;
use super::cache::PackKeys;
use super::cache::Sizes;
use super::tile::MAX_QUERIES;
use super::tile::Store;
use crate::AttentionSpec;
use crate::Buckets;
use crate::Distance;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::product::Multiplier;
use crate::product::Number;
use crate::product::Operand;
use crate::product::Panel;
use crate::product::Part;
use crate::rows::Rows;
use crate::rows::round;
use crate::simd::Simd;

/// The tables of a layer, laid out for the products. They depend on weights alone.
pub struct Relative {
    number: Number,
    sizes: Sizes,
    /// Of both tables, in panels.
    panels: usize,
    /// For each key head its panels.
    keys: Option<Buffer>,
    /// `[heads, columns and room, depth]`
    queries: Option<Buffer>,
}

/// Tile registers read 16 rows at a time, wherever they begin.
const ROOM: usize = 16;

impl Relative {
    /// Lays out the tables that `spec` speaks of: `keys`, `[rows, kv_heads · head_dim]`, for queries to be multiplied
    /// with, and `queries`, `[rows, heads · head_dim]`, for keys. Number and instruction set are those of
    /// [`Attention`](super::Attention).
    pub fn new(
        isa: Isa,
        number: Number,
        spec: &AttentionSpec,
        keys: Option<&Rows>,
        queries: Option<&Rows>,
    ) -> Self {
        if let Distance::Buckets(buckets) = &spec.distance {
            assert!(buckets.are_sorted(), "rows fall as distances grow");
        }
        let sizes @ Sizes { width, depth, .. } = Sizes::of(isa, number, spec);
        let rows = [keys, queries].into_iter().flatten().map(Rows::len).max().unwrap_or(0);
        assert!([keys, queries].into_iter().flatten().all(|table| table.len() == rows), "tables differ");
        let of_head = |head: usize| head * spec.head_dim..(head + 1) * spec.head_dim;
        let columns: Vec<usize> = (0..rows).rev().collect();
        let panels = rows.div_ceil(width);
        let words = match number {
            Number::F32 => depth,
            Number::Bf16 => depth / 2,
        };
        let pack_keys = |table: &Rows| {
            let mut packed = Buffer::for_numbers::<u32>(spec.kv_heads * panels * width * words);
            let mut left = packed.numbers_mut::<u32>();
            for head in 0..spec.kv_heads {
                for rows in columns.chunks(width) {
                    let (to, rest) = left.split_at_mut(width * words);
                    let keys = &Blocks::new(std::slice::from_ref(table));
                    isa.run(PackKeys { keys, number, rows, of_head: of_head(head), to });
                    left = rest;
                }
            }
            packed
        };
        let lay_queries = |table: &Rows| {
            let held = panels * width + ROOM;
            let mut laid = Buffer::for_numbers::<u32>(spec.heads * held * words);
            let of_heads = laid.numbers_mut::<u32>().chunks_exact_mut(held * words);
            for (head, to) in of_heads.enumerate().take(spec.heads) {
                let (columns, of_head) = (&columns[..], of_head(head));
                isa.run(LayQueries { table, number, columns, of_head, depth: words, to });
            }
            laid
        };
        Self { number, sizes, panels, keys: keys.map(pack_keys), queries: queries.map(lay_queries) }
    }

    /// Numbers from one query to the next, in the products with all columns.
    fn stride(&self) -> usize {
        self.panels * self.sizes.width + 16
    }

    /// One panel of columns.
    fn keys<'b>(&self, buffer: &'b Buffer, kv_head: usize, panel: usize) -> Panel<'b> {
        let Sizes { width, depth, .. } = self.sizes;
        let at = (kv_head * self.panels + panel) * width * depth;
        match self.number {
            Number::F32 => Panel::F32(&buffer.numbers()[at..at + width * depth]),
            Number::Bf16 => Panel::Bf16(&buffer.numbers()[at..at + width * depth]),
        }
    }

    /// The rows from one column on.
    fn queries(&self, head: usize, column: usize) -> Option<Operand<'_>> {
        let Sizes { width, depth, .. } = self.sizes;
        let at = (head * (self.panels * width + ROOM) + column) * depth;
        self.queries.as_ref().map(|buffer| match self.number {
            Number::F32 => Operand::F32(&buffer.numbers()[at..], depth),
            Number::Bf16 => Operand::Bf16(&buffer.numbers()[at..], depth),
        })
    }
}

/// Rows of a table and a head, as operands of a product, zeros at the end.
struct LayQueries<'a> {
    table: &'a Rows,
    number: Number,
    columns: &'a [usize],
    of_head: Range<usize>,
    /// In words.
    depth: usize,
    to: &'a mut [u32],
}

impl Kernel for LayQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (laid, room) = self.to.split_at_mut(self.columns.len() * self.depth);
        room.fill(0);
        for (&row, to) in self.columns.iter().zip(laid.chunks_exact_mut(self.depth)) {
            let from = &self.table.row(row)[self.of_head.clone()];
            match self.number {
                Number::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(from),
                Number::Bf16 => {
                    let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
                    let (to, rest) = to.split_at_mut(from.len());
                    rest.fill(bf16::ZERO);
                    round(simd, from, to);
                }
            }
        }
    }
}

/// The column of each distance that there is in a batch.
pub(super) struct Columns {
    /// By how far a key is after a query, from `-before` on; never falling.
    of_distance: Vec<u32>,
    before: usize,
}

impl Columns {
    /// For sequences of at most so many tokens, filled up to a multiple of `width` keys.
    pub(super) fn new(buckets: &Buckets, longest: usize, width: usize) -> Self {
        let before = longest.saturating_sub(1);
        let distances = 0..before + longest.next_multiple_of(width);
        let column = |at: usize| buckets.rows() - 1 - buckets.row(before as isize - at as isize);
        let of_distance: Vec<u32> = distances.map(|at| column(at) as u32).collect();
        Self { of_distance, before }
    }

    /// The columns that some queries take of some keys.
    fn reach(&self, queries: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
        let first = self.from(keys.start, queries.end - 1)[0];
        let last = self.from(keys.end - 1, queries.start)[0];
        first as usize..last as usize + 1
    }

    /// From one key and query on.
    fn from(&self, key: usize, query: usize) -> &[u32] {
        &self.of_distance[self.before + key - query..]
    }

    /// For each distance from the last query to the first key on: where a score's number is in `[columns, width]`,
    /// which begins with column `first`, if the first key's were at zero.
    fn diagonals(&self, queries: &Range<usize>, keys: &Range<usize>, first: usize, to: &mut Vec<u32>) {
        let distances = &self.from(keys.start, queries.end - 1)[..queries.len() + keys.len() - 1];
        let place = |(at, column): (usize, &u32)| ((*column as usize - first) * keys.len() + at) as u32;
        to.clear();
        to.extend(distances.iter().enumerate().map(place));
    }
}

/// What a thread multiplies with tables.
pub(super) struct Distances<'a> {
    relative: &'a Relative,
    columns: &'a Columns,
    /// `[queries, columns]`, from this column on.
    of_queries: Buffer,
    first_column: usize,
    /// `[columns, width]`, and where scores find theirs.
    of_keys: Buffer,
    diagonals: Vec<u32>,
}

impl<'a> Distances<'a> {
    pub(super) fn new(relative: &'a Relative, columns: &'a Columns) -> Self {
        let width = relative.sizes.width;
        Self {
            relative,
            columns,
            of_queries: Buffer::for_numbers::<f32>(MAX_QUERIES * relative.stride()),
            first_column: 0,
            of_keys: Buffer::for_numbers::<f32>((MAX_QUERIES + width) * width),
            diagonals: Vec::with_capacity(MAX_QUERIES + width),
        }
    }

    /// Multiplies queries with the columns that they take of some keys.
    pub(super) fn multiply(
        &mut self,
        multiplier: &mut Multiplier,
        (kv_head, rows): (usize, Operand<'_>),
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) {
        let Some(table) = &self.relative.keys else { return };
        let Sizes { width, depth, .. } = self.relative.sizes;
        let reach = self.columns.reach(queries, keys);
        self.first_column = reach.start / width * width;
        for panel in reach.start / width..reach.end.div_ceil(width) {
            let part = Part { rows, panel: self.relative.keys(table, kv_head, panel), depth };
            let to = &mut self.of_queries.numbers_mut()[panel * width - self.first_column..];
            let mut to = Store { to, stride: self.relative.stride() };
            multiplier.multiply(queries.len(), std::iter::once(part), 0, &mut to);
        }
    }

    /// Multiplies one panel of keys with the columns that queries take of them, and tells what comes to the scores.
    pub(super) fn of_panel(
        &mut self,
        multiplier: &mut Multiplier,
        (head, panel, first_key): (usize, Panel<'_>, usize),
        queries: &Range<usize>,
    ) -> OfPanel<'_> {
        let Sizes { width, depth, .. } = self.relative.sizes;
        let keys = first_key..first_key + width;
        let reach = self.columns.reach(queries, &keys);
        let table = self.relative.queries(head, reach.start);
        if let Some(rows) = table {
            self.columns.diagonals(queries, &keys, reach.start, &mut self.diagonals);
            let part = Part { rows, panel, depth };
            let mut to = Store { to: self.of_keys.numbers_mut(), stride: width };
            multiplier.multiply(reach.len(), std::iter::once(part), 0, &mut to);
        }
        let (stride, first) = (self.relative.stride(), self.first_column);
        OfPanel {
            columns: self.columns.from(first_key, queries.end - 1),
            of_queries: self.relative.keys.as_ref().map(|_| (self.of_queries.numbers(), stride, first)),
            of_keys: table.map(|_| (&self.of_keys.numbers()[..reach.len() * width], &self.diagonals[..])),
        }
    }
}

/// What scores of one panel of keys have for distances.
#[derive(Clone, Copy)]
pub(super) struct OfPanel<'a> {
    /// From the last query to the first key on.
    columns: &'a [u32],
    /// Of each query with the columns from one on; a row every so many numbers.
    of_queries: Option<(&'a [f32], usize, usize)>,
    /// Of columns with the keys, and the [diagonals](Columns::diagonals).
    of_keys: Option<(&'a [f32], &'a [u32])>,
}

impl OfPanel<'_> {
    /// Of a query that is so many before the last one, with the keys from `key` on.
    #[inline(always)]
    pub(super) fn add<S: Simd>(
        &self,
        simd: S,
        query: usize,
        before_last: usize,
        key: usize,
        sum: S::V,
    ) -> S::V {
        let mut sum = sum;
        let at = before_last + key;
        if let Some((numbers, stride, first)) = self.of_queries {
            let numbers = &numbers[query * stride..][..stride];
            let columns = &self.columns[at..at + S::LANES];
            let start = columns[0];
            // near or far, neighbours share columns or have the next ones: all are in one vector
            let taken = if columns[S::LANES - 1] - start < S::LANES as u32 {
                simd.pick(&numbers[start as usize - first..][..S::LANES], columns, start)
            } else {
                simd.gather(numbers, columns, first as u32)
            };
            sum = simd.add(sum, taken);
        }
        if let Some((numbers, diagonals)) = self.of_keys {
            sum = simd.add(sum, simd.gather(numbers, &diagonals[at..at + S::LANES], before_last as u32));
        }
        sum
    }
}

impl std::fmt::Debug for Relative {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, panels, keys, queries, .. } = self;
        let has = [keys.is_some(), queries.is_some()];
        write!(f, "Relative({panels} panels of {number:?}, for queries and for keys: {has:?})")
    }
}
