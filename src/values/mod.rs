//! Numbers as they are stored, in files and in memory: [`Values`] of a [`Format`], and how one becomes another with
//! one [rounding](round).

mod format;
pub mod reference;
pub mod round;

use std::ops::Range;

use half::bf16;
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;
use safetensors::Dtype;

pub use crate::values::format::Format;
use crate::values::round::Kept;
use crate::values::round::from_bf16;
use crate::values::round::to_bf16;

/// Elements that one thread takes at a time: sums and inputs of so many stay in the first-level caches.
pub const CHUNK: usize = 2048;

// files are little endian, and so are the machines that we read them into
const _: () = assert!(cfg!(target_endian = "little"));

/// Numbers in memory that fits their format: what is kept as it is stored need not be copied.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
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

impl Values {
    /// Of `f32`s, each rounded once.
    pub fn rounded(format: Format, exact: &[f32]) -> Self {
        fn all<T: Kept + Default>(exact: &[f32]) -> Vec<T> {
            let mut values = vec![T::default(); exact.len()];
            T::from_f32s(exact, &mut values);
            values
        }
        match format {
            Format::F64 => Self::F64(exact.iter().map(|&x| x.into()).collect()),
            Format::F32 => Self::F32(exact.to_vec()),
            Format::F16 => Self::F16(all(exact)),
            Format::Bf16 => Self::Bf16(all(exact)),
        }
    }

    /// `None` of a type that we do not compute with.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::F64(_) => Some(Format::F64),
            Self::F32(_) => Some(Format::F32),
            Self::F16(_) => Some(Format::F16),
            Self::Bf16(_) => Some(Format::Bf16),
            Self::Other(_) => None,
        }
    }

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

    /// A copy of some of them; of types that we do not compute with, of bytes.
    pub fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F64(values) => Self::F64(values[range].to_vec()),
            Self::F32(values) => Self::F32(values[range].to_vec()),
            Self::F16(values) => Self::F16(values[range].to_vec()),
            Self::Bf16(values) => Self::Bf16(values[range].to_vec()),
            Self::Other(bytes) => Self::Other(bytes[range].to_vec()),
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

impl Values {
    /// At most [`CHUNK`] values; `wide` is room for them.
    #[inline(always)]
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

    /// Some of them, exactly.
    #[inline(always)]
    pub fn to_f64s(&self, range: Range<usize>, to: &mut [f64]) {
        let mut wide = [0.0; CHUNK];
        for (start, to) in range.step_by(CHUNK).zip(to.chunks_mut(CHUNK)) {
            match self.run(start..start + to.len(), &mut wide) {
                Run::F64(values) => to.copy_from_slice(values),
                Run::F32(values) => to.iter_mut().zip(values).for_each(|(to, &x)| *to = x.into()),
            }
        }
    }

    /// All values, exactly.
    pub fn widened(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.count()];
        self.to_f64s(0..values.len(), &mut values);
        values
    }

    /// The same of values that lie as [`Self::bytes`] has them.
    pub fn bytes_to_f32s(format: Format, bytes: &[u8], range: Range<usize>, to: &mut [f32]) {
        match format {
            Format::F64 => {
                let values = &bytemuck::cast_slice::<_, f64>(bytes)[range];
                to.iter_mut().zip(values).for_each(|(to, &x)| *to = x as f32);
            }
            Format::F32 => to.copy_from_slice(&bytemuck::cast_slice(bytes)[range]),
            Format::F16 => bytemuck::cast_slice::<_, f16>(bytes)[range].convert_to_f32_slice(to),
            Format::Bf16 => {
                let values = &bytemuck::cast_slice::<_, bf16>(bytes)[range];
                to.iter_mut().zip(values).for_each(|(to, &x)| *to = from_bf16(x));
            }
        }
    }

    /// Some of them, each rounded once.
    pub fn to_f32s(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Self::F64(values) => to.iter_mut().zip(&values[range]).for_each(|(to, &x)| *to = x as f32),
            Self::F32(values) => to.copy_from_slice(&values[range]),
            Self::F16(values) => values[range].convert_to_f32_slice(to),
            Self::Bf16(values) => to.iter_mut().zip(&values[range]).for_each(|(to, &x)| *to = from_bf16(x)),
            Self::Other(_) => unreachable!("refused by whoever wants numbers"),
        }
    }

    /// Some of them, each rounded once.
    pub fn to_bf16s(&self, range: Range<usize>, to: &mut [bf16]) {
        match self {
            Self::F64(values) => {
                let chunks = to.chunks_mut(CHUNK).zip(values[range].chunks(CHUNK));
                chunks.for_each(|(to, exact)| bf16::from_f64s(exact, to));
            }
            Self::F32(values) => bf16::from_f32s(&values[range], to),
            Self::F16(values) => {
                to.iter_mut().zip(&values[range]).for_each(|(to, x)| *to = to_bf16(x.to_f32()));
            }
            Self::Bf16(values) => to.copy_from_slice(&values[range]),
            Self::Other(_) => unreachable!("refused by whoever wants numbers"),
        }
    }

    /// The first that would be infinite or NaN, rounded to a format.
    pub fn first_not_finite_in(&self, format: Format) -> Option<f64> {
        let least = format.overflows_from();
        let (fits, fits_single) = (|x: f64| x.abs() < least, |x: f32| x.abs() < least as f32);
        let starts = (0..self.count().div_ceil(CHUNK)).into_par_iter().map(|chunk| chunk * CHUNK);
        starts.find_map_first(|start| {
            let mut wide = [0.0; CHUNK];
            match self.run(start..self.count().min(start + CHUNK), &mut wide) {
                Run::F64(values) => values.iter().copied().find(|&x| !fits(x)),
                Run::F32(values) => {
                    let all_fit = values.iter().fold(true, |all, &x| all & fits_single(x));
                    if all_fit { None } else { values.iter().find(|&&x| !fits_single(x)).map(|&x| x.into()) }
                }
            }
        })
    }

    /// The first that is infinite or NaN.
    pub fn first_not_finite(&self) -> Option<f64> {
        fn first<T: Kept>(values: &[T]) -> Option<f64> {
            values.iter().find(|value| !value.is_finite()).map(|value| value.to_f64())
        }
        match self {
            Self::F64(values) => values.iter().copied().find(|value| !value.is_finite()),
            Self::F32(values) => first(values),
            Self::F16(values) => first(values),
            Self::Bf16(values) => first(values),
            Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each format says of numbers that it holds, and of some that it does not.
    #[test]
    fn each_format_is_read_in_every_other_with_one_rounding() {
        let numbers: Vec<f32> = (0..CHUNK + 5).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        for format in [Format::F64, Format::F32, Format::F16, Format::Bf16] {
            let values = Values::rounded(format, &numbers);
            assert_eq!((values.format(), values.count()), (Some(format), numbers.len()));
            assert_eq!(values.bytes().len(), numbers.len() * format.bytes());
            let range = 3..numbers.len() - 1;
            let (mut wide, mut single) = (vec![0.0; range.len()], vec![0.0; range.len()]);
            let mut brain = vec![bf16::ZERO; range.len()];
            values.to_f64s(range.clone(), &mut wide);
            values.to_f32s(range.clone(), &mut single);
            values.to_bf16s(range.clone(), &mut brain);
            for (at, x) in range.enumerate() {
                let exact = format.round(numbers[x].into());
                assert_eq!((wide[at], f64::from(single[at])), (exact, exact), "{format}");
                assert_eq!(f64::from(brain[at]), Format::Bf16.round(exact), "{format}");
            }
        }
        let infinite = |format| Values::rounded(format, &[1.0, f32::INFINITY]).first_not_finite();
        assert!(
            [Format::F64, Format::F32, Format::F16, Format::Bf16].map(infinite).iter().all(Option::is_some)
        );
        // just below the middle between the largest and what would follow it, and the middle
        for format in [Format::F32, Format::Bf16, Format::F16] {
            let middle = format.overflows_from();
            let below = f64::from_bits(middle.to_bits() - 1);
            assert!(format.round(below).is_finite() && format.round(middle).is_infinite(), "{format}");
            for sign in [1.0, -1.0] {
                let stored = Values::F64([vec![0.0; CHUNK], vec![below * sign, middle * sign]].concat());
                assert_eq!(stored.first_not_finite_in(format), Some(middle * sign), "{format}");
            }
            for x in [f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, -65_519.996, 65_520.0, 3.396e38, f32::MAX] {
                for stored in [Values::F32(vec![x]), Values::rounded(Format::F16, &[x])] {
                    let x = stored.widened()[0];
                    let found = stored.first_not_finite_in(format);
                    assert_eq!(found.is_some(), !format.round(x).is_finite(), "{x} in {format}");
                }
            }
        }
        assert_eq!(Values::rounded(Format::F16, &[65504.0]).first_not_finite(), None);
        assert_eq!(Values::rounded(Format::F16, &[70_000.0]).first_not_finite(), Some(f64::INFINITY));
    }
}
