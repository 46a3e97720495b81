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
    pub embedding: Box<dyn Embedding<O>>,
    /// For models with rotary position embedding.
    pub rope: Option<RopeTable>,
    /// At least one.
    pub layers: Vec<Box<dyn Layer<O>>>,
    /// After the last layer.
    pub norm: Option<Norm<O>>,
}

/// What attention reads of a block.
struct Projected<R> {
    /// Absent where only some rows ask.
    query: Option<R>,
    key: R,
    value: R,
}

impl<O: Ops> Transformer<O> {
    /// Whether a token's hidden state depends on the tokens before it alone, in sequences of up to `longest` tokens.
    pub fn shares_prefixes(&self, longest: usize) -> bool {
        let is_causal = self.layers.iter().all(|layer| layer.spec().causal);
        is_causal && self.rope.as_ref().is_none_or(|rope| !rope.depends_on_length(longest))
    }

    /// Hidden states of the wanted rows, in blocks.
    pub fn forward(&self, ops: &O, batch: &PackedBatch, wanted: &Wanted) -> Result<Vec<O::Rows>> {
        let packing = ops.packing(batch, self.rope.as_ref().map(|rope| rope.packed(batch)))?;
        let blocks = ops.blocks(batch.num_rows());
        let ids = self.embedding.ids(batch);
        let project = |layer: usize, x: &O::Rows, rows: &Range<usize>| -> Result<_> {
            let all_ask = layer + 1 < self.layers.len() || *wanted == Wanted::All;
            let layer = &self.layers[layer];
            let input = layer.input(ops, x)?;
            let which = Which::Run(rows.clone());
            let query = all_ask.then(|| layer.queries(ops, &input, &packing, which.clone())).transpose()?;
            let [key, value] = layer.keys_and_values(ops, &input, &packing, which)?;
            Ok(Projected { query, key, value })
        };

        let mut states = ops.each(blocks.clone(), |rows| {
            let ids: Vec<&[u32]> = ids.iter().map(|ids| &ids[rows.clone()]).collect();
            let x = self.embedding.forward(ops, &ids)?;
            let projected = project(0, &x, &rows)?;
            Ok((x, Some(projected)))
        })?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (mut x, mut queries, mut keys, mut values) = (vec![], vec![], vec![], vec![]);
            for (of_block, projected) in states {
                let Projected { query, key, value } = projected.expect("projected for every layer");
                x.push(of_block);
                queries.extend(query);
                keys.push(key);
                values.push(value);
            }
            let is_last = index + 1 == self.layers.len();
            let which = match wanted {
                Wanted::Rows(rows) if is_last => {
                    x = ops.gather(&x, rows)?;
                    let places = ops.blocks(rows.len()).into_iter();
                    queries = ops.each(x.iter().zip(places).collect(), |(x, places)| {
                        let input = layer.input(ops, x)?;
                        layer.queries(ops, &input, &packing, Which::Listed(&rows[places]))
                    })?;
                    Which::Listed(rows)
                }
                _ => Which::Run(0..batch.num_rows()),
            };
            let attended = ops.attention(&queries, which, &keys, &values, &packing, layer.spec())?;
            drop((queries, keys, values));
            states =
                ops.each(x.into_iter().zip(attended).zip(0usize..).collect(), |((x, attended), block)| {
                    let x = layer.finish(ops, x, &attended)?;
                    if is_last {
                        return match &self.norm {
                            Some(norm) => Ok((norm.forward(ops, &x)?, None)),
                            None => Ok((x, None)),
                        };
                    }
                    let projected = project(index + 1, &x, &blocks[block])?;
                    Ok((x, Some(projected)))
                })?;
        }
        Ok(states.into_iter().map(|(x, _)| x).collect())
    }
}
