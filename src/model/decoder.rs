//! The causal transformers in reading order, driven by config: Llama, Mistral, Qwen2, Qwen3, Gemma-2.
//!
//! ```text
//! token ids [rows] → embedding → layers → norm → [rows, hidden]
//! layer:  x + (norm →) attention ← norm ← x      (norms in brackets: Gemma-2)
//!         x + (norm →) down(act(gate) · up) ← norm ← x
//! ```
//!
//! How a batch goes through the layers is in [`transformer`].

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Result;

use crate::model::ModelError;
use crate::model::config::DecoderConfig;
use crate::model::norm::Norm;
use crate::model::rope::RopeTable;
use crate::model::transformer;
use crate::model::transformer::Transformer;
use crate::model::weights::Weights;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
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
    input_norm: Norm<O>,
    query: Arc<O::Linear>,
    key: Arc<O::Linear>,
    value: Arc<O::Linear>,
    qk_norms: Option<[Norm<O>; 2]>,
    spec: AttentionSpec,
    products: usize,
    output: Arc<O::Linear>,
    attention_post_norm: Option<Norm<O>>,
    mlp_norm: Norm<O>,
    gate_up: Arc<O::Gated>,
    activation: Activation,
    down: Arc<O::Linear>,
    mlp_post_norm: Option<Norm<O>>,
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
        let [input_norm, post_attention_norm] = ["input_layernorm", "post_attention_layernorm"].map(of);
        let [pre_mlp_norm, post_mlp_norm] =
            ["pre_feedforward_layernorm", "post_feedforward_layernorm"].map(of);
        let (hidden, inside) = (config.hidden, config.intermediate);
        let (query_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        // in Gemma-2 "post_attention_layernorm" norms attention's output; elsewhere, the MLP's input
        let (attention_post_norm, mlp_norm, mlp_post_norm) = if config.post_norms {
            (
                Some(norm(weights, config, &post_attention_norm, hidden)?),
                norm(weights, config, &pre_mlp_norm, hidden)?,
                Some(norm(weights, config, &post_mlp_norm, hidden)?),
            )
        } else {
            (None, norm(weights, config, &post_attention_norm, hidden)?, None)
        };
        Ok(Self {
            input_norm: norm(weights, config, &input_norm, hidden)?,
            query: weights.linear(&q, query_width, hidden, config.qkv_bias, Working)?,
            key: weights.linear(&k, kv_width, hidden, config.qkv_bias, Working)?,
            value: weights.linear(&v, kv_width, hidden, config.qkv_bias, Working)?,
            qk_norms: if config.qk_norm {
                let mut norm = |name: &str| norm(weights, config, name, config.head_dim);
                Some([norm(&q_norm)?, norm(&k_norm)?])
            } else {
                None
            },
            spec: AttentionSpec {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                causal: true,
                window: config.windows[index],
                scale: config.attention_scale,
                softcap: config.attention_softcap,
            },
            products: hidden * (2 * query_width + 2 * kv_width + 3 * inside),
            output: weights.linear(&o, hidden, query_width, config.output_bias, Working)?,
            attention_post_norm,
            mlp_norm,
            gate_up: weights.gated([&gate, &up], inside, hidden, config.mlp_bias)?,
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
        ops.operand(Cow::Owned(self.input_norm.forward(ops, x)?))
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
        ops.rotary(query, self.spec.head_dim, packing, which)
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
        let key = ops.rotary(key, self.spec.head_dim, packing, which)?;
        Ok([key, ops.linear(input, &self.value)?])
    }

    fn finish(&self, ops: &O, x: O::Rows, attended: &O::Rows) -> Result<O::Rows> {
        let x = add(ops, x, attended, &self.output, self.attention_post_norm.as_ref())?;
        let input = self.mlp_norm.forward(ops, &x)?;
        let inside = ops.gated(&input, &self.gate_up, self.activation)?;
        add(ops, x, &inside, &self.down, self.mlp_post_norm.as_ref())
    }
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
