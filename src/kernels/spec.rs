//! What a model says of attention and of the function inside its MLP.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use serde::Serialize;
use serde::Serializer;

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
    /// `max(x, 0)²`
    ReluSquared,
    /// Of BERT's pooler and RoBERTa's head.
    Tanh,
}

/// What a gate makes of its number, which is what it lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// `sigmoid(x)`
    Sigmoid,
    /// `x · sigmoid(x)`
    Silu,
}

/// What a query sees, and how scores are made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head's queries and keys.
    pub head_dim: usize,
    /// Width of its values.
    pub value_dim: usize,
    /// Only itself and what is before it.
    pub causal: bool,
    /// Of those, only what is fewer than so many positions away: with 1, itself alone.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
    /// What the scaled scores have for how far a key is from a query.
    pub distance: Distance,
    /// `cap · tanh(score / cap)`
    pub softcap: Option<f64>,
}

/// What scores have for how far a key is from a query, beside rotary.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Nothing.
    Ignored,
    /// The head's slope times the position of the key, less that of the query (ALiBi); one for each query head.
    Slopes(#[serde(serialize_with = "serialize_shared")] Arc<[f32]>),
    /// The same times the factor on scores, where slope, position and their product are rounded to bfloat16 before the
    /// query's is taken off: see [`rounded_slope`] (Falcon).
    RoundedSlopes(#[serde(serialize_with = "serialize_shared")] Arc<[f32]>),
    /// A number of a table for each query head, in the row that the distance takes: what is
    /// [`ByDistance::Biases`](crate::ByDistance) of the layer (T5, MPNet).
    Biases(Buckets),
    /// The query times a row of a table, and the key times the same row of another, both scaled like the score: what is
    /// [`ByDistance::Products`](crate::ByDistance) of the layer (disentangled attention).
    Buckets(Buckets),
}

/// What [`Distance::RoundedSlopes`] have at a position.
pub fn rounded_slope(slope: f32, position: usize) -> f32 {
    let round = |x: f32| bf16::from_f32(x).to_f32();
    round(round(slope) * round(position as f32))
}

/// Which row of a table a distance takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Buckets {
    rows: usize,
    /// Of queries from so many positions before a key to as many after it; those further away take the ends'.
    #[serde(serialize_with = "serialize_shared")]
    of_distance: Arc<[u32]>,
}

impl Buckets {
    /// For tables of `rows` rows: `row(distance)` is that of a query so far after a key. It must not change beyond
    /// `reach`, nor, for [`Distance::Buckets`], fall as distances grow.
    pub fn new(rows: usize, reach: usize, row: impl Fn(isize) -> usize) -> Self {
        let distances = -(reach as isize)..=reach as isize;
        let of_distance: Arc<[u32]> = distances.map(|distance| row(distance) as u32).collect();
        assert!(of_distance.iter().all(|&row| (row as usize) < rows));
        Self { rows, of_distance }
    }

    /// How many rows the tables have.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The row of each distance, from as many before a key as after it.
    pub fn of_distance(&self) -> &[u32] {
        &self.of_distance
    }

    /// Whether rows never fall as distances grow.
    pub fn are_sorted(&self) -> bool {
        self.of_distance.is_sorted()
    }

    /// The row of a query so far after a key.
    pub fn row(&self, distance: isize) -> usize {
        let reach = (self.of_distance.len() / 2) as isize;
        self.of_distance[(distance.clamp(-reach, reach) + reach) as usize] as usize
    }
}

fn serialize_shared<T: Serialize, S: Serializer>(
    values: &Arc<[T]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    values[..].serialize(serializer)
}

impl AttentionSpec {
    /// The key and value head that a query head reads.
    pub fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }

    /// The positions that a query at one of them sees, in a sequence that ends at `end`.
    pub fn seen(&self, position: usize, end: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let last = if self.causal { 1 } else { self.window.unwrap_or(end) };
        first..end.min(position + last)
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

impl Segment {
    /// Position after its last token.
    pub fn end_position(&self) -> usize {
        self.first_position + self.rows.len()
    }

    /// Position of one of its rows.
    pub fn position(&self, row: usize) -> usize {
        self.first_position + row - self.rows.start
    }
}
