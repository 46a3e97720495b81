//! `adapter_config.json`: read into what the adapter's tensors must fit, or refused by name.

use std::path::Path;
use std::path::PathBuf;

use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::lora::CONFIG_FILE;
use crate::checkpoint::lora::targets;
use crate::checkpoint::lora::targets::Patterns;
use crate::checkpoint::lora::targets::Targets;
use crate::disk;

/// Settings that change rewards in ways that we do not follow, unless they are null, false or empty; and the cure.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("use_dora", "DoRA also scales each row"),
    ("lora_bias", "biases of the update are not supported"),
    ("use_qalora", "quantized adapters are not supported"),
    ("layer_replication", "layers that are used twice are not supported"),
    ("trainable_token_indices", "single rows of the embedding are not supported"),
    ("target_parameters", "updates of parameters that are no layers, such as experts, are not supported"),
    ("alora_invocation_tokens", "updates that start within the text are not supported"),
    ("kasa_config", "KaSA changes the base"),
    ("monteclora_config", "updates that are drawn at random are not supported"),
    ("use_bdlora", "block-diagonal updates are not supported"),
    ("arrow_config", "routing between adapters is not supported"),
    ("megatron_config", "Megatron's parallel layers are not supported"),
];

/// Of these, what becomes ordinary weights when peft merges the adapter, seen to give the adapter's rewards.
const MERGEABLE: [&str; 3] = ["use_dora", "target_parameters", "trainable_token_indices"];

/// What else peft 0.21.2 writes, and what older ones did: read here, or without effect on a trained adapter's rewards.
///
/// `fan_in_fan_out` is for GPT-2's transposed layers. Our families have none, and peft then ignores it too. `bias` tells
/// what was trained: biases that were are stored, and read by their names.
const KNOWN: [&str; 38] = [
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
    "ephemeral_gpu_offload",
    "enable_lora",
    "merge_weights",
    "modules_to_tie",
    "target_modules_to_tie",
    "parent_library",
    "layers",
    "num_layers",
];

/// Initialisations that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) train against a changed
/// base, which the adapter does not hold.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What `adapter_config.json` says.
#[derive(Debug)]
pub(in crate::checkpoint) struct Settings {
    pub(super) dir: PathBuf,
    rank: usize,
    alpha: f64,
    is_rank_stabilized: bool,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
    /// None: peft finds them by itself.
    pub(super) targets: Option<Targets>,
    /// Names of modules that are stored whole, or their ends.
    pub(super) saved: Vec<String>,
}

impl Settings {
    /// Reads `adapter_config.json`; refuses what we cannot follow.
    pub(in crate::checkpoint) fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join(CONFIG_FILE);
        let text =
            disk::read(&path, disk::SETTINGS_BYTES).map_err(|source| CheckpointError::read(&path, source))?;
        let fields: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| CheckpointError::config(&path, error))?;
        Self::parse(dir, &fields).map_err(|problem| CheckpointError::config(&path, problem))
    }

    fn parse(dir: &Path, map: &Map<String, Value>) -> Result<Self, String> {
        let fields = Fields(map);
        fields.refuse_unless(
            "peft_type",
            |value| value == "LORA",
            "of PEFT's adapters only LORA is supported",
        )?;
        fields.required::<String>("peft_type")?;
        for (key, why) in UNSUPPORTED {
            fields.refuse_unless(key, is_off, why).map_err(|problem| match MERGEABLE.contains(&key) {
                true => format!("{problem}; peft can merge it into its base: {}", merge_command(dir)),
                false => problem,
            })?;
        }
        let is_known = |key: &str| KNOWN.contains(&key) || UNSUPPORTED.iter().any(|(other, _)| *other == key);
        if let Some((key, value)) = map.iter().find(|(key, value)| !is_known(key) && !is_off(value)) {
            return Err(format!(
                "`{key}` is {value}: a setting that we do not know (of a newer peft?), which may change rewards"
            ));
        }
        fields.refuse_unless(
            "init_lora_weights",
            |value| match value {
                Value::String(name) => HARMLESS_INITS.contains(&name.as_str()),
                _ => true,
            },
            "it trains against a changed base: convert the adapter to plain LoRA with peft \
             (`path_initial_model_for_weight_conversion`)",
        )?;
        let patterns = |key| Ok::<Map<String, Value>, String>(fields.optional(key)?.unwrap_or_default());
        let as_rank = |value: &Value| value.as_u64().map(|rank| rank as usize);
        Ok(Self {
            dir: dir.to_owned(),
            rank: fields.optional("r")?.unwrap_or(8), // peft's default
            alpha: fields.required("lora_alpha")?,
            is_rank_stabilized: fields.optional("use_rslora")?.unwrap_or(false),
            rank_pattern: Patterns::parse("rank_pattern", &patterns("rank_pattern")?, as_rank)?,
            alpha_pattern: Patterns::parse("alpha_pattern", &patterns("alpha_pattern")?, Value::as_f64)?,
            targets: Targets::parse(map)?,
            saved: targets::strings("modules_to_save", map)?.unwrap_or_default(),
        })
    }

    /// The rank that a layer's update must have.
    pub(super) fn rank(&self, layer: &str) -> Result<usize, String> {
        Ok(self.rank_pattern.get(layer)?.copied().unwrap_or(self.rank))
    }

    /// The factor before `B·A`.
    pub(super) fn scale(&self, layer: &str) -> Result<f64, String> {
        let alpha = self.alpha_pattern.get(layer)?.copied().unwrap_or(self.alpha);
        let rank = self.rank(layer)?.max(1) as f64;
        Ok(alpha / if self.is_rank_stabilized { rank.sqrt() } else { rank })
    }
}

fn merge_command(dir: &Path) -> String {
    format!(
        "`python -c \"from peft import AutoPeftModelForSequenceClassification as M; \
         M.from_pretrained('{}', num_labels=1).merge_and_unload().save_pretrained('OUT')\"`, and copy the tokenizer's files \
         into OUT",
        dir.display()
    )
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
