//! Operations with their gradients in one piece each, for the CPU.
//!
//! Of candle's operations one norm is eight, and its gradient thirty, each with memory of its own; a gradient of
//! `narrow`, of which attention needs three for each sequence, is as large as all rows. These do the same in one pass or
//! two over rows, keep what their gradient needs, and leave matrix products to candle. The tests hold each to the
//! composed form and its gradient.
//!
//! Plain loops over slices that the compiler turns into vectors; sums run in [`LANES`] lanes, in one order.

mod activation;
mod attention;
mod linear;
mod norm;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use candle_core::CpuStorage;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Storage;
use candle_core::Tensor;
use candle_core::backend::BackendStorage;

pub(super) use activation::activate;
pub(super) use activation::gate;
pub(super) use attention::attention;
pub(super) use linear::linear;
pub(super) use norm::layer_norm;
pub(super) use norm::rms_norm;
pub(super) use rows::add_dropped;
pub(super) use rows::rotary;

/// Sums run in so many lanes, each in order.
const LANES: usize = 16;

/// The values of a contiguous `f32` tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("an operand is not contiguous"),
    }
}

/// Calls `read` with the values of tensors, which are made contiguous first.
fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    read: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (to, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *to = match &**storage {
            Storage::Cpu(storage) => slice(storage, layout)?,
            _ => candle_core::bail!("an operand is not on the CPU"),
        };
    }
    read(slices)
}

/// A tensor like another.
fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

fn storage(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// What a forward keeps for its gradient.
#[derive(Debug)]
struct Kept<T>(OnceLock<T>);

impl<T> Kept<T> {
    fn new() -> Self {
        Self(OnceLock::new())
    }

    fn keep(&self, values: T) {
        let _ = self.0.set(values); // a forward runs once
    }

    fn get(&self) -> Result<&T> {
        self.0.get().ok_or_else(|| candle_core::Error::Msg("a gradient before its forward".to_owned()))
    }
}

/// Matrices of one size inside some values, as far from each other.
#[derive(Clone, Copy)]
struct Matrices<'a> {
    values: &'a CpuStorage,
    start: usize,
    count: usize,
    /// From one matrix to the next; not zero.
    apart: usize,
    rows: usize,
    columns: usize,
    /// From one row to the next, and from one column to the next.
    strides: [usize; 2],
}

impl Matrices<'_> {
    fn t(self) -> Self {
        let [of_rows, of_columns] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [of_columns, of_rows], ..self }
    }

    /// Each times its counterpart: row-major `[count, self.rows, other.columns]`.
    fn times(self, other: Matrices<'_>) -> Result<Vec<f32>> {
        let layout = |of: &Matrices<'_>| {
            let [of_rows, of_columns] = of.strides;
            let strides = vec![of.apart, of_rows, of_columns];
            Layout::new((of.count, of.rows, of.columns).into(), strides, of.start)
        };
        let sizes = (self.count, self.rows, other.columns, self.columns);
        match self.values.matmul(other.values, sizes, &layout(&self), &layout(&other))? {
            CpuStorage::F32(products) => Ok(products),
            _ => candle_core::bail!("a product that is not f32"),
        }
    }
}

/// `Σ f(a, b)` over two slices of one length.
fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(a, b);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// `e^x` within 2 units in the last place, for `x` in -87..88; beyond, its values there. Without branches.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: what is added to it is rounded to a whole number, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts (Cody and Waite's)
    let r = (x - whole * 0.693_359_4) + whole * 2.121_944_4e-4;
    // Cephes' polynomial for e^r, |r| <= ln 2 / 2
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(p.to_bits()))
}
