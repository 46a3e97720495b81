//! Directories that are no checkpoint but could become one: what they are, and the command that does it.
//!
//! The commands were run with the versions beside `tests/reference/foreign.py`, which makes such directories and converts
//! them.
//!
//! Names are another matter. `torch.compile`, `DataParallel` and FSDP wrap modules, and a state dict that was saved from
//! the wrapped model tells: `_orig_mod.model.embed_tokens.weight`. transformers finds none of its tensors in such a file
//! and starts from random ones, with a warning. What was meant is certain, so [`unwrapped`] leaves the wrappers out and
//! says so: segments that no parameter is called, wherever they are, and `module.` where every name begins with it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use crate::disk;

/// Segments that only wrappers put into a name: torch.compile, FSDP, activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Of `DataParallel` and `DistributedDataParallel`: may be a module's own name elsewhere than at the start.
const FIRST_WRAPPER: &str = "module";

/// What a tensor is called today. transformers renames so whatever it loads (`conversion_mapping.py`, "legacy"): BERT's first
/// checkpoints came from TensorFlow.
pub(super) fn todays(name: &str) -> String {
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

/// Names as stored with those that were meant, and the wrappers that were left out.
type Unwrapped<'n> = (BTreeMap<&'n str, String>, Vec<&'static str>);

/// The names without wrappers, and the wrappers; `None` where there are none, or names would become equal.
pub(super) fn unwrapped<'n>(names: &[&'n str]) -> Option<Unwrapped<'n>> {
    let mut found = Vec::new();
    let mut parts: Vec<Vec<&str>> = names.iter().map(|name| name.split('.').collect()).collect();
    loop {
        let before = found.len();
        for wrapper in WRAPPERS {
            let count: usize = parts.iter().map(Vec::len).sum();
            parts.iter_mut().for_each(|parts| parts.retain(|part| *part != wrapper));
            if parts.iter().map(Vec::len).sum::<usize>() < count {
                found.push(wrapper);
            }
        }
        if !parts.is_empty() && parts.iter().all(|parts| parts.len() > 1 && parts[0] == FIRST_WRAPPER) {
            parts.iter_mut().for_each(|parts| {
                parts.remove(0);
            });
            found.push(FIRST_WRAPPER);
        }
        if found.len() == before {
            break;
        }
    }
    let renamed: BTreeMap<&str, String> =
        names.iter().copied().zip(parts.iter().map(|parts| parts.join("."))).collect();
    let different: BTreeSet<&String> = renamed.values().collect();
    (!found.is_empty() && different.len() == names.len()).then_some((renamed, found))
}

/// Why a directory without `model.safetensors` is no checkpoint, and the next command.
pub(super) fn explain(dir: &Path) -> String {
    let names = names_in(dir);
    let at = dir.display();
    let first = |is: &dyn Fn(&str) -> bool| names.iter().find(|name| is(name));
    let then_copy = |from: &dyn std::fmt::Display| {
        format!("then copy config.json and the tokenizer's files from {from} into OUT")
    };

    if first(&|name| name == "snapshots").is_some()
        && first(&|name| name == "refs" || name == "blobs").is_some()
    {
        return cached(dir);
    }
    if let Some(step) = first(&|name| name.starts_with("global_step")) {
        return format!(
            "is a DeepSpeed checkpoint ({step}), whose weights lie in shards: join them with \
             `python {at}/zero_to_fp32.py {at} OUT --safe_serialization`, {}",
            then_copy(&at)
        );
    }
    if first(&|name| name.contains("zero_pp_rank_") || name.ends_with("_model_states.pt")).is_some() {
        let parent = dir.parent().unwrap_or(dir).display();
        let tag = dir.file_name().unwrap_or_default().to_string_lossy();
        return format!(
            "is one step of a DeepSpeed checkpoint, whose weights lie in shards: join them with \
             `python {parent}/zero_to_fp32.py {parent} OUT --safe_serialization -t {tag}`, {}",
            then_copy(&parent)
        );
    }
    if let Some(shards) = first(&|name| name.starts_with("pytorch_model_fsdp_")) {
        return format!(
            "is an FSDP checkpoint, whose weights lie in shards: join them with \
             `accelerate merge-weights {at}/{shards} OUT`, {}",
            then_copy(&at)
        );
    }
    if first(&|name| name.ends_with(".distcp")).is_some() {
        return format!(
            "holds the shards of a distributed checkpoint (.distcp): join them with `accelerate merge-weights {at} OUT`, {}",
            then_copy(&"the model that was trained")
        );
    }
    let is_megatron = |name: &str| {
        name == "latest_checkpointed_iteration.txt"
            || name.starts_with("mp_rank_")
            || name.strip_prefix("iter_").is_some_and(|step| step.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if let Some(name) = first(&is_megatron) {
        return format!(
            "is a Megatron checkpoint ({name}), whose weights lie in shards with names of their own: export it as a Hugging \
             Face directory with what trained it (Megatron Bridge: `AutoBridge.export_ckpt`), the head too"
        );
    }
    if let Some(name) = first(&|name| name.starts_with("consolidated")) {
        return format!(
            "holds weights in the form of Meta and Mistral ({name}): take the model's Hugging Face files instead, \
             `hf download ORG/NAME --exclude 'consolidated*' 'original/*' --local-dir OUT`"
        );
    }
    if let Some(name) = first(&|name| name.ends_with(".gguf")) {
        return format!(
            "holds a GGUF file ({name}), which is quantized for llama.cpp and of which transformers reads no reward head: \
             take the Hugging Face directory that it was made from"
        );
    }
    if let Some(name) = first(&|name| name.starts_with("pytorch_model-") && name.ends_with(".bin")) {
        return format!(
            "holds shards ({name}) and no pytorch_model.bin.index.json, which says what is in which: copy it too"
        );
    }
    let is_pickled = |name: &str| {
        [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)) && name != "training_args.bin"
    };
    if let Some(name) = first(&is_pickled) {
        return format!(
            "holds {name}, and neither model.safetensors nor pytorch_model.bin: if this is the model's state_dict, rename it to \
             pytorch_model.bin"
        );
    }
    if let Some(name) = first(&|name| name.starts_with("model-") && name.ends_with(".safetensors")) {
        return format!(
            "holds shards ({name}) and no model.safetensors.index.json, which says what is in which: copy it too"
        );
    }
    if let Some(name) = first(&|name| name.ends_with(".safetensors")) {
        return format!("holds {name}, and no model.safetensors: if this is the model, rename it");
    }
    let mut steps: Vec<(u64, &String)> = names
        .iter()
        .filter_map(|name| Some((name.strip_prefix("checkpoint-")?.parse().ok()?, name)))
        .collect();
    steps.sort_unstable();
    if let Some((_, last)) = steps.last() {
        return format!(
            "is a training's folder, the checkpoints are in it: take one of them, such as {at}/{last}"
        );
    }
    "holds neither model.safetensors nor model.safetensors.index.json".to_owned()
}

/// A repository in the Hugging Face hub's cache: the files are below `snapshots`.
fn cached(dir: &Path) -> String {
    let main = disk::read_to_string(&dir.join("refs/main"), disk::SETTINGS_BYTES)
        .ok()
        .map(|commit| commit.trim().to_owned());
    let snapshots = names_in(&dir.join("snapshots"));
    let snapshot = main.filter(|commit| snapshots.contains(commit)).or_else(|| match snapshots.as_slice() {
        [only] if !only.starts_with('.') => Some(only.clone()),
        _ => None,
    });
    match snapshot {
        Some(snapshot) => format!(
            "is a repository's folder in the hub's cache: take the snapshot in it, {}",
            dir.join("snapshots").join(snapshot).display()
        ),
        None => "is a repository's folder in the hub's cache: take one of its snapshots, or download it again with \
                 `hf download`"
            .to_owned(),
    }
}

/// Sorted; empty where nothing can be read.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_left_out_of_names() {
        let unwrap = |names: &[&str]| {
            unwrapped(names).map(|(renamed, found)| (renamed.into_values().collect::<Vec<_>>(), found))
        };
        let both = vec!["model.a.weight".to_owned(), "score.weight".to_owned()];
        for (names, found) in [
            (["_orig_mod.model.a.weight", "_orig_mod.score.weight"], vec!["_orig_mod"]),
            (["module.model.a.weight", "module.score.weight"], vec!["module"]),
            (
                ["module._orig_mod.model.a.weight", "module._orig_mod.score.weight"],
                vec!["_orig_mod", "module"],
            ),
            (
                ["_orig_mod.module.model.a.weight", "_orig_mod.module.score.weight"],
                vec!["_orig_mod", "module"],
            ),
            (
                [
                    "_fsdp_wrapped_module.model._fsdp_wrapped_module.a.weight",
                    "_fsdp_wrapped_module.score.weight",
                ],
                vec!["_fsdp_wrapped_module"],
            ),
            (
                ["model._checkpoint_wrapped_module.a.weight", "score.weight"],
                vec!["_checkpoint_wrapped_module"],
            ),
        ] {
            assert_eq!(unwrap(&names), Some((both.clone(), found)), "{names:?}");
        }
        assert_eq!(unwrap(&["model.a.weight", "score.weight"]), None);
        assert_eq!(unwrap(&["module.a.weight", "score.weight"]), None, "not all have it");
        assert_eq!(unwrap(&["_orig_mod.a.weight", "a.weight"]), None, "two would be one");
        assert_eq!(unwrap(&[]), None);
    }
}
