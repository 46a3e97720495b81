//! The text files of a checkpoint directory, read as `transformers` reads them.
//!
//! `tokenizer.json` must be there; the others may be missing. Where two files say the same thing:
//!
//! - the chat template comes from `chat_template.jinja`, else from `tokenizer_config.json`, else from
//!   `chat_template.json` (which old processors wrote);
//! - special tokens come from `tokenizer_config.json`; `special_tokens_map.json` overrides them in
//!   checkpoints so old that the config has no `added_tokens_decoder`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TextError;
use crate::disk;

/// What the text side of a checkpoint says, before anything is made of it.
#[derive(Debug)]
pub(super) struct TextFiles {
    /// Where they are.
    pub(super) dir: PathBuf,
    /// The bytes of `tokenizer.json`.
    pub(super) tokenizer_json: Vec<u8>,
    /// The default chat template, if there is one.
    pub(super) template: Option<TemplateSource>,
    /// See [`SpecialTokens`].
    pub(super) special_tokens: SpecialTokens,
    /// The tokenizer's own limit, if it means one.
    pub(super) model_max_length: Option<usize>,
}

/// A chat template and the file it came from.
#[derive(Debug)]
pub(super) struct TemplateSource {
    pub(super) path: PathBuf,
    pub(super) source: String,
}

/// `bos_token`, `eos_token` and so on → the token's text; `additional_special_tokens` → a list of them.
pub type SpecialTokens = BTreeMap<String, Value>;

const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TextFiles {
    pub(super) fn read(dir: &Path) -> Result<Self, TextError> {
        let tokenizer_json = read_if_there(&dir.join("tokenizer.json"))?
            .ok_or_else(|| TextError::NoTokenizer { dir: dir.to_path_buf() })?;
        let config = read_json(&dir.join("tokenizer_config.json"))?;

        let mut special_tokens = special_tokens(&config);
        if config["added_tokens_decoder"].is_null() {
            special_tokens
                .append(&mut self::special_tokens(&read_json(&dir.join("special_tokens_map.json"))?));
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer_json,
            template: read_template(dir, &config)?,
            special_tokens,
            model_max_length: sane_length(&config["model_max_length"]),
        })
    }
}

fn read_template(dir: &Path, config: &Value) -> Result<Option<TemplateSource>, TextError> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = read_if_there(&path)? {
        let source = String::from_utf8(bytes).map_err(|_| TextError::NotUtf8 { path: path.clone() })?;
        return Ok(Some(TemplateSource { path, source }));
    }
    let path = dir.join("tokenizer_config.json");
    if let Some(source) = default_template(&path, &config["chat_template"])? {
        return Ok(Some(TemplateSource { path, source }));
    }
    let path = dir.join("chat_template.json");
    let source = default_template(&path, &read_json(&path)?["chat_template"])?;
    Ok(source.map(|source| TemplateSource { path, source }))
}

/// A `chat_template` is a string, or a list of named ones, of which "default" is meant.
fn default_template(path: &Path, value: &Value) -> Result<Option<String>, TextError> {
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            match default.and_then(|entry| entry["template"].as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err(TextError::NoDefaultTemplate { path: path.to_path_buf() }),
            }
        }
        _ => Err(TextError::NoDefaultTemplate { path: path.to_path_buf() }),
    }
}

fn special_tokens(json: &Value) -> SpecialTokens {
    let mut tokens = SpecialTokens::new();
    for name in TOKEN_NAMES {
        if let Some(text) = token_text(&json[name]) {
            tokens.insert(name.to_owned(), text.into());
        }
    }
    if let Value::Array(additional) = &json["additional_special_tokens"] {
        let texts: Vec<&str> = additional.iter().filter_map(token_text).collect();
        tokens.insert("additional_special_tokens".to_owned(), texts.into());
    }
    tokens
}

/// A special token is its text, or an object with the text in `content`.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// "No limit" is written as 1e30, in full digits.
fn sane_length(value: &Value) -> Option<usize> {
    value.as_f64().filter(|length| (1.0..1e9).contains(length)).map(|length| length as usize)
}

/// A missing file reads as `null`.
fn read_json(path: &Path) -> Result<Value, TextError> {
    match read_if_there(path)? {
        None => Ok(Value::Null),
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| TextError::Json { path: path.to_path_buf(), source }),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    disk::read_if_there(path, disk::VOCABULARY_BYTES)
        .map_err(|source| TextError::Read { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

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
        let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
        struct Case<'a> {
            files: &'a [(&'a str, &'a str)],
            expected: Option<&'a str>,
        }
        for Case { files, expected } in [
            Case { files: &[], expected: None },
            Case { files: &[json], expected: Some("json") },
            Case { files: &[config], expected: Some("config") },
            Case { files: &[named], expected: Some("named") },
            Case { files: &[config, json], expected: Some("config") },
            Case { files: &[named, json, jinja], expected: Some("jinja") },
        ] {
            let template = read(files).unwrap().template;
            assert_eq!(template.as_ref().map(|template| template.source.as_str()), expected, "{files:?}");
        }
    }

    #[test]
    fn named_templates_without_a_default_are_an_error() {
        let config = r#"{"chat_template": [{"name": "rag", "template": "no"}]}"#;
        let error = read(&[("tokenizer_config.json", config)]).unwrap_err();
        assert!(matches!(error, TextError::NoDefaultTemplate { .. }), "{error}");
    }

    #[test]
    fn special_tokens_are_strings_objects_or_null() {
        let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null,
            "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#;
        let tokens = read(&[("tokenizer_config.json", config)]).unwrap().special_tokens;
        let expected =
            json!({"additional_special_tokens": ["<a>", "<b>"], "bos_token": "<s>", "eos_token": "</s>"});
        assert_eq!(json!(tokens), expected);
    }

    #[test]
    fn the_special_tokens_map_overrides_only_an_old_config() {
        let map = ("special_tokens_map.json", r#"{"bos_token": "map"}"#);
        let old = ("tokenizer_config.json", r#"{"bos_token": "config"}"#);
        let new = ("tokenizer_config.json", r#"{"bos_token": "config", "added_tokens_decoder": {}}"#);
        assert_eq!(read(&[old, map]).unwrap().special_tokens["bos_token"], "map");
        assert_eq!(read(&[new, map]).unwrap().special_tokens["bos_token"], "config");
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
