//! The way of a batch through a transformer, whatever its family: a [`decoder`](crate::model::decoder) or an
//! [`encoder`](crate::model::encoder) only says what happens to rows.
//!
//! ```text
//! blocks of rows   embed → project ┐   ┌ finish → project ┐   ┌ finish → norm → hidden states
//! all rows                         └ attention            └ attention
//! ```
//!
//! From one attention to the next a block of rows is on its own, so that is one [`Ops::each`]: the next layer's
//! projections read what is still in the cache.
//!
//! # Only what pooling reads
//!
//! Most heads read one row of each sequence. Of the last layer that takes the keys and values of all rows, and
//! queries, MLP and norm of the wanted ones only.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;

use candle_core::Result;

use crate::model::batch::PackedBatch;
use crate::model::norm::Norm;
use crate::model::ops::AttentionSpec;
use crate::model::ops::Ops;
use crate::model::ops::Which;
use crate::model::rope::RopeTable;
use crate::model::weights::Part;

/// Tokens → hidden states.
pub trait Embedding<O: Ops>: Debug + Send + Sync {
    /// For each table the row that each token takes, `[tables][rows]`.
    fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>>;
    /// Hidden states of tokens with these ids, `[tables][tokens]`.
    fn forward(&self, ops: &O, ids: &[&[u32]]) -> Result<O::Rows>;
}

/// One layer: what happens to rows before attention, and after. `which` says what rows of the batch they are.
pub trait Layer<O: Ops>: Debug + Send + Sync {
    /// What attention does.
    fn spec(&self) -> &AttentionSpec;
    /// What the projections read.
    fn input<'a>(&self, ops: &O, x: &'a O::Rows) -> Result<Cow<'a, O::Rows>>;
    /// `[rows, heads · head_dim]`
    fn queries(
        &self,
        ops: &O,
        input: &O::Rows,
        packing: &O::Packing<'_>,
        which: Which<'_>,
    ) -> Result<O::Rows>;
    /// Each `[rows, kv_heads · head_dim]`
    fn keys_and_values(
        &self,
        ops: &O,
        input: &O::Rows,
        packing: &O::Packing<'_>,
        which: Which<'_>,
    ) -> Result<[O::Rows; 2]>;
    /// From attention's output to the layer's.
    fn finish(&self, ops: &O, x: O::Rows, attended: &O::Rows) -> Result<O::Rows>;
}

/// The rows whose hidden states somebody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of the batch.
    All,
    /// These, in this order.
    Rows(Vec<usize>),
}

/// A transformer without its head.
#[derive(Debug)]
pub struct Transformer<O: Ops> {
    /// Tokens → hidden states.
    pub embedding: Part<Box<dyn Embedding<O>>>,
    /// For models with rotary position embedding.
    pub rope: Option<RopeTable>,
    /// At least one.
    pub layers: Vec<Part<Box<dyn Layer<O>>>>,
    /// After the last layer.
    pub norm: Part<Option<Norm<O>>>,
}

impl<O: Ops> Transformer<O> {
    /// Whether a token's hidden state depends on the tokens before it alone, in sequences of up to `longest` tokens.
    pub fn shares_prefixes(&self, longest: usize) -> bool {
        let is_causal = self.layers.iter().all(|layer| layer.it.spec().causal);
        is_causal && self.rope.as_ref().is_none_or(|rope| !rope.depends_on_length(longest))
    }
}

/// A batch on its way through models with one embedding.
pub struct Way<'a, 'p, O: Ops> {
    /// The form of the operations.
    pub ops: &'a O,
    /// Of the batch.
    pub packing: &'a O::Packing<'p>,
    /// As the embedding says, `[tables][rows]`.
    pub ids: &'a [Cow<'a, [u32]>],
    /// How the rows of the batch are cut.
    pub blocks: Vec<Range<usize>>,
}

/// What the layers of a run begin with.
#[derive(Clone)]
pub enum Start<R> {
    /// The embedding.
    Tokens,
    /// The hidden states of all rows after the layer before, in blocks.
    Hidden(Vec<R>),
}

/// What attention reads of a block.
struct Projected<R> {
    /// Absent where only some rows ask.
    query: Option<R>,
    key: R,
    value: R,
}

impl<O: Ops> Way<'_, '_, O> {
    /// Hidden states of all rows before the first layer, in blocks.
    pub fn embed(&self, model: &Transformer<O>) -> Result<Vec<O::Rows>> {
        self.ops.each(self.blocks.clone(), |rows| self.embed_block(model, rows))
    }

    fn embed_block(&self, model: &Transformer<O>, rows: Range<usize>) -> Result<O::Rows> {
        let ids: Vec<&[u32]> = self.ids.iter().map(|ids| &ids[rows.clone()]).collect();
        model.embedding.it.forward(self.ops, &ids)
    }

    /// What attention of a layer reads of a block of rows. Of the last layer only the wanted rows ask.
    fn project(
        &self,
        model: &Transformer<O>,
        wanted: &Wanted,
        depth: usize,
        x: &O::Rows,
        rows: &Range<usize>,
    ) -> Result<Projected<O::Rows>> {
        let all_ask = depth + 1 < model.layers.len() || *wanted == Wanted::All;
        let layer = &model.layers[depth].it;
        let input = layer.input(self.ops, x)?;
        let which = Which::Run(rows.clone());
        let query =
            all_ask.then(|| layer.queries(self.ops, &input, self.packing, which.clone())).transpose()?;
        let [key, value] = layer.keys_and_values(self.ops, &input, self.packing, which)?;
        Ok(Projected { query, key, value })
    }

    /// Some layers of a model, from a start to the hidden states after the last of them: of the wanted rows, and
    /// normed, if that is the model's last.
    pub fn run(
        &self,
        model: &Transformer<O>,
        wanted: &Wanted,
        layers: Range<usize>,
        start: Start<O::Rows>,
    ) -> Result<Vec<O::Rows>> {
        let ops = self.ops;
        let begin = |x: O::Rows, rows: &Range<usize>| {
            let projected = self.project(model, wanted, layers.start, &x, rows)?;
            Ok((x, Some(projected)))
        };
        let blocks = self.blocks.clone();
        let mut states = match start {
            Start::Tokens => ops.each(blocks, |rows| begin(self.embed_block(model, rows.clone())?, &rows))?,
            Start::Hidden(x) => ops.each(x.into_iter().zip(blocks).collect(), |(x, rows)| begin(x, &rows))?,
        };
        for depth in layers.clone() {
            let layer = &model.layers[depth].it;
            let is_last = depth + 1 == model.layers.len();
            let (mut x, mut queries, mut keys, mut values) = (vec![], vec![], vec![], vec![]);
            for (of_block, projected) in states {
                let Projected { query, key, value } = projected.expect("projected for each of the layers");
                x.push(of_block);
                queries.extend(query);
                keys.push(key);
                values.push(value);
            }
            let which = match wanted {
                Wanted::Rows(rows) if is_last => {
                    x = ops.gather(&x, rows)?;
                    let places = ops.blocks(rows.len());
                    queries = ops.each(x.iter().zip(places).collect(), |(x, places)| {
                        let input = layer.input(ops, x)?;
                        layer.queries(ops, &input, self.packing, Which::Listed(&rows[places]))
                    })?;
                    Which::Listed(rows)
                }
                _ => Which::Run(0..self.blocks.last().map_or(0, |last| last.end)),
            };
            let attended = ops.attention(&queries, which, &keys, &values, self.packing, layer.spec())?;
            drop((queries, keys, values));
            states =
                ops.each(x.into_iter().zip(attended).zip(0usize..).collect(), |((x, attended), block)| {
                    let x = layer.finish(ops, x, &attended)?;
                    match &model.norm.it {
                        Some(norm) if is_last => Ok((norm.forward(ops, &x)?, None)),
                        _ if depth + 1 == layers.end => Ok((x, None)),
                        _ => {
                            let projected =
                                self.project(model, wanted, depth + 1, &x, &self.blocks[block])?;
                            Ok((x, Some(projected)))
                        }
                    }
                })?;
        }
        Ok(states.into_iter().map(|(x, _)| x).collect())
    }
}
