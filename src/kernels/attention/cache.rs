//! Keys and values in panels of positions, for the products of attention.
//!
//! A segment packs the panels that its positions are in, the first and the last also if they are not its alone; of a
//! path, each panel counts where it was packed last ([`Piece`]).

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Attention;
use super::Blocks;
use crate::AttentionSpec;
use crate::Segment;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::product::BF16_DEPTH;
use crate::product::Number;
use crate::product::Panel;
use crate::simd::Simd;

/// Keys and values of all segments and heads, in panels: for each segment and head its panels, end to end.
pub(super) struct Cache {
    number: Number,
    pub(super) sizes: Sizes,
    kv_heads: usize,
    keys: Buffer,
    values: Buffer,
    /// How many panels come before each segment's, of one head.
    starts: Vec<usize>,
}

/// Sizes of what is packed, for one head.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Positions in a panel of keys, and columns of a panel of values.
    pub(super) width: usize,
    /// `head_dim`, filled up to what a product takes at a time.
    pub(super) depth: usize,
    /// `value_dim`, filled up to whole panels.
    pub(super) columns: usize,
}

impl Sizes {
    pub(super) fn of(isa: Isa, number: Number, spec: &AttentionSpec) -> Self {
        let width = isa.panel_width();
        let depth = match number {
            Number::F32 => spec.head_dim,
            Number::Bf16 => spec.head_dim.next_multiple_of(BF16_DEPTH),
        };
        Self { width, depth, columns: spec.value_dim.next_multiple_of(width) }
    }
}

/// Panels of a sequence that one segment has packed.
pub(super) struct Piece {
    segment: usize,
    /// All that the segment has packed.
    own: Range<usize>,
    /// What the sequence takes of them.
    pub(super) panels: Range<usize>,
}

impl Cache {
    /// Where the panels of a segment and a head begin.
    fn start(&self, piece: &Piece, kv_head: usize) -> usize {
        self.starts[piece.segment] * self.kv_heads + kv_head * piece.own.len()
    }

    /// Keys of one panel of positions.
    pub(super) fn keys(&self, piece: &Piece, kv_head: usize, panel: usize) -> Panel<'_> {
        let length = self.sizes.width * self.sizes.depth;
        let at = (self.start(piece, kv_head) + panel - piece.own.start) * length;
        self.panel(&self.keys, at..at + length)
    }

    /// Values at some panels of positions, of one panel of columns.
    pub(super) fn values(
        &self,
        piece: &Piece,
        kv_head: usize,
        panels: &Range<usize>,
        of_columns: usize,
    ) -> Panel<'_> {
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

impl Attention<'_> {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes::of(self.isa, self.number, self.spec)
    }

    /// The panels of positions that a segment has packed for itself.
    fn own_panels(&self, segment: &Segment) -> Range<usize> {
        let width = self.isa.panel_width();
        segment.first_position / width..segment.end_position().div_ceil(width)
    }

    /// Packs keys and values.
    pub(super) fn lay_out(&self, rows: [&Blocks<'_>; 2], in_parallel: bool) -> Cache {
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
            self.pack_head(rows, segment, head, [to_keys, to_values]);
        };
        if in_parallel {
            parts.into_par_iter().for_each(pack);
        } else {
            parts.into_iter().for_each(pack);
        }
        Cache { number: self.number, sizes, kv_heads, keys: key_panels, values: value_panels, starts }
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
        [keys, values]: [&Blocks<'_>; 2],
        segment: usize,
        head: usize,
        [to_keys, to_values]: [&mut [u32]; 2],
    ) {
        let panels = self.own_panels(&self.segments[segment]);
        let Sizes { width, .. } = self.sizes();
        let key_panels = to_keys.chunks_exact_mut(to_keys.len() / panels.len());
        let of_head = |width: usize| head * width..(head + 1) * width;
        let (of_keys, of_values) = (of_head(self.spec.head_dim), of_head(self.spec.value_dim));
        let (mut rows, number) = (Vec::with_capacity(width), self.number);
        let num_panels = panels.len();
        for ((index, panel), to) in panels.enumerate().zip(key_panels) {
            self.rows_of_panel(segment, panel, &mut rows);
            let (rows, of_head) = (&rows[..], of_keys.clone());
            self.isa.run(PackKeys { keys, number, rows, of_head, to });
            let of_head = of_values.clone();
            self.isa.run(PackValues { values, number, rows, of_head, index, num_panels, to: to_values });
        }
    }

    /// The segments that hold a segment's sequence, each with the panels that it gives.
    pub(super) fn path(&self, segment: usize) -> Vec<Piece> {
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

/// Keys of one panel of positions: `[depth, width]`, or pairs of bfloat16 `[depth / 2, width]`.
pub(super) struct PackKeys<'a> {
    pub(super) keys: &'a Blocks<'a>,
    pub(super) number: Number,
    pub(super) rows: &'a [usize],
    pub(super) of_head: Range<usize>,
    pub(super) to: &'a mut [u32],
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
    values: &'a Blocks<'a>,
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
