//! Matrices with canaries behind their rows, and launches of kernels on a played card.
#![allow(dead_code, clippy::allow_attributes, reason = "no test uses all of it")]

use half::bf16;
use half::f16;
use rewarm_cuda::driver::Address;
use rewarm_cuda::driver::Argument;
use rewarm_cuda::driver::Launch;
use rewarm_cuda::driver::Number;
use rewarm_cuda::modules;
use rewarm_cuda::play;
use rewarm_cuda::play::Order;

pub(crate) const NUMBERS: [Number; 3] = [Number::Bf16, Number::F16, Number::F32];
/// Both orders of warps, both times of copies.
pub(crate) const ORDERS: [Order; 4] = [
    Order { is_reversed: false, is_early: false },
    Order { is_reversed: true, is_early: false },
    Order { is_reversed: false, is_early: true },
    Order { is_reversed: true, is_early: true },
];

/// Whether kernels can be compiled here. A test that is left out says so.
pub(crate) fn can_play() -> bool {
    if play::compiler().is_some() {
        return true;
    }
    assert!(std::env::var("REWARM_REQUIRE_CXX").as_deref() != Ok("1"), "no C++ compiler is here");
    eprintln!("skipped: kernels are played by a C++ compiler, and none is here (c++, or what CXX names)");
    false
}

/// Numbers in [-1, 1) that look random.
pub(crate) fn noise(seed: u64, row: usize, column: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((row as u64) << 32) ^ column as u64;
    for _ in 0..2 {
        x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// The nearest that a kind of number has.
pub(crate) fn rounded(number: Number, x: f64) -> f64 {
    match number {
        Number::F32 => f64::from(x as f32),
        Number::Bf16 => bf16::from_f64(x).to_f64(),
        Number::F16 => f16::from_f64(x).to_f64(),
    }
}

/// Half a step between numbers of a size, and what sums in `f32` lose.
pub(crate) fn tolerance(number: Number, size: f64) -> f64 {
    let step = match number {
        Number::F32 => 0.0,
        Number::Bf16 => 1.0 / 256.0,
        Number::F16 => 1.0 / 2048.0,
    };
    size.abs() * step + 4e-6 * (1.0 + size.abs())
}

/// Rows of numbers, each of which begins at 16 bytes. Behind a row's width there is what must stay there, NaN to a kernel
/// that reads it.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) number: Number,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    store: Vec<u128>,
}

impl Matrix {
    pub(crate) fn new(number: Number, rows: usize, width: usize, of: impl Fn(usize, usize) -> f32) -> Self {
        let stride = width.next_multiple_of(8) + 8;
        let mut matrix = Self {
            number,
            rows,
            width,
            stride,
            store: vec![u128::MAX; (rows * stride * number.bytes()).div_ceil(16)],
        };
        for row in 0..rows {
            for column in 0..width {
                matrix.set(row, column, of(row, column));
            }
        }
        matrix
    }

    pub(crate) fn noise(number: Number, rows: usize, width: usize, seed: u64) -> Self {
        Self::new(number, rows, width, |row, column| noise(seed, row, column))
    }

    /// To be written: NaN all over.
    pub(crate) fn empty(number: Number, rows: usize, width: usize) -> Self {
        Self::new(number, rows, width, |_, _| f32::NAN)
    }

    pub(crate) fn set(&mut self, row: usize, column: usize, x: f32) {
        let at = row * self.stride + column;
        match self.number {
            Number::F32 => bytemuck::cast_slice_mut::<_, f32>(&mut self.store)[at] = x,
            Number::Bf16 => {
                bytemuck::cast_slice_mut::<_, u16>(&mut self.store)[at] = bf16::from_f32(x).to_bits()
            }
            Number::F16 => {
                bytemuck::cast_slice_mut::<_, u16>(&mut self.store)[at] = f16::from_f32(x).to_bits()
            }
        }
    }

    pub(crate) fn bits(&self, row: usize, column: usize) -> u32 {
        let at = row * self.stride + column;
        match self.number {
            Number::F32 => bytemuck::cast_slice::<_, u32>(&self.store)[at],
            Number::Bf16 | Number::F16 => bytemuck::cast_slice::<_, u16>(&self.store)[at].into(),
        }
    }

    pub(crate) fn get(&self, row: usize, column: usize) -> f64 {
        let bits = self.bits(row, column);
        match self.number {
            Number::F32 => f32::from_bits(bits).into(),
            Number::Bf16 => bf16::from_bits(bits as u16).into(),
            Number::F16 => f16::from_bits(bits as u16).into(),
        }
    }

    pub(crate) fn row(&self, row: usize) -> Vec<f64> {
        (0..self.width).map(|column| self.get(row, column)).collect()
    }

    pub(crate) fn row_bits(&self, row: usize) -> Vec<u32> {
        (0..self.width).map(|column| self.bits(row, column)).collect()
    }

    pub(crate) fn address(&self) -> Address {
        Address(self.store.as_ptr() as u64)
    }

    pub(crate) fn at(&self, column: usize) -> Address {
        self.address().after(column * self.number.bytes())
    }

    pub(crate) fn stride(&self) -> Argument {
        Argument::U32(self.stride as u32)
    }

    /// That nothing was written behind a row's width.
    pub(crate) fn assert_untouched(&self, what: &str) {
        let untouched = if self.number == Number::F32 { u32::MAX } else { 0xffff };
        for row in 0..self.rows {
            for column in self.width..self.stride {
                assert_eq!(self.bits(row, column), untouched, "{what}: row {row} was written at {column}");
            }
        }
    }

    /// That each number is near what `expected` says, and nothing else was written.
    pub(crate) fn assert_near(&self, what: &str, expected: impl Fn(usize, usize) -> f64, scale: f64) {
        self.assert_untouched(what);
        for row in 0..self.rows {
            for column in 0..self.width {
                let (is, should) = (self.get(row, column), expected(row, column));
                let near = scale * tolerance(self.number, should);
                assert!(
                    (is - should).abs() <= near || is == should || (is.is_nan() && should.is_nan()),
                    "{what}: [{row}, {column}] is {is}, should be {should} within {near}"
                );
            }
        }
    }
}

pub(crate) fn list(values: &[u32]) -> Argument {
    Argument::Address(Address(values.as_ptr() as u64))
}

pub(crate) const NONE: Argument = Argument::Address(Address::NULL);

pub(crate) fn p(address: Address) -> Argument {
    Argument::Address(address)
}

pub(crate) fn u(x: usize) -> Argument {
    Argument::U32(u32::try_from(x).expect("fits"))
}

pub(crate) fn f(x: f32) -> Argument {
    Argument::F32(x)
}

pub(crate) fn launched(kernel: &str, grid: [usize; 3], arguments: &[Argument]) {
    launched_in(kernel, grid, arguments, Order::default());
}

pub(crate) fn launched_in(kernel: &str, grid: [usize; 3], arguments: &[Argument], order: Order) {
    let threads = if kernel.starts_with("attend") { modules::ATTEND_THREADS } else { modules::THREADS };
    let launch = Launch {
        kernel,
        grid: grid.map(|blocks| blocks as u32),
        threads,
        shared: modules::shared_bytes(kernel),
        arguments,
    };
    play::launch_in(&launch, order).expect("plays");
}
