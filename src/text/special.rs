//! The padding and end-of-sequence tokens of a tokenizer, with their ids, read without building the tokenizer.
//!
//! Trainers tell by them how they pooled (`crate::model::origin`), which must be known before anything else is loaded.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::TextError;
use super::files::read_json;

/// The two tokens, where they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// `pad_token`
    pub pad: Option<SpecialToken>,
    /// `eos_token`
    pub eos: Option<SpecialToken>,
}

/// A token and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// As written.
    pub text: String,
    /// By `tokenizer.json`.
    pub id: u32,
}

/// Names from the `tokenizer_config.json` of one directory, ids from the `tokenizer.json` of the same or another: an
/// adapter may have the first alone. A token that the tokenizer does not know counts as not named.
pub fn read(config_dir: &Path, tokenizer_dir: &Path) -> Result<SpecialIds, TextError> {
    let config: Value = read_json(&config_dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let find = |name: &str| -> Result<Option<SpecialToken>, TextError> {
        let Some(text) = config[name].as_str().or_else(|| config[name]["content"].as_str()) else {
            return Ok(None);
        };
        let id = match listed_id(&config, text) {
            Some(id) => Some(id),
            None => token_id(tokenizer_dir, text)?,
        };
        Ok(id.map(|id| SpecialToken { text: text.to_owned(), id }))
    };
    Ok(SpecialIds { pad: find("pad_token")?, eos: find("eos_token")? })
}

/// By `added_tokens_decoder`, where the config has one.
fn listed_id(config: &Value, text: &str) -> Option<u32> {
    let listed = config["added_tokens_decoder"].as_object()?;
    listed.iter().find(|(_, token)| token["content"] == text).and_then(|(id, _)| id.parse().ok())
}

fn token_id(dir: &Path, text: &str) -> Result<Option<u32>, TextError> {
    #[derive(Deserialize)]
    struct Added {
        #[serde(default)]
        added_tokens: Vec<Token>,
    }
    #[derive(Deserialize)]
    struct Token {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    struct Whole {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        vocab: Value,
    }
    let path = dir.join("tokenizer.json");
    let Some(Added { added_tokens }) = read_json(&path)? else { return Ok(None) };
    if let Some(token) = added_tokens.into_iter().find(|token| token.content == text) {
        return Ok(Some(token.id));
    }
    let Some(Whole { model: Model { vocab } }) = read_json(&path)? else { return Ok(None) };
    let id = match &vocab {
        Value::Object(ids) => ids.get(text).and_then(Value::as_u64),
        Value::Array(pieces) => pieces.iter().position(|piece| piece[0] == text).map(|id| id as u64),
        _ => None,
    };
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_wherever_a_tokenizer_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let read = || read(dir.path(), dir.path()).unwrap();
        assert_eq!(read(), SpecialIds::default());

        write("tokenizer_config.json", r#"{"pad_token": "<p>", "eos_token": {"content": "</s>"}}"#);
        let found = |pad, eos| SpecialIds {
            pad: Some(SpecialToken { text: "<p>".to_owned(), id: pad }),
            eos: Some(SpecialToken { text: "</s>".to_owned(), id: eos }),
        };
        write(
            "tokenizer.json",
            r#"{"added_tokens": [{"id": 7, "content": "<p>"}], "model": {"vocab": {"a": 0, "</s>": 2}}}"#,
        );
        assert_eq!(read(), found(7, 2));
        write("tokenizer.json", r#"{"model": {"vocab": [["a", -1.0], ["<p>", -2.5], ["</s>", 0]]}}"#);
        assert_eq!(read(), found(1, 2));
        write(
            "tokenizer_config.json",
            r#"{"pad_token": "<p>", "eos_token": "</s>", "added_tokens_decoder": {"9": {"content": "<p>"}}}"#,
        );
        assert_eq!(read(), found(9, 2));
        write("tokenizer.json", r#"{"model": {"vocab": {}}}"#);
        assert_eq!(read().eos, None);
    }
}
