//! What a checkpoint directory may do wrong, and the error that names it, before anything is served.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
mod checkpoints;

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use checkpoints::TinyCheckpoint;
use checkpoints::VOCAB;
use rewarm::bench::shape::Family;
use rewarm::bench::shape::Sizes;
use rewarm::checkpoint::Checkpoint;
use rewarm::model::dtype::Dtype;
use rewarm::model::scorer::Calibration;
use rewarm::model::scorer::Reduction;
use rewarm::model::trial::Subject;
use rewarm::model::trial::Tried;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::text::Input;
use rewarm::text::SampleTokenizer;
use rewarm::text::TextError;
use rewarm::text::TextOptions;
use rewarm::text::Truncation;
use serde_json::json;

fn config(mode: Mode, members: Vec<PathBuf>) -> VariantConfig {
    VariantConfig::new("tiny", mode, members)
}

/// The whole error chain, as a user reads it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn load(config: &VariantConfig) -> Result<Variant, String> {
    Loader::default().load(config, &mut |_, _| ()).map_err(|error| chain(&error))
}

fn check(config: &VariantConfig) -> Result<(), String> {
    Loader::default().check(config).map(|_| ()).map_err(|error| chain(&error))
}

/// One way to spoil a checkpoint.
struct Case {
    name: &'static str,
    spoil: fn(&mut TinyCheckpoint),
    then: fn(&Path),
    /// Parts of the error.
    says: &'static [&'static str],
    /// Whether it is found without reading weights.
    by_check: bool,
}

const NOTHING: fn(&mut TinyCheckpoint) = |_| ();
const NOTHING_MORE: fn(&Path) = |_| ();

fn rewrite(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_spoiled_checkpoint_is_refused_by_name() {
    let cases = [
        // transformers: "Padding_idx must be within num_embeddings"
        Case {
            name: "a padding token beyond the vocabulary",
            spoil: |c| c.config["pad_token_id"] = json!(64),
            then: NOTHING_MORE,
            says: &["config.json says pad_token_id 64, the vocabulary has 64 entries", "rewarm.json"],
            by_check: true,
        },
        Case {
            name: "no config",
            spoil: NOTHING,
            then: |dir| std::fs::remove_file(dir.join("config.json")).unwrap(),
            says: &["config.json"],
            by_check: true,
        },
        Case {
            name: "config is not JSON",
            spoil: NOTHING,
            then: |dir| std::fs::write(dir.join("config.json"), "{").unwrap(),
            says: &["config.json", "EOF"],
            by_check: true,
        },
        Case {
            name: "unknown family",
            spoil: |c| c.config["model_type"] = json!("xlnet"),
            then: NOTHING_MORE,
            says: &["`xlnet`", "llama, mistral, ministral, ministral3, qwen2"],
            by_check: true,
        },
        Case {
            name: "bidirectional by another key",
            spoil: |c| c.config["is_causal"] = json!(false),
            then: NOTHING_MORE,
            says: &["`is_causal` is false", "bidirectional"],
            by_check: true,
        },
        Case {
            name: "configs by layer",
            spoil: |c| c.config["per_layer_config"] = json!({"0": {}}),
            then: NOTHING_MORE,
            says: &["`per_layer_config`"],
            by_check: true,
        },
        Case {
            name: "another task",
            spoil: |c| c.config["architectures"] = json!(["LlamaForTokenClassification"]),
            then: NOTHING_MORE,
            says: &["`LlamaForTokenClassification`", "LlamaForSequenceClassification"],
            by_check: true,
        },
        Case {
            name: "quantized",
            spoil: |c| c.config["quantization_config"] = json!({"bits": 4}),
            then: NOTHING_MORE,
            says: &["`quant_method` is missing", "`quantization_config`"],
            by_check: true,
        },
        Case {
            name: "unknown rope",
            spoil: |c| c.config["rope_scaling"] = json!({"rope_type": "proportional", "factor": 2.0}),
            then: NOTHING_MORE,
            says: &["`proportional`", "yarn"],
            by_check: true,
        },
        Case {
            name: "partial rotary",
            // without a scaling, transformers ignores it, and so do we
            spoil: |c| {
                c.config["partial_rotary_factor"] = json!(0.5);
                c.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
            },
            then: NOTHING_MORE,
            says: &["`partial_rotary_factor` is 0.5"],
            by_check: true,
        },
        Case {
            name: "unknown activation",
            spoil: |c| c.config["hidden_act"] = json!("mish"),
            then: NOTHING_MORE,
            says: &["`hidden_act` is `mish`"],
            by_check: true,
        },
        Case {
            name: "zero heads",
            spoil: |c| c.config["num_attention_heads"] = json!(0),
            then: NOTHING_MORE,
            says: &["`num_attention_heads` is 0"],
            by_check: true,
        },
        Case {
            name: "a number that is text",
            spoil: |c| c.config["hidden_size"] = json!("many"),
            then: NOTHING_MORE,
            says: &["`hidden_size` is \"many\""],
            by_check: true,
        },
        Case {
            name: "the config lies about a shape",
            spoil: |c| c.config["intermediate_size"] = json!(48),
            then: NOTHING_MORE,
            says: &["model.layers.0.mlp.gate_proj.weight", "[32, 16]", "[48, 16]"],
            by_check: true,
        },
        Case {
            name: "the config lies about the layers, above",
            spoil: |c| c.config["num_hidden_layers"] = json!(3),
            then: NOTHING_MORE,
            says: &["`model.layers.2.", "is missing"],
            by_check: true,
        },
        Case {
            name: "the config lies about the layers, below",
            spoil: |c| c.config["num_hidden_layers"] = json!(1),
            then: NOTHING_MORE,
            says: &["9 tensors", "model.layers.1."],
            by_check: true,
        },
        Case {
            name: "a bias that the config does not know of",
            spoil: |c| {
                c.tensors
                    .insert("model.layers.0.self_attn.q_proj.bias".to_owned(), (vec![16], vec![0.1; 16]));
            },
            then: NOTHING_MORE,
            says: &["1 tensors", "model.layers.0.self_attn.q_proj.bias"],
            by_check: true,
        },
        Case {
            name: "no head",
            spoil: |c| {
                c.tensors.remove("score.weight");
            },
            then: NOTHING_MORE,
            says: &["no reward head", "score.weight", "v_head.summary.weight"],
            by_check: true,
        },
        Case {
            name: "two labels",
            spoil: |c| {
                c.tensors.insert("score.weight".to_owned(), (vec![2, 16], vec![0.1; 32]));
            },
            then: NOTHING_MORE,
            says: &["`score` has 2 labels", "a reward is one number"],
            by_check: true,
        },
        Case {
            name: "two heads",
            spoil: |c| {
                c.tensors.insert("v_head.weight".to_owned(), (vec![1, 16], vec![0.1; 16]));
            },
            then: NOTHING_MORE,
            says: &["several heads", "score.weight", "v_head.weight"],
            by_check: true,
        },
        Case {
            name: "truncated weights",
            spoil: NOTHING,
            then: |dir| rewrite(dir.join("model.safetensors"), |bytes| bytes.truncate(bytes.len() - 100)),
            says: &["model.safetensors", "truncated"],
            by_check: true,
        },
        Case {
            name: "weights cut within the header",
            spoil: NOTHING,
            then: |dir| rewrite(dir.join("model.safetensors"), |bytes| bytes.truncate(40)),
            says: &["model.safetensors"],
            by_check: true,
        },
        Case {
            name: "empty weights",
            spoil: NOTHING,
            then: |dir| std::fs::write(dir.join("model.safetensors"), "").unwrap(),
            says: &["model.safetensors"],
            by_check: true,
        },
        Case {
            name: "weights that are not safetensors",
            spoil: NOTHING,
            then: |dir| std::fs::write(dir.join("model.safetensors"), [0xFF; 4096]).unwrap(),
            says: &["model.safetensors"],
            by_check: true,
        },
        Case {
            name: "safetensors with another name",
            spoil: NOTHING,
            then: |dir| {
                std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
            },
            says: &["pytorch_model.bin", "is no file of PyTorch"],
            by_check: true,
        },
        Case {
            name: "a LoRA adapter",
            spoil: NOTHING,
            then: |dir| std::fs::write(dir.join("adapter_config.json"), "{}").unwrap(),
            says: &["LoRA adapter", "--base"],
            by_check: true,
        },
        Case {
            name: "NaN weights",
            spoil: |c| c.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().1[7] = f32::NAN,
            then: NOTHING_MORE,
            says: &["model.layers.1.mlp.up_proj.weight", "not finite", "NaN"],
            by_check: false,
        },
        Case {
            name: "no tokenizer",
            spoil: NOTHING,
            then: |dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap(),
            says: &["tokenizer.json"],
            by_check: true,
        },
        Case {
            name: "an unknown key in the manifest",
            spoil: NOTHING,
            then: |dir| std::fs::write(dir.join("rewarm.json"), r#"{"poling": "cls"}"#).unwrap(),
            says: &["rewarm.json", "poling"],
            by_check: true,
        },
        Case {
            name: "a calibration that divides by zero",
            spoil: NOTHING,
            then: |dir| {
                std::fs::write(dir.join("rewarm.json"), r#"{"calibration": {"mean": 0.0, "std": 0.0}}"#)
                    .unwrap();
            },
            says: &["rewarm.json", "std 0"],
            by_check: true,
        },
        Case {
            name: "first_eos without an eos",
            spoil: |c| c.config["eos_token_id"] = json!(null),
            then: |dir| std::fs::write(dir.join("rewarm.json"), r#"{"pooling": "first_eos"}"#).unwrap(),
            says: &["first_eos", "eos_token_id"],
            by_check: true,
        },
    ];
    let mut failures = Vec::new();
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoint = TinyCheckpoint::llama(1);
        (case.spoil)(&mut checkpoint);
        checkpoint.write(dir.path());
        (case.then)(dir.path());
        let config = config(Mode::Warm, vec![dir.path().to_owned()]);
        let mut outcomes = vec![("load", load(&config).map(|_| ()))];
        if case.by_check {
            outcomes.push(("check", check(&config)));
        }
        for (how, outcome) in outcomes {
            match outcome {
                Ok(()) => failures.push(format!("{} by {how}: accepted", case.name)),
                Err(error) => {
                    let dir = dir.path().display().to_string();
                    failures.extend(
                        case.says
                            .iter()
                            .chain(&[dir.as_str()])
                            .filter(|part| !error.contains(**part))
                            .map(|part| format!("{} by {how}: `{part}` is not in: {error}", case.name)),
                    );
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Issue 19, B1: each number of each family's config, made absurd, ends no process and is refused or harmless.
#[test]
fn absurd_numbers_in_a_config_are_refused_before_anything_is_allocated() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let absurd = [
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(7),
        json!(1_u64 << 32),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(0.5),
        json!(1e308),
        json!(-1e308),
        json!(1e-320),
        json!("1"),
        json!([]),
        json!(null),
    ];
    let (mut mutants, mut refused, mut failures) = (0, 0, Vec::new());
    let mut families: Vec<PathBuf> =
        std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    families.sort();
    for family in families {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&family).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        if !dir.path().join("tokenizer.json").exists() {
            // the tokenizers of these are BPEs, whatever class the files name
            let name = family.file_name().unwrap().to_str().unwrap();
            let is_bpe = name == "qwen2" || name.starts_with("qwen3-5");
            let other = if is_bpe { "rules/qwen2" } else { "evaluate/member-0" };
            let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(other);
            std::fs::copy(other.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
            let text = std::fs::read(other.join("tokenizer_config.json")).unwrap();
            let mut settings: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&text).unwrap();
            settings.remove("model_input_names"); // not every family has token types
            let text = serde_json::to_vec(&settings).unwrap();
            std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
            let manifest = r#"{"text_rule": "concatenation", "text_end": "as_is"}"#;
            std::fs::write(dir.path().join("rewarm.json"), manifest).unwrap();
        }
        let original: serde_json::Value =
            serde_json::from_slice(&std::fs::read(family.join("config.json")).unwrap()).unwrap();
        let config = config(Mode::Warm, vec![dir.path().to_owned()]);
        assert_eq!(check(&config), Ok(()), "{}, as it is", family.display());
        for place in numbers(&original, "") {
            for value in &absurd {
                let mut changed = original.clone();
                *changed.pointer_mut(&place).unwrap() = value.clone();
                std::fs::write(dir.path().join("config.json"), changed.to_string()).unwrap();
                let started = std::time::Instant::now();
                let outcome = std::panic::catch_unwind(|| check(&config));
                mutants += 1;
                let case = format!("{}: {place} = {value}", family.display());
                match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.contains(&dir.path().display().to_string()) => refused += 1,
                    Ok(Err(error)) => failures.push(format!("{case}: no path in: {error}")),
                    Err(_) => failures.push(format!("{case}: panicked")),
                }
                if started.elapsed().as_secs() > 5 {
                    failures.push(format!("{case}: took {:?}", started.elapsed()));
                }
            }
        }
    }
    println!("{mutants} mutants, {refused} refused");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(mutants > 1000 && (mutants / 4..mutants).contains(&refused), "{mutants} {refused}");
}

/// JSON pointers to all numbers.
fn numbers(value: &serde_json::Value, place: &str) -> Vec<String> {
    match value {
        serde_json::Value::Number(_) => vec![place.to_owned()],
        serde_json::Value::Object(fields) => {
            fields.iter().flat_map(|(key, value)| numbers(value, &format!("{place}/{key}"))).collect()
        }
        _ => Vec::new(),
    }
}

/// Two members of one family, the second one changed.
fn pair(change: fn(&mut TinyCheckpoint)) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let start = TinyCheckpoint::llama(1);
    let mut second = start.perturbed(2, 0.01, "");
    change(&mut second);
    let paths = vec![dir.path().join("a"), dir.path().join("b")];
    start.write(&paths[0]);
    second.write(&paths[1]);
    (dir, paths)
}

/// Mapped into memory, the first would end the process with SIGBUS, and the second be served under the digest of
/// other weights.
#[test]
fn weights_that_change_while_they_are_read_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a");
    TinyCheckpoint::llama(1).write(&dir);
    let weights = dir.join("model.safetensors");

    let checkpoint = Checkpoint::open(&dir).unwrap();
    let last = checkpoint.names().max_by_key(|name| checkpoint.info(name).unwrap().data_offsets.0).unwrap();
    checkpoint.digest(last).unwrap();
    rewrite(weights.clone(), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let error = checkpoint.read(last).unwrap_err();
    assert!(chain(&error).contains("changed while it was read"), "{error}");

    let checkpoint = Checkpoint::open(&dir).unwrap();
    rewrite(weights, |bytes| bytes.truncate(bytes.len() - 1));
    let error = checkpoint.read(last).unwrap_err();
    assert!(chain(&error).contains("model.safetensors"), "{error}");
}

#[test]
fn progress_only_grows_and_ends_with_everything() {
    let (_dir, members) = pair(|member| *member = TinyCheckpoint::llama(9));
    for mode in [Mode::Warm, Mode::Ens] {
        let bytes = members.iter().map(|member| Checkpoint::open(member).unwrap().payload_bytes()).sum();
        let mut told = Vec::new();
        Loader::default()
            .load(&config(mode, members.clone()), &mut |read, all| told.push((read, all)))
            .unwrap();
        assert!(told.len() > 10 && told.is_sorted(), "{told:?}");
        assert!(told.iter().all(|(_, all)| *all == bytes), "{told:?}, not of {bytes}");
        assert_eq!(told.last(), Some(&(bytes, bytes)));
    }
}

#[test]
fn members_that_are_not_one_family_are_not_merged() {
    type Change = fn(&mut TinyCheckpoint);
    let cases: [(&str, Change, &[&str]); 7] = [
        (
            "rope",
            |c| c.config["rope_theta"] = json!(500.0),
            &["`rope_theta` is 10000.0 in the first and 500.0 in the second (config.json)"],
        ),
        ("norm", |c| c.config["rms_norm_eps"] = json!(1e-3), &["`rms_norm_eps` is "]),
        ("pad id", |c| c.config["pad_token_id"] = json!(2), &["`pad_token_id` is 0", "2"]),
        (
            "family",
            |c| {
                c.config["model_type"] = json!("mistral");
                c.config["architectures"] = json!(["MistralForSequenceClassification"]);
            },
            &["`architectures` is [\"LlamaForSequenceClassification\"]"],
        ),
        (
            "head",
            |c| {
                let head = c.tensors.remove("score.weight").unwrap();
                c.tensors.insert("v_head.weight".to_owned(), head);
            },
            &["`score.weight` is missing in the second"],
        ),
        (
            "shape",
            |c| {
                c.config["intermediate_size"] = json!(48);
                for layer in 0..2 {
                    for (name, shape) in
                        [("gate", vec![48, 16]), ("up", vec![48, 16]), ("down", vec![16, 48])]
                    {
                        let name = format!("model.layers.{layer}.mlp.{name}_proj.weight");
                        c.tensors.insert(name, (shape, vec![0.1; 48 * 16]));
                    }
                }
            },
            &["`intermediate_size` is 32", "48"],
        ),
        (
            "tokenizer",
            |c| {
                c.tokenizer["model"]["vocab"]["w0"] = json!(6);
                c.tokenizer["model"]["vocab"]["w1"] = json!(5);
            },
            &["tokenizers differ"],
        ),
    ];
    for (name, change, says) in cases {
        let (_dir, paths) = pair(change);
        let error = check(&config(Mode::Warm, paths)).expect_err(name);
        assert!(error.contains("cannot be merged"), "{name}: {error}");
        assert!(says.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
}

/// Embeddings are padded to different sizes, and an encoder has token types: what is shared is the text alone.
#[test]
fn models_with_one_tokenizer_keep_their_own_limits() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = Sizes {
        family: Family::Llama,
        vocab: VOCAB,
        hidden: 16,
        intermediate: 32,
        layers: 1,
        heads: 4,
        kv_heads: 4,
        max_tokens: 512,
    };
    let shapes = [
        ("narrow", sizes),
        ("wide", Sizes { vocab: VOCAB + 8, ..sizes }),
        ("bert", Sizes { family: Family::Bert, ..sizes }),
    ];
    let paths = shapes.map(|(name, sizes)| {
        let (path, mut checkpoint) = (dir.path().join(name), TinyCheckpoint::of(sizes, 1));
        let settings = checkpoint.tokenizer_config.as_object_mut().unwrap();
        settings.remove("chat_template");
        settings.insert("model_input_names".to_owned(), json!(["input_ids", "token_type_ids"]));
        checkpoint.write(&path);
        std::fs::write(path.join("rewarm.json"), r#"{"text_rule": "sentence_pair", "max_tokens": 100}"#)
            .unwrap();
        path
    });
    let [narrow, wide, bert] = paths;
    let beyond = Input::TokenIds(vec![VOCAB as u32 + 3]);
    let pair = Input::Text { prompt: "w1 w2".to_owned(), response: "w3".to_owned() };
    let tokenize = |variant: &Variant, input: &Input| variant.tokenizer.tokenize(input, Truncation::Reject);
    let orders = [[&narrow, &wide, &bert], [&bert, &wide, &narrow], [&wide, &bert, &narrow]];
    for order in orders {
        let mut loader = Loader::default();
        for path in order {
            let variant = loader.load(&config(Mode::Warm, vec![path.clone()]), &mut |_, _| ()).unwrap();
            assert_eq!(tokenize(&variant, &beyond).is_ok(), path == &wide, "{}", path.display());
            let types = tokenize(&variant, &pair).unwrap().type_ids;
            let is_encoder = path == &bert;
            assert_eq!(types.contains(&1), is_encoder, "{}: {types:?}", path.display());
        }
    }
    for members in [[&narrow, &wide], [&wide, &narrow]] {
        let variant = load(&config(Mode::Ens, members.map(Clone::clone).to_vec())).unwrap();
        let error = tokenize(&variant, &beyond).unwrap_err().to_string();
        assert!(error.contains("64"), "{error}: a member has no row for it");
    }
    for members in [[&narrow, &bert], [&bert, &narrow]] {
        let error = check(&config(Mode::Ens, members.map(Clone::clone).to_vec())).unwrap_err();
        assert!(error.contains("type_vocab_size"), "{error}");
    }
}

#[test]
fn an_ensemble_needs_one_tokenizer() {
    type Change = fn(&mut TinyCheckpoint);
    let template =
        |c: &mut TinyCheckpoint| c.tokenizer_config["chat_template"] = json!("{{ messages[0].content }}");
    // what is in the checkpoint, what is in its rewarm.json, what is said of it
    let cases: [(Change, &str, &[&str]); 6] = [
        (
            template,
            "{}",
            &[
                "the chat template is `{{ bos_token }}",
                "`{{ messages[0].content }}` (",
                "b/tokenizer_config.json:1)",
            ],
        ),
        (
            |c| c.tokenizer["model"]["vocab"]["w0"] = json!(63),
            "{}",
            &["`model.vocab.w0` is 5 in ", "a/tokenizer.json and 63 in ", "b/tokenizer.json"],
        ),
        (
            |c| c.tokenizer_config["eos_token"] = json!("[SEP]"),
            "{}",
            &["`special_tokens.eos_token` is \"[EOS]\" for ", "\"[SEP]\" for ", "special_tokens_map.json"],
        ),
        (
            |_| (),
            r#"{"text_rule": "concatenation"}"#,
            &["text_rule is chat_template for ", "concatenation for ", "(rewarm.json)"],
        ),
        (
            |_| (),
            r#"{"max_tokens": 7}"#,
            &["the longest sample has 512 tokens for ", "7 for ", "give both one `max_tokens`"],
        ),
        (
            |c| c.tokenizer_config["model_max_length"] = json!(9),
            "{}",
            &["the longest sample has 512 tokens for "],
        ),
    ];
    for (change, manifest, says) in cases {
        let (_dir, paths) = pair(change);
        std::fs::write(paths[1].join("rewarm.json"), manifest).unwrap();
        let error = check(&config(Mode::Ens, paths.clone())).expect_err(says[0]);
        for part in says.iter().chain(&["must make the same ones of a text, but "]) {
            assert!(error.contains(part), "`{part}`: {error}");
        }
        let is_other_vocabulary = says[0].contains("vocab");
        assert_eq!(check(&config(Mode::Warm, paths)).is_ok(), !is_other_vocabulary, "{error}"); // only a warning
    }
    // one without
    let (_without, paths) =
        pair(|c| drop(c.tokenizer_config.as_object_mut().unwrap().remove("chat_template")));
    let error = check(&config(Mode::Ens, paths)).unwrap_err();
    for part in ["a/tokenizer_config.json has a chat template, ", "b has none"] {
        assert!(error.contains(part) && !error.contains("text_rule"), "`{part}`: {error}");
    }
    // two templates: the lines that differ
    let (dir, paths) = pair(|_| ());
    for (path, last) in paths.iter().zip(["{{ b }}", "{{ c }}"]) {
        let template =
            format!("{{% for message in messages %}}{{{{ message.content }}}}\n{{% endfor %}}\n{last}");
        std::fs::write(path.join("chat_template.jinja"), template).unwrap();
    }
    let error = check(&config(Mode::Ens, paths.clone())).unwrap_err();
    for part in [
        "the chat template is `{{ b }}` (",
        "a/chat_template.jinja:3) and `{{ c }}` (",
        "b/chat_template.jinja:3)",
    ] {
        assert!(error.contains(part), "`{part}`: {error}");
    }
    // the same, written otherwise
    let (_other, paths) = pair(|_| ());
    let text = std::fs::read_to_string(paths[1].join("tokenizer.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    std::fs::write(paths[1].join("tokenizer.json"), serde_json::to_string_pretty(&value).unwrap() + "\n")
        .unwrap();
    check(&config(Mode::Ens, paths)).unwrap();
    drop(dir);
}

#[test]
fn limits_and_calibrations_come_from_the_manifest() {
    let (_dir, paths) = pair(|_| ());
    for path in &paths {
        let manifest = r#"{"max_tokens": 100, "pooling": "mean", "calibration": {"mean": 1.5, "std": 2.0}}"#;
        std::fs::write(path.join("rewarm.json"), manifest).unwrap();
    }
    let variant = load(&config(Mode::Ens, paths.clone())).unwrap();
    assert_eq!(variant.info.max_tokens, 100);
    assert_eq!(variant.info.pooling.name(), "mean");
    assert_eq!(variant.info.members[1].calibration, Some(Calibration { mean: 1.5, std: 2.0 }));
    let mut above = config(Mode::Ens, paths);
    above.max_tokens = Some(1000);
    // rotary positions have no end, and what the operator says counts before the manifest
    assert_eq!(load(&above).unwrap().info.max_tokens, 1000);
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bert");
    above.members = vec![bert];
    let error = check(&above).unwrap_err();
    assert!(error.contains("max_tokens is 1000") && error.contains("64"), "{error}");
}

#[test]
fn a_fingerprint_changes_with_what_changes_a_reward_and_with_nothing_else() {
    let (_dir, paths) = pair(|_| ());
    let base = config(Mode::Ens, paths.clone());
    let fingerprint = |config: &VariantConfig| load(config).unwrap().info.fingerprint;
    let first = fingerprint(&base);
    assert_eq!(first.len(), 64);
    assert_eq!(first, fingerprint(&VariantConfig { name: "renamed".to_owned(), ..base.clone() }));
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(paths[1].join(name), copy.path().join(name)).unwrap();
    }
    let moved = vec![paths[0].clone(), copy.path().to_owned()];
    assert_eq!(first, fingerprint(&VariantConfig { members: moved.clone(), ..base.clone() }));

    let mut others = vec![
        ("mode", VariantConfig { mode: Mode::Warm, ..base.clone() }),
        ("reduction", VariantConfig { reduction: Reduction::Min, ..base.clone() }),
        ("dtype", VariantConfig { dtype: Dtype::Bf16, ..base.clone() }),
        ("limit", VariantConfig { max_tokens: Some(64), ..base.clone() }),
        ("members", VariantConfig { members: vec![paths[0].clone()], ..base.clone() }),
        ("pooling", VariantConfig { pooling: Some(rewarm::model::pooling::Pooling::Mean), ..base.clone() }),
        (
            "coefficients",
            VariantConfig { mode: Mode::Warm, coefficients: Some(vec![0.7, 0.3]), ..base.clone() },
        ),
    ]
    .into_iter()
    .map(|(what, config)| (what, fingerprint(&config)))
    .collect::<Vec<_>>();
    let manifest = r#"{"calibration": {"mean": 0.5, "std": 2.0}}"#;
    std::fs::write(copy.path().join("rewarm.json"), manifest).unwrap();
    others.push(("calibration", fingerprint(&VariantConfig { members: moved.clone(), ..base.clone() })));
    std::fs::remove_file(copy.path().join("rewarm.json")).unwrap();
    rewrite(copy.path().join("model.safetensors"), |bytes| {
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
    });
    others.push(("one bit of one weight", fingerprint(&VariantConfig { members: moved, ..base })));
    for (index, (what, other)) in others.iter().enumerate() {
        assert_ne!(&first, other, "{what}");
        for (another, third) in &others[..index] {
            assert_ne!(other, third, "{what} and {another}");
        }
    }
}

#[test]
fn wrappers_in_the_names_of_tensors_are_left_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rename: &dyn Fn(&str) -> String| {
        let mut checkpoint = TinyCheckpoint::llama(7);
        let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
        checkpoint.tensors = tensors.map(|(name, tensor)| (rename(&name), tensor)).collect();
        checkpoint.write(&dir.path().join(name));
        config(Mode::Warm, vec![dir.path().join(name)])
    };
    let plain = load(&write("plain", &|name| name.to_owned())).unwrap().info;
    assert_eq!(plain.notes, Vec::<String>::new());
    let fsdp = |name: &str| {
        format!("_fsdp_wrapped_module.{}", name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."))
    };
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let wrapped: [(&str, Rename<'_>); 5] = [
        ("_orig_mod", &|name| format!("_orig_mod.{name}")),
        ("module", &|name| format!("module.{name}")),
        ("_orig_mod, module", &|name| format!("module._orig_mod.{name}")),
        ("_fsdp_wrapped_module", &fsdp),
        ("_checkpoint_wrapped_module", &|name| name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")),
    ];
    for (wrappers, rename) in wrapped {
        let config = write(wrappers, rename);
        check(&config).unwrap();
        let info = load(&config).unwrap().info;
        assert_eq!(info.fingerprint, plain.fingerprint, "{wrappers}");
        assert!(info.notes.len() == 1 && info.notes[0].ends_with(wrappers), "{wrappers}: {:?}", info.notes);
    }
    // not all: whose the others are is not certain
    let some = |name: &str| if name.contains("mlp") { format!("module.{name}") } else { name.to_owned() };
    let error = check(&write("some", &some)).unwrap_err();
    assert!(error.contains("is missing"), "{error}");
}

/// The commands were run: `tests/reference/foreign.py`.
#[test]
fn directories_of_other_tools_are_refused_with_the_next_command() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["pytorch_model-00001-of-00002.bin"], &["shards", "pytorch_model.bin.index.json"]),
        (&["reward.bin"], &["reward.bin", "rename it to pytorch_model.bin"]),
        (&["model.pt"], &["model.pt", "rename it to pytorch_model.bin"]),
        (
            &["pytorch_model_fsdp_0/__0_0.distcp"],
            &["FSDP", "`accelerate merge-weights", "pytorch_model_fsdp_0 OUT`"],
        ),
        (&["__0_0.distcp", ".metadata"], &["`accelerate merge-weights", "copy config.json"]),
        (
            &["global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py", "latest"],
            &["DeepSpeed", "zero_to_fp32.py", "OUT --safe_serialization`"],
        ),
        (
            &["zero_pp_rank_0_mp_rank_00_optim_states.pt"],
            &["one step of a DeepSpeed", "zero_to_fp32.py", " -t "],
        ),
        (&["iter_0000100/mp_rank_00/model_optim_rng.pt"], &["Megatron", "export"]),
        (&["mp_rank_00/model_optim_rng.pt"], &["Megatron"]),
        (&["consolidated.00.pth", "params.json"], &["Meta and Mistral", "`hf download"]),
        (&["consolidated.safetensors"], &["Meta and Mistral"]),
        (&["reward-Q4_K_M.gguf"], &["GGUF", "Hugging Face directory"]),
        (&["model-00001-of-00002.safetensors"], &["model.safetensors.index.json"]),
        (&["reward.safetensors"], &["reward.safetensors", "rename"]),
        (&["checkpoint-90/model.safetensors", "checkpoint-1000/model.safetensors"], &["/checkpoint-1000"]),
        (&["refs/main", "snapshots/abc/model.safetensors", "blobs/1"], &["hub's cache", "/snapshots/abc"]),
        (&["refs/main", "snapshots/.keep", "blobs/1"], &["hub's cache", "hf download"]),
        (&["notes.txt"], &["holds neither model.safetensors nor"]),
    ];
    for (files, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        for file in *files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, if *file == "refs/main" { "abc\n" } else { "" }).unwrap();
        }
        let error = check(&config(Mode::Warm, vec![dir.path().to_owned()])).unwrap_err();
        assert!(says.iter().all(|part| error.contains(part)), "{files:?}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, "").unwrap();
    let error = check(&config(Mode::Warm, vec![file])).unwrap_err();
    assert!(error.contains("is a file: give the directory"), "{error}");
}

#[test]
fn git_lfs_pointers_are_told_wherever_they_are() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 9085657\n";
    for name in ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"] {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(7).write(dir.path());
        std::fs::write(dir.path().join(name), pointer).unwrap();
        let error = check(&config(Mode::Warm, vec![dir.path().to_owned()])).unwrap_err();
        for part in [name, "Git LFS pointer", "`git lfs pull`"] {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}

/// Readers go down with what they read: on half of the stack that threads have, they have to end before it does.
#[test]
fn json_that_is_nested_without_end_is_refused_by_name_on_a_small_stack() {
    const FILES: [&str; 7] = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "rewarm.json",
        "model.safetensors.index.json",
    ];
    let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(50_000), close.repeat(50_000));
    let documents = [
        nested("[", "]"),
        nested("{\"a\":", "}"),
        format!("{{\"model\": {}}}", nested("[", "]")),
        format!("{{\"architectures\": {}, \"weight_map\": {}}}", nested("[", "]"), nested("[", "]")),
        "[".repeat(50_000),
    ];
    let refuse = move || {
        for (name, document) in FILES.iter().flat_map(|name| documents.iter().map(move |it| (name, it))) {
            let dir = tempfile::tempdir().unwrap();
            TinyCheckpoint::llama(7).write(dir.path());
            if *name == "model.safetensors.index.json" {
                std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
            }
            std::fs::write(dir.path().join(name), document).unwrap();
            let outcome = check(&config(Mode::Warm, vec![dir.path().to_owned()]));
            let error = outcome.expect_err(&format!("{name}: {}", &document[..30]));
            assert!(error.contains(name), "{name}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(7).write(dir.path());
        let header = documents[1].as_bytes();
        let file = [&(header.len() as u64).to_le_bytes(), header].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let error = check(&config(Mode::Warm, vec![dir.path().to_owned()])).unwrap_err();
        assert!(error.contains("model.safetensors"), "{error}");
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(refuse).unwrap().join().unwrap();
}

/// Each probe would run to the same limit.
#[test]
fn a_template_that_does_not_end_is_refused_at_its_first_probe() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoint = TinyCheckpoint::llama(7);
    let template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    checkpoint.tokenizer_config["chat_template"] = json!(template);
    checkpoint.write(dir.path());
    let subject = Subject::Checkpoint { dir: dir.path().to_owned(), base: None };
    let text = Input::Text { prompt: "w1".to_owned(), response: "w2".to_owned() };
    let tokenizer = SampleTokenizer::load(dir.path(), &TextOptions::default()).unwrap();

    let begun = Instant::now();
    let error = tokenizer.tokenize(&text, Truncation::Reject).unwrap_err();
    let once = begun.elapsed();
    assert!(matches!(error, TextError::TemplateExhausted { .. }), "{error}");

    let begun = Instant::now();
    let problems = subject.try_out(&mut Tried::default());
    let [error] = problems.as_slice() else { panic!("{problems:?}") };
    let error = chain(error);
    let tried = begun.elapsed();
    assert!(error.contains("the chat template was stopped: line 1 of the template"), "{error}");
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    // and not five times; of what the machine does beside it, something is allowed
    assert!(tried < 3 * once + Duration::from_secs(1), "{tried:?}, one rendering takes {once:?}");
}
