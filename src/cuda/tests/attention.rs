//! Attention against softmax in `f64`, on a played card: head sizes, lengths, windows, trees of prefixes, distances.
#![cfg(feature = "play")]

mod support;

use std::ops::Range;

use rewarm_cuda::driver::Number;
use rewarm_cuda::play::Order;
use support::*;

/// A sequence: where its keys are, by runs of (first position, row, count).
#[derive(Clone)]
struct Path {
    runs: Vec<(usize, usize, usize)>,
}

impl Path {
    fn end(&self) -> usize {
        self.runs.last().map_or(0, |(first, _, count)| first + count)
    }

    fn row(&self, position: usize) -> usize {
        let (first, row, _) =
            self.runs.iter().rfind(|(first, ..)| *first <= position).expect("it begins at 0");
        row + position - first
    }
}

#[derive(Clone, Copy)]
struct Spec {
    number: Number,
    head_dim: usize,
    heads: usize,
    group: usize,
    causal: bool,
    window: usize,
    softcap: f32,
    distance: usize,
}

const PLAIN: Spec = Spec {
    number: Number::Bf16,
    head_dim: 64,
    heads: 2,
    group: 2,
    causal: true,
    window: 0,
    softcap: 0.0,
    distance: 0,
};
const REACH: usize = 5;
const BUCKETS: usize = 4;

/// Queries, keys and values of all rows, and what distance reads.
struct Data {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    slopes: Vec<f32>,
    of_distance: Vec<u32>,
    biases: Vec<f32>,
    of_queries: Vec<f32>,
    of_keys: Vec<f32>,
}

impl Data {
    fn new(spec: &Spec, rows: usize) -> Self {
        let kv = spec.heads / spec.group * spec.head_dim;
        let numbers = |seed, count: usize| (0..count).map(|i| noise(seed, 0, i)).collect();
        Self {
            q: Matrix::new(spec.number, rows, spec.heads * spec.head_dim, |r, c| 2.0 * noise(1, r, c)),
            k: Matrix::noise(spec.number, rows, kv, 2),
            v: Matrix::noise(spec.number, rows, kv, 3),
            slopes: (0..spec.heads).map(|head| 0.3 * 0.5_f32.powi(head as i32)).collect(),
            of_distance: (0..=2 * REACH).map(|i| (i % BUCKETS) as u32).collect(),
            biases: numbers(4, BUCKETS * spec.heads),
            of_queries: numbers(5, rows * spec.heads * BUCKETS),
            of_keys: numbers(6, rows * spec.heads * BUCKETS),
        }
    }
}

fn plain_kernel(number: Number) -> String {
    format!("attend_{}", number.letter())
}

/// The kernel that a model would take.
fn kernel_of(spec: &Spec) -> String {
    let size = [32, 64, 96, 128, 160, 192, 256].into_iter().find(|&size| size >= spec.head_dim);
    let has_extras = spec.distance > 0 || spec.softcap > 0.0;
    match size {
        Some(size) if spec.number != Number::F32 && spec.head_dim.is_multiple_of(8) => {
            format!("attend_{}_{size}{}", spec.number.letter(), if has_extras { "x" } else { "" })
        }
        _ => plain_kernel(spec.number),
    }
}

/// Launches attention of tiles (path, first position, queries), whose rows of queries are those of their path.
fn attend(
    kernel: &str,
    spec: &Spec,
    data: &Data,
    paths: &[Path],
    tiles: &[(usize, usize, usize)],
    order: Order,
) -> Matrix {
    attend_heads(kernel, spec, data, paths, tiles, order, 0..spec.heads)
}

/// The same of some heads.
fn attend_heads(
    kernel: &str,
    spec: &Spec,
    data: &Data,
    paths: &[Path],
    tiles: &[(usize, usize, usize)],
    order: Order,
    heads: Range<usize>,
) -> Matrix {
    let (mut runs, mut first_run) = (Vec::new(), Vec::new());
    for path in paths {
        first_run.push(runs.len() / 2);
        runs.extend(path.runs.iter().flat_map(|(first, row, _)| [*first as u32, *row as u32]));
    }
    let listed: Vec<u32> = tiles
        .iter()
        .flat_map(|&(path, position, queries)| {
            let place = paths[path].row(position);
            [place, queries, position, first_run[path], paths[path].runs.len(), paths[path].end()]
        })
        .map(|x| x as u32)
        .collect();
    let out = Matrix::empty(spec.number, data.q.rows, data.q.width);
    let floats = |values: &[f32]| p(rewarm_cuda::driver::Address(values.as_ptr() as u64));
    let buckets = if spec.distance == 3 { spec.heads } else { BUCKETS };
    let arguments = [
        p(data.q.address()),
        data.q.stride(),
        p(data.k.address()),
        data.k.stride(),
        p(data.v.address()),
        data.v.stride(),
        p(out.address()),
        out.stride(),
        list(&listed),
        list(&runs),
        u(spec.group),
        u(spec.head_dim),
        f(scale(spec)),
        u(spec.causal.into()),
        u(spec.window),
        f(spec.softcap),
        u(heads.start),
        u(spec.distance),
        floats(&data.slopes),
        list(&data.of_distance),
        u(REACH),
        u(buckets),
        floats(&data.biases),
        floats(&data.of_queries),
        floats(&data.of_keys),
    ];
    launched_in(kernel, [tiles.len(), heads.len(), 1], &arguments, order);
    out
}

fn scale(spec: &Spec) -> f32 {
    1.0 / (spec.head_dim as f32).sqrt()
}

fn bf16(x: f64) -> f64 {
    rounded(Number::Bf16, x)
}

/// What the query at a position of a path gets, of one head.
fn expected(spec: &Spec, data: &Data, path: &Path, i: usize, head: usize) -> Vec<f64> {
    let (q, kv, hd) = (head * spec.head_dim, head / spec.group * spec.head_dim, spec.head_dim);
    let bucket = |i: usize, j: usize| {
        let distance = (i as i64 - j as i64).clamp(-(REACH as i64), REACH as i64) + REACH as i64;
        data.of_distance[distance as usize] as usize
    };
    let place = path.row(i);
    let slope = f64::from(data.slopes[head]);
    let seen = |j: &usize| (!spec.causal || *j <= i) && (spec.window == 0 || i.abs_diff(*j) < spec.window);
    let scored: Vec<(usize, f64)> = (0..path.end())
        .filter(seen)
        .map(|j| {
            let row = path.row(j);
            let mut product: f64 = (0..hd).map(|c| data.q.get(place, q + c) * data.k.get(row, kv + c)).sum();
            let table = |values: &[f32], at: usize| {
                f64::from(values[(at * spec.heads + head) * BUCKETS + bucket(i, j)])
            };
            product += match spec.distance {
                1 => table(&data.of_queries, place) + table(&data.of_keys, row),
                2 => bf16(bf16(slope) * bf16(j as f64)) - bf16(bf16(slope) * bf16(i as f64)),
                _ => 0.0,
            };
            let mut score = product * f64::from(scale(spec));
            score += match spec.distance {
                3 => f64::from(data.biases[bucket(i, j) * spec.heads + head]),
                4 => slope * (j as f64 - i as f64),
                _ => 0.0,
            };
            let cap = f64::from(spec.softcap);
            (row, if cap > 0.0 { cap * (score / cap).tanh() } else { score })
        })
        .collect();
    let most = scored.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scored.iter().map(|(_, score)| (score - most).exp()).sum();
    (0..hd)
        .map(|c| {
            scored.iter().map(|(row, score)| (score - most).exp() / total * data.v.get(*row, kv + c)).sum()
        })
        .collect()
}

/// Tiles of a path's own positions from `from` on, cut every `step`.
fn cut(path: usize, from: usize, end: usize, step: usize) -> Vec<(usize, usize, usize)> {
    (from..end).step_by(step).map(|first| (path, first, step.min(end - first))).collect()
}

fn check(kernel: &str, spec: &Spec, paths: &[Path], tiles: &[(usize, usize, usize)]) {
    let rows = paths.iter().flat_map(|path| &path.runs).map(|(_, row, count)| row + count).max().unwrap_or(0);
    let data = Data::new(spec, rows);
    let out = attend(kernel, spec, &data, paths, tiles, Order::default());
    out.assert_untouched(kernel);
    // Weights are rounded to the working numbers before they are multiplied.
    let near = match spec.number {
        Number::F32 => 1e-5,
        Number::Bf16 => 8e-3,
        Number::F16 => 1e-3,
    };
    for &(path, position, queries) in tiles {
        for i in position..position + queries {
            for head in 0..spec.heads {
                let should = expected(spec, &data, &paths[path], i, head);
                for (column, should) in should.iter().enumerate() {
                    let is = out.get(paths[path].row(i), head * spec.head_dim + column);
                    assert!(
                        (is - should).abs() <= near,
                        "{kernel}, heads of {}: position {i} of path {path}, head {head}, column {column} is {is}, should be {should}",
                        spec.head_dim
                    );
                }
            }
        }
    }
}

fn alone(count: usize) -> Path {
    Path { runs: vec![(0, 0, count)] }
}

/// Three answers to one prompt, and one that goes on behind the first of them.
fn tree() -> (Vec<Path>, Vec<(usize, usize, usize)>) {
    let prompt = (0, 3, 70);
    let paths = vec![
        Path { runs: vec![prompt, (70, 80, 30)] },
        Path { runs: vec![prompt, (70, 110, 65)] },
        Path { runs: vec![prompt, (70, 175, 1)] },
        Path { runs: vec![prompt, (70, 80, 9), (79, 180, 20)] },
    ];
    let mut tiles = cut(0, 0, 70, 64);
    for (path, from) in [70, 70, 70, 79].into_iter().enumerate() {
        tiles.extend(cut(path, from, paths[path].end(), 64));
    }
    (paths, tiles)
}

#[test]
fn every_size_of_heads_is_right() {
    if !can_play() {
        return;
    }
    for head_dim in [2, 12, 16, 33, 64, 80, 96, 128, 152, 192, 200, 256] {
        for number in NUMBERS {
            for causal in [true, false] {
                let spec = Spec { number, head_dim, causal, ..PLAIN };
                check(&kernel_of(&spec), &spec, &[alone(71)], &cut(0, 0, 71, 64));
            }
        }
    }
}

#[test]
fn lengths_windows_and_extras_are_right() {
    if !can_play() {
        return;
    }
    let cases = [
        Spec { window: 1, ..PLAIN },
        Spec { window: 20, ..PLAIN },
        Spec { window: 70, causal: false, ..PLAIN },
        Spec { window: 7, causal: false, ..PLAIN },
        Spec { window: usize::try_from(u32::MAX).expect("64 bits"), ..PLAIN },
        Spec { softcap: 1.5, ..PLAIN },
        Spec { distance: 1, causal: false, ..PLAIN },
        Spec { distance: 2, ..PLAIN },
        Spec { distance: 3, causal: false, ..PLAIN },
        Spec { distance: 4, softcap: 2.0, window: 9, ..PLAIN },
    ];
    for spec in cases {
        for number in NUMBERS {
            let spec = Spec { number, head_dim: 32, ..spec };
            for count in [1, 64, 150] {
                check(&kernel_of(&spec), &spec, &[alone(count)], &cut(0, 0, count, 64));
            }
            let (paths, tiles) = tree();
            check(&kernel_of(&spec), &spec, &paths, &tiles);
            check(&plain_kernel(number), &spec, &paths, &tiles);
        }
    }
}

/// A query's bits, wherever it stands: in tiles of another size, behind a prefix that is shared or not, in any order of
/// warps and copies.
#[test]
fn bits_depend_on_the_sequence_alone() {
    if !can_play() {
        return;
    }
    let cases = [
        PLAIN,
        Spec { window: 30, head_dim: 128, ..PLAIN },
        Spec { causal: false, head_dim: 192, number: Number::F16, ..PLAIN },
        Spec { distance: 4, softcap: 3.0, ..PLAIN },
        Spec { head_dim: 12, ..PLAIN },
        Spec { head_dim: 33, number: Number::F32, ..PLAIN },
    ];
    for spec in cases {
        let kernel = kernel_of(&spec);
        let count = 135;
        let data = Data::new(&spec, count);
        let whole = alone(count);
        let reference = attend(
            &kernel,
            &spec,
            &data,
            std::slice::from_ref(&whole),
            &cut(0, 0, count, 64),
            Order::default(),
        );
        for order in ORDERS {
            for step in [17, 64, 1] {
                if step == 1 && order != Order::default() {
                    continue; // a block for each row: slow to play
                }
                let out = attend(
                    &kernel,
                    &spec,
                    &data,
                    std::slice::from_ref(&whole),
                    &cut(0, 0, count, step),
                    order,
                );
                for row in 0..count {
                    assert_eq!(
                        out.row_bits(row),
                        reference.row_bits(row),
                        "{kernel}, {order:?}, tiles of {step}: {row}"
                    );
                }
            }
        }
        // A head at a time.
        for head in 0..spec.heads {
            let tiles = cut(0, 0, count, 64);
            let order = Order::default();
            let paths = std::slice::from_ref(&whole);
            let out = attend_heads(&kernel, &spec, &data, paths, &tiles, order, head..head + 1);
            for (row, column) in [(0, 0), (70, 1), (134, spec.head_dim - 1)] {
                let column = head * spec.head_dim + column;
                assert_eq!(
                    out.bits(row, column),
                    reference.bits(row, column),
                    "{kernel}, head {head}: {row}"
                );
            }
        }
        // The same sequence, whose first 50 and next 40 rows stand elsewhere.
        let parts = [(0, 70, 50), (50, 0, 40), (90, 130, 45)];
        let moved = Path { runs: parts.to_vec() };
        let mut elsewhere = Data::new(&spec, 180);
        for position in 0..count {
            let row = moved.row(position);
            for (to, from) in
                [(&mut elsewhere.q, &data.q), (&mut elsewhere.k, &data.k), (&mut elsewhere.v, &data.v)]
            {
                for column in 0..from.width {
                    to.set(row, column, from.get(position, column) as f32);
                }
            }
        }
        let tiles: Vec<_> =
            parts.iter().flat_map(|(first, _, rows)| cut(0, *first, first + rows, 64)).collect();
        let out = attend(&kernel, &spec, &elsewhere, std::slice::from_ref(&moved), &tiles, Order::default());
        for position in 0..count {
            let bits = out.row_bits(moved.row(position));
            assert_eq!(bits, reference.row_bits(position), "{kernel}, in parts: {position}");
        }
    }
}

#[test]
fn a_sequence_of_nan_is_alone_with_it() {
    if !can_play() {
        return;
    }
    for spec in [PLAIN, Spec { causal: false, head_dim: 33, ..PLAIN }] {
        let paths = [alone(40), Path { runs: vec![(0, 40, 50)] }];
        let tiles = [cut(0, 0, 40, 64), cut(1, 0, 50, 64)].concat();
        let mut data = Data::new(&spec, 90);
        let clean = attend(&kernel_of(&spec), &spec, &data, &paths, &tiles, Order::default());
        for (row, x) in [(3, f32::NAN), (39, f32::INFINITY)] {
            for column in 0..spec.head_dim {
                data.q.set(row, column, x);
                data.k.set(row, column, x);
                data.v.set(row, column, x);
            }
        }
        let out = attend(&kernel_of(&spec), &spec, &data, &paths, &tiles, Order::default());
        assert!(out.get(39, 0).is_nan());
        for row in 40..90 {
            assert_eq!(out.row_bits(row), clean.row_bits(row), "{row}");
        }
    }
}
