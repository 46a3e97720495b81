//! What can be tried of a checkpoint without reading its weights: does anything in its small files end the process,
//! hold it, or fill its memory?
//!
//! Headers and config are read and compared, the tokenizer and the chat template are made, and probes go through
//! both: conversations short and long, with tools and without, and the texts of the golden rewards. A template may refuse some, but it has to
//! come back within its bounds, and not to fail at all of them. `rewarm` does this in a child process (`cli/trial.rs`) before
//! it loads the same bytes itself; nothing here starts one.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::disk;
use crate::model::ModelError;
use crate::model::golden::GoldenRewards;
use crate::model::paths;
use crate::model::reference::ReferenceRewards;
use crate::model::variant;
use crate::model::variant::Loader;
use crate::model::variant::VariantConfig;
use crate::text::Conversation;
use crate::text::Input;
use crate::text::Message;
use crate::text::SampleTokenizer;
use crate::text::TextError;
use crate::text::Truncation;
use serde_json::json;

/// What is tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// All that a variant is made of.
    Variant {
        /// As configured.
        config: VariantConfig,
        /// Whether its golden rewards will be scored.
        with_golden: bool,
    },
    /// A directory that becomes part of something: a member to merge, a base to train.
    Checkpoint {
        /// A checkpoint, or an adapter.
        #[serde(with = "paths::one")]
        dir: PathBuf,
        /// What an adapter was trained on.
        #[serde(with = "paths::optional")]
        base: Option<PathBuf>,
    },
}

/// What was tried already: variants mostly have the same members, and members the same tokenizer.
#[derive(Debug, Default)]
pub struct Tried {
    /// Members and base of variants.
    directories: HashSet<(Vec<PathBuf>, Option<PathBuf>)>,
    /// What went through a tokenizer, by its digest.
    texts: HashMap<[u8; 32], HashSet<String>>,
}

impl Subject {
    /// Tries it. All that is wrong with it, as loading it would tell.
    pub fn try_out(&self, tried: &mut Tried) -> Vec<ModelError> {
        let mut problems = Vec::new();
        let mut golden = Vec::new();
        let tokenizers = match self {
            // in what else variants differ is compared by whoever loads them
            Self::Variant { config, .. }
                if !tried.directories.insert((config.members.clone(), config.base.clone())) =>
            {
                return problems;
            }
            Self::Variant { config, with_golden } => {
                let (tokenizers, found) = Loader::default().checked_tokenizers(config);
                problems.extend(found);
                for dir in &config.members {
                    problems.extend(ReferenceRewards::load(dir).err());
                }
                for dir in config.members.iter().filter(|_| *with_golden) {
                    match GoldenRewards::load(dir) {
                        Ok(found) => golden.extend(found),
                        Err(error) => problems.push(error),
                    }
                }
                tokenizers
            }
            Self::Checkpoint { dir, base } => match tokenizer_of(dir, base.as_deref()) {
                Ok(tokenizers) => tokenizers,
                Err(error) => {
                    problems.push(error);
                    Vec::new()
                }
            },
        };
        let mut probes = probes();
        let golden = golden.into_iter().flat_map(|golden| golden.samples);
        probes.extend(golden.map(|sample| ("a golden sample", sample.input)));
        for (dir, tokenizer) in tokenizers {
            if let Err(source) = probe(&dir, &tokenizer, &probes, &mut tried.texts) {
                problems.push(ModelError::Member { path: dir.clone(), source: Box::new(source.into()) });
            }
            disk::step("dropping the tokenizer and the chat template", &dir);
        }
        problems
    }

    /// The same members, each alone; empty where there are not several.
    pub fn each_member(&self) -> Vec<Self> {
        match self {
            Self::Variant { config, with_golden } if config.members.len() > 1 => {
                let alone = |member: &PathBuf| Self::Variant {
                    config: VariantConfig {
                        members: vec![member.clone()],
                        coefficients: None,
                        ..config.clone()
                    },
                    with_golden: *with_golden,
                };
                config.members.iter().map(alone).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Lets all probes that `texts` does not know yet go through a tokenizer and its template.
fn probe(
    dir: &Path,
    tokenizer: &SampleTokenizer,
    probes: &[(&'static str, Input)],
    texts: &mut HashMap<[u8; 32], HashSet<String>>,
) -> Result<(), TextError> {
    let is_new = !texts.contains_key(&tokenizer.digest());
    let known = texts.entry(tokenizer.digest()).or_default();
    let mut outcomes = Vec::new(); // of what goes through the template
    for (what, input) in probes {
        if known.insert(serde_json::to_string(input).expect("strings and numbers are JSON")) {
            disk::step(&format!("rendering and tokenizing {what}"), dir);
            // of the two ways, this one renders twice and looks for the contents in the text
            let outcome = tokenizer.tokenize(input, Truncation::Left);
            // with some lines of text it did not come to an end: the next probe would only wait as long
            if let Err(error @ TextError::TemplateExhausted { .. }) = outcome {
                return Err(error);
            }
            if !matches!(input, Input::Formatted(_) | Input::TokenIds(_)) {
                outcomes.push(outcome);
            }
        }
    }
    // what a template refuses is for it to say; one that only fails is no template
    let is_failure = |outcome: &Result<_, _>| matches!(outcome, Err(TextError::TemplateFailed { .. }));
    let has_failed = is_new && outcomes.iter().all(is_failure);
    outcomes.pop().filter(|_| has_failed).map_or(Ok(()), |outcome| outcome.map(drop))
}

fn tokenizer_of(dir: &Path, base: Option<&Path>) -> Result<Vec<(PathBuf, SampleTokenizer)>, ModelError> {
    let open = || {
        let (checkpoint, manifest, config) = variant::open_files(dir, base)?;
        let text = checkpoint.text_dir();
        if !disk::is_there(&text.join("tokenizer.json")) {
            return Ok(Vec::new()); // for token ids only: what merges it needs none
        }
        let tokenizer = variant::load_tokenizer(&checkpoint, &manifest, &config, None)?;
        Ok(vec![(text.to_owned(), tokenizer)])
    };
    open().map_err(|source| ModelError::Member { path: dir.to_owned(), source: Box::new(source) })
}

/// Texts as trainers send them, and as they should not.
fn probes() -> Vec<(&'static str, Input)> {
    let conversation = |turns: &[(&str, &str)]| {
        let messages: Vec<Message> =
            turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        Input::Conversation(messages.into())
    };
    let pair = |prompt: &str, response: &str| Input::Text {
        prompt: prompt.to_owned(),
        response: response.to_owned(),
    };
    let mixed =
        "Ünï¢ødé 你好, \u{1F469}\u{200D}\u{1F467} <b>&amp;</b> {{ x }} 12345.67e-8\r\n\tfn main() {}  ";
    let turns: Vec<(&str, &str)> =
        (0..20).map(|turn| (if turn % 2 == 0 { "user" } else { "assistant" }, mixed)).collect();
    let with_tools = Conversation {
        tools: Some(vec![json!({"type": "function", "function": {"name": "f", "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}})]),
        ..vec![Message::new("user", "Add."), Message::new("assistant", "3")].into()
    };
    let long = "The quick brown fox jumps over the lazy dog, 42 times. ".repeat(60);
    vec![
        ("a short pair", pair("What is it?", "It is what it is.")),
        ("an empty pair", pair("", "")),
        (
            "a conversation with a system turn",
            conversation(&[("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!")]),
        ),
        ("a conversation with tools", Input::Conversation(with_tools)),
        ("a conversation of 20 turns", conversation(&turns)),
        ("a long pair", pair(&long, &long)),
        ("one letter many times", Input::Formatted("a".repeat(2000))),
        ("many kinds of letters", Input::Formatted(mixed.repeat(20))),
        ("blanks", Input::Formatted(" \n\t\u{a0}".repeat(300))),
    ]
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::model::variant::Mode;

    #[test]
    fn a_subject_crosses_the_pipe_with_any_path() {
        let odd = PathBuf::from(OsString::from_vec(b"a\xff\n\"b".to_vec()));
        let config = VariantConfig {
            base: Some(odd.clone()),
            coefficients: Some(vec![0.1, 0.9]),
            max_tokens: Some(7),
            ..VariantConfig::new("v", Mode::Ens, vec![odd.clone(), PathBuf::from("b")])
        };
        let subjects = [
            Subject::Variant { config, with_golden: true },
            Subject::Checkpoint { dir: odd.clone(), base: None },
            Subject::Checkpoint { dir: PathBuf::new(), base: Some(odd) },
        ];
        for subject in subjects {
            let text = serde_json::to_string(&subject).unwrap();
            let back: Subject = serde_json::from_str(&text).unwrap();
            assert_eq!(format!("{back:?}"), format!("{subject:?}"));
        }
    }
}
