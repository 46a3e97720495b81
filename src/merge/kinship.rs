//! Whether members are independent fine-tunings of one pretrain.

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::values::CHUNK;

/// Members whose 2-D tensors point in directions less alike than this did not start from one pretrain.
/// Fine-tuning leaves the cosine above 0.9; independent weights have one near 0.
const SAME_PRETRAIN_COSINE: f64 = 0.5;

/// At most this many 2-D tensors are compared to tell whether members share a pretrain.
const COMPARED_TENSORS: usize = 16;

/// And this many values in the middle of each: noise moves a cosine by the root of their number, 0.001 at most
/// for one large tensor.
const COMPARED_VALUES: usize = 1 << 20;

/// What is odd about members that can be merged, or score together.
#[derive(Clone, Debug, PartialEq)]
pub struct Kinship {
    /// Index of the member that is compared with the first, or with an earlier one.
    pub member: usize,
    /// For example "has another pretrain than member 0: cosine 0.01 ...".
    pub finding: String,
}

/// Looks for members that are no independent fine-tunings of one pretrain: another pretrain, or a duplicate.
///
/// On 2-D tensors members of one pretrain have a cosine near 1 and a small relative distance; independent ones
/// have a cosine near 0. Members of other shapes are skipped.
pub fn kinship(checkpoints: &[&Checkpoint]) -> Result<Vec<Kinship>, CheckpointError> {
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
            if a.values.format().is_none() || b.values.format().is_none() {
                continue;
            }
            let count = a.count();
            let parts = (0..count.div_ceil(CHUNK)).into_par_iter().map(|chunk| {
                let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(count);
                let (mut x, mut y) = ([0.0; CHUNK], [0.0; CHUNK]);
                a.values.to_f64s(range.clone(), &mut x[..range.len()]);
                b.values.to_f64s(range.clone(), &mut y[..range.len()]);
                let pairs = || x.iter().zip(&y).take(range.len());
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
fn is_twin(checkpoint: &Checkpoint, other: &Checkpoint) -> Result<bool, CheckpointError> {
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
    use safetensors::Dtype;

    use super::*;

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
