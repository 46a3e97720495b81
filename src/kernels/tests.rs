//! Products of slices that end where memory ends: what reads or writes one number too far does not survive.

#![cfg_attr(not(miri), expect(unsafe_code, reason = "asks the system for a page that nobody may touch"))]

use std::ops::Range;

use half::bf16;

use crate::isa::Isa;
use crate::isa::Kernel;
use crate::product::BF16_DEPTH;
use crate::product::Epilogue;
use crate::product::Multiplier;
use crate::product::Number;
use crate::product::Operand;
use crate::product::Panel;
use crate::product::Part;
use crate::simd::Simd;

/// Numbers in -2..2, the same for a seed everywhere.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(draw).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Numbers with a page after them that must not be touched. Under Miri the end of an allocation is that.
struct Guarded {
    #[cfg(all(target_os = "linux", not(miri)))]
    pages: *mut u8,
    #[cfg(not(all(target_os = "linux", not(miri))))]
    values: Box<[f32]>,
    #[cfg(all(target_os = "linux", not(miri)))]
    bytes: usize,
}

#[cfg(all(target_os = "linux", not(miri)))]
mod guarded {
    use std::ffi::c_int;
    use std::ffi::c_void;

    use super::Guarded;

    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            len: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            offset: i64,
        ) -> *mut c_void;
        fn mprotect(at: *mut c_void, len: usize, protection: c_int) -> c_int;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
    }

    /// A multiple of every page size.
    const PAGE: usize = 1 << 16;

    impl Guarded {
        pub(super) fn new<T: bytemuck::Pod>(count: usize) -> Self {
            let bytes = count * size_of::<T>();
            let len = bytes.next_multiple_of(PAGE);
            // SAFETY: a private anonymous mapping (3: read and write, 0x22), of which the last page is protected
            let pages = unsafe {
                let pages = mmap(std::ptr::null_mut(), len + PAGE, 3, 0x22, -1, 0);
                assert!(pages as isize != -1 && mprotect(pages.byte_add(len), PAGE, 0) == 0);
                pages.cast()
            };
            Self { pages, bytes }
        }

        pub(super) fn get<T: bytemuck::Pod>(&self) -> &[T] {
            let len = self.bytes.next_multiple_of(PAGE);
            // SAFETY: the mapping's last bytes before the protected page; the system has filled them with zeros
            bytemuck::cast_slice(unsafe {
                std::slice::from_raw_parts(self.pages.add(len - self.bytes), self.bytes)
            })
        }

        pub(super) fn get_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
            let len = self.bytes.next_multiple_of(PAGE);
            // SAFETY: as above, and borrowed from whom they belong to
            bytemuck::cast_slice_mut(unsafe {
                std::slice::from_raw_parts_mut(self.pages.add(len - self.bytes), self.bytes)
            })
        }
    }

    impl Drop for Guarded {
        fn drop(&mut self) {
            // SAFETY: mapped by `new`; nobody borrows it any more
            unsafe { munmap(self.pages.cast(), self.bytes.next_multiple_of(PAGE) + PAGE) };
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
impl Guarded {
    fn new<T: bytemuck::Pod>(count: usize) -> Self {
        Self { values: vec![0.0; (count * size_of::<T>()).div_ceil(4)].into() }
    }

    fn get<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.values)
    }

    fn get_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.values)
    }
}

/// The sums, `[rows, width]`.
struct Collect(Vec<f32>, usize);

impl Epilogue for Collect {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, _: S, rows: Range<usize>, _: usize, sums: &[f32]) {
        self.0[rows.start * self.1..rows.end * self.1].copy_from_slice(sums);
    }
}

#[test]
fn products_touch_nothing_beyond_their_operands_and_parts_go_on() {
    let all_rows: Vec<usize> = if cfg!(miri) { vec![1, 14] } else { (1..36).chain([47, 48, 64]).collect() };
    let depths: &[usize] = if cfg!(miri) { &[1, 33] } else { &[1, 2, 15, 31, 32, 33, 64, 97] };
    for isa in Isa::all() {
        for number in [Number::F32, Number::Bf16] {
            if number == Number::Bf16 && !isa.multiplies_bf16() {
                continue;
            }
            let (mut multiplier, width) = (Multiplier::new(isa, number), isa.panel_width());
            for (&rows, &depth) in
                all_rows.iter().flat_map(|rows| depths.iter().map(move |depth| (rows, depth)))
            {
                // as the precondition has it: bfloat16 comes in groups of inputs, with memory for 16 rows
                let (held_rows, held) = match number {
                    Number::F32 => (rows, depth),
                    Number::Bf16 => (rows.next_multiple_of(16), depth.next_multiple_of(BF16_DEPTH)),
                };
                let stride = held + 32;
                let (x, w) = (numbers(rows * depth, 1), numbers(depth * width, 2));
                let (of_a, of_b) = ((held_rows - 1) * stride + held, held * width);
                let [mut a, mut b] = match number {
                    Number::F32 => [of_a, of_b].map(Guarded::new::<f32>),
                    Number::Bf16 => [of_a, of_b].map(Guarded::new::<bf16>),
                };
                let mut expected = vec![0.0; rows * width];
                for (row, i) in (0..rows).flat_map(|row| (0..depth).map(move |i| (row, i))) {
                    let round = |x: f32| if number == Number::Bf16 { bf16::from_f32(x).to_f32() } else { x };
                    for column in 0..width {
                        let product = round(x[row * depth + i]) * round(w[i * width + column]);
                        expected[row * width + column] += product;
                    }
                    match number {
                        Number::F32 => a.get_mut::<f32>()[row * stride + i] = x[row * depth + i],
                        Number::Bf16 => a.get_mut()[row * stride + i] = bf16::from_f32(x[row * depth + i]),
                    }
                }
                for (i, column) in (0..depth).flat_map(|i| (0..width).map(move |column| (i, column))) {
                    let x = w[i * width + column];
                    match number {
                        Number::F32 => b.get_mut::<f32>()[i * width + column] = x,
                        Number::Bf16 => b.get_mut()[(i / 2 * width + column) * 2 + i % 2] = bf16::from_f32(x),
                    }
                }
                // whole, and cut after its first group of inputs
                let cut = BF16_DEPTH.min(depth);
                let results = [[depth, 0], [cut, depth - cut]].map(|depths| {
                    let starts = [0, depths[0]];
                    let parts = starts.into_iter().zip(depths).filter(|&(_, depth)| depth > 0);
                    let part = |(start, depth): (usize, usize)| {
                        let (rows, panel) = match number {
                            Number::F32 => (
                                Operand::F32(&a.get()[start..], stride),
                                Panel::F32(&b.get()[start * width..]),
                            ),
                            Number::Bf16 => (
                                Operand::Bf16(&a.get()[start..], stride),
                                Panel::Bf16(&b.get()[start * width..]),
                            ),
                        };
                        Part { rows, panel, depth }
                    };
                    let parts = parts.map(part);
                    let mut collect = Collect(vec![f32::NAN; rows * width], width);
                    multiplier.multiply(rows, parts, 0, &mut collect);
                    collect.0
                });
                let name = format!("{isa:?} {number:?} {rows} rows of {depth}");
                let error = |(ours, expected): (&f32, &f32)| (ours - expected).abs();
                let error = results[0].iter().zip(&expected).map(error).fold(0.0, f32::max);
                assert!(error <= depth as f32 * 4.0 * depth as f32 * f32::EPSILON, "{name}: {error}");
                assert_eq!(bits(&results[0]), bits(&results[1]), "{name}: in parts");
            }
        }
    }
}

/// Adds one to each number, or rounds it.
struct Touch<'a> {
    values: &'a mut [f32],
    rounded: &'a mut [bf16],
}

impl Kernel for Touch<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (values, rounded) in self.values.chunks_mut(S::LANES).zip(self.rounded.chunks_mut(S::LANES)) {
            let x = simd.add(simd.load(values), simd.splat(1.0));
            simd.store(values, x);
            simd.store_bf16(rounded, x);
        }
    }
}

/// Numbers at places, those of a vector at a time.
struct Gather<'a> {
    from: &'a [f32],
    at: &'a [u32],
    less: u32,
    to: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (at, to) in self.at.chunks_exact(S::LANES).zip(self.to.chunks_exact_mut(S::LANES)) {
            simd.store(to, simd.gather(self.from, at, self.less));
        }
    }
}

#[test]
fn numbers_are_taken_from_their_places_and_from_nowhere_beyond() {
    for isa in Isa::all() {
        for count in [1, 2, 16, 37] {
            let mut values = Guarded::new::<f32>(count);
            values.get_mut()[..count].copy_from_slice(&numbers(count, 1));
            let values = &values.get::<f32>()[..count];
            let at: Vec<u32> =
                (0..32).map(|i| [5 + i % count as u32, u32::MAX, 0, 5][i as usize % 4]).collect();
            let mut to = vec![f32::NAN; 32];
            isa.run(Gather { from: values, at: &at, less: 5, to: &mut to });
            let expected = |&at: &u32| values[(at.wrapping_sub(5) as usize).min(count - 1)];
            assert_eq!(to, at.iter().map(expected).collect::<Vec<_>>(), "{isa:?}");
        }
    }
}

#[test]
fn vectors_touch_nothing_beyond_a_slice() {
    for isa in Isa::all() {
        for count in (0..50).step_by(if cfg!(miri) { 7 } else { 1 }) {
            let mut values = Guarded::new::<f32>(count);
            let mut rounded = Guarded::new::<bf16>(count);
            let before = numbers(count, 1);
            values.get_mut()[..count].copy_from_slice(&before);
            let rounded = &mut rounded.get_mut::<bf16>()[..count];
            isa.run(Touch { values: &mut values.get_mut()[..count], rounded });
            let expected: Vec<f32> = before.iter().map(|x| x + 1.0).collect();
            assert_eq!(&values.get::<f32>()[..count], expected, "{isa:?}");
            let expected: Vec<bf16> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
            assert_eq!(rounded, expected, "{isa:?}");
        }
    }
}
