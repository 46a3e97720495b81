//! Weight averaging: members → one set of weights.
//!
//! Sums run in `f64` and are rounded *once* to the precision that is asked for. Rounding from `f64` to `f16` or
//! `bf16` by way of `f32` would round twice, and differ from a reference in the last place; the `half` crate
//! does so on machines with F16C. `round_to_odd` makes the first step harmless.
//!
//! Source of the method: Ramé et al. 2024, WARM (arXiv:2401.12187).

use std::mem::take;
use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use candle_core::Device;
use candle_core::Tensor;
use half::bf16;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use crate::disk;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::variant::text_dir;
use crate::model::weights::Checkpoint;
use crate::model::weights::Stored;
use crate::model::weights::TensorBytes;
use crate::text::SampleTokenizer;

/// Elements that one thread sums at a time: both its sums and its inputs stay in the first-level caches.
const CHUNK: usize = 2048;

/// Members whose 2-D tensors point in directions less alike than this did not start from one pretrain.
/// Fine-tuning leaves the cosine above 0.9; independent weights have one near 0.
const SAME_PRETRAIN_COSINE: f64 = 0.5;

/// At most this many 2-D tensors are compared to tell whether members share a pretrain.
const COMPARED_TENSORS: usize = 16;

/// And this many values in the middle of each: noise moves a cosine by the root of their number, 0.001 at most
/// for one large tensor.
const COMPARED_VALUES: usize = 1 << 20;

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
    fn widen(&self, start: usize, to: &mut [f64]) {
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

/// `Σ coefficient · tensor` in `f64`, in the order of `sources`, rounded once to `dtype`.
///
/// One source with coefficient 1 is just converted; where it is stored in `dtype` it is not even copied. All sources
/// have one shape (checked by the caller). `room` gives memory, of a precision and so many bytes, whatever it held. Fails
/// if a value is not finite, before or after.
pub fn average(
    name: &str,
    sources: &mut [(TensorBytes<'_>, f64)],
    dtype: DType,
    room: impl FnOnce(Dtype, usize) -> Stored,
) -> Result<Averaged, ModelError> {
    if let [(tensor, 1.0)] = sources {
        match (&mut tensor.values, dtype) {
            (Stored::F32(values), DType::F32) => return checked(name, take(values)).map(Averaged::F32),
            (Stored::F16(values), DType::F16) => return checked(name, take(values)).map(Averaged::F16),
            (Stored::Bf16(values), DType::BF16) => return checked(name, take(values)).map(Averaged::Bf16),
            _ => {}
        }
    }
    for (tensor, _) in &*sources {
        if let Stored::Other(_) = tensor.values {
            return Err(ModelError::Unsupported(format!(
                "tensor `{name}` is stored as {:?}: supported are F64, F32, F16 and BF16",
                tensor.dtype
            )));
        }
    }
    let (stored, size) = match dtype {
        DType::F32 => (Dtype::F32, 4),
        DType::F16 => (Dtype::F16, 2),
        DType::BF16 => (Dtype::BF16, 2),
        other => return Err(ModelError::Unsupported(format!("precision {other:?}"))),
    };
    match room(stored, sources[0].0.count() * size) {
        Stored::F32(room) => round_sums(name, sources, room).map(Averaged::F32),
        Stored::F16(room) => round_sums(name, sources, room).map(Averaged::F16),
        Stored::Bf16(room) => round_sums(name, sources, room).map(Averaged::Bf16),
        Stored::F64(_) | Stored::Other(_) => unreachable!("room is of the type that was asked for"),
    }
}

/// What the rounding of an average moved: the sum of the squared differences to the exact sums. Zero where
/// [`average`] took the values as they were.
pub fn squared_rounding_error(sources: &[(TensorBytes<'_>, f64)], rounded: &Averaged) -> f64 {
    let count = rounded.count();
    if sources[0].0.count() != count {
        return 0.0;
    }
    let chunks = (0..count.div_ceil(CHUNK)).into_par_iter().map(|chunk| {
        let start = chunk * CHUNK;
        let length = CHUNK.min(count - start);
        let (mut sums, mut values) = ([0.0; CHUNK], [0.0; CHUNK]);
        match sources {
            [(tensor, 1.0)] => tensor.values.widen(start, &mut sums[..length]),
            _ => {
                for (tensor, coefficient) in sources {
                    tensor.values.widen(start, &mut values[..length]);
                    sums.iter_mut().zip(&values).for_each(|(sum, x)| *sum += coefficient * x);
                }
            }
        }
        rounded.widen(start, &mut values[..length]);
        sums[..length].iter().zip(&values).map(|(exact, x)| (exact - x) * (exact - x)).sum::<f64>()
    });
    chunks.collect::<Vec<f64>>().iter().sum() // in order: the same with any number of threads
}

/// What weights are kept as. Written for slices without branches, so that compilers make vectors of it.
trait Kept: Copy + Send + Sync {
    /// One rounding.
    fn from_f64s(exact: &[f64], to: &mut [Self]);
    /// One rounding.
    fn from_f32s(exact: &[f32], to: &mut [Self]);
    fn is_finite(self) -> bool;
    fn to_f64(self) -> f64;

    fn are_finite(values: &[Self]) -> bool {
        values.iter().fold(true, |all, value| all & value.is_finite())
    }
}

impl Kept for f32 {
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        to.iter_mut().zip(exact).for_each(|(to, &x)| *to = x as f32);
    }
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.copy_from_slice(exact);
    }
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Kept for f16 {
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        let mut odd = [0.0; CHUNK];
        all_to_odd(exact, &mut odd);
        Self::from_f32s(&odd[..exact.len()], to);
    }
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(exact);
    }
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Kept for bf16 {
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        let mut odd = [0.0; CHUNK];
        all_to_odd(exact, &mut odd);
        Self::from_f32s(&odd[..exact.len()], to);
    }
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.iter_mut().zip(exact).for_each(|(to, &x)| *to = to_bf16(x));
    }
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

/// As `bf16::from_f32`, whose branches cost ten times as much: to the nearest, ties to even, and a NaN stays one.
pub(in crate::model) fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

/// As [`bf16::to_f32`], of a number.
pub(in crate::model) fn from_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

fn not_finite(name: &str, value: f64) -> ModelError {
    ModelError::NotFiniteWeight { name: name.to_owned(), value }
}

/// The same values, all of them finite.
fn checked<T: Kept>(name: &str, values: Vec<T>) -> Result<Vec<T>, ModelError> {
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
) -> Result<Vec<T>, ModelError> {
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

/// Some values, exactly.
enum Run<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
}

impl Stored {
    /// At most [`CHUNK`] values; `wide` is room for them.
    fn run<'a>(&'a self, range: Range<usize>, wide: &'a mut [f32; CHUNK]) -> Run<'a> {
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
    pub(in crate::model) fn widen(&self, start: usize, to: &mut [f64]) {
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
    pub(in crate::model) fn widened(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.count()];
        self.widen(0, &mut values);
        values
    }

    /// At most [`CHUNK`] values.
    fn to_f64s(&self, range: Range<usize>) -> Vec<f64> {
        match self.run(range, &mut [0.0; CHUNK]) {
            Run::F64(values) => values.to_vec(),
            Run::F32(values) => values.iter().map(|&x| x.into()).collect(),
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

/// [`round_to_odd`] of each; without branches, where no result is subnormal.
///
/// The bits that `f32` has no room for are cut off, and if there were any, adding all ones to them carries into the
/// last bit that stays. What is above the largest `f32` becomes infinite or that: both overflow in 16 bits.
fn all_to_odd(exact: &[f64], odd: &mut [f32]) {
    const CUT: u64 = (1 << (52 - 23)) - 1;
    let is_subnormal = |x: f64| (x.abs() < f64::from(f32::MIN_POSITIVE)) & (x != 0.0);
    if exact.iter().fold(false, |any, &x| any | is_subnormal(x)) {
        odd.iter_mut().zip(exact).for_each(|(odd, &x)| *odd = round_to_odd(x));
        return;
    }
    for (odd, x) in odd.iter_mut().zip(exact) {
        let bits = x.to_bits();
        *odd = f64::from_bits((bits | ((bits & CUT) + CUT)) & !CUT) as f32;
    }
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
    let first_tokenizer = tokenizer_content(text_dir(first))?;
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
        if first_tokenizer != tokenizer_content(text_dir(checkpoint))? {
            return Err(refuse("their tokenizers differ (tokenizer.json)".to_owned()));
        }
    }
    Ok(())
}

/// Refuses a member that makes other tokens of a text than the first: `tokenizer.json` is not all that decides. Names alone
/// (which token is called `eos_token`) are the template's affair.
pub fn check_tokens(
    (first, first_tokenizer): (&Path, &SampleTokenizer),
    (member, tokenizer): (&Path, &SampleTokenizer),
) -> Result<(), ModelError> {
    let mut identities = [first_tokenizer, tokenizer].map(|tokenizer| tokenizer.identity().clone());
    for identity in &mut identities {
        identity.as_object_mut().map(|fields| fields.remove("special_tokens"));
    }
    match difference("", &identities[0], &identities[1]) {
        None => Ok(()),
        Some(difference) => Err(ModelError::CannotMerge {
            first: first.to_owned(),
            member: member.to_owned(),
            problem: format!(
                "their tokenizers differ (tokenizer_config.json, special_tokens_map.json or added_tokens.json): {difference}"
            ),
        }),
    }
}

/// Whether two checkpoints keep their tensors in the same precisions.
pub fn are_stored_alike(first: &Checkpoint, other: &Checkpoint) -> bool {
    let dtype = |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|info| info.dtype);
    first.names().all(|name| dtype(first, name) == dtype(other, name))
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
        (Value::Array(a), Value::Array(b)) => (0..a.len().max(b.len())).find_map(|index| {
            let [a, b] = [a, b].map(|list| list.get(index).unwrap_or(&Value::Null));
            difference(&format!("{path}[{index}]"), a, b)
        }),
        (a, b) if a == b => None,
        (a, b) => Some(format!("`{path}` is {a} in the first and {b} in the second")),
    }
}

/// The tokenizer, without the truncation and padding that we reset anyway.
fn tokenizer_content(dir: &Path) -> Result<Value, ModelError> {
    let path = dir.join("tokenizer.json");
    let read = disk::read_if_there(&path, disk::VOCABULARY_BYTES);
    let Some(text) = read.map_err(|source| ModelError::read(&path, source))? else {
        return Ok(Value::Null); // token ids only
    };
    let mut content: Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))?;
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
            let (a, b) = (first.sample(name, COMPARED_VALUES)?, checkpoint.sample(name, COMPARED_VALUES)?);
            if matches!(a.values, Stored::Other(_)) || matches!(b.values, Stored::Other(_)) {
                continue;
            }
            let count = a.count();
            let parts = (0..count.div_ceil(CHUNK)).into_par_iter().map(|chunk| {
                let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(count);
                let (x, y) = (a.values.to_f64s(range.clone()), b.values.to_f64s(range));
                let pairs = || x.iter().zip(&y);
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

/// Whether all tensors of the two are equal; reads until the first that is not, small ones first.
fn is_twin(checkpoint: &Checkpoint, other: &Checkpoint) -> Result<bool, ModelError> {
    if !checkpoint.names().eq(other.names()) {
        return Ok(false);
    }
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_by_key(|name| checkpoint.info(name).map(|info| info.data_offsets.1 - info.data_offsets.0));
    for name in names {
        if checkpoint.digest(name)? != other.digest(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With room that held something.
    fn average(
        name: &str,
        mut sources: Vec<(TensorBytes<'_>, f64)>,
        dtype: DType,
    ) -> Result<Averaged, ModelError> {
        super::average(name, &mut sources, dtype, |dtype, bytes| match dtype {
            Dtype::F32 => Stored::F32(vec![f32::NAN; bytes / 4]),
            Dtype::F16 => Stored::F16(vec![f16::NAN; bytes / 2]),
            _ => Stored::Bf16(vec![bf16::NAN; bytes / 2]),
        })
    }

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
    fn rounding_without_branches_is_the_same() {
        for exponent in -160..130 {
            for i in 0..200_u64 {
                let hash = blake3::hash(&i.to_le_bytes());
                let bits = u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
                // from all 52 bits to few, around halves and quarters of what f32 and bf16 tell apart
                let fraction = bits >> 12 & !((1 << (i % 52)) - 1);
                let x = (1.0 + fraction as f64 / 2.0_f64.powi(52)) * 2.0_f64.powi(exponent);
                let x = if bits & 1 == 0 { x } else { -x };
                let mut odd = [0.0];
                all_to_odd(&[x], &mut odd);
                let expected = round_to_odd(x);
                assert_eq!(bf16::from_f32(odd[0]), bf16::from_f32(expected), "{x:e}");
                assert_eq!(f16::from_f32(odd[0]), f16::from_f32(expected), "{x:e}");
                assert_eq!(to_bf16(expected), bf16::from_f32(expected), "{x:e}");
                assert_eq!(to_bf16(x as f32).to_bits(), bf16::from_f32(x as f32).to_bits(), "{x:e}");
            }
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            assert_eq!(to_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
            assert_eq!(from_bf16(to_bf16(x)).to_bits(), to_bf16(x).to_f32().to_bits(), "{x}");
        }
        assert!(to_bf16(f32::NAN).is_nan() && to_bf16(f32::from_bits(0x7fff_ffff)).is_nan());
    }

    #[test]
    fn a_value_that_overflows_is_an_error_that_names_the_tensor() {
        let tensor = TensorBytes { dtype: Dtype::F32, shape: &[1], values: Stored::F32(vec![70_000.0]) };
        let sources = vec![(tensor, 1.0)];
        assert_eq!(average("w", sources.clone(), DType::F32).unwrap(), Averaged::F32(vec![70_000.0]));
        let error = average("w", sources, DType::F16).unwrap_err().to_string();
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
            Dtype::F64 => Stored::F64(values.to_vec()),
            Dtype::F32 => Stored::F32(values.iter().map(|&x| x as f32).collect()),
            Dtype::F16 => Stored::F16(values.iter().map(|&x| f16::from_f64(x)).collect()),
            _ => Stored::Bf16(values.iter().map(|&x| bf16::from_f64(x)).collect()),
        };
        let exact = |stored: &Stored, i: usize| match stored {
            Stored::F64(values) => values[i],
            Stored::F32(values) => values[i].into(),
            Stored::F16(values) => values[i].to_f64(),
            Stored::Bf16(values) => values[i].to_f64(),
            Stored::Other(_) => unreachable!(),
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
                let Averaged::F32(average32) = average("w", sources.clone(), DType::F32).unwrap() else {
                    panic!()
                };
                let Averaged::F16(average16) = average("w", sources.clone(), DType::F16).unwrap() else {
                    panic!()
                };
                let Averaged::Bf16(brain16) = average("w", sources, DType::BF16).unwrap() else { panic!() };
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
                    Stored::F64(values.iter().map(|&x| x.into()).collect()),
                    Stored::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
                    Stored::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
                    Stored::F32(values),
                ];
                for values in stored {
                    for dtype in [DType::F32, DType::F16, DType::BF16] {
                        let tensor = TensorBytes { dtype: Dtype::F32, shape: &[], values: values.clone() };
                        for sources in
                            [vec![(tensor.clone(), 1.0)], vec![(tensor.clone(), 0.5), (tensor, 0.5)]]
                        {
                            let error = average("w", sources, dtype).unwrap_err();
                            let ModelError::NotFiniteWeight { name, value } = error else {
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
