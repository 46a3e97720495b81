//! Directories as people have them: sentence-transformers' cross-encoders, tensors with their old names, ids that mean "none". Each
//! gives the rewards of the plain directory, or is refused by name. `tests/reference/layouts.py` holds the libraries to it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod checkpoints;

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use checkpoints::TinyCheckpoint;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::model::variant::VariantInfo;
use rewarm::text::Input;
use rewarm::text::Message;
use rewarm::text::Truncation;
use safetensors::SafeTensors;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

/// The files of a model, with a tokenizer.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for from in [model("llama"), model(name)] {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn load(dir: &Path) -> Result<VariantInfo, String> {
    let config = VariantConfig::new("v", Mode::Warm, vec![dir.to_owned()]);
    let loaded = Loader::default().load(&config, &mut |_, _| ());
    loaded.map(|variant| variant.info).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

fn change(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn norms_that_have_their_first_names_are_read_as_transformers_renames_them() {
    for name in ["bert", "roberta"] {
        let expected = load(copy(name).path()).unwrap();
        let dir = copy(name);
        let path = dir.path().join("model.safetensors");
        let content = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&content).unwrap();
        let old = |name: &str| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        };
        let renamed: Vec<_> = tensors.iter().map(|(name, view)| (old(name), view)).collect();
        assert!(renamed.iter().any(|(name, _)| name.ends_with("LayerNorm.gamma")));
        safetensors::serialize_to_file(renamed, None, &path).unwrap();
        assert_eq!(load(dir.path()).unwrap().fingerprint, expected.fingerprint, "{name}");

        let twice =
            tensors.iter().chain(tensors.iter().filter(|(name, _)| name.contains("embeddings.LayerNorm")));
        let mut names = Vec::new();
        let twice: Vec<_> = twice
            .map(|(name, view)| {
                let name = if names.contains(&name) { old(name) } else { name.to_owned() };
                names.push(if name.contains("LayerNorm.") { name.clone().leak() } else { "" });
                (name, view)
            })
            .collect();
        safetensors::serialize_to_file(twice, None, &path).unwrap();
        assert!(load(dir.path()).unwrap_err().contains("is there twice"));
    }
}

#[test]
fn a_pad_token_id_of_minus_one_means_none() {
    let dir = copy("llama");
    change(dir.path(), "config.json", |config| config["pad_token_id"] = Value::Null);
    let expected = load(dir.path()).unwrap();
    change(dir.path(), "config.json", |config| config["pad_token_id"] = json!(-1));
    let info = load(dir.path()).unwrap();
    assert_eq!((info.fingerprint, info.pooling.name()), (expected.fingerprint, "last_token"));
    // positions of RoBERTa count from it
    let dir = copy("roberta");
    change(dir.path(), "config.json", |config| config["pad_token_id"] = json!(-1));
    assert!(load(dir.path()).unwrap_err().contains("`pad_token_id` is -1"));
}

/// What sentence-transformers 6.2.0 saves beside a cross-encoder.
fn cross_encoder(dir: &Path) {
    let write = |name: &str, value: Value| fs::write(dir.join(name), value.to_string()).unwrap();
    write(
        "modules.json",
        json!([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]),
    );
    write(
        "config_sentence_transformers.json",
        json!({
            "__version__": {"pytorch": "2.15.0", "sentence_transformers": "6.2.0", "transformers": "5.23.0"},
            "activation_fn": "torch.nn.modules.activation.Sigmoid", "default_prompt_name": null, "model_type": "CrossEncoder", "prompts": {},
        }),
    );
    write(
        "sentence_bert_config.json",
        json!({
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}, "module_output_name": "scores",
        }),
    );
}

#[test]
fn a_cross_encoder_is_its_classifier_without_the_activation() {
    let plain = load(&model("bert")).unwrap();
    assert!(plain.notes.is_empty());
    let told = "sentence-transformers applies Sigmoid to its scores; a reward is the logit before it";

    let dir = copy("bert");
    cross_encoder(dir.path());
    let info = load(dir.path()).unwrap();
    assert_eq!((&info.fingerprint, info.notes.as_slice()), (&plain.fingerprint, &[told.to_owned()][..]));
    change(dir.path(), "config_sentence_transformers.json", |config| {
        config["activation_fn"] = json!("torch.nn.modules.linear.Identity");
    });
    assert!(load(dir.path()).unwrap().notes.is_empty());

    // before 5.4, and before 4.0
    for own in [
        json!({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}}),
        json!({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}),
    ] {
        let dir = copy("bert");
        change(dir.path(), "config.json", |config| {
            config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        });
        let info = load(dir.path()).unwrap();
        assert_eq!((info.fingerprint, info.notes), (plain.fingerprint.clone(), vec![told.to_owned()]));
    }
}

#[test]
fn what_makes_other_scores_than_the_classifier_is_refused_by_name() {
    let modules = |more: Value| move |modules: &mut Value| modules.as_array_mut().unwrap().push(more);
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: [(&str, Change, &str); 7] = [
        (
            "modules.json",
            Box::new(modules(
                json!({"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}),
            )),
            "its scores are made by Transformer, LogitScore",
        ),
        (
            "modules.json",
            Box::new(modules(
                json!({"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}),
            )),
            "Transformer, Dense",
        ),
        ("modules.json", Box::new(|modules| modules[0]["type"] = json!("my.own.Module")), "made by Module"),
        (
            "modules.json",
            Box::new(|modules| modules[0]["path"] = json!("0_Transformer")),
            "in this directory",
        ),
        (
            "sentence_bert_config.json",
            Box::new(|config| config["transformer_task"] = json!("text-generation")),
            "`transformer_task` is \"text-generation\"",
        ),
        (
            "sentence_bert_config.json",
            Box::new(|config| config["do_lower_case"] = json!(true)),
            "`do_lower_case` is true",
        ),
        (
            "config_sentence_transformers.json",
            Box::new(|config| {
                config["prompts"] = json!({"query": "query: "});
                config["default_prompt_name"] = json!("query");
            }),
            "\"query: \" is put before texts",
        ),
    ];
    for (file, spoil, problem) in cases {
        let dir = copy("bert");
        cross_encoder(dir.path());
        change(dir.path(), file, spoil);
        let error = load(dir.path()).unwrap_err();
        assert!(error.contains(problem) && error.contains(file), "{problem}: {error}");
    }

    // an embedding model has no head, and is a base for a training
    let dir = copy("bert");
    cross_encoder(dir.path());
    change(dir.path(), "config.json", |config| config["architectures"] = json!(["BertModel"]));
    fs::remove_file(dir.path().join("config_sentence_transformers.json")).unwrap();
    change(dir.path(), "modules.json", |modules| {
        let pooling = json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"});
        modules.as_array_mut().unwrap().push(pooling);
    });
    let options = rewarm::learn::trainable::LoadOptions::default();
    rewarm::learn::trainable::Trainable::load(dir.path(), &options).unwrap();
}

/// `get_score` of InternLM2's own code (as xtuner has it, tools/model_converters/modeling_internlm2_reward): the template is
/// rendered, tokenized without special tokens, and the token appended unless it is the last one; the reward is read there.
#[test]
fn a_token_that_a_models_code_appends_ends_each_text() {
    const TOKEN: u32 = 70; // of no word
    let dir = tempfile::tempdir().unwrap();
    TinyCheckpoint::llama(1).write(dir.path());
    for file in ["config.json", "model.safetensors"] {
        fs::copy(model("internlm2").join(file), dir.path().join(file)).unwrap();
    }
    let set_token =
        |token: u32| change(dir.path(), "config.json", |config| config["reward_token_id"] = json!(token));
    let load_with = |manifest: &str, max_tokens: Option<usize>| {
        fs::write(dir.path().join("rewarm.json"), manifest).unwrap();
        let config = VariantConfig::new("v", Mode::Warm, vec![dir.path().to_owned()]);
        Loader::default().load(&VariantConfig { max_tokens, ..config }, &mut |_, _| ()).unwrap()
    };
    let error = load(dir.path()).unwrap_err();
    assert!(error.contains("token 92527 (`reward_token_id` of config.json)"), "{error}");

    let text = Input::Text { prompt: "w1 w2".to_owned(), response: "w3 w4".to_owned() };
    let conversation =
        Input::Conversation(vec![Message::new("user", "w1 w2"), Message::new("assistant", "w3 w4")].into());
    let formatted = Input::Formatted("w1 w2 w3".to_owned());
    let ids = |variant: &Variant, input: &Input, truncation| {
        variant.tokenizer.tokenize(input, truncation).unwrap().token_ids
    };
    set_token(TOKEN);
    let as_is = load_with(r#"{"text_end": "as_is"}"#, None);
    let rendered = ids(&as_is, &text, Truncation::Reject);
    let expected = [&rendered[..], &[TOKEN]].concat();
    let variant = load_with("{}", None);
    assert!(
        variant.info.notes.iter().any(|note| note.contains("text_end reward_token")),
        "{:?}",
        variant.info.notes
    );
    assert_ne!(variant.info.fingerprint, as_is.info.fingerprint);
    for input in [&text, &conversation] {
        assert_eq!(ids(&variant, input, Truncation::Reject), expected);
    }
    for given in [&formatted, &Input::TokenIds(rendered.clone())] {
        assert_eq!(ids(&variant, given, Truncation::Reject), ids(&as_is, given, Truncation::Reject));
    }
    // it is never cut off, and counts
    let limit = expected.len() - 1;
    let short = load_with("{}", Some(limit));
    let too_long = short.tokenizer.tokenize(&text, Truncation::Reject).unwrap_err().to_string();
    assert!(too_long.contains(&format!("{} tokens", expected.len())), "{too_long}");
    for truncation in [Truncation::Left, Truncation::Right] {
        let cut = ids(&short, &text, truncation);
        assert_eq!((cut.len(), cut.last()), (limit, Some(&TOKEN)));
    }
    // what ends with it already does not get it twice
    set_token(*rendered.last().unwrap());
    assert_eq!(ids(&load_with("{}", None), &text, Truncation::Reject), rendered);

    // a model that has no such token
    TinyCheckpoint::llama(1).write(dir.path());
    fs::write(dir.path().join("rewarm.json"), r#"{"text_end": "reward_token"}"#).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.contains("text_end reward_token") && error.contains("has none"), "{error}");
}
