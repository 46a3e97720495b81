//! Who trained a checkpoint, by what trainers leave beside weights; and what follows where config and tokenizer do not
//! say how its rewards were read.
//!
//! ```text
//! training_args.bin, README.md → TRL      adapter_config.json over a base → pad token      value_head_prefix → OpenRLHF
//! ```
//!
//! **The pad token of an adapter.** transformers' `*ForSequenceClassification` reads a decoder's reward at the rightmost
//! token that is not `pad_token_id`. A full fine-tune saves that id, an adapter does not: its base's config is what it was
//! *before* training. TRL 1.16.0 sets it in memory, to the tokenizer's pad token, or the eos where there is none, and
//! saves the tokenizer with it; where it is the eos, the reward is that of the token before. So for TRL's adapters the
//! tokenizer decides. Where others leave a tokenizer that contradicts the base's config, and the token may end a text, the
//! adapter is refused until `rewarm.json` says `pad_token_id` or `pooling`. An adapter that leaves nothing is read as PEFT
//! reads it, by its base's config.
//!
//! **The end of texts.** See [`TextEnd`]: a family's own code appends a token, OpenRLHF is known by its head, TRL's pairs of strings by TRL's marks and a
//! tokenizer without chat template (or a manifest that asks for concatenation). A version of TRL that cannot be told makes
//! the manifest's `text_end` necessary. `text_end` always wins.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::disk;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::manifest::Manifest;
use crate::model::modules;
use crate::text::TextEnd;
use crate::text::TextEnds;
use crate::text::TextRule;
use crate::text::special;
use crate::text::special::SpecialIds;

/// TRL's `RewardTrainer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trl {
    /// Whether it gives pairs of strings an eos; none: the version is not told.
    appends_eos: Option<bool>,
}

/// Follows what is certain, and writes down what is in doubt.
pub fn settle(
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    config: &mut CheckpointConfig,
) -> Result<(), ModelError> {
    config.origin.notes.extend(checkpoint.notes().iter().cloned());
    modules::settle(checkpoint, config)?;
    grow_vocabulary(checkpoint, config);
    let vocab_size = config.backbone.vocab_size();
    if let Some(id) = config.pad_token_id.filter(|id| *id as usize >= vocab_size) {
        let (place, cure) = match manifest.pad_token_id {
            Some(_) => ("rewarm.json", "it is an id below that"),
            // transformers does not load it: the embedding of such an id is out of range
            None => (
                "config.json",
                "transformers does not load that; say with what texts were padded in training, `pad_token_id`, there or in \
                 rewarm.json",
            ),
        };
        return Err(ModelError::Unsupported(format!(
            "{place} says pad_token_id {id}, the vocabulary has {vocab_size} entries: {cure}"
        )));
    }
    if let Some(end) = manifest.text_end {
        config.origin.ends = TextEnds::both(end);
    }
    if !config.backbone.is_causal() {
        return Ok(());
    }
    let trl = Trl::of(checkpoint.dir())?;
    let is_openrlhf = config.value_head_prefix.is_some() || config.architecture == "RewardModel";
    if checkpoint.base().is_some() && manifest.pad_token_id.is_none() && manifest.pooling.is_none() {
        settle_padding(checkpoint, trl.is_some(), config)?;
    }
    match (manifest.text_end, trl) {
        (Some(_), _) => {} // above
        (None, _) if config.backbone.head.appended_token.is_some() => {
            config.origin.ends = TextEnds::both(TextEnd::RewardToken);
        }
        (None, _) if is_openrlhf => config.origin.ends = TextEnds::both(TextEnd::Openrlhf),
        (None, Some(Trl { appends_eos: Some(true) })) => {
            config.origin.text_rule = Some(TextRule::Concatenation);
            config.origin.ends.joined = TextEnd::Eos;
        }
        (None, Some(Trl { appends_eos: None })) => {
            config.origin.end_doubt = Some(
                "TRL trained it, and since version 0.24 TRL appends the end-of-sequence token to pairs of strings; \
                 nothing tells the version: say in rewarm.json {\"text_end\": \"eos\"}, or {\"text_end\": \"as_is\"} for \
                 an older one"
                    .to_owned(),
            );
        }
        (None, _) => {}
    }
    Ok(())
}

/// The pad token that an adapter over a decoder was trained with.
fn settle_padding(
    checkpoint: &Checkpoint,
    is_trl: bool,
    config: &mut CheckpointConfig,
) -> Result<(), ModelError> {
    let dir = checkpoint.dir();
    let is_own = |file: &str| disk::is_there(&dir.join(file));
    let has_tokenizer = is_own("tokenizer_config.json");
    if is_own("config.json") || !(has_tokenizer || is_trl) {
        return Ok(()); // the config that it was trained with; or nothing that contradicts the base's
    }
    let SpecialIds { pad, eos } =
        special::read(checkpoint.dir_of("tokenizer_config.json"), checkpoint.dir_of("tokenizer.json"))?;
    let said = config.pad_token_id;
    let shown = |id: Option<u32>| id.map_or("no pad_token_id".to_owned(), |id| format!("pad_token_id {id}"));
    if is_trl {
        let Some(token) = pad.or(eos) else { return Ok(()) };
        if said != Some(token.id) {
            config.origin.notes.push(format!(
                "trained by TRL with pad_token_id {} ({}), by its tokenizer_config.json; the base's config.json says {}",
                token.id,
                token.text,
                shown(said)
            ));
            config.pad_token_id = Some(token.id);
        }
        return Ok(());
    }
    let Some(pad) = pad.filter(|pad| said != Some(pad.id)) else { return Ok(()) };
    let ends_texts =
        |id: u32| eos.as_ref().is_some_and(|eos| eos.id == id) || config.eos_token_ids.contains(&id);
    if ends_texts(pad.id) || said.is_some_and(ends_texts) {
        config.origin.pad_doubt = Some(format!(
            "the adapter's tokenizer_config.json pads with {} (id {}), its base's config.json says {}, and it was trained \
             with one of the two: the reward is read at the last token that is not padding. Say in rewarm.json beside the \
             adapter {{\"pad_token_id\": {}}}, or {}",
            pad.text,
            pad.id,
            shown(said),
            pad.id,
            said.map_or("{\"pooling\": \"last_token\"}".to_owned(), |id| format!(
                "{{\"pad_token_id\": {id}}}"
            ))
        ));
    }
    Ok(())
}

/// An adapter that was trained with more tokens than its base has stores their embedding.
fn grow_vocabulary(checkpoint: &Checkpoint, config: &mut CheckpointConfig) {
    let words = &mut config.backbone.embedding.words;
    let said = words.rows;
    let rows = config.backbone.prefixes.iter().find_map(|prefix| {
        let name = format!("{prefix}{}", words.name);
        checkpoint.is_adapters(&name).then(|| checkpoint.info(&name)?.shape.first().copied()).flatten()
    });
    let Some(rows) = rows.filter(|rows| *rows != said) else { return };
    words.rows = rows;
    config.origin.notes.push(format!(
        "the adapter stores an embedding of {rows} tokens, its base's config.json says vocab_size {said}"
    ));
}

impl Trl {
    /// By the pickled arguments that every `Trainer` saves, which are searched and never loaded; or by the tags of the
    /// model card.
    fn of(dir: &Path) -> Result<Option<Self>, ModelError> {
        let arguments = read_mark(&dir.join("training_args.bin"))?;
        if contains(&arguments, b"trl.trainer.reward_config") {
            // an argument that the trainer has since it appends the eos
            let appends_eos = contains(&arguments, b"chat_template_path");
            return Ok(Some(Self { appends_eos: Some(appends_eos) }));
        }
        let card = read_mark(&dir.join("README.md"))?;
        let is_trl = has_tag(&String::from_utf8_lossy(&card), "reward-trainer");
        Ok(is_trl.then_some(Self { appends_eos: None }))
    }
}

/// In the YAML at the head of a model card: as an item of a list, in either style.
fn has_tag(card: &str, tag: &str) -> bool {
    let Some(head) = card.strip_prefix("---") else { return false };
    let head = head.split("\n---").next().unwrap_or_default();
    head.lines().any(|line| match line.trim_start().strip_prefix("- ") {
        Some(item) => item.trim() == tag,
        None => line.strip_prefix("tags:").is_some_and(|items| {
            items.split([',', '[', ']']).any(|item| item.trim().trim_matches(['"', '\'']) == tag)
        }),
    })
}

/// Empty where there is no such file.
fn read_mark(path: &Path) -> Result<Vec<u8>, ModelError> {
    Ok(ModelError::read_if_there(path, disk::SETTINGS_BYTES)?.unwrap_or_default())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trl_is_known_by_what_it_leaves() {
        let found = |arguments: &str, card: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("training_args.bin"), arguments).unwrap();
            std::fs::write(dir.path().join("README.md"), card).unwrap();
            Trl::of(dir.path()).unwrap().map(|trl| trl.appends_eos)
        };
        assert_eq!(
            found("..ctrl.trainer.reward_config\nRewardConfig..chat_template_pathq", ""),
            Some(Some(true))
        );
        assert_eq!(found("..ctrl.trainer.reward_config\nRewardConfig..", ""), Some(Some(false)));
        assert_eq!(found("ctransformers.training_args\n", ""), None);
        for card in
            ["---\ntags:\n- lora\n- reward-trainer\n---\n", "---\ntags: [trl, \"reward-trainer\"]\n---\n"]
        {
            assert_eq!(found("", card), Some(None), "{card}");
        }
        for card in ["- reward-trainer\n", "---\ntags:\n- trl\n- sft\n---\n- reward-trainer\n"] {
            assert_eq!(found("", card), None, "{card}");
        }
        assert_eq!(Trl::of(Path::new("nowhere")).unwrap(), None);
    }
}
