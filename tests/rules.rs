//! Where the files of a checkpoint contradict each other or say nothing: token ids and rewards as transformers 5.23.
//!
//! `data/rules` holds a few of the variants that `reference/sweep.py` tries (`--export` writes them), and
//! `data/rules/config_cases.json` those of `config.json` and of the weights, with rewards (`reference/config_rules.py`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rewarm::model::families;
use rewarm::model::variant::{Loader, Mode, VariantConfig};
use rewarm::ops::batch::{PackedBatch, Sequence};
use rewarm::text::{
    Input, Message, SampleTokenizer, TextError, TextOptions, TextRule, TokenizedSample, Truncation,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Cases {
    chat: Vec<Message>,
    pair: (String, String),
    text: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    base: String,
    what: String,
    /// Files that differ from the base's; null: not there.
    files: BTreeMap<String, Value>,
    /// `None`: transformers refuses, or makes what nobody can mean.
    expected: Option<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    pair: Vec<u32>,
    text: Vec<u32>,
    chat: Option<Vec<u32>>,
    types: Option<Vec<u32>>,
}

/// Puts vectors of f32 over those of a safetensors file.
fn add_tensors(path: &Path, tensors: &BTreeMap<String, Vec<f32>>) {
    let bytes = fs::read(path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let new: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, values)| (name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let mut all: Vec<(String, TensorView<'_>)> = stored.tensors();
    for (name, bytes) in &new {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap();
        all.push(((*name).clone(), view));
    }
    safetensors::serialize_to_file(all, None, path).unwrap();
}

/// A copy of a folder's files, with these instead.
fn variant(base: &Path, files: &BTreeMap<String, Value>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(base).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    for (name, content) in files {
        match content {
            Value::Null => fs::remove_file(dir.path().join(name)).unwrap(),
            content => fs::write(dir.path().join(name), content.to_string()).unwrap(),
        }
    }
    dir
}

fn tokenizer(dir: &Path, rule: TextRule) -> Result<SampleTokenizer, TextError> {
    let config: Value = read(&dir.join("config.json"));
    let is_encoder = !config["type_vocab_size"].is_null();
    let options = TextOptions {
        type_vocab_size: is_encoder.then(|| config["type_vocab_size"].as_u64().unwrap() as usize),
        rule: Some(rule),
        family: families::find(config["model_type"].as_str().unwrap()).unwrap().tokenizer,
        ..TextOptions::default()
    };
    SampleTokenizer::load(dir, &options)
}

#[test]
fn tokens_are_those_of_the_tokenizer_that_transformers_makes_of_the_files() {
    check("cases", 46);
}

/// CamemBERT's, ALBERT's, RemBERT's, MPNet's, CodeGen's, HerBERT's, the first GPT's, Qwen3.5's and Cohere's.
#[test]
fn tokens_are_those_of_classes_that_rebuild_in_ways_of_their_own() {
    check("class_cases", 47);
}

fn check(file: &str, count: usize) {
    let Cases { chat, pair, text, cases } = read(&data(&format!("rules/{file}.json")));
    assert_eq!(cases.len(), count);
    let mut failures = Vec::new();
    for Case { base, what, files, expected } in cases {
        let dir = variant(&data("rules").join(&base), &files);
        let is_encoder = base.contains("bert") || base.contains("mpnet");
        let rule = if is_encoder { TextRule::SentencePair } else { TextRule::Concatenation };
        let tokenize = |input: &Input| -> Result<(Vec<u32>, Vec<u32>), String> {
            let tokenizer = tokenizer(dir.path(), rule).map_err(|error| error.to_string())?;
            let sample = tokenizer.tokenize(input, Truncation::Reject).map_err(|error| error.to_string())?;
            Ok((sample.token_ids, sample.type_ids))
        };
        let pair = Input::Text { prompt: pair.0.clone(), response: pair.1.clone() };
        let mut check = |part: &str, input: &Input, ids: Option<&Vec<u32>>, types: Option<&Vec<u32>>| {
            let seen = tokenize(input);
            let is_right = match (&seen, ids) {
                (Ok((seen, seen_types)), Some(ids)) => {
                    seen == ids && types.is_none_or(|types| types == seen_types)
                }
                (Err(_), None) => true,
                _ => false,
            };
            if !is_right {
                failures.push(format!("{base}: {what}: {part} is {seen:?}, expected {ids:?} {types:?}"));
            }
        };
        let expected = expected.as_ref();
        // a token type that the model does not have: transformers fails in the model
        let has_types = !what.ends_with("without model_input_names");
        let of_pair = expected.map(|expected| &expected.pair).filter(|_| has_types);
        check("pair", &pair, of_pair, expected.and_then(|expected| expected.types.as_ref()));
        if has_types {
            check("text", &Input::Formatted(text.clone()), expected.map(|expected| &expected.text), None);
        }
        if let Some(ids) = expected.and_then(|expected| expected.chat.as_ref()) {
            check("chat", &Input::Conversation(chat.clone().into()), Some(ids), None);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_token_type_that_the_model_does_not_have_is_refused_when_it_is_loaded() {
    let files = BTreeMap::from([(
        "tokenizer_config.json".to_owned(),
        serde_json::json!({"tokenizer_class": "BertTokenizer"}),
    )]);
    let dir = variant(&data("rules/roberta-bert"), &files);
    let error = tokenizer(dir.path(), TextRule::SentencePair).unwrap_err().to_string();
    assert!(
        error.contains("type 1") && error.contains("type_vocab_size") && error.contains("model_input_names"),
        "{error}"
    );
    // without a pair, nothing has that type
    let text = Input::Text { prompt: "rain".to_owned(), response: String::new() };
    tokenizer(dir.path(), TextRule::Concatenation).unwrap().tokenize(&text, Truncation::Reject).unwrap();
}

#[test]
fn dropout_is_off() {
    for class in ["PreTrainedTokenizerFast", "GPT2Tokenizer"] {
        let mut json: Value = read(&data("rules/llama/tokenizer.json"));
        json["model"]["dropout"] = 0.5.into();
        let mut config: Value = read(&data("rules/llama/tokenizer_config.json"));
        config["tokenizer_class"] = class.into();
        let with = |json: &Value| {
            let files = [("tokenizer.json", json), ("tokenizer_config.json", &config)];
            let files = files.map(|(name, json)| (name.to_owned(), json.clone())).into();
            tokenizer(variant(&data("rules/llama"), &files).path(), TextRule::Concatenation).unwrap()
        };
        let (dropping, mut certain) = (with(&json), json.clone());
        certain["model"]["dropout"] = Value::Null;
        let certain = with(&certain);
        let text = Input::Formatted("The kettle sings while the rain falls on the tin roof.".repeat(8));
        let expected = certain.tokenize(&text, Truncation::Reject).unwrap();
        for _ in 0..20 {
            assert_eq!(dropping.tokenize(&text, Truncation::Reject).unwrap(), expected, "{class}");
        }
    }
}

/// Broken in every place that the library trusts: an error that names the file, when it is loaded or at the text.
#[test]
fn no_tokenizer_file_ends_in_a_panic() {
    let text = Input::Text {
        prompt: "Could you mend 1234\n\n  日本".to_owned(),
        response: "naïve <s>[SEP]".to_owned(),
    };
    let values = [
        Value::Null,
        0.into(),
        (-1).into(),
        4_000_000_000_u64.into(),
        "".into(),
        "(((".into(),
        "(a+)+$".into(),
        true.into(),
        serde_json::json!([]),
        serde_json::json!({}),
        serde_json::json!([["a", "b"], ["é", "é"]]),
    ];
    let mut tried = 0;
    for base in ["llama", "bert", "bert-xlmr", "roberta"] {
        let base = data("rules").join(base);
        let whole: Value = read(&base.join("tokenizer.json"));
        for pointer in pointers(&whole, "") {
            for value in &values {
                let mut json = whole.clone();
                *json.pointer_mut(&pointer).unwrap() = value.clone();
                for class in ["PreTrainedTokenizerFast", ""] {
                    let mut files = BTreeMap::from([("tokenizer.json".to_owned(), json.clone())]);
                    if !class.is_empty() {
                        let config =
                            serde_json::json!({"tokenizer_class": class, "added_tokens_decoder": {}});
                        files.insert("tokenizer_config.json".to_owned(), config);
                    }
                    let dir = variant(&base, &files);
                    let outcome = std::panic::catch_unwind(|| {
                        let tokenizer = tokenizer(dir.path(), TextRule::SentencePair)?;
                        tokenizer.tokenize(&text, Truncation::Reject)
                    });
                    assert!(outcome.is_ok(), "{base:?} {pointer} = {value}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 2000, "{tried}");
}

/// Of all values that are no vocabulary, and of some entries of it.
fn pointers(value: &Value, at: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(values) => {
            values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    let inner = inner.into_iter().take(7).flat_map(|(key, value)| {
        let at = format!("{at}/{key}");
        let deeper = pointers(value, &at);
        std::iter::once(at).chain(deeper)
    });
    inner.collect()
}

#[derive(Deserialize)]
struct ConfigCase {
    model: String,
    what: String,
    /// Put over the model's `config.json`; null: taken out.
    config: BTreeMap<String, Value>,
    /// Said to be null.
    nulls: Vec<String>,
    /// Put over the model's `model.safetensors`.
    tensors: BTreeMap<String, Vec<f32>>,
    max_tokens: Option<usize>,
    samples: Vec<ConfigSample>,
}

#[derive(Deserialize)]
struct ConfigSample {
    token_ids: Vec<u32>,
    /// `None`: longer than the limit.
    reward: Option<f64>,
}

#[test]
fn rewards_are_those_that_transformers_makes_of_the_config() {
    const ATOL: f64 = 2e-4; // of rewards around 1, in f32, at positions up to 300
    let cases: Vec<ConfigCase> = read(&data("rules/config_cases.json"));
    assert_eq!(cases.len(), 28);
    let mut failures = Vec::new();
    for case in cases {
        let base = data("models").join(&case.model);
        let mut config: BTreeMap<String, Value> = read(&base.join("config.json"));
        for (key, value) in &case.config {
            match value {
                Value::Null => drop(config.remove(key)),
                value => drop(config.insert(key.clone(), value.clone())),
            }
        }
        config.extend(case.nulls.iter().map(|key| (key.clone(), Value::Null)));
        let config = serde_json::to_value(&config).unwrap();
        let files = BTreeMap::from([("config.json".to_owned(), config)]);
        let dir = variant(&base, &files);
        if !case.tensors.is_empty() {
            add_tensors(&dir.path().join("model.safetensors"), &case.tensors);
        }
        if !dir.path().join("tokenizer.json").exists() {
            let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel",
                "vocab": {"a": 0}, "unk_token": "a"}});
            fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        }
        let own = fs::read(dir.path().join("tokenizer_config.json"));
        let mut text: Value = own.map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
        text["model_max_length"] = Value::Null;
        text["tokenizer_class"] = "PreTrainedTokenizerFast".into();
        fs::write(dir.path().join("tokenizer_config.json"), text.to_string()).unwrap();
        let variant_config = VariantConfig {
            max_tokens: case.max_tokens,
            ..VariantConfig::new("it", Mode::Warm, vec![dir.path().to_owned()])
        };
        let loaded = match Loader::default().load(&variant_config, &mut |_, _| ()) {
            Ok(loaded) => loaded,
            Err(error) => {
                failures.push(format!("{}: {}: {error}", case.model, case.what));
                continue;
            }
        };
        let reward_of = |sample: TokenizedSample| {
            let sequence = Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids };
            let raw = loaded.scorer.forward(&PackedBatch::pack([&sequence]), &mut [Duration::ZERO]).unwrap();
            f64::from(raw[0][0])
        };
        for ConfigSample { token_ids, reward } in &case.samples {
            let input = Input::TokenIds(token_ids.clone());
            let seen = loaded.tokenizer.tokenize(&input, Truncation::Reject).ok().map(reward_of);
            let is_right = match (seen, reward) {
                (Some(seen), Some(reward)) => (seen - reward).abs() <= ATOL * reward.abs().max(1.0),
                (None, None) => true,
                _ => false,
            };
            if !is_right {
                let tokens = token_ids.len();
                failures.push(format!(
                    "{}: {}: {tokens} tokens: {seen:?}, expected {reward:?}",
                    case.model, case.what
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// GPT-2's class adds the embeddings of the words 0 and 1 for token types (transformers 5.23 scores otherwise then).
#[test]
fn token_types_that_would_be_taken_for_words_are_refused() {
    let dir = variant(&data("models/gpt2"), &BTreeMap::new());
    let load = |inputs: &[&str]| {
        let config =
            serde_json::json!({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs});
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::copy(data("rules/llama/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let config = VariantConfig::new("gpt2", Mode::Warm, vec![dir.path().to_owned()]);
        Loader::default().load(&config, &mut |_, _| ()).map(|_| ()).map_err(|error| format!("{error:?}"))
    };
    let error = load(&["input_ids", "token_type_ids"]).unwrap_err();
    assert!(error.contains("model_input_names") && error.contains("token_type_ids"), "{error}");
    load(&["input_ids"]).unwrap();
}
