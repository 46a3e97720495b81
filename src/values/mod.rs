//! Numbers as they are stored: [`Stored`] as files have them, [`Averaged`] as they are kept.

pub mod round;

use std::ops::Range;

use candle_core::Device;
use candle_core::Tensor;
use half::bf16;
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use safetensors::Dtype;

use crate::values::round::from_bf16;

/// Elements that one thread takes at a time: sums and inputs of so many stay in the first-level caches.
pub const CHUNK: usize = 2048;

// files are little endian, and so are the machines that we read them into
const _: () = assert!(cfg!(target_endian = "little"));

/// What was read, in memory that fits its type: what is kept as it is stored need not be copied.
#[derive(Clone, Debug)]
pub enum Stored {
    /// `f64`
    F64(Vec<f64>),
    /// `f32`
    F32(Vec<f32>),
    /// `f16`
    F16(Vec<f16>),
    /// `bf16`
    Bf16(Vec<bf16>),
    /// Of a type that we do not compute with.
    Other(Vec<u8>),
}

impl From<Averaged> for Stored {
    fn from(values: Averaged) -> Self {
        match values {
            Averaged::F32(values) => Self::F32(values),
            Averaged::F16(values) => Self::F16(values),
            Averaged::Bf16(values) => Self::Bf16(values),
        }
    }
}

impl Stored {
    /// As they are in memory, which is as they are in files.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F64(values) => bytemuck::cast_slice(values),
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F16(values) => bytemuck::cast_slice(values),
            Self::Bf16(values) => bytemuck::cast_slice(values),
            Self::Other(bytes) => bytes,
        }
    }

    /// How many values there are; of types that we do not compute with, how many bytes.
    pub fn count(&self) -> usize {
        match self {
            Self::F64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Other(bytes) => bytes.len(),
        }
    }

    /// What their memory has room for.
    pub fn capacity_bytes(&self) -> usize {
        match self {
            Self::F64(values) => values.capacity() * 8,
            Self::F32(values) => values.capacity() * 4,
            Self::F16(values) => values.capacity() * 2,
            Self::Bf16(values) => values.capacity() * 2,
            Self::Other(values) => values.capacity(),
        }
    }

    /// So many bytes of whatever it held, if it is of this type and has room for them, but not much more: what is
    /// kept, such as a norm's vector, would hold on to all of it.
    pub fn resized(&mut self, dtype: Dtype, bytes: usize) -> bool {
        let fits = (bytes..=2 * bytes).contains(&self.capacity_bytes());
        match (dtype, self) {
            (Dtype::F64, Self::F64(values)) if fits => values.resize(bytes / 8, 0.0),
            (Dtype::F32, Self::F32(values)) if fits => values.resize(bytes / 4, 0.0),
            (Dtype::F16, Self::F16(values)) if fits => values.resize(bytes / 2, f16::ZERO),
            (Dtype::BF16, Self::Bf16(values)) if fits => values.resize(bytes / 2, bf16::ZERO),
            _ => return false,
        }
        true
    }

    /// So many bytes of zeros.
    pub fn zeros(dtype: Dtype, bytes: usize) -> Self {
        // zeros of primitive types come from the system untouched, page by page when they are written
        match dtype {
            Dtype::F64 => Self::F64(vec![0.0; bytes / 8]),
            Dtype::F32 => Self::F32(vec![0.0; bytes / 4]),
            Dtype::F16 => Self::F16(vec![0_u16; bytes / 2].reinterpret_into()),
            Dtype::BF16 => Self::Bf16(vec![0_u16; bytes / 2].reinterpret_into()),
            _ => Self::Other(vec![0; bytes]),
        }
    }

    /// As [`Self::bytes`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F64(values) => bytemuck::cast_slice_mut(values),
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F16(values) => bytemuck::cast_slice_mut(values),
            Self::Bf16(values) => bytemuck::cast_slice_mut(values),
            Self::Other(values) => values,
        }
    }
}

/// Some values, exactly.
pub enum Run<'a> {
    /// As they are stored.
    F64(&'a [f64]),
    /// As they are stored, or widened.
    F32(&'a [f32]),
}

impl Stored {
    /// At most [`CHUNK`] values; `wide` is room for them.
    pub fn run<'a>(&'a self, range: Range<usize>, wide: &'a mut [f32; CHUNK]) -> Run<'a> {
        let wide = &mut wide[..range.len()];
        match self {
            Self::F64(values) => return Run::F64(&values[range]),
            Self::F32(values) => return Run::F32(&values[range]),
            Self::F16(values) => values[range].convert_to_f32_slice(wide),
            Self::Bf16(values) => {
                wide.iter_mut().zip(&values[range]).for_each(|(wide, &x)| *wide = from_bf16(x))
            }
            Self::Other(_) => unreachable!("refused by whoever wants numbers"),
        }
        Run::F32(wide)
    }

    /// The values from `start` on, exactly, as many as there is room for.
    pub fn widen(&self, start: usize, to: &mut [f64]) {
        let mut wide = [0.0; CHUNK];
        for (chunk, to) in to.chunks_mut(CHUNK).enumerate() {
            let start = start + chunk * CHUNK;
            match self.run(start..start + to.len(), &mut wide) {
                Run::F64(values) => to.copy_from_slice(values),
                Run::F32(values) => to.iter_mut().zip(values).for_each(|(to, &x)| *to = x.into()),
            }
        }
    }

    /// All values, exactly.
    pub fn widened(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.count()];
        self.widen(0, &mut values);
        values
    }

    /// At most [`CHUNK`] values.
    pub fn to_f64s(&self, range: Range<usize>) -> Vec<f64> {
        match self.run(range, &mut [0.0; CHUNK]) {
            Run::F64(values) => values.to_vec(),
            Run::F32(values) => values.iter().map(|&x| x.into()).collect(),
        }
    }
}

/// An averaged tensor, rounded.
#[derive(Debug, PartialEq)]
pub enum Averaged {
    /// `f32`
    F32(Vec<f32>),
    /// `f16`
    F16(Vec<f16>),
    /// `bf16`
    Bf16(Vec<bf16>),
}

impl Averaged {
    /// As a tensor of this shape, on the CPU.
    pub fn to_tensor(&self, shape: &[usize]) -> candle_core::Result<Tensor> {
        match self {
            Self::F32(values) => Tensor::from_slice(values, shape, &Device::Cpu),
            Self::F16(values) => Tensor::from_slice(values, shape, &Device::Cpu),
            Self::Bf16(values) => Tensor::from_slice(values, shape, &Device::Cpu),
        }
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The values from `start` on, exactly, as many as there is room for.
    pub fn widen(&self, start: usize, to: &mut [f64]) {
        let end = start + to.len();
        match self {
            Self::F32(values) => to.iter_mut().zip(&values[start..end]).for_each(|(to, &x)| *to = x.into()),
            Self::F16(values) => to.iter_mut().zip(&values[start..end]).for_each(|(to, &x)| *to = x.into()),
            Self::Bf16(values) => {
                let from = values[start..end].iter();
                to.iter_mut().zip(from).for_each(|(to, &x)| *to = from_bf16(x).into());
            }
        }
    }
}
