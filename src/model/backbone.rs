//! What a transformer is, whatever family it is of: sizes, kinds and names, as [`families`](crate::model::families) read
//! them and [`decoder`](crate::model::decoder) and [`encoder`](crate::model::encoder) build it.

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::model::rope::RopeConfig;
use crate::ops::Activation;
use crate::text::TextRule;

/// The transformer below the head.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BackboneConfig {
    /// Causal.
    Decoder(Box<DecoderConfig>),
    /// Bidirectional.
    Encoder(Box<EncoderConfig>),
}

/// The causal transformers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// How many layers.
    pub num_layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; not always hidden / heads.
    pub head_dim: usize,
    /// `max_position_embeddings`: see `rope` for the longest sequence the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f64,
    /// Whether norms multiply by `1 + weight` (Gemma).
    pub norm_unit_offset: bool,
    /// Where a layer has norms, and what they are called.
    pub norms: Norms,
    /// Whether queries and keys are normed before they are turned.
    pub qk_norm: Option<QkNorm>,
    /// Of the gate, or between the two layers of a plain MLP.
    pub activation: Activation,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub output_bias: bool,
    /// Biases of the MLP.
    pub mlp_bias: bool,
    /// Whether the MLP has a gate.
    pub mlp: Mlp,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// For each layer, whether it turns queries and keys by it.
    pub rotary: Vec<bool>,
    /// For each layer, how many keys a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Factor on the attention scores.
    pub attention_scale: f64,
    /// `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// Factor on the embeddings (Gemma).
    pub embedding_scale: Option<f64>,
}

/// The bidirectional transformers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderConfig {
    /// Prefix of the tensor names.
    pub prefix: &'static str,
    /// What transformers puts on it.
    pub head: EncoderHead,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Rows of the token type embedding.
    pub type_vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// How many layers.
    pub num_layers: usize,
    /// Heads.
    pub heads: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// RoBERTa: positions count tokens that are not padding, from this id + 1 on. `None`: from 0.
    pub position_padding_id: Option<u32>,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Of the MLP.
    pub activation: Activation,
}

/// The names of a layer's norms within it; `None`: it has none there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Norms {
    /// What attention reads.
    pub before_attention: Option<&'static str>,
    /// What attention adds.
    pub after_attention: Option<&'static str>,
    /// What the MLP reads.
    pub before_mlp: Option<&'static str>,
    /// What the MLP adds.
    pub after_mlp: Option<&'static str>,
}

impl Norms {
    /// Before attention and MLP: Llama and most others.
    pub const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
    /// After them: OLMo-2, Exaone-4.
    pub const AFTER: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// On both sides: Gemma-2.
    pub const AROUND: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
}

/// RMS norms of queries and keys: `q_norm`, `k_norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Of each head.
    Heads,
    /// Of all heads together.
    Whole,
}

/// The MLP of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// `down(activation(gate) · up)`
    Gated,
    /// `down(activation(up))`
    Plain,
}

/// The head of an encoder's `*ForSequenceClassification`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderHead {
    /// BERT's: the pooler of the backbone, then `classifier`.
    Pooler,
    /// RoBERTa's: `classifier.dense`, then `classifier.out_proj`.
    TwoLayers,
}

impl From<DecoderConfig> for BackboneConfig {
    fn from(config: DecoderConfig) -> Self {
        Self::Decoder(Box::new(config))
    }
}

impl From<EncoderConfig> for BackboneConfig {
    fn from(config: EncoderConfig) -> Self {
        Self::Encoder(Box::new(config))
    }
}

impl BackboneConfig {
    /// Rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Decoder(config) => config.vocab_size,
            Self::Encoder(config) => config.vocab_size,
        }
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Decoder(config) => config.hidden,
            Self::Encoder(config) => config.hidden,
        }
    }

    /// The longest sequence the model was made for.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Decoder(config) => config.rope.max_positions(config.max_positions),
            Self::Encoder(config) => match config.position_padding_id {
                Some(padding) => config.max_positions.saturating_sub(padding as usize + 1),
                None => config.max_positions,
            },
        }
    }

    /// Whether longer sequences than [`Self::max_tokens`] can be computed: no table of positions ends.
    pub fn has_endless_positions(&self) -> bool {
        matches!(self, Self::Decoder(_))
    }

    /// Rows of the token type embedding, of a model that has one.
    pub fn type_vocab_size(&self) -> Option<usize> {
        match self {
            Self::Decoder(_) => None,
            Self::Encoder(config) => Some(config.type_vocab_size),
        }
    }

    /// How a prompt and a response are joined for a model without a chat template: what encoders are pretrained on; of
    /// a decoder nothing is known.
    pub fn default_text_rule(&self) -> Option<TextRule> {
        match self {
            Self::Decoder(_) => None,
            Self::Encoder(_) => Some(TextRule::SentencePair),
        }
    }

    /// The tensor of the words' embedding, `[vocab_size, hidden]`, without the prefix.
    pub fn embedding(&self) -> &'static str {
        match self {
            Self::Decoder(_) => "embed_tokens.weight",
            Self::Encoder(_) => "embeddings.word_embeddings.weight",
        }
    }

    /// How many layers.
    pub fn num_layers(&self) -> usize {
        match self {
            Self::Decoder(config) => config.num_layers,
            Self::Encoder(config) => config.num_layers,
        }
    }

    /// What stands before the backbone's tensor names in a checkpoint, for example "model.".
    pub fn prefix_in(&self, checkpoint: &Checkpoint) -> &'static str {
        let embedding = self.embedding();
        let prefixes = self.prefixes();
        prefixes
            .into_iter()
            .find(|prefix| checkpoint.contains(&format!("{prefix}{embedding}")))
            .unwrap_or(prefixes[0])
    }

    /// Those under which checkpoints keep the backbone, by likelihood.
    pub fn prefixes(&self) -> [&'static str; 3] {
        match self {
            Self::Decoder(_) => ["model.", "", "pretrained_model.model."],
            Self::Encoder(config) => [config.prefix, "", ""],
        }
    }
}
