//! Activations: some rows of a batch, and what is done to each row on its own.

use std::ops::Range;

use half::bf16;

use super::Activation;
use super::buffer::Buffer;
use super::isa::Isa;
use super::isa::Kernel;
use super::product::BF16_DEPTH;
use super::product::Epilogue;
use super::product::Number;
use super::product::Operand;
use super::product::Packed;
use super::simd::Simd;

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

/// Columns are filled up to a multiple of the widest panel.
const WIDTH_UNIT: usize = 32;

impl Rows {
    pub(super) fn new(number: Number, rows: usize, width: usize) -> Self {
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

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    pub(super) fn number(&self) -> Number {
        self.number
    }

    /// Of `f32` rows.
    pub(super) fn values(&self) -> &[f32] {
        debug_assert_eq!(self.number, Number::F32);
        &self.buffer.numbers()[..self.rows * self.stride]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.number, Number::F32);
        &mut self.buffer.numbers_mut()[..self.rows * self.stride]
    }

    /// Of rows of bfloat16, with the memory after them.
    pub(super) fn bf16_mut(&mut self) -> &mut [bf16] {
        debug_assert_eq!(self.number, Number::Bf16);
        self.buffer.numbers_mut()
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.stride..][..self.width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let (stride, width) = (self.stride, self.width);
        &mut self.values_mut()[row * stride..][..width]
    }

    pub(super) fn operand(&self) -> Operand<'_> {
        match self.number {
            Number::F32 => Operand::F32(self.values(), self.stride),
            Number::Bf16 => Operand::Bf16(self.buffer.numbers(), self.stride),
        }
    }

    /// Rounded for a product.
    pub(super) fn to_bf16(&self, isa: Isa) -> Self {
        let mut rounded = Self::new(Number::Bf16, self.rows, self.width);
        isa.run(Round { from: self, to: &mut rounded });
        rounded
    }
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
            let from = self.from.row(row).chunks(S::LANES);
            for (from, to) in from.zip(to[..width].chunks_mut(S::LANES)) {
                simd.store_bf16(to, simd.load(from));
            }
        }
    }
}

/// What is done with the sums of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// They are the result.
    Keep,
    /// They are added to what is there.
    Add,
    /// Their activation is the result.
    Activate(Activation),
    /// A panel's first half is the gate, the other what it lets through.
    Gate(Activation),
}

/// Writes the sums of a product to rows.
pub(super) struct Write<'a> {
    pub(super) to: &'a mut Rows,
    /// In the columns of the panels, zeros where there is no output.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) then: Then,
}

impl Write<'_> {
    /// One panel's columns of some rows. All of `then` is known where this is inlined.
    #[inline(always)]
    fn columns<S: Simd>(&mut self, simd: S, rows: Range<usize>, panel: usize, sums: &[f32], then: Then) {
        let width = 2 * S::LANES;
        let stride = self.to.stride;
        let bias = match self.bias {
            Some(bias) => {
                let (left, right) = bias[panel * width..][..width].split_at(S::LANES);
                [simd.load(left), simd.load(right)]
            }
            None => [simd.splat(0.0); 2],
        };
        let (number, at) = (self.to.number, rows.start * stride);
        for (index, sums) in sums.chunks_exact(width).enumerate() {
            let (left, right) = sums.split_at(S::LANES);
            let (left, right) = (simd.add(simd.load(left), bias[0]), simd.add(simd.load(right), bias[1]));
            let at = at + index * stride;
            if let Then::Gate(activation) = then {
                let passed = simd.mul(activate(simd, activation, left), right);
                let at = at + panel * S::LANES;
                match number {
                    Number::F32 => simd.store(&mut self.to.values_mut()[at..][..S::LANES], passed),
                    Number::Bf16 => simd.store_bf16(&mut self.to.bf16_mut()[at..][..S::LANES], passed),
                }
                continue;
            }
            let at = at + panel * width;
            match number {
                Number::F32 => {
                    let (to_left, to_right) = self.to.values_mut()[at..][..width].split_at_mut(S::LANES);
                    simd.store(to_left, finish(simd, then, left, to_left));
                    simd.store(to_right, finish(simd, then, right, to_right));
                }
                Number::Bf16 => {
                    let (to_left, to_right) = self.to.bf16_mut()[at..][..width].split_at_mut(S::LANES);
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
        Then::Keep | Then::Gate(_) => sums,
        Then::Add => simd.add(simd.load(before), sums),
        Then::Activate(activation) => activate(simd, activation, sums),
    }
}

#[inline(always)]
fn activate<S: Simd>(simd: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::GeluErf => simd.gelu_erf(x),
        Activation::GeluTanh => simd.gelu_tanh(x),
        Activation::Silu => simd.silu(x),
        Activation::Relu => simd.max(simd.splat(0.0), x),
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
        use Activation::{GeluErf, GeluTanh, Relu, Silu, Tanh};
        use Then::{Activate, Add, Gate, Keep};
        choose! {
            Keep => Keep,
            Add => Add,
            Activate(GeluErf) => Activate(GeluErf),
            Activate(GeluTanh) => Activate(GeluTanh),
            Activate(Silu) => Activate(Silu),
            Activate(Relu) => Activate(Relu),
            Activate(Tanh) => Activate(Tanh),
            Gate(GeluErf) => Gate(GeluErf),
            Gate(GeluTanh) => Gate(GeluTanh),
            Gate(Silu) => Gate(Silu),
            Gate(Relu) => Gate(Relu),
            Gate(Tanh) => Gate(Tanh),
        }
    }
}

/// A linear layer, or two of them in gated panels.
#[derive(Debug)]
pub struct Linear {
    pub(super) weights: Packed,
    /// In the columns of the panels.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) output: usize,
}

impl Linear {
    /// Rows times the layer, into `to`.
    pub(super) fn forward(&self, isa: Isa, x: &Rows, mut to: Rows, then: Then) -> Rows {
        assert_eq!((x.width, to.width, x.rows), (self.weights.input, self.output, to.rows));
        let mut write = Write { to: &mut to, bias: self.bias.as_deref(), then };
        let needs_bf16 = self.weights.number == Number::Bf16;
        if needs_bf16 && x.number == Number::F32 && isa.multiplies_bf16() {
            self.weights.multiply(x.rows, x.to_bf16(isa).operand(), &mut write);
        } else {
            self.weights.multiply(x.rows, x.operand(), &mut write);
        }
        to
    }
}

/// `x + y`, in place.
pub(super) struct Add<'a> {
    pub(super) x: &'a mut Rows,
    pub(super) y: &'a Rows,
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

/// `x / rms(x) · weight` over runs of columns.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a Rows,
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) to: &'a mut Rows,
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

/// `(x - mean) / std · weight + bias`
pub(super) struct LayerNorm<'a> {
    pub(super) x: &'a Rows,
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
    pub(super) to: &'a mut Rows,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.x.width;
        for row in 0..self.x.rows {
            let x = self.x.row(row);
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
            let to = self.to.row_mut(row).chunks_mut(S::LANES);
            for ((x, to), (weight, bias)) in x.chunks(S::LANES).zip(to).zip(parameters) {
                let normed = simd.mul(simd.sub(simd.load(x), mean), scale);
                simd.store(to, simd.mul_add(normed, simd.load(weight), simd.load(bias)));
            }
        }
    }
}

/// Turns the pairs of each head, in place; `angles(row)` are its cosines and sines.
pub(super) struct Rotary<'a, F> {
    pub(super) x: &'a mut Rows,
    pub(super) head_dim: usize,
    pub(super) angles: F,
}

impl<'b, F: Fn(usize) -> (&'b [f32], &'b [f32])> Kernel for Rotary<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in 0..self.x.rows {
            let (cos, sin) = (self.angles)(row);
            for head in self.x.row_mut(row).chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(self.head_dim / 2);
                let pairs = first.chunks_mut(S::LANES).zip(second.chunks_mut(S::LANES));
                for ((a, b), (cos, sin)) in pairs.zip(cos.chunks(S::LANES).zip(sin.chunks(S::LANES))) {
                    let (x, y, cos, sin) = (simd.load(a), simd.load(b), simd.load(cos), simd.load(sin));
                    simd.store(a, simd.sub(simd.mul(x, cos), simd.mul(y, sin)));
                    simd.store(b, simd.mul_add(x, sin, simd.mul(y, cos)));
                }
            }
        }
    }
}
