//! Checkpoints with five labels, of which the manifest makes one reward: held to the logits of transformers
//! (`tests/reference/labels.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use program::root;
use program::text;
use rewarm::model::dtype::Dtype;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::ops::batch::Sequence;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

/// As everywhere, relative to max(1, |reward|).
const F32_TOLERANCE: f64 = 1e-5;
/// A row of weights in bf16 is within 2^-8 of itself; the head is in f32.
const BF16_TOLERANCE: f64 = 3e-2;

const NAMES: [&str; 5] = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"];

fn data(name: &str) -> PathBuf {
    root().join("tests/data/labels").join(name)
}

/// The model with this manifest.
fn with_manifest(name: &str, manifest: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(dir.path().join("rewarm.json"), manifest.to_string()).unwrap();
    dir
}

fn load(dir: &Path, dtype: Dtype) -> Result<Variant, String> {
    let config = VariantConfig { dtype, ..VariantConfig::new("v", Mode::Warm, vec![dir.to_owned()]) };
    Loader::default()
        .load(&config, &mut |_, _| ())
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// Each sample's five logits.
fn golden(name: &str) -> Vec<(Vec<u32>, Vec<f64>)> {
    let golden: Value = serde_json::from_slice(&fs::read(data(name).join("golden.json")).unwrap()).unwrap();
    let sample = |sample: &Value| {
        let of = |key: &str| sample[key].clone();
        (serde_json::from_value(of("token_ids")).unwrap(), serde_json::from_value(of("logits")).unwrap())
    };
    golden["samples"].as_array().unwrap().iter().map(sample).collect()
}

fn rewards(variant: &Variant, samples: &[(Vec<u32>, Vec<f64>)]) -> Vec<f64> {
    let sequence = |ids: &Vec<u32>| Sequence { token_ids: ids.clone(), type_ids: vec![0; ids.len()] };
    let sequences: Vec<Sequence> = samples.iter().map(|(ids, _)| sequence(ids)).collect();
    let scored = variant.scorer.score(&sequences.iter().collect::<Vec<_>>(), false).unwrap();
    scored.into_iter().map(|score| f64::from(score.reward)).collect()
}

#[test]
fn the_reward_is_the_label_or_the_sum_that_the_manifest_chooses() {
    let mut choices: Vec<(Value, [f64; 5])> = Vec::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let mut one = [0.0; 5];
        one[index] = 1.0;
        choices.push((json!({"label": index}), one));
        choices.push((json!({"label": name}), one));
        choices.push((json!({"label_weights": one}), one));
    }
    let weights = [0.65, 0.0, -0.25, 1.5, -0.1];
    choices.push((json!({"label_weights": weights}), weights));
    let by_name = json!({"complexity": 1.5, "helpfulness": 0.65, "4": -0.1, "coherence": -0.25});
    choices.push((json!({"label_weights": by_name}), weights));
    for name in ["llama", "bert"] {
        let samples = golden(name);
        for (manifest, weights) in &choices {
            for (dtype, tolerance) in [(Dtype::F32, F32_TOLERANCE), (Dtype::Bf16, BF16_TOLERANCE)] {
                let dir = with_manifest(name, manifest);
                let variant = load(dir.path(), dtype).unwrap();
                let rewards = rewards(&variant, &samples);
                for (reward, (_, logits)) in rewards.iter().zip(&samples) {
                    let expected: f64 =
                        weights.iter().zip(logits).map(|(weight, logit)| weight * logit).sum();
                    assert!(
                        (reward - expected).abs() <= tolerance * expected.abs().max(1.0),
                        "{name} {manifest} {dtype:?}: {reward}, not {expected}"
                    );
                }
                let [note] = variant.info.notes.as_slice() else { panic!("{:?}", variant.info.notes) };
                assert!(note.starts_with("the reward is "), "{note}");
            }
        }
    }
}

#[test]
fn what_is_chosen_is_told_and_part_of_the_fingerprint() {
    let info = |manifest: Value| load(with_manifest("llama", &manifest).path(), Dtype::F32).unwrap().info;
    let (first, by_name, second) =
        (info(json!({"label": 0})), info(json!({"label": "helpfulness"})), info(json!({"label": 1})));
    let sum = info(json!({"label_weights": [1, 0.5, 0, 0, 0]}));
    assert_eq!(first.fingerprint, by_name.fingerprint);
    assert!(first.fingerprint != second.fingerprint && second.fingerprint != sum.fingerprint);
    assert_eq!(first.notes, ["the reward is label \"helpfulness\" of 5"]);
    assert_eq!(sum.notes, ["the reward is a sum of labels: 1 · \"helpfulness\" + 0.5 · \"correctness\""]);
}

#[test]
fn several_labels_without_a_choice_and_choices_that_are_none_are_refused() {
    for (manifest, problem) in [
        (
            json!({}),
            "the model has 5 labels (helpfulness, correctness, coherence, complexity, verbosity), a reward is one number",
        ),
        (json!({}), "{\"label\": \"helpfulness\"}"),
        (json!({"label": 5}), "names label 5, the model has 5 (helpfulness,"),
        (json!({"label": "harmless"}), "names label \"harmless\", the model has 5"),
        (json!({"label": -1}), "the name or the index of a label"),
        (json!({"label": 0, "label_weights": [1, 0, 0, 0, 0]}), "give one of them"),
        (json!({"label_weights": [1, 2]}), "has 2 numbers, the model 5 labels"),
        (json!({"label_weights": {"harmless": 1}}), "names label \"harmless\""),
        (json!({"label_weights": [0, 0, 0, 0, 0]}), "finite numbers, not all 0"),
        (json!({"label_weights": "all"}), "a number for each label"),
    ] {
        let error = load(with_manifest("llama", &manifest).path(), Dtype::F32).err().unwrap();
        assert!(error.contains(problem), "{manifest}: {error}");
    }
    // config and head tell of different numbers; or the config of none
    let dir = with_manifest("llama", &json!({"label": 1}));
    let config = dir.path().join("config.json");
    let change = |labels: Value| {
        let mut fields: Value =
            serde_json::from_slice(&fs::read(data("llama").join("config.json")).unwrap()).unwrap();
        fields["id2label"] = labels;
        fs::write(&config, fields.to_string()).unwrap();
    };
    change(json!({"0": "a", "1": "b"}));
    assert!(load(dir.path(), Dtype::F32).err().unwrap().contains("`score` has 5 labels, config.json"));
    change(Value::Null);
    let samples = golden("llama");
    let second = rewards(&load(dir.path(), Dtype::F32).unwrap(), &samples);
    assert!((second[0] - samples[0].1[1]).abs() <= F32_TOLERANCE * 2.0);
    fs::remove_file(dir.path().join("rewarm.json")).unwrap();
    assert!(
        load(dir.path(), Dtype::F32).err().unwrap().contains("`score` has 5 labels, a reward is one number")
    );

    // of a model with one label there is nothing to choose, but the choice of it
    let one = root().join("tests/data/models/llama");
    let plain = load(&one, Dtype::F32).unwrap().info;
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(one.join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("rewarm.json"), r#"{"label": 0}"#).unwrap();
    assert_eq!(load(dir.path(), Dtype::F32).unwrap().info.fingerprint, plain.fingerprint);
    fs::write(dir.path().join("rewarm.json"), r#"{"label": 1}"#).unwrap();
    assert!(load(dir.path(), Dtype::F32).err().unwrap().contains("names label 1, the model has 1"));
}

#[test]
fn merges_keep_all_labels_and_the_choice_and_a_training_wants_one() {
    let chosen = json!({"label_weights": {"helpfulness": 1.0, "verbosity": -0.5}});
    let [first, second] = [(); 2].map(|()| with_manifest("llama", &chosen));
    let other = with_manifest("llama", &json!({"label": "helpfulness"}));
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let dir = |dir: &TempDir| dir.path().display().to_string();

    let output = program::run(&["merge", &dir(&first), &dir(&second), "--output", &out("merged")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let samples = golden("llama");
    let rewards_of = |dir: &str| rewards(&load(Path::new(dir), Dtype::F32).unwrap(), &samples);
    assert_eq!(rewards_of(&out("merged")), rewards_of(&dir(&first)));
    let config: Value =
        serde_json::from_slice(&fs::read(Path::new(&out("merged")).join("config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"].as_object().unwrap().len(), 5);

    let output = program::run(&["merge", &dir(&first), &dir(&other), "--output", &out("none")]);
    assert!(text(&output.stderr).contains("labels"), "{}", text(&output.stderr));

    let pair = |index: usize| json!({"prompt": format!("a {index}"), "chosen": "b c", "rejected": "c d"});
    let pairs: Vec<String> = (0..60).map(|index| pair(index).to_string()).collect();
    fs::write(
        out("pairs.jsonl"),
        pairs.join(
            "
",
        ),
    )
    .unwrap();
    let output = program::run(&[
        "train",
        "--base",
        &dir(&first),
        "--pairs",
        &out("pairs.jsonl"),
        "--validation-fraction",
        "0",
        "--output",
        &out("family"),
        "--check",
    ]);
    assert!(text(&output.stderr).contains("the base has several labels"), "{}", text(&output.stderr));

    // what calibrates keeps the choice
    let output =
        program::run(&["calibrate", &dir(&first), "--references", &out("pairs.jsonl"), "--golden", "0"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let manifest: Value =
        serde_json::from_slice(&fs::read(first.path().join("rewarm.json")).unwrap()).unwrap();
    assert!(
        manifest["label_weights"] == chosen["label_weights"] && manifest["calibration"]["mean"].is_number()
    );
}
