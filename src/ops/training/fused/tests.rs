use candle_core::D;
use candle_core::Device;
use candle_core::Var;

use super::*;
use crate::ops;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::composed;
use crate::ops::composed::Composed;
use crate::ops::inputs::AngleTable;
use crate::ops::inputs::Angles;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::values::Format;

/// Of `f32` in another order of operations, and of erf's approximation.
const RTOL: f32 = 2e-6;

const OPS: Composed = Composed { device: Device::Cpu, format: Format::F32 };

fn wave(shape: &[usize], step: f32) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * step + step).sin() * 2.0).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Both forms give the same result, and the same gradient to every input.
fn check<E: Into<ops::error::OpsError>>(
    what: &str,
    inputs: &[&Var],
    fused: impl Fn() -> Result<Tensor>,
    composed: impl Fn() -> std::result::Result<Tensor, E>,
) {
    let run = |result: Tensor| {
        let slopes = wave(result.dims(), 0.77).as_detached_tensor();
        let store = (&result * slopes).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = inputs.iter().map(|input| values(store.get(input).expect("a gradient")));
        std::iter::once(values(&result)).chain(gradients).collect::<Vec<_>>()
    };
    for (place, (fused, composed)) in
        run(fused().unwrap()).into_iter().zip(run(composed().map_err(Into::into).unwrap())).enumerate()
    {
        let size = composed.iter().fold(1.0_f32, |size, x| size.max(x.abs()));
        for (a, b) in fused.iter().zip(&composed) {
            assert!((a - b).abs() <= RTOL * size, "{what}, output or gradient {place}: {a}, composed {b}");
        }
        assert_eq!(fused.len(), composed.len());
    }
}

#[test]
fn linear_layers_are_the_composed_ones() {
    for (rows, input, output) in [(1, 3, 1), (5, 16, 7), (33, 24, 40)] {
        let (x, weight, bias) =
            (wave(&[rows, input], 0.37), wave(&[output, input], 0.11), wave(&[output], 0.7));
        let product = || x.matmul(&weight.t()?);
        check("linear", &[&x, &weight], || linear(&x, &weight, None), product);
        let with_bias = || product()?.broadcast_add(&bias);
        check("bias", &[&x, &weight, &bias], || linear(&x, &weight, Some(&bias)), with_bias);
    }
}

#[test]
fn norms_are_the_composed_ones() {
    for (rows, width, heads) in [(1, 2, 1), (3, 19, 2), (7, 64, 3)] {
        let (weight, bias) = (wave(&[width], 0.7), wave(&[width], 1.1));
        for heads in [1, heads] {
            let x = wave(&[rows, heads * width], 0.37);
            check(
                "layer norm",
                &[&x, &weight, &bias],
                || layer_norm(&x, &weight, &bias, 1e-5),
                || OPS.layer_norm(&x, &weight, &bias, 1e-5),
            );
        }
        let x = wave(&[rows, heads * width], 0.37);
        check("rms norm", &[&x, &weight], || rms_norm(&x, &weight, 1e-5), || OPS.rms_norm(&x, &weight, 1e-5));
    }
}

#[test]
fn activations_are_the_composed_ones() {
    let mut x: Vec<f32> = (-400..400).map(|i| i as f32 * 0.031).collect();
    x.extend([0.0, -0.0, 1e-8, -1e-8, 30.0, -30.0, 100.0, -100.0]);
    let count = x.len();
    let (x, up) = (Var::from_vec(x, (2, count / 2), &Device::Cpu).unwrap(), wave(&[2, count / 2], 0.3));
    for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu, Activation::Tanh] {
        let what = format!("{activation:?}");
        check(&what, &[&x], || activate(&x, activation), || composed::activate(&x, activation));
        let gated = || composed::activate(&x, activation)? * up.as_tensor();
        check(&what, &[&x, &up], || gate(&x, &up, activation), gated);
    }
    let x = wave(&[3, 5], 0.3); // at 0 the slope is a matter of taste
    let relu = || composed::activate(&x, Activation::Relu);
    check("relu", &[&x], || activate(&x, Activation::Relu), relu);
    let relu_squared = || composed::activate(&x, Activation::ReluSquared);
    check("relu squared", &[&x], || activate(&x, Activation::ReluSquared), relu_squared);
}

#[test]
fn rows_are_added_and_turned_as_the_composed_ones() {
    let (x, y) = (wave(&[5, 24], 0.37), wave(&[5, 24], 0.11));
    let factors: Vec<f32> = (0..120).map(|i| if i % 3 == 0 { 0.0 } else { 1.5 }).collect();
    let by_hand = || {
        let factors = Tensor::from_vec(factors.clone(), (5, 24), &Device::Cpu)?;
        x.as_tensor() + (y.as_tensor() * factors)?
    };
    check("add", &[&x, &y], || add_dropped(&x, &y, factors.clone()), by_hand);

    let batch = batch(&[2, 3]);
    let angles = |pairs: usize| {
        let [cos, sin] = [0.2, 0.3].map(|step| values(&wave(&[5, pairs], step)));
        Angles::of_batch(AngleTable { cos, sin, pairs })
    };
    let lists = vec![vec![0, 4, 2, 1, 3]];
    let inputs = Inputs { ropes: [4, 3].map(angles).into(), lists, ..Inputs::of(&batch) };
    let of_form = OPS.batch(&inputs).unwrap();
    let runs = [Which::Run(0..5), inputs.listed(0)];
    for (which, rope) in runs.into_iter().flat_map(|which| [(which.clone(), 0), (which, 1)]) {
        let turned = || {
            let (cos, sin) = of_form.angles(rope, &which)?;
            rotary(&x, 8, &cos, &sin)
        };
        let composed = || OPS.rotary(x.as_tensor().clone(), 8, rope, &of_form, &which);
        check("rotary", &[&x], turned, composed);
    }
}

fn batch(lengths: &[usize]) -> PackedBatch {
    let sequence = |&length: &usize| Sequence { token_ids: vec![1; length], type_ids: vec![0; length] };
    PackedBatch::pack(&lengths.iter().map(sequence).collect::<Vec<_>>())
}

#[test]
fn attention_is_the_composed_one() {
    let plain = AttentionSpec {
        heads: 2,
        kv_heads: 2,
        head_dim: 8,
        value_dim: 8,
        causal: false,
        window: None,
        scale: 0.4,
        distance: Distance::Ignored,
        softcap: None,
    };
    let slopes = |slopes: &[f32]| Distance::Slopes(slopes.into());
    let batch = batch(&[3, 1, 12, 7]);
    let listed = vec![2, 3, 15, 4, 22];
    let inputs = Inputs { lists: vec![listed.clone()], ..Inputs::of(&batch) };
    let of_form = OPS.batch(&inputs).unwrap();
    for spec in [
        plain.clone(),
        AttentionSpec { causal: true, ..plain.clone() },
        AttentionSpec { causal: true, window: Some(4), heads: 6, ..plain.clone() },
        AttentionSpec { causal: true, heads: 4, kv_heads: 1, softcap: Some(2.0), ..plain.clone() },
        AttentionSpec { heads: 1, kv_heads: 1, head_dim: 2, value_dim: 2, ..plain.clone() },
        AttentionSpec { window: Some(3), ..plain.clone() },
        AttentionSpec { distance: slopes(&[0.5, 0.1, 0.3, 0.02]), heads: 4, causal: true, ..plain.clone() },
        AttentionSpec {
            distance: Distance::RoundedSlopes([0.71, 0.1, 0.3, 0.02].into()),
            heads: 4,
            causal: true,
            ..plain.clone()
        },
        AttentionSpec { distance: slopes(&[0.5, 0.1]), softcap: Some(2.0), window: Some(5), ..plain },
    ] {
        let rows = batch.num_rows();
        let [key, value] = [0.13, 0.29].map(|step| wave(&[rows, spec.kv_heads * spec.head_dim], step));
        for which in [Which::Run(0..rows), inputs.listed(0)] {
            let queries = which.len();
            let query = wave(&[queries, spec.heads * spec.head_dim], 0.37);
            let fused = || attention([&query, &key, &value], &which, &inputs, &spec);
            let composed = || {
                let [query, key, value] = [&query, &key, &value].map(|var| var.as_tensor().clone());
                let memory = OPS.remember(vec![key], vec![value], None, &of_form, &spec)?;
                OPS.attend(&query, &which, &memory)
            };
            check(&format!("{spec:?} {which:?}"), &[&query, &key, &value], fused, composed);
        }
    }
}

#[test]
fn the_exponential_is_exact_to_the_last_places() {
    for i in -8700..8800 {
        let x = i as f32 * 0.01;
        let exact = f64::from(x).exp();
        assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}: {} {exact}", exp(x));
    }
    assert!(exp(-1e4) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37 && exp(200.0).is_finite());
    let sum = wave(&[1, 37], 0.3).as_tensor().sum(D::Minus1).unwrap();
    let x = values(&wave(&[1, 37], 0.3));
    assert!((sum_of(&x, &x, |x, _| x) - values(&sum)[0]).abs() < 1e-5);
}
