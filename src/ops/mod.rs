//! The operations that models are made of, behind one interface: [`Ops`].
//!
//! | form | where | what for |
//! | --- | --- | --- |
//! | [`composed::Composed`] | plain candle operations | the reference, differentiable |
//! | [`cpu::Cpu`] | our own kernels | serving on a CPU |
//! | [`cuda::Cuda`] | our own kernels, and cublasLt's products | serving on a GPU |
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
pub mod cuda;
pub mod error;
pub mod inputs;
pub mod machine;
pub mod packed;
pub mod source;
#[cfg(test)]
mod textbook;
#[cfg(test)]
mod tiny;
pub mod training;

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

pub use rewarm_kernels::Activation;
pub use rewarm_kernels::AttentionSpec;
pub use rewarm_kernels::Buckets;
pub use rewarm_kernels::DeltaSpec;
pub use rewarm_kernels::Distance;
pub use rewarm_kernels::Gate;
pub use rewarm_kernels::Term;
pub use rewarm_kernels::rounded_slope;
use serde::Serialize;

use crate::ops::error::OpsError;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::packed::Kind;
use crate::ops::packed::Packed;
use crate::ops::packed::Region;
use crate::ops::packed::Shape;
use crate::ops::source::LinearSource;
use crate::values::Format;
use crate::values::Values;

/// What a form was given of a batch before its turn.
pub type Ahead = Box<dyn Any + Send>;

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

/// A gated delta rule, but for its projections.
#[derive(Debug)]
pub struct Delta<O: Ops> {
    /// Sizes.
    pub spec: DeltaSpec,
    /// Of queries, keys and values, one after the other: `[columns, kernel]`.
    pub convolution: Arc<O::Vector>,
    /// How fast each value head forgets, as a logarithm.
    pub rates: Arc<O::Vector>,
    /// Added to what says how much it forgets.
    pub offsets: Arc<O::Vector>,
}

/// What a gate lets through at most, see [`Ops::gated_clamped`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Clamp {
    /// Factor inside the sigmoid.
    pub alpha: f32,
    /// Of gate and up.
    pub limit: f32,
}

/// In what a layer's weights are kept and its products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The form's own: what the variant was configured with.
    Working,
    /// `f32` whatever the variant's: heads.
    F32,
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
    /// Weights of several linear layers that read the same: queries, keys and values.
    type Joined: Debug + Send + Sync + 'static;
    /// A norm's `f32` weights, `[width]`.
    type Vector: Debug + Send + Sync + 'static;
    /// An embedding, `[vocab, width]`.
    type Table: Debug + Send + Sync + 'static;
    /// What operations know of a batch.
    type Batch<'a>: Sync;
    /// Keys and values of all rows of a batch, in one layer.
    type Remembered<'a>: Sync;
    /// Parameters of a layer that [`Distance`] speaks of, laid out for attention.
    type ByDistance: Debug + Send + Sync + 'static;
    /// A point in the form's own time.
    type Moment: Clone;

    /// Names the form, where it keeps weights, and in what: weights that are equal are held once for each.
    fn name(&self) -> String;
    /// What weights come in when they are loaded. Vectors always come in `f32`, tables in [`Precision::Working`].
    fn format(&self, precision: Precision) -> Format;
    /// In what values of weights that are to be in `format` may come instead, which are `stored` otherwise: where they are
    /// rounded as they are laid out, once.
    fn takes(&self, stored: Format, format: Format) -> Format {
        let _ = stored;
        format
    }

    /// Lays a linear layer out for the product.
    fn load_linear(&self, source: LinearSource<'_>, precision: Precision) -> Result<Self::Linear>;
    /// The same for two that are used together.
    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Self::Gated>;
    /// The same for several that read the same, each in its width.
    fn load_joined(&self, sources: &[LinearSource<'_>]) -> Result<Self::Joined>;
    /// A vector of a norm: `values`, those of the tensors `names` one after the other, with `offset` added to each.
    fn load_vector(&self, names: &[String], values: Vec<f32>, offset: f32) -> Result<Self::Vector>;
    /// A vector that is no parameter: what a norm has that a checkpoint lacks.
    fn constant(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// An embedding, row-major.
    fn load_table(&self, name: &str, values: Values, rows: usize, width: usize) -> Result<Self::Table>;

    /// How weights lie in memory, where a file can hold them as they do: forms of which this is equal have the same bytes of the
    /// same weights.
    fn layout(&self) -> Option<String> {
        None
    }
    /// Weights that were loaded, for a file to hold; `None` of what is not worth it.
    fn packed<'w>(&self, weights: &'w (dyn Any + Send + Sync)) -> Option<Packed<'w>> {
        let _ = weights;
        None
    }
    /// The weights that were [`Self::packed`] so, where a file holds them; `None` if they cannot be.
    fn mapped(&self, kind: Kind, pieces: Vec<(Shape, Region)>) -> Option<packed::Weights> {
        let _ = (kind, pieces);
        None
    }

    /// Makes sure of what forwards of up to `rows` rows take, where that is taken in advance: `forward` runs some, of
    /// which nothing is computed.
    fn reserve(&self, rows: usize, forward: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let _ = (rows, forward);
        Ok(())
    }
    /// Takes all that models read of a batch, before anything is computed.
    fn batch<'a>(&self, inputs: &'a Inputs<'a>) -> Result<Self::Batch<'a>>;
    /// Takes the same while another batch is computed, where that gains anything.
    fn prepare(&self, inputs: &Inputs<'_>) -> Result<Option<Ahead>> {
        let _ = inputs;
        Ok(None)
    }
    /// [`Self::batch`] of what was [prepared](Self::prepare) from the same inputs, or from others of the same batch.
    fn prepared_batch<'a>(&self, inputs: &'a Inputs<'a>, ahead: Ahead) -> Result<Self::Batch<'a>> {
        let _ = ahead;
        self.batch(inputs)
    }
    /// When what was asked for until now is done. It need not be done yet.
    fn moment(&self) -> Result<Self::Moment>;
    /// What the form computed between two moments; waits for the second.
    fn between(&self, from: &Self::Moment, to: &Self::Moment) -> Result<Duration>;

    /// Up to how many rows of hidden states of a width a batch leaves room beside it, such that several models gain by
    /// going through it side by side.
    fn rows_beside(&self, width: usize) -> usize {
        let _ = width;
        0
    }
    /// Before [branches](Self::branch): what `x` holds is made now, and for all of them.
    fn before_branches(&self, x: &Self::Rows) -> Result<()> {
        let _ = x;
        Ok(())
    }
    /// What `f` asks for may be computed beside what else is asked for until [`Self::join`]; it reads what was asked for
    /// before. Meanwhile nothing but other branches begins where it began, and nobody reads what it makes.
    fn branch<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        f()
    }
    /// The end of all branches. Tells whether anything was computed beside anything else.
    fn join(&self) -> Result<bool> {
        Ok(false)
    }

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
    /// How rows are cut that cost so much each: into blocks that cost about the same, where the form cuts at all.
    fn even_blocks(&self, costs: &[usize]) -> Vec<Range<usize>> {
        self.blocks(costs.len())
    }
    /// How many blocks run at the same time; `None` for a form that takes all rows at once, and so no
    /// [steps](crate::model::steps).
    fn at_once(&self) -> Option<usize> {
        None
    }
    /// Runs `f` on every block, in parallel where that pays. Results are in the order of the blocks.
    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>>;

    /// For each row of the batch that `which` says, the sum of one row of each table, which the
    /// [ids](Inputs::ids) at the place beside it tell. Then `scale`, rounded to the working precision as transformers
    /// does (√3072 is 55.5 in bf16).
    fn embed(
        &self,
        tables: &[(&Self::Table, usize)],
        scale: Option<f64>,
        batch: &Self::Batch<'_>,
        which: &Which,
    ) -> Result<Self::Rows>;
    /// Some rows of a table, whatever the batch.
    fn rows_of(&self, table: &Self::Table, rows: Range<usize>) -> Result<Self::Rows>;
    /// Rounds what several linear layers read, once; passes on what needs no rounding.
    fn operand<'a>(&self, x: Cow<'a, Self::Rows>) -> Result<Cow<'a, Self::Rows>>;
    /// `x · weightᵀ + bias`
    fn linear(&self, x: &Self::Rows, layer: &Self::Linear) -> Result<Self::Rows>;
    /// [`Self::linear`] of some of several layers, in their order.
    fn joined(&self, x: &Self::Rows, layers: &Self::Joined, which: Range<usize>) -> Result<Vec<Self::Rows>>;
    /// `residual + x · weightᵀ + bias`, with [dropout](Self::dropout) of what is added.
    fn linear_add(&self, x: &Self::Rows, layer: &Self::Linear, residual: Self::Rows) -> Result<Self::Rows>;
    /// `activation(x · weightᵀ + bias)`
    fn linear_act(&self, x: &Self::Rows, layer: &Self::Linear, activation: Activation) -> Result<Self::Rows>;
    /// `activation(x · gateᵀ) · (x · upᵀ)`
    fn gated(&self, x: &Self::Rows, layer: &Self::Gated, activation: Activation) -> Result<Self::Rows>;
    /// `g · sigmoid(alpha · g) · (u + 1)`, where `g = min(x · gateᵀ, limit)` and `u = x · upᵀ` is at most `limit` from zero
    /// (GPT-OSS); not in all forms.
    fn gated_clamped(&self, x: &Self::Rows, layer: &Self::Gated, clamp: Clamp) -> Result<Self::Rows> {
        let _ = (x, layer, clamp);
        Err(OpsError::Unsupported("clamped gates in this form"))
    }
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
    /// batch; `which` says what rows of it `x` holds.
    fn rotary(
        &self,
        x: Self::Rows,
        head_dim: usize,
        rope: usize,
        batch: &Self::Batch<'_>,
        which: &Which,
    ) -> Result<Self::Rows>;
    /// Each head of `x`, of `head_dim` columns, after the columns of `shared`, which are the same for all heads of a row (the key part
    /// that turns, of latent attention); not in all forms.
    fn before_heads(&self, x: &Self::Rows, head_dim: usize, shared: &Self::Rows) -> Result<Self::Rows> {
        let _ = (x, head_dim, shared);
        Err(OpsError::Unsupported("columns that heads share, in this form"))
    }
    /// Whether weights stay as they are, and what is made of them alone can be kept.
    fn weights_stay(&self) -> bool {
        true
    }
    /// What depends on weights alone: made once, and kept where the [weights stay](Self::weights_stay) as they are.
    fn of_weights<T>(&self, kept: &OnceLock<Arc<T>>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        match kept.get() {
            Some(made) => Ok(made.clone()),
            None if !self.weights_stay() => Ok(Arc::new(make()?)),
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
        batch: &'a Self::Batch<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Self::Remembered<'a>>;
    /// The same with one score more for each query head, `[heads]`: what it weighs in the softmax goes to nobody (GPT-OSS);
    /// not in all forms.
    fn with_sinks<'a>(
        &self,
        remembered: Self::Remembered<'a>,
        sinks: &'a Self::Vector,
    ) -> Result<Self::Remembered<'a>> {
        let _ = (remembered, sinks);
        Err(OpsError::Unsupported("attention sinks in this form"))
    }
    /// Attention of one block of queries, the rows that `which` says, each to its own sequence:
    /// `[rows, heads · value_dim]`.
    fn attend(&self, queries: &Self::Rows, which: &Which, to: &Self::Remembered<'_>) -> Result<Self::Rows>;
    /// What the rows of a batch read of their memories by a gated delta rule: `[rows, value_heads · value_dim]` of all rows, in
    /// blocks; not in all forms. Queries, keys and values are as wide as [`DeltaSpec::widths`] says; gates, `[rows, value_heads]`
    /// each, say how much is learned, and how much forgotten.
    ///
    /// Each is taken through a convolution over its own position and those before it, and an activation; queries and keys get
    /// the length one, queries that times `key_dim^-0.5`. From a sequence's first row on, of each value head and its key head:
    ///
    /// ```text
    /// memory *= exp(-e^rate · softplus(forgotten + offset))
    /// memory += key ⊗ sigmoid(learned) · (value - memoryᵀ · key)       output = memoryᵀ · query
    /// ```
    ///
    /// Source: Yang et al. 2024 (arXiv:2412.06464).
    fn delta(
        &self,
        inputs: [Vec<Self::Rows>; 3],
        gates: [Vec<Self::Rows>; 2],
        layer: &Delta<Self>,
        batch: &Self::Batch<'_>,
    ) -> Result<Vec<Self::Rows>> {
        let _ = (inputs, gates, layer, batch);
        Err(OpsError::Unsupported("gated delta rules in this form"))
    }
    /// `x · gate(by)`; not in all forms.
    fn let_through(&self, x: &Self::Rows, by: &Self::Rows, gate: Gate) -> Result<Self::Rows> {
        let _ = (x, by, gate);
        Err(OpsError::Unsupported("gates of outputs in this form"))
    }
    /// Of all rows of a batch, in blocks, what a convolution makes of those that `which` says and their neighbours in
    /// their own sequences, beyond which there are zeros.
    fn convolve(
        &self,
        blocks: &[Self::Rows],
        which: &Which,
        layer: &Convolution<Self>,
        batch: &Self::Batch<'_>,
    ) -> Result<Self::Rows>;
    /// Picks the rows of one of the [lists](Inputs::lists) out of all rows of a batch, and cuts them as [`Ops::blocks`]
    /// does.
    fn gather(&self, blocks: &[Self::Rows], list: usize, batch: &Self::Batch<'_>) -> Result<Vec<Self::Rows>>;
    /// Picks some of the rows that blocks hold together: those of one expert, say.
    fn pick(&self, blocks: &[Self::Rows], rows: &[usize]) -> Result<Self::Rows>;
    /// A row for each `of_row` terms, rows of blocks: their sum in `f32`, added in their order. So a row's chain of additions
    /// does not depend on what else the blocks hold.
    fn combine(&self, blocks: &[Self::Rows], terms: &[Term], of_row: usize) -> Result<Self::Rows>;
    /// For each sequence the mean of its rows in `f32`, summed in the order of its tokens: `[sequences, width]`, in
    /// blocks.
    fn mean(&self, blocks: &[Self::Rows], batch: &Self::Batch<'_>) -> Result<Vec<Self::Rows>>;
    /// All values of several results, each row-major, in one go: where they are computed elsewhere, the one time that
    /// this machine waits for them.
    fn read(&self, results: &[Vec<Self::Rows>]) -> Result<Vec<Vec<f32>>>;
    /// The same; where they are computed elsewhere, `meanwhile` is called before this machine waits.
    fn read_after(&self, results: &[Vec<Self::Rows>], meanwhile: impl FnOnce()) -> Result<Vec<Vec<f32>>> {
        let _ = meanwhile;
        self.read(results)
    }
}

/// The one block that all rows are in, of forms that do not cut.
fn whole<R>(blocks: &[R]) -> Result<&R> {
    match blocks {
        [whole] => Ok(whole),
        _ => Err(OpsError::Unsupported("several blocks, of which this form has one")),
    }
}
