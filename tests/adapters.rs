//! Adapters, and reward models of trainers: scored as they were trained, or refused with what decides.
//!
//! Expected rewards are of the models in memory, by TRL's trainer, PEFT and OpenRLHF's classes:
//! `tests/reference/make_trained.py` and `make_adapters.py`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::path::Path;
use std::path::PathBuf;

use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::offline::score::Backend;
use rewarm::offline::score::Local;
use rewarm::text::Input;
use rewarm::text::Truncation;
use serde_json::Value;
use serde_json::json;

/// Ours against the trainers', both f32: other orders of summation.
const REWARD_ATOL: f32 = 2e-5;

fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn over(model: &Path, base: &Path) -> VariantConfig {
    let base = base.is_dir().then(|| base.to_owned());
    VariantConfig { base, ..VariantConfig::new("model", Mode::Warm, vec![model.to_owned()]) }
}

fn load(config: &VariantConfig) -> Local {
    let variant = Loader::default().load(config, &mut |_, _| ()).unwrap();
    Local { variant, truncation: Truncation::Reject, max_batch_tokens: 1000 }
}

fn rewards(local: &mut Local, inputs: Vec<Input>) -> Vec<f32> {
    local.score(inputs).unwrap().into_iter().map(|scored| scored.unwrap().reward.reward).collect()
}

/// The whole error chain, as a user reads it.
fn refusal(config: &VariantConfig) -> String {
    let error = Loader::default().check(config).unwrap_err();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A model with its golden samples.
struct Golden {
    dir: PathBuf,
    samples: Vec<Value>,
}

impl Golden {
    fn new(name: &str) -> Self {
        let dir = data(name);
        let samples = read_json(&dir.join("golden.json"))["samples"].as_array().unwrap().clone();
        Self { dir, samples }
    }

    fn all(&self, key: &str) -> Vec<f32> {
        self.samples.iter().map(|sample| sample[key].as_f64().unwrap() as f32).collect()
    }

    fn token_ids(&self) -> Vec<Vec<u32>> {
        let ids = |sample: &Value| serde_json::from_value(sample["token_ids"].clone()).unwrap();
        self.samples.iter().map(ids).collect()
    }

    fn texts(&self) -> Vec<Input> {
        let text = |sample: &Value, key: &str| sample[key].as_str().unwrap().to_owned();
        let input = |sample: &Value| Input::Text {
            prompt: text(sample, "prompt"),
            response: text(sample, "response"),
        };
        self.samples.iter().map(input).collect()
    }
}

fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    assert_eq!(ours.len(), expected.len());
    for (ours, expected) in ours.iter().zip(expected) {
        assert!(
            (ours - expected).abs() <= REWARD_ATOL * expected.abs().max(1.0),
            "{what}: {ours}, not {expected}"
        );
    }
}

// ---- trainers ----

#[test]
fn models_of_trainers_score_texts_as_they_were_trained() {
    for (name, pooling, note) in [
        ("trl-conversations", "last_non_pad", "trained by TRL with pad_token_id 4 (<|eot_id|>)"),
        ("trl-strings", "last_non_pad", "text_end eos"),
        ("trl-full", "last_non_pad", "text_end eos"),
        ("openrlhf", "last_token", "text_end openrlhf"),
    ] {
        let golden = Golden::new(&format!("trained/{name}"));
        let mut model = load(&over(&golden.dir.join("model"), &golden.dir.join("base")));
        let tokenize = |input: &Input| model.variant.tokenizer.tokenize(input, Truncation::Reject).unwrap();
        let tokens: Vec<_> = golden.texts().iter().map(|input| tokenize(input).token_ids).collect();
        assert_eq!(tokens, golden.token_ids(), "{name}");
        let ours = rewards(&mut model, golden.texts());
        assert_close(&ours, &golden.all("reward"), name);
        // the files alone give others, so that the comparison can fail
        for (ours, otherwise) in ours.iter().zip(golden.all("otherwise")) {
            assert!((ours - otherwise).abs() > 1e-3, "{name}: {ours} {otherwise}");
        }
        let info = &model.variant.info;
        assert_eq!(info.pooling.name(), pooling, "{name}");
        assert!(info.notes.iter().any(|found| found.contains(note)), "{name}: {:?}", info.notes);
    }
}

#[test]
fn the_manifest_says_how_texts_end() {
    let golden = Golden::new("trained/openrlhf");
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&golden.dir.join("model"), folder.path());
    let config = over(folder.path(), Path::new(""));
    std::fs::write(folder.path().join("rewarm.json"), r#"{"text_end": "as_is"}"#).unwrap();
    let mut as_it_is = load(&config);
    assert_close(&rewards(&mut as_it_is, golden.texts()), &golden.all("otherwise"), "as_is");
    assert_eq!(as_it_is.variant.info.notes, Vec::<String>::new());
    let fingerprint = as_it_is.variant.info.fingerprint;
    std::fs::remove_file(folder.path().join("rewarm.json")).unwrap();
    assert_ne!(load(&config).variant.info.fingerprint, fingerprint);

    std::fs::write(folder.path().join("rewarm.json"), r#"{"text_end": "eof"}"#).unwrap();
    let error = refusal(&config);
    assert!(error.contains("rewarm.json") && error.contains("`eof`"), "{error}");
    std::fs::write(folder.path().join("rewarm.json"), r#"{"text_end": "eos"}"#).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let error = refusal(&config);
    assert!(error.contains("`eos_token`") && error.contains("`text_end`"), "{error}");
}

/// What TRL leaves is taken away: nothing tells whether its pad token was the eos.
#[test]
fn an_adapter_whose_pad_token_is_in_doubt_is_refused_until_the_manifest_decides() {
    let golden = Golden::new("trained/trl-conversations");
    let (folder, base) = (tempfile::tempdir().unwrap(), golden.dir.join("base"));
    copy_folder(&golden.dir.join("model"), folder.path());
    for name in ["README.md", "training_args.bin"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let config = over(folder.path(), &base);
    let error = refusal(&config);
    for part in
        ["<|eot_id|> (id 4)", "no pad_token_id", "rewarm.json", "{\"pad_token_id\": 4}", "\"last_token\""]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    let with = |manifest: &str| {
        std::fs::write(folder.path().join("rewarm.json"), manifest).unwrap();
        load(&config)
    };
    for (manifest, expected) in [
        (r#"{"pad_token_id": 4}"#, "reward"),
        (r#"{"pooling": "last_token"}"#, "otherwise"),
        (r#"{"pooling": "last_non_pad", "pad_token_id": 4}"#, "reward"),
    ] {
        let ours = rewards(&mut with(manifest), golden.texts());
        assert_close(&ours, &golden.all(expected), manifest);
    }
    std::fs::write(folder.path().join("rewarm.json"), r#"{"pad_token_id": 300}"#).unwrap();
    let error = refusal(&config);
    assert!(error.contains("pad_token_id 300") && error.contains("300 entries"), "{error}");
    let fingerprints = [r#"{"pad_token_id": 4}"#, r#"{"pad_token_id": 3}"#]
        .map(|manifest| with(manifest).variant.info.fingerprint);
    assert_ne!(fingerprints[0], fingerprints[1]);

    // without a tokenizer of its own nothing contradicts the base: as peft reads it
    std::fs::remove_file(folder.path().join("rewarm.json")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert_close(&rewards(&mut load(&config), golden.texts()), &golden.all("otherwise"), "as peft");

    // the model card alone: TRL takes the eos of the base's tokenizer, which has no pad token
    std::fs::copy(golden.dir.join("model/README.md"), folder.path().join("README.md")).unwrap();
    assert_close(&rewards(&mut load(&config), golden.texts()), &golden.all("reward"), "by the card");

    // its own config is the one that it was trained with
    let mut own = read_json(&base.join("config.json"));
    own["pad_token_id"] = json!(4);
    std::fs::remove_file(folder.path().join("README.md")).unwrap();
    std::fs::write(folder.path().join("config.json"), own.to_string()).unwrap();
    assert_close(&rewards(&mut load(&config), golden.texts()), &golden.all("reward"), "own config");
}

#[test]
fn a_version_of_trl_that_cannot_be_told_makes_the_end_of_joined_texts_a_question() {
    let golden = Golden::new("trained/trl-strings");
    let (folder, base) = (tempfile::tempdir().unwrap(), golden.dir.join("base"));
    copy_folder(&golden.dir.join("model"), folder.path());
    std::fs::remove_file(folder.path().join("training_args.bin")).unwrap();
    let config = over(folder.path(), &base);
    let manifest = |fields: &str| {
        let text = format!("{{\"text_rule\": \"concatenation\"{fields}}}");
        std::fs::write(folder.path().join("rewarm.json"), text).unwrap();
    };
    manifest("");
    let error = refusal(&config);
    assert!(error.contains("0.24") && error.contains("{\"text_end\": \"eos\"}"), "{error}");
    for (fields, expected) in
        [(", \"text_end\": \"eos\"", "reward"), (", \"text_end\": \"as_is\"", "otherwise")]
    {
        manifest(fields);
        assert_close(&rewards(&mut load(&config), golden.texts()), &golden.all(expected), fields);
    }
}

#[test]
fn a_merge_keeps_what_only_the_trainers_files_tell() {
    for name in ["trl-conversations", "trl-strings", "trl-full", "openrlhf"] {
        let golden = Golden::new(&format!("trained/{name}"));
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("merged");
        let (model, base) = (golden.dir.join("model"), golden.dir.join("base"));
        let mut args = vec!["merge", model.to_str().unwrap(), model.to_str().unwrap()];
        args.extend(["--dtype", "f32", "--output", output.to_str().unwrap()]);
        if base.is_dir() {
            args.extend(["--base", base.to_str().unwrap()]);
        }
        let merged = run(&args);
        assert!(merged.status.success(), "{name}: {}", text(&merged.stderr));
        let ours = rewards(&mut load(&over(&output, Path::new(""))), golden.texts());
        assert_close(&ours, &golden.all("reward"), name);
    }
}

// ---- adapters ----

#[test]
fn adapters_score_as_peft_had_them_in_memory() {
    let base = data("lora/llama/base");
    for (name, note) in [
        ("patterns", None),
        ("value-head", None),
        ("grown", Some("302 tokens, its base's config.json says vocab_size 300")),
        ("saved", Some("302 tokens")),
        ("low-rank", Some("302 tokens")),
    ] {
        let golden = Golden::new(&format!("adapters/{name}"));
        let mut model = load(&over(&golden.dir, &base));
        let inputs = golden.token_ids().into_iter().map(Input::TokenIds).collect();
        assert_close(&rewards(&mut model, inputs), &golden.all("reward"), name);
        let notes = &model.variant.info.notes;
        assert!(notes.len() == usize::from(note.is_some()), "{name}: {notes:?}");
        assert!(note.is_none_or(|note| notes[0].contains(note)), "{name}: {notes:?}");

        // and again from the files of a merge, which needs no base any more
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("merged");
        let dir = golden.dir.to_str().unwrap();
        let merged = run(&[
            "merge",
            dir,
            dir,
            "--base",
            base.to_str().unwrap(),
            "--dtype",
            "f32",
            "--output",
            output.to_str().unwrap(),
        ]);
        assert!(merged.status.success(), "{name}: {}", text(&merged.stderr));
        let inputs = golden.token_ids().into_iter().map(Input::TokenIds).collect();
        let ours = rewards(&mut load(&over(&output, Path::new(""))), inputs);
        assert_close(&ours, &golden.all("reward"), &format!("{name}, merged"));
    }
}

/// The tokens that the vocabulary grew by are in the adapter's own tokenizer.
#[test]
fn tokens_that_an_adapter_brings_are_tokens_of_its_texts() {
    let golden = Golden::new("adapters/grown");
    let model = load(&over(&golden.dir, &data("lora/llama/base")));
    let text = Input::Formatted("<one><two>".to_owned());
    let tokenized = model.variant.tokenizer.tokenize(&text, Truncation::Reject).unwrap();
    assert_eq!(tokenized.token_ids, [300, 301]);
}

/// Written by torch: `tests/reference/pickles.py`.
#[test]
fn pickled_parts_of_an_adapter_are_read() {
    let golden = Golden::new("adapters/value-head");
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&golden.dir, folder.path());
    let base = data("lora/llama/base");
    let expected = load(&over(&golden.dir, &base)).variant.info.fingerprint;
    for name in ["value_head", "adapter_model"] {
        let pickled = format!("{name}.bin");
        std::fs::copy(data("pickles").join(&pickled), folder.path().join(&pickled)).unwrap();
        std::fs::remove_file(folder.path().join(format!("{name}.safetensors"))).unwrap();
        assert_eq!(load(&over(folder.path(), &base)).variant.info.fingerprint, expected, "{name}");
    }
    std::fs::remove_file(folder.path().join("adapter_model.bin")).unwrap();
    let error = refusal(&over(folder.path(), &base));
    assert!(error.contains("adapter_model.safetensors") && error.contains("save_pretrained"), "{error}");
}

/// What is said of an adapter by its own manifest is not all that is said: its base's holds too.
#[test]
fn a_manifest_of_an_adapter_adds_to_its_bases() {
    let golden = Golden::new("adapters/value-head");
    let folder = tempfile::tempdir().unwrap();
    let (adapter, base) = (folder.path().join("adapter"), folder.path().join("base"));
    copy_folder(&golden.dir, &adapter);
    copy_folder(&data("lora/llama/base"), &base);
    let manifest = |dir: &Path, text: &str| std::fs::write(dir.join("rewarm.json"), text).unwrap();
    manifest(&base, r#"{"pooling": "mean", "max_tokens": 20, "calibration": {"mean": 1.0, "std": 2.0}}"#);
    manifest(&adapter, r#"{"max_tokens": 10}"#);
    let config = VariantConfig { mode: Mode::Ens, ..over(&adapter, &base) };
    let info = load(&config).variant.info;
    assert_eq!((info.pooling.name(), info.max_tokens, info.members[0].calibration), ("mean", 10, None));
}

#[test]
fn score_says_what_it_is_told_of_adapters() {
    let golden = Golden::new("adapters/value-head");
    let (model, base) = (golden.dir.to_str().unwrap().to_owned(), data("lora/llama/base"));
    let line = json!({"token_ids": golden.samples[0]["token_ids"]}).to_string();
    let scored = score(&["--model", &model, "--base", base.to_str().unwrap()], &line);
    assert!(scored.status.success(), "{}", text(&scored.stderr));
    let reward: Value = serde_json::from_str(text(&scored.stdout).trim()).unwrap();
    let expected = golden.all("reward")[0];
    assert!((reward["reward"].as_f64().unwrap() as f32 - expected).abs() < REWARD_ATOL * 4.0, "{reward}");
}

#[test]
fn evaluate_and_calibrate_take_adapters_over_a_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second, base) = (path("first"), path("second"), data("lora/llama/base"));
    copy_folder(&data("lora/llama/adapter-0"), Path::new(&first));
    copy_folder(&data("lora/llama/adapter-1"), Path::new(&second));
    let base = base.to_str().unwrap();
    let pair =
        |i: usize| json!({"prompt": format!("{i}?"), "chosen": format!("a{i}"), "rejected": format!("{i}b")});
    let pairs: Vec<Value> = (0..60).map(pair).collect();
    let lines: Vec<String> = pairs.iter().map(ToString::to_string).collect();
    std::fs::write(path("pairs.jsonl"), lines.join("\n")).unwrap();

    let refused = run(&["calibrate", &first, "--references", &path("pairs.jsonl")]);
    assert!(text(&refused.stderr).contains("--base"), "{}", text(&refused.stderr));
    let calibrated =
        run(&["calibrate", &first, &second, "--base", base, "--references", &path("pairs.jsonl")]);
    assert!(calibrated.status.success(), "{}", text(&calibrated.stderr));
    for adapter in [&first, &second] {
        let input = |pair: &Value, response: &str| Input::Text {
            prompt: pair["prompt"].as_str().unwrap().to_owned(),
            response: pair[response].as_str().unwrap().to_owned(),
        };
        let inputs: Vec<Input> =
            pairs.iter().flat_map(|pair| [input(pair, "chosen"), input(pair, "rejected")]).collect();
        let scored = rewards(&mut load(&over(Path::new(adapter), Path::new(base))), inputs);
        let mean = scored.iter().sum::<f32>() / scored.len() as f32;
        let written =
            read_json(&Path::new(adapter).join("rewarm.json"))["calibration"]["mean"].as_f64().unwrap();
        assert!((written - f64::from(mean)).abs() < 1e-4, "{adapter}: {written} {mean}");
        assert!(Path::new(adapter).join("rewarm.golden.json").is_file());
    }

    let members = format!("{first},{second}");
    let report = path("report");
    let evaluate = || {
        run(&[
            "evaluate",
            "--members",
            &members,
            "--base",
            base,
            "--pairs",
            &path("pairs.jsonl"),
            "--output",
            &report,
            "--best-of-n",
            &path("candidates.jsonl"),
            "--gold",
            &second,
        ])
    };
    let evaluated = evaluate();
    assert!(text(&evaluated.stderr).contains("candidates.jsonl"), "{}", text(&evaluated.stderr));
    let candidates = json!({"prompt": "1?", "responses": ["a", "b", "c"]}).to_string();
    std::fs::write(path("candidates.jsonl"), candidates).unwrap();
    let evaluated = evaluate();
    assert!(evaluated.status.success(), "{}", text(&evaluated.stderr));
    let evaluation = read_json(&Path::new(&report).join("evaluation.json"));
    let names: Vec<&str> = evaluation["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["first", "second", "WARM", "ENS"]);

    for command in ["evaluate", "calibrate"] {
        let whole = data("lora/llama/base");
        let whole = whole.to_str().unwrap();
        let pairs = path("pairs.jsonl");
        let args = match command {
            "evaluate" => ["evaluate", "--members", whole, "--pairs", &pairs, "--output", &report],
            _ => ["calibrate", whole, "--references", &pairs, "--golden", "1", "--dry-run"],
        };
        let refused = run(&[&args[..], &["--base", base]].concat());
        assert!(text(&refused.stderr).contains("none of the members is one"), "{}", text(&refused.stderr));
    }
}
