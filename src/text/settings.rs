//! What `transformers` hands to the class of a tokenizer: the keys of `tokenizer_config.json`, with what older files
//! beside it add.
//!
//! Follows `PreTrainedTokenizerBase._from_pretrained` and `__init__` of transformers 5.23, step by step, for each step
//! may take a key away from the next:
//!
//! 1. `additional_special_tokens` is the old name of `extra_special_tokens`; a text under another key that ends in
//!    `_token` is a token with a name of the model's own, as are all of an `extra_special_tokens` that is an object;
//! 2. with `added_tokens_decoder`, that is all; without it, `special_tokens_map.json` replaces keys, and
//!    `added_tokens.json` and then `tokenizer.json` say which tokens were added;
//! 3. a named token is the added token of the same text, where there is one.
//!
//! What transformers refuses with a `TypeError` is refused here by name.

use std::collections::BTreeMap;
use std::collections::HashSet;

use serde::Deserialize;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

/// The names that every tokenizer may give, in the order in which transformers adds them.
pub(super) const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A special token as a file names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Token {
    /// By its text.
    Text(String),
    /// With how it is found.
    Added(AddedToken),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: Map<String, Value>,
    /// Of [`TOKEN_NAMES`] those that a file mentions; `None`: as null.
    named: BTreeMap<&'static str, Option<Token>>,
    /// Tokens with names of the model's own.
    pub(super) own: Vec<(String, Token)>,
    /// Tokens without a name.
    pub(super) extra: Vec<Token>,
    /// Whether a file speaks of them.
    has_extra: bool,
    /// Tokens that some file says were added, by id.
    pub(super) added: BTreeMap<i64, AddedToken>,
}

/// The JSON files that [`Settings`] come from; a file that is not there is `None`.
pub(super) struct Sources<'a> {
    /// `tokenizer_config.json`
    pub(super) config: Option<&'a Map<String, Value>>,
    /// `special_tokens_map.json`
    pub(super) special_tokens_map: Option<&'a Map<String, Value>>,
    /// `added_tokens.json`
    pub(super) added_tokens: Option<&'a Map<String, Value>>,
    /// The `added_tokens` of `tokenizer.json`
    pub(super) stored: Option<&'a [StoredToken]>,
}

/// An added token of `tokenizer.json`.
#[derive(Clone, Deserialize)]
pub(super) struct StoredToken {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

impl Token {
    pub(super) fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Added(token) => &token.content,
        }
    }

    /// A string, or an object that says that it is an `AddedToken`; `None` for everything else.
    fn parse(value: &Value) -> Result<Option<Self>, String> {
        Ok(match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Object(fields) if fields.get("__type").is_some_and(|kind| kind == "AddedToken") => {
                Some(Self::Added(added_token(fields, None)?))
            }
            _ => None,
        })
    }

    fn required(key: &str, value: &Value) -> Result<Self, String> {
        Self::parse(value)?.ok_or_else(|| {
            format!("`{key}` is {value}: expected a text, or an object with \"__type\": \"AddedToken\"")
        })
    }
}

impl Settings {
    /// Fails with the name of the file and what is wrong with it.
    pub(super) fn read(sources: &Sources<'_>) -> Result<Self, (&'static str, String)> {
        let in_config = |problem| ("tokenizer_config.json", problem);
        let mut values = sources.config.cloned().unwrap_or_default();
        values.shift_remove("tokenizer_class");
        // `tokenizer.json` is there, and its post-processor says it
        values.shift_remove("add_bos_token");
        values.shift_remove("add_eos_token");
        if let Some(inputs) = values.shift_remove("init_inputs")
            && is_true(&inputs)
        {
            return Err(in_config(format!("`init_inputs` is {inputs}: expected none")));
        }
        if values.contains_key("additional_special_tokens")
            && !values.get("extra_special_tokens").is_some_and(is_true)
        {
            let tokens = values.shift_remove("additional_special_tokens").unwrap_or_default();
            values.insert("extra_special_tokens".to_owned(), tokens);
        }
        let is_own = |key: &str| key.ends_with("_token") && !TOKEN_NAMES.contains(&key);
        let mut own = Map::new();
        let keys: Vec<String> = values.keys().filter(|key| is_own(key)).cloned().collect();
        for key in keys {
            if values[&key].is_string() {
                let text = values.shift_remove(&key).unwrap_or_default();
                own.insert(key, text);
            }
        }
        take_object(&mut values, &mut own);
        if !own.is_empty() {
            values.shift_remove("model_specific_special_tokens");
        } else if let Some(Value::Object(named)) = values.shift_remove("model_specific_special_tokens") {
            own = named;
        }

        let mut added = BTreeMap::new();
        let mut by_text = BTreeMap::new();
        let mut add = |id: i64, token: AddedToken| {
            by_text.insert(token.content.clone(), token.clone());
            added.insert(id, token);
        };
        if let Some(decoder) = values.shift_remove("added_tokens_decoder") {
            let Value::Object(decoder) = decoder else {
                return Err(in_config(format!("`added_tokens_decoder` is {decoder}: expected an object")));
            };
            for (id, token) in &decoder {
                let place = format!("added_tokens_decoder.{id}");
                let (Ok(id), Value::Object(fields)) = (id.trim().parse(), token) else {
                    return Err(in_config(format!("`{place}` is {token}: expected a token under its id")));
                };
                add(
                    id,
                    added_token(fields, None)
                        .map_err(|problem| in_config(format!("`{place}`: {problem}")))?,
                );
            }
        } else {
            let from_map = sources
                .special_tokens_map
                .map(|map| merge_special_tokens_map(&mut values, map))
                .transpose()
                .map_err(|problem| ("special_tokens_map.json", problem))?
                .unwrap_or_default();
            take_object(&mut values, &mut own);
            let special = special_texts(&values, &from_map);
            for (text, id) in sources.added_tokens.into_iter().flatten() {
                let Some(id) = id.as_i64() else {
                    return Err(("added_tokens.json", format!("`{text}` is {id}: expected an id")));
                };
                add(id, AddedToken::from(text.clone(), special.contains(text)));
            }
            let stored = sources.stored.ok_or_else(|| {
                ("tokenizer.json", "`added_tokens` is missing: it may be empty, []".to_owned())
            })?;
            for StoredToken { id, token } in stored {
                add(i64::from(*id), token.clone());
            }
        }

        let mut settings = Self { added, ..Self::default() };
        for name in TOKEN_NAMES {
            let Some(value) = values.shift_remove(name) else { continue };
            let token = match value {
                Value::Null => None,
                value => {
                    let token = Token::required(name, &value).map_err(in_config)?;
                    Some(by_text.get(token.content()).map_or(token, |added| Token::Added(added.clone())))
                }
            };
            settings.named.insert(name, token);
        }
        if let Some(old) = values.shift_remove("additional_special_tokens")
            && !values.contains_key("extra_special_tokens")
        {
            values.insert("extra_special_tokens".to_owned(), old);
        }
        settings.has_extra = values.contains_key("extra_special_tokens");
        match values.shift_remove("extra_special_tokens") {
            None | Some(Value::Null) => {}
            Some(Value::Array(tokens)) => {
                for token in &tokens {
                    settings.extra.push(Token::required("extra_special_tokens", token).map_err(in_config)?);
                }
            }
            Some(other) => {
                return Err(in_config(format!(
                    "`extra_special_tokens` is {other}: expected a list or an object"
                )));
            }
        }
        let mut with_names = Map::new(); // first those that only now turned up
        for (key, value) in values.iter().filter(|(key, _)| is_own(key)) {
            if Token::parse(value).map_err(in_config)?.is_some() {
                with_names.insert(key.clone(), value.clone());
            }
        }
        with_names.extend(own);
        for (key, value) in &with_names {
            settings.own.push((key.clone(), Token::required(key, value).map_err(in_config)?));
        }
        settings.values = values;
        Ok(settings)
    }

    /// Whether a file speaks of tokens without a name, were it null.
    pub(super) fn has_extra(&self) -> bool {
        self.has_extra
    }

    /// What a file says of one of [`TOKEN_NAMES`], else the class's default.
    pub(super) fn named(&self, name: &str, default: Option<&str>) -> Option<Token> {
        match self.named.get(name) {
            Some(said) => said.clone(),
            None => default.map(|text| Token::Text(text.to_owned())),
        }
    }

    /// A key's value; null where it is absent.
    pub(super) fn get(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// Whether a file has the key, were it null.
    pub(super) fn says(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A switch that may be absent, and may not be null.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.values.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(format!("`{key}` is {other}: expected true or false")),
        }
    }

    /// A switch for which null means its default.
    pub(super) fn optional_switch(&self, key: &str) -> Result<Option<bool>, String> {
        match self.values.get(key) {
            Some(Value::Null) => Ok(None),
            Some(_) => self.switch(key, false).map(Some),
            None => Ok(None),
        }
    }
}

/// As Python's `AddedToken(**fields)`, or `AddedToken(**fields, special=special)`.
fn added_token(fields: &Map<String, Value>, special: Option<bool>) -> Result<AddedToken, String> {
    let flag = |key: &str| match fields.get(key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(format!("`{key}` is {other}: expected true or false")),
    };
    let content = fields
        .get("content")
        .and_then(Value::as_str)
        .ok_or_else(|| format!("{} has no `content`", Value::Object(fields.clone())))?;
    let special = special.or(flag("special")?).unwrap_or(false);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false))
        .normalized(flag("normalized")?.unwrap_or(!special)))
}

/// Moves an `extra_special_tokens` that is an object to the tokens with names of their own.
fn take_object(values: &mut Map<String, Value>, own: &mut Map<String, Value>) {
    if values.get("extra_special_tokens").is_some_and(Value::is_object)
        && let Some(Value::Object(named)) = values.shift_remove("extra_special_tokens")
    {
        own.extend(named);
    }
}

/// Puts the keys of `special_tokens_map.json` over those of `tokenizer_config.json`. Returns those that came as objects.
fn merge_special_tokens_map(
    values: &mut Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<HashSet<String>, String> {
    let mut objects = HashSet::new();
    let special = |key: &str, fields: &Map<String, Value>| -> Result<Value, String> {
        let token = added_token(fields, Some(true)).map_err(|problem| format!("`{key}`: {problem}"))?;
        let mut value = json!(token);
        value["__type"] = "AddedToken".into();
        Ok(value)
    };
    for (key, value) in map {
        let value = match value {
            Value::Object(fields) if key != "extra_special_tokens" => {
                objects.insert(key.clone());
                special(key, fields)?
            }
            Value::Array(tokens) if key == "extra_special_tokens" => {
                let mut all = match values.get(key) {
                    Some(Value::Array(tokens)) => tokens.clone(),
                    _ => Vec::new(),
                };
                for token in tokens {
                    let token = match token {
                        Value::Object(fields) => special(key, fields)?,
                        token => token.clone(),
                    };
                    if !all.contains(&token) {
                        all.push(token);
                    }
                }
                Value::Array(all)
            }
            value => value.clone(),
        };
        values.insert(key.clone(), value);
    }
    Ok(objects)
}

/// The texts that make a token of `added_tokens.json` special: those given as text, or by `special_tokens_map.json`.
fn special_texts(values: &Map<String, Value>, from_map: &HashSet<String>) -> HashSet<String> {
    let named = TOKEN_NAMES.iter().filter_map(|&name| match values.get(name)? {
        Value::String(text) => Some(text.as_str()),
        token if from_map.contains(name) => token["content"].as_str(),
        _ => None,
    });
    let extra = values.get("extra_special_tokens").and_then(Value::as_array);
    let extra =
        extra.into_iter().flatten().filter_map(|token| token.as_str().or_else(|| token["content"].as_str()));
    named.chain(extra).map(str::to_owned).collect()
}

/// As Python's `bool(value)`.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}
