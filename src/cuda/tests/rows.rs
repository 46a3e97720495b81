//! Kernels of rows against plain loops in `f64`, on a played card: odd widths and strides, lists, tails.
#![cfg(feature = "play")]

mod support;

use rewarm_cuda::driver::Number;
use support::*;

/// Tails of every kind, runs of a warp and of a block, and more than a block keeps in registers.
const WIDTHS: [usize; 9] = [1, 8, 33, 40, 256, 768, 1000, 1040, 8200];

#[test]
fn norms_are_of_each_run_alone() {
    if !can_play() {
        return;
    }
    let pairs = [
        ("fb", Number::F32, Number::Bf16),
        ("fh", Number::F32, Number::F16),
        ("ff", Number::F32, Number::F32),
        ("bb", Number::Bf16, Number::Bf16),
        ("hh", Number::F16, Number::F16),
    ];
    for (letters, from, to) in pairs {
        for (run, runs) in WIDTHS.map(|width| (width, 1)).into_iter().chain([(12, 3), (128, 5), (33, 2)]) {
            let rows = 5;
            let x = Matrix::new(from, rows, run * runs, |r, c| 1.5 * noise(1, r, c) + 0.25);
            let weight = Matrix::noise(Number::F32, 1, run, 2);
            let bias = Matrix::noise(Number::F32, 1, run, 3);
            for has_bias in [false, true] {
                let (wide, out) =
                    (Matrix::empty(Number::F32, rows, run * runs), Matrix::empty(to, rows, run * runs));
                let name = format!("{}_norm_{letters}", if has_bias { "layer" } else { "rms" });
                let mut arguments =
                    vec![p(x.address()), x.stride(), u(rows), u(runs), u(run), p(weight.address())];
                if has_bias {
                    arguments.push(p(bias.address()));
                }
                arguments.extend([f(1e-5), p(wide.address()), wide.stride(), p(out.address()), out.stride()]);
                launched(&name, [2, 1, 1], &arguments);
                let expected: Vec<Vec<f64>> = (0..rows)
                    .map(|row| {
                        let normed = x.row(row);
                        normed
                            .chunks(run)
                            .flat_map(|run| norm_of(run, &weight, has_bias.then_some(&bias)))
                            .collect()
                    })
                    .collect();
                wide.assert_near(&name, |r, c| expected[r][c], 1.0);
                out.assert_near(&name, |r, c| expected[r][c], 1.0);
            }
        }
    }
}

fn norm_of(run: &[f64], weight: &Matrix, bias: Option<&Matrix>) -> Vec<f64> {
    let width = run.len() as f64;
    let mean = bias.map_or(0.0, |_| run.iter().sum::<f64>() / width);
    let variance = run.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width;
    let normed = run.iter().map(|v| (v - mean) / (variance + 1e-5).sqrt());
    let of = |column, normed| normed * weight.get(0, column) + bias.map_or(0.0, |bias| bias.get(0, column));
    normed.enumerate().map(|(column, normed)| of(column, normed)).collect()
}
