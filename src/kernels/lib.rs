//! The CPU kernels of rewarm, and all of its `unsafe` code.

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
