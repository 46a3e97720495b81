//! Activations: some rows of a batch, and what is done to each row on its own.

#![expect(unsafe_code, reason = "threads that share a product write columns of the same rows")]

use std::ops::Range;

use half::bf16;

use crate::Activation;
use crate::Gate;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::isa::Kernel;
use crate::mapped::Region;
use crate::product::BF16_DEPTH;
use crate::product::Epilogue;
use crate::product::Number;
use crate::product::Operand;
use crate::product::Packed;
use crate::product::Weights;
use crate::shared::Shared;
use crate::shared::in_parts;
use crate::simd::Simd;

/// Activations `[rows, width]`.
///
/// A row takes an odd number of cache lines, so that the rows of a tile do not fall into the same set of the
/// first-level cache; columns are filled up to whole panels.
pub struct Rows {
    buffer: Buffer,
    number: Number,
    rows: usize,
    width: usize,
    stride: usize,
}

/// Shared are filled up to a multiple of the widest panel.
const WIDTH_UNIT: usize = 32;

impl Rows {
    /// Room for rows, with whatever the memory held before.
    pub fn new(number: Number, rows: usize, width: usize) -> Self {
        let filled = width.next_multiple_of(WIDTH_UNIT);
        match number {
            Number::F32 => {
                let stride = ((filled / 16) | 1) * 16;
                Self { buffer: Buffer::for_numbers::<f32>(rows * stride), number, rows, width, stride }
            }
            Number::Bf16 => {
                let stride = ((filled / 32) | 1) * 32;
                let count = rows.next_multiple_of(16) * stride;
                let mut buffer = Buffer::for_numbers::<bf16>(count);
                if !width.is_multiple_of(BF16_DEPTH) {
                    // a product reads whole groups of inputs
                    for row in buffer.numbers_mut::<bf16>()[..count].chunks_exact_mut(stride) {
                        row[width..filled].fill(bf16::ZERO);
                    }
                }
                Self { buffer, number, rows, width, stride }
            }
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// How many columns.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// What they are kept in.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Of `f32` rows.
    pub(crate) fn values(&self) -> &[f32] {
        debug_assert_eq!(self.number, Number::F32);
        &self.buffer.numbers()[..self.rows * self.stride]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.number, Number::F32);
        &mut self.buffer.numbers_mut()[..self.rows * self.stride]
    }

    /// Of rows of bfloat16, with the memory after them.
    pub(crate) fn bf16_mut(&mut self) -> &mut [bf16] {
        debug_assert_eq!(self.number, Number::Bf16);
        self.buffer.numbers_mut()
    }

    /// A row of `f32`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.stride..][..self.width]
    }

    /// A row of `f32`.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let (stride, width) = (self.stride, self.width);
        &mut self.values_mut()[row * stride..][..width]
    }

    pub(crate) fn operand(&self) -> Operand<'_> {
        match self.number {
            Number::F32 => Operand::F32(self.values(), self.stride),
            Number::Bf16 => Operand::Bf16(self.buffer.numbers(), self.stride),
        }
    }

    /// Rounded to bfloat16 for a product.
    pub fn to_bf16(&self, isa: Isa) -> Self {
        let mut rounded = Self::new(Number::Bf16, self.rows, self.width);
        isa.run(Round { from: self, to: &mut rounded });
        rounded
    }

    /// `self + other`
    pub fn add(mut self, isa: Isa, other: &Self) -> Self {
        assert_eq!((self.rows, self.width), (other.rows, other.width));
        isa.run(Add { x: &mut self, y: other });
        self
    }

    /// `self · gate(by)`, in `f32`; `self` may be rounded.
    pub fn gated(&self, isa: Isa, by: &Self, gate: Gate) -> Self {
        assert_eq!((self.rows, self.width), (by.rows, by.width));
        let mut to = Self::new(Number::F32, self.rows, self.width);
        for row in 0..self.rows {
            match self.number {
                Number::F32 => to.row_mut(row).copy_from_slice(self.row(row)),
                Number::Bf16 => {
                    let from = &self.buffer.numbers::<bf16>()[row * self.stride..][..self.width];
                    to.row_mut(row).iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
                }
            }
        }
        isa.run(LetThrough { x: &mut to, by, gate });
        to
    }

    /// `x / rms(x) · weight` over each run of as many columns as `weight` has; statistics in `f32`.
    pub fn rms_norm(&self, isa: Isa, weight: &[f32], eps: f32) -> Self {
        assert!(self.width.is_multiple_of(weight.len()));
        let mut to = Self::new(Number::F32, self.rows, self.width);
        isa.run(RmsNorm { x: self, weight, eps, to: &mut to });
        to
    }

    /// `(x - mean) / std · weight + bias` over each run of as many columns as `weight` and `bias` have; statistics in
    /// `f32`.
    pub fn layer_norm(&self, isa: Isa, weight: &[f32], bias: &[f32], eps: f32) -> Self {
        assert!(self.width.is_multiple_of(weight.len()) && weight.len() == bias.len());
        let mut to = Self::new(Number::F32, self.rows, self.width);
        isa.run(LayerNorm { x: self, weight, bias, eps, to: &mut to });
        to
    }

    /// Turns each pair (`i`, `i + pairs`) of each head; `angles(row)` are its cosines and sines, each `[pairs]`, which
    /// is at most half a head.
    pub fn rotary<'b>(
        mut self,
        isa: Isa,
        head_dim: usize,
        angles: &dyn Fn(usize) -> (&'b [f32], &'b [f32]),
    ) -> Self {
        isa.run(Rotary { x: &mut self, head_dim, angles });
        self
    }

    /// A row for each `of_row` terms: the sum of theirs, each as often as its weight says, added in their order. All
    /// blocks are `f32` and equally wide.
    pub fn sums(isa: Isa, blocks: &[Self], terms: &[Term], of_row: usize) -> Self {
        let width = blocks.first().map_or(0, Self::width);
        assert!(terms.len().is_multiple_of(of_row) && blocks.iter().all(|block| block.width == width));
        let mut to = Self::new(Number::F32, terms.len() / of_row, width);
        isa.run(Sums { blocks, terms, of_row, to: &mut to });
        to
    }
}

/// A row of some blocks, as a part of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which block.
    pub block: usize,
    /// In it.
    pub row: usize,
    /// What it is multiplied with.
    pub weight: f32,
}

impl Clone for Rows {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.number, self.rows, self.width);
        let bytes = self.buffer.numbers::<u8>();
        copy.buffer.numbers_mut::<u8>()[..bytes.len()].copy_from_slice(bytes);
        copy
    }
}

struct Round<'a> {
    from: &'a Rows,
    to: &'a mut Rows,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let stride = self.to.stride;
        let width = self.from.width;
        for (row, to) in self.to.bf16_mut().chunks_exact_mut(stride).take(self.from.rows).enumerate() {
            round(simd, self.from.row(row), &mut to[..width]);
        }
    }
}

/// Rounds numbers to bfloat16.
#[inline(always)]
pub(crate) fn round<S: Simd>(simd: S, from: &[f32], to: &mut [bf16]) {
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        simd.store_bf16(to, simd.load(from));
    }
}

/// What is done with the sums of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    /// They are the result.
    Keep,
    /// They are added to what is there.
    Add,
    /// Their activation is the result.
    Activate(Activation),
    /// A panel's first half is the gate, the other what it lets through.
    Gate(Activation),
    /// The same, as GPT-OSS has it: `g · sigmoid(alpha · g) · (x + 1)`, where the gate `g` is at most `limit`, and what it lets
    /// through, `x`, at most so far from zero.
    ClampedGate {
        /// Factor inside the sigmoid.
        alpha: f32,
        /// Above zero.
        limit: f32,
    },
}

impl Then {
    /// Whether it is for two layers, gate and up.
    fn is_gate(self) -> bool {
        matches!(self, Self::Gate(_) | Self::ClampedGate { .. })
    }
}

/// Writes the sums of a product to rows: those of some of its panels, which nobody else writes.
#[derive(Clone, Copy)]
struct Write<'a> {
    to: Shared<'a>,
    /// In the columns of the panels, zeros where there is no output.
    bias: Option<&'a [f32]>,
    then: Then,
}

impl Write<'_> {
    /// One panel's columns of some rows. All of `then` is known where this is inlined.
    #[inline(always)]
    fn columns<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32], then: Then) {
        let width = 2 * S::LANES;
        let bias = match self.bias {
            Some(bias) => {
                let (left, right) = bias[panel * width..][..width].split_at(S::LANES);
                [simd.load(left), simd.load(right)]
            }
            None => [simd.splat(0.0); 2],
        };
        let number = self.to.number();
        let made = if then.is_gate() { S::LANES } else { width };
        let columns = panel * made..(panel + 1) * made;
        for (row, sums) in rows.zip(sums.chunks_exact(width)) {
            let (left, right) = sums.split_at(S::LANES);
            let (left, right) = (simd.add(simd.load(left), bias[0]), simd.add(simd.load(right), bias[1]));
            let passed = match then {
                Then::Gate(activation) => Some(simd.mul(activate(simd, activation, left), right)),
                Then::ClampedGate { alpha, limit } => Some(clamped_gate(simd, [left, right], alpha, limit)),
                _ => None,
            };
            if let Some(passed) = passed {
                match number {
                    // SAFETY: columns of the panel, which nobody else writes
                    Number::F32 => simd.store(unsafe { self.to.f32(row, columns.clone()) }, passed),
                    // SAFETY: as above
                    Number::Bf16 => simd.store_bf16(unsafe { self.to.bf16(row, columns.clone()) }, passed),
                }
                continue;
            }
            match number {
                Number::F32 => {
                    // SAFETY: as above
                    let to = unsafe { self.to.f32(row, columns.clone()) };
                    let (to_left, to_right) = to.split_at_mut(S::LANES);
                    simd.store(to_left, finish(simd, then, left, to_left));
                    simd.store(to_right, finish(simd, then, right, to_right));
                }
                Number::Bf16 => {
                    // SAFETY: as above
                    let to = unsafe { self.to.bf16(row, columns.clone()) };
                    let (to_left, to_right) = to.split_at_mut(S::LANES);
                    simd.store_bf16(to_left, finish(simd, then, left, &[]));
                    simd.store_bf16(to_right, finish(simd, then, right, &[]));
                }
            }
        }
    }
}

#[inline(always)]
fn finish<S: Simd>(simd: S, then: Then, sums: S::V, before: &[f32]) -> S::V {
    match then {
        Then::Keep | Then::Gate(_) | Then::ClampedGate { .. } => sums,
        Then::Add => simd.add(simd.load(before), sums),
        Then::Activate(activation) => activate(simd, activation, sums),
    }
}

/// See [`Then::ClampedGate`].
#[inline(always)]
fn clamped_gate<S: Simd>(simd: S, [gate, up]: [S::V; 2], alpha: f32, limit: f32) -> S::V {
    // what is no number stays so: it is less than nothing
    let (most, least) = (simd.splat(limit), simd.splat(-limit));
    let gate = simd.where_less(most, gate, most, gate);
    let up = simd.where_less(most, up, most, up);
    let up = simd.where_less(up, least, least, up);
    // silu(alpha · g) / alpha
    let inside = simd.silu(simd.mul(gate, simd.splat(alpha)));
    simd.mul(simd.mul(inside, simd.splat(1.0 / alpha)), simd.add(up, simd.splat(1.0)))
}

/// Of as many numbers as a vector has.
#[inline(always)]
pub(crate) fn activate<S: Simd>(simd: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::GeluErf => simd.gelu_erf(x),
        Activation::GeluTanh => simd.gelu_tanh(x),
        Activation::Silu => simd.silu(x),
        Activation::Relu => simd.max(simd.splat(0.0), x),
        Activation::ReluSquared => {
            let x = simd.max(simd.splat(0.0), x);
            simd.mul(x, x)
        }
        Activation::Tanh => simd.tanh(x),
    }
}

impl Epilogue for Write<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32]) {
        // one loop for each, not a choice for each vector
        macro_rules! choose {
            ($($then:pat => $known:expr,)*) => {
                match self.then { $($then => self.columns(simd, rows, panel, sums, $known),)* }
            };
        }
        use Activation::{GeluErf, GeluTanh, Relu, ReluSquared, Silu, Tanh};
        use Then::{Activate, Add, ClampedGate, Gate, Keep};
        choose! {
            Keep => Keep,
            Add => Add,
            Activate(GeluErf) => Activate(GeluErf),
            Activate(GeluTanh) => Activate(GeluTanh),
            Activate(Silu) => Activate(Silu),
            Activate(Relu) => Activate(Relu),
            Activate(ReluSquared) => Activate(ReluSquared),
            Activate(Tanh) => Activate(Tanh),
            Gate(GeluErf) => Gate(GeluErf),
            Gate(GeluTanh) => Gate(GeluTanh),
            Gate(Silu) => Gate(Silu),
            Gate(Relu) => Gate(Relu),
            Gate(ReluSquared) => Gate(ReluSquared),
            Gate(Tanh) => Gate(Tanh),
            ClampedGate { alpha, limit } => ClampedGate { alpha, limit },
        }
    }
}

/// A linear layer; or two of them on the same input, gate and up, in alternate halves of panels.
#[derive(Debug)]
pub struct Linear {
    isa: Isa,
    weights: Packed,
    /// In the columns of the panels.
    bias: Option<Vec<f32>>,
    output: usize,
    is_gated: bool,
}

/// Multiplications that are worth handing to another thread: some ten microseconds of them.
const LEAST_WORK: usize = 1 << 19;
/// To read weights from memory takes as long as multiplying so many rows by them: fewer rows take no less. Measured with
/// AVX2 on one core of an AMD EPYC: 6 rows at 35% of the peak, 12 at 54%, 18 at 75%.
const READ_ROWS: usize = 16;

impl Linear {
    /// Packs a layer. `read(output, inputs, weights)` writes the weights of an output for these inputs; `bias` is
    /// `[output]`.
    pub fn new(
        isa: Isa,
        number: Number,
        [input, output]: [usize; 2],
        bias: Option<&[f32]>,
        read: impl Fn(usize, Range<usize>, Weights<'_>) + Sync,
    ) -> Self {
        let mut columns: Vec<_> = (0..output).map(Some).collect();
        columns.resize(output.next_multiple_of(isa.panel_width()), None);
        let weights = Packed::new(isa, number, input, &columns, &read);
        Self { isa, weights, bias: in_columns(bias, &columns), output, is_gated: false }
    }

    /// Packs gate and up, each `[input, output]`: what is asked of `read` from `output` on is up's, as in `bias`,
    /// `[2 · output]`.
    pub fn gated(
        isa: Isa,
        number: Number,
        [input, output]: [usize; 2],
        bias: Option<&[f32]>,
        read: impl Fn(usize, Range<usize>, Weights<'_>) + Sync,
    ) -> Self {
        // half a panel of the gate, then half a panel of what it lets through
        let half = isa.panel_width() / 2;
        let columns: Vec<_> = (0..output.next_multiple_of(half))
            .step_by(half)
            .flat_map(|first| {
                [0, output].map(|layer| (first..first + half).map(move |column| (layer, column)))
            })
            .flatten()
            .map(|(layer, column)| (column < output).then_some(layer + column))
            .collect();
        let weights = Packed::new(isa, number, input, &columns, &read);
        Self { isa, weights, bias: in_columns(bias, &columns), output, is_gated: true }
    }

    /// The layer that had these bytes and this bias, packed for the same instruction set; `None` if they cannot be its own.
    pub fn mapped(
        isa: Isa,
        number: Number,
        ([input, output, columns], is_gated): ([usize; 3], bool),
        bytes: Region,
        bias: Option<Vec<f32>>,
    ) -> Option<Self> {
        let is_whole = columns.is_multiple_of(isa.panel_width()) && output <= columns;
        let fits = bias.as_ref().is_none_or(|bias| bias.len() == columns);
        let weights = Packed::mapped(isa, number, input, columns / isa.panel_width(), bytes)?;
        (is_whole && fits).then_some(Self { isa, weights, bias, output, is_gated })
    }

    /// Its weights as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        self.weights.bytes()
    }

    /// In the columns of the panels.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Width of the input, of the output, and columns of all panels.
    pub fn widths(&self) -> [usize; 3] {
        [self.weights.input, self.output, self.weights.columns()]
    }

    /// Whether it is two layers, gate and up.
    pub fn is_gated(&self) -> bool {
        self.is_gated
    }

    /// What its weights were rounded to.
    pub fn number(&self) -> Number {
        self.weights.number
    }

    /// Width of the output.
    pub fn output(&self) -> usize {
        self.output
    }

    /// What operands are multiplied in: bfloat16 if the weights were rounded to it and there is an instruction.
    pub fn operand_number(&self) -> Number {
        if self.isa.multiplies_bf16() { self.weights.number } else { Number::F32 }
    }

    /// Rows times the layer, into `to`, `[rows, output]`. [`Then::Gate`] is for gated layers, and for no other.
    pub fn forward(&self, x: &Rows, mut to: Rows, then: Then) -> Rows {
        assert_eq!((x.width, to.width, x.rows), (self.weights.input, self.output, to.rows));
        assert_eq!(then.is_gate(), self.is_gated);
        let rounded;
        let operand = if self.operand_number() == Number::Bf16 && x.number == Number::F32 {
            rounded = x.to_bf16(self.isa);
            rounded.operand()
        } else {
            x.operand()
        };
        let write = Write { to: Shared::new(&mut to), bias: self.bias.as_deref(), then };
        let of_panel = x.rows.max(READ_ROWS) * self.weights.input * self.isa.panel_width();
        in_parts(self.weights.panels(), LEAST_WORK.div_ceil(of_panel.max(1)), &|panels| {
            self.weights.multiply(x.rows, operand, panels, &mut write.clone());
        });
        to
    }
}

/// A bias in the columns of the panels, zeros where there is no output.
fn in_columns(bias: Option<&[f32]>, columns: &[Option<usize>]) -> Option<Vec<f32>> {
    let of_column = |bias: &[f32], column: Option<usize>| column.map_or(0.0, |output| bias[output]);
    bias.map(|bias| columns.iter().map(|&column| of_column(bias, column)).collect())
}

/// `x + y`, in place.
struct Add<'a> {
    x: &'a mut Rows,
    y: &'a Rows,
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in 0..self.y.rows {
            let to = self.x.row_mut(row).chunks_mut(S::LANES);
            for (to, y) in to.zip(self.y.row(row).chunks(S::LANES)) {
                let sum = simd.add(simd.load(to), simd.load(y));
                simd.store(to, sum);
            }
        }
    }
}

/// `x · gate(by)`
struct LetThrough<'a> {
    x: &'a mut Rows,
    by: &'a Rows,
    gate: Gate,
}

impl Kernel for LetThrough<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let one = simd.splat(1.0);
        for row in 0..self.by.rows {
            let to = self.x.row_mut(row).chunks_mut(S::LANES);
            for (to, by) in to.zip(self.by.row(row).chunks(S::LANES)) {
                let by = simd.load(by);
                let factor = match self.gate {
                    Gate::Sigmoid => simd.div(one, simd.add(one, simd.exp(simd.sub(simd.splat(0.0), by)))),
                    Gate::Silu => simd.silu(by),
                };
                let product = simd.mul(simd.load(to), factor);
                simd.store(to, product);
            }
        }
    }
}

/// `x / rms(x) · weight` over runs of columns.
struct RmsNorm<'a> {
    x: &'a Rows,
    weight: &'a [f32],
    eps: f32,
    to: &'a mut Rows,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for row in 0..self.x.rows {
            let to = self.to.row_mut(row).chunks_exact_mut(width);
            for (x, to) in self.x.row(row).chunks_exact(width).zip(to) {
                let mut squares = simd.splat(0.0);
                for x in x.chunks(S::LANES) {
                    let x = simd.load(x);
                    squares = simd.mul_add(x, x, squares);
                }
                let square_sum = simd.sum(squares);
                let scale = simd.splat(1.0 / (square_sum / width as f32 + self.eps).sqrt());
                let weight = self.weight.chunks(S::LANES);
                for ((x, to), weight) in x.chunks(S::LANES).zip(to.chunks_mut(S::LANES)).zip(weight) {
                    simd.store(to, simd.mul(simd.mul(simd.load(x), scale), simd.load(weight)));
                }
            }
        }
    }
}

/// `(x - mean) / std · weight + bias` over runs of columns.
struct LayerNorm<'a> {
    x: &'a Rows,
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    to: &'a mut Rows,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for row in 0..self.x.rows {
            let to = self.to.row_mut(row).chunks_exact_mut(width);
            for (x, to) in self.x.row(row).chunks_exact(width).zip(to) {
                let mut sums = simd.splat(0.0);
                for x in x.chunks(S::LANES) {
                    sums = simd.add(sums, simd.load(x));
                }
                let mean = simd.splat(simd.sum(sums) / width as f32);
                let (whole, rest) = x.split_at(width - width % S::LANES);
                let mut squares = simd.splat(0.0);
                for x in whole.chunks_exact(S::LANES) {
                    let centered = simd.sub(simd.load(x), mean);
                    squares = simd.mul_add(centered, centered, squares);
                }
                let mut square_sum = simd.sum(squares);
                let mut lane = [0.0; 1];
                simd.store(&mut lane, mean);
                for x in rest {
                    square_sum += (x - lane[0]) * (x - lane[0]);
                }
                let scale = simd.splat(1.0 / (square_sum / width as f32 + self.eps).sqrt());
                let parameters = self.weight.chunks(S::LANES).zip(self.bias.chunks(S::LANES));
                for ((x, to), (weight, bias)) in
                    x.chunks(S::LANES).zip(to.chunks_mut(S::LANES)).zip(parameters)
                {
                    let normed = simd.mul(simd.sub(simd.load(x), mean), scale);
                    simd.store(to, simd.mul_add(normed, simd.load(weight), simd.load(bias)));
                }
            }
        }
    }
}

/// Turns the pairs of each head, in place; `angles(row)` are its cosines and sines.
struct Rotary<'a, 'b> {
    x: &'a mut Rows,
    head_dim: usize,
    angles: &'a dyn Fn(usize) -> (&'b [f32], &'b [f32]),
}

impl Kernel for Rotary<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in 0..self.x.rows {
            let (cos, sin) = (self.angles)(row);
            for head in self.x.row_mut(row).chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(cos.len());
                let pairs = first.chunks_mut(S::LANES).zip(second[..cos.len()].chunks_mut(S::LANES));
                for ((a, b), (cos, sin)) in pairs.zip(cos.chunks(S::LANES).zip(sin.chunks(S::LANES))) {
                    let (x, y, cos, sin) = (simd.load(a), simd.load(b), simd.load(cos), simd.load(sin));
                    simd.store(a, simd.sub(simd.mul(x, cos), simd.mul(y, sin)));
                    simd.store(b, simd.mul_add(x, sin, simd.mul(y, cos)));
                }
            }
        }
    }
}

/// Sums of rows of blocks.
struct Sums<'a> {
    blocks: &'a [Rows],
    terms: &'a [Term],
    of_row: usize,
    to: &'a mut Rows,
}

impl Kernel for Sums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, terms) in self.terms.chunks_exact(self.of_row).enumerate() {
            let to = self.to.row_mut(row);
            for (index, Term { block, row, weight }) in terms.iter().enumerate() {
                let weight = simd.splat(*weight);
                let from = self.blocks[*block].row(*row).chunks(S::LANES);
                for (to, x) in to.chunks_mut(S::LANES).zip(from) {
                    let before = if index == 0 { simd.splat(0.0) } else { simd.load(to) };
                    simd.store(to, simd.mul_add(simd.load(x), weight, before));
                }
            }
        }
    }
}
