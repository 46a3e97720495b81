//! From a model in training to a Hugging Face directory.

use std::path::Path;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Trainable;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::write::CheckpointWriter;
use crate::checkpoint::write::MAX_SHARD_BYTES;
use crate::checkpoint::write::TensorSpec;
use crate::disk;
use crate::learn::adamw::with_values;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::plan::ModelPlan;
use crate::model::plan::TensorPlan;
use crate::model::pooling::HeadKind;
use crate::text::TextEnd;
use crate::text::TextRule;
use crate::values::Format;
use crate::values::Values;

const MANIFEST: &str = "rewarm.json";

impl Trainable {
    /// Writes a checkpoint, whole or not at all: weights rounded once to `format` (`f32`, `bf16` or `f16`), config,
    /// tokenizer, template, the manifest (without a calibration, for these are other weights; with the text rule, where
    /// no template says it), and JSON `files` beside.
    ///
    /// It is the form that the base had; a base without a head, and transformers' own heads, become transformers'
    /// `*ForSequenceClassification`. What a reward does not depend on, such as `lm_head`, is left out.
    pub fn save(&self, target: &Path, format: Format, files: &[(&str, Value)]) -> Result<(), ModelError> {
        let tokenizer = self.dir.join("tokenizer.json");
        std::fs::metadata(&tokenizer).map_err(|source| ModelError::read(&tokenizer, source))?;
        let specs = self.tensors.iter().map(|held| TensorSpec {
            name: held.name.clone(),
            dtype: format.into(),
            shape: held.var.dims().to_vec(),
        });
        let mut writer = CheckpointWriter::create(target, specs.collect(), MAX_SHARD_BYTES)?;
        for held in &self.tensors {
            let values = with_values(&held.var, |values| Ok(Values::rounded(format, values)))?;
            if let Some(value) = values.first_not_finite() {
                return Err(CheckpointError::NotFiniteWeight { name: held.name.clone(), value }.into());
            }
            writer.write(&held.name, &values)?;
        }
        let mut config = self.config.clone();
        config.remove("torch_dtype"); // its name until transformers 5
        config.insert("dtype".to_owned(), json!(format.torch_name()));
        writer.add_json("config.json", &Value::Object(config))?;
        writer.copy_text_files(&self.dir)?;
        if let Some(manifest) = self.manifest()? {
            writer.add_json(MANIFEST, &manifest)?;
        }
        for (name, document) in files {
            writer.add_json(name, document)?;
        }
        Ok(writer.finish()?)
    }

    /// The base's, without its calibration, and with the rule that the texts were joined by and the end that they had.
    fn manifest(&self) -> Result<Option<Value>, ModelError> {
        let path = self.dir.join(MANIFEST);
        let read = disk::read_if_there(&path, disk::SETTINGS_BYTES);
        let mut manifest: Map<String, Value> = match read.map_err(|source| ModelError::read(&path, source))? {
            Some(text) => serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))?,
            None => Map::new(),
        };
        manifest.remove("calibration");
        if let Some(rule) = self.tokenizer.rule().filter(|rule| *rule != TextRule::ChatTemplate) {
            manifest.insert("text_rule".to_owned(), json!(rule));
        }
        if self.tokenizer.end() == TextEnd::Eos {
            manifest.insert("text_end".to_owned(), json!(TextEnd::Eos));
        }
        Ok((!manifest.is_empty()).then_some(Value::Object(manifest)))
    }
}

/// What a tensor is called in the checkpoint that is written: heads of others keep the names around them.
pub(super) fn name_of(tensor: &TensorPlan, plan: &ModelPlan) -> String {
    match tensor.name.strip_prefix(&plan.prefix) {
        Some(rest) if tensor.is_in_backbone && plan.head.kind.is_native() => {
            format!("{}{rest}", plan.backbone.prefixes[0])
        }
        _ => tensor.name.clone(),
    }
}

/// Makes `config.json` say that this is transformers' class with one label, if it is.
pub(super) fn name_architecture(fields: &mut Map<String, Value>, config: &CheckpointConfig, head: HeadKind) {
    if !head.is_native() {
        return;
    }
    let architecture = format!("{}ForSequenceClassification", config.family().class);
    if config.architecture == architecture {
        return;
    }
    fields.insert("architectures".to_owned(), json!([architecture]));
    fields.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
    fields.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
    fields.remove("num_labels"); // else it must agree with the two
}
