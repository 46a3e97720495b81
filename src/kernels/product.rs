//! Matrix products: rows of activations times weights that were packed once.
//!
//! ```text
//! weights [output, input] → panels of `width` outputs, two vectors wide: each [input, width]
//! for each panel: for each tile of rows: all inputs in order → [tile rows, width] in registers → epilogue
//! ```
//!
//! An output is one chain of additions over its inputs, in their order, whatever rows are beside it: so a reward
//! does not depend, to the last bit, on its batch. The epilogue (bias, activation, residual, rounding) takes a
//! tile while it is in the first-level cache.
//!
//! While one panel is multiplied, the next is asked for, a little with each input ([`Ahead`]): nobody waits for memory, nor for
//! the look-up of its pages, at a panel's beginning.

#![expect(unsafe_code, reason = "register tiles read and write by pointer, behind checked lengths")]

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::Line;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::isa::Level;
use crate::mapped::Lines;
use crate::mapped::Region;
use crate::simd::Simd;

/// Inputs of a product of bfloat16 come in groups of so many, filled up with zeros.
pub(crate) const BF16_DEPTH: usize = 32;
/// So many inputs (or pairs of them) ahead, weights are asked for: they come from the second-level cache.
const PREFETCH: usize = 16;
/// Of a cache line, in `f32`.
const LINE: usize = 16;
/// The most rows of a tile of vectors.
const MAX_ROWS: usize = 12;
/// Rows, and columns, of the largest tile: AMX's.
const MAX_TILE_ROWS: usize = 32;
const MAX_TILE: usize = MAX_TILE_ROWS * 32;
/// Words of each output that are packed at a time: with 32 outputs 8 KiB.
const TILE_WORDS: usize = 64;

/// What is multiplied. Sums are `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// Rows to multiply, one every `stride` numbers.
///
/// Those of bfloat16 are filled up with zeros to a multiple of [`BF16_DEPTH`], and there is memory for a multiple
/// of 16 rows.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    F32(&'a [f32], usize),
    Bf16(&'a [bf16], usize),
}

/// What rows are multiplied by: `[depth, width]`; of bfloat16, `[depth / 2, width, 2]`.
#[derive(Clone, Copy)]
pub(crate) enum Panel<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Some inputs of some rows, and what they are multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) rows: Operand<'a>,
    pub(crate) panel: Panel<'a>,
    /// How many inputs.
    pub(crate) depth: usize,
}

/// What becomes of a tile of sums.
pub(crate) trait Epilogue {
    /// `sums` is `[rows, width]`, the columns of one panel.
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32]);
}

impl Isa {
    /// Columns of a panel.
    pub(crate) fn panel_width(self) -> usize {
        match self.level() {
            Level::Portable | Level::Avx2 => 16,
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => 32,
        }
    }

    /// Whether a product has tile registers, which take their rows whole however few are there.
    pub fn has_tiles(self, number: Number) -> bool {
        (self.level(), number) == (Level::Amx, Number::Bf16)
    }

    /// Rows that a product takes at a time.
    pub fn tile_rows(self, number: Number) -> usize {
        match (self.level(), number) {
            (Level::Portable, _) => 4,
            (Level::Avx2, _) => 6,
            (Level::Amx, Number::Bf16) => 32,
            _ => 12,
        }
    }
}

/// What multiplies, on one thread.
pub(crate) struct Multiplier {
    pub(crate) isa: Isa,
    next: Next,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<amx::Tiles>,
    sums: Sums,
}

impl Multiplier {
    pub(crate) fn new(isa: Isa, number: Number) -> Self {
        // SAFETY: an `Isa` of this level exists only where `amx::is_available` has said so
        #[cfg(target_arch = "x86_64")]
        let tiles =
            (isa.level() == Level::Amx && number == Number::Bf16).then(|| unsafe { amx::Tiles::configure() });
        Self {
            isa,
            next: Next::NOTHING,
            #[cfg(target_arch = "x86_64")]
            tiles,
            sums: Sums([0.0; MAX_TILE]),
        }
    }

    /// Multiplies `rows` rows by a panel that is given in parts, each with its own run of the rows' inputs: the sums
    /// go on from part to part as if it were whole.
    pub(crate) fn multiply<'a, E: Epilogue>(
        &mut self,
        rows: usize,
        parts: impl Iterator<Item = Part<'a>> + Clone,
        panel: usize,
        epilogue: &mut E,
    ) {
        let Some(Part { rows: first, .. }) = parts.clone().next() else { return };
        if rows == 0 {
            return;
        }
        let width = self.isa.panel_width();
        let number = if matches!(first, Operand::F32(..)) { Number::F32 } else { Number::Bf16 };
        for Part { rows: a, panel: b, depth } in parts.clone() {
            assert!(depth > 0, "an instruction sequence takes at least one group of inputs");
            match (a, b) {
                (Operand::F32(a, stride), Panel::F32(b)) => {
                    assert!(a.len() >= (rows - 1) * stride + depth && b.len() >= depth * width);
                    assert!(number == Number::F32);
                }
                (Operand::Bf16(a, stride), Panel::Bf16(b)) => {
                    let (rows, depth) = (rows.next_multiple_of(16), depth.next_multiple_of(BF16_DEPTH));
                    assert!(a.len() >= (rows - 1) * stride + depth && b.len() >= depth * width);
                    assert!(number == Number::Bf16 && self.isa.multiplies_bf16());
                }
                _ => unreachable!("rows are of the kind that their weights were packed for"),
            }
        }
        let high = self.isa.tile_rows(number);
        let tiles = rows.div_ceil(high);
        for tile in 0..tiles {
            let rows = match number {
                Number::Bf16 if high == MAX_TILE_ROWS => tile * high..((tile + 1) * high).min(rows),
                // of like size: 16 rows as 8 and 8, not 12 and 4
                _ => rows * tile / tiles..rows * (tile + 1) / tiles,
            };
            for (index, Part { rows: a, panel: b, depth }) in parts.clone().enumerate() {
                let goes_on = index > 0;
                // SAFETY: `rows` is within all rows, and no part's rows, their inputs, or its panel end beyond their
                // slices, as was checked above of the same parts (clones of our iterators yield the same). Bfloat16
                // is read in groups of inputs, and tile registers in 16 or 32 rows, of which the last 16 hold at
                // least one of ours: the lengths checked are rounded up to that. `Sums` holds the largest tile; and
                // what `goes_on` reads there the part before has written.
                unsafe {
                    match (a, b) {
                        (Operand::F32(a, stride), Panel::F32(b)) => {
                            let (a, b) = (a.as_ptr().add(rows.start * stride), b.as_ptr());
                            let ahead = self.next.of_tile(tile, tiles, depth);
                            let (rows, sums) = (rows.len(), self.sums.0.as_mut_ptr());
                            self.isa.run(Tile { rows, steps: depth, a, stride, b, ahead, sums, goes_on });
                        }
                        #[cfg(target_arch = "x86_64")]
                        (Operand::Bf16(a, stride), Panel::Bf16(b)) => {
                            let (a, b) = (a.as_ptr().add(rows.start * stride), b.as_ptr());
                            match &self.tiles {
                                Some(tiles) => {
                                    let steps = depth.div_ceil(BF16_DEPTH);
                                    tiles.product(
                                        rows.len() > 16,
                                        steps,
                                        a,
                                        stride,
                                        b,
                                        &mut self.sums.0,
                                        goes_on,
                                    );
                                }
                                None => {
                                    let steps = depth.div_ceil(2);
                                    let ahead = self.next.of_tile(tile, tiles, steps);
                                    let (rows, sums) = (rows.len(), self.sums.0.as_mut_ptr());
                                    bf16_tiles(Tile { rows, steps, a, stride, b, ahead, sums, goes_on });
                                }
                            }
                        }
                        _ => unreachable!("checked above"),
                    }
                }
            }
            let sums = &self.sums.0[..rows.len() * width];
            self.isa.run(Finish { epilogue, rows, panel, sums });
        }
    }
}

/// What is multiplied by next. It is asked for and not read: any address will do.
#[derive(Clone, Copy)]
struct Next {
    start: *const f32,
    bytes: usize,
}

impl Next {
    const NOTHING: Self = Self { start: std::ptr::null(), bytes: 0 };

    fn of(lines: &[Line]) -> Self {
        Self { start: lines.as_ptr().cast(), bytes: size_of_val(lines) }
    }

    /// What one of so many tiles asks for, in so many steps.
    fn of_tile(self, tile: usize, tiles: usize, steps: usize) -> Option<Ahead> {
        let stride = self.bytes.div_ceil(tiles * steps);
        let at = self.start.wrapping_byte_add(tile * steps * stride);
        (self.bytes > 0).then_some(Ahead { at, stride })
    }
}

/// What a tile asks for with its inputs.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const f32,
    /// In bytes, from one input (or pair of them) to the next.
    stride: usize,
}

/// The sums of a tile, `[rows, width]`.
#[repr(align(64))]
struct Sums([f32; MAX_TILE]);

struct Finish<'a, E> {
    epilogue: &'a mut E,
    rows: Range<usize>,
    panel: usize,
    sums: &'a [f32],
}

impl<E: Epilogue> Kernel for Finish<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.epilogue.tile(simd, self.rows, self.panel, self.sums);
    }
}

/// Runs code for a number of rows that is known when it is compiled.
macro_rules! with_rows {
    ($rows:expr, $max:expr, $m:ident => $tile:expr) => {
        with_rows!($rows, $max, $m => $tile; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    ($rows:expr, $max:expr, $m:ident => $tile:expr; $($count:literal)*) => {
        match $rows {
            $($count if $count <= $max => {
                const $m: usize = $count;
                $tile
            })*
            _ => unreachable!("no tile is higher"),
        }
    };
}

/// Some rows times a panel, into or onto `sums`.
///
/// Whoever runs one promises that `a` has `rows` rows of as many numbers as all `steps` take (one, or a pair of bfloat16),
/// a row every `stride` numbers; that `b` has two vectors for each step; and that `sums` has room for two vectors for each
/// row, and holds them if it `goes_on`.
struct Tile<T> {
    rows: usize,
    steps: usize,
    a: *const T,
    stride: usize,
    b: *const T,
    ahead: Option<Ahead>,
    sums: *mut f32,
    goes_on: bool,
}

impl<T> Tile<T> {
    /// What it asks for; what it reads anyway, where that is nothing else.
    fn ahead(&self) -> Ahead {
        self.ahead.unwrap_or(Ahead { at: self.b.cast(), stride: 0 })
    }
}

impl Kernel for Tile<f32> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: only `multiply` makes one, of what it has checked; its tiles are as high as `S::TILE_ROWS`, its
        // panels two vectors wide, and its sums have room for a tile
        unsafe {
            with_rows!(self.rows, S::TILE_ROWS, M => f32_tile::<S, M>(simd, self));
        }
    }
}

/// Of `M` rows.
///
/// # Safety
/// As [`Tile`] says.
#[inline(always)]
unsafe fn f32_tile<S: Simd, const M: usize>(simd: S, tile: Tile<f32>) {
    let mut ahead = tile.ahead();
    let Tile { steps, mut a, stride, mut b, sums: out, goes_on, .. } = tile;
    let lines = (2 * S::LANES).div_ceil(LINE);
    // SAFETY: the caller's promise
    unsafe {
        let at = |m: usize| out.add(m * 2 * S::LANES);
        let mut sums = [[simd.splat(0.0); 2]; M];
        if goes_on {
            for (m, sums) in sums.iter_mut().enumerate() {
                *sums = [simd.load_ptr(at(m)), simd.load_ptr(at(m).add(S::LANES))];
            }
        }
        for _ in 0..steps {
            let (b0, b1) = (simd.load_ptr(b), simd.load_ptr(b.add(S::LANES)));
            for line in 0..lines {
                simd.prefetch(b.wrapping_add(PREFETCH * 2 * S::LANES + line * LINE));
                simd.prefetch_for_later(ahead.at.wrapping_byte_add(ahead.stride / lines * line));
            }
            for (m, [left, right]) in sums.iter_mut().enumerate() {
                let x = simd.splat(*a.add(m * stride));
                *left = simd.mul_add(x, b0, *left);
                *right = simd.mul_add(x, b1, *right);
            }
            a = a.add(1);
            b = b.add(2 * S::LANES);
            ahead.at = ahead.at.wrapping_byte_add(ahead.stride);
        }
        for (m, [left, right]) in sums.into_iter().enumerate() {
            simd.store_ptr(at(m), left);
            simd.store_ptr(at(m).add(S::LANES), right);
        }
    }
}

/// # Safety
/// As [`Tile`] says; and the machine must have AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
unsafe fn bf16_tiles(tile: Tile<bf16>) {
    // SAFETY: the caller's promise
    unsafe {
        with_rows!(tile.rows, MAX_ROWS, M => bf16_tile::<M>(tile));
    }
}

/// Of `M` rows.
///
/// # Safety
/// As [`bf16_tiles`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn bf16_tile<const M: usize>(tile: Tile<bf16>) {
    use std::arch::x86_64::*;
    let mut ahead = tile.ahead();
    let Tile { steps, a, stride, b, sums: out, goes_on, .. } = tile;
    // SAFETY: the caller's promise, and pointers are moved past the last pair but not read there; `__m512bh` is any
    // 512 bits
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if goes_on {
            for (m, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_loadu_ps(out.add(m * 32)), _mm512_loadu_ps(out.add(m * 32 + 16))];
            }
        }
        let (mut a, mut b) = (a.cast::<i32>(), b.cast::<f32>());
        for _ in 0..steps {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_ps(b));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_ps(b.add(16)));
            for line in 0..2 {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(PREFETCH * 32 + line * LINE).cast());
                _mm_prefetch::<_MM_HINT_T1>(ahead.at.wrapping_byte_add(ahead.stride / 2 * line).cast());
            }
            for (m, [left, right]) in sums.iter_mut().enumerate() {
                let x = a.byte_add(m * stride * 2).read_unaligned();
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x));
                *left = _mm512_dpbf16_ps(*left, x, b0);
                *right = _mm512_dpbf16_ps(*right, x, b1);
            }
            a = a.add(1);
            b = b.add(32);
            ahead.at = ahead.at.wrapping_byte_add(ahead.stride);
        }
        for (m, [left, right]) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out.add(m * 32), left);
            _mm512_storeu_ps(out.add(m * 32 + 16), right);
        }
    }
}

/// Where weights of one output are to be written, in what they are packed.
pub enum Weights<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// Rounded.
    Bf16(&'a mut [bf16]),
}

/// Weights of a linear layer, or of two that are used together, in panels.
pub(crate) struct Packed {
    isa: Isa,
    /// Of the operands.
    pub(crate) number: Number,
    /// Width of the operands.
    pub(crate) input: usize,
    panels: usize,
    panel_lines: usize,
    lines: Lines,
}

impl Packed {
    /// Packs outputs in this order, `None` for a column of zeros; `read` writes some of the inputs' weights of an
    /// output.
    ///
    /// Where no instruction multiplies `Bf16`, the weights are rounded to it and kept as `f32`.
    ///
    /// A word is one `f32` or a pair of bfloat16, and a panel is the words of its outputs transposed. So many words
    /// of each output go through a tile in the first-level cache: reads and writes are runs, and each happens once.
    pub(crate) fn new(
        isa: Isa,
        number: Number,
        input: usize,
        columns: &[Option<usize>],
        read: &(impl Fn(usize, Range<usize>, Weights<'_>) + Sync),
    ) -> Self {
        let width = isa.panel_width();
        assert_eq!(columns.len() % width, 0, "whole panels");
        let is_paired = is_paired(isa, number);
        let panels = columns.len() / width;
        let panel_lines = panel_lines(isa, number, input);
        let in_word = if is_paired { 2 } else { 1 };
        let pack = |panel: &mut [u32], columns: &[Option<usize>]| {
            let mut tile = vec![0_u32; TILE_WORDS * width];
            for (index, panel) in panel.chunks_mut(TILE_WORDS * width).enumerate() {
                let first = index * TILE_WORDS * in_word;
                if first >= input {
                    break; // the rest are zeros that fill up
                }
                let inputs = first..(first + TILE_WORDS * in_word).min(input);
                for (words, output) in tile.chunks_exact_mut(TILE_WORDS).zip(columns) {
                    let Some(output) = *output else { continue };
                    if is_paired {
                        let weights: &mut [bf16] = bytemuck::cast_slice_mut(words);
                        let (weights, rest) = weights.split_at_mut(inputs.len());
                        read(output, inputs.clone(), Weights::Bf16(weights));
                        rest.fill(bf16::ZERO);
                    } else {
                        let weights: &mut [f32] = bytemuck::cast_slice_mut(words);
                        let weights = &mut weights[..inputs.len()];
                        read(output, inputs.clone(), Weights::F32(weights));
                        if number == Number::Bf16 {
                            weights.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                        }
                    }
                }
                let words = inputs.len().div_ceil(in_word);
                for (word, row) in panel.chunks_exact_mut(width).take(words).enumerate() {
                    for (to, words) in row.iter_mut().zip(tile.chunks_exact(TILE_WORDS)) {
                        *to = words[word];
                    }
                }
            }
        };
        // in parallel: to clear what the system provides takes as long as to fill it
        let mut lines: Vec<Line> =
            (0..panels * panel_lines).into_par_iter().with_min_len(4096).map(|_| Line::zeroed()).collect();
        let of_panels = lines.par_chunks_mut(panel_lines.max(1)).zip(columns.par_chunks(width));
        of_panels.for_each(|(lines, columns)| pack(bytemuck::cast_slice_mut(lines), columns));
        Self { isa, number, input, panels, panel_lines, lines: Lines::Own(lines) }
    }

    /// The weights whose [`Self::bytes`] these were; `None` if they cannot be.
    pub(crate) fn mapped(
        isa: Isa,
        number: Number,
        input: usize,
        panels: usize,
        bytes: Region,
    ) -> Option<Self> {
        let panel_lines = panel_lines(isa, number, input);
        let expected = panels.checked_mul(panel_lines)?.checked_mul(size_of::<Line>())?;
        let lines = (expected == bytes.len()).then_some(Lines::Mapped(bytes))?;
        Some(Self { isa, number, input, panels, panel_lines, lines })
    }

    /// All panels.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// How many columns they have.
    pub(crate) fn columns(&self) -> usize {
        self.panels * self.isa.panel_width()
    }

    /// How many panels.
    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// Multiplies `rows` rows by some panels.
    pub(crate) fn multiply<E: Epilogue>(
        &self,
        rows: usize,
        operand: Operand<'_>,
        panels: Range<usize>,
        epilogue: &mut E,
    ) {
        let mut multiplier = Multiplier::new(self.isa, self.number);
        let lines_of = |panel: usize| &self.lines[panel * self.panel_lines..][..self.panel_lines];
        for panel in panels.clone() {
            let lines = lines_of(panel);
            let follows = panel + 1 < panels.end;
            multiplier.next = if follows { Next::of(lines_of(panel + 1)) } else { Next::NOTHING };
            let weights = match operand {
                Operand::F32(..) => Panel::F32(bytemuck::cast_slice(lines)),
                Operand::Bf16(..) => Panel::Bf16(bytemuck::cast_slice(lines)),
            };
            let part = Part { rows: operand, panel: weights, depth: self.input };
            multiplier.multiply(rows, std::iter::once(part), panel, epilogue);
        }
    }
}

/// Whether weights are pairs of bfloat16.
fn is_paired(isa: Isa, number: Number) -> bool {
    number == Number::Bf16 && isa.multiplies_bf16()
}

fn panel_lines(isa: Isa, number: Number, input: usize) -> usize {
    let depth = if is_paired(isa, number) { input.next_multiple_of(BF16_DEPTH) * 2 } else { input * 4 };
    (depth * isa.panel_width()).div_ceil(size_of::<Line>())
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { isa, number, input, panels, .. } = self;
        write!(f, "Packed({input} inputs, {panels} panels of {number:?} for {isa:?})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and minutes of it")]
    fn each_weight_is_packed_in_its_place() {
        let weight = |output: usize, i: usize| bf16::from_f32((output * 1000 + i + 1) as f32).to_f32();
        for isa in Isa::all() {
            for number in [Number::F32, Number::Bf16] {
                for input in [1, 2, 31, 64, 65, 128, 129, 200] {
                    let width = isa.panel_width();
                    // backwards, one missing, and zeros at the end
                    let output =
                        |column: usize| (column != 3 && column < width + 5).then(|| 2 * width - column);
                    let columns: Vec<_> = (0..2 * width).map(output).collect();
                    let packed = Packed::new(isa, number, input, &columns, &|output, inputs, to| match to {
                        Weights::F32(to) => {
                            to.iter_mut().zip(inputs).for_each(|(to, i)| *to = weight(output, i))
                        }
                        Weights::Bf16(to) => {
                            let weight = |i| bf16::from_f32(weight(output, i));
                            to.iter_mut().zip(inputs).for_each(|(to, i)| *to = weight(i));
                        }
                    });
                    let is_paired = number == Number::Bf16 && isa.multiplies_bf16();
                    for (panel, lines) in packed.lines.chunks_exact(packed.panel_lines).enumerate() {
                        let depth = if is_paired { input.next_multiple_of(BF16_DEPTH) } else { input };
                        for i in 0..depth {
                            for column in 0..width {
                                let found = if is_paired {
                                    let at = (i / 2 * width + column) * 2 + i % 2;
                                    bytemuck::cast_slice::<_, bf16>(lines)[at].to_f32()
                                } else {
                                    bytemuck::cast_slice::<_, f32>(lines)[i * width + column]
                                };
                                let output = output(panel * width + column).filter(|_| i < input);
                                let expected = output.map_or(0.0, |output| weight(output, i));
                                assert_eq!(
                                    found, expected,
                                    "{isa:?} {number:?} {input}: {panel} {i} {column}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
