//! What sentence-transformers leaves beside a model: whether its score is that of transformers' classifier.
//!
//! A `CrossEncoder` (6.2.0) saves a Hugging Face directory with `modules.json`, `config_sentence_transformers.json` and
//! `sentence_bert_config.json` beside it; before 5.4 a plain one, with its activation in `config.json`. Where its only
//! module is a transformer with a classifier, the score before the activation is the logit that is the reward here. Other modules
//! make other scores, of tokens' logits (`LogitScore`) or of embeddings, and are refused by name. An embedding model has
//! no reward head either way; a training may start from its transformer, and takes no notice of the rest.

use std::path::Path;

use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::fields::Fields;
use crate::disk;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;

const MODULES: &str = "modules.json";
const OF_ALL: &str = "config_sentence_transformers.json";
const OF_THE_TRANSFORMER: &str = "sentence_bert_config.json";
/// The task of a transformer whose scores are those of its classifier; absent before 5.4.
const CLASSIFIER: &str = "sequence-classification";

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// Notes what is certain, and refuses what makes other scores.
pub(super) fn settle(checkpoint: &Checkpoint, config: &mut CheckpointConfig) -> Result<(), ModelError> {
    let file = |name: &str| checkpoint.dir_of(name).join(name);
    let modules: Option<Vec<Module>> = read(&file(MODULES))?;
    let of_all = read::<Map<String, Value>>(&file(OF_ALL))?.unwrap_or_default();
    let of_all = Fields(&of_all);
    let refused = |name: &str, problem: String| ModelError::config(&file(name), problem);
    let field = |fields: &Fields<'_>, key: &str| {
        fields.optional::<String>(key).map_err(|problem| refused(OF_ALL, problem))
    };
    let is_classifier = field(&of_all, "model_type")?.as_deref() == Some("CrossEncoder")
        || config.architecture.ends_with("ForSequenceClassification");
    if let Some(modules) = modules {
        let short = |module: &Module| module.class.rsplit('.').next().unwrap_or_default().to_owned();
        let names = modules.iter().map(short).collect::<Vec<_>>().join(", ");
        match modules.as_slice() {
            [only] if short(only) == "Transformer" && only.path.trim_matches(['.', '/']).is_empty() => {}
            _ if is_classifier => {
                return Err(refused(
                    MODULES,
                    format!(
                        "its scores are made by {names}: only those of one Transformer with a classifier, in this directory, can \
                         be given; remove the file if the classifier alone is meant"
                    ),
                ));
            }
            _ => config.origin.notes.push(format!(
                "{MODULES} tells of an embedding model ({names}), of which the transformer alone is taken"
            )),
        }
    }
    if !is_classifier {
        return Ok(());
    }
    let transformer = read::<Map<String, Value>>(&file(OF_THE_TRANSFORMER))?.unwrap_or_default();
    let transformer = Fields(&transformer);
    let task: Option<String> =
        transformer.optional("transformer_task").map_err(|problem| refused(OF_THE_TRANSFORMER, problem))?;
    if let Some(task) = task.filter(|task| task != CLASSIFIER) {
        let problem =
            format!("`transformer_task` is \"{task}\": only \"{CLASSIFIER}\" gives scores that are rewards");
        return Err(refused(OF_THE_TRANSFORMER, problem));
    }
    if transformer.0.get("do_lower_case") == Some(&Value::Bool(true)) {
        let problem = "`do_lower_case` is true: texts are lower-cased before the tokenizer, which is not done here; let the \
                       normalizer of tokenizer.json do it, and set this to false";
        return Err(refused(OF_THE_TRANSFORMER, problem.to_owned()));
    }
    if let Some(name) = field(&of_all, "default_prompt_name")? {
        let prompt = of_all.0.get("prompts").and_then(|prompts| prompts.get(&name)).and_then(Value::as_str);
        if let Some(prompt) = prompt.filter(|prompt| !prompt.is_empty()) {
            let problem = format!(
                "`default_prompt_name` is \"{name}\": {prompt:?} is put before texts, which is not done here; put it into the \
                 texts, and set this to null"
            );
            return Err(refused(OF_ALL, problem));
        }
    }
    let activation = field(&of_all, "activation_fn")?.or_else(|| config.origin.activation.clone());
    if let Some(activation) = activation {
        let name = activation.rsplit('.').next().unwrap_or_default();
        if name != "Identity" {
            config.origin.notes.push(format!(
                "sentence-transformers applies {name} to its scores; a reward is the logit before it"
            ));
        }
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    let text = ModelError::read_if_there(path, disk::SETTINGS_BYTES)?;
    text.map(|text| serde_json::from_slice(&text))
        .transpose()
        .map_err(|error| ModelError::config(path, error))
}
