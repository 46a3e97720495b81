//! N checkpoints → one: [`average`], whether they are of one [`kinship`], and how they lie to each other
//! ([`likeness`]).
//!
//! Sums run in `f64` and are [rounded once](crate::values::round) to the precision that is asked for.
//!
//! Source of the method: Ramé et al. 2024, WARM (arXiv:2401.12187).

pub mod kinship;
pub mod likeness;

use std::mem::take;

use rayon::prelude::*;
use safetensors::Dtype;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::TensorBytes;
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
    for (tensor, _) in &*sources {
        if tensor.values.format().is_none() {
            return Err(CheckpointError::Unsupported(format!(
                "tensor `{name}` is stored as {:?}: supported are F64, F32, F16 and BF16",
                tensor.dtype
            )));
        }
    }
    match room(format.into(), sources[0].0.count() * format.bytes()) {
        Values::F32(room) => round_sums(name, sources, room).map(Values::F32),
        Values::F16(room) => round_sums(name, sources, room).map(Values::F16),
        Values::Bf16(room) => round_sums(name, sources, room).map(Values::Bf16),
        Values::F64(_) | Values::Other(_) => unreachable!("averages are kept in 32 or 16 bits"),
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

/// What the rounding of an average moved: the sum of the squared differences to the exact sums. Zero where
/// [`average`] took the values as they were.
pub fn squared_rounding_error(sources: &[(TensorBytes<'_>, f64)], rounded: &Values) -> f64 {
    let count = rounded.count();
    if sources[0].0.count() != count {
        return 0.0;
    }
    let chunks = (0..count.div_ceil(CHUNK)).into_par_iter().map(|chunk| {
        let start = chunk * CHUNK;
        let length = CHUNK.min(count - start);
        let range = start..start + length;
        let (mut sums, mut values) = ([0.0; CHUNK], [0.0; CHUNK]);
        match sources {
            [(tensor, 1.0)] => tensor.values.to_f64s(range, &mut sums[..length]),
            _ => {
                for (tensor, coefficient) in sources {
                    tensor.values.to_f64s(range.clone(), &mut values[..length]);
                    sums.iter_mut().zip(&values).for_each(|(sum, x)| *sum += coefficient * x);
                }
            }
        }
        rounded.to_f64s(start..start + length, &mut values[..length]);
        sums[..length].iter().zip(&values).map(|(exact, x)| (exact - x) * (exact - x)).sum::<f64>()
    });
    chunks.collect::<Vec<f64>>().iter().sum() // in order: the same with any number of threads
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
    sources: &[(TensorBytes<'_>, f64)],
    mut output: Vec<T>,
) -> Result<Vec<T>, CheckpointError> {
    output.par_chunks_mut(CHUNK).enumerate().try_for_each(|(chunk, output)| {
        let range = chunk * CHUNK..chunk * CHUNK + output.len();
        let (mut wide, mut sums) = ([0.0_f32; CHUNK], [0.0_f64; CHUNK]);
        let sums = &mut sums[..output.len()];
        match sources {
            [(tensor, 1.0)] => match tensor.values.run(range, &mut wide) {
                Run::F64(exact) => {
                    sums.copy_from_slice(exact);
                    T::from_f64s(exact, output);
                }
                Run::F32(exact) => {
                    T::from_f32s(exact, output);
                    if !T::are_finite(output) {
                        sums.iter_mut().zip(exact).for_each(|(sum, &x)| *sum = x.into()); // for the error
                    }
                }
            },
            _ => {
                for (tensor, coefficient) in sources {
                    match tensor.values.run(range.clone(), &mut wide) {
                        Run::F64(x) => sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += coefficient * x),
                        Run::F32(x) => {
                            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += coefficient * f64::from(x));
                        }
                    }
                }
                T::from_f64s(sums, output);
            }
        }
        if T::are_finite(output) {
            return Ok(());
        }
        let bad = output.iter().position(|value| !value.is_finite()).expect("one is not finite");
        Err(not_finite(name, sums[bad]))
    })?;
    Ok(output)
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
