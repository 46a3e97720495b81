//! Attention as the textbook has it, in `f64`, one query at a time; and packed batches to hold every form to it.

use proptest::prelude::*;

use super::AttentionSpec;
use super::Ops;
use super::Which;
use crate::model::batch::PackedBatch;
use crate::model::batch::Sequence;
use crate::model::merge::Averaged;

/// Numbers in -2..2, the same for a seed everywhere.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(draw).collect()
}

pub(super) fn specs() -> impl Strategy<Value = AttentionSpec> {
    let heads = (1usize..3, 1usize..4, prop::sample::select(vec![2usize, 4, 16]));
    let scores = (prop::option::of(1usize..12), prop::option::of(0.5f64..4.0));
    (heads, any::<bool>(), scores).prop_map(|((kv_heads, group, head_dim), causal, (window, softcap))| {
        let (heads, window) = (kv_heads * group, window.filter(|_| causal));
        AttentionSpec { heads, kv_heads, head_dim, causal, window, scale: 0.4, softcap }
    })
}

/// Of one sequence. `query` is row-major `[seq, heads, head_dim]`, key and value have `kv_heads`.
pub(super) fn attention([query, key, value]: [&[f32]; 3], spec: &AttentionSpec) -> Vec<f32> {
    let &AttentionSpec { heads, kv_heads, head_dim, .. } = spec;
    let seq = query.len() / (heads * head_dim);
    let at = |x: &[f32], heads: usize, i: usize, head: usize, d: usize| {
        f64::from(x[(i * heads + head) * head_dim + d])
    };
    let mut output = Vec::with_capacity(seq * heads * head_dim);
    for i in 0..seq {
        for head in 0..heads {
            let kv = head * kv_heads / heads;
            let sees =
                |&j: &usize| !spec.causal || (j <= i && spec.window.is_none_or(|window| i - j < window));
            let keys: Vec<usize> = (0..seq).filter(sees).collect();
            let score = |&j: &usize| {
                let dot: f64 =
                    (0..head_dim).map(|d| at(query, heads, i, head, d) * at(key, kv_heads, j, kv, d)).sum();
                let score = dot * spec.scale;
                spec.softcap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
            };
            let weights: Vec<f64> = keys.iter().map(score).collect();
            let total: f64 = weights.iter().sum();
            output.extend((0..head_dim).map(|d| {
                let sum: f64 =
                    keys.iter().zip(&weights).map(|(&j, w)| w * at(value, kv_heads, j, kv, d)).sum();
                (sum / total) as f32
            }));
        }
    }
    output
}

/// A batch, with common prefixes where a causal model may share them, and the rows that ask.
#[derive(Clone, Debug)]
pub(super) struct Case {
    spec: AttentionSpec,
    sequences: Vec<Sequence>,
    /// All rows, or these modulo their number.
    asking: Option<Vec<usize>>,
    seed: u64,
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let pieces: [&[u32]; 5] = [&[1], &[2, 2], &[1, 2, 3], &[4; 9], &[5; 20]];
    let sequence = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..6).prop_map(|pieces| {
        let token_ids = pieces.concat();
        Sequence { type_ids: vec![0; token_ids.len()], token_ids }
    });
    let asking = prop::option::of(prop::collection::vec(0usize..1000, 1..8));
    (specs(), prop::collection::vec(sequence, 1..8), asking, any::<u64>())
        .prop_map(|(spec, sequences, asking, seed)| Case { spec, sequences, asking, seed })
}

impl Case {
    /// Whether a form's attention is the textbook's, within `tolerance`.
    pub(super) fn check<O: Ops>(&self, ops: &O, tolerance: f32) -> Result<(), TestCaseError> {
        let batch = match self.spec.causal {
            true => PackedBatch::pack_shared(&self.sequences, 1),
            false => PackedBatch::pack(&self.sequences),
        };
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let rows = batch.num_rows();
        let widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim];
        let seeds = [self.seed, self.seed ^ 1, self.seed ^ 2];
        let qkv: [Vec<f32>; 3] = std::array::from_fn(|i| numbers(rows * widths[i], seeds[i]));
        let [q, k, v] = std::array::from_fn(|i| blocks(ops, &qkv[i], widths[i]));

        let packing = ops.packing(&batch, None).unwrap();
        let asking: Vec<usize> = match &self.asking {
            None => (0..rows).collect(),
            Some(asking) => asking.iter().map(|row| row % rows).collect(),
        };
        let attended = match &self.asking {
            None => ops.attention(&q, Which::Run(0..rows), &k, &v, &packing, &self.spec),
            Some(_) => {
                let q = ops.gather(&q, &asking).unwrap();
                ops.attention(&q, Which::Listed(&asking), &k, &v, &packing, &self.spec)
            }
        };
        let attended = ops.to_vec(&attended.unwrap()).unwrap();
        prop_assert_eq!(attended.len(), asking.len() * widths[0]);

        for sequence in 0..batch.len() {
            let path: Vec<usize> = batch.runs(sequence).into_iter().flatten().collect();
            let of_path = |i: usize| -> Vec<f32> {
                path.iter().flat_map(|row| &qkv[i][row * widths[i]..][..widths[i]]).copied().collect()
            };
            let expected = attention([&of_path(0), &of_path(1), &of_path(2)], &self.spec);
            for (row, expected) in path.iter().zip(expected.chunks(widths[0])) {
                let ours = asking.iter().zip(attended.chunks(widths[0])).filter(|(asks, _)| *asks == row);
                for (_, ours) in ours {
                    for (ours, expected) in ours.iter().zip(expected) {
                        prop_assert!((ours - expected).abs() < tolerance, "row {row}: {ours}, {expected}");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Values as rows in blocks: an embedding whose ids are its rows.
fn blocks<O: Ops>(ops: &O, values: &[f32], width: usize) -> Vec<O::Rows> {
    let rows = values.len() / width;
    let table = ops.load_table(Averaged::F32(values.to_vec()), rows, width).unwrap();
    let ids: Vec<u32> = (0..rows as u32).collect();
    let embed = |block| ops.embed(&[(&table, &ids[block])], None).unwrap();
    ops.blocks(rows).into_iter().map(embed).collect()
}
