//! Whether weights can be averaged: one function, one text, one set of tensors.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::disk;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::text::SampleTokenizer;

/// Refuses members whose weights cannot be averaged: another function, other tensors, another vocabulary.
///
/// `members` are (directory, config, checkpoint) in order; each is compared with the first.
pub fn check_members(members: &[(&Path, &CheckpointConfig, &Checkpoint)]) -> Result<(), ModelError> {
    let (first_dir, first_config, first) = members[0];
    let first_value =
        serde_json::to_value(first_config).map_err(|error| ModelError::config(first_dir, error))?;
    let first_tokenizer = tokenizer_content(first.text_dir())?;
    for &(dir, config, checkpoint) in &members[1..] {
        let refuse = |problem: String| ModelError::CannotMerge {
            first: first_dir.to_owned(),
            member: dir.to_owned(),
            problem,
        };
        for ((key, one), (_, other)) in first_config.backbone.sizes().into_iter().zip(config.backbone.sizes())
        {
            if one != other {
                return Err(refuse(format!("`{key}` is {one} in the first and {other} in the second")));
            }
        }
        let value = serde_json::to_value(config).map_err(|error| ModelError::config(dir, error))?;
        if let Some(difference) = difference("", &first_value, &value) {
            return Err(refuse(difference));
        }
        for name in first.names() {
            let shape = |checkpoint: &Checkpoint| checkpoint.info(name).map(|info| info.shape.clone());
            match (shape(first), shape(checkpoint)) {
                (_, None) => return Err(refuse(format!("tensor `{name}` is missing in the second"))),
                (Some(one), Some(other)) if one != other => {
                    let problem =
                        format!("tensor `{name}` is {one:?} in the first and {other:?} in the second");
                    return Err(refuse(problem));
                }
                _ => {}
            }
        }
        if let Some(name) = checkpoint.names().find(|name| first.info(name).is_none()) {
            return Err(refuse(format!("tensor `{name}` is missing in the first")));
        }
        if first_tokenizer != tokenizer_content(checkpoint.text_dir())? {
            return Err(refuse("their tokenizers differ (tokenizer.json)".to_owned()));
        }
    }
    Ok(())
}

/// Refuses a member that makes other tokens of a text than the first: `tokenizer.json` is not all that decides. Names alone
/// (which token is called `eos_token`) are the template's affair.
pub fn check_tokens(
    (first, first_tokenizer): (&Path, &SampleTokenizer),
    (member, tokenizer): (&Path, &SampleTokenizer),
) -> Result<(), ModelError> {
    let mut identities = [first_tokenizer, tokenizer].map(|tokenizer| tokenizer.identity().clone());
    for identity in &mut identities {
        identity.as_object_mut().map(|fields| fields.remove("special_tokens"));
    }
    match difference("", &identities[0], &identities[1]) {
        None => Ok(()),
        Some(difference) => Err(ModelError::CannotMerge {
            first: first.to_owned(),
            member: member.to_owned(),
            problem: format!(
                "their tokenizers differ (tokenizer_config.json, special_tokens_map.json or added_tokens.json): {difference}"
            ),
        }),
    }
}

/// Whether two checkpoints keep their tensors in the same precisions.
pub fn are_stored_alike(first: &Checkpoint, other: &Checkpoint) -> bool {
    let dtype = |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|info| info.dtype);
    first.names().all(|name| dtype(first, name) == dtype(other, name))
}

/// Path and values of the first field that differs.
fn difference(path: &str, first: &Value, second: &Value) -> Option<String> {
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(a), Value::Array(b)) => (0..a.len().max(b.len())).find_map(|index| {
            let [a, b] = [a, b].map(|list| list.get(index).unwrap_or(&Value::Null));
            difference(&format!("{path}[{index}]"), a, b)
        }),
        (a, b) if a == b => None,
        (a, b) => Some(format!("`{path}` is {a} in the first and {b} in the second")),
    }
}

/// The tokenizer, without the truncation and padding that we reset anyway.
fn tokenizer_content(dir: &Path) -> Result<Value, ModelError> {
    let path = dir.join("tokenizer.json");
    let read = disk::read_if_there(&path, disk::VOCABULARY_BYTES);
    let Some(text) = read.map_err(|source| ModelError::read(&path, source))? else {
        return Ok(Value::Null); // token ids only
    };
    let mut content: Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))?;
    if let Value::Object(fields) = &mut content {
        fields.remove("truncation");
        fields.remove("padding");
    }
    Ok(content)
}
