//! Every kernel against the same in `f64`, on every instruction set of the machine; and what holds to the last bit.
//!
//! Buffers come from free lists that were filled with NaN before ([`poison`]), so whatever reads what it did not
//! write is found by its result.

mod blocks;
mod laws;
mod steps;

use proptest::prelude::*;

use super::*;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::composed::Composed;
use crate::ops::inputs::AngleTable;
use crate::ops::inputs::Angles;
use crate::ops::textbook;
use crate::ops::textbook::numbers;
use crate::ops::tiny::Layer;
use crate::ops::tiny::bits;
use crate::ops::tiny::sequence;

/// What a property test checks.
type Checked = std::result::Result<(), TestCaseError>;

/// Rounding of one operation on `f32`, twice.
const EPSILON: f64 = f32::EPSILON as f64;
/// The functions of `simd`, near and far from zero.
const FUNCTION_RTOL: f64 = 1e-6;
/// Half a unit in the last place of bfloat16, which has 8 bits.
const HALF_BF16: f64 = 1.0 / 256.0;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Every instruction set of the machine, with every format.
fn forms() -> Vec<Cpu> {
    let formats = [Format::F32, Format::Bf16, Format::F16];
    Isa::all().into_iter().flat_map(|isa| formats.map(|format| Cpu::with_isa(format, isa))).collect()
}

/// Fills what the next buffers are made of with NaN.
fn poison() {
    let poisoned = |power: usize| {
        let mut rows = Rows::new(Number::F32, 1, 16 << power);
        rows.row_mut(0).fill(f32::from_bits(u32::MAX)); // of bfloat16 too
        rows
    };
    let _: Vec<Rows> = (0..14).flat_map(|power| [power; 6]).map(poisoned).collect();
}

fn round(format: Format, x: f32) -> f32 {
    format.round(x.into()) as f32
}

/// What a form rounds the rows of a product to.
fn operand_format(cpu: &Cpu) -> Format {
    match cpu.operand_number() {
        Number::F32 => Format::F32,
        Number::Bf16 => Format::Bf16,
    }
}

fn rows_of(values: &[f32], width: usize) -> Rows {
    let mut rows = Rows::new(Number::F32, values.len() / width, width);
    values.chunks_exact(width).enumerate().for_each(|(row, from)| rows.row_mut(row).copy_from_slice(from));
    rows
}

/// Of rows of any number: the identity's product with what is rounded already.
fn values_of(rows: &Rows) -> Vec<f32> {
    let of_row = |rows: &Rows| (0..rows.len()).flat_map(|row| rows.row(row).to_vec()).collect();
    match rows.number() {
        Number::F32 => of_row(rows),
        Number::Bf16 => {
            let (width, cpu) = (rows.width(), Cpu::new(Format::Bf16));
            let ones = (0..width * width).map(|i| f32::from(u8::from(i % (width + 1) == 0)));
            let identity = Layer { weight: ones.collect(), bias: None, input: width, output: width };
            of_row(&cpu.linear(rows, &identity.load(&cpu)).unwrap())
        }
    }
}

/// Each number within what is said beside the expected one.
fn assert_within(name: &str, ours: &Rows, expected: impl IntoIterator<Item = (f64, f64)>) -> Checked {
    let (width, ours) = (ours.width(), values_of(ours));
    let expected: Vec<_> = expected.into_iter().collect();
    prop_assert_eq!(ours.len(), expected.len());
    for (at, (&ours, (expected, error))) in ours.iter().zip(expected).enumerate() {
        let (row, column) = (at / width, at % width);
        let is_close = (f64::from(ours) - expected).abs() <= error;
        prop_assert!(is_close, "{name} [{row}, {column}]: {ours}, not {expected} ± {error}");
    }
    Ok(())
}

impl Layer {
    fn load(&self, cpu: &Cpu) -> Linear {
        self.with_source(cpu.format, |source| cpu.load_linear(source, Precision::Working).unwrap())
    }

    fn load_gated(&self, up: &Self, cpu: &Cpu) -> Linear {
        self.with_source(cpu.format, |gate| {
            up.with_source(cpu.format, |up| cpu.load_gated(gate, up).unwrap())
        })
    }

    /// `x · weightᵀ + bias` with each side rounded, and how far a chain of additions in `f32` may be from it.
    fn sums(&self, x: &[f32], of_weights: Format, of_rows: Format) -> Vec<(f64, f64)> {
        let weight: Vec<f32> = self.weight.iter().map(|&w| round(of_weights, w)).collect();
        let x: Vec<f32> = x.iter().map(|&x| round(of_rows, x)).collect();
        let mut sums = Vec::with_capacity(x.len() / self.input * self.output);
        for x in x.chunks_exact(self.input) {
            for (output, weight) in weight.chunks_exact(self.input).enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(round(of_weights, bias[output])));
                let products = || x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let size = bias.abs() + products().map(f64::abs).sum::<f64>();
                sums.push((bias + products().sum::<f64>(), (self.input + 4) as f64 * EPSILON * size));
            }
        }
        sums
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Tanh,
];

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluErf => {
            x * 0.5 * candle_core::cpu::erf::erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2)
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Tanh => x.tanh(),
    }
}

/// The activation of a sum that may be off; the steepest is GELU, by less than 1.13.
fn activated_within(activation: Activation, (sum, error): (f64, f64)) -> (f64, f64) {
    (activated(activation, sum), 1.13 * error + FUNCTION_RTOL * sum.abs().max(1.0))
}

/// (rows, input, output, has bias, seed)
fn shapes() -> impl Strategy<Value = (usize, usize, usize, bool, u64)> {
    (1usize..70, 1usize..130, 1usize..130, any::<bool>(), any::<u64>())
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn products_are_those_of_f64((rows, input, output, has_bias, seed) in shapes()) {
        poison();
        let x = numbers(rows * input, seed);
        let [layer, up] = [1, 2].map(|which| Layer::new(input, output, has_bias && which == 1, seed ^ which));
        let gate = Layer { weight: layer.weight.clone(), bias: None, ..layer };
        let before = numbers(rows * output, seed ^ 3);
        use Format::{Bf16, F16, F32};
        for (of_weights, of_rows) in [(F32, F32), (F16, F32), (Bf16, F32), (Bf16, Bf16)] {
            let [sums, gates, ups] = [&layer, &gate, &up].map(|layer| layer.sums(&x, of_weights, of_rows));
            let forms = forms().into_iter();
            for cpu in forms.filter(|cpu| (cpu.format, operand_format(cpu)) == (of_weights, of_rows)) {
                // what is rounded for the next product
                let rounded = |(x, error): (f64, f64)| match cpu.operand_number() {
                    Number::F32 => (x, error),
                    Number::Bf16 => (x, error + HALF_BF16 * (x.abs() + error)),
                };
                let x = rows_of(&x, input);
                let name = |op: &str| format!("{op} {}", cpu.name());
                let linear = layer.load(&cpu);
                let kept = cpu.linear(&x, &linear).unwrap();
                assert_within(&name("linear"), &kept, sums.iter().copied())?;
                let operand = cpu.operand(Cow::Borrowed(&x)).unwrap();
                prop_assert_eq!(values_of(&cpu.linear(&operand, &linear).unwrap()), values_of(&kept));

                let added = cpu.linear_add(&operand, &linear, rows_of(&before, output)).unwrap();
                let expected = sums.iter().zip(&before).map(|(&(sum, error), &before)| {
                    let sum = sum + f64::from(before);
                    (sum, error + EPSILON * sum.abs())
                });
                assert_within(&name("linear_add"), &added, expected)?;

                let gated = gate.load_gated(&up, &cpu);
                for activation in ACTIVATIONS {
                    let ours = cpu.linear_act(&operand, &linear, activation).unwrap();
                    prop_assert_eq!(ours.number(), cpu.operand_number());
                    let expected = sums.iter().map(|&sum| rounded(activated_within(activation, sum)));
                    assert_within(&name(&format!("linear_act {activation:?}")), &ours, expected)?;
                    let ours = cpu.gated(&operand, &gated, activation).unwrap();
                    let expected = gates.iter().zip(&ups).map(|(&gate, &(up, up_error))| {
                        let (gate, error) = activated_within(activation, gate);
                        let error = error * (up.abs() + up_error) + gate.abs() * up_error;
                        rounded((gate * up, error + EPSILON * (gate * up).abs()))
                    });
                    assert_within(&name(&format!("gated {activation:?}")), &ours, expected)?;
                }
            }
        }
    }

    #[test]
    fn a_convolution_sees_its_own_sequence_alone(
        lengths in prop::collection::vec(1usize..9, 1..6), reach in 0usize..3, groups in 1usize..4,
        columns in 1usize..20, listed: bool, seed: u64,
    ) {
        poison();
        let (kernel, width) = (2 * reach + 1, groups * columns);
        let sequences = lengths.iter().map(|&length| sequence(&vec![1; length]));
        let batch = PackedBatch::pack(&sequences.collect::<Vec<_>>());
        let rows = batch.num_rows();
        let x = numbers(rows * width, seed);
        let asking: Vec<usize> = if listed { vec![rows - 1, 0, rows / 2] } else { (0..rows).collect() };
        let layers: Vec<Layer> =
            (0..groups as u64).map(|group| Layer::new(columns * kernel, columns, true, seed ^ group)).collect();
        // of a group, one row for each that asks
        let around = |group: usize| -> Vec<f32> {
            let of_row = |&row: &usize| {
                let segment = &batch.segments()[batch.segment_of(row)].rows;
                let value = |column: usize, at: usize| match at.checked_sub(reach) {
                    Some(row) if segment.contains(&row) => x[row * width + group * columns + column],
                    _ => 0.0,
                };
                (0..columns).flat_map(|column| (row..row + kernel).map(move |at| (column, at)))
                    .map(|(column, at)| value(column, at)).collect::<Vec<f32>>()
            };
            asking.iter().flat_map(of_row).collect()
        };
        for cpu in forms() {
            let sums: Vec<_> = layers.iter().enumerate()
                .map(|(group, layer)| layer.sums(&around(group), cpu.format, operand_format(&cpu))).collect();
            let expected = (0..asking.len()).flat_map(|place| {
                sums.iter().flat_map(move |sums| sums[place * columns..][..columns].iter().copied())
            });
            let expected = expected.map(|sum| activated_within(Activation::Tanh, sum));
            let layer = Convolution {
                groups: layers.iter().map(|layer| Arc::new(layer.load(&cpu))).collect(),
                kernel,
                activation: Activation::Tanh,
            };
            let blocks: Vec<Rows> = cpu.blocks(rows).into_iter()
                .map(|block| rows_of(&x[block.start * width..block.end * width], width)).collect();
            let inputs = Inputs { lists: vec![asking.clone()], ..Inputs::of(&batch) };
            let which = if listed { inputs.listed(0) } else { Which::Run(0..rows) };
            let ours = cpu.convolve(&blocks, &which, &layer, &&inputs).unwrap();
            assert_within(&format!("convolve {}", cpu.name()), &ours, expected)?;
        }
    }

    #[test]
    fn rows_of_blocks_are_picked_and_added_in_their_order(
        blocks in prop::collection::vec(1usize..6, 1..5), width in 1usize..70, of_row in 1usize..5,
        rows in 1usize..7, seed: u64,
    ) {
        poison();
        let count: usize = blocks.iter().sum();
        let x = numbers(count * width, seed);
        let weights = numbers(rows * of_row, seed ^ 1);
        let mut starts = blocks.iter().scan(0, |start, rows| {
            *start += rows;
            Some(*start - rows)
        }).collect::<Vec<_>>();
        let at = |place: usize| (place * 7 + seed as usize % 5) % count;
        let picked: Vec<usize> = (0..rows).map(at).collect();
        let terms: Vec<Term> = (0..rows * of_row).map(|place| {
            let block = starts.partition_point(|start| *start <= at(place)) - 1;
            Term { block, row: at(place) - starts[block], weight: weights[place] }
        }).collect();
        starts.push(count);
        for cpu in forms() {
            let of_blocks: Vec<Rows> =
                starts.windows(2).map(|ends| rows_of(&x[ends[0] * width..ends[1] * width], width)).collect();
            let ours = values_of(&cpu.pick(&of_blocks, &picked).unwrap());
            let expected: Vec<f32> =
                picked.iter().flat_map(|row| x[row * width..][..width].iter().copied()).collect();
            prop_assert_eq!(ours, expected);
            let expected = (0..rows * width).map(|place| {
                let (row, column) = (place / width, place % width);
                let terms = (row * of_row..(row + 1) * of_row)
                    .map(|place| f64::from(x[at(place) * width + column]) * f64::from(weights[place]));
                let size: f64 = terms.clone().map(f64::abs).sum();
                (terms.sum(), of_row as f64 * 2.0 * EPSILON * size)
            });
            let ours = cpu.combine(&of_blocks, &terms, of_row).unwrap();
            assert_within(&format!("combine {}", cpu.name()), &ours, expected)?;
            let composed = Composed { device: candle_core::Device::Cpu, format: Format::F32 };
            let tensors: Vec<_> = starts.windows(2).map(|ends| {
                let values = &x[ends[0] * width..ends[1] * width];
                candle_core::Tensor::from_slice(values, (ends[1] - ends[0], width), &composed.device).unwrap()
            }).collect();
            let theirs = composed.combine(&tensors, &terms, of_row).unwrap().flatten_all().unwrap();
            for (ours, theirs) in values_of(&ours).iter().zip(theirs.to_vec1::<f32>().unwrap()) {
                prop_assert!((ours - theirs).abs() < 1e-5, "{ours}, composed {theirs}");
            }
        }
    }

    #[test]
    fn heads_are_products_in_f32_whatever_the_dtype((rows, input, output, has_bias, seed) in shapes()) {
        let (x, layer) = (rows_of(&numbers(rows * input, seed), input), Layer::new(input, output, has_bias, seed ^ 1));
        for cpu in forms() {
            let load = |source: LinearSource<'_>| cpu.load_linear(source, Precision::F32).unwrap();
            let head = layer.with_source(Format::F32, load);
            let expected = cpu.with_format(Format::F32);
            let expected = expected.linear(&x, &layer.load(&expected)).unwrap();
            prop_assert_eq!(values_of(&cpu.linear(&x, &head).unwrap()), values_of(&expected));
        }
    }

    #[test]
    fn what_is_done_to_each_row_is_that_of_f64(
        (rows, head_dim, heads, is_long, seed) in (1usize..9, 1usize..40, 1usize..5, 0usize..8, any::<u64>()),
    ) {
        poison();
        // once in a while a row of more than 4096
        let head_dim = if is_long == 0 { head_dim + 1024 } else { head_dim } * 2;
        let width = heads * head_dim;
        let [x, y] = [seed, seed ^ 1].map(|seed| numbers(rows * width, seed));
        let [weight, bias, of_head, bias_of_head] =
            [(2, width), (3, width), (4, head_dim), (7, head_dim)].map(|(i, n)| numbers(n, seed ^ i));
        let pairs = if seed % 2 == 0 { head_dim / 2 } else { 1 + seed as usize % (head_dim / 2) };
        let [cos, sin] = [5, 6].map(|i| numbers(rows * pairs, seed ^ i));
        let batch = PackedBatch::pack(&[sequence(&vec![0; rows])]);
        let (eps, wide) = (1e-5, |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());

        let rms = |x: &[f32], weight: &[f32]| -> Vec<(f64, f64)> {
            let normed = |x: &[f32]| {
                let squares: f64 = wide(x).iter().map(|x| x * x).sum();
                let scale = 1.0 / (squares / weight.len() as f64 + eps).sqrt();
                let scaled = wide(x).into_iter().zip(wide(weight)).map(move |(x, w)| x * w * scale);
                scaled.map(|x| (x, (weight.len() + 8) as f64 * EPSILON * x.abs())).collect::<Vec<_>>()
            };
            x.chunks_exact(weight.len()).flat_map(normed).collect()
        };
        let layer_norm = |x: &[f32], weight: &[f32], bias: &[f32]| -> Vec<(f64, f64)> {
            let normed = |x: &[f32]| {
                let (x, width) = (wide(x), weight.len() as f64);
                let mean = x.iter().sum::<f64>() / width;
                let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
                let (scale, size) = (1.0 / (square + eps).sqrt(), x.iter().map(|x| x.abs()).fold(0.0, f64::max));
                let parameters = wide(weight).into_iter().zip(wide(bias));
                let normed = x.into_iter().zip(parameters).map(move |(x, (w, b))| {
                    let error = (width + 8.0) * EPSILON * size * scale * w.abs();
                    ((x - mean) * scale * w + b, error + EPSILON * b.abs())
                });
                normed.collect::<Vec<_>>()
            };
            x.chunks_exact(weight.len()).flat_map(normed).collect()
        };
        let turned = |place: usize, row: usize| {
            let (x, cos, sin) = (&x, &cos, &sin);
            (0..width).map(move |column| {
                let d = column % head_dim;
                if d >= 2 * pairs {
                    return (f64::from(x[place * width + column]), 0.0);
                }
                let pair = place * width + column - d + d % pairs;
                let [x, y] = [pair, pair + pairs].map(|at| f64::from(x[at]));
                let [c, s] = [cos, sin].map(|of| f64::from(of[row * pairs + d % pairs]));
                let turned = if d < pairs { x * c - y * s } else { x * s + y * c };
                (turned, 4.0 * EPSILON * (x.abs() + y.abs()) * (c.abs() + s.abs()))
            })
        };

        for cpu in forms() {
            let name = |op: &str| format!("{op} {}", cpu.name());
            let of_x = rows_of(&x, width);
            let ours = cpu.operand(Cow::Borrowed(&of_x)).unwrap();
            let rounded: Vec<f32> = x.iter().map(|&x| round(operand_format(&cpu), x)).collect();
            // the identity that reads what is rounded is quadratic
            if width < 1024 {
                prop_assert_eq!(values_of(&ours), rounded, "{}", name("operand"));
            }
            let results = [vec![of_x.clone(), of_x.clone()], vec![], vec![of_x.clone()]];
            prop_assert_eq!(cpu.read(&results).unwrap(), [[&x[..], &x[..]].concat(), vec![], x.clone()]);

            let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            prop_assert_eq!(values_of(&cpu.add(of_x.clone(), &rows_of(&y, width)).unwrap()), sums);

            for weight in [&weight, &of_head] {
                assert_within(&name("rms_norm"), &cpu.rms_norm(&of_x, weight, eps).unwrap(), rms(&x, weight))?;
            }
            for (weight, bias) in [(&weight, &bias), (&of_head, &bias_of_head)] {
                let normed = cpu.layer_norm(&of_x, weight, bias, eps).unwrap();
                assert_within(&name("layer_norm"), &normed, layer_norm(&x, weight, bias))?;
            }

            let angles = Angles::of_batch(AngleTable { cos: cos.clone(), sin: sin.clone(), pairs });
            let listed = (0..rows).rev().collect();
            let ropes = vec![Angles::default(), angles];
            let inputs = Inputs { ropes, lists: vec![vec![0], listed], ..Inputs::of(&batch) };
            let run = cpu.rotary(of_x.clone(), head_dim, 1, &&inputs, &Which::Run(0..rows)).unwrap();
            assert_within(&name("rotary"), &run, (0..rows).flat_map(|row| turned(row, row)))?;
            let run = cpu.rotary(of_x, head_dim, 1, &&inputs, &inputs.listed(1)).unwrap();
            assert_within(&name("rotary"), &run, (0..rows).flat_map(|row| turned(row, rows - 1 - row)))?;
        }
    }

    #[test]
    fn rows_are_found_in_tables_and_in_blocks(
        (tables, width, scale) in (1usize..4, 1usize..100, prop::option::of(0.1f64..60.0)),
        ids in prop::collection::vec(0u32..12, 1..500),
        seed in any::<u64>(),
    ) {
        poison();
        for cpu in forms() {
            let values: Vec<Vec<f32>> = (0..tables as u64).map(|i| numbers(12 * width, seed ^ i)).collect();
            let load = |values: &Vec<f32>| cpu.load_table("table", Values::rounded(cpu.format, values), 12, width).unwrap();
            let loaded: Vec<Table> = values.iter().map(load).collect();
            // each table in another order
            let ids: Vec<Vec<u32>> = (0..tables as u32).map(|i| ids.iter().map(|id| (id + i) % 12).collect()).collect();
            let factor = scale.map_or(1.0, |scale| round(cpu.format, scale as f32));
            let expected: Vec<f32> = (0..ids[0].len() * width)
                .map(|at| {
                    let (row, column) = (at / width, at % width);
                    let each = values.iter().zip(&ids);
                    let mut each = each.map(|(values, ids)| round(cpu.format, values[ids[row] as usize * width + column]));
                    let first = each.next().unwrap();
                    each.fold(first, |sum, x| sum + x) * factor
                })
                .collect();
            let blocks = cpu.blocks(ids[0].len());
            prop_assert_eq!(blocks.iter().map(|block| block.len()).sum::<usize>(), ids[0].len());
            // sequences of 1, 2, 3, .. tokens
            let mut rest = &ids[0][..];
            let lengths = (1..).map_while(|length| {
                let (taken, left) = rest.split_at(length.min(rest.len()));
                rest = left;
                (!taken.is_empty()).then(|| sequence(taken))
            });
            let packed = PackedBatch::pack(&lengths.collect::<Vec<_>>());
            let listed: Vec<usize> = (0..ids[0].len()).rev().step_by(3).collect();
            let inputs = Inputs {
                ids: ids.iter().map(|ids| Cow::Borrowed(&ids[..])).collect(),
                lists: vec![listed.clone()],
                ..Inputs::of(&packed)
            };
            let batch = cpu.batch(&inputs).unwrap();
            let tables: Vec<_> = loaded.iter().zip(0..).collect();
            let embed = |block: Range<usize>| cpu.embed(&tables, scale, &batch, &Which::Run(block));
            let blocks = cpu.each(blocks, embed).unwrap();
            let read = |blocks: &[Rows]| cpu.read(&[blocks.to_vec()]).unwrap().concat();
            prop_assert_eq!(read(&blocks), &expected[..]);
            let last = cpu.rows_of(&loaded[0], 10..12).unwrap();
            let of_table: Vec<f32> = values[0][10 * width..].iter().map(|&x| round(cpu.format, x)).collect();
            prop_assert_eq!(read(&[last]), of_table);

            let of_row = |row: usize| expected[row * width..][..width].to_vec();
            let gathered = read(&cpu.gather(&blocks, 0, &batch).unwrap());
            prop_assert_eq!(gathered, listed.iter().flat_map(|&row| of_row(row)).collect::<Vec<_>>());

            let means = read(&cpu.mean(&blocks, &batch).unwrap());
            prop_assert_eq!(means.len(), packed.len() * width);
            for (segment, means) in packed.segments().iter().zip(means.chunks_exact(width)) {
                for (column, &ours) in means.iter().enumerate() {
                    let values = || segment.rows.clone().map(|row| f64::from(expected[row * width + column]));
                    let count = segment.rows.len() as f64;
                    let error = (count + 2.0) * EPSILON * values().map(f64::abs).sum::<f64>() / count;
                    prop_assert!((f64::from(ours) - values().sum::<f64>() / count).abs() <= error);
                }
            }
        }
    }

    #[test]
    fn attention_is_the_textbooks(case in textbook::cases()) {
        check_attention(&case)?;
    }

    #[test]
    fn gated_delta_rules_are_the_textbooks_whatever_is_shared(case in textbook::delta::cases(), threads in 1usize..4) {
        poison();
        for cpu in Isa::all().into_iter().map(|isa| Cpu::with_isa(Format::F32, isa).with_threads(threads)) {
            case.check(&cpu, true)?;
        }
    }

    #[test]
    fn gates_let_through_what_those_of_f64_do(rows in 1usize..5, width in 1usize..70, seed: u64) {
        let [x, by] = [(1, 1.0), (2, 30.0)].map(|(salt, scale)| {
            numbers(rows * width, seed ^ salt).into_iter().map(|x| x * scale).collect::<Vec<_>>()
        });
        let expected = |gate: Gate| x.iter().zip(&by).map(move |(x, by)| {
            let sigmoid = 1.0 / (1.0 + (-f64::from(*by)).exp());
            (f64::from(*x) * if gate == Gate::Silu { f64::from(*by) * sigmoid } else { sigmoid }, x.abs())
        });
        for cpu in forms() {
            for gate in [Gate::Sigmoid, Gate::Silu] {
                // attention's output may be rounded for the product after it
                let rounded = cpu.operand(Cow::Owned(rows_of(&x, width))).unwrap().into_owned();
                for (x, tolerance) in [(rows_of(&x, width), 1e-6), (rounded, HALF_BF16)] {
                    let ours = values_of(&cpu.let_through(&x, &rows_of(&by, width), gate).unwrap());
                    for (ours, (expected, x)) in ours.into_iter().zip(expected(gate)) {
                        let error = (f64::from(ours) - expected).abs();
                        prop_assert!(error <= tolerance * (expected.abs() + f64::from(x)), "{gate:?}: {ours}, not {expected}");
                    }
                }
            }
        }
    }
}

/// Bfloat16 is held to the textbook's attention of rounded numbers. What is left: the weights are rounded, by half a
/// unit each of values up to 2, and the result is, which is at most 2.
fn check_attention(case: &textbook::Case) -> Checked {
    poison();
    // a score of some tens is known to 1e-5, and so is the weight that is made of it
    for (format, tolerance) in [(Format::F32, 1e-4), (Format::Bf16, (4.0 * HALF_BF16 / 2.0) as f32)] {
        let expected = match format {
            Format::Bf16 => case.expected(|x| round(Format::Bf16, x)),
            _ => case.expected(|x| x),
        };
        for cpu in forms().iter().filter(|cpu| operand_format(cpu) == format && cpu.format != Format::F16) {
            // what reads the result rounds it where weights are rounded
            case.check(cpu, &expected, tolerance)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn attention_over_several_blocks_is_the_textbooks(case in textbook::long_cases()) {
        check_attention(&case)?;
    }
}

impl Cpu {
    fn with_format(&self, format: Format) -> Self {
        Self { format, ..self.clone() }
    }

    fn with_threads(&self, threads: usize) -> Self {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Self { pool: Arc::new(pool), ..self.clone() }
    }
}
