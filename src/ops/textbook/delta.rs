//! The gated delta rule in `f64`, a sequence at a time, as it is written down: what all forms are held to.

use std::sync::Arc;

use proptest::prelude::*;

use super::blocks;
use super::numbers;
use super::sequence;
use crate::ops::Activation;
use crate::ops::Delta;
use crate::ops::DeltaSpec;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::inputs::Inputs;

/// A layer, and sequences of which some begin alike.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Case {
    spec: DeltaSpec,
    sequences: Vec<Sequence>,
    seed: u64,
}

pub(in crate::ops) fn cases() -> impl Strategy<Value = Case> {
    let pieces: [&[u32]; 5] = [&[1], &[2, 2], &[1, 2, 3], &[4; 30], &[5; 70]];
    let sequences = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..6)
        .prop_map(|pieces| sequence(pieces.concat()));
    let heads = (1usize..3, 1usize..4);
    let dims = (prop::sample::select(vec![4usize, 6, 17, 32]), prop::sample::select(vec![1usize, 5, 16, 33]));
    let activations = vec![Activation::Silu, Activation::Silu, Activation::Tanh, Activation::GeluTanh];
    let convolution = (1usize..6, prop::sample::select(activations));
    (heads, dims, convolution, prop::collection::vec(sequences, 1..6), any::<u64>()).prop_map(
        |((key_heads, group), (key_dim, value_dim), (kernel, activation), sequences, seed)| {
            let value_heads = key_heads * group;
            let spec = DeltaSpec { key_heads, value_heads, key_dim, value_dim, kernel, activation };
            Case { spec, sequences, seed }
        },
    )
}

impl Case {
    /// Columns of queries, keys, values, and of the two gates.
    fn widths(&self) -> [usize; 5] {
        let [queries, keys, values] = self.spec.widths();
        [queries, keys, values, self.spec.value_heads, self.spec.value_heads]
    }

    /// One of these inputs of a token at a position: of what sequences have in common the same.
    fn input(&self, which: usize, token: u32, position: usize) -> Vec<f32> {
        let seed = self.seed ^ (u64::from(token) << 40) ^ ((position as u64) << 8) ^ which as u64;
        numbers(self.widths()[which], seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Convolution, rates and offsets.
    fn parameters(&self) -> [Vec<f32>; 3] {
        let columns: usize = self.spec.widths().iter().sum();
        let [convolution, rates, offsets] =
            [(columns * self.spec.kernel, 11), (self.spec.value_heads, 12), (self.spec.value_heads, 13)]
                .map(|(count, seed)| numbers(count, self.seed ^ seed));
        [convolution, rates.into_iter().map(|rate| rate - 1.0).collect(), offsets]
    }

    /// What each token of a sequence reads, `[tokens][value_heads · value_dim]`.
    fn expected(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let DeltaSpec { key_heads, value_heads, key_dim, value_dim, kernel, activation } = self.spec;
        let [convolution, rates, offsets] = self.parameters();
        let inputs = |which: usize| -> Vec<Vec<f64>> {
            let of = |(position, &token): (usize, &u32)| {
                self.input(which, token, position).into_iter().map(f64::from).collect()
            };
            tokens.iter().enumerate().map(of).collect()
        };
        let widths = self.spec.widths();
        let mixed = |part: usize| -> Vec<Vec<f64>> {
            let (x, first) = (inputs(part), widths[..part].iter().sum::<usize>());
            let at = |position: usize, column: usize| {
                let terms = (0..kernel).filter_map(|tap| {
                    let row = (position + tap + 1).checked_sub(kernel)?;
                    Some(f64::from(convolution[(first + column) * kernel + tap]) * x[row][column])
                });
                activate(activation, terms.sum())
            };
            (0..x.len()).map(|position| (0..widths[part]).map(|c| at(position, c)).collect()).collect()
        };
        let (queries, keys, values) = (mixed(0), mixed(1), mixed(2));
        let (learned, forgotten) = (inputs(3), inputs(4));
        let unit = |x: &[f64]| -> Vec<f64> {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.iter().map(|x| x / length).collect()
        };
        let mut read = vec![vec![0.0; value_heads * value_dim]; tokens.len()];
        for head in 0..value_heads {
            let of_key = head * key_heads / value_heads * key_dim..;
            let mut memory = vec![vec![0.0; value_dim]; key_dim];
            for position in 0..tokens.len() {
                let [q, k] = [&queries, &keys].map(|x| unit(&x[position][of_key.clone()][..key_dim]));
                let v = &values[position][head * value_dim..][..value_dim];
                let softplus = (forgotten[position][head] + f64::from(offsets[head])).exp().ln_1p();
                let keep = (-f64::from(rates[head]).exp() * softplus).exp();
                let learn = 1.0 / (1.0 + (-learned[position][head]).exp());
                memory.iter_mut().flatten().for_each(|x| *x *= keep);
                let times = |memory: &[Vec<f64>], by: &[f64], d: usize| -> f64 {
                    memory.iter().zip(by).map(|(row, by)| row[d] * by).sum()
                };
                let known: Vec<f64> = (0..value_dim).map(|d| times(&memory, &k, d)).collect();
                for (row, k) in memory.iter_mut().zip(&k) {
                    row.iter_mut().enumerate().for_each(|(d, x)| *x += k * learn * (v[d] - known[d]));
                }
                for d in 0..value_dim {
                    let scale = (key_dim as f64).powf(-0.5);
                    read[position][head * value_dim + d] = times(&memory, &q, d) * scale;
                }
            }
        }
        read
    }

    /// What a form makes of a batch, `[rows][value_heads · value_dim]`.
    fn made<O: Ops>(&self, ops: &O, batch: &PackedBatch) -> Vec<Vec<f32>> {
        let all = |which: usize| {
            let mut rows = Vec::new();
            for segment in batch.segments() {
                for row in segment.rows.clone() {
                    rows.extend(self.input(which, batch.token_ids()[row], segment.position(row)));
                }
            }
            blocks(ops, &rows, self.widths()[which])
        };
        let [convolution, rates, offsets] = self
            .parameters()
            .map(|values| Arc::new(ops.load_vector(&["vector".to_owned()], values, 0.0).unwrap()));
        let layer = Delta { spec: self.spec, convolution, rates, offsets };
        let inputs = Inputs::of(batch);
        let of_form = ops.batch(&inputs).unwrap();
        let made =
            ops.run(|| ops.delta([all(0), all(1), all(2)], [all(3), all(4)], &layer, &of_form).unwrap());
        let values = ops.read(&[made]).unwrap().concat();
        values.chunks(self.widths()[2]).map(<[f32]>::to_vec).collect()
    }

    /// Whether a form's rule is the textbook's, and, of one that `is_exact`, whether each token reads the same bits whatever it shares.
    pub(in crate::ops) fn check<O: Ops>(&self, ops: &O, is_exact: bool) -> Result<(), TestCaseError> {
        /// Heads of length one, and values up to 2 and their weights: what is not the textbook is off by far more.
        const ATOL: f64 = 5e-4;
        let shared = PackedBatch::pack_shared(&self.sequences, 1);
        let of_all = self.made(ops, &shared);
        prop_assert_eq!(of_all.len(), shared.num_rows());
        for (index, sequence) in self.sequences.iter().enumerate() {
            let expected = self.expected(&sequence.token_ids);
            let alone = self.made(ops, &PackedBatch::pack([sequence]));
            for (position, expected) in expected.iter().enumerate() {
                let ours = &of_all[shared.row_of(index, position)];
                let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert!(!is_exact || bits(ours) == bits(&alone[position]), "{}, {position}", ops.name());
                for (ours, expected) in ours.iter().zip(expected) {
                    let is_close = (f64::from(*ours) - expected).abs() < ATOL;
                    prop_assert!(is_close, "{}, token {position}: {ours}, not {expected}", ops.name());
                }
            }
        }
        Ok(())
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::GeluTanh => {
            let inside = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inside.tanh())
        }
        _ => unreachable!("not among the cases"),
    }
}
