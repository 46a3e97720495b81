//! A checkpoint's `config.json`: read into what the models need, or refused by name.
//!
//! Reads the form of transformers 4 (`rope_theta`, `rope_scaling`) and of transformers 5
//! (`rope_parameters`). A setting that changes a reward and that we do not know how to follow is an error
//! here, before anything is served.
//!
//! # One rule
//!
//! As for the files of the tokenizer: what transformers 5.23 does with this file, where it is deterministic, is what
//! counts; where it fails, or where two places say what cannot both be meant, the checkpoint is refused, naming the keys
//! and the values. **A key that is absent means the default of the class; null means none**, and is
//! refused where the class needs a value. `tests/reference/sweep.py` takes away and contradicts each key in turn.

use std::path::Path;

use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::fields::Fields;
use crate::disk;
use crate::model::ModelError;
use crate::model::manifest::Manifest;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::model::scorer::Calibration;
use crate::ops::Activation;
use crate::text::TextEnds;
use crate::text::TextRule;

/// What no model is larger than, many times what is known today. Numbers in a file are anybody's: products of those
/// below fit 64 bits, and nothing is allocated by a number before tensors of that size were found.
mod at_most {
    pub(super) const LAYERS: usize = 10_000;
    pub(super) const WIDTH: usize = 1 << 24;
    pub(super) const HEADS: usize = 1 << 16;
    pub(super) const HEAD_DIM: usize = 1 << 16;
    pub(super) const VOCABULARY: usize = 1 << 28;
    pub(super) const TOKEN_TYPES: usize = 1 << 16;
    pub(super) const POSITIONS: usize = 1 << 40;
}

/// Everything in `config.json` and the manifest that determines a reward, but the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointConfig {
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// The family, for example "llama".
    pub model_type: String,
    /// The tokenizer's class, where `tokenizer_config.json` names none. The digest of the text covers what it does.
    #[serde(skip)]
    pub tokenizer_class: Option<String>,
    /// The transformer below the head.
    pub backbone: BackboneConfig,
    /// Where the head is, when the config says so (OpenRLHF); else it is found by its tensors.
    pub value_head_prefix: Option<String>,
    /// OpenRLHF's `(reward - mean) / std`, when `normalize_reward` asks for it.
    pub normalization: Option<Calibration>,
    /// Of the manifest; else the head's origin decides, see [`Self::pooling`].
    pub pooling: Option<Pooling>,
    /// The padding token, which [`Pooling::LastNonPad`] steps over.
    pub pad_token_id: Option<u32>,
    /// What ends a sequence, for [`Pooling::FirstEos`].
    pub eos_token_ids: Vec<u32>,
    /// What the files around it say; in its fingerprint where it became one of the fields above, or text.
    #[serde(skip)]
    pub origin: Origin,
}

/// The transformer below the head.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BackboneConfig {
    /// Causal.
    Decoder(DecoderConfig),
    /// Bidirectional.
    Encoder(EncoderConfig),
}

/// The causal transformers: Llama, Mistral, Qwen2, Qwen3, Gemma-2.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the gated MLP.
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
    /// Whether attention's and the MLP's outputs are normed before they are added (Gemma-2).
    pub post_norms: bool,
    /// Whether queries and keys are normed per head (Qwen3).
    pub qk_norm: bool,
    /// Of the gate.
    pub activation: Activation,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub output_bias: bool,
    /// Biases of the MLP.
    pub mlp_bias: bool,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// For each layer, how many keys a query sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Factor on the attention scores.
    pub attention_scale: f64,
    /// `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// Factor on the embeddings (Gemma).
    pub embedding_scale: Option<f64>,
}

/// The bidirectional transformers: BERT, RoBERTa.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderConfig {
    /// Prefix of the tensor names.
    pub prefix: &'static str,
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

/// What the files beside the weights decide or leave open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// What was not taken from the checkpoint's own config, in words: for logs and `GetServerInfo`.
    pub notes: Vec<String>,
    /// Why the last token that is not padding cannot be known.
    pub pad_doubt: Option<String>,
    /// How texts are joined, where there is no chat template.
    pub text_rule: Option<TextRule>,
    /// How texts end.
    pub ends: TextEnds,
    /// Why the end of joined texts cannot be known.
    pub end_doubt: Option<String>,
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

    /// What stands before the backbone's tensor names in a checkpoint, for example "model.".
    pub fn prefix_in(&self, checkpoint: &Checkpoint) -> &'static str {
        let probe = match self {
            Self::Decoder(_) => "embed_tokens.weight",
            Self::Encoder(_) => "embeddings.word_embeddings.weight",
        };
        let prefixes = self.prefixes();
        prefixes
            .into_iter()
            .find(|prefix| checkpoint.contains(&format!("{prefix}{probe}")))
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

impl CheckpointConfig {
    /// Reads a `config.json`, under the manifest beside it.
    pub fn load(path: &Path, manifest: &Manifest) -> Result<Self, ModelError> {
        let text = disk::read_to_string(path, disk::SETTINGS_BYTES)
            .map_err(|source| ModelError::read(path, source))?;
        let fields: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| ModelError::config(path, error))?;
        Self::parse(&fields, manifest).map_err(|problem| ModelError::config(path, problem))
    }

    fn parse(fields: &Map<String, Value>, manifest: &Manifest) -> Result<Self, String> {
        let fields = Fields(fields);
        fields.refuse_unless(
            "quantization_config",
            Value::is_null,
            "quantized checkpoints are not supported",
        )?;
        let model_type: String = fields.required("model_type")?;
        let architecture = match fields.0.get("architectures") {
            None | Some(Value::Null) => format!("{model_type} (unnamed)"),
            Some(Value::Array(names)) if names.len() == 1 && names[0].is_string() => {
                names[0].as_str().unwrap_or_default().to_owned()
            }
            Some(other) => return Err(format!("`architectures` is {other}: expected one name")),
        };
        check_architecture(&architecture, &model_type)?;
        check_labels(&fields)?;
        let backbone = match model_type.as_str() {
            "llama" | "mistral" | "qwen2" | "qwen3" | "gemma2" => {
                BackboneConfig::Decoder(parse_decoder(&fields, &model_type)?)
            }
            "bert" | "roberta" => BackboneConfig::Encoder(parse_encoder(&fields, &model_type)?),
            other => {
                return Err(format!(
                    "model_type `{other}` is not supported: supported are llama, mistral, qwen2, qwen3, gemma2, \
                     bert and roberta"
                ));
            }
        };
        let normalization = if fields.optional::<bool>("normalize_reward")?.unwrap_or(false) {
            let calibration = Calibration { mean: fields.required("mean")?, std: fields.required("std")? };
            if !(calibration.std > 0.0 && calibration.std.is_finite() && calibration.mean.is_finite()) {
                return Err(format!("`std` is {}: `normalize_reward` needs one above zero", calibration.std));
            }
            Some(calibration)
        } else {
            None
        };
        let defaults = Defaults::of(&model_type);
        let eos_token_ids = match fields.0.get("eos_token_id") {
            None => defaults.eos_token_id.into_iter().collect(),
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            Some(Value::Number(id)) => id.as_u64().map(|id| id as u32).into_iter().collect(),
            _ => Vec::new(),
        };
        let pad_token_id = match fields.0.get("pad_token_id") {
            _ if manifest.pad_token_id.is_some() => manifest.pad_token_id,
            None => defaults.pad_token_id,
            // transformers writes -1 for "none" in some families
            Some(_) => fields.optional::<i64>("pad_token_id")?.and_then(|id| u32::try_from(id).ok()),
        };
        Ok(Self {
            architecture,
            model_type,
            tokenizer_class: fields.optional("tokenizer_class")?,
            backbone,
            value_head_prefix: fields.optional("value_head_prefix")?,
            normalization,
            pooling: manifest.pooling,
            pad_token_id,
            eos_token_ids,
            origin: Origin::default(),
        })
    }

    /// The pooling rule: the manifest's, or else what the head's origin does.
    ///
    /// transformers' `*ForSequenceClassification` looks for the rightmost token that is not padding;
    /// OpenRLHF and TRL take the last token of the attention mask; encoders take the first token.
    pub fn pooling(&self, head: HeadKind) -> Pooling {
        self.pooling.unwrap_or(match (head, &self.backbone, self.pad_token_id) {
            (_, BackboneConfig::Encoder(_), _) => Pooling::Cls,
            (HeadKind::Score, BackboneConfig::Decoder(_), Some(_)) => Pooling::LastNonPad,
            (_, BackboneConfig::Decoder(_), _) => Pooling::LastToken,
        })
    }
}

/// What a class of transformers takes for a key that is absent.
struct Defaults {
    vocab_size: usize,
    hidden: usize,
    intermediate: usize,
    num_layers: usize,
    heads: usize,
    /// `None`: as many as heads.
    kv_heads: Option<usize>,
    /// `None`: hidden / heads.
    head_dim: Option<usize>,
    max_positions: usize,
    pad_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl Defaults {
    /// From `configuration_*.py` of transformers 5.23.
    fn of(model_type: &str) -> Self {
        let llama = Self {
            vocab_size: 32_000,
            hidden: 4096,
            intermediate: 11_008,
            num_layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            max_positions: 2048,
            pad_token_id: None,
            eos_token_id: Some(2),
        };
        let qwen2 = Self {
            vocab_size: 151_936,
            intermediate: 22_016,
            kv_heads: Some(32),
            max_positions: 32_768,
            eos_token_id: None,
            ..llama
        };
        let bert = Self {
            vocab_size: 30_522,
            hidden: 768,
            intermediate: 3072,
            num_layers: 12,
            heads: 12,
            max_positions: 512,
            pad_token_id: Some(0),
            eos_token_id: None,
            ..llama
        };
        match model_type {
            "mistral" => Self { intermediate: 14_336, kv_heads: Some(8), max_positions: 131_072, ..llama },
            "qwen2" => qwen2,
            "qwen3" => Self { head_dim: Some(128), ..qwen2 },
            "gemma2" => Self {
                vocab_size: 256_000,
                hidden: 2304,
                intermediate: 9216,
                num_layers: 26,
                heads: 8,
                kv_heads: Some(4),
                head_dim: Some(256),
                max_positions: 8192,
                pad_token_id: Some(0),
                eos_token_id: Some(1),
            },
            "bert" => bert,
            "roberta" => Self { vocab_size: 50_265, pad_token_id: Some(1), eos_token_id: Some(2), ..bert },
            _ => llama,
        }
    }
}

/// What the names of transformers' classes for a `model_type` begin with.
pub fn class(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "llama" => "Llama",
        "mistral" => "Mistral",
        "qwen2" => "Qwen2",
        "qwen3" => "Qwen3",
        "gemma2" => "Gemma2",
        "bert" => "Bert",
        "roberta" => "Roberta",
        _ => return None,
    })
}

/// Accepts the classes that are one scalar reward on one of our backbones.
fn check_architecture(architecture: &str, model_type: &str) -> Result<(), String> {
    let Some(class) = class(model_type) else { return Ok(()) }; // refused by its model_type
    // but for the first, with a value head beside, or as the base of a training
    let tasks = ["ForSequenceClassification", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "Model"];
    let supported = architecture == "RewardModel" // OpenRLHF
        || architecture == format!("{model_type} (unnamed)")
        || architecture == format!("{class}ForCausalLMWithValueHead")
        || architecture == "AutoModelForCausalLMWithValueHead"
        || tasks.iter().any(|task| architecture == format!("{class}{task}"));
    if supported {
        return Ok(());
    }
    Err(format!(
        "architecture `{architecture}` is not supported with model_type `{model_type}`: supported are \
         {class}ForSequenceClassification, OpenRLHF's RewardModel, and {class}ForCausalLM with a value head"
    ))
}

/// A reward model has one label. A config that says nothing of labels leaves it to the head that is there.
fn check_labels(fields: &Fields<'_>) -> Result<(), String> {
    let said = match (fields.0.get("num_labels"), fields.0.get("id2label")) {
        (Some(labels), _) if !labels.is_null() => Some(("num_labels", labels, labels == 1)),
        (_, Some(Value::Object(names))) => Some(("id2label", &fields.0["id2label"], names.len() == 1)),
        _ => None,
    };
    match said {
        Some((key, value, false)) => Err(format!("`{key}` is {value}: a reward model has one label")),
        _ => Ok(()),
    }
}

fn parse_decoder(fields: &Fields<'_>, model_type: &str) -> Result<DecoderConfig, String> {
    let defaults = Defaults::of(model_type);
    let hidden = fields.size("hidden_size", defaults.hidden, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", defaults.heads, at_most::HEADS)?;
    let num_layers = fields.size("num_hidden_layers", defaults.num_layers, at_most::LAYERS)?;
    let kv_heads = match fields.0.get("num_key_value_heads") {
        Some(Value::Null) if model_type != "gemma2" => heads,
        _ => fields.size("num_key_value_heads", defaults.kv_heads.unwrap_or(heads), at_most::HEADS)?,
    };
    let head_dim = match fields.0.get("head_dim") {
        Some(Value::Null) if matches!(model_type, "llama" | "mistral") => hidden / heads,
        None if defaults.head_dim.is_none() => hidden / heads,
        _ => fields.size("head_dim", defaults.head_dim.unwrap_or(1), at_most::HEAD_DIM)?,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!(
            "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
        ));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(format!(
            "`head_dim` {head_dim} is not an even number above zero: rotary embedding needs pairs"
        ));
    }
    fields.refuse_unless(
        "use_bidirectional_attention",
        |value| matches!(value, Value::Null | Value::Bool(false)),
        "bidirectional attention in a decoder is not supported",
    )?;
    let is_gemma = model_type == "gemma2";
    let attention_bias: bool = fields.or_default("attention_bias", false)?;
    let max_positions = fields.size("max_position_embeddings", defaults.max_positions, at_most::POSITIONS)?;
    let query_scale = match model_type {
        "gemma2" => fields.number_or("query_pre_attn_scalar", 256.0, |scalar| scalar > 0.0)?,
        _ => head_dim as f64,
    };
    let act_key = if is_gemma { "hidden_activation" } else { "hidden_act" };
    let act_default = if is_gemma { "gelu_pytorch_tanh" } else { "silu" };
    let act_name: String = fields.or_default(act_key, act_default.to_owned())?;
    Ok(DecoderConfig {
        vocab_size: fields.size("vocab_size", defaults.vocab_size, at_most::VOCABULARY)?,
        hidden,
        intermediate: fields.size("intermediate_size", defaults.intermediate, at_most::WIDTH)?,
        num_layers,
        heads,
        kv_heads,
        head_dim,
        max_positions,
        norm_eps: fields.number_or("rms_norm_eps", 1e-6, |eps| (0.0..1.0).contains(&eps))?,
        norm_unit_offset: is_gemma,
        post_norms: is_gemma,
        qk_norm: model_type == "qwen3",
        activation: parse_activation(act_key, &act_name)?,
        qkv_bias: model_type == "qwen2" || (model_type != "mistral" && attention_bias),
        output_bias: matches!(model_type, "llama" | "qwen3" | "gemma2") && attention_bias,
        mlp_bias: model_type == "llama" && fields.or_default("mlp_bias", false)?,
        rope: RopeConfig::parse(fields, head_dim, max_positions)?,
        windows: parse_windows(fields, model_type, num_layers)?,
        attention_scale: query_scale.powf(-0.5),
        attention_softcap: if is_gemma {
            match fields.0.get("attn_logit_softcapping") {
                None => Some(50.0), // transformers' default; an explicit null means none
                Some(_) => fields.number("attn_logit_softcapping", |cap| cap != 0.0)?,
            }
        } else {
            None
        },
        embedding_scale: is_gemma.then(|| (hidden as f64).sqrt()),
    })
}

/// Which layers see a window only, as transformers decides it.
fn parse_windows(
    fields: &Fields<'_>,
    model_type: &str,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, String> {
    let window = match fields.0.get("sliding_window") {
        None if matches!(model_type, "mistral" | "qwen2" | "qwen3" | "gemma2") => Some(4096), // transformers' default
        _ => fields.optional_size("sliding_window", at_most::POSITIONS)?,
    };
    let layer_types: Option<Vec<String>> = fields.optional("layer_types")?;
    // a mistral that says it is read as the class ministral, which is mistral with layers of both kinds
    if let (Some(types), "mistral" | "qwen2" | "qwen3" | "gemma2") = (&layer_types, model_type) {
        if types.len() != num_layers {
            return Err(format!("`layer_types` has {} entries for {num_layers} layers", types.len()));
        }
        return types
            .iter()
            .map(|layer| match (layer.as_str(), window) {
                ("full_attention", _) => Ok(None),
                ("sliding_attention", Some(window)) => Ok(Some(window)),
                ("sliding_attention", None) => {
                    Err("`layer_types` asks for a `sliding_window`, which is null".into())
                }
                (other, _) => Err(format!("layer type `{other}` is not supported")),
            })
            .collect();
    }
    let slides: Box<dyn Fn(usize) -> bool> = match model_type {
        "mistral" => Box::new(|_| true),
        "gemma2" => Box::new(|layer| layer % 2 == 0),
        "qwen2" | "qwen3" if fields.or_default("use_sliding_window", false)? => {
            let full_layers = fields.optional::<usize>("max_window_layers")?.unwrap_or(28);
            Box::new(move |layer| layer >= full_layers)
        }
        _ => Box::new(|_| false),
    };
    Ok((0..num_layers).map(|layer| window.filter(|_| slides(layer))).collect())
}

fn parse_encoder(fields: &Fields<'_>, model_type: &str) -> Result<EncoderConfig, String> {
    let is_no = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    fields.refuse_unless(
        "position_embedding_type",
        |value| value.is_null() || value == "absolute",
        "only absolute position embeddings are supported",
    )?;
    fields.refuse_unless("is_decoder", is_no, "a BERT that is a decoder is not supported")?;
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let defaults = Defaults::of(model_type);
    let hidden = fields.size("hidden_size", defaults.hidden, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", defaults.heads, at_most::HEADS)?;
    if !hidden.is_multiple_of(heads) {
        return Err(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}"));
    }
    let act_name: String = fields.or_default("hidden_act", "gelu".to_owned())?;
    let is_roberta = model_type == "roberta";
    let max_positions = fields.size("max_position_embeddings", defaults.max_positions, at_most::POSITIONS)?;
    let position_padding_id = if is_roberta { Some(fields.or_default("pad_token_id", 1)?) } else { None };
    Ok(EncoderConfig {
        prefix: if is_roberta { "roberta." } else { "bert." },
        vocab_size: fields.size("vocab_size", defaults.vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: fields.size("type_vocab_size", 2, at_most::TOKEN_TYPES)?,
        hidden,
        intermediate: fields.size("intermediate_size", defaults.intermediate, at_most::WIDTH)?,
        num_layers: fields.size("num_hidden_layers", defaults.num_layers, at_most::LAYERS)?,
        heads,
        max_positions,
        position_padding_id,
        norm_eps: fields.number_or("layer_norm_eps", 1e-12, |eps| (0.0..1.0).contains(&eps))?,
        activation: parse_activation("hidden_act", &act_name)?,
    })
}

fn parse_activation(key: &str, name: &str) -> Result<Activation, String> {
    Ok(match name {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        other => {
            return Err(format!(
                "`{key}` is `{other}`: supported are gelu, gelu_new, gelu_pytorch_tanh, silu, relu"
            ));
        }
    })
}
