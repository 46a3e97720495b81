//! The bidirectional transformers in reading order, driven by config: BERT, RoBERTa.
//!
//! ```text
//! token ids [tokens] → words + positions + types → norm → layers → [tokens, hidden]
//! layer:  norm(x + attention(x)), then norm(x + down(act(up(x))))
//! ```

use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;

use crate::model::ModelError;
use crate::model::batch::PackedBatch;
use crate::model::config::EncoderConfig;
use crate::model::ops;
use crate::model::ops::Activation;
use crate::model::ops::AttentionSpec;
use crate::model::ops::Linear;
use crate::model::ops::Packing;
use crate::model::weights::Weights;

/// A bidirectional transformer without its head.
#[derive(Debug)]
pub struct Encoder {
    words: Tensor,     // [vocab, hidden]
    positions: Tensor, // [max_positions, hidden]
    types: Tensor,     // [types, hidden]
    position_padding_id: Option<u32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    mlp_norm: LayerNorm,
    head_dim: usize,
    spec: AttentionSpec,
}

#[derive(Debug)]
struct LayerNorm {
    weight: Tensor, // f32
    bias: Tensor,   // f32
    eps: f64,
}

impl Encoder {
    /// Reads the weights that `config` asks for.
    pub fn load(weights: &mut Weights<'_>, config: &EncoderConfig) -> std::result::Result<Self, ModelError> {
        let prefix = weights.backbone_prefix().to_owned();
        let hidden = config.hidden;
        let norm = |weights: &mut Weights<'_>, name: &str| -> std::result::Result<_, ModelError> {
            Ok(LayerNorm {
                weight: weights.vector_f32(&format!("{name}.weight"), hidden)?,
                bias: weights.vector_f32(&format!("{name}.bias"), hidden)?,
                eps: config.norm_eps,
            })
        };
        let embedding = |name: &str| format!("{prefix}embeddings.{name}");
        let words = weights.matrix(&embedding("word_embeddings.weight"), config.vocab_size, hidden)?;
        let positions =
            weights.matrix(&embedding("position_embeddings.weight"), config.max_positions, hidden)?;
        let types =
            weights.matrix(&embedding("token_type_embeddings.weight"), config.type_vocab_size, hidden)?;
        let embedding_norm = norm(weights, &embedding("LayerNorm"))?;
        let head_dim = hidden / config.heads;
        let mut layers = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            let of = |name: &str| format!("{prefix}encoder.layer.{index}.{name}");
            layers.push(Layer {
                query: weights.linear(&of("attention.self.query"), hidden, hidden, true)?,
                key: weights.linear(&of("attention.self.key"), hidden, hidden, true)?,
                value: weights.linear(&of("attention.self.value"), hidden, hidden, true)?,
                output: weights.linear(&of("attention.output.dense"), hidden, hidden, true)?,
                attention_norm: norm(weights, &of("attention.output.LayerNorm"))?,
                up: weights.linear(&of("intermediate.dense"), config.intermediate, hidden, true)?,
                activation: config.activation,
                down: weights.linear(&of("output.dense"), hidden, config.intermediate, true)?,
                mlp_norm: norm(weights, &of("output.LayerNorm"))?,
                head_dim,
                spec: AttentionSpec {
                    causal: false,
                    window: None,
                    scale: (head_dim as f64).powf(-0.5),
                    softcap: None,
                },
            });
        }
        Ok(Self {
            words,
            positions,
            types,
            position_padding_id: config.position_padding_id,
            norm: embedding_norm,
            layers,
            device: weights.device().clone(),
        })
    }

    /// Hidden states `[tokens, hidden]`.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let rows = |ids: &[u32], table: &Tensor| table.index_select(&Tensor::new(ids, &self.device)?, 0);
        let mut hidden = (rows(batch.token_ids(), &self.words)? + rows(batch.type_ids(), &self.types)?)?;
        hidden = (hidden + rows(&self.position_ids(batch), &self.positions)?)?;
        hidden = self.norm.forward(&hidden)?; // [tokens, hidden]
        let packing = Packing::new(batch.offsets());
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &packing)?;
        }
        Ok(hidden)
    }

    /// `[tokens]`: from 0 in BERT; in RoBERTa from the padding id + 1, counting only tokens that are not padding,
    /// while padding itself stays at the padding id.
    fn position_ids(&self, batch: &PackedBatch) -> Vec<u32> {
        let mut positions = Vec::with_capacity(batch.num_tokens());
        for tokens in batch.sequences() {
            match self.position_padding_id {
                None => positions.extend(0..tokens.len() as u32),
                Some(padding) => {
                    let mut last = padding;
                    positions.extend(tokens.iter().map(|&token| {
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
}

impl Layer {
    fn forward(&self, x: &Tensor, packing: &Packing<'_>) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads = |layer: &Linear| ops::linear(x, layer)?.reshape((tokens, (), self.head_dim)); // [tokens, heads, head_dim]
        let attended = ops::attention(
            &heads(&self.query)?,
            &heads(&self.key)?,
            &heads(&self.value)?,
            packing,
            &self.spec,
        )?;
        let attended = ops::linear(&attended.reshape((tokens, ()))?, &self.output)?;
        let x = self.attention_norm.forward(&(x + attended)?)?;
        let transformed = ops::activate(&ops::linear(&x, &self.up)?, self.activation)?;
        self.mlp_norm.forward(&(&x + ops::linear(&transformed, &self.down)?)?)
    }
}

impl LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
