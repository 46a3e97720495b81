//! Products of a played card: plain loops, in several ways, not all of which can be trusted.

use std::time::Duration;

use half::bf16;
use half::f16;

use super::memory::Memory;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Number;
use crate::driver::Product;
use crate::driver::Shape;

/// A way to make a product. What it answers depends on the shape and on how many rows there are.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Its name.
    pub id: u8,
    /// Whether it is offered.
    pub is_offered: fn(&Shape, usize) -> bool,
    /// Whether it works.
    pub runs: fn(&Shape, usize) -> bool,
    /// Into how many parts a sum is split, of so many rows that one: more than one gives other bits.
    pub parts: fn(&Shape, usize, usize) -> usize,
    /// How long it takes.
    pub nanoseconds: fn(&Shape, usize) -> u64,
}

impl Way {
    /// As the library names it.
    pub fn algorithm(&self) -> Algorithm {
        Algorithm(vec![self.id])
    }
}

/// As seen on cards: most agree whatever the row count, and differ in time; one is fast at few rows, where it splits
/// sums; one is offered, but does not run.
pub fn ways() -> Vec<Way> {
    let sound = Way {
        id: 1,
        is_offered: |_, _| true,
        runs: |_, _| true,
        parts: |_, _, _| 1,
        nanoseconds: |_, rows| 9_000 + 10 * rows as u64,
    };
    vec![
        sound,
        Way { id: 2, nanoseconds: |_, rows| 3_000 + 40 * rows as u64, ..sound },
        Way {
            id: 3,
            is_offered: |_, rows| rows >= 64,
            nanoseconds: |_, rows| 12_000 + 5 * rows as u64,
            ..sound
        },
        Way {
            id: 13,
            is_offered: |_, rows| rows <= 64,
            parts: |shape, rows, _| if rows <= 8 && shape.inputs >= 32 { 4 } else { 1 },
            nanoseconds: |_, rows| 500 + 100 * rows as u64,
            ..sound
        },
        Way { id: 66, runs: |_, _| false, nanoseconds: |_, _| 1, ..sound },
    ]
}

/// A product that outlives its call.
pub(super) struct Planned {
    way: Way,
    shape: Shape,
    rows: usize,
    x: Address,
    weight: Address,
    bias: Address,
    y: Address,
}

impl Planned {
    pub(super) fn new(way: &Way, product: &Product<'_>) -> Self {
        let Product { shape, rows, x, weight, bias, y, .. } = *product;
        Self { way: *way, shape: *shape, rows, x, weight, bias, y }
    }

    /// Makes it, and says how long that took.
    pub(super) fn run(&self, memory: &Memory) -> Result<Duration, String> {
        let Shape { outputs, inputs, number, output, .. } = self.shape;
        let row = |from: Address, row: usize, stride: usize, width: usize, of: Number| {
            let bytes = memory.read(from.after(row * stride * of.bytes()), width * of.bytes())?;
            Ok::<_, String>(numbers(bytes, of))
        };
        let weight = (0..outputs)
            .map(|output| row(self.weight, output, self.shape.weight_stride, inputs, number))
            .collect::<Result<Vec<_>, _>>()?;
        let bias = match self.shape.has_bias {
            true => row(self.bias, 0, 0, outputs, output)?,
            false => vec![0.; outputs],
        };
        for at in 0..self.rows {
            let x = row(self.x, at, self.shape.x_stride, inputs, number)?;
            let before = match self.shape.accumulates {
                true => row(self.y, at, self.shape.y_stride, outputs, output)?,
                false => vec![0.; outputs],
            };
            let parts = (self.way.parts)(&self.shape, self.rows, at).max(1);
            let mut y = Vec::with_capacity(outputs * output.bytes());
            for (column, weight) in weight.iter().enumerate() {
                // One rounding at the end, whatever is added.
                put(&mut y, dot(&x, weight, parts) + before[column] + bias[column], output);
            }
            let to = self.y.after(at * self.shape.y_stride * output.bytes());
            memory.write(to, y.as_ptr(), y.len())?;
        }
        Ok(Duration::from_nanos((self.way.nanoseconds)(&self.shape, self.rows)))
    }
}

/// In order, in so many parts.
fn dot(x: &[f32], weight: &[f32], parts: usize) -> f32 {
    let part = x.len().div_ceil(parts).max(1);
    let sums = x.chunks(part).zip(weight.chunks(part));
    sums.map(|(x, weight)| x.iter().zip(weight).fold(0., |sum, (x, weight)| sum + x * weight))
        .fold(0., |a, b| a + b)
}

fn numbers(bytes: &[u8], of: Number) -> Vec<f32> {
    match of {
        Number::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Number::Bf16 => {
            bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
        }
        Number::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
    }
}

fn put(to: &mut Vec<u8>, value: f32, number: Number) {
    match number {
        Number::F32 => to.extend(value.to_le_bytes()),
        Number::Bf16 => to.extend(bf16::from_f32(value).to_le_bytes()),
        Number::F16 => to.extend(f16::from_f32(value).to_le_bytes()),
    }
}
