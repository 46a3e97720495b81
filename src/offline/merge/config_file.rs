//! The merged checkpoint's `config.json`: the first member's, with what the merge changes.

use anyhow::Context;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::quantized;
use crate::disk;
use crate::model::config::CheckpointConfig;
use crate::model::pooling::HeadKind;
use crate::values::Format;

/// What transformers calls a model with a scalar reward head.
const REWARD_TASK: &str = "ForSequenceClassification";
/// And what it may have been before an adapter brought one.
const OTHER_TASKS: [&str; 3] = ["ForCausalLM", "ForMaskedLM", "Model"];

/// Whether an adapter made a reward model of a base whose config says that it is something else.
pub(super) fn is_converted(first: &Checkpoint, config: &CheckpointConfig, head: HeadKind) -> bool {
    first.base().is_some() && head.is_native() && !config.architecture.ends_with(REWARD_TASK)
}

/// The config of the merge.
pub(super) fn merged(
    first: &Checkpoint,
    config: &CheckpointConfig,
    head: HeadKind,
    dtype: Format,
) -> anyhow::Result<Value> {
    let path = first.dir_of("config.json").join("config.json");
    let text = disk::read_to_string(&path, disk::SETTINGS_BYTES)
        .with_context(|| format!("read {}", path.display()))?;
    let mut fields: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    // what an adapter or a manifest knew better, transformers must find here
    if let Some(id) = config.pad_token_id {
        fields.insert("pad_token_id".to_owned(), json!(id));
    }
    if fields.get("vocab_size").is_some_and(|size| *size != json!(config.backbone.vocab_size())) {
        fields.insert("vocab_size".to_owned(), json!(config.backbone.vocab_size()));
    }
    quantized::make_plain(&mut fields);
    // where one member came from says nothing of the merge
    fields.shift_remove("_name_or_path");
    // transformers 4 wrote the second
    let keys: Vec<&str> =
        ["dtype", "torch_dtype"].into_iter().filter(|key| fields.contains_key(*key)).collect();
    for key in if keys.is_empty() { vec!["dtype"] } else { keys } {
        fields.insert(key.to_owned(), json!(dtype.torch_name()));
    }
    if is_converted(first, config, head) {
        let class = OTHER_TASKS.iter().find_map(|task| config.architecture.strip_suffix(task));
        if let Some(class) = class {
            fields.insert("architectures".to_owned(), json!([format!("{class}{REWARD_TASK}")]));
        }
    }
    let labels = fields.get("id2label").and_then(Value::as_object).map(Map::len);
    if first.base().is_some() && head.is_native() && config.labels.is_none() && labels != Some(1) {
        // one output, whatever the base's config says; transformers' default is two
        fields.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
        fields.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
    }
    Ok(Value::Object(fields))
}
