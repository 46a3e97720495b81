//! The causal transformers in reading order, driven by config.
//!
//! ```text
//! token ids [rows] → embedding → layers → norm → [rows, hidden]
//! layer:  x + (norm ←) attention ← (norm ←) x
//!         x + (norm ←) down(act(gate) · up), or down(act(up)) ← (norm ←) x
//! ```
//!
//! How a batch goes through the layers is in [`transformer`].

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Result;

use crate::model::ModelError;
use crate::model::backbone::DecoderConfig;
use crate::model::backbone::Mlp;
use crate::model::backbone::QkNorm;
use crate::model::norm::Norm;
use crate::model::rope::RopeTable;
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
    words: Arc<O::Table>, // [vocab, hidden]
    scale: Option<f64>,
}

#[derive(Debug)]
struct Layer<O: Ops> {
    attention_pre_norm: Option<Norm<O>>,
    query: Arc<O::Linear>,
    key: Arc<O::Linear>,
    value: Arc<O::Linear>,
    qk_norms: Option<[Norm<O>; 2]>,
    is_rotary: bool,
    spec: AttentionSpec,
    products: usize,
    output: Arc<O::Linear>,
    attention_post_norm: Option<Norm<O>>,
    mlp_pre_norm: Option<Norm<O>>,
    inside: Inside<O>,
    activation: Activation,
    down: Arc<O::Linear>,
    mlp_post_norm: Option<Norm<O>>,
}

/// What an MLP does before `down`.
#[derive(Debug)]
enum Inside<O: Ops> {
    Gated(Arc<O::Gated>),
    Plain(Arc<O::Linear>),
}

/// Reads the weights that `config` asks for.
pub fn load<O: Ops>(
    weights: &mut Weights<'_, O>,
    config: &DecoderConfig,
) -> std::result::Result<Transformer<O>, ModelError> {
    let prefix = weights.backbone_prefix().to_owned();
    let words = format!("{prefix}embed_tokens.weight");
    let embedding = weights.part(|weights| {
        let words = weights.table(&words, config.vocab_size, config.hidden)?;
        Ok(Box::new(Embedding { words, scale: config.embedding_scale }) as _)
    })?;
    let layers = (0..config.num_layers)
        .map(|index| weights.part(|weights| Ok(Box::new(Layer::load(weights, config, index)?) as _)))
        .collect::<std::result::Result<_, ModelError>>()?;
    let norm =
        weights.part(|weights| Ok(Some(norm(weights, config, &format!("{prefix}norm"), config.hidden)?)))?;
    Ok(Transformer { embedding, rope: Some(RopeTable::new(config.rope.clone())), layers, norm })
}

fn norm<O: Ops>(
    weights: &mut Weights<'_, O>,
    config: &DecoderConfig,
    name: &str,
    width: usize,
) -> std::result::Result<Norm<O>, ModelError> {
    let offset = if config.norm_unit_offset { 1.0 } else { 0.0 };
    Norm::rms(weights, name, width, offset, config.norm_eps)
}

impl<O: Ops> Layer<O> {
    fn load(
        weights: &mut Weights<'_, O>,
        config: &DecoderConfig,
        index: usize,
    ) -> std::result::Result<Self, ModelError> {
        let prefix = weights.backbone_prefix();
        let of = |name: &str| format!("{prefix}layers.{index}.{name}");
        let [q, k, v, o] =
            ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| of(&format!("self_attn.{name}")));
        let [q_norm, k_norm] = ["self_attn.q_norm", "self_attn.k_norm"].map(of);
        let [gate, up, down] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"].map(of);
        let (hidden, inside) = (config.hidden, config.intermediate);
        let (query_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mlp_layers = if config.mlp == Mlp::Gated { 3 } else { 2 };
        let names = config.norms;
        let [attention_pre_norm, attention_post_norm, mlp_pre_norm, mlp_post_norm] =
            [names.before_attention, names.after_attention, names.before_mlp, names.after_mlp]
                .map(|name| name.map(of));
        let mut norm_if =
            |name: Option<String>| name.map(|name| norm(weights, config, &name, hidden)).transpose();
        let [attention_pre_norm, attention_post_norm, mlp_pre_norm, mlp_post_norm] = [
            norm_if(attention_pre_norm)?,
            norm_if(attention_post_norm)?,
            norm_if(mlp_pre_norm)?,
            norm_if(mlp_post_norm)?,
        ];
        Ok(Self {
            attention_pre_norm,
            query: weights.linear(&q, query_width, hidden, config.qkv_bias, Working)?,
            key: weights.linear(&k, kv_width, hidden, config.qkv_bias, Working)?,
            value: weights.linear(&v, kv_width, hidden, config.qkv_bias, Working)?,
            qk_norms: match config.qk_norm {
                None => None,
                Some(QkNorm::Heads) => {
                    let mut norm = |name: &str| norm(weights, config, name, config.head_dim);
                    Some([norm(&q_norm)?, norm(&k_norm)?])
                }
                Some(QkNorm::Whole) => Some([
                    norm(weights, config, &q_norm, query_width)?,
                    norm(weights, config, &k_norm, kv_width)?,
                ]),
            },
            is_rotary: config.rotary[index],
            spec: AttentionSpec {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                causal: true,
                window: config.windows[index],
                scale: config.attention_scale,
                distance: Distance::Ignored,
                softcap: config.attention_softcap,
            },
            products: hidden * (2 * query_width + 2 * kv_width + mlp_layers * inside),
            output: weights.linear(&o, hidden, query_width, config.output_bias, Working)?,
            attention_post_norm,
            mlp_pre_norm,
            inside: match config.mlp {
                Mlp::Gated => Inside::Gated(weights.gated([&gate, &up], inside, hidden, config.mlp_bias)?),
                Mlp::Plain => Inside::Plain(weights.linear(&up, inside, hidden, config.mlp_bias, Working)?),
            },
            activation: config.activation,
            down: weights.linear(&down, hidden, inside, config.mlp_bias, Working)?,
            mlp_post_norm,
        })
    }
}

impl<O: Ops> transformer::Embedding<O> for Embedding<O> {
    fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>> {
        vec![batch.token_ids().into()]
    }

    fn forward(&self, ops: &O, ids: &[&[u32]]) -> Result<O::Rows> {
        ops.dropout(ops.embed(&[(&self.words, ids[0])], self.scale)?)
    }
}

impl<O: Ops> transformer::Layer<O> for Layer<O> {
    fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    fn products(&self) -> usize {
        self.products
    }

    fn input<'a>(&self, ops: &O, x: &'a O::Rows) -> Result<Cow<'a, O::Rows>> {
        ops.operand(normed(ops, x, self.attention_pre_norm.as_ref())?)
    }

    fn queries(
        &self,
        ops: &O,
        input: &O::Rows,
        packing: &O::Packing<'_>,
        which: Which<'_>,
    ) -> Result<O::Rows> {
        let mut query = ops.linear(input, &self.query)?;
        if let Some([norm, _]) = &self.qk_norms {
            query = norm.forward(ops, &query)?;
        }
        match self.is_rotary {
            true => ops.rotary(query, self.spec.head_dim, packing, which),
            false => Ok(query),
        }
    }

    fn keys_and_values(
        &self,
        ops: &O,
        input: &O::Rows,
        packing: &O::Packing<'_>,
        which: Which<'_>,
    ) -> Result<[O::Rows; 2]> {
        let mut key = ops.linear(input, &self.key)?;
        if let Some([_, norm]) = &self.qk_norms {
            key = norm.forward(ops, &key)?;
        }
        if self.is_rotary {
            key = ops.rotary(key, self.spec.head_dim, packing, which)?;
        }
        Ok([key, ops.linear(input, &self.value)?])
    }

    fn finish(&self, ops: &O, x: O::Rows, attended: &O::Rows) -> Result<O::Rows> {
        let x = add(ops, x, attended, &self.output, self.attention_post_norm.as_ref())?;
        let input = normed(ops, &x, self.mlp_pre_norm.as_ref())?;
        let inside = match &self.inside {
            Inside::Gated(gate_up) => ops.gated(&input, gate_up, self.activation)?,
            Inside::Plain(up) => ops.linear_act(&input, up, self.activation)?,
        };
        drop(input);
        add(ops, x, &inside, &self.down, self.mlp_post_norm.as_ref())
    }
}

/// `(norm of) x`
fn normed<'x, O: Ops>(ops: &O, x: &'x O::Rows, norm: Option<&Norm<O>>) -> Result<Cow<'x, O::Rows>> {
    Ok(match norm {
        Some(norm) => Cow::Owned(norm.forward(ops, x)?),
        None => Cow::Borrowed(x),
    })
}

/// `x + (norm of) layer(y)`
fn add<O: Ops>(
    ops: &O,
    x: O::Rows,
    y: &O::Rows,
    layer: &O::Linear,
    norm: Option<&Norm<O>>,
) -> Result<O::Rows> {
    match norm {
        None => ops.linear_add(y, layer, x),
        Some(norm) => ops.add(x, &ops.dropout(norm.forward(ops, &ops.linear(y, layer)?)?)?),
    }
}
