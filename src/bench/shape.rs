//! Checkpoints of a known shape with random weights: what a forward costs does not depend on what a model has
//! learnt, and nothing needs to be downloaded.

use std::path::Path;

use anyhow::Context;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::bench::noise::Noise;
use crate::model::config::CheckpointConfig;
use crate::model::manifest::Manifest;
use crate::model::plan::ModelPlan;
use crate::model::plan::Role;
use crate::model::plan::TensorPlan;

/// A shape that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// An encoder, 6 layers x 384, 23M parameters: all-MiniLM-L6-v2's.
    Minilm,
    /// An encoder, 12 layers x 768, 109M parameters.
    BertBase,
    /// An encoder, 22 layers x 768, 149M parameters, two of three layers of which see 128 tokens around.
    ModernbertBase,
    /// An encoder, 12 layers x 768, 184M parameters, with disentangled attention.
    #[value(name = "deberta-v3-base")]
    #[serde(rename = "deberta-v3-base")]
    DebertaV3Base,
    /// A decoder, 30 layers x 576, 135M parameters.
    #[value(name = "smollm2-135m")]
    #[serde(rename = "smollm2-135m")]
    Smollm2,
    /// A decoder, 8 layers x 512, 42M parameters.
    #[value(name = "llama-512x8")]
    #[serde(rename = "llama-512x8")]
    Llama512,
    /// A decoder, 28 layers x 1024, 596M parameters: Qwen3-0.6B's.
    #[value(name = "qwen3-600m")]
    #[serde(rename = "qwen3-600m")]
    Qwen3,
    /// A decoder, 36 layers x 4096, 8.2B parameters: Qwen3-8B's.
    #[value(name = "qwen3-8b")]
    #[serde(rename = "qwen3-8b")]
    Qwen3Large,
}

impl Shape {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::BertBase => "bert-base",
            Self::ModernbertBase => "modernbert-base",
            Self::DebertaV3Base => "deberta-v3-base",
            Self::Smollm2 => "smollm2-135m",
            Self::Llama512 => "llama-512x8",
            Self::Qwen3 => "qwen3-600m",
            Self::Qwen3Large => "qwen3-8b",
        }
    }

    /// `config.json` of its model, with one label.
    pub fn config(self) -> Value {
        let sizes =
            |family, [vocab, hidden, intermediate, layers, heads, kv_heads, max_tokens]: [usize; 7]| {
                Sizes { family, vocab, hidden, intermediate, layers, heads, kv_heads, max_tokens }.config()
            };
        match self {
            Self::Minilm => sizes(Family::Bert, [30_522, 384, 1536, 6, 12, 12, 512]),
            Self::BertBase => sizes(Family::Bert, [30_522, 768, 3072, 12, 12, 12, 512]),
            Self::Smollm2 => sizes(Family::Llama, [49_152, 576, 1536, 30, 9, 3, 8192]),
            Self::Llama512 => sizes(Family::Llama, [32_000, 512, 1376, 8, 8, 8, 4096]),
            Self::ModernbertBase => json!({
                "architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert",
                "vocab_size": 50_368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
                "num_attention_heads": 12, "max_position_embeddings": 8192, "local_attention": 128,
                "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
                "classifier_pooling": "mean", "pad_token_id": 0,
            }),
            Self::DebertaV3Base => json!({
                "architectures": ["DebertaV2ForSequenceClassification"], "model_type": "deberta-v2",
                "vocab_size": 128_100, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "max_position_embeddings": 512, "position_buckets": 256,
                "max_relative_positions": -1, "relative_attention": true, "pos_att_type": ["p2c", "c2p"],
                "share_att_key": true, "norm_rel_ebd": "layer_norm", "position_biased_input": false,
                "type_vocab_size": 0, "layer_norm_eps": 1e-7, "hidden_act": "gelu", "pooler_hidden_size": 768,
                "pooler_hidden_act": "gelu", "pad_token_id": 0,
            }),
            Self::Qwen3 => qwen3([1024, 3072, 28, 16]),
            Self::Qwen3Large => qwen3([4096, 12_288, 36, 32]),
        }
    }
}

/// Of hidden size, size inside the MLP, layers and heads.
fn qwen3([hidden, intermediate, layers, heads]: [usize; 4]) -> Value {
    json!({
        "architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3", "vocab_size": 151_936,
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "hidden_act": "silu", "pad_token_id": 0,
    })
}

/// Whose tensors a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForSequenceClassification`.
    Llama,
    /// `BertForSequenceClassification`.
    Bert,
}

/// The sizes of a checkpoint with one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Whose tensors.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// How many layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; an encoder has as many as query heads.
    pub kv_heads: usize,
    /// The longest sequence.
    pub max_tokens: usize,
}

impl Sizes {
    /// `config.json`.
    pub fn config(&self) -> Value {
        let Self { vocab, hidden, intermediate, layers, heads, kv_heads, max_tokens, .. } = self;
        match self.family {
            Family::Llama => json!({
                "architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "vocab_size": vocab,
                "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                "max_position_embeddings": max_tokens, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
                "hidden_act": "silu", "pad_token_id": 0,
            }),
            Family::Bert => json!({
                "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": vocab,
                "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
                "num_attention_heads": heads, "max_position_embeddings": max_tokens, "type_vocab_size": 2,
                "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
            }),
        }
    }

    /// Writes a checkpoint directory: see [`write()`].
    pub fn write(&self, dir: &Path, member: u64) -> anyhow::Result<()> {
        write(&self.config(), dir, member)
    }
}

/// All that a model of this config reads.
pub fn tensors(config: &Value) -> Vec<TensorPlan> {
    let fields = config.as_object().expect("written as one");
    let config = CheckpointConfig::parse(fields, &Manifest::default()).expect("a config that runs");
    let head = config.backbone.head.clone();
    ModelPlan::new(config.backbone.prefixes[0], config.backbone, head).tensors
}

/// Writes a checkpoint directory of this config with random weights in f16. Members of one family start from the same
/// weights and differ by a sixteenth of their size, so that they pass for fine-tuned from one pretrain.
pub fn write(config: &Value, dir: &Path, member: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"},
    });
    // as it is, whatever tokenizer the model's family has
    let class = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let files =
        [("config.json", config.clone()), ("tokenizer.json", tokenizer), ("tokenizer_config.json", class)];
    for (name, value) in files {
        let path = dir.join(name);
        std::fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    let draw_all = |(index, TensorPlan { name, shape, role, .. }): (usize, TensorPlan)| {
        let seed = |of: u64| Noise::new(of << 32 | index as u64);
        let (mut base, mut own) = (seed(0), seed(member + 1));
        // Norms keep the size of what passes; the others are as small as a trained model's.
        let mean = if role == Role::NormWeight { 1.0 } else { 0.0 };
        let mut draw = || mean + 0.1 * (base.unit() - 0.5 + (own.unit() - 0.5) / 16.0);
        let count = shape.iter().product();
        let bytes = (0..count).flat_map(|_| half::f16::from_f64(draw()).to_le_bytes()).collect();
        (name, shape, bytes)
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        tensors(config).into_par_iter().enumerate().map(draw_all).collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .context("a tensor's bytes are its shape's")?;
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::ValueEnum;

    use super::*;
    use crate::model::variant::Loader;
    use crate::model::variant::Mode;
    use crate::model::variant::VariantConfig;

    #[test]
    fn shapes_have_their_models_sizes() {
        let millions = |shape: Shape| {
            let tensors = tensors(&shape.config());
            tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>() / 1_000_000
        };
        let parameters: Vec<(&str, usize)> =
            Shape::value_variants().iter().map(|shape| (shape.name(), millions(*shape))).collect();
        assert_eq!(
            parameters,
            [
                ("minilm", 22),
                ("bert-base", 109),
                ("modernbert-base", 149),
                ("deberta-v3-base", 184),
                ("smollm2-135m", 134),
                ("llama-512x8", 41),
                ("qwen3-600m", 596),
                ("qwen3-8b", 7568),
            ]
        );
    }

    #[test]
    fn what_is_written_loads_as_a_family() {
        for family in [Family::Llama, Family::Bert] {
            let heads = 4;
            let sizes = Sizes {
                family,
                vocab: 50,
                hidden: 16,
                intermediate: 24,
                layers: 2,
                heads,
                kv_heads: if family == Family::Llama { 2 } else { heads },
                max_tokens: 32,
            };
            let folder = tempfile::tempdir().unwrap();
            let members: Vec<PathBuf> =
                (0..2).map(|member| folder.path().join(format!("member-{member}"))).collect();
            members.iter().zip(0..).for_each(|(dir, member)| sizes.write(dir, member).unwrap());
            let config = VariantConfig::new("warm", Mode::Warm, members);
            let variant = Loader::default().load(&config, &mut |_, _| ()).unwrap();
            assert_ne!(variant.info.members[0].digest, variant.info.members[1].digest);
            assert_eq!((variant.info.max_tokens, variant.tokenizer.vocab_size()), (32, 50));
        }
    }
}
