//! Products of tiles of bfloat16: Intel's AMX.
//!
//! The intrinsics are not stable in Rust, so the instructions are written out. A tile register holds 16 rows of 64
//! bytes; eight of them make a product of 32 x 32 outputs: four accumulators, two tiles of rows, two of weights.

#![expect(unsafe_code, reason = "instructions that have no stable intrinsics")]

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use half::bf16;

/// Rows, and columns, of a tile of outputs.
const TILE: usize = 32;

/// Whether the machine has it and the kernel lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_amx() && ask_permission())
}

fn has_amx() -> bool {
    const TILE_BIT: u32 = 1 << 24;
    const BF16_BIT: u32 = 1 << 22;
    const STATE_BITS: u64 = 0b11 << 17; // XTILECFG and XTILEDATA
    let leaf7 = std::arch::x86_64::__cpuid_count(7, 0);
    let os_saves = || {
        let (low, high): (u32, u32);
        // SAFETY: AVX-512 was detected before we are asked, so the system has enabled XGETBV
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
        u64::from(low) | u64::from(high) << 32
    };
    leaf7.edx & (TILE_BIT | BF16_BIT) == TILE_BIT | BF16_BIT && os_saves() & STATE_BITS == STATE_BITS
}

/// Linux gives a process the larger register state only when asked: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`.
#[cfg(target_os = "linux")]
fn ask_permission() -> bool {
    let result: i64;
    // SAFETY: changes nothing but what the process may use
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 158_i64 => result,
            in("rdi") 0x1023,
            in("rsi") 18,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_permission() -> bool {
    false
}

#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread, configured; the last of them gives the registers back when dropped.
///
/// Neither `Send` nor `Sync`: on another thread the registers are not configured.
pub(crate) struct Tiles(PhantomData<*const ()>);

thread_local! {
    /// How many [`Tiles`] this thread has.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

impl Tiles {
    /// # Safety
    /// [`is_available`] must have said so.
    pub(crate) unsafe fn configure() -> Self {
        const CONFIG: TileConfig = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        if CONFIGURED.replace(CONFIGURED.get() + 1) == 0 {
            // SAFETY: the machine has the instruction, the caller says, and the configuration is valid: palette 1 has
            // 8 tiles of up to 16 rows of 64 bytes
            unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
        }
        Self(PhantomData)
    }

    /// 16 rows of `a`, or 32, times one panel of weights, into or onto `sums`.
    ///
    /// `steps` groups of 32 inputs; a row of `a` every `stride` numbers.
    ///
    /// # Safety
    /// `steps` must not be zero; `a` must have 16 rows of `steps · 32` numbers, or 32 if it `is_high`; `b` must have
    /// `steps · 16` rows of 32 pairs.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what one instruction sequence needs")]
    pub(crate) unsafe fn product(
        &self,
        is_high: bool,
        steps: usize,
        a: *const bf16,
        stride: usize,
        b: *const bf16,
        sums: &mut [f32; TILE * TILE],
        goes_on: bool,
    ) {
        let out = sums.as_mut_ptr();
        let fresh = if goes_on { 0_u64 } else { 1 };
        // SAFETY: `self` says that the registers are configured. Reads what the caller promises: `steps` times 16
        // rows of 64 bytes of `a` and, if high, of `a2`, and 16 rows of 128 bytes of `b`; reads and writes the first
        // 16 or 32 rows of `sums`. `a2` is 16 rows on, within `a`.
        unsafe {
            if is_high {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 3f",
                    "tileloadd tmm0, [{c} + {row}*1]",
                    "tileloadd tmm1, [{c} + {row}*1 + 64]",
                    "tileloadd tmm2, [{c2} + {row}*1]",
                    "tileloadd tmm3, [{c2} + {row}*1 + 64]",
                    "jmp 2f",
                    "3:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {row}*1]",
                    "tileloadd tmm7, [{b} + {row}*1 + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a2} + {stride}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, 64",
                    "add {a2}, 64",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "add {b}, 2048",
                    "dec {steps}",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "jnz 2b",
                    "tilestored [{c} + {row}*1], tmm0",
                    "tilestored [{c} + {row}*1 + 64], tmm1",
                    "tilestored [{c2} + {row}*1], tmm2",
                    "tilestored [{c2} + {row}*1 + 64], tmm3",
                    fresh = in(reg) fresh,
                    a = inout(reg) a => _,
                    a2 = inout(reg) a.add(16 * stride) => _,
                    b = inout(reg) b => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) stride * size_of::<bf16>(),
                    row = in(reg) TILE * size_of::<f32>(),
                    c = in(reg) out,
                    c2 = in(reg) out.add(16 * TILE),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 3f",
                    "tileloadd tmm0, [{c} + {row}*1]",
                    "tileloadd tmm1, [{c} + {row}*1 + 64]",
                    "jmp 2f",
                    "3:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {row}*1]",
                    "tileloadd tmm7, [{b} + {row}*1 + 64]",
                    "add {a}, 64",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "add {b}, 2048",
                    "dec {steps}",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "jnz 2b",
                    "tilestored [{c} + {row}*1], tmm0",
                    "tilestored [{c} + {row}*1 + 64], tmm1",
                    fresh = in(reg) fresh,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) stride * size_of::<bf16>(),
                    row = in(reg) TILE * size_of::<f32>(),
                    c = in(reg) out,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if CONFIGURED.replace(CONFIGURED.get() - 1) == 1 {
            // SAFETY: the registers are configured, on this thread, and nobody has any left
            unsafe { asm!("tilerelease", options(nomem, nostack)) };
        }
    }
}
