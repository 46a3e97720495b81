//! The causal transformers in reading order, driven by config: Llama, Mistral, Qwen2, Qwen3, Gemma-2.
//!
//! ```text
//! token ids [tokens] → embedding → layers → norm → [tokens, hidden]
//! layer:  x + (norm →) attention ← norm ← x      (norms in brackets: Gemma-2)
//!         x + (norm →) down(act(gate) · up) ← norm ← x
//! ```

use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;

use crate::model::ModelError;
use crate::model::batch::PackedBatch;
use crate::model::config::DecoderConfig;
use crate::model::ops;
use crate::model::ops::Activation;
use crate::model::ops::AttentionSpec;
use crate::model::ops::Linear;
use crate::model::ops::Packing;
use crate::model::rope::RopeTable;
use crate::model::weights::Weights;

/// A causal transformer without its head.
#[derive(Debug)]
pub struct Decoder {
    embedding: Tensor, // [vocab, hidden]
    embedding_scale: Option<f64>,
    rope: RopeTable,
    layers: Vec<Layer>,
    norm: RmsNorm,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    attention_post_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    mlp_post_norm: Option<RmsNorm>,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    qk_norms: Option<(RmsNorm, RmsNorm)>,
    head_dim: usize,
    spec: AttentionSpec,
}

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

#[derive(Debug)]
struct RmsNorm {
    weight: Tensor, // f32, the unit offset added already
    eps: f64,
}

/// Cosines and sines of all tokens, `[tokens, head_dim / 2]`.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Decoder {
    /// Reads the weights that `config` asks for.
    pub fn load(weights: &mut Weights<'_>, config: &DecoderConfig) -> std::result::Result<Self, ModelError> {
        let prefix = weights.backbone_prefix().to_owned();
        let norm =
            |weights: &mut Weights<'_>, name: &str, width: usize| -> std::result::Result<_, ModelError> {
                let weight = weights.vector_f32(&format!("{prefix}{name}.weight"), width)?;
                let weight = if config.norm_unit_offset { (weight + 1.0)? } else { weight };
                Ok(RmsNorm { weight, eps: config.norm_eps })
            };
        let hidden = config.hidden;
        let (query_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let embedding = weights.matrix(&format!("{prefix}embed_tokens.weight"), config.vocab_size, hidden)?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for (index, &window) in config.windows.iter().enumerate() {
            let of = |name: &str| format!("layers.{index}.{name}");
            let attn = |name: &str| format!("{prefix}layers.{index}.self_attn.{name}");
            let mlp = |name: &str| format!("{prefix}layers.{index}.mlp.{name}");
            let attention = Attention {
                query: weights.linear(&attn("q_proj"), query_width, hidden, config.qkv_bias)?,
                key: weights.linear(&attn("k_proj"), kv_width, hidden, config.qkv_bias)?,
                value: weights.linear(&attn("v_proj"), kv_width, hidden, config.qkv_bias)?,
                output: weights.linear(&attn("o_proj"), hidden, query_width, config.output_bias)?,
                qk_norms: if config.qk_norm {
                    Some((
                        norm(weights, &of("self_attn.q_norm"), config.head_dim)?,
                        norm(weights, &of("self_attn.k_norm"), config.head_dim)?,
                    ))
                } else {
                    None
                },
                head_dim: config.head_dim,
                spec: AttentionSpec {
                    causal: true,
                    window,
                    scale: config.attention_scale,
                    softcap: config.attention_softcap,
                },
            };
            // in Gemma-2 "post_attention_layernorm" norms attention's output; elsewhere, the MLP's input
            let (attention_post_norm, mlp_norm, mlp_post_norm) = if config.post_norms {
                (
                    Some(norm(weights, &of("post_attention_layernorm"), hidden)?),
                    norm(weights, &of("pre_feedforward_layernorm"), hidden)?,
                    Some(norm(weights, &of("post_feedforward_layernorm"), hidden)?),
                )
            } else {
                (None, norm(weights, &of("post_attention_layernorm"), hidden)?, None)
            };
            layers.push(Layer {
                input_norm: norm(weights, &of("input_layernorm"), hidden)?,
                attention,
                attention_post_norm,
                mlp_norm,
                mlp: Mlp {
                    gate: weights.linear(&mlp("gate_proj"), config.intermediate, hidden, config.mlp_bias)?,
                    up: weights.linear(&mlp("up_proj"), config.intermediate, hidden, config.mlp_bias)?,
                    down: weights.linear(&mlp("down_proj"), hidden, config.intermediate, config.mlp_bias)?,
                    activation: config.activation,
                },
                mlp_post_norm,
            });
        }
        Ok(Self {
            embedding,
            embedding_scale: config.embedding_scale,
            rope: RopeTable::new(config.rope.clone()),
            layers,
            norm: norm(weights, "norm", hidden)?,
            device: weights.device().clone(),
        })
    }

    /// Hidden states `[tokens, hidden]`.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let token_ids = Tensor::new(batch.token_ids(), &self.device)?;
        let mut hidden = self.embedding.index_select(&token_ids, 0)?; // [tokens, hidden]
        if let Some(scale) = self.embedding_scale {
            // rounded to the working precision first, as transformers does: √3072 is 55.5 in bf16
            let scale = Tensor::new(scale as f32, &self.device)?.to_dtype(hidden.dtype())?;
            hidden = hidden.broadcast_mul(&scale)?;
        }
        let lengths: Vec<usize> = batch.sequences().map(<[u32]>::len).collect();
        let (cos, sin) = self.rope.packed(&lengths);
        let shape = (batch.num_tokens(), cos.len() / batch.num_tokens());
        let rotation = Rotation {
            cos: Tensor::from_vec(cos, shape, &self.device)?.to_dtype(hidden.dtype())?,
            sin: Tensor::from_vec(sin, shape, &self.device)?.to_dtype(hidden.dtype())?,
        };
        let packing = Packing::new(batch.offsets());
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &rotation, &packing)?;
        }
        self.norm.forward(&hidden)
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, rotation: &Rotation, packing: &Packing<'_>) -> Result<Tensor> {
        let attended = self.attention.forward(&self.input_norm.forward(x)?, rotation, packing)?;
        let x = (x + normed(attended, self.attention_post_norm.as_ref())?)?;
        let transformed = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        &x + normed(transformed, self.mlp_post_norm.as_ref())?
    }
}

fn normed(x: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor> {
    norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))
}

impl Attention {
    fn forward(&self, x: &Tensor, rotation: &Rotation, packing: &Packing<'_>) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads = |x: Tensor| x.reshape((tokens, (), self.head_dim)); // [tokens, heads, head_dim]
        let mut query = heads(ops::linear(x, &self.query)?)?;
        let mut key = heads(ops::linear(x, &self.key)?)?;
        let value = heads(ops::linear(x, &self.value)?)?;
        if let Some((query_norm, key_norm)) = &self.qk_norms {
            query = query_norm.forward(&query)?;
            key = key_norm.forward(&key)?;
        }
        query = ops::rotary(&query, &rotation.cos, &rotation.sin)?;
        key = ops::rotary(&key, &rotation.cos, &rotation.sin)?;
        let attended = ops::attention(&query, &key, &value, packing, &self.spec)?;
        ops::linear(&attended.reshape((tokens, ()))?, &self.output)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = ops::activate(&ops::linear(x, &self.gate)?, self.activation)?;
        ops::linear(&(gate * ops::linear(x, &self.up)?)?, &self.down)
    }
}

impl RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps)
    }
}
