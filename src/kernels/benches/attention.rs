//! Attention of a base model's heads, plain and disentangled.
//!
//! ```text
//! cargo bench -p rewarm-kernels --bench attention
//! ```
//!
//! One thread; the kinds take turns, and figures are the least of the rounds.

use std::time::Instant;

use rewarm_kernels::Attention;
use rewarm_kernels::AttentionSpec;
use rewarm_kernels::Blocks;
use rewarm_kernels::Buckets;
use rewarm_kernels::ByDistance;
use rewarm_kernels::Distance;
use rewarm_kernels::Isa;
use rewarm_kernels::Number;
use rewarm_kernels::Relative;
use rewarm_kernels::Rows;
use rewarm_kernels::Segment;

const ROUNDS: usize = 25;
const TOKENS: usize = 512;
const WIDTH: usize = 768;

fn main() {
    let isa = Isa::best();
    println!("{isa:?}, one thread, {TOKENS} tokens, 12 heads of 64, ms, the least of {ROUNDS} rounds\n");
    println!("| kind | number | remember | attend |");
    println!("| --- | --- | --- | --- |");
    let numbers = if isa.multiplies_bf16() { vec![Number::F32, Number::Bf16] } else { vec![Number::F32] };
    // DeBERTa-v3's logarithmic buckets, nearly
    let far = |distance: f64| 128.0 + ((distance / 128.0).ln() / (511.0_f64 / 128.0).ln() * 127.0).ceil();
    let bucket = |distance: isize| match distance.unsigned_abs() {
        near if near <= 128 => distance,
        distance_from => far(distance_from as f64) as isize * distance.signum(),
    };
    let logarithmic = Buckets::new(512, 600, |distance| (bucket(distance) + 256).clamp(0, 511) as usize);
    let clipped = Buckets::new(1024, 512, |distance| (distance + 512).clamp(0, 1023) as usize);
    let kinds = [
        ("plain", Distance::Ignored, [false, false]),
        ("logarithmic, queries and keys", Distance::Buckets(logarithmic.clone()), [true, true]),
        ("logarithmic, queries", Distance::Buckets(logarithmic.clone()), [true, false]),
        ("logarithmic, keys", Distance::Buckets(logarithmic), [false, true]),
        ("clipped, queries and keys", Distance::Buckets(clipped), [true, true]),
    ];
    let segments = [Segment { rows: 0..TOKENS, first_position: 0, parent: None }];
    let [queries, keys, values] = [1, 2, 3].map(|seed| rows(TOKENS, seed));
    for number in numbers {
        let mut times = vec![(Vec::new(), Vec::new()); kinds.len()];
        for _ in 0..ROUNDS {
            for ((_, distance, has), (remember, attend)) in kinds.iter().zip(&mut times) {
                let spec = AttentionSpec {
                    heads: 12,
                    kv_heads: 12,
                    head_dim: WIDTH / 12,
                    value_dim: WIDTH / 12,
                    causal: false,
                    window: None,
                    scale: 0.1,
                    distance: distance.clone(),
                    softcap: None,
                };
                let relative = match distance {
                    Distance::Buckets(buckets) => {
                        let [of_keys, of_queries] = [4, 5].map(|seed| rows(buckets.rows(), seed));
                        let tables = [has[0].then_some(&of_keys), has[1].then_some(&of_queries)];
                        let products = Relative::new(isa, number, &spec, tables[0], tables[1]);
                        Some(ByDistance::Products(products))
                    }
                    _ => None,
                };
                let attention = Attention { isa, number, segments: &segments, spec: &spec };
                let [keys, values] = [&keys, &values].map(|rows| Blocks::new(std::slice::from_ref(rows)));
                let begun = Instant::now();
                let memory = attention.remember(keys, values, relative.as_ref(), false);
                remember.push(begun.elapsed().as_secs_f64() * 1e3);
                let begun = Instant::now();
                std::hint::black_box(memory.attend(&queries, &|query| (0, query)));
                attend.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        for ((name, ..), (remember, attend)) in kinds.iter().zip(times) {
            println!("| {name} | {number:?} | {:.2} | {:.2} |", least(remember), least(attend));
        }
    }
}

fn rows(count: usize, seed: usize) -> Rows {
    let mut rows = Rows::new(Number::F32, count, WIDTH);
    for row in 0..count {
        let values = rows.row_mut(row).iter_mut().enumerate();
        values.for_each(|(i, x)| *x = ((row * 31 + i * 17 + seed * 7) % 103) as f32 / 103.0 - 0.5);
    }
    rows
}

fn least(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[0]
}
