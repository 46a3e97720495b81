//! The text files of a checkpoint directory, read as `transformers` reads them.
//!
//! # One rule
//!
//! Several files may say the same thing, and they may disagree. **What `AutoTokenizer` of transformers 5.23 does with
//! these files, where it is deterministic, is what counts; where it fails, or would do what nobody can mean, the checkpoint
//! is refused** with the file, the key and the value, and with the other place where two disagree. A key that is
//! absent means the default of the class; null means none. So:
//!
//! - `tokenizer.json` must be there; the others may be missing;
//! - the tokenizer's class decides how much of `tokenizer.json` counts (`class`);
//! - `tokenizer_config.json` decides the special tokens, which tokens were added, `split_special_tokens` and, by
//!   `model_input_names`, whether a model is given token types: a `PreTrainedTokenizerFast` gives none by default;
//!   `special_tokens_map.json` and `added_tokens.json` count in checkpoints so old that it has no
//!   `added_tokens_decoder` (`settings`);
//! - `add_bos_token` and `add_eos_token` do **not** count there: the post-processor of `tokenizer.json` says it;
//! - the chat template comes from `chat_template.jinja` and `additional_chat_templates/`, else from
//!   `tokenizer_config.json`. Of several, the one named "tool_use" is meant for conversations with `tools` (be they an
//!   empty list), and the one named "default" for all others; which must be there. `chat_template.json` belongs to a processor,
//!   and tokenizers do not read it: alone, it is refused;
//! - `model_max_length` lowers the limit for tokens, which transformers only warns about;
//! - truncation, padding and `dropout` of `tokenizer.json` are off: the first two are the caller's, and a reward is
//!   no matter of chance.
//!
//! `tests/reference/sweep.py` holds us to it: it takes away and contradicts each key of each file in turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::TextError;
use crate::disk;

/// What the text side of a checkpoint says, before anything is made of it.
#[derive(Debug)]
pub(super) struct TextFiles {
    /// Where they are.
    pub(super) dir: PathBuf,
    /// The bytes of `tokenizer.json`.
    pub(super) tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`
    pub(super) config: Option<Map<String, Value>>,
    /// `special_tokens_map.json`
    pub(super) special_tokens_map: Option<Map<String, Value>>,
    /// `added_tokens.json`
    pub(super) added_tokens: Option<Map<String, Value>>,
    /// The default chat template, if there is one.
    pub(super) template: Option<TemplateSource>,
    /// And the one for conversations with tools, if that is another.
    pub(super) tool_template: Option<TemplateSource>,
    /// The tokenizer's own limit, if it means one.
    pub(super) model_max_length: Option<usize>,
}

/// A chat template and the file it came from.
#[derive(Debug)]
pub(super) struct TemplateSource {
    pub(super) path: PathBuf,
    pub(super) source: String,
}

/// `bos_token`, `eos_token` and so on → the token's text.
pub type SpecialTokens = BTreeMap<String, Value>;

impl TextFiles {
    pub(super) fn read(dir: &Path) -> Result<Self, TextError> {
        let tokenizer_json = read_if_there(&dir.join("tokenizer.json"))?
            .ok_or_else(|| TextError::NoTokenizer { dir: dir.to_path_buf() })?;
        let config: Option<Map<String, Value>> = read_json(&dir.join("tokenizer_config.json"))?;
        let key = |key: &str| config.as_ref().and_then(|config| config.get(key));
        let model_max_length = match key("model_max_length") {
            Some(length) => sane_length(length),
            None => key("max_len").and_then(sane_length),
        };
        let (template, tool_template) = read_templates(dir, key("chat_template").unwrap_or(&Value::Null))?
            .map_or((None, None), |them| {
                let Templates { default, tool_use } = them;
                (Some(default), tool_use)
            });
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer_json,
            special_tokens_map: read_json(&dir.join("special_tokens_map.json"))?,
            added_tokens: read_json(&dir.join("added_tokens.json"))?,
            template,
            tool_template,
            model_max_length,
            config,
        })
    }

    /// `tokenizer_class` of `tokenizer_config.json`
    pub(super) fn tokenizer_class(&self) -> Result<Option<&str>, String> {
        match self.config.as_ref().and_then(|config| config.get("tokenizer_class")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(Some(name)),
            Some(other) => Err(format!("`tokenizer_class` is {other}: expected a name")),
        }
    }

    /// Whether `tokenizer_config.json` names code of its own for the tokenizer.
    pub(super) fn has_auto_map(&self) -> bool {
        match self.config.as_ref().and_then(|config| config.get("auto_map")) {
            None | Some(Value::Null) => false,
            Some(Value::Object(classes)) => {
                classes.get("AutoTokenizer").is_some_and(|class| !class.is_null())
            }
            Some(_) => true,
        }
    }
}

/// Those of a checkpoint's templates that have a use here.
struct Templates {
    default: TemplateSource,
    tool_use: Option<TemplateSource>,
}

fn read_templates(dir: &Path, in_config: &Value) -> Result<Option<Templates>, TextError> {
    let read = |path: PathBuf| -> Result<Option<TemplateSource>, TextError> {
        let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
        match String::from_utf8(bytes) {
            Ok(source) => Ok(Some(TemplateSource { path, source })),
            Err(_) => Err(TextError::NotUtf8 { path }),
        }
    };
    // a file of that name among the additional ones overrides the main one
    let additional = dir.join(disk::ADDITIONAL_TEMPLATES);
    for path in [additional.join("default.jinja"), dir.join("chat_template.jinja")] {
        if let Some(default) = read(path)? {
            return Ok(Some(Templates { default, tool_use: read(additional.join("tool_use.jinja"))? }));
        }
    }
    let is_template =
        |entry: fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "jinja");
    if fs::read_dir(&additional).is_ok_and(|entries| entries.flatten().any(is_template)) {
        return Err(TextError::NoDefaultTemplate { path: additional });
    }
    let path = dir.join("tokenizer_config.json");
    if let Some(templates) = templates_in_config(&path, in_config)? {
        return Ok(Some(templates));
    }
    let path = dir.join("chat_template.json");
    match path.is_file() {
        true => Err(TextError::BadTextFile {
            path,
            problem:
                "transformers reads this file for processors, not for tokenizers: put its template into \
                      chat_template.jinja, or remove it"
                    .to_owned(),
        }),
        false => Ok(None),
    }
}

/// A `chat_template` is a string, or several by name: a list, or an object.
fn templates_in_config(path: &Path, value: &Value) -> Result<Option<Templates>, TextError> {
    let named = |name: &str| match value {
        // the last of that name, as in Python's dict
        Value::Array(named) => {
            named.iter().rfind(|entry| entry["name"] == name).map(|entry| &entry["template"])
        }
        Value::Object(named) => named.get(name),
        _ => None,
    };
    let template = |source: &str| TemplateSource { path: path.to_path_buf(), source: source.to_owned() };
    let (default, tool_use) = match value {
        Value::Null => return Ok(None),
        Value::String(source) => (Some(source.as_str()), None),
        _ => (named("default").and_then(Value::as_str), named("tool_use")),
    };
    let Some(default) = default else {
        return Err(TextError::NoDefaultTemplate { path: path.to_path_buf() });
    };
    let tool_use = match tool_use {
        None => None,
        Some(Value::String(source)) => Some(template(source)),
        Some(other) => {
            let problem = format!("the chat template \"tool_use\" is {other}: expected a string");
            return Err(TextError::BadTextFile { path: path.to_path_buf(), problem });
        }
    };
    Ok(Some(Templates { default: template(default), tool_use }))
}

/// "No limit" is written as 1e30, in full digits.
fn sane_length(value: &Value) -> Option<usize> {
    value.as_f64().filter(|length| (1.0..1e9).contains(length)).map(|length| length as usize)
}

/// `None`: there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    match read_if_there(path)? {
        None => Ok(None),
        Some(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| TextError::Json { path: path.to_path_buf(), source }),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    disk::read_if_there(path, disk::VOCABULARY_BYTES)
        .map_err(|source| TextError::Read { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<TextFiles, TextError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        TextFiles::read(dir.path())
    }

    #[test]
    fn a_missing_tokenizer_names_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let message = TextFiles::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains("save_pretrained"), "{message}");
    }

    #[test]
    fn the_template_is_taken_where_transformers_takes_it() {
        let config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
        let named = (
            "tokenizer_config.json",
            r#"{"chat_template":
                [{"name": "rag", "template": "no"}, {"name": "default", "template": "named"}]}"#,
        );
        let jinja = ("chat_template.jinja", "jinja");
        let object = ("tokenizer_config.json", r#"{"chat_template": {"rag": "no", "default": "object"}}"#);
        let json = ("chat_template.json", r#"{"chat_template": "a processor's"}"#);
        struct Case<'a> {
            files: &'a [(&'a str, &'a str)],
            expected: Option<&'a str>,
        }
        for Case { files, expected } in [
            Case { files: &[], expected: None },
            Case { files: &[config], expected: Some("config") },
            Case { files: &[named], expected: Some("named") },
            Case { files: &[object], expected: Some("object") },
            Case { files: &[config, json], expected: Some("config") },
            Case { files: &[named, json, jinja], expected: Some("jinja") },
        ] {
            let template = read(files).unwrap().template;
            assert_eq!(template.as_ref().map(|template| template.source.as_str()), expected, "{files:?}");
        }
    }

    #[test]
    fn additional_templates_count_before_those_of_the_config() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let template = || Ok::<_, TextError>(TextFiles::read(dir.path())?.template.unwrap().source);
        fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        write("tokenizer.json", "{}");
        write("tokenizer_config.json", r#"{"chat_template": "config"}"#);
        assert_eq!(template().unwrap(), "config");
        write("additional_chat_templates/tool_use.jinja", "tools");
        assert!(matches!(template(), Err(TextError::NoDefaultTemplate { .. })));
        write("chat_template.jinja", "main");
        assert_eq!(template().unwrap(), "main");
        write("additional_chat_templates/default.jinja", "additional");
        assert_eq!(template().unwrap(), "additional");
        let for_tools = TextFiles::read(dir.path()).unwrap().tool_template.unwrap();
        assert_eq!(for_tools.source, "tools");
        assert!(for_tools.path.ends_with("additional_chat_templates/tool_use.jinja"), "{for_tools:?}");
    }

    #[test]
    fn a_template_for_tools_is_a_string_or_is_not_there() {
        let with = |tools: &str| {
            let config = format!(r#"{{"chat_template": {{"default": "d"{tools}}}}}"#);
            read(&[("tokenizer_config.json", &config)])
        };
        assert!(with("").unwrap().tool_template.is_none());
        assert_eq!(with(r#", "tool_use": "t""#).unwrap().tool_template.unwrap().source, "t");
        let error = with(r#", "tool_use": 3"#).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains("\"tool_use\" is 3"), "{error}");
    }

    #[test]
    fn templates_without_a_default_are_an_error() {
        for config in [
            r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#,
            r#"{"chat_template": {"rag": "no"}}"#,
            r#"{"chat_template": 3}"#,
        ] {
            let error = read(&[("tokenizer_config.json", config)]).unwrap_err();
            assert!(matches!(error, TextError::NoDefaultTemplate { .. }), "{error}");
        }
    }

    #[test]
    fn a_template_that_only_a_processor_reads_is_refused_by_name() {
        let error = read(&[("chat_template.json", r#"{"chat_template": "json"}"#)]).unwrap_err();
        assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn a_length_that_means_none_is_none() {
        let length = |text: &str| sane_length(&serde_json::from_str(text).unwrap());
        assert_eq!(length("512"), Some(512));
        assert_eq!(length("8192.0"), Some(8192));
        for none in ["1000000000000000019884624838656", "1e30", "null", "0", "-1", "\"512\""] {
            assert_eq!(length(none), None, "{none}");
        }
    }

    #[test]
    fn a_broken_file_is_named() {
        let error = read(&[("tokenizer_config.json", "{")]).unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}
