//! Whether weights can be averaged, and whether members read the same tokens: one function, one text, one set of tensors.

use std::path::Path;

use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::disk;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::manifest::Manifest;
use crate::text::SampleTokenizer;
use crate::text::compare;
use crate::text::compare::FieldDifference;

/// So many keys of `config.json` are told at most.
const MAX_TOLD: usize = 4;

/// One of the members whose weights are to be averaged.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'m> {
    /// As the user names it.
    pub path: &'m Path,
    /// Its weights.
    pub checkpoint: &'m Checkpoint,
    /// What lies beside them.
    pub manifest: &'m Manifest,
    /// What both make of it.
    pub config: &'m CheckpointConfig,
}

/// Refuses a member whose weights cannot be averaged with those of the first: another function, other tensors, another vocabulary.
pub fn check_member(first: &Candidate<'_>, member: &Candidate<'_>) -> Result<(), ModelError> {
    let refuse = |problem: String| ModelError::CannotMerge {
        first: first.path.to_owned(),
        member: member.path.to_owned(),
        problem,
    };
    let as_json = |member: &Candidate<'_>| {
        serde_json::to_value(member.config).map_err(|error| ModelError::config(member.path, error))
    };
    if let Some(difference) = FieldDifference::between(&as_json(first)?, &as_json(member)?) {
        let causes = causes(first, member)?;
        return Err(refuse(match causes.is_empty() {
            true => difference.to_string(),
            false => format!("{} (config.json)", causes.join(", ")),
        }));
    }
    let (one, two) = (first.checkpoint, member.checkpoint);
    for name in one.names() {
        let shape = |checkpoint: &Checkpoint| checkpoint.info(name).map(|info| info.shape.clone());
        match (shape(one), shape(two)) {
            (_, None) => return Err(refuse(format!("tensor `{name}` is missing in the second"))),
            (Some(one), Some(two)) if one != two => {
                return Err(refuse(format!(
                    "tensor `{name}` is {one:?} in the first and {two:?} in the second"
                )));
            }
            _ => {}
        }
    }
    if let Some(name) = two.names().find(|name| one.info(name).is_none()) {
        return Err(refuse(format!("tensor `{name}` is missing in the first")));
    }
    let [of_first, of_member] = [one, two].map(|checkpoint| compare::tokenizer_json(checkpoint.text_dir()));
    match FieldDifference::between(&of_first?, &of_member?) {
        None => Ok(()),
        Some(difference) => Err(refuse(format!("their tokenizers differ (tokenizer.json): {difference}"))),
    }
}

/// The keys of `config.json` for which two members are other functions, with both values: those that make another model of the
/// first when they alone are as in the second. None where it is something else, the manifest for example.
fn causes(first: &Candidate<'_>, other: &Candidate<'_>) -> Result<Vec<String>, ModelError> {
    let (fields, of_other) = (fields(first.checkpoint)?, fields(other.checkpoint)?);
    let parse = |fields: &Map<String, Value>| CheckpointConfig::parse(fields, first.manifest).ok();
    let config = parse(&fields);
    let (mut causes, mut needed) = (Vec::new(), Vec::new());
    for key in differing("", &fields, &of_other) {
        let (one, two) = (at(&fields, &key), at(&of_other, &key));
        let told = format!(
            "`{key}` is {} in the first and {} in the second",
            compare::shown(one),
            compare::shown(two)
        );
        let mut changed = fields.clone();
        set(&mut changed, &key, two.cloned());
        match parse(&changed) {
            // it contradicts the rest: the two belong together
            None => needed.push(told),
            changed if changed != config => causes.push(told),
            Some(_) => {}
        }
    }
    let mut told = if causes.is_empty() { needed } else { causes };
    told.truncate(MAX_TOLD);
    Ok(told)
}

fn fields(checkpoint: &Checkpoint) -> Result<Map<String, Value>, ModelError> {
    let path = checkpoint.dir_of("config.json").join("config.json");
    let text = disk::read(&path, disk::SETTINGS_BYTES).map_err(|source| ModelError::read(&path, source))?;
    serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))
}

/// Paths of all that differs, "rope_scaling.factor" for example.
fn differing(path: &str, first: &Map<String, Value>, other: &Map<String, Value>) -> Vec<String> {
    let keys = first.keys().chain(other.keys().filter(|key| !first.contains_key(*key)));
    keys.flat_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (first.get(key), other.get(key)) {
            (one, two) if one == two => Vec::new(),
            (Some(Value::Object(one)), Some(Value::Object(two))) => differing(&path, one, two),
            _ => vec![path],
        }
    })
    .collect()
}

fn at<'f>(fields: &'f Map<String, Value>, path: &str) -> Option<&'f Value> {
    match path.split_once('.') {
        None => fields.get(path),
        Some((key, below)) => at(fields.get(key)?.as_object()?, below),
    }
}

fn set(fields: &mut Map<String, Value>, path: &str, value: Option<Value>) {
    match (path.split_once('.'), value) {
        (None, Some(value)) => drop(fields.insert(path.to_owned(), value)),
        (None, None) => drop(fields.shift_remove(path)),
        (Some((key, below)), value) => {
            if let Some(fields) = fields.get_mut(key).and_then(Value::as_object_mut) {
                set(fields, below, value);
            }
        }
    }
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
    match FieldDifference::between(&identities[0], &identities[1]) {
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

/// Refuses models that are given the same tokens, and would not make the same of a text.
pub fn check_same_tokens(first: &SampleTokenizer, other: &SampleTokenizer) -> Result<(), ModelError> {
    let differences = compare::differences(first, other)?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(ModelError::Unsupported(format!(
        "models that are given the same tokens must make the same ones of a text, but {} and {} differ: {}",
        first.dir().display(),
        other.dir().display(),
        differences.join("; ")
    )))
}

/// Whether two checkpoints keep their tensors in the same precisions.
pub fn are_stored_alike(first: &Checkpoint, other: &Checkpoint) -> bool {
    let dtype = |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|info| info.dtype);
    first.names().all(|name| dtype(first, name) == dtype(other, name))
}
