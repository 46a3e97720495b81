//! A small transformer made of every operation: what holds of it to the last bit, and at the ends of `f32`.

use super::*;
use crate::ops::Distance;
use crate::ops::tiny::KINDS;
use crate::ops::tiny::Tiny;
use crate::ops::tiny::bits_of;

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
        let expected = tiny.alone(sequences);
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
    tinies().for_each(|tiny| tiny.check_what_is_not_finite());
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
        value_dim: head_dim,
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

/// What comes later is not multiplied by zero weights, but left out: by position, so wherever tiles of queries begin.
#[test]
fn later_panels_of_positions_do_not_reach_a_query() {
    let (seq, head_dim, broken) = (150, 20, 97);
    for cpu in forms() {
        let panel = 32; // or half of it
        let q = numbers(seq * head_dim, 1);
        let mut kv = [2, 3].map(|seed| numbers(seq * head_dim, seed));
        let expected = attend(&cpu, [&q, &kv[0], &kv[1]], &spec(head_dim, true));
        kv.iter_mut().for_each(|x| x[broken * head_dim..].fill(f32::NAN));
        let ours = attend(&cpu, [&q, &kv[0], &kv[1]], &spec(head_dim, true));
        let before = broken / panel * panel * head_dim;
        assert_eq!(bits(&ours[..before]), bits(&expected[..before]), "{}", cpu.name());
        assert!(ours[broken * head_dim..].iter().all(|x| x.is_nan()), "{}", cpu.name());
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
