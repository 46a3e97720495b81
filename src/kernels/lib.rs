//! The CPU kernels of rewarm, and all of its `unsafe` code.
//!
//! ```text
//! spec       what attention does, and the function inside an MLP: what a model says of them
//! isa        what the machine has: portable, AVX2, AVX-512, AVX-512 with bfloat16, AMX    (found at run time)
//! simd       vectors of f32 for each, and exp, tanh, GELU, SiLU over them
//! buffer     aligned memory that is used again
//! mapped     files of weights, which nobody changes while they are read
//! product    rows times packed weights: register tiles, then an epilogue
//! amx        the same by tile registers
//! shared     rows that threads share, each with its own columns
//! rows       activations of a block of rows; norms, rotary, linear layers
//! attention  packed, over segments of sequences
//! delta      gated delta rules: attention with a memory
//! ```
//!
//! A kernel is written once, generic over a vector unit, and compiled for each; so one binary uses the best of the
//! machine it runs on, and what Miri checks of the portable form is the pointer arithmetic of all. It runs on the
//! thread that calls it; blocks of rows run in parallel (rayon, in the pool of the caller).
//!
//! # Exactness
//!
//! Every number is one chain of operations that does not depend on what is beside it: a product adds its inputs in
//! order, a norm looks at its row, attention cuts a sequence by position. So results are equal to the last bit
//! whatever the batch, the blocks and the number of threads. Between instruction sets they differ in the last bits.
//!
//! `f32` multiplies and adds in `f32`. Bfloat16 rounds both sides of a product to 8 bits and adds in `f32`; the
//! residual stream, norms, softmax, rotary and activations stay `f32`.
//!
//! # Performance notes
//!
//! Measured on 2 cores of an Intel Xeon (AVX-512, AMX) that is shared with others, so that its speed swings by half
//! within minutes; ratios are of one sitting, medians. `cargo bench -p rewarm-kernels` repeats the first table,
//! `tests/reference/peers/run.py` the comparison with torch and others.
//!
//! **The floor.** A forward of all-MiniLM-L6's shape over 32 sequences of 128 tokens is 92 GFLOP, 97% of it in matrix
//! products, over 43 MB of `f32` weights. The peak of fused multiply-adds was 233 to 330 GFLOP/s (2 cores), that of
//! dot products of bfloat16 62 to 134 (slower than `f32` on this CPU: why `dtype = "auto"` looks at the vendor), that
//! of AMX tiles in registers 1,450 to 5,300, and of AMX with its operands in the first-level cache 860 to 1,175.
//! So `f32` is bound by arithmetic, and bfloat16 by how fast tiles are loaded: AMX does the arithmetic of a
//! forward in 20 to 60 ms, and everything that is not a product weighs as much.
//!
//! | products, 2 threads | GFLOP/s | of the peak in the same run |
//! | --- | --- | --- |
//! | `f32`, 192 rows, 384 to 4096 wide | 203 to 238 | 69 to 81% (register tiles alone: 87 to 90% in a quiet minute) |
//! | `f32`, 128, 64, 32, 16 rows | 228, 221, 215, 171 | 78, 75, 73, 58% |
//! | bfloat16 (AMX), 192 rows, 384 to 4096 wide | 1,122 to 2,184 | 21 to 41% of tiles in registers, 8 times or more the dot products' |
//! | bfloat16 (AMX), 128, 64, 32, 16 rows | 1,316, 1,096, 1,215, 779 | 25, 21, 23, 15% |
//!
//! | where the time of that forward goes | `f32` | bfloat16 |
//! | --- | --- | --- |
//! | products (with attention's) | 82% | 53 to 57% |
//! | GELU, bias, residual, rounding (epilogues) | 7% | 17% |
//! | softmax | 5% | 13% |
//! | packing keys and values | 2% | 7% |
//! | norms, embedding, the rest | 4% | 10% |
//!
//! | idea | predicted | brought |
//! | --- | --- | --- |
//! | weights packed once, 12 x 32 register tiles | 1.5x candle's products | 1.5x |
//! | epilogues on the tile while it is in cache | candle's GELU was a third | GELU is 5% |
//! | a block of rows goes from attention to attention in its core's cache | no activation leaves L2 | all the above: the demo forward 6.7 to 7.6x candle's (another sitting) |
//! | only pooled rows in the last layer | 1/6 · 10/12 = 14% of MiniLM | 14% fewer operations |
//! | AMX instead of dot products | 8x the arithmetic | 4 to 5x in products, 2.2 to 4.1x in the forward |
//! | free lists for buffers | candle: allocation was most of the rest | page faults are 2% |
//! | vector transposes for keys (bfloat16) | packing was 32% of the forward | 7% |
//! | asking for weights 16 inputs ahead | nothing: the streamer sees them | 3 to 10% of `f32` products |
//! | asking for the next panel while one is multiplied | weights that come from memory: 16 rows ran at 55% of the peak, 192 at 92% | 84 and 96%, below |
//! | rows of an odd number of cache lines | no tile falls into one set | widths of 1024 and 4096 as fast as 1536 |
//! | copying rows into tiles first | 5% | 3%: left out |
//! | tile loads that pass by the first-level cache | room for weights | 20% slower: left out |
//!
//! **The next panel**, on an AMD EPYC (Zen 5: 2 cores do 516 GFLOP/s in `f32`, 965 in bfloat16; medians, in turns with what
//! was before). One thread, weights from memory, before and after:
//!
//! | rows | 8 | 12 | 16 | 32 | 64 | 128 | 192 |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | `f32`, of the peak | 40 → 42% | 55 → 69% | 54 → 85% | 73 → 92% | 83 → 92% | 90 → 94% | 92 → 96% |
//! | bfloat16, of the peak | 33 → 41% | 42 → 70% | 48 → 84% | 65 → 90% | 77 → 92% | 85 → 94% | 88 → 96% |
//! | `f32` with AVX2, of its peak | 50 → 66% | 65 → 82% | 68 → 81% | 78 → 81% | 88 → 88% | 92 → 96% | 94 → 97% |
//!
//! Forwards, `f32` and bfloat16: BERT-base 1 x 32 in 12.4 for 16.4 ms and 6.4 for 9.0, 8 x 128 1 and 3% faster; MiniLM
//! 32 x 128 the same and 10% faster; Qwen3-0.6B 4 x 512 in bfloat16 3%. Tried besides, and left out: asking for large pages
//! (nothing: mimalloc has them already, 95% of what is resident), blocks of 96 rows (BERT-base 2% slower, SmolLM2 1.7% faster), and one
//! block whose columns two threads share in place of two blocks of 16 rows (the same).
//!
//! **Int8 was not built.** With products at 53 to 57% of a bfloat16 forward on AMX, twice as fast products would bring 1.4x at
//! most, before activations are quantised. And dynamic int8 (a scale per token and per output) does not keep
//! ranks: against `f32` on 200 real dialogues Spearman's correlation was 0.984 (MiniLM) and 0.892 (SmolLM2-135M), where
//! bfloat16 has 0.9998 and 0.997. Weights alone in int8 (0.999 and 0.993) would multiply no faster.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffer;
mod delta;
mod isa;
mod mapped;
mod product;
mod rows;
mod shared;
mod simd;
mod spec;
#[cfg(test)]
mod tests;

pub use attention::Attention;
pub use attention::Blocks;
pub use attention::ByDistance;
pub use attention::Relative;
pub use attention::Remembered;
pub use delta::Delta;
pub use delta::DeltaSpec;
pub use isa::Isa;
pub use isa::Loops;
pub use mapped::Mapped;
pub use mapped::Region;
pub use product::Number;
pub use product::Weights;
pub use rows::Linear;
pub use rows::Rows;
pub use rows::Term;
pub use rows::Then;
pub use spec::Activation;
pub use spec::AttentionSpec;
pub use spec::Buckets;
pub use spec::Distance;
pub use spec::Gate;
pub use spec::Segment;
pub use spec::rounded_slope;
