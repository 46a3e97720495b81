//! A small transformer made of every operation: what holds of it to the last bit, and at the ends of `f32`.

use super::*;
use crate::ops::Distance;
use crate::ops::composed::Composed;
use crate::ops::textbook::Kind;

const WIDTH: usize = 40;
const HEAD_DIM: usize = 12;
const VOCAB: u32 = 10;
/// Embedded as NaN.
const NAN_TOKEN: u32 = 8;
/// Embedded as minus infinity.
const INFINITE_TOKEN: u32 = 9;
/// Whether attention is causal, its window, and what distances do.
const KINDS: [Attention; 9] = [
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

type Attention = (bool, Option<usize>, Kind);

/// Two layers with the same weights, a norm before attention and one before the gated MLP, and a dense head.
struct Tiny<O: Ops> {
    ops: O,
    spec: AttentionSpec,
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
    fn new(ops: O, (causal, window, distance): Attention) -> Self {
        let format = ops.format(Precision::Working);
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: HEAD_DIM,
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
            by_distance: textbook::by_distance(&ops, tables.as_ref(), &spec),
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

    /// Of each sequence, from its last token and from its mean: `[sequences][2 · 3]`.
    fn rewards(&self, batch: &PackedBatch) -> Vec<Vec<f32>> {
        self.ops.run(|| self.forward(batch)).unwrap()
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>> {
        let (ops, rows) = (&self.ops, batch.num_rows());
        let pairs = HEAD_DIM / 2;
        let [cos, sin] = [0, 1].map(|_| vec![0.0; rows * pairs]);
        let mut angles = Angles { cos, sin, pairs };
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
            ropes: vec![angles],
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

/// The bits of each sequence's rewards.
fn bits_of(rewards: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rewards.iter().map(|rewards| bits(rewards)).collect()
}

fn alone(tiny: &Tiny<Cpu>, sequences: &[Sequence]) -> Vec<Vec<u32>> {
    let alone = |one| bits_of(&tiny.rewards(&PackedBatch::pack([one]))).swap_remove(0);
    sequences.iter().map(alone).collect()
}

/// Every form with every kind of attention.
fn tinies() -> impl Iterator<Item = Tiny<Cpu>> {
    let forms = forms().into_iter();
    forms.flat_map(|cpu| KINDS.map(|kind| Tiny::new(cpu.with_threads(1), kind)))
}

fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let pieces: [&[u32]; 5] = [&[1], &[2, 2], &[1, 2, 3], &[4; 9], &[5; 40]];
    let one = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..6);
    prop::collection::vec(one.prop_map(|pieces| sequence(&pieces.concat())), 1..6)
}

fn check_neighbours(
    sequences: &[Sequence],
    tinies: impl Iterator<Item = Tiny<Cpu>>,
    threads: &[usize],
) -> Checked {
    for mut tiny in tinies {
        poison();
        let expected = alone(&tiny, sequences);
        prop_assert!(expected.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()));
        let name = format!("{} {:?}", tiny.ops.name(), tiny.spec);
        let turned: Vec<Sequence> = sequences.iter().rev().cloned().collect();
        for &threads in threads {
            tiny.ops = tiny.ops.with_threads(threads);
            let together = bits_of(&tiny.rewards(&PackedBatch::pack(sequences)));
            prop_assert!(together == expected, "{name}: beside others, {threads} threads");
            let mut together = bits_of(&tiny.rewards(&PackedBatch::pack(&turned)));
            together.reverse();
            prop_assert!(together == expected, "{name}: in another order, {threads} threads");
            for min_shared in [1, 16] {
                let shared = PackedBatch::pack_shared(sequences, min_shared);
                let shares = !tiny.spec.causal || bits_of(&tiny.rewards(&shared)) == expected;
                prop_assert!(shares, "{name}: sharing prefixes of {min_shared}, {threads} threads");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn neighbours_blocks_threads_and_shared_prefixes_change_no_bit(sequences in sequences()) {
        check_neighbours(&sequences, tinies(), &[1, 3])?;
    }
}

/// A prefix over two blocks of the softmax, and enough rows for many blocks of rows.
#[test]
fn neighbours_of_long_sequences_change_no_bit() {
    let prefix: Vec<u32> = (0..550).map(|i| i * i % 8).collect();
    let ends: [&[u32]; 3] = [&[1], &[2; 20], &[]];
    let sequences = ends.map(|end| sequence(&[&prefix, end].concat()));
    // without a window in bfloat16, with one in `f32`
    let is_tried = |tiny: &Tiny<Cpu>| match tiny.ops.format {
        Format::Bf16 => tiny.spec.causal && tiny.spec.window.is_none() && tiny.ops.isa.multiplies_bf16(),
        Format::F32 => tiny.spec.window.is_some(),
        _ => false,
    };
    check_neighbours(&sequences, tinies().filter(is_tried), &[3]).unwrap();
}

/// The composed form in `f32`: another order of summation, and nothing else.
#[test]
fn our_kernels_give_what_the_composed_form_does() {
    let sequences = [sequence(&[1, 2, 3]), sequence(&[5; 70]), sequence(&[7]), sequence(&[1, 2, 3, 4, 4])];
    let batch = PackedBatch::pack(&sequences);
    for kind in KINDS {
        let composed = Composed { device: candle_core::Device::Cpu, format: Format::F32 };
        let expected = Tiny::new(composed, kind).rewards(&batch).concat();
        for isa in Isa::all() {
            let ours = Tiny::new(Cpu::with_isa(Format::F32, isa), kind).rewards(&batch).concat();
            for (ours, expected) in ours.iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-4, "{isa:?} {kind:?}: {ours}, not {expected}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_its_own_reward_and_no_other() {
    let common: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3];
    for broken in [NAN_TOKEN, INFINITE_TOKEN] {
        let ends: [&[u32]; 4] = [&[3, 3], &[4, broken, 4], &[4, 5, 6], &[broken]];
        let sequences = ends.map(|end| sequence(&[common, end].concat()));
        for tiny in tinies() {
            let name = format!("{} {:?}", tiny.ops.name(), tiny.spec);
            let alone = alone(&tiny, &sequences);
            let mut batches = vec![PackedBatch::pack(&sequences)];
            if tiny.spec.causal {
                batches.push(PackedBatch::pack_shared(&sequences, 1));
            }
            for batch in batches {
                let rewards = tiny.rewards(&batch);
                for (index, (ours, alone)) in rewards.iter().zip(&alone).enumerate() {
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
}

#[test]
fn a_product_passes_on_what_is_not_finite_and_keeps_it_in_its_row() {
    let (input, output) = (37, 19);
    let layer = Layer::new(input, output, true, 1);
    let clean = numbers(5 * input, 2);
    for cpu in forms() {
        let linear = layer.load(&cpu);
        let gated =
            Layer::new(input, output, false, 1).load_gated(&Layer::new(input, output, false, 3), &cpu);
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = clean.clone();
            x[2 * input + 36] = broken;
            let [clean, x] = [&clean, &x].map(|x| rows_of(x, input));
            let check = |op: &str, of: &dyn Fn(&Rows) -> Result<Rows>| {
                let [expected, ours] = [&clean, &x].map(|x| values_of(&of(x).unwrap()));
                for (row, (ours, expected)) in ours.chunks(output).zip(expected.chunks(output)).enumerate() {
                    let name = format!("{op} of {broken} {}", cpu.name());
                    match row {
                        // an activation of minus infinity is a number
                        2 if broken.is_nan() || op == "linear" => {
                            assert!(ours.iter().all(|x| !x.is_finite()), "{name}: {ours:?}");
                        }
                        2 => assert!(ours.iter().any(|x| !x.is_finite()), "{name}: {ours:?}"),
                        _ => assert_eq!(bits(ours), bits(expected), "{name}"),
                    }
                }
            };
            check("linear", &|x| cpu.linear(x, &linear));
            for activation in ACTIVATIONS {
                if broken.is_nan() || activation != Activation::Tanh {
                    check("linear_act", &|x| cpu.linear_act(x, &linear, activation));
                    check("gated", &|x| cpu.gated(x, &gated, activation));
                }
            }
        }
    }
}

/// One sequence and head, every row a query; queries, keys and values `[seq, head_dim]`.
fn attend(cpu: &Cpu, [q, k, v]: [&[f32]; 3], spec: &AttentionSpec) -> Vec<f32> {
    let batch = PackedBatch::pack(&[sequence(&vec![0; q.len() / spec.head_dim])]);
    let inputs = Inputs::of(&batch);
    let of_form = cpu.batch(&inputs).unwrap();
    let [q, k, v] = [q, k, v].map(|x| [rows_of(x, spec.head_dim)]);
    let [k, v] = [k, v].map(Vec::from);
    let memory = cpu.remember(k, v, None, &of_form, spec).unwrap();
    values_of(&cpu.attend(&q[0], &Which::Run(0..batch.num_rows()), &memory).unwrap())
}

fn spec(head_dim: usize, causal: bool) -> AttentionSpec {
    let distance = Distance::Ignored;
    AttentionSpec {
        heads: 1,
        kv_heads: 1,
        head_dim,
        causal,
        window: None,
        scale: 0.3,
        distance,
        softcap: None,
    }
}

#[test]
fn attention_to_one_token_is_its_value() {
    for cpu in forms() {
        for head_dim in [1, 2, 17, 64] {
            let v = numbers(head_dim, 3);
            let expected: Vec<f32> = v.iter().map(|&x| round(operand_format(&cpu), x)).collect();
            let ours =
                attend(&cpu, [&numbers(head_dim, 1), &numbers(head_dim, 2), &v], &spec(head_dim, true));
            assert_eq!(bits(&ours), bits(&expected), "{}", cpu.name());
        }
    }
}

#[test]
fn equal_scores_give_the_mean_and_zeros_give_zeros() {
    let (seq, head_dim) = (1100, 6);
    for cpu in forms() {
        let (zeros, v) = (vec![0.0; seq * head_dim], numbers(seq * head_dim, 3));
        let ours = attend(&cpu, [&zeros, &numbers(seq * head_dim, 1), &v], &spec(head_dim, true));
        let tolerance = if cpu.operand_number() == Number::Bf16 { 2.0 * HALF_BF16 } else { 1e-5 };
        for (row, ours) in ours.chunks(head_dim).enumerate().step_by(97) {
            for (d, &ours) in ours.iter().enumerate() {
                let sum: f64 = v.chunks(head_dim).take(row + 1).map(|v| f64::from(v[d])).sum();
                let mean = sum / (row + 1) as f64;
                assert!((f64::from(ours) - mean).abs() < tolerance, "{}: {ours}, not {mean}", cpu.name());
            }
        }
        assert_eq!(attend(&cpu, [&zeros; 3], &spec(head_dim, true)), zeros);
    }
}

/// The largest score decides alone, however large scores are: even if one unit in its last place is more than any
/// exponential can hold.
#[test]
fn scores_of_any_size_give_finite_results() {
    let (seq, winner) = (600, 550);
    for cpu in forms().into_iter().filter(|cpu| cpu.format != Format::F16) {
        for (size, softcap) in
            [1e3, 1e8, 1e15, 3e18].into_iter().flat_map(|size| [(size, None), (size, Some(50.0))])
        {
            // scores from -size² to size²
            let q = vec![round(Format::Bf16, size * 0.7); seq];
            let mut k: Vec<f32> = numbers(seq, 5).iter().map(|x| x * 0.2 * size).collect();
            k[winner] = 1.1 * size;
            let v = numbers(seq, 6);
            let spec = AttentionSpec { softcap, ..spec(1, false) };
            let ours = attend(&cpu, [&q, &k, &v], &spec);
            assert!(ours.iter().all(|x| x.abs() <= 2.0), "{} {size}: {ours:?}", cpu.name());
            if softcap.is_none() && size > 1e3 {
                let expected = round(operand_format(&cpu), v[winner]);
                assert!(ours.iter().all(|&x| x == expected), "{} {size}: {ours:?}, {expected}", cpu.name());
            }
        }
    }
}

#[test]
fn numbers_too_small_to_be_normal_do_no_harm() {
    let (input, output) = (40, 20);
    let layer = Layer::new(input, output, false, 1);
    for cpu in forms() {
        let tiny: Vec<f32> = numbers(3 * input, 2).iter().map(|x| x * 1e-39).collect();
        let x = rows_of(&tiny, input);
        let linear = cpu.linear(&x, &layer.load(&cpu)).unwrap();
        assert!(values_of(&linear).iter().all(|x| x.abs() < 1e-37), "{}", cpu.name());
        let normed = cpu.rms_norm(&x, &vec![1.0; input], 1e-6).unwrap();
        assert!(values_of(&normed).iter().all(|x| x.abs() < 1e-35), "{}", cpu.name());
        let normed = cpu.layer_norm(&x, &vec![1.0; input], &vec![0.5; input], 1e-6).unwrap();
        assert!(values_of(&normed).iter().all(|&x| x == 0.5), "{}", cpu.name());
    }
}
