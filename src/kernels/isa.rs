//! What this machine's vector units can do; found out once, at run time.

#![expect(unsafe_code, reason = "the one place where a detected instruction set becomes a type")]

use std::sync::OnceLock;

use crate::simd::Portable;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};

/// An instruction set that this machine has: a value proves it, since only detection makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

/// From the least to the most able.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the compiler makes of plain loops: SSE2 on x86-64, NEON on ARM.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// Dot products of pairs of bfloat16 as well.
    Avx512Bf16,
    /// Products of tiles of bfloat16 as well.
    Amx,
}

/// Code that is written for any vector unit.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Must be `inline(always)`, as everything that it calls: what is not inlined is compiled without the instruction
    /// set, correct but slow.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Plain loops, of which the compiler makes vectors: as wide as [`Isa::loops`] says.
pub trait Loops {
    /// What they return.
    type Output;
    /// Must be `inline(always)`, as everything that it calls: what is not inlined has narrow vectors.
    fn run(self) -> Self::Output;
}

/// Loops need no vector unit by name.
struct Plain<L>(L);

impl<L: Loops> Kernel for Plain<L> {
    type Output = L::Output;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> L::Output {
        self.0.run()
    }
}

/// What [`Isa::best`] answers.
static BEST: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// The most able that this machine has, unless [`Isa::prefer`] said another.
    pub fn best() -> Self {
        *BEST.get_or_init(|| *Self::all().last().expect("every machine has the portable one"))
    }

    /// Makes it the best for the rest of the process: machines of several kinds then give rewards that are equal to the last
    /// bit. False if the best has been asked for already, and is another.
    pub fn prefer(self) -> bool {
        *BEST.get_or_init(|| self) == self
    }

    /// All that this machine has, from the least able.
    pub fn all() -> Vec<Self> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                levels.push(Level::Avx512);
                if is_x86_feature_detected!("avx512bf16") {
                    levels.push(Level::Avx512Bf16);
                    if crate::amx::is_available() {
                        levels.push(Level::Amx);
                    }
                }
            }
        }
        levels.into_iter().map(Self).collect()
    }

    /// As in logs.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512-bf16",
            Level::Amx => "amx-bf16",
        }
    }

    /// Whether products of bfloat16 are faster than those of `f32`: with tiles, and with AMD's dot products. Intel's
    /// dot products were measured to take twice as long for half as many pairs.
    pub fn prefers_bf16(self) -> bool {
        match self.0 {
            Level::Amx => true,
            Level::Avx512Bf16 => is_amd(),
            _ => false,
        }
    }

    /// Whether there are instructions for products of bfloat16.
    pub fn multiplies_bf16(self) -> bool {
        self.0 >= Level::Avx512Bf16
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }

    /// Runs loops, compiled for this instruction set. They compute the same with each: compilers neither change the order of
    /// additions nor make one rounding of a product and a sum.
    pub fn loops<L: Loops>(self, loops: L) -> L::Output {
        self.run(Plain(loops))
    }

    /// Runs a kernel, compiled for this instruction set.
    #[inline(always)]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
            fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: whoever calls a function with target features has made sure that the machine has them
                kernel.run(unsafe { Avx512::<true>::new() })
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: as above
                kernel.run(unsafe { Avx512::<false>::new() })
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: as above
                kernel.run(unsafe { Avx2::new() })
            }
            match self.0 {
                // SAFETY: only `all` makes a level, and it has found these features on this machine
                Level::Amx | Level::Avx512Bf16 => return unsafe { avx512_bf16(kernel) },
                // SAFETY: as above
                Level::Avx512 => return unsafe { avx512(kernel) },
                // SAFETY: as above
                Level::Avx2 => return unsafe { avx2(kernel) },
                Level::Portable => {}
            }
        }
        kernel.run(Portable)
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
