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

#[test]
fn rows_are_looked_up_and_summed() {
    if !can_play() {
        return;
    }
    for number in NUMBERS {
        for width in [1, 33, 40, 2056] {
            let tables: Vec<Matrix> = (0..4).map(|seed| Matrix::noise(number, 9, width, seed)).collect();
            let ids: Vec<Vec<u32>> =
                (0..4_u32).map(|t| (0..7_u32).map(|row| (row * 5 + t) % 9).collect()).collect();
            let which = [6_u32, 0, 3, 3, 1];
            for (count, is_listed, scale) in [(1, false, None), (3, true, Some(5.5_f32)), (4, true, None)] {
                let x = Matrix::empty(Number::F32, 4, width);
                let given = |t: usize| if t < count { p(tables[t].address()) } else { NONE };
                let id = |t: usize| if t < count { list(&ids[t]) } else { NONE };
                let mut arguments = vec![p(x.address()), x.stride(), u(width)];
                arguments.extend((0..4).map(given));
                arguments.push(tables[0].stride());
                arguments.extend((0..4).map(id));
                arguments.extend([if is_listed { list(&which) } else { NONE }, u(1)]);
                arguments.extend([f(scale.unwrap_or(1.0)), u(scale.is_some().into())]);
                let name = format!("embed_{}", number.letter());
                launched(&name, [4, 1, 1], &arguments);
                let expected = |place: usize, column: usize| {
                    let row = if is_listed { which[place + 1] as usize } else { place + 1 };
                    let sum: f64 = (0..count).map(|t| tables[t].get(ids[t][row] as usize, column)).sum();
                    sum * f64::from(scale.unwrap_or(1.0))
                };
                x.assert_near(&name, expected, 1.0);
            }
            let x = Matrix::empty(Number::F32, 4, width);
            let name = format!("rows_of_{}", number.letter());
            let table = [p(tables[0].address()), tables[0].stride(), u(2)];
            launched(&name, [4, 1, 1], &[&[p(x.address()), x.stride(), u(width)], &table[..]].concat());
            x.assert_near(&name, |row, column| tables[0].get(row + 2, column), 0.0);
        }
    }
}

#[test]
fn rotary_turns_pairs_and_leaves_the_rest() {
    if !can_play() {
        return;
    }
    for number in NUMBERS {
        for (head_dim, pairs) in
            [(2, 1), (12, 6), (33, 8), (64, 32), (80, 16), (128, 64), (256, 128), (256, 32)]
        {
            let (rows, heads) = (7, 3);
            let which = [9_u32, 0, 1, 2, 8, 4, 4, 7];
            let of_rows = [0_u32, 7, 3, 3, 1, 9, 2, 8, 4, 5];
            let cos = Matrix::noise(Number::F32, 1, 10 * pairs, 1);
            let sin = Matrix::noise(Number::F32, 1, 10 * pairs, 2);
            let weight = Matrix::noise(Number::F32, 1, head_dim, 3);
            for (has_norm, is_listed) in [(false, true), (true, false)] {
                let x = Matrix::noise(number, rows, heads * head_dim, 4);
                let before = x.clone();
                let mut arguments = vec![p(x.address()), x.stride(), u(rows), u(heads), u(head_dim)];
                arguments.extend([p(cos.address()), p(sin.address()), u(pairs), list(&of_rows)]);
                arguments.extend([if is_listed { list(&which) } else { NONE }, u(1)]);
                if has_norm {
                    arguments.extend([p(weight.address()), f(1e-6)]);
                }
                let name = format!("{}rotary_{}", if has_norm { "norm_" } else { "" }, number.letter());
                launched(&name, [2, 1, 1], &arguments);
                let expected: Vec<Vec<f64>> = (0..rows)
                    .map(|place| {
                        let row = if is_listed { which[place + 1] as usize } else { place + 1 };
                        let angle = |i: usize| {
                            let place = of_rows[row] as usize * pairs + i;
                            (cos.get(0, place), sin.get(0, place))
                        };
                        before
                            .row(place)
                            .chunks(head_dim)
                            .flat_map(|head| {
                                let mut head = head.to_vec();
                                if has_norm {
                                    let mean = head.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                                    for (column, v) in head.iter_mut().enumerate() {
                                        *v *= weight.get(0, column) / (mean + 1e-6).sqrt();
                                    }
                                }
                                for i in 0..pairs {
                                    let ((c, s), (a, b)) = (angle(i), (head[i], head[i + pairs]));
                                    (head[i], head[i + pairs]) = (a * c - b * s, b * c + a * s);
                                }
                                head
                            })
                            .collect()
                    })
                    .collect();
                x.assert_near(&name, |row, column| expected[row][column], 1.0);
            }
        }
    }
}

#[test]
fn numbers_are_activated_added_and_scaled() {
    if !can_play() {
        return;
    }
    let tanh_gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh());
    type Function = fn(f64) -> f64;
    let functions: [Function; 6] = [
        |x| 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        tanh_gelu,
        |x| x / (1.0 + (-x).exp()),
        |x| x.max(0.0),
        |x| x.max(0.0).powi(2),
        f64::tanh,
    ];
    for number in NUMBERS {
        let letter = number.letter();
        for (rows, width) in [(3, 1), (5, 33), (2, 40), (2, 1032)] {
            let x = Matrix::new(number, rows, 2 * width, |r, c| 6.0 * noise(1, r, c));
            let y = Matrix::noise(number, rows, width, 2);
            for (index, function) in functions.iter().enumerate() {
                for stem in ["activate", "gate"] {
                    let out = Matrix::empty(number, rows, width);
                    let name = format!("{stem}_{letter}");
                    let arguments = [
                        p(x.address()),
                        x.stride(),
                        p(out.address()),
                        out.stride(),
                        u(rows),
                        u(width),
                        u(index),
                    ];
                    launched(&name, [2, 1, 1], &arguments);
                    let up = |r, c| if stem == "gate" { x.get(r, width + c) } else { 1.0 };
                    out.assert_near(&name, |r, c| function(x.get(r, c)) * up(r, c), 2.0);
                }
            }
            let sum = Matrix::noise(Number::F32, rows, width, 3);
            let before = sum.clone();
            let name = format!("add_{letter}");
            launched(
                &name,
                [1, 1, 1],
                &[p(sum.address()), sum.stride(), p(y.address()), y.stride(), u(rows), u(width)],
            );
            sum.assert_near(&name, |r, c| before.get(r, c) + y.get(r, c), 1.0);
            let (scaled, factors) = (y.clone(), Matrix::noise(Number::F32, 1, width, 4));
            let name = format!("scale_{letter}");
            launched(
                &name,
                [3, 1, 1],
                &[p(scaled.address()), scaled.stride(), p(factors.address()), u(rows), u(width)],
            );
            scaled.assert_near(&name, |r, c| y.get(r, c) * factors.get(0, c), 1.0);
        }
    }
}

#[test]
fn rows_are_converted_gathered_and_averaged() {
    if !can_play() {
        return;
    }
    use Number::F32;
    let pairs = NUMBERS.into_iter().flat_map(|from| NUMBERS.map(|to| (from, to)));
    for width in [1, 33, 40, 520] {
        for (from, to) in pairs.clone() {
            // Small enough for what f16 has below its normal numbers, and large enough for its infinity.
            let sizes = [1.0, 1e-5, 3e-8, 7e4, f32::INFINITY];
            let x = Matrix::new(from, 5, width, |r, c| sizes[r] * noise(1, r, c));
            let out = Matrix::empty(to, 5, width);
            let name = format!("convert_{}{}", from.letter(), to.letter());
            launched(
                &name,
                [2, 1, 1],
                &[p(x.address()), x.stride(), p(out.address()), out.stride(), u(5), u(width)],
            );
            out.assert_near(&name, |r, c| rounded(to, x.get(r, c)), 0.0);
        }
        for number in NUMBERS {
            let x = Matrix::noise(number, 9, width, 2);
            let rows = [8_u32, 0, 0, 5, 3];
            let out = Matrix::empty(number, 5, width);
            let name = format!("gather_{}", number.letter());
            let to = [p(out.address()), out.stride(), u(5), u(width)];
            launched(&name, [1, 1, 1], &[&[p(x.address()), x.stride(), list(&rows)], &to[..]].concat());
            out.assert_near(&name, |r, c| x.get(rows[r] as usize, c), 0.0);

            let (first_run, runs) = ([0_u32, 1, 3, 4], [2_u32, 1, 4, 3, 0, 2, 1, 8]);
            let means = Matrix::empty(F32, 3, width);
            let name = format!("mean_{}", number.letter());
            let arguments = [
                p(x.address()),
                x.stride(),
                list(&first_run),
                list(&runs),
                p(means.address()),
                means.stride(),
                u(3),
                u(width),
            ];
            launched(&name, [1, 2, 1], &arguments);
            let of: [&[usize]; 3] = [&[2], &[4, 5, 6, 0, 1], &[1, 2, 3, 4, 5, 6, 7, 8]];
            let mean = |s: usize, c| of[s].iter().map(|&r| x.get(r, c)).sum::<f64>() / of[s].len() as f64;
            means.assert_near(&name, mean, 1.0);
        }
    }
}

#[test]
fn neighbours_stay_in_their_segment() {
    if !can_play() {
        return;
    }
    let bounds: Vec<u32> =
        [(0, 4), (4, 5), (5, 11)].iter().flat_map(|&(a, b)| [a, b].repeat(b as usize - a as usize)).collect();
    let which = [3_u32, 4, 10, 5, 0];
    for number in NUMBERS {
        for kernel in [1, 3, 4] {
            let x = Matrix::noise(number, 11, 13, 1);
            let out = Matrix::empty(number, 4, 5 * kernel);
            let name = format!("neighbours_{}", number.letter());
            let from = [p(x.address()), x.stride(), u(3), u(5), u(kernel), list(&bounds), list(&which), u(1)];
            launched(&name, [3, 1, 1], &[&from[..], &[p(out.address()), out.stride(), u(4)]].concat());
            let expected = |place: usize, column: usize| {
                let row = which[place + 1] as usize;
                let at = row as i64 - (kernel / 2) as i64 + (column % kernel) as i64;
                let (first, end) = (i64::from(bounds[2 * row]), i64::from(bounds[2 * row + 1]));
                if (first..end).contains(&at) { x.get(at as usize, 3 + column / kernel) } else { 0.0 }
            };
            out.assert_near(&name, expected, 0.0);
        }
    }
}

#[test]
fn heads_are_products_in_f32() {
    if !can_play() {
        return;
    }
    for (rows, inputs, outputs) in [(1, 1, 1), (5, 33, 3), (9, 768, 2), (4, 1000, 11)] {
        let x = Matrix::noise(Number::F32, rows, inputs, 1);
        let weight = Matrix::noise(Number::F32, outputs, inputs, 2);
        let bias = Matrix::noise(Number::F32, 1, outputs, 3);
        for (has_bias, activation) in [(true, 255), (false, 5)] {
            let y = Matrix::empty(Number::F32, rows, outputs);
            let mut arguments = vec![p(x.address()), x.stride(), p(weight.address()), weight.stride()];
            arguments.extend([if has_bias { p(bias.address()) } else { NONE }, p(y.address()), y.stride()]);
            arguments.extend([u(rows), u(inputs), u(outputs), u(activation)]);
            launched("product_f", [2, 1, 1], &arguments);
            let expected = |r, c| {
                let sum: f64 = (0..inputs).map(|i| x.get(r, i) * weight.get(c, i)).sum();
                let sum = sum + if has_bias { bias.get(0, c) } else { 0.0 };
                if activation == 5 { sum.tanh() } else { sum }
            };
            y.assert_near("product_f", expected, 1.0);
            // A row's bits are its own, with whatever rows it is launched.
            let alone = Matrix::new(Number::F32, 1, inputs, |_, c| x.get(rows - 1, c) as f32);
            let one = Matrix::empty(Number::F32, 1, outputs);
            arguments[0] = p(alone.address());
            arguments[5] = p(one.address());
            arguments[7] = u(1);
            launched("product_f", [1, 1, 1], &arguments);
            assert_eq!(one.row_bits(0), y.row_bits(rows - 1));
        }
    }
}

#[test]
fn a_row_of_nan_is_alone_with_it() {
    if !can_play() {
        return;
    }
    for width in [40, 1040] {
        let mut x = Matrix::noise(Number::F32, 4, width, 1);
        let weight = Matrix::noise(Number::F32, 1, width, 2);
        let norm = |x: &Matrix| {
            let out = Matrix::empty(Number::Bf16, 4, width);
            let mut arguments = vec![p(x.address()), x.stride(), u(4), u(1), u(width), p(weight.address())];
            arguments.extend([f(1e-6), NONE, u(0), p(out.address()), out.stride()]);
            launched("rms_norm_fb", [1, 1, 1], &arguments);
            out
        };
        let clean = norm(&x);
        x.set(1, 7, f32::NAN);
        x.set(2, 3, f32::INFINITY);
        let out = norm(&x);
        assert!(out.get(1, 0).is_nan() && out.get(2, 3).is_nan());
        for row in [0, 3] {
            assert_eq!(out.row_bits(row), clean.row_bits(row), "{width}");
        }
    }
}

#[test]
fn what_a_kernel_is_given_is_checked() {
    if !can_play() {
        return;
    }
    let x = Matrix::noise(Number::F32, 1, 8, 1);
    let launch = rewarm_cuda::driver::Launch {
        kernel: "add_f",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: &[p(x.address()), f(8.0)],
    };
    let error = rewarm_cuda::play::launch(&launch).expect_err("two of six").to_string();
    assert!(error.contains("takes \"pupuuu\" and was given \"pf\""), "{error}");
}

fn norm_of(run: &[f64], weight: &Matrix, bias: Option<&Matrix>) -> Vec<f64> {
    let width = run.len() as f64;
    let mean = bias.map_or(0.0, |_| run.iter().sum::<f64>() / width);
    let variance = run.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width;
    let normed = run.iter().map(|v| (v - mean) / (variance + 1e-5).sqrt());
    let of = |column, normed| normed * weight.get(0, column) + bias.map_or(0.0, |bias| bias.get(0, column));
    normed.enumerate().map(|(column, normed)| of(column, normed)).collect()
}
