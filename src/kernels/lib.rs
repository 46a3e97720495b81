//! The CPU kernels of rewarm, and all of its `unsafe` code.
//!
//! ```text
//! isa        what the machine has: portable, AVX2, AVX-512, AVX-512 with bfloat16, AMX    (found at run time)
//! simd       vectors of f32 for each, and exp, tanh, GELU, SiLU over them
//! buffer     aligned memory that is used again
//! product    rows times packed weights: register tiles, then an epilogue
//! amx        the same by tile registers
//! rows       activations of a block of rows; norms, rotary, linear layers
//! attention  packed, over segments of sequences
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
//! PERF

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffer;
mod isa;
mod product;
mod rows;
mod simd;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::Serialize;

pub use attention::Attention;
pub use attention::Blocks;
pub use isa::Isa;
pub use product::Number;
pub use product::Weights;
pub use rows::Linear;
pub use rows::Rows;
pub use rows::Then;

/// The function between the layers of an MLP, or after a head's dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// With the error function.
    GeluErf,
    /// Its approximation with tanh.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
    /// Of BERT's pooler and RoBERTa's head.
    Tanh,
}

/// What a query sees, and how scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Only itself and what is before it.
    pub causal: bool,
    /// Of those, only this many, itself included. Causal only.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
    /// `cap · tanh(score / cap)`
    pub softcap: Option<f64>,
}

impl AttentionSpec {
    /// The key and value head that a query head reads.
    pub fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }
}

/// A run of rows of a packed batch that continues its parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its tokens are in the batch; never empty.
    pub rows: Range<usize>,
    /// Position of its first token in every sequence it is part of.
    pub first_position: usize,
    /// The segment before it; itself earlier in the batch.
    pub parent: Option<usize>,
}
