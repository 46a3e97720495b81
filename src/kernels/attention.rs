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

mod relative;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::AttentionSpec;
use crate::Distance;
use crate::Segment;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::product::BF16_DEPTH;
use crate::product::Epilogue;
use crate::product::Multiplier;
use crate::product::Number;
use crate::product::Operand;
use crate::product::Panel;
use crate::product::Part;
use crate::rows::Rows;
use crate::rows::round;
use crate::simd::Simd;

use self::relative::Columns;
use self::relative::Distances;
use self::relative::OfPanel;
pub use self::relative::Relative;

/// Positions that the online softmax takes at a time; a multiple of every panel's width.
const BLOCK: usize = 512;
/// `weight` takes an unrounded product from the largest score, which was rounded. What is between the two is next to
/// nothing, or, of scores as large as 2^30, more than any exponential can hold: those are rounded first.
const ROUND_ABOVE: f32 = 65536.0;
/// Queries that go together.
const MAX_QUERIES: usize = 64;

/// Rows of a batch in blocks of equal size, but for the last.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    blocks: &'a [Rows],
    size: usize,
}

impl<'a> Blocks<'a> {
    /// All rows of a batch, in order.
    pub fn new(blocks: &'a [Rows]) -> Self {
        Self { blocks, size: blocks.first().map_or(1, Rows::len) }
    }

    /// A row of the batch.
    pub fn row(&self, row: usize) -> &'a [f32] {
        self.blocks[row / self.size].row(row % self.size)
    }
}

/// One call of attention: first all keys and values are [remembered](Attention::remember), then blocks of queries
/// [attend](Remembered::attend) to them.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// What computes.
    pub isa: Isa,
    /// What queries, keys, values and softmax weights are multiplied in, and the result is kept in. Bfloat16 only
    /// where the instruction set multiplies it.
    pub number: Number,
    /// All of the batch: parents before their children.
    pub segments: &'a [Segment],
    /// What to compute.
    pub spec: &'a AttentionSpec,
}

/// Keys and values of all rows of a batch, laid out for the products.
pub struct Remembered<'a> {
    attention: Attention<'a>,
    cache: Cache,
    distances: Option<(&'a Relative, Columns)>,
}

/// Keys and values of all segments and heads, in panels: for each segment and head its panels, end to end.
struct Cache {
    number: Number,
    sizes: Sizes,
    kv_heads: usize,
    keys: Buffer,
    values: Buffer,
    /// How many panels come before each segment's, of one head.
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

impl Sizes {
    fn of(isa: Isa, number: Number, spec: &AttentionSpec) -> Self {
        let width = isa.panel_width();
        let depth = match number {
            Number::F32 => spec.head_dim,
            Number::Bf16 => spec.head_dim.next_multiple_of(BF16_DEPTH),
        };
        Self { width, depth, columns: spec.head_dim.next_multiple_of(width) }
    }
}

/// Panels of a sequence that one segment has packed.
struct Piece {
    segment: usize,
    /// All that the segment has packed.
    own: Range<usize>,
    /// What the sequence takes of them.
    panels: Range<usize>,
}

/// Queries of one sequence that follow each other.
struct Tile<'a> {
    queries: &'a Rows,
    rows: Range<usize>,
    first_position: usize,
    /// Where the segment of the queries ends.
    end_position: usize,
    path: Vec<Piece>,
}

impl Cache {
    /// Where the panels of a segment and a head begin.
    fn start(&self, piece: &Piece, kv_head: usize) -> usize {
        self.starts[piece.segment] * self.kv_heads + kv_head * piece.own.len()
    }

    /// Keys of one panel of positions.
    fn keys(&self, piece: &Piece, kv_head: usize, panel: usize) -> Panel<'_> {
        let length = self.sizes.width * self.sizes.depth;
        let at = (self.start(piece, kv_head) + panel - piece.own.start) * length;
        self.panel(&self.keys, at..at + length)
    }

    /// Values at some panels of positions, of one panel of columns.
    fn values(&self, piece: &Piece, kv_head: usize, panels: &Range<usize>, of_columns: usize) -> Panel<'_> {
        let Sizes { width, columns, .. } = self.sizes;
        let head = self.start(piece, kv_head) * width * columns;
        let at = head + (of_columns * piece.own.len() + panels.start - piece.own.start) * width * width;
        self.panel(&self.values, at..at + panels.len() * width * width)
    }

    fn panel<'a>(&self, buffer: &'a Buffer, range: Range<usize>) -> Panel<'a> {
        match self.number {
            Number::F32 => Panel::F32(&buffer.numbers()[range]),
            Number::Bf16 => Panel::Bf16(&buffer.numbers()[range]),
        }
    }
}

impl<'a> Attention<'a> {
    fn sizes(&self) -> Sizes {
        Sizes::of(self.isa, self.number, self.spec)
    }

    /// The panels of positions that a segment has packed for itself.
    fn own_panels(&self, segment: &Segment) -> Range<usize> {
        let width = self.isa.panel_width();
        segment.first_position / width..segment.end_position().div_ceil(width)
    }

    /// Lays out the keys and values of all rows of the batch, each `[rows, kv_heads · head_dim]`; `in_parallel` if
    /// that is worth several threads, those of the pool that this runs in. `relative` where [`Distance::Buckets`] asks
    /// for it.
    pub fn remember(
        self,
        keys: Blocks<'_>,
        values: Blocks<'_>,
        relative: Option<&'a Relative>,
        in_parallel: bool,
    ) -> Remembered<'a> {
        let sizes @ Sizes { width, depth, columns } = self.sizes();
        let mut starts = Vec::with_capacity(self.segments.len());
        let mut panels = 0;
        for segment in self.segments {
            starts.push(panels);
            panels += self.own_panels(segment).len();
        }
        // in words of 32 bits: one `f32`, or a pair of bfloat16
        let pair = match self.number {
            Number::F32 => 1,
            Number::Bf16 => 2,
        };
        let (key_words, value_words) = (width * depth / pair, width * columns / pair); // of one panel
        let kv_heads = self.spec.kv_heads;
        let mut key_panels = Buffer::for_numbers::<u32>(panels * kv_heads * key_words);
        let mut value_panels = Buffer::for_numbers::<u32>(panels * kv_heads * value_words);
        let mut parts = Vec::with_capacity(self.segments.len() * kv_heads);
        let (mut keys_left, mut values_left) =
            (key_panels.numbers_mut::<u32>(), value_panels.numbers_mut::<u32>());
        for (index, segment) in self.segments.iter().enumerate() {
            let panels = self.own_panels(segment).len();
            for head in 0..kv_heads {
                let (of_keys, of_values);
                (of_keys, keys_left) = keys_left.split_at_mut(panels * key_words);
                (of_values, values_left) = values_left.split_at_mut(panels * value_words);
                parts.push((index, head, of_keys, of_values));
            }
        }
        let pack = |(segment, head, to_keys, to_values): (usize, usize, &mut [u32], &mut [u32])| {
            self.pack_head([keys, values], segment, head, [to_keys, to_values]);
        };
        if in_parallel {
            parts.into_par_iter().for_each(pack);
        } else {
            parts.into_iter().for_each(pack);
        }
        let cache =
            Cache { number: self.number, sizes, kv_heads, keys: key_panels, values: value_panels, starts };
        let longest = self.segments.iter().map(Segment::end_position).max().unwrap_or(0);
        let distances = match &self.spec.distance {
            Distance::Buckets(buckets) => {
                let relative = relative.expect("a layer with buckets has tables");
                Some((relative, Columns::new(buckets, longest, width)))
            }
            Distance::Ignored | Distance::Slopes(_) => None,
        };
        Remembered { attention: self, cache, distances }
    }

    /// The row of each position of a panel; fewer at the end of a sequence.
    fn rows_of_panel(&self, segment: usize, panel: usize, rows: &mut Vec<usize>) {
        let width = self.isa.panel_width();
        let end = self.segments[segment].end_position();
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

    fn pack_head(
        &self,
        [keys, values]: [Blocks<'_>; 2],
        segment: usize,
        head: usize,
        [to_keys, to_values]: [&mut [u32]; 2],
    ) {
        let panels = self.own_panels(&self.segments[segment]);
        let Sizes { width, .. } = self.sizes();
        let key_panels = to_keys.chunks_exact_mut(to_keys.len() / panels.len());
        let of_head = head * self.spec.head_dim..(head + 1) * self.spec.head_dim;
        let (mut rows, number) = (Vec::with_capacity(width), self.number);
        let num_panels = panels.len();
        for ((index, panel), to) in panels.enumerate().zip(key_panels) {
            self.rows_of_panel(segment, panel, &mut rows);
            let (rows, of_head) = (&rows[..], of_head.clone());
            self.isa.run(PackKeys { keys, number, rows, of_head: of_head.clone(), to });
            self.isa.run(PackValues { values, number, rows, of_head, index, num_panels, to: to_values });
        }
    }

    /// The segments that hold a segment's sequence, each with the panels that it gives.
    fn path(&self, segment: usize) -> Vec<Piece> {
        let mut path = Vec::new();
        let mut current = Some(segment);
        let mut until = usize::MAX;
        while let Some(segment) = current {
            let own = self.own_panels(&self.segments[segment]);
            if own.start < until {
                let panels = own.start..own.end.min(until);
                until = own.start;
                path.push(Piece { segment, own, panels });
            }
            current = self.segments[segment].parent;
        }
        path.reverse();
        path
    }
}

impl Remembered<'_> {
    /// Attention of a block of queries, `[rows, heads · head_dim]`; `place(query)` is the segment and the position
    /// of a query. Returns a block like it.
    pub fn attend(&self, queries: &Rows, place: &dyn Fn(usize) -> (usize, usize)) -> Rows {
        let Self { attention, cache, distances } = self;
        let Attention { number, segments, spec, .. } = *attention;
        let mut output = Rows::new(number, queries.len(), spec.heads * spec.head_dim);
        let mut work = Work::new(attention, distances.as_ref());
        let mut first = 0;
        while first < queries.len() {
            let (segment, first_position) = place(first);
            let follows = |&query: &usize| place(query) == (segment, first_position + query - first);
            let last = queries.len().min(first + MAX_QUERIES);
            let end = (first + 1..last).take_while(follows).last().unwrap_or(first) + 1;
            let end_position = segments[segment].end_position();
            let path = attention.path(segment);
            let tile = Tile { queries, rows: first..end, first_position, end_position, path };
            for head in 0..spec.heads {
                work.attend(attention, cache, &tile, head);
                work.write(attention, &mut output, &tile, head);
            }
            first = end;
        }
        output
    }
}

/// Memory of one thread.
struct Work<'a> {
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

/// How many columns a lane is after the first.
const AHEAD: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// An odd number of cache lines, so that rows do not fall into the same set.
const SCORE_STRIDE: usize = BLOCK + 16;
const WEIGHT_STRIDE: usize = BLOCK + 32;

impl<'a> Work<'a> {
    fn new(attention: &Attention<'_>, distances: Option<&'a (&'a Relative, Columns)>) -> Self {
        let Sizes { depth, columns, .. } = attention.sizes();
        Self {
            multiplier: Multiplier::new(attention.isa, attention.number),
            scores: Buffer::for_numbers::<f32>(MAX_QUERIES * SCORE_STRIDE),
            queries: Buffer::for_numbers::<bf16>(MAX_QUERIES * depth),
            weights: Buffer::for_numbers::<bf16>(MAX_QUERIES * WEIGHT_STRIDE),
            sums: Buffer::for_numbers::<f32>(MAX_QUERIES * columns),
            largest: [0.0; MAX_QUERIES],
            total: [0.0; MAX_QUERIES],
            keep: [0.0; MAX_QUERIES],
            distances: distances.map(|(relative, columns)| Distances::new(relative, columns)),
        }
    }

    /// Attention of a tile and a head, into `sums` and `total`.
    fn attend(&mut self, attention: &Attention<'_>, cache: &Cache, tile: &Tile<'_>, head: usize) {
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
                slope: match &spec.distance {
                    Distance::Ignored | Distance::Buckets(_) => None,
                    Distance::Slopes(slopes) => Some(slopes[head]),
                },
                before: tile.first_position as f32 - positions.start as f32,
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
        let queries = match attention.number {
            Number::F32 => {
                let at = tile.rows.start * tile.queries.stride() + head * attention.spec.head_dim;
                Operand::F32(&tile.queries.values()[at..], tile.queries.stride())
            }
            Number::Bf16 => Operand::Bf16(self.queries.numbers(), depth),
        };
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
                let part = Part { rows: queries, panel: keys, depth };
                let part = std::iter::once(part);
                match &mut self.distances {
                    None => {
                        let mut to = Store { to: scores, stride: SCORE_STRIDE };
                        self.multiplier.multiply(tile.rows.len(), part, 0, &mut to);
                    }
                    Some(distances) => {
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
        for of_columns in 0..columns / width {
            let parts = tile.path.iter().filter_map(|piece| {
                let panels = piece.panels.start.max(panels.start)..piece.panels.end.min(panels.end);
                let at = panels.start * width % BLOCK;
                (!panels.is_empty()).then(|| Part {
                    rows: match attention.number {
                        Number::F32 => Operand::F32(&self.scores.numbers()[at..], SCORE_STRIDE),
                        Number::Bf16 => Operand::Bf16(&self.weights.numbers()[at..], WEIGHT_STRIDE),
                    },
                    panel: cache.values(piece, kv_head, &panels, of_columns),
                    depth: panels.len() * width,
                })
            });
            let mut to = Sums { to: self.sums.numbers_mut(), columns, keep: &self.keep, is_first };
            self.multiplier.multiply(tile.rows.len(), parts, of_columns, &mut to);
        }
    }

    /// Writes a head's result.
    fn write(&self, attention: &Attention<'_>, output: &mut Rows, tile: &Tile<'_>, head: usize) {
        let Attention { isa, spec, .. } = attention;
        isa.run(Finish {
            sums: self.sums.numbers(),
            columns: attention.sizes().columns,
            total: &self.total,
            output,
            rows: tile.rows.clone(),
            of_head: head * spec.head_dim..(head + 1) * spec.head_dim,
        });
    }
}

/// Keys of one panel of positions: `[depth, width]`, or pairs of bfloat16 `[depth / 2, width]`.
struct PackKeys<'a> {
    keys: Blocks<'a>,
    number: Number,
    rows: &'a [usize],
    of_head: Range<usize>,
    to: &'a mut [u32],
}

impl Kernel for PackKeys<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = 2 * S::LANES;
        let words = self.to.len() / width;
        // 16 positions at a time, in words of 32 bits, then turned
        let mut turning = [[0_u32; 16]; 16];
        for first_word in (0..words).step_by(16) {
            for first_row in (0..width).step_by(16) {
                for (at, to) in turning.iter_mut().enumerate() {
                    let Some(&row) = self.rows.get(first_row + at) else {
                        *to = [0; 16];
                        continue;
                    };
                    let row = &self.keys.row(row)[self.of_head.clone()];
                    match self.number {
                        Number::F32 => {
                            let from = &row[first_word..row.len().min(first_word + 16)];
                            let to: &mut [f32; 16] = bytemuck::cast_mut(to);
                            for (index, to) in to.chunks_exact_mut(S::LANES).enumerate() {
                                let from = from.get(index * S::LANES..).unwrap_or_default();
                                simd.store(to, simd.load(from));
                            }
                        }
                        Number::Bf16 => {
                            let from = &row[2 * first_word..row.len().min(2 * first_word + 32)];
                            let to: &mut [bf16; 32] = bytemuck::cast_mut(to);
                            for (index, to) in to.chunks_exact_mut(S::LANES).enumerate() {
                                let from = from.get(index * S::LANES..).unwrap_or_default();
                                simd.store_bf16(to, simd.load(from));
                            }
                        }
                    }
                }
                let rows: [&[u32; 16]; 16] = std::array::from_fn(|at| &turning[at]);
                let to = &mut self.to[first_word * width + first_row..];
                if words - first_word >= 16 {
                    simd.transpose(rows, to, width);
                } else {
                    for (at, row) in rows.into_iter().enumerate() {
                        for (word, &from) in row[..words - first_word].iter().enumerate() {
                            to[word * width + at] = from;
                        }
                    }
                }
            }
        }
    }
}

/// Values of one panel of positions, in panels of columns: `[columns / width, positions, width]`, or pairs of
/// positions in bfloat16 `[columns / width, positions / 2, width]`.
struct PackValues<'a> {
    values: Blocks<'a>,
    number: Number,
    rows: &'a [usize],
    of_head: Range<usize>,
    /// Of the panel, and how many there are.
    index: usize,
    num_panels: usize,
    to: &'a mut [u32],
}

impl Kernel for PackValues<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = 2 * S::LANES;
        let (values, is_f32, of_head) = (self.values, self.number == Number::F32, self.of_head);
        let words = if is_f32 { width * width } else { width * width / 2 };
        for (of_columns, to) in self.to.chunks_exact_mut(self.num_panels * words).enumerate() {
            let to = &mut to[self.index * words..][..words];
            let first = of_head.start + of_columns * width;
            let columns = first..(first + width).min(of_head.end);
            for (at, to) in to.chunks_exact_mut(width).enumerate() {
                if is_f32 {
                    let from = self.rows.get(at).map_or(&[][..], |&row| &values.row(row)[columns.clone()]);
                    let to: &mut [f32] = bytemuck::cast_slice_mut(to);
                    for (index, to) in to.chunks_exact_mut(S::LANES).enumerate() {
                        simd.store(to, simd.load(from.get(index * S::LANES..).unwrap_or_default()));
                    }
                } else {
                    let first =
                        self.rows.get(2 * at).map_or(&[][..], |&row| &values.row(row)[columns.clone()]);
                    let second =
                        self.rows.get(2 * at + 1).map_or(&[][..], |&row| &values.row(row)[columns.clone()]);
                    simd.pair_bf16(first, second, to);
                }
            }
        }
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
struct Store<'a> {
    to: &'a mut [f32],
    stride: usize,
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
    /// Where the weights go rounded; else they take the place of the scores.
    weights: Option<&'a mut [bf16]>,
    count: usize,
    columns: Range<usize>,
    /// The columns that a query sees.
    visible: F,
    scale: f32,
    /// What a scaled score has for each position that the key is after the query.
    slope: Option<f32>,
    /// How many positions the first column is before the first query.
    before: f32,
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
            if let Some(slope) = self.slope {
                let (factor, slope, ahead) = (simd.splat(scale), simd.splat(slope), simd.load(&AHEAD));
                for (index, x) in row[start..end].chunks_exact_mut(S::LANES).enumerate() {
                    let column = (start + index * S::LANES) as f32;
                    let distance = simd.add(ahead, simd.splat(column - self.before - query as f32));
                    simd.store(x, simd.mul_add(simd.load(x), factor, simd.mul(slope, distance)));
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

/// Divides by the sum of the weights.
struct Finish<'a> {
    sums: &'a [f32],
    columns: usize,
    total: &'a [f32; MAX_QUERIES],
    output: &'a mut Rows,
    rows: Range<usize>,
    of_head: Range<usize>,
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let stride = self.output.stride();
        for ((row, sums), &total) in self.rows.zip(self.sums.chunks_exact(self.columns)).zip(self.total) {
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
