//! N checkpoints → one: [`average`], whether they are of one [`kinship`], and how they lie to each other
//! ([`likeness`]).
//!
//! Sums run in `f64` and are [rounded once](crate::values::round) to the precision that is asked for.
//!
//! Source of the method: Ramé et al. 2024, WARM (arXiv:2401.12187).

pub mod experts;
pub mod kinship;
pub mod likeness;

use std::mem::take;
use std::ops::Range;

use rayon::prelude::*;
use rewarm_kernels::Isa;
use rewarm_kernels::Loops;
use safetensors::Dtype;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::TensorBytes;
use crate::merge::likeness::Likeness;
use crate::values::CHUNK;
use crate::values::Format;
use crate::values::Run;
use crate::values::Values;
use crate::values::round::Kept;

/// `Σ coefficient · tensor` in `f64`, in the order of `sources`, rounded once to `format`: `f32`, `bf16` or `f16`.
///
/// One source with coefficient 1 is just converted; where it is stored so it is not even copied. All sources
/// have one shape (checked by the caller). `room` gives memory, of a type and so many bytes, whatever it held. Fails
/// if a value is not finite, before or after.
pub fn average(
    name: &str,
    sources: &mut [(TensorBytes<'_>, f64)],
    format: Format,
    room: impl FnOnce(Dtype, usize) -> Values,
) -> Result<Values, CheckpointError> {
    if let [(tensor, 1.0)] = sources {
        match (&mut tensor.values, format) {
            (Values::F32(values), Format::F32) => return checked(name, take(values)).map(Values::F32),
            (Values::F16(values), Format::F16) => return checked(name, take(values)).map(Values::F16),
            (Values::Bf16(values), Format::Bf16) => return checked(name, take(values)).map(Values::Bf16),
            _ => {}
        }
    }
    let sources: Vec<Term<'_>> = terms(name, sources)?;
    match room(format.into(), sources[0].0.count() * format.bytes()) {
        Values::F32(room) => round_sums(name, &sources, room).map(Values::F32),
        Values::F16(room) => round_sums(name, &sources, room).map(Values::F16),
        Values::Bf16(room) => round_sums(name, &sources, room).map(Values::Bf16),
        Values::F64(_) | Values::Other(_) => unreachable!("averages are kept in 32 or 16 bits"),
    }
}

/// A tensor of several members, and what was found while it was averaged.
#[derive(Debug)]
pub struct Compared {
    /// As [`average`] gives it.
    pub average: Values,
    /// Of all members, whatever their share.
    pub likeness: Likeness,
    /// The sum of the squared differences between the average and the exact sums.
    pub squared_rounding_error: f64,
}

/// [`average`] of the first `averaged` members, and how all of them lie to each other and to `reference`. Each block of
/// values is worked on while it is in the cache of one core.
pub fn compare_and_average(
    name: &str,
    members: &[(TensorBytes<'_>, f64)],
    averaged: &[f64],
    reference: Option<&Values>,
    format: Format,
    room: impl FnOnce(Dtype, usize) -> Values,
) -> Result<Compared, CheckpointError> {
    let all = terms(name, members)?;
    let sources: Vec<Term<'_>> =
        all.iter().zip(averaged).map(|((values, _), share)| (*values, *share)).collect();
    let members: Vec<&Values> = all.iter().map(|(values, _)| *values).collect();
    let reference = reference.unwrap_or(members[0]);
    let task = Task { name, sources: &sources, reference, members: &members };
    match room(format.into(), members[0].count() * format.bytes()) {
        Values::F32(room) => task.run(room, Values::F32),
        Values::F16(room) => task.run(room, Values::F16),
        Values::Bf16(room) => task.run(room, Values::Bf16),
        Values::F64(_) | Values::Other(_) => unreachable!("averages are kept in 32 or 16 bits"),
    }
}

/// Values, and their share in a sum.
type Term<'a> = (&'a Values, f64);

/// Refuses what is no number.
fn terms<'a>(name: &str, sources: &'a [(TensorBytes<'_>, f64)]) -> Result<Vec<Term<'a>>, CheckpointError> {
    let term = |(tensor, coefficient): &'a (TensorBytes<'_>, f64)| match tensor.values.format() {
        Some(_) => Ok((&tensor.values, *coefficient)),
        None => Err(CheckpointError::Unsupported(format!(
            "tensor `{name}` is stored as {:?}: supported are F64, F32, F16 and BF16",
            tensor.dtype
        ))),
    };
    sources.iter().map(term).collect()
}

/// Values that one thread averages and compares at a time; those of some members fit into its second-level cache.
const BLOCK: usize = likeness::BLOCK;

struct Task<'a> {
    name: &'a str,
    sources: &'a [Term<'a>],
    reference: &'a Values,
    members: &'a [&'a Values],
}

impl Task<'_> {
    /// Overwrites `output`.
    fn run<T: Kept>(
        &self,
        mut output: Vec<T>,
        values: impl FnOnce(Vec<T>) -> Values,
    ) -> Result<Compared, CheckpointError> {
        let blocks = output.par_chunks_mut(BLOCK).enumerate().map(|(block, output)| {
            let start = block * BLOCK;
            let mut error = 0.0;
            for (chunk, output) in output.chunks_mut(CHUNK).enumerate() {
                let first = start + chunk * CHUNK;
                let range = first..first + output.len();
                error += round_chunk(self.name, self.sources, range, output, true)?;
            }
            let range = start..start + output.len();
            Ok((error, Likeness::of_block(self.reference, self.members, range)))
        });
        let blocks = blocks.collect::<Result<Vec<_>, CheckpointError>>()?;
        let (mut error, mut likeness) = (0.0, Likeness::of_nothing(self.members.len()));
        for (of_block, block) in blocks {
            error += of_block; // in order: the same with any number of threads
            likeness.add(&block);
        }
        Ok(Compared { average: values(output), likeness, squared_rounding_error: error })
    }
}

/// The values of a tensor as they are stored, for somebody who rounds them to `format`. Fails if one would not be finite.
pub fn unrounded(
    name: &str,
    tensor: &mut TensorBytes<'_>,
    format: Format,
) -> Result<Values, CheckpointError> {
    match tensor.values.first_not_finite_in(format) {
        Some(value) => Err(not_finite(name, value)),
        None => Ok(std::mem::replace(&mut tensor.values, Values::Other(Vec::new()))),
    }
}

/// Which of the sources holds a value that is not finite; none where it was the sum that did not fit into the precision.
pub fn source_at_fault(sources: &[(TensorBytes<'_>, f64)]) -> Option<usize> {
    sources.iter().position(|(tensor, _)| tensor.values.first_not_finite().is_some())
}

fn not_finite(name: &str, value: f64) -> CheckpointError {
    CheckpointError::NotFiniteWeight { name: name.to_owned(), value }
}

/// The same values, all of them finite.
fn checked<T: Kept>(name: &str, values: Vec<T>) -> Result<Vec<T>, CheckpointError> {
    values.par_chunks(CHUNK).try_for_each(|values| {
        if T::are_finite(values) {
            return Ok(());
        }
        let bad = values.iter().find(|value| !value.is_finite()).expect("one is not finite");
        Err(not_finite(name, bad.to_f64()))
    })?;
    Ok(values)
}

/// Overwrites `output`.
fn round_sums<T: Kept>(
    name: &str,
    sources: &[Term<'_>],
    mut output: Vec<T>,
) -> Result<Vec<T>, CheckpointError> {
    output.par_chunks_mut(CHUNK).enumerate().try_for_each(|(chunk, output)| {
        let range = chunk * CHUNK..chunk * CHUNK + output.len();
        round_chunk(name, sources, range, output, false).map(drop)
    })?;
    Ok(output)
}

/// Of one chunk. Returns what the rounding moved, if that is wanted: the sum of the squares.
fn round_chunk<T: Kept>(
    name: &str,
    sources: &[Term<'_>],
    range: Range<usize>,
    output: &mut [T],
    wants_error: bool,
) -> Result<f64, CheckpointError> {
    let mut sums = [0.0_f64; CHUNK];
    let sums = &mut sums[..output.len()];
    let (is_finite, error) =
        Isa::best().loops(RoundChunk { sources, range, sums: &mut *sums, output: &mut *output, wants_error });
    if is_finite {
        return Ok(error);
    }
    let bad = output.iter().position(|value| !value.is_finite()).expect("one is not finite");
    Err(not_finite(name, sums[bad]))
}

struct RoundChunk<'a, T> {
    sources: &'a [Term<'a>],
    range: Range<usize>,
    /// Zeros.
    sums: &'a mut [f64],
    output: &'a mut [T],
    wants_error: bool,
}

impl<T: Kept> Loops for RoundChunk<'_, T> {
    /// Whether all are finite, and the error.
    type Output = (bool, f64);
    #[inline(always)]
    fn run(self) -> (bool, f64) {
        let Self { sources, range, sums, output, wants_error } = self;
        let mut wide = [0.0_f32; CHUNK];
        match sources {
            // as they are stored: a zero keeps its sign
            [(values, 1.0)] => match values.run(range, &mut wide) {
                Run::F64(exact) => {
                    sums.copy_from_slice(exact);
                    T::from_f64s(exact, output);
                }
                Run::F32(exact) => {
                    sums.iter_mut().zip(exact).for_each(|(sum, &x)| *sum = x.into());
                    T::from_f32s(exact, output);
                }
            },
            _ => {
                for (values, coefficient) in sources {
                    match values.run(range.clone(), &mut wide) {
                        Run::F64(x) => sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += coefficient * x),
                        Run::F32(x) => {
                            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += coefficient * f64::from(x));
                        }
                    }
                }
                T::from_f64s(sums, output);
            }
        }
        let error = if wants_error { squared_distance(sums, output) } else { 0.0 };
        (T::are_finite(output), error)
    }
}

#[inline(always)]
fn squared_distance<T: Kept>(exact: &[f64], rounded: &[T]) -> f64 {
    const LANES: usize = 8; // sums that run side by side, as vectors do
    let square = |exact: f64, rounded: T| (exact - rounded.to_f64()) * (exact - rounded.to_f64());
    let ((exact, last), (rounded, last_rounded)) = (exact.as_chunks::<LANES>(), rounded.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (exact, rounded) in exact.iter().zip(rounded) {
        for lane in 0..LANES {
            sums[lane] += square(exact[lane], rounded[lane]);
        }
    }
    let last = last.iter().zip(last_rounded).map(|(&exact, &rounded)| square(exact, rounded));
    sums.into_iter().chain(last).sum()
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use half::f16;

    use super::*;
    use crate::values::round::round_to_odd;

    /// With room that held something.
    fn average(
        name: &str,
        mut sources: Vec<(TensorBytes<'_>, f64)>,
        format: Format,
    ) -> Result<Values, CheckpointError> {
        super::average(name, &mut sources, format, |dtype, bytes| match dtype {
            Dtype::F32 => Values::F32(vec![f32::NAN; bytes / 4]),
            Dtype::F16 => Values::F16(vec![f16::NAN; bytes / 2]),
            _ => Values::Bf16(vec![bf16::NAN; bytes / 2]),
        })
    }

    #[test]
    fn a_value_that_overflows_is_an_error_that_names_the_tensor() {
        let tensor = TensorBytes { dtype: Dtype::F32, shape: &[1], values: Values::F32(vec![70_000.0]) };
        let sources = vec![(tensor, 1.0)];
        assert_eq!(average("w", sources.clone(), Format::F32).unwrap(), Values::F32(vec![70_000.0]));
        let error = average("w", sources, Format::F16).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("70000"), "{error}");
    }

    /// The same sums value by value, in the plainest words.
    #[test]
    fn averages_are_sums_in_order_rounded_once() {
        let count = 2 * CHUNK + 7;
        let values: Vec<Vec<f64>> = (0..3_u64)
            .map(|member| {
                let value = |i: u64| {
                    let hash = blake3::hash(&(member << 32 | i).to_le_bytes());
                    let bits = u32::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
                    // of many sizes, and zeros of both signs
                    let size = 2.0_f64.powi((bits >> 27) as i32 - 28);
                    if bits % 61 == 0 { -0.0 } else { (f64::from(bits) / 2.0_f64.powi(31) - 1.0) * size }
                };
                (0..count as u64).map(value).collect()
            })
            .collect();
        let store = |dtype: Dtype, values: &[f64]| match dtype {
            Dtype::F64 => Values::F64(values.to_vec()),
            Dtype::F32 => Values::F32(values.iter().map(|&x| x as f32).collect()),
            Dtype::F16 => Values::F16(values.iter().map(|&x| f16::from_f64(x)).collect()),
            _ => Values::Bf16(values.iter().map(|&x| bf16::from_f64(x)).collect()),
        };
        let exact = |stored: &Values, i: usize| match stored {
            Values::F64(values) => values[i],
            Values::F32(values) => values[i].into(),
            Values::F16(values) => values[i].to_f64(),
            Values::Bf16(values) => values[i].to_f64(),
            Values::Other(_) => unreachable!(),
        };
        for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            for coefficients in [&[1.0][..], &[0.3, 0.7], &[0.2, 0.3, 0.5]] {
                let sources: Vec<_> = coefficients
                    .iter()
                    .zip(&values)
                    .map(|(&coefficient, values)| {
                        (TensorBytes { dtype, shape: &[], values: store(dtype, values) }, coefficient)
                    })
                    .collect();
                let sums: Vec<f64> = (0..count)
                    .map(|i| match &sources[..] {
                        [(tensor, 1.0)] => exact(&tensor.values, i),
                        _ => sources.iter().fold(0.0, |sum, (tensor, c)| sum + c * exact(&tensor.values, i)),
                    })
                    .collect();
                let case = format!("{dtype:?} {coefficients:?}");
                let Values::F32(average32) = average("w", sources.clone(), Format::F32).unwrap() else {
                    panic!()
                };
                let Values::F16(average16) = average("w", sources.clone(), Format::F16).unwrap() else {
                    panic!()
                };
                let Values::Bf16(brain16) = average("w", sources, Format::Bf16).unwrap() else { panic!() };
                for (i, &sum) in sums.iter().enumerate() {
                    let odd = round_to_odd(sum);
                    assert_eq!(average32[i].to_bits(), (sum as f32).to_bits(), "{case} {i}");
                    assert_eq!(average16[i].to_bits(), f16::from_f32(odd).to_bits(), "{case} {i}");
                    assert_eq!(brain16[i].to_bits(), bf16::from_f32(odd).to_bits(), "{case} {i}");
                }
            }
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 2] {
                let mut values = vec![1.0; 2 * CHUNK + 3];
                values[place] = bad;
                let stored = [
                    Values::F64(values.iter().map(|&x| x.into()).collect()),
                    Values::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
                    Values::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
                    Values::F32(values),
                ];
                for values in stored {
                    for dtype in [Format::F32, Format::F16, Format::Bf16] {
                        let tensor = TensorBytes { dtype: Dtype::F32, shape: &[], values: values.clone() };
                        for sources in
                            [vec![(tensor.clone(), 1.0)], vec![(tensor.clone(), 0.5), (tensor, 0.5)]]
                        {
                            let error = average("w", sources, dtype).unwrap_err();
                            let CheckpointError::NotFiniteWeight { name, value } = error else {
                                panic!("{error}")
                            };
                            assert!(
                                name == "w" && value.to_string() == bad.to_string(),
                                "{value}, not {bad}"
                            );
                        }
                    }
                }
            }
        }
    }
}
