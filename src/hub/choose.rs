//! Which files of a repository make a model: its settings and its text, and of the weights those that will be read.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::VALUE_HEADS;
use crate::checkpoint::WEIGHTS;
use crate::checkpoint::lora;
use crate::checkpoint::quantized;
use crate::checkpoint::write::TEXT_FILES;
use crate::disk::ADDITIONAL_TEMPLATES;
use crate::hub::HubError;
use crate::hub::tree::Tree;

/// Beside what belongs to the text: settings, ours among them, and the marks by which trainers are known.
const SETTINGS: [&str; 11] = [
    "config.json",
    quantized::MODELOPT,
    "adapter_config.json",
    "rewarm.json",
    "rewarm.golden.json",
    "rewarm.reference.json",
    "training_args.bin",
    "README.md",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];
/// Ends of names that hold weights, for who asks what is there instead.
const WEIGHT_ENDS: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"];
/// So many of them are told.
const MAX_TOLD: usize = 5;

/// All but the weights.
pub(super) fn small(tree: &Tree) -> BTreeSet<String> {
    let mut files: BTreeSet<String> = SETTINGS
        .iter()
        .chain(&TEXT_FILES)
        .filter(|name| tree.files.contains_key(**name))
        .map(|name| (*name).to_owned())
        .collect();
    let is_template = |path: &str| {
        let name = path.strip_prefix(ADDITIONAL_TEMPLATES).and_then(|path| path.strip_prefix('/'));
        name.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
    };
    files.extend(tree.files.keys().filter(|path| is_template(path)).cloned());
    files.extend(
        first(&|name| tree.files.contains_key(name)).filter(|name| is_index(name)).map(str::to_owned),
    );
    files
}

/// The weights, once the small files are in `dir`; empty where there are none.
pub(super) fn weights(tree: &Tree, dir: &Path) -> Result<BTreeSet<String>, HubError> {
    let files = weights_of(&|name| tree.files.contains_key(name), dir)?;
    match files.iter().find(|file| !tree.files.contains_key(*file)) {
        Some(file) => {
            let problem = format!("it names `{file}`, which the repository does not have");
            Err(HubError::Answer { url: dir.display().to_string(), problem })
        }
        None => Ok(files),
    }
}

/// The weights as far as the list of files tells, before anything is fetched: of several sets of shards the smallest.
pub(super) fn likely_weights(tree: &Tree) -> BTreeSet<String> {
    let has = |name: &str| tree.files.contains_key(name);
    let Some(index) = first(&has).filter(|name| is_index(name)) else {
        return weights_of(&has, Path::new("")).unwrap_or_default(); // no index: nothing is read
    };
    // model.safetensors.index.json: model-00001-of-00003.safetensors
    let (stem, end) = index.trim_end_matches(".index.json").split_once('.').unwrap_or((index, ""));
    let mut sets: BTreeMap<&str, (u64, BTreeSet<String>)> = BTreeMap::new();
    for (path, entry) in &tree.files {
        let number = path.strip_prefix(stem).and_then(|rest| rest.strip_suffix(end));
        if let Some((_, of)) = number.and_then(|number| number.split_once("-of-")) {
            let (bytes, files) = sets.entry(of).or_default();
            *bytes += entry.size;
            files.insert(path.clone());
        }
    }
    sets.into_values().min_by_key(|(bytes, _)| *bytes).map(|(_, files)| files).unwrap_or_default()
}

/// Whether a directory of which nothing is known holds a model.
pub(super) fn looks_whole(dir: &Path) -> bool {
    let is_there = |name: &str| dir.join(name).exists();
    (is_there("config.json") || is_there("adapter_config.json"))
        && weights_of(&is_there, dir)
            .is_ok_and(|files| !files.is_empty() && files.iter().all(|file| is_there(file)))
}

fn weights_of(has: &dyn Fn(&str) -> bool, dir: &Path) -> Result<BTreeSet<String>, HubError> {
    let mut files = BTreeSet::new();
    for beside in [lora::WEIGHTS_FILES, VALUE_HEADS] {
        files.extend(beside.into_iter().find(|name| has(name)).map(str::to_owned));
    }
    match first(has) {
        Some(index) if is_index(index) => files.extend(shards(&dir.join(index))?),
        only => files.extend(only.map(str::to_owned)),
    }
    Ok(files)
}

/// What it is instead, a few of them.
pub(super) fn other_weights(tree: &Tree) -> Vec<String> {
    tree.files.keys().filter(|path| is_weights(path)).take(MAX_TOLD).cloned().collect()
}

/// Whether a name is that of a file of weights, in whatever format.
pub(super) fn is_weights(path: &str) -> bool {
    WEIGHT_ENDS.iter().any(|end| path.ends_with(end)) && path != "training_args.bin"
}

/// What will be read: a file, or what lists several.
fn first(has: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    WEIGHTS.into_iter().find(|name| has(name))
}

fn is_index(name: &str) -> bool {
    name.ends_with(".index.json")
}

fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(index).map_err(|source| HubError::cache("read", index, source))?;
    let failed = |problem: String| HubError::Answer { url: index.display().to_string(), problem };
    let index: Index = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| Path::new(shard.as_str()).file_name() != Some(shard.as_ref())) {
        Some(shard) => Err(failed(format!("shard `{shard}` is not a plain file name"))),
        None => Ok(shards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tree::Entry;

    #[test]
    fn shards_are_known_before_their_index_is_here() {
        let index = "model.safetensors.index.json";
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let others = [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "x-00001-of-00001.safetensors",
        ];
        let known = |files: &[&str]| likely_weights(&tree(files)).into_iter().collect::<Vec<_>>();
        assert_eq!(known(&[&[index, "config.json"], &shards[..]].concat()), shards);
        assert_eq!(
            known(&[&[index, "model-00003-of-00003.safetensors"], &shards[..], &others].concat()),
            shards
        );
        assert_eq!(known(&["model.safetensors", shards[0], shards[1]]), ["model.safetensors"]);
        assert!(known(&["config.json", "model.gguf"]).is_empty());
    }

    fn tree(files: &[&str]) -> Tree {
        let entry =
            || Entry { size: 1, blob_id: "0".repeat(40), lfs_sha256: None, lfs_size: None, xet_hash: None };
        Tree::new(files.iter().map(|file| ((*file).to_owned(), entry())).collect())
    }

    fn names(files: &BTreeSet<String>) -> Vec<&str> {
        files.iter().map(String::as_str).collect()
    }

    #[test]
    fn only_what_makes_a_model_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let everything = tree(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/a/b.jinja",
            "config.json",
            "flax_model.msgpack",
            "model.fp16.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "optimizer.pt",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
        ]);
        assert_eq!(
            names(&small(&everything)),
            ["README.md", "additional_chat_templates/tool_use.jinja", "config.json", "tokenizer.json"]
        );
        assert_eq!(names(&weights(&everything, dir.path()).unwrap()), ["model.safetensors"]);

        let sharded = tree(&[
            "config.json",
            "model.safetensors.index.json",
            "a.safetensors",
            "b.safetensors",
            "c.safetensors",
            "value_head.safetensors",
        ]);
        assert_eq!(names(&small(&sharded)), ["config.json", "model.safetensors.index.json"]);
        let index = r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}"#;
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(
            names(&weights(&sharded, dir.path()).unwrap()),
            ["a.safetensors", "b.safetensors", "value_head.safetensors"]
        );
        for (index, problem) in [
            (
                r#"{"weight_map": {"x": "d.safetensors"}}"#,
                "`d.safetensors`, which the repository does not have",
            ),
            (r#"{"weight_map": {"x": "../a.safetensors"}}"#, "not a plain file name"),
            ("{}", "missing field"),
        ] {
            std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
            let error = weights(&sharded, dir.path()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }

        let pickled = tree(&[
            "adapter_model.bin",
            "pytorch_model.bin",
            "tf_model.h5",
            "training_args.bin",
            "value_head.bin",
        ]);
        assert_eq!(
            names(&weights(&pickled, dir.path()).unwrap()),
            ["adapter_model.bin", "pytorch_model.bin", "value_head.bin"]
        );
        let other = tree(&["config.json", "model.gguf", "training_args.bin", "tf_model.h5"]);
        assert!(weights(&other, dir.path()).unwrap().is_empty());
        assert_eq!(other_weights(&other), ["model.gguf", "tf_model.h5"]);
        assert_eq!(
            names(
                &weights(&tree(&["adapter_config.json", "adapter_model.safetensors"]), dir.path()).unwrap()
            ),
            ["adapter_model.safetensors"]
        );
    }
}
