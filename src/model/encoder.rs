//! The bidirectional transformers in reading order, driven by config: BERT, RoBERTa.
//!
//! ```text
//! token ids [rows] → words + types + positions → norm → layers → [rows, hidden]
//! layer:  norm(x + attention(x)), then norm(x + down(act(up(x))))
//! ```
//!
//! How a batch goes through the layers is in [`transformer`].

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Result;

use crate::model::ModelError;
use crate::model::backbone::EncoderConfig;
use crate::model::norm::Norm;
use crate::model::transformer;
use crate::model::transformer::Transformer;
use crate::model::weights::Weights;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::Ops;
use crate::ops::Precision::Working;
use crate::ops::Which;
use crate::ops::batch::PackedBatch;

#[derive(Debug)]
struct Embedding<O: Ops> {
    words: Arc<O::Table>,     // [vocab, hidden]
    types: Arc<O::Table>,     // [types, hidden]
    positions: Arc<O::Table>, // [max_positions, hidden]
    position_padding_id: Option<u32>,
    norm: Norm<O>,
}

#[derive(Debug)]
struct Layer<O: Ops> {
    query: Arc<O::Linear>,
    key: Arc<O::Linear>,
    value: Arc<O::Linear>,
    spec: AttentionSpec,
    products: usize,
    output: Arc<O::Linear>,
    attention_norm: Norm<O>,
    up: Arc<O::Linear>,
    activation: Activation,
    down: Arc<O::Linear>,
    mlp_norm: Norm<O>,
}

/// Reads the weights that `config` asks for.
pub fn load<O: Ops>(
    weights: &mut Weights<'_, O>,
    config: &EncoderConfig,
) -> std::result::Result<Transformer<O>, ModelError> {
    let (prefix, hidden) = (weights.backbone_prefix().to_owned(), config.hidden);
    let of = |name: &str| format!("{prefix}embeddings.{name}");
    let embedding = weights.part(|weights| {
        Ok(Box::new(Embedding {
            words: weights.table(&of("word_embeddings.weight"), config.vocab_size, hidden)?,
            types: weights.table(&of("token_type_embeddings.weight"), config.type_vocab_size, hidden)?,
            positions: weights.table(&of("position_embeddings.weight"), config.max_positions, hidden)?,
            position_padding_id: config.position_padding_id,
            norm: Norm::layer(weights, &of("LayerNorm"), hidden, true, true, config.norm_eps)?,
        }) as _)
    })?;
    let layers = (0..config.num_layers)
        .map(|index| weights.part(|weights| Ok(Box::new(Layer::load(weights, config, index)?) as _)))
        .collect::<std::result::Result<_, ModelError>>()?;
    Ok(Transformer { embedding, rope: None, layers, norm: weights.part(|_| Ok(None))? })
}

impl<O: Ops> Layer<O> {
    fn load(
        weights: &mut Weights<'_, O>,
        config: &EncoderConfig,
        index: usize,
    ) -> std::result::Result<Self, ModelError> {
        let prefix = weights.backbone_prefix().to_owned();
        let of = |name: &str| format!("{prefix}encoder.layer.{index}.{name}");
        let (hidden, inside) = (config.hidden, config.intermediate);
        let head_dim = hidden / config.heads;
        let mut linear = |name: &str, output, input| weights.linear(&of(name), output, input, true, Working);
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            spec: AttentionSpec {
                heads: config.heads,
                kv_heads: config.heads,
                head_dim,
                causal: false,
                window: None,
                scale: (head_dim as f64).powf(-0.5),
                distance: Distance::Ignored,
                softcap: None,
            },
            products: hidden * (4 * hidden + 2 * inside),
            output: linear("attention.output.dense", hidden, hidden)?,
            up: linear("intermediate.dense", inside, hidden)?,
            activation: config.activation,
            down: linear("output.dense", hidden, inside)?,
            attention_norm: Norm::layer(
                weights,
                &of("attention.output.LayerNorm"),
                hidden,
                true,
                true,
                config.norm_eps,
            )?,
            mlp_norm: Norm::layer(weights, &of("output.LayerNorm"), hidden, true, true, config.norm_eps)?,
        })
    }
}

impl<O: Ops> transformer::Embedding<O> for Embedding<O> {
    fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>> {
        let positions = position_ids(batch, self.position_padding_id);
        vec![batch.token_ids().into(), batch.type_ids().into(), positions.into()]
    }

    fn forward(&self, ops: &O, ids: &[&[u32]]) -> Result<O::Rows> {
        let tables = [(&*self.words, ids[0]), (&*self.types, ids[1]), (&*self.positions, ids[2])];
        ops.dropout(self.norm.forward(ops, &ops.embed(&tables, None)?)?)
    }
}

/// `[rows]`: from 0 in BERT; in RoBERTa from the padding id + 1, counting only tokens that are not padding, while
/// padding itself stays at the padding id.
fn position_ids(batch: &PackedBatch, padding: Option<u32>) -> Vec<u32> {
    let mut positions = Vec::with_capacity(batch.num_rows());
    for segment in batch.segments() {
        debug_assert_eq!(segment.parent, None, "bidirectional models share no prefixes");
        match padding {
            None => positions.extend(0..segment.rows.len() as u32),
            Some(padding) => {
                let mut last = padding;
                positions.extend(batch.token_ids()[segment.rows.clone()].iter().map(|&token| {
                    if token == padding {
                        return padding;
                    }
                    last += 1;
                    last
                }));
            }
        }
    }
    positions
}

impl<O: Ops> transformer::Layer<O> for Layer<O> {
    fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    fn products(&self) -> usize {
        self.products
    }

    fn input<'a>(&self, ops: &O, x: &'a O::Rows) -> Result<Cow<'a, O::Rows>> {
        ops.operand(Cow::Borrowed(x))
    }

    fn queries(&self, ops: &O, input: &O::Rows, _: &O::Packing<'_>, _: Which<'_>) -> Result<O::Rows> {
        ops.linear(input, &self.query)
    }

    fn keys_and_values(
        &self,
        ops: &O,
        input: &O::Rows,
        _: &O::Packing<'_>,
        _: Which<'_>,
    ) -> Result<[O::Rows; 2]> {
        Ok([ops.linear(input, &self.key)?, ops.linear(input, &self.value)?])
    }

    fn finish(&self, ops: &O, x: O::Rows, attended: &O::Rows) -> Result<O::Rows> {
        let x = self.attention_norm.forward(ops, &ops.linear_add(attended, &self.output, x)?)?;
        let inside = ops.linear_act(&x, &self.up, self.activation)?;
        self.mlp_norm.forward(ops, &ops.linear_add(&inside, &self.down, x)?)
    }
}
