//! The operations that models are made of, behind one interface: [`Ops`].
//!
//! | form | where | what for |
//! | --- | --- | --- |
//! | [`composed::Composed`] | plain candle operations, any device | the reference, differentiable; CUDA |
//! | [`cpu::Cpu`] | our own kernels | serving on a CPU |
//! | [`training::Training`] | the composed form, with parameters by name and dropout | gradients |
//!
//! Models are generic over the form, so there is one description of each, and property tests hold the forms to
//! each other.
//!
//! # Rows and blocks
//!
//! Sequences are packed: activations are `[rows, width]`, one row for each token of the batch, and only
//! attention knows where sequences end. Between two attentions a token is on its own; so the rows are cut into
//! *blocks* ([`Ops::blocks`]), and a model describes what happens to one block ([`Ops::each`]). On a CPU the
//! blocks run in parallel, each small enough to stay in its core's cache from one attention to the next; the
//! composed form has one block of all rows.

pub mod batch;
pub mod composed;
pub mod cpu;
pub mod machine;
pub mod source;
#[cfg(test)]
mod textbook;
pub mod training;

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

use candle_core::Result;
pub use rewarm_kernels::Activation;
pub use rewarm_kernels::AttentionSpec;
pub use rewarm_kernels::Buckets;
pub use rewarm_kernels::Distance;
pub use rewarm_kernels::rounded_slope;

use crate::ops::batch::PackedBatch;
use crate::ops::source::LinearSource;
use crate::values::Format;
use crate::values::Values;

/// Rows of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// One after the other.
    Run(Range<usize>),
    /// These, in this order.
    Listed(&'a [usize]),
}

impl Which<'_> {
    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks for none")]
    pub fn len(&self) -> usize {
        match self {
            Self::Run(rows) => rows.len(),
            Self::Listed(rows) => rows.len(),
        }
    }

    /// The row of the batch that is at this place.
    pub fn row(&self, place: usize) -> usize {
        match self {
            Self::Run(rows) => rows.start + place,
            Self::Listed(rows) => rows[place],
        }
    }

    /// Those at some of the places.
    pub fn part(&self, places: Range<usize>) -> Self {
        match self {
            Self::Run(rows) => Self::Run(rows.start + places.start..rows.start + places.end),
            Self::Listed(rows) => Self::Listed(&rows[places]),
        }
    }
}

/// A convolution over positions.
#[derive(Debug)]
pub struct Convolution<O: Ops> {
    /// Of each group of columns, `[columns, columns · kernel]`: of a column its values at `kernel` positions, then of the
    /// next.
    pub groups: Vec<Arc<O::Linear>>,
    /// How many positions; the middle one is the row's own.
    pub kernel: usize,
    /// After it.
    pub activation: Activation,
}

/// In what a layer's weights are kept and its products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The form's own: what the variant was configured with.
    Working,
    /// `f32` whatever the variant's: heads.
    F32,
}

/// Cosines and sines of one rotary position embedding for every row of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Angles {
    /// Row-major `[rows, pairs]`
    pub cos: Vec<f32>,
    /// The same.
    pub sin: Vec<f32>,
    /// How many pairs of each head turn: half a head, or fewer, and the columns behind stay as they are.
    pub pairs: usize,
}

/// One form of the operations.
///
/// Activations between operations are `f32`, or what the form multiplies in: [`Ops::operand`] rounds to it.
pub trait Ops: Debug + Send + Sync + Sized + 'static {
    /// Activations `[rows, width]`.
    type Rows: Clone + Send + Sync + 'static;
    /// Weights of a linear layer.
    type Linear: Debug + Send + Sync + 'static;
    /// Weights of two linear layers, gate and up, on the same input.
    type Gated: Debug + Send + Sync + 'static;
    /// A norm's `f32` weights, `[width]`.
    type Vector: Debug + Send + Sync + 'static;
    /// An embedding, `[vocab, width]`.
    type Table: Debug + Send + Sync + 'static;
    /// What the attentions of all layers, and rotary, know of a batch.
    type Packing<'a>: Sync;
    /// Keys and values of all rows of a batch, in one layer.
    type Remembered<'a>: Sync;
    /// Parameters of a layer that [`Distance`] speaks of, laid out for attention.
    type ByDistance: Debug + Send + Sync + 'static;

    /// Names the form, where it keeps weights, and in what: weights that are equal are held once for each.
    fn name(&self) -> String;
    /// What weights come in when they are loaded. Vectors always come in `f32`, tables in [`Precision::Working`].
    fn format(&self, precision: Precision) -> Format;

    /// Lays a linear layer out for the product.
    fn load_linear(&self, source: LinearSource<'_>, precision: Precision) -> Result<Self::Linear>;
    /// The same for two that are used together.
    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Self::Gated>;
    /// A vector of a norm: `values`, those of the tensors `names` one after the other, with `offset` added to each.
    fn load_vector(&self, names: &[String], values: Vec<f32>, offset: f32) -> Result<Self::Vector>;
    /// A vector that is no parameter: what a norm has that a checkpoint lacks.
    fn constant(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// An embedding, row-major.
    fn load_table(&self, name: &str, values: Values, rows: usize, width: usize) -> Result<Self::Table>;

    /// Prepares a batch, with the angles of each rotary position embedding that the model has.
    fn packing<'a>(&self, batch: &'a PackedBatch, ropes: Vec<Angles>) -> Result<Self::Packing<'a>>;

    /// Runs a forward where its blocks can run in parallel.
    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        f()
    }
    /// How `rows` rows are cut. Every row is in one block, in order.
    fn blocks(&self, rows: usize) -> Vec<Range<usize>>;
    /// The same, with blocks of at most `max_rows` where the form cuts at all.
    fn small_blocks(&self, rows: usize, max_rows: usize) -> Vec<Range<usize>> {
        let _ = max_rows;
        self.blocks(rows)
    }
    /// How many blocks run at the same time; `None` for a form that takes all rows at once, and so no
    /// [steps](crate::model::steps).
    fn at_once(&self) -> Option<usize> {
        None
    }
    /// Runs `f` on every block, in parallel where that pays. Results are in the order of the blocks.
    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>>;

    /// For each row, the sum of one row of each table: `ids[table][row]`. Then `scale`, rounded to the working
    /// precision as transformers does (√3072 is 55.5 in bf16).
    fn embed(&self, tables: &[(&Self::Table, &[u32])], scale: Option<f64>) -> Result<Self::Rows>;
    /// Rounds what several linear layers read, once; passes on what needs no rounding.
    fn operand<'a>(&self, x: Cow<'a, Self::Rows>) -> Result<Cow<'a, Self::Rows>>;
    /// `x · weightᵀ + bias`
    fn linear(&self, x: &Self::Rows, layer: &Self::Linear) -> Result<Self::Rows>;
    /// `residual + x · weightᵀ + bias`, with [dropout](Self::dropout) of what is added.
    fn linear_add(&self, x: &Self::Rows, layer: &Self::Linear, residual: Self::Rows) -> Result<Self::Rows>;
    /// `activation(x · weightᵀ + bias)`
    fn linear_act(&self, x: &Self::Rows, layer: &Self::Linear, activation: Activation) -> Result<Self::Rows>;
    /// `activation(x · gateᵀ) · (x · upᵀ)`
    fn gated(&self, x: &Self::Rows, layer: &Self::Gated, activation: Activation) -> Result<Self::Rows>;
    /// Where training drops values at random, and other forms do nothing.
    fn dropout(&self, x: Self::Rows) -> Result<Self::Rows> {
        Ok(x)
    }
    /// `x + y`
    fn add(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows>;
    /// `x / rms(x) · weight` over each run of as many columns as `weight` has: a whole row, or each head of one.
    fn rms_norm(&self, x: &Self::Rows, weight: &Self::Vector, eps: f64) -> Result<Self::Rows>;
    /// `(x - mean) / std · weight + bias` over each run of as many columns as `weight` and `bias` have.
    fn layer_norm(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f64,
    ) -> Result<Self::Rows>;
    /// `x` with each column times a factor.
    fn scale(&self, x: Self::Rows, factors: &Self::Vector) -> Result<Self::Rows>;
    /// Turns each pair (`i`, `i + pairs`) of each head by the angles that its row has in one of the ropes of the
    /// packing; `which` says what rows of the batch `x` holds.
    fn rotary(
        &self,
        x: Self::Rows,
        head_dim: usize,
        rope: usize,
        packing: &Self::Packing<'_>,
        which: Which<'_>,
    ) -> Result<Self::Rows>;
    /// What depends on weights alone: made once, and kept where the weights stay as they are.
    fn of_weights<T>(&self, kept: &OnceLock<Arc<T>>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        match kept.get() {
            Some(made) => Ok(made.clone()),
            None => {
                let made = Arc::new(make()?);
                Ok(kept.get_or_init(|| made).clone())
            }
        }
    }
    /// Lays out a layer's tables for [`Distance::Buckets`]: a row for each bucket. `keys`, `[buckets, kv_heads ·
    /// head_dim]`, is for queries to be multiplied with; `queries`, `[buckets, heads · head_dim]`, for keys.
    fn products_by_distance(
        &self,
        keys: Option<Self::Rows>,
        queries: Option<Self::Rows>,
        spec: &AttentionSpec,
    ) -> Result<Self::ByDistance>;
    /// The same for [`Distance::Biases`]: a table `[buckets, heads]`.
    fn biases_by_distance(&self, table: Self::Rows) -> Result<Self::ByDistance>;
    /// Lays out the keys and values of all rows of a batch, in blocks, for attention; with the layer's parameters where
    /// [`Distance`] asks for them.
    fn remember<'a>(
        &self,
        keys: Vec<Self::Rows>,
        values: Vec<Self::Rows>,
        by_distance: Option<&'a Self::ByDistance>,
        packing: &'a Self::Packing<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Self::Remembered<'a>>;
    /// Attention of one block of queries, the rows that `which` says, each to its own sequence:
    /// `[rows, heads · head_dim]`.
    fn attend(&self, queries: &Self::Rows, which: Which<'_>, to: &Self::Remembered<'_>)
    -> Result<Self::Rows>;
    /// Of all rows of a batch, in blocks, what a convolution makes of those that `which` says and their neighbours in
    /// their own sequences, beyond which there are zeros.
    fn convolve(
        &self,
        blocks: &[Self::Rows],
        which: Which<'_>,
        layer: &Convolution<Self>,
        packing: &Self::Packing<'_>,
    ) -> Result<Self::Rows>;
    /// Picks rows out of the blocks of a batch, and cuts them as [`Ops::blocks`] does.
    fn gather(&self, blocks: &[Self::Rows], rows: &[usize]) -> Result<Vec<Self::Rows>>;
    /// For each list of rows their mean in `f32`, summed in the order of the list: `[lists, width]`, in blocks.
    fn mean(&self, blocks: &[Self::Rows], lists: &[Vec<usize>]) -> Result<Vec<Self::Rows>>;
    /// All values, row-major.
    fn to_vec(&self, blocks: &[Self::Rows]) -> Result<Vec<f32>>;
}
