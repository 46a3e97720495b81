//! A small transformer made of every operation, in any form.

use std::borrow::Cow;
use std::ops::Range;

use super::Activation;
use super::AttentionSpec;
use super::Ops;
use super::Precision;
use super::textbook;
use super::textbook::Kind;
use super::textbook::numbers;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::error::Result;
use crate::ops::inputs::AngleTable;
use crate::ops::inputs::Angles;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::ops::source::Source;
use crate::values::Format;
use crate::values::Values;

/// A linear layer as a checkpoint has it.
pub(super) struct Layer {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) input: usize,
    pub(super) output: usize,
}

impl Layer {
    /// Sums of products with it are about as large as numbers in -2..2.
    pub(super) fn new(input: usize, output: usize, has_bias: bool, seed: u64) -> Self {
        let scale = 1.0 / (input as f32).sqrt();
        let weight = numbers(output * input, seed).iter().map(|x| x * scale).collect();
        Self { weight, bias: has_bias.then(|| numbers(output, seed ^ 0xb)), input, output }
    }

    pub(super) fn with_source<R>(&self, format: Format, f: impl FnOnce(LinearSource<'_>) -> R) -> R {
        let kept = |values: &Vec<f32>| Values::rounded(format, values);
        let (weight, bias) = (kept(&self.weight), self.bias.as_ref().map(kept));
        let (output, input) = (self.output, self.input);
        let source = |values| Source { name: "layer", values, rows: RowMap::all(output) };
        f(LinearSource { weight: source(&weight), bias: bias.as_ref().map(source), output, input })
    }
}

const WIDTH: usize = 40;
const HEAD_DIM: usize = 12;
const VOCAB: u32 = 10;
/// Embedded as NaN.
const NAN_TOKEN: u32 = 8;
/// Embedded as minus infinity.
const INFINITE_TOKEN: u32 = 9;
/// Whether attention is causal, its window, and what distances do.
pub(super) const KINDS: [Attention; 9] = [
    (true, None, Kind::Ignored),
    (true, Some(7), Kind::Ignored),
    (false, None, Kind::Ignored),
    (false, Some(5), Kind::Slopes),
    (true, None, Kind::Slopes),
    (true, Some(30), Kind::Clipped),
    (false, None, Kind::Shared),
    (true, None, Kind::Biases),
    (true, None, Kind::RoundedSlopes),
];

pub(super) type Attention = (bool, Option<usize>, Kind);

/// Two layers with the same weights, a norm before attention and one before the gated MLP, and a dense head.
pub(super) struct Tiny<O: Ops> {
    pub(super) ops: O,
    pub(super) spec: AttentionSpec,
    by_distance: Option<O::ByDistance>,
    table: O::Table,
    norm: [O::Vector; 3],
    of_head: O::Vector,
    project: [O::Linear; 3],
    output: O::Linear,
    gated: O::Gated,
    down: O::Linear,
    dense: O::Linear,
}

impl<O: Ops> Tiny<O> {
    pub(super) fn new(ops: O, (causal, window, distance): Attention) -> Self {
        let format = ops.format(Precision::Working);
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: HEAD_DIM,
            value_dim: HEAD_DIM,
            causal,
            window,
            scale: 0.3,
            distance: distance.of(4),
            softcap: window.map(|_| 3.0),
        };
        let mut values = numbers(VOCAB as usize * WIDTH, 1);
        values[NAN_TOKEN as usize * WIDTH..][..WIDTH].fill(f32::NAN);
        values[INFINITE_TOKEN as usize * WIDTH..][..WIDTH].fill(f32::NEG_INFINITY);
        let linear = |input: usize, output: usize, has_bias: bool, seed: u64| {
            let load = |source: LinearSource<'_>| ops.load_linear(source, Precision::Working).unwrap();
            Layer::new(input, output, has_bias, seed).with_source(format, load)
        };
        let (wide, narrow) = (spec.heads * HEAD_DIM, spec.kv_heads * HEAD_DIM);
        let [gate, up] = [2, 3].map(|seed| Layer::new(WIDTH, 50, false, seed));
        let gated =
            gate.with_source(format, |gate| up.with_source(format, |up| ops.load_gated(gate, up).unwrap()));
        let head = |source: LinearSource<'_>| ops.load_linear(source, Precision::F32).unwrap();
        let tables = textbook::tables(&spec, 14 * 3);
        Self {
            by_distance: ops.run(|| textbook::by_distance(&ops, tables.as_ref(), &spec)),
            spec,
            table: ops.load_table("table", Values::rounded(format, &values), VOCAB as usize, WIDTH).unwrap(),
            norm: [4, 5, 6].map(|seed| ops.load_vector(&[], numbers(WIDTH, seed), 0.0).unwrap()),
            of_head: ops.load_vector(&[], numbers(HEAD_DIM, 7), 0.0).unwrap(),
            project: [(wide, 8), (narrow, 9), (narrow, 10)]
                .map(|(output, seed)| linear(WIDTH, output, true, seed)),
            output: linear(wide, WIDTH, false, 11),
            gated,
            down: linear(50, WIDTH, true, 12),
            dense: Layer::new(WIDTH, 3, true, 13).with_source(Format::F32, head),
            ops,
        }
    }

    /// The bits of each sequence's rewards, in batches of their own.
    pub(super) fn alone(&self, sequences: &[Sequence]) -> Vec<Vec<u32>> {
        let alone = |one| bits_of(&self.rewards(&PackedBatch::pack([one]))).swap_remove(0);
        sequences.iter().map(alone).collect()
    }

    /// Whether NaN and infinity reach the rewards of the sequences that they are in, and change no bit of the others'.
    pub(super) fn check_what_is_not_finite(&self) {
        let common: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3];
        let name = format!("{} {:?}", self.ops.name(), self.spec);
        for broken in [NAN_TOKEN, INFINITE_TOKEN] {
            let ends: [&[u32]; 4] = [&[3, 3], &[4, broken, 4], &[4, 5, 6], &[broken]];
            let sequences = ends.map(|end| sequence(&[common, end].concat()));
            let alone = self.alone(&sequences);
            let mut batches = vec![PackedBatch::pack(&sequences)];
            if self.spec.causal {
                batches.push(PackedBatch::pack_shared(&sequences, 1));
            }
            for batch in batches {
                for (index, (ours, alone)) in self.rewards(&batch).iter().zip(&alone).enumerate() {
                    if sequences[index].token_ids.contains(&broken) {
                        assert!(ours.iter().all(|x| !x.is_finite()), "{name}: {ours:?}");
                    } else {
                        assert!(ours.iter().all(|x| x.is_finite()), "{name}: {ours:?}");
                        assert_eq!(&bits(ours), alone, "{name}: sequence {index}");
                    }
                }
            }
        }
    }

    /// Of each sequence, from its last token and from its mean: `[sequences][2 · 3]`.
    pub(super) fn rewards(&self, batch: &PackedBatch) -> Vec<Vec<f32>> {
        self.ops.run(|| self.forward(&self.ops, batch)).unwrap()
    }

    /// The same in a form that its weights were laid out for.
    pub(super) fn forward(&self, ops: &O, batch: &PackedBatch) -> Result<Vec<Vec<f32>>> {
        let rows = batch.num_rows();
        let pairs = HEAD_DIM / 2;
        let [cos, sin] = [0, 1].map(|_| vec![0.0; rows * pairs]);
        let mut angles = AngleTable { cos, sin, pairs };
        for segment in batch.segments() {
            for (position, row) in (segment.first_position..).zip(segment.rows.clone()) {
                for i in 0..pairs {
                    let angle = position as f32 * 0.5_f32.powi(i as i32);
                    (angles.cos[row * pairs + i], angles.sin[row * pairs + i]) = (angle.cos(), angle.sin());
                }
            }
        }
        let last = (0..batch.len()).map(|sequence| batch.row_of(sequence, batch.length(sequence) - 1));
        let inputs = Inputs {
            ids: vec![batch.token_ids().into()],
            ropes: vec![Angles::of_batch(angles)],
            lists: vec![last.collect()],
            ..Inputs::of(batch)
        };
        let batch = ops.batch(&inputs)?;
        let embed = |rows: Range<usize>| ops.embed(&[(&self.table, 0)], Some(1.5), &batch, &Which::Run(rows));
        let mut x = ops.each(ops.blocks(rows), embed)?;
        for _ in 0..2 {
            let project = |(rows, x): (Range<usize>, &O::Rows)| {
                let input = ops.operand(Cow::Owned(ops.rms_norm(x, &self.norm[0], 1e-5)?))?;
                let [q, k, v] = [0, 1, 2].map(|i| ops.linear(&input, &self.project[i]));
                let q = ops.rms_norm(&q?, &self.of_head, 1e-5)?;
                let [q, k] = [q, k?].map(|x| ops.rotary(x, HEAD_DIM, 0, &batch, &Which::Run(rows.clone())));
                Ok((q?, k?, v?))
            };
            let blocks = ops.blocks(rows).into_iter().zip(&x).collect();
            let projected = ops.each(blocks, project)?;
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for of_block in projected {
                q.push(of_block.0);
                k.push(of_block.1);
                v.push(of_block.2);
            }
            let memory = ops.remember(k, v, self.by_distance.as_ref(), &batch, &self.spec)?;
            let finish = |((x, query), rows): ((O::Rows, O::Rows), Range<usize>)| {
                let attended = ops.attend(&query, &Which::Run(rows), &memory)?;
                let x = ops.linear_add(&attended, &self.output, x)?;
                let normed = ops.layer_norm(&x, &self.norm[1], &self.norm[2], 1e-5)?;
                let normed = ops.operand(Cow::Owned(normed))?;
                let inner = ops.gated(&normed, &self.gated, Activation::Silu)?;
                ops.linear_add(&inner, &self.down, x)
            };
            x = ops.each(x.into_iter().zip(q).zip(ops.blocks(rows)).collect(), finish)?;
        }
        let head = |pooled: Vec<O::Rows>| {
            ops.each(pooled, |x: O::Rows| ops.linear_act(&x, &self.dense, Activation::GeluErf))
        };
        let read = ops.read(&[head(ops.gather(&x, 0, &batch)?)?, head(ops.mean(&x, &batch)?)?])?;
        Ok(read[0].chunks(3).zip(read[1].chunks(3)).map(|(a, b)| [a, b].concat()).collect())
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The bits of each sequence's rewards.
pub(super) fn bits_of(rewards: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rewards.iter().map(|rewards| bits(rewards)).collect()
}

pub(super) fn sequence(token_ids: &[u32]) -> Sequence {
    Sequence { token_ids: token_ids.to_vec(), type_ids: vec![0; token_ids.len()] }
}
