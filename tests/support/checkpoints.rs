//! Tiny checkpoints, written as Hugging Face directories from a seed.

use std::collections::BTreeMap;
use std::path::Path;

use rewarm::bench::shape::Family;
use rewarm::bench::shape::Sizes;
use rewarm::model::plan::TensorPlan;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use serde_json::json;

/// A checkpoint in memory, to be changed and written.
#[derive(Clone)]
pub(crate) struct TinyCheckpoint {
    pub(crate) config: Value,
    /// Name → shape and values.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(crate) tokenizer: Value,
    pub(crate) tokenizer_config: Value,
}

/// Numbers in -1..1, the same for a seed everywhere.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn draw(&mut self) -> f32 {
        // Knuth's MMIX generator; the upper bits are the good ones
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Words of the tiny vocabulary: special tokens, then "w0" to "w58".
pub(crate) const VOCAB: usize = 64;

impl TinyCheckpoint {
    /// A Llama with a `score` head: 2 layers, hidden 16, 64 words, pad token 0.
    pub(crate) fn llama(seed: u64) -> Self {
        let sizes = Sizes {
            family: Family::Llama,
            vocab: VOCAB,
            hidden: 16,
            intermediate: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            max_tokens: 512,
        };
        Self::of(sizes, seed)
    }

    /// Random weights of these sizes. The tokenizer's vocabulary is [`VOCAB`] whatever the embedding's.
    pub(crate) fn of(sizes: Sizes, seed: u64) -> Self {
        Self::random(sizes.config(), rewarm::bench::shape::tensors(&sizes.config()), seed)
    }

    fn random(config: Value, tensors: Vec<TensorPlan>, seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let tensors = tensors
            .into_iter()
            .map(|TensorPlan { name, shape, .. }| {
                let values = (0..shape.iter().product()).map(|_| 0.5 * noise.draw()).collect();
                (name, (shape, values))
            })
            .collect();
        let words = (0..VOCAB).map(|id| match id {
            0 => "[PAD]".to_owned(),
            1 => "[BOS]".to_owned(),
            2 => "[EOS]".to_owned(),
            3 => "[UNK]".to_owned(),
            4 => "[SEP]".to_owned(),
            _ => format!("w{}", id - 5),
        });
        let vocab: BTreeMap<String, usize> = words.enumerate().map(|(id, word)| (word, id)).collect();
        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "decoder": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
            "added_tokens": [special(0, "[PAD]"), special(1, "[BOS]"), special(2, "[EOS]"), special(4, "[SEP]")],
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
        });
        let tokenizer_config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", // which takes tokenizer.json as it is
            "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]",
            "chat_template": "{{ bos_token }}{% for message in messages %} {{ message.content }} [SEP]{% endfor %}",
        });
        Self { config, tensors, tokenizer, tokenizer_config }
    }

    /// The same start, with noise of this size on every tensor, or only on those whose name starts so: a member.
    pub(crate) fn perturbed(&self, seed: u64, size: f32, prefix: &str) -> Self {
        let mut noise = Noise::new(seed ^ 0x5EED);
        let mut member = self.clone();
        for (name, (_, values)) in &mut member.tensors {
            if name.starts_with(prefix) {
                values.iter_mut().for_each(|value| *value += size * noise.draw());
            }
        }
        member
    }

    /// Writes the directory.
    pub(crate) fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let write = |name: &str, value: &Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
        write("config.json", &self.config);
        write("tokenizer.json", &self.tokenizer);
        write("tokenizer_config.json", &self.tokenizer_config);
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
        std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }
}
