//! Weight averaging: members → one set of weights.
//!
//! Sums run in `f64` and are rounded *once* to the precision that is asked for. Rounding from `f64` to `f16` or
//! `bf16` by way of `f32` would round twice, and differ from a reference in the last place; the `half` crate
//! does so on machines with F16C. `round_to_odd` makes the first step harmless.
//!
//! Source of the method: Ramé et al. 2024, WARM (arXiv:2401.12187).

use std::path::Path;

use candle_core::DType;
use candle_core::Device;
use candle_core::Tensor;
use half::bf16;
use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::weights::Checkpoint;
use crate::model::weights::TensorBytes;

/// Elements that one thread sums at a time: both its sums and its inputs stay in the first-level caches.
const CHUNK: usize = 4096;

/// Members whose 2-D tensors point in directions less alike than this did not start from one pretrain.
/// Fine-tuning leaves the cosine above 0.9; independent weights have one near 0.
const SAME_PRETRAIN_COSINE: f64 = 0.5;

/// At most this many 2-D tensors are compared to tell whether members share a pretrain.
const COMPARED_TENSORS: usize = 16;

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

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::F32(values) => values.is_empty(),
            Self::F16(values) => values.is_empty(),
            Self::Bf16(values) => values.is_empty(),
        }
    }
}

/// `Σ coefficient · tensor` in `f64`, in the order of `sources`, rounded once to `dtype`.
///
/// One source with coefficient 1 is just converted. All sources have one shape (checked by the caller). Fails if
/// a value is not finite, before or after.
pub fn average(name: &str, sources: &[(TensorBytes<'_>, f64)], dtype: DType) -> Result<Averaged, ModelError> {
    let count: usize = sources[0].0.shape.iter().product();
    let readers = sources
        .iter()
        .map(|(tensor, coefficient)| Ok((Reader::new(name, tensor)?, *coefficient)))
        .collect::<Result<Vec<_>, ModelError>>()?;
    match dtype {
        DType::F32 => sum(name, &readers, count, |x| x as f32, f32::is_finite).map(Averaged::F32),
        DType::F16 => {
            sum(name, &readers, count, |x| f16::from_f32(round_to_odd(x)), f16::is_finite).map(Averaged::F16)
        }
        DType::BF16 => sum(name, &readers, count, |x| bf16::from_f32(round_to_odd(x)), bf16::is_finite)
            .map(Averaged::Bf16),
        other => Err(ModelError::Unsupported(format!("precision {other:?}"))),
    }
}

fn sum<T: Copy + Default + Send>(
    name: &str,
    readers: &[(Reader<'_>, f64)],
    count: usize,
    round: impl Fn(f64) -> T + Sync,
    is_finite: impl Fn(T) -> bool + Sync,
) -> Result<Vec<T>, ModelError> {
    let mut output = vec![T::default(); count];
    output.par_chunks_mut(CHUNK).enumerate().try_for_each(|(chunk, output)| {
        let start = chunk * CHUNK;
        let mut sums = [0.0_f64; CHUNK];
        let sums = &mut sums[..output.len()];
        match readers {
            [(reader, 1.0)] => reader.visit(start, sums.len(), |i, x| sums[i] = x),
            _ => {
                for (reader, coefficient) in readers {
                    reader.visit(start, sums.len(), |i, x| sums[i] += coefficient * x);
                }
            }
        }
        for (output, &sum) in output.iter_mut().zip(&*sums) {
            *output = round(sum);
            if !is_finite(*output) {
                return Err(ModelError::NotFiniteWeight { name: name.to_owned(), value: sum });
            }
        }
        Ok(())
    })?;
    Ok(output)
}

/// Reads little-endian floats of any stored precision.
struct Reader<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(name: &str, tensor: &'a TensorBytes<'_>) -> Result<Self, ModelError> {
        match tensor.dtype {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
                Ok(Self { dtype: tensor.dtype, bytes: &tensor.bytes })
            }
            dtype => Err(ModelError::Unsupported(format!(
                "tensor `{name}` is stored as {dtype:?}: supported are F64, F32, F16 and BF16"
            ))),
        }
    }

    fn visit(&self, start: usize, count: usize, mut visit: impl FnMut(usize, f64)) {
        fn values<const N: usize>(bytes: &[u8], start: usize, count: usize) -> &[[u8; N]] {
            bytes[start * N..(start + count) * N].as_chunks::<N>().0
        }
        match self.dtype {
            Dtype::F64 => {
                let values = values::<8>(self.bytes, start, count).iter().enumerate();
                values.for_each(|(i, bytes)| visit(i, f64::from_le_bytes(*bytes)));
            }
            Dtype::F32 => {
                let values = values::<4>(self.bytes, start, count).iter().enumerate();
                values.for_each(|(i, bytes)| visit(i, f64::from(f32::from_le_bytes(*bytes))));
            }
            Dtype::F16 => {
                let values = values::<2>(self.bytes, start, count).iter().enumerate();
                values.for_each(|(i, bytes)| visit(i, f64::from(f16::from_le_bytes(*bytes).to_f32())));
            }
            _ => {
                let values = values::<2>(self.bytes, start, count).iter().enumerate();
                values.for_each(|(i, bytes)| visit(i, f64::from(bf16::from_le_bytes(*bytes).to_f32())));
            }
        }
    }
}

/// Rounds to `f32` such that a second rounding to a narrower format gives what one rounding would have given:
/// an inexact value goes to the neighbour whose last bit is 1.
///
/// Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using
/// rounding to odd".
fn round_to_odd(exact: f64) -> f32 {
    let nearest = exact as f32;
    if nearest.is_nan() || f64::from(nearest) == exact {
        return nearest;
    }
    let toward_zero =
        if f64::from(nearest).abs() > exact.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    f32::from_bits(toward_zero.to_bits() | 1)
}

/// What is odd about members that can be merged, or score together.
#[derive(Clone, Debug, PartialEq)]
pub struct Kinship {
    /// Index of the member that is compared with the first, or with an earlier one.
    pub member: usize,
    /// For example "has another pretrain than member 0: cosine 0.01 ...".
    pub finding: String,
}

/// Refuses members whose weights cannot be averaged: another function, other tensors, another vocabulary.
///
/// `members` are (directory, config, checkpoint) in order; each is compared with the first.
pub fn check_members(members: &[(&Path, &CheckpointConfig, &Checkpoint)]) -> Result<(), ModelError> {
    let (first_dir, first_config, first) = members[0];
    let first_value =
        serde_json::to_value(first_config).map_err(|error| ModelError::config(first_dir, error))?;
    let first_tokenizer = tokenizer_content(first_dir)?;
    for &(dir, config, checkpoint) in &members[1..] {
        let refuse = |problem: String| ModelError::CannotMerge {
            first: first_dir.to_owned(),
            member: dir.to_owned(),
            problem,
        };
        let value = serde_json::to_value(config).map_err(|error| ModelError::config(dir, error))?;
        if let Some(difference) = difference("", &first_value, &value) {
            return Err(refuse(difference));
        }
        for name in first.names() {
            let shape = |checkpoint: &Checkpoint| checkpoint.info(name).map(|info| info.shape.clone());
            match (shape(first), shape(checkpoint)) {
                (_, None) => return Err(refuse(format!("tensor `{name}` is missing in the second"))),
                (Some(one), Some(other)) if one != other => {
                    let problem =
                        format!("tensor `{name}` is {one:?} in the first and {other:?} in the second");
                    return Err(refuse(problem));
                }
                _ => {}
            }
        }
        if let Some(name) = checkpoint.names().find(|name| first.info(name).is_none()) {
            return Err(refuse(format!("tensor `{name}` is missing in the first")));
        }
        if first_tokenizer != tokenizer_content(dir)? {
            return Err(refuse("their tokenizers differ (tokenizer.json)".to_owned()));
        }
    }
    Ok(())
}

/// Path and values of the first field that differs.
fn difference(path: &str, first: &Value, second: &Value) -> Option<String> {
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("`{path}` is {a} in the first and {b} in the second")),
    }
}

/// The tokenizer, without the truncation and padding that we reset anyway.
fn tokenizer_content(dir: &Path) -> Result<Value, ModelError> {
    let path = dir.join("tokenizer.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null), // token ids only
        Err(source) => return Err(ModelError::read(&path, source)),
    };
    let mut content: Value = serde_json::from_str(&text).map_err(|error| ModelError::config(&path, error))?;
    if let Value::Object(fields) = &mut content {
        fields.remove("truncation");
        fields.remove("padding");
    }
    Ok(content)
}

/// Looks for members that are no independent fine-tunings of one pretrain: another pretrain, or a duplicate.
///
/// On 2-D tensors members of one pretrain have a cosine near 1 and a small relative distance; independent ones
/// have a cosine near 0. Members of other shapes are skipped.
pub fn kinship(checkpoints: &[&Checkpoint]) -> Result<Vec<Kinship>, ModelError> {
    let first = checkpoints[0];
    let matrices: Vec<&str> = first
        .names()
        .filter(|name| first.info(name).is_some_and(|tensor| tensor.shape.len() == 2 && tensor.shape[0] > 1))
        .collect();
    let step = matrices.len().div_ceil(COMPARED_TENSORS).max(1);
    let mut findings = Vec::new();
    for (member, checkpoint) in checkpoints.iter().enumerate().skip(1) {
        let mut twin = None;
        for (index, other) in checkpoints[..member].iter().enumerate() {
            if twin.is_none() && is_twin(checkpoint, other)? {
                twin = Some(index);
            }
        }
        if let Some(twin) = twin {
            findings.push(Kinship {
                member,
                finding: format!("is a duplicate of member {twin}: all tensors are equal"),
            });
            continue;
        }
        let (mut dot, mut norm_first, mut norm_other, mut distance) = (0.0, 0.0, 0.0, 0.0);
        for name in matrices.iter().step_by(step) {
            if checkpoint
                .info(name)
                .is_none_or(|info| Some(&info.shape) != first.info(name).map(|info| &info.shape))
            {
                continue;
            }
            let (a, b) = (first.read(name)?, checkpoint.read(name)?);
            let (Ok(readers_a), Ok(readers_b)) = (Reader::new(name, &a), Reader::new(name, &b)) else {
                continue;
            };
            let count: usize = a.shape.iter().product();
            let parts = (0..count.div_ceil(CHUNK)).into_par_iter().map(|chunk| {
                let (start, len) = (chunk * CHUNK, CHUNK.min(count - chunk * CHUNK));
                let (mut x, mut y) = ([0.0; CHUNK], [0.0; CHUNK]);
                readers_a.visit(start, len, |i, value| x[i] = value);
                readers_b.visit(start, len, |i, value| y[i] = value);
                let pairs = || x[..len].iter().zip(&y[..len]);
                [
                    pairs().map(|(x, y)| x * y).sum::<f64>(),
                    pairs().map(|(x, _)| x * x).sum(),
                    pairs().map(|(_, y)| y * y).sum(),
                    pairs().map(|(x, y)| (x - y) * (x - y)).sum(),
                ]
            });
            let [d, a, b, c] = parts.reduce(|| [0.0; 4], |a, b| std::array::from_fn(|i| a[i] + b[i]));
            dot += d;
            norm_first += a;
            norm_other += b;
            distance += c;
        }
        let cosine = dot / (norm_first * norm_other).sqrt();
        if cosine < SAME_PRETRAIN_COSINE {
            let relative = (distance / norm_first).sqrt();
            findings.push(Kinship {
                member,
                finding: format!(
                    "has another pretrain than member 0: the cosine of their weight matrices is {cosine:.3}, their \
                     relative distance {relative:.3} (members of one pretrain have a cosine near 1)"
                ),
            });
        }
    }
    Ok(findings)
}

/// Whether all tensors of the two are equal; reads until the first that is not.
fn is_twin(checkpoint: &Checkpoint, other: &Checkpoint) -> Result<bool, ModelError> {
    if !checkpoint.names().eq(other.names()) {
        return Ok(false);
    }
    for name in checkpoint.names() {
        if checkpoint.digest(name)? != other.digest(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just above the middle between two neighbours: by way of `f32` it would be rounded to the middle first, and
    /// then down to the even neighbour.
    #[test]
    fn one_rounding_is_not_two() {
        let exact = 1.0 + 2.0_f64.powi(-11) + 2.0_f64.powi(-40); // f16 has 10 bits after the point
        assert_eq!(f16::from_f32(exact as f32).to_f64(), 1.0, "the trap is not set");
        assert_eq!(f16::from_f32(round_to_odd(exact)).to_f64(), 1.0 + 2.0_f64.powi(-10));
        let exact = -(1.0 + 2.0_f64.powi(-8) + 2.0_f64.powi(-40)); // bf16 has 7
        assert_eq!(bf16::from_f32(exact as f32).to_f64(), -1.0, "the trap is not set");
        assert_eq!(bf16::from_f32(round_to_odd(exact)).to_f64(), -(1.0 + 2.0_f64.powi(-7)));
    }

    #[test]
    fn what_f32_holds_stays_as_it_is() {
        for value in [0.0, -0.0, 1.0, -3.25, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX), f64::INFINITY]
        {
            assert_eq!(f64::from(round_to_odd(value)).to_bits(), value.to_bits());
        }
        assert!(round_to_odd(f64::NAN).is_nan());
        assert_eq!(f16::from_f32(round_to_odd(1e300)), f16::INFINITY);
    }

    #[test]
    fn a_value_that_overflows_is_an_error_that_names_the_tensor() {
        let bytes = 70_000.0_f32.to_le_bytes();
        let tensor = TensorBytes { dtype: Dtype::F32, shape: &[1], bytes: bytes.to_vec() };
        let sources = [(tensor, 1.0)];
        assert_eq!(average("w", &sources, DType::F32).unwrap(), Averaged::F32(vec![70_000.0]));
        let error = average("w", &sources, DType::F16).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("70000"), "{error}");
    }

    #[test]
    fn kinship_tells_strangers_and_duplicates_from_family() {
        // 64 x 64 matrices of noise: a cosine of strangers is within a few hundredths of 0
        let matrix = |seed: u64, noise: f32| -> Vec<u8> {
            let hash = |i: u64| blake3::hash(&i.to_le_bytes()).as_bytes()[0] as f32 / 128.0 - 1.0;
            (0..4096)
                .flat_map(|i| (hash(seed * 4096 + i) + noise * hash(1 << 40 | i)).to_le_bytes())
                .collect()
        };
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![64, 64], &bytes).unwrap();
            std::fs::write(
                path.join("model.safetensors"),
                safetensors::serialize([("w", view)], None).unwrap(),
            )
            .unwrap();
            Checkpoint::open(&path).unwrap()
        };
        let members = [
            write("a", matrix(1, 0.0)),
            write("b", matrix(1, 0.05)),
            write("c", matrix(2, 0.0)),
            write("d", matrix(1, 0.05)),
        ];
        let findings = kinship(&members.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].member == 2 && findings[0].finding.contains("another pretrain"), "{findings:?}");
        assert!(
            findings[1].member == 3 && findings[1].finding.contains("duplicate of member 1"),
            "{findings:?}"
        );
    }
}
