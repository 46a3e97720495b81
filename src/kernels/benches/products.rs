//! Products of transformer shapes, against what the machine can do at most.
//!
//! ```text
//! cargo bench -p rewarm-kernels
//! ```
//!
//! The peaks are measured in the same run: chains of fused multiply-adds, of dot products of bfloat16, and of products
//! of tiles, that touch no memory. Every thread multiplies rows of its own by the same weights. Peaks and products
//! take turns; figures are medians over the rounds.

#![expect(unsafe_code, reason = "the peaks are instructions without operands in memory")]

use std::time::Instant;

use half::bf16;
use rewarm_kernels::Isa;
use rewarm_kernels::Linear;
use rewarm_kernels::Number;
use rewarm_kernels::Rows;
use rewarm_kernels::Then;
use rewarm_kernels::Weights;

const ROUNDS: usize = 9;

/// `[rows, input, output]`
const SHAPES: [[usize; 3]; 10] = [
    [192, 384, 1536],
    [192, 1536, 384],
    [192, 384, 384],
    [192, 576, 1536],
    [192, 1024, 4096],
    [192, 4096, 1024],
    [128, 768, 3072],
    [64, 768, 3072],
    [32, 768, 3072],
    [16, 768, 3072],
];

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let isa = Isa::best();
    println!("{isa:?}, {threads} threads, GFLOP/s, medians of {ROUNDS} rounds\n");
    let mut kinds = vec![(Number::F32, peak_f32 as fn() -> Option<f64>)];
    if isa.multiplies_bf16() {
        kinds.push((Number::Bf16, peak_bf16));
    }
    println!("| rows x input x output | number | GFLOP/s | of the peak |");
    println!("| --- | --- | --- | --- |");
    for (number, peak) in kinds {
        let layers: Vec<_> = SHAPES.iter().map(|&shape| layer(isa, number, shape)).collect();
        let mut peaks = Vec::new();
        let mut rates = vec![Vec::new(); SHAPES.len()];
        for _ in 0..ROUNDS {
            peaks.extend(on_all(threads, &peak));
            for ((layer, &[rows, input, output]), rates) in layers.iter().zip(&SHAPES).zip(&mut rates) {
                let flops = 2.0 * (rows * input * output) as f64;
                let repeats = (2e9 / flops).ceil() as usize;
                rates.extend(on_all(threads, &|| {
                    let x = operand(isa, number, rows, input);
                    let mut to = Rows::new(Number::F32, rows, output);
                    let begun = Instant::now();
                    for _ in 0..repeats {
                        to = layer.forward(&x, to, Then::Keep);
                    }
                    std::hint::black_box(to.row(0));
                    Some(flops * repeats as f64 / begun.elapsed().as_secs_f64() / 1e9)
                }));
            }
        }
        let peak = median(peaks);
        println!("| peak | {number:?} | {peak:.0} | |");
        for ([rows, input, output], rates) in SHAPES.iter().zip(rates) {
            let rate = median(rates);
            println!(
                "| {rows} x {input} x {output} | {number:?} | {rate:.0} | {:.0}% |",
                100.0 * rate / peak
            );
        }
    }
}

/// The rates of all threads together.
fn on_all(threads: usize, f: &(impl Fn() -> Option<f64> + Sync)) -> Option<f64> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(f)).collect();
        running.into_iter().map(|thread| thread.join().expect("a bench thread does not panic")).sum()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn layer(isa: Isa, number: Number, [_, input, output]: [usize; 3]) -> Linear {
    let weight = |output: usize, i: usize| ((output * 7 + i * 13) % 101) as f32 / 101.0 - 0.5;
    Linear::new(isa, number, [input, output], None, |output, inputs, to| match to {
        Weights::F32(to) => to.iter_mut().zip(inputs).for_each(|(to, i)| *to = weight(output, i)),
        Weights::Bf16(to) => {
            to.iter_mut().zip(inputs).for_each(|(to, i)| *to = bf16::from_f32(weight(output, i)))
        }
    })
}

fn operand(isa: Isa, number: Number, rows: usize, input: usize) -> Rows {
    let mut x = Rows::new(Number::F32, rows, input);
    for row in 0..rows {
        x.row_mut(row)
            .iter_mut()
            .enumerate()
            .for_each(|(i, x)| *x = ((row * 31 + i * 17) % 103) as f32 / 103.0);
    }
    if number == Number::Bf16 { x.to_bf16(isa) } else { x }
}

#[cfg(target_arch = "x86_64")]
fn peak_f32() -> Option<f64> {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn avx512(repeats: usize) -> f32 {
        let (x, y) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
        let mut sums = [y; 24];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(y, |a, b| _mm512_add_ps(a, b)))
    }
    #[target_feature(enable = "avx2,fma")]
    fn avx2(repeats: usize) -> f32 {
        let (x, y) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3));
        let mut sums = [y; 12];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, y);
            }
        }
        _mm256_cvtss_f32(sums.into_iter().fold(y, |a, b| _mm256_add_ps(a, b)))
    }
    const REPEATS: usize = 4_000_000;
    let begun = Instant::now();
    let (sum, flops) = if is_x86_feature_detected!("avx512f") {
        // SAFETY: just detected
        (unsafe { avx512(REPEATS) }, 24 * 32)
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: just detected
        (unsafe { avx2(REPEATS) }, 12 * 16)
    } else {
        return None;
    };
    std::hint::black_box(sum);
    Some((REPEATS * flops) as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

#[cfg(target_arch = "x86_64")]
fn peak_bf16() -> Option<f64> {
    use std::arch::asm;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot_products(repeats: usize) -> f32 {
        // SAFETY: `__m512bh` is any 512 bits
        let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(0x3c00_3c00)) };
        let mut sums = [_mm512_set1_ps(1.0); 24];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |a, b| _mm512_add_ps(a, b)))
    }
    #[repr(C, align(64))]
    struct TileConfig([u8; 64]);
    fn tiles(repeats: usize) {
        let mut config = TileConfig([0; 64]);
        config.0[0] = 1;
        (0..8).for_each(|tile| (config.0[16 + 2 * tile], config.0[48 + tile]) = (64, 16));
        // SAFETY: only where `Isa` found tiles; they are configured before and released after
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config);
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {repeats}",
                "jnz 2b",
                "tilerelease",
                repeats = inout(reg) repeats => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
    let begun = Instant::now();
    let flops = if Isa::best().name() == "amx-bf16" {
        const REPEATS: usize = 400_000;
        tiles(REPEATS);
        REPEATS * 4 * 2 * 16 * 16 * 32
    } else {
        const REPEATS: usize = 2_000_000;
        // SAFETY: `main` asks only where the instruction set multiplies bfloat16
        std::hint::black_box(unsafe { dot_products(REPEATS) });
        REPEATS * 24 * 64
    };
    Some(flops as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_f32() -> Option<f64> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_bf16() -> Option<f64> {
    None
}
