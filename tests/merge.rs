//! `rewarm merge` as a user runs it: the files it writes, what it refuses and what it tells; and LoRA adapters, merged,
//! served and scored.
//!
//! Expected weights and rewards are by numpy, `transformers` and PEFT: `tests/reference/merge.py`, `make_lora.py`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
mod checkpoints;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use checkpoints::TinyCheckpoint;
use program::rewarm;
use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::checkpoint::Checkpoint;
use rewarm::model::scorer::Reduction;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::offline::score::Backend;
use rewarm::offline::score::Local;
use rewarm::text::Input;
use rewarm::text::Truncation;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use serde_json::json;

/// Ours against transformers and PEFT, both f32: other orders of summation.
const REWARD_ATOL: f32 = 1e-5;

fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `rewarm merge`.
fn merge(members: &[PathBuf], output: &Path, options: &[&str]) -> Output {
    let mut args = vec!["merge"];
    args.extend(members.iter().map(|member| path_str(member)));
    args.extend(["--output", path_str(output)]);
    run(&[&args, options].concat())
}

fn assert_merged(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Name → type, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// All tensors of a directory.
fn tensors(dir: &Path) -> Tensors {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            all.append(&mut tensors_of(&path));
        }
    }
    all
}

fn tensors_of(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, tensor)| {
            (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
        })
        .collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Members of one start, in folders "0", "1", ...
fn family(folder: &Path, members: usize, noise: f32) -> Vec<PathBuf> {
    let start = TinyCheckpoint::llama(1);
    (0..members)
        .map(|index| {
            let path = folder.join(index.to_string());
            start.perturbed(index as u64, noise, "").write(&path);
            path
        })
        .collect()
}

// ---- what is written ----

#[test]
fn written_weights_equal_a_float64_merge_rounded_once_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for family in ["llama-f32", "bert-f16", "tied-bf16"] {
        let members: Vec<PathBuf> = (0..3).map(|i| data(&format!("merge/{family}/member-{i}"))).collect();
        for (which, coefficients) in [("equal", None), ("weighted", Some("0.5,0.3,0.2"))] {
            for dtype in ["f32", "f16", "bf16"] {
                let output = folder.path().join(format!("{family}-{which}-{dtype}"));
                let mut options = vec!["--dtype", dtype];
                options.extend(coefficients.iter().flat_map(|coefficients| ["--coefficients", coefficients]));
                assert_merged(&merge(&members, &output, &options));
                let expected = data(&format!("merge/{family}/expected-{which}-{dtype}.safetensors"));
                assert!(tensors(&output) == tensors_of(&expected), "{}", output.display());
                checked += tensors(&output).len();
            }
        }
    }
    assert!(checked > 200, "only {checked} tensors were checked");
}

#[test]
fn a_large_checkpoint_is_cut_into_shards_with_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let members: Vec<PathBuf> = (0..3).map(|i| data(&format!("merge/llama-f32/member-{i}"))).collect();
    let output = folder.path().join("out");
    assert_merged(&merge(&members, &output, &["--max-shard-bytes", "3000"]));
    assert!(tensors(&output) == tensors_of(&data("merge/llama-f32/expected-equal-f32.safetensors")));
    let index = read_json(&output.join("model.safetensors.index.json"));
    let shards = names_in(&output).iter().filter(|name| name.ends_with(".safetensors")).count();
    assert!(shards > 2, "{shards}");
    assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors(&output).len());
    Checkpoint::open(&output).unwrap();
}

#[test]
fn the_directory_is_an_ordinary_one_and_says_what_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let members = family(folder.path(), 2, 0.01);
    let mut config = read_json(&members[0].join("config.json"));
    config["_name_or_path"] = json!("/home/someone/member");
    config["torch_dtype"] = json!("float32");
    config["something_of_its_own"] = json!([1, 2]);
    std::fs::write(members[0].join("config.json"), config.to_string()).unwrap();
    for (member, mean) in members.iter().zip([0.5, 0.7]) {
        let manifest = json!({"pooling": "last_token", "calibration": {"mean": mean, "std": 1.0}});
        std::fs::write(member.join("rewarm.json"), manifest.to_string()).unwrap();
        std::fs::write(member.join("chat_template.jinja"), "{{ messages }}").unwrap();
        std::fs::create_dir(member.join("additional_chat_templates")).unwrap();
        std::fs::write(member.join("additional_chat_templates/tool_use.jinja"), "{{ tools }}").unwrap();
        std::fs::write(member.join("additional_chat_templates/notes.txt"), "").unwrap();
    }
    let output = folder.path().join("new/out");
    let result = merge(&members, &output, &["--coefficients", "0.25,0.75", "--dtype", "bf16"]);
    assert_merged(&result);
    assert!(text(&result.stderr).contains("another calibration than member 0"), "{result:?}");

    let written = names_in(&output);
    let expected = [
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "rewarm-merge.json",
        "rewarm.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(written, expected);
    assert_eq!(names_in(&output.join("additional_chat_templates")), ["tool_use.jinja"]);
    let mut merged_config = read_json(&output.join("config.json"));
    assert_eq!(merged_config["torch_dtype"], "bfloat16");
    assert_eq!(
        merged_config.get("dtype").unwrap_or(&Value::Null),
        &config.get("dtype").map_or(Value::Null, |_| json!("bfloat16"))
    );
    assert!(merged_config.get("_name_or_path").is_none(), "{merged_config}");
    for key in ["torch_dtype", "dtype", "_name_or_path"] {
        for config in [&mut merged_config, &mut config] {
            config.as_object_mut().unwrap().remove(key);
        }
    }
    assert_eq!(merged_config, config, "all else is the first member's");
    assert_eq!(read_json(&output.join("rewarm.json")), json!({"pooling": "last_token"}));

    let provenance = read_json(&output.join("rewarm-merge.json"));
    assert_eq!(provenance["rewarm_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(provenance["dtype"], "bf16");
    let told: Vec<_> = provenance["members"].as_array().unwrap().iter().collect();
    assert_eq!(told[1]["coefficient"], 0.75);
    assert_eq!(told[0]["path"], path_str(&members[0]));
    // the digests by which a server names its members
    let served = load(&VariantConfig::new("ens", Mode::Ens, members.clone())).variant.info;
    for (told, served) in told.iter().zip(&served.members) {
        assert_eq!(told["digest"], served.digest.as_str());
    }
    let matrices = provenance["matrices"].as_object().unwrap();
    assert!(
        matrices.contains_key("model.embed_tokens.weight") && !matrices.contains_key("model.norm.weight")
    );

    // and it is what a server would make of the same members
    let in_f32 = folder.path().join("f32");
    assert_merged(&merge(&members, &in_f32, &["--coefficients", "0.25,0.75"]));
    let mut at_load = VariantConfig::new("warm", Mode::Warm, members);
    at_load.coefficients = Some(vec![0.25, 0.75]);
    let on_disk = VariantConfig::new("warm", Mode::Warm, vec![in_f32]);
    let inputs = || (1..20).map(|n| Input::TokenIds((5..5 + n).collect())).collect::<Vec<_>>();
    assert_eq!(rewards(&mut load(&at_load), inputs()), rewards(&mut load(&on_disk), inputs()));
}

#[test]
fn the_default_precision_is_the_widest_of_the_members_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let members = |family: &str| -> Vec<PathBuf> {
        (0..2).map(|i| data(&format!("merge/{family}/member-{i}"))).collect()
    };
    for (family, dtype) in [("llama-f32", "f32"), ("bert-f16", "f16"), ("tied-bf16", "bf16")] {
        let output = folder.path().join(family);
        let result = merge(&members(family), &output, &[]);
        assert_merged(&result);
        assert!(
            text(&result.stdout).contains(&format!("in {dtype} (the members are stored in {dtype})")),
            "{result:?}"
        );
    }
    // one in f16, one in bf16: neither holds the other's values
    let mixed: Vec<PathBuf> = ["f16", "bf16"]
        .map(|dtype| {
            let path = folder.path().join(dtype);
            let member = &members("llama-f32")[0];
            assert_merged(&merge(std::slice::from_ref(member), &path, &["--dtype", dtype]));
            path
        })
        .to_vec();
    let result = merge(&mixed, &folder.path().join("mixed"), &[]);
    assert_merged(&result);
    assert!(text(&result.stdout).contains("in f32 (the members are stored in f16, bf16)"), "{result:?}");
    assert!(text(&result.stderr).contains("another precision than member 0"), "{result:?}");
}

/// Adds tensors that no reward depends on.
fn add_constants(dir: &Path, ids: &[i64]) {
    let file = dir.join("model.safetensors");
    let mut all = tensors_of(&file);
    let ids = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    all.insert("model.embeddings.position_ids".to_owned(), (Dtype::I64, vec![1, 3], ids));
    let inverse = [1.0_f32, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect();
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (Dtype::F32, vec![2], inverse));
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn constants_are_copied_as_they_are_and_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let members = family(folder.path(), 2, 0.01);
    add_constants(&members[0], &[0, 1, 2]);
    add_constants(&members[1], &[0, 1, 7]);
    let output = folder.path().join("out");
    let result = merge(&members, &output, &["--dtype", "bf16"]);
    assert_merged(&result);
    let (merged, first) = (tensors(&output), tensors(&members[0]));
    for name in ["model.embeddings.position_ids", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        assert_eq!(merged[name], first[name], "{name}");
        assert!(
            text(&result.stdout)
                .lines()
                .any(|line| line.starts_with("copied from member 0") && line.contains(name))
        );
    }
    assert_eq!(merged["model.norm.weight"].0, Dtype::BF16);
    let warnings = text(&result.stderr);
    assert!(warnings.contains("differs from member 0 in `model.embeddings.position_ids`"), "{warnings}");
    assert!(!warnings.contains("inv_freq"), "{warnings}");
}

// ---- what is told ----

/// A copy of a tiny model whose experts are in the reverse order, each with its row of the router: another checkpoint of the same
/// function.
#[test]
fn experts_at_other_places_are_told_before_they_are_averaged() {
    let folder = tempfile::tempdir().unwrap();
    for (model, experts) in [("mixtral", 5), ("mixtral-stacked", 5)] {
        let [first, turned, output] =
            ["first", "turned", "out"].map(|name| folder.path().join(model).join(name));
        for dir in [&first, &turned] {
            std::fs::create_dir_all(dir).unwrap();
            for file in ["config.json", "model.safetensors"] {
                std::fs::copy(data("models").join(model).join(file), dir.join(file)).unwrap();
            }
        }
        let own = tensors(&first);
        let mut others = Tensors::new();
        for (name, (dtype, shape, bytes)) in &own {
            let expert = |name: &str, expert: usize| {
                name.replace(&format!("experts.{expert}."), &format!("experts.{}.", experts - 1 - expert))
            };
            let is_stacked =
                shape[0] == experts && (name.contains("experts.") || name.ends_with("gate.weight"));
            let bytes = match is_stacked {
                true => bytes.chunks(bytes.len() / experts).rev().flatten().copied().collect(),
                false => bytes.clone(),
            };
            let renamed = (0..experts).map(|number| expert(name, number)).find(|other| other != name);
            others.insert(renamed.unwrap_or_else(|| name.clone()), (*dtype, shape.clone(), bytes));
        }
        let views = others.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &turned.join("model.safetensors")).unwrap();
        let result = merge(&[first.clone(), turned.clone()], &output, &[]);
        assert_merged(&result);
        let warnings = text(&result.stderr);
        // of five the one in the middle stays, in two layers
        for part in [
            "member 1 (",
            "has other experts than member 0",
            "8 of 10 rows of its routers",
            "experts' weights is ",
        ] {
            assert!(warnings.contains(part), "`{part}` is not in {warnings}");
        }
        let same = merge(&[first.clone(), first.clone()], &output.with_extension("same"), &[]);
        assert!(!text(&same.stderr).contains("experts"), "{}", text(&same.stderr));
    }
}

#[test]
fn strangers_duplicates_and_other_templates_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = family(folder.path(), 2, 0.01);
    members.push(members[1].clone());
    let stranger = folder.path().join("stranger");
    let mut checkpoint = TinyCheckpoint::llama(99);
    checkpoint.tokenizer_config["chat_template"] = json!("{{ messages[0].content }}");
    checkpoint.write(&stranger);
    members.push(stranger);
    let output = folder.path().join("out");
    let result = merge(&members, &output, &[]);
    assert_merged(&result);
    let warnings = text(&result.stderr);
    for part in [
        "member 2 (",
        "is a duplicate of member 1",
        "member 3 (",
        "has another pretrain than member 0",
        "differs in its texts from member 0, whose are used: ",
        "`{{ messages[0].content }}` (",
        "stranger/tokenizer_config.json:1)",
    ] {
        assert!(warnings.contains(part), "`{part}` is not in {warnings}");
    }
    assert_eq!(read_json(&output.join("rewarm-merge.json"))["warnings"].as_array().unwrap().len(), 3);
    assert_eq!(warnings.lines().count(), 3, "{warnings}");
}

/// Which token is called the end is the template's affair, as another template is: told, and the first member's is used.
#[test]
fn other_names_of_special_tokens_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let members = family(folder.path(), 2, 0.01);
    let config = members[1].join("tokenizer_config.json");
    let mut named = read_json(&config);
    named["eos_token"] = json!("[SEP]");
    std::fs::write(&config, named.to_string()).unwrap();
    let output = folder.path().join("out");
    let result = merge(&members, &output, &[]);
    assert_merged(&result);
    assert!(text(&result.stderr).contains("`special_tokens.eos_token` is \"[EOS]\" for "), "{result:?}");
    let told = &read_json(&output.join("tokenizer_config.json"))["eos_token"];
    assert_eq!(told, &read_json(&members[0].join("tokenizer_config.json"))["eos_token"]);
}

#[test]
fn rounding_that_eats_the_update_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    // steps of bf16 are 2^-8 of a value: an update of 1e-4 is lost in them
    let members = family(folder.path(), 2, 1e-4);
    let base = folder.path().join("base");
    TinyCheckpoint::llama(1).write(&base);
    for (dtype, warned) in [("bf16", true), ("f32", false)] {
        for (base, says) in [(None, "mean distance from their average"), (Some(&base), "merge - base")] {
            let output = folder.path().join(format!("{dtype}-{}", base.is_some()));
            let mut options = vec!["--dtype", dtype];
            options.extend(base.iter().flat_map(|base| ["--base", path_str(base)]));
            let result = merge(&members, &output, &options);
            assert_merged(&result);
            let warnings = text(&result.stderr);
            assert_eq!(
                warnings.contains("rounding to bf16") && warnings.contains(says),
                warned,
                "{warnings}"
            );
        }
    }
}

#[test]
fn task_vectors_are_what_members_add_to_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let start = TinyCheckpoint::llama(1);
    let write = |name: &str, checkpoint: &TinyCheckpoint| {
        let path = folder.path().join(name);
        checkpoint.write(&path);
        path
    };
    let base = write("base", &start);
    // one goes a way, one the opposite way and twice as far, one goes elsewhere
    let mut members = [start.clone(), start.clone(), start.clone()];
    members[0].tensors.get_mut("score.weight").unwrap().1[0] += 0.25;
    members[1].tensors.get_mut("score.weight").unwrap().1[0] -= 0.5;
    members[2].tensors.get_mut("model.norm.weight").unwrap().1[3] += 0.125;
    let paths: Vec<PathBuf> =
        ["a", "b", "c"].iter().zip(&members).map(|(name, member)| write(name, member)).collect();
    let output = folder.path().join("out");
    let result = merge(&paths, &output, &["--base", path_str(&base)]);
    assert_merged(&result);
    let told = &read_json(&output.join("rewarm-merge.json"))["task_vectors"];
    let number = |value: &Value| value.as_f64().unwrap();
    let close =
        |value: &Value, expected: f64| assert!((number(value) - expected).abs() < 1e-7, "{value} {expected}");
    for (norm, expected) in told["norms"].as_array().unwrap().iter().zip([0.25, 0.5, 0.125]) {
        close(norm, expected);
    }
    close(&told["merged_norm"], (0.25_f64.powi(2) + 0.125_f64.powi(2)).sqrt() / 3.0);
    let cosines: Vec<_> =
        told["cosines"].as_array().unwrap().iter().map(|cosine| &cosine["cosine"]).collect();
    for (cosine, expected) in cosines.into_iter().zip([-1.0, 0.0, 0.0]) {
        close(cosine, expected);
    }
}

// ---- what is refused ----

#[test]
fn what_cannot_be_averaged_is_refused_by_name_and_nothing_is_written() {
    type Change = fn(&mut TinyCheckpoint);
    let cases: [(&str, Change, &[&str]); 14] = [
        ("head", |c| drop(c.tensors.remove("score.weight")), &["`score.weight` is missing in the second"]),
        (
            "labels",
            |c| {
                let (shape, values) = c.tensors.get_mut("score.weight").unwrap();
                shape[0] = 2;
                values.resize(32, 0.1);
            },
            &["`score.weight` is [1, 16] in the first and [2, 16]"],
        ),
        (
            "vocabulary",
            |c| {
                c.config["vocab_size"] = json!(65);
                let (shape, values) = c.tensors.get_mut("model.embed_tokens.weight").unwrap();
                shape[0] = 65;
                values.resize(65 * 16, 0.1);
            },
            &["`vocab_size` is 64 in the first and 65"],
        ),
        (
            "tokenizer",
            |c| {
                c.tokenizer["model"]["vocab"]["w0"] = json!(6);
                c.tokenizer["model"]["vocab"]["w1"] = json!(5);
            },
            &[
                "their tokenizers differ (tokenizer.json): `model.vocab.w0` is 5 in the first and 6 in the second",
            ],
        ),
        (
            "a special token beside it",
            |c| c.tokenizer_config["mask_token"] = json!("w3"),
            &[
                "their tokenizers differ (tokenizer_config.json",
                "`added_tokens[4]` is absent in the first",
                "w3",
            ],
        ),
        (
            "tokens that were added beside it",
            |c| c.tokenizer_config["extra_special_tokens"] = json!(["w3w4", "w5"]),
            &["their tokenizers differ", "`added_tokens[4]`", "w3w4"],
        ),
        (
            "a switch beside it",
            |c| c.tokenizer_config["split_special_tokens"] = json!(true),
            &[
                "their tokenizers differ",
                "`split_special_tokens` is false in the first and true in the second",
            ],
        ),
        (
            "rope",
            |c| c.config["rope_theta"] = json!(500.0),
            &["`rope_theta` is 10000.0 in the first and 500.0 in the second (config.json)"],
        ),
        (
            "rope_scaling beside rope_parameters",
            |c| {
                c.config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
                c.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
            },
            &["`rope_scaling` is absent in the first and {", "linear"],
        ),
        (
            "a norm",
            |c| c.config["rms_norm_eps"] = json!(1e-3),
            &["`rms_norm_eps` is ", "0.001 in the second"],
        ),
        (
            "a bias, and what means nothing",
            |c| {
                c.config["attention_bias"] = json!(true);
                c.config["initializer_range"] = json!(0.5);
            },
            &["`attention_bias` is absent in the first and true in the second (config.json)"],
        ),
        ("pad", |c| c.config["pad_token_id"] = json!(2), &["`pad_token_id` is 0", "2"]),
        (
            "architecture",
            |c| {
                c.config["model_type"] = json!("mistral");
                c.config["architectures"] = json!(["MistralForSequenceClassification"]);
            },
            &[
                "`architectures` is [\"Llama",
                "`model_type` is \"llama\" in the first and \"mistral\" in the second",
            ],
        ),
        (
            "NaN",
            |c| c.tensors.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN,
            &["read member 1 (", "`model.norm.weight`", "not finite"],
        ),
    ];
    for (name, change, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        let members = family(folder.path(), 2, 0.01);
        let mut second = TinyCheckpoint::llama(1).perturbed(1, 0.01, "");
        change(&mut second);
        second.write(&members[1]);
        let result = merge(&members, &folder.path().join("out"), &[]);
        let error = text(&result.stderr);
        assert_eq!(result.status.code(), Some(1), "{name}: {error}");
        let line = error.lines().last().unwrap();
        assert!(
            line.starts_with("error: ") && says.iter().all(|part| line.contains(part)),
            "{name}: {error}"
        );
        assert_eq!(names_in(folder.path()), ["0", "1"], "{name}");
    }
}

#[test]
fn members_of_which_none_has_a_head_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = TinyCheckpoint::llama(1);
    checkpoint.tensors.remove("score.weight");
    let members = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
    members.iter().for_each(|member| checkpoint.write(member));
    let result = merge(&members, &folder.path().join("out"), &[]);
    assert_eq!(result.status.code(), Some(1));
    assert!(text(&result.stderr).contains("has no reward head: looked for score.weight"), "{result:?}");
}

#[test]
fn coefficients_and_outputs_are_checked_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let members = family(folder.path(), 2, 0.01);
    let output = folder.path().join("out");
    for (coefficients, says) in [
        ("0.5,0.4", "coefficients sum to 0.9: they must sum to 1"),
        ("0.5,0.3,0.2", "3 coefficients for 2 members"),
        ("1.0,NaN", "must be finite"),
    ] {
        let result = merge(&members, &output, &["--coefficients", coefficients]);
        assert_eq!(result.status.code(), Some(1));
        assert!(text(&result.stderr).contains(says), "{result:?}");
    }
    // an extrapolation beyond a member is somebody's right
    assert_merged(&merge(&members, &output, &["--coefficients", "1.5,-0.5"]));
    let before = tensors(&output);
    let again = merge(&members, &output, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("exists already"), "{again:?}");
    assert!(tensors(&output) == before, "nothing is overwritten");
    let both = merge(&members, &output, &["--coefficients", "0.5,0.5", "--greedy", "pairs.jsonl"]);
    assert_eq!(both.status.code(), Some(2));
    assert_eq!(merge(&[], &output, &[]).status.code(), Some(2), "no members");
}

// ---- interrupted, killed, out of room ----

/// Members that take a while.
fn large_family(folder: &Path) -> Vec<PathBuf> {
    let mut start = TinyCheckpoint::llama(1);
    start.config["vocab_size"] = json!(120_000);
    start.tensors.get_mut("model.embed_tokens.weight").unwrap().0[0] = 120_000;
    start.tensors.get_mut("model.embed_tokens.weight").unwrap().1.resize(120_000 * 16, 0.25);
    (0..2)
        .map(|index| {
            let path = folder.join(index.to_string());
            start.perturbed(index, 0.01, "").write(&path);
            path
        })
        .collect()
}

/// Starts a merge, sends a signal once it has begun to write, and waits: exit status and error output.
fn merge_until_signal(members: &[PathBuf], output: &Path, name: &str) -> Output {
    let folder = output.parent().unwrap();
    let mut args = vec!["merge"];
    args.extend(members.iter().map(|member| path_str(member)));
    args.extend(["--output", path_str(output)]);
    let mut child = rewarm(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let has_begun = || names_in(folder).iter().any(|name| name.starts_with(".rewarm-partial-"));
    let begun = (0..60_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1)); // until another process has done something
        has_begun()
    });
    assert!(begun, "the merge never began");
    if name == "-KILL" {
        child.kill().unwrap();
    } else {
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_killed_merge_leaves_no_half_directory() {
    let folder = tempfile::tempdir().unwrap();
    let members = large_family(folder.path());
    let output = folder.path().join("out");
    let killed = merge_until_signal(&members, &output, "-KILL");
    assert_eq!(killed.status.code(), None, "it was killed, not done: {killed:?}");
    assert!(!output.exists());
    let left = names_in(folder.path());
    assert!(
        left.iter().all(|name| ["0", "1"].contains(&name.as_str()) || name.starts_with(".rewarm-partial-")),
        "{left:?}"
    );
    assert_merged(&merge(&members, &output, &[])); // what is left is in nobody's way
}

#[test]
fn an_interrupted_merge_tidies_up() {
    for signal in ["-INT", "-TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let members = large_family(folder.path());
        let result = merge_until_signal(&members, &folder.path().join("out"), signal);
        assert_eq!(result.status.code(), Some(1), "{result:?}");
        assert!(text(&result.stderr).contains("error: interrupted: nothing was written to"), "{result:?}");
        assert_eq!(names_in(folder.path()), ["0", "1"]);
    }
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let members = family(folder.path(), 2, 0.01);
    // files may have 4 or 8 kB, by the shell's unit; the weights have more
    let shell = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_rewarm");
    let mut command = Command::new("sh");
    command.args(["-c", shell, "sh", program, "merge"]).args(&members);
    let result = command.arg("--output").arg(folder.path().join("out")).output().unwrap();
    let error = text(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("error: write ") && error.contains("model.safetensors: File too large"),
        "{error}"
    );
    assert_eq!(names_in(folder.path()), ["0", "1"]);
}

// ---- greedy ----

/// Pairs that this model judges right, with some that nobody can score.
fn pairs_of(model: &Path, file: &Path) {
    let sample = |i: usize| {
        (0..6).map(|k| format!("w{}", (i * 7 + k * (i % 5 + 1)) % 59)).collect::<Vec<_>>().join(" ")
    };
    let inputs = (0..80).map(|i| Input::Text { prompt: "w1".to_owned(), response: sample(i) });
    let rewards = rewards(
        &mut load(&VariantConfig::new("judge", Mode::Warm, vec![model.to_owned()])),
        inputs.collect(),
    );
    let mut lines: Vec<String> = (0..40)
        .filter(|i| (rewards[2 * i] - rewards[2 * i + 1]).abs() > 0.05)
        .map(|i| {
            let (better, worse) =
                if rewards[2 * i] > rewards[2 * i + 1] { (2 * i, 2 * i + 1) } else { (2 * i + 1, 2 * i) };
            json!({"prompt": "w1", "chosen": sample(better), "rejected": sample(worse)}).to_string()
        })
        .collect();
    assert!(lines.len() > 10, "{}", lines.len());
    lines.push(json!({"prompt": "w1", "chosen": "w2 ".repeat(2000), "rejected": "w3"}).to_string());
    lines.push(json!({"prompt": "w1", "chosen": "w4", "rejected": "w4"}).to_string());
    std::fs::write(file, lines.join("\n")).unwrap();
}

#[test]
fn greedy_adds_members_while_accuracy_does_not_fall() {
    let folder = tempfile::tempdir().unwrap();
    let start = TinyCheckpoint::llama(1);
    let write = |name: &str, checkpoint: &TinyCheckpoint| {
        let path = folder.path().join(name);
        checkpoint.write(&path);
        path
    };
    let mut contrary = start.clone();
    contrary.tensors.get_mut("score.weight").unwrap().1.iter_mut().for_each(|w| *w *= -3.0);
    let [worst, best, near] =
        [write("worst", &contrary), write("best", &start), write("near", &start.perturbed(1, 1e-4, ""))];
    let pairs = folder.path().join("pairs.jsonl");
    pairs_of(&best, &pairs);
    let output = folder.path().join("out");
    let members = [worst.clone(), best.clone(), near.clone()];
    let result = merge(&members, &output, &["--greedy", path_str(&pairs)]);
    assert_merged(&result);

    let greedy = &read_json(&output.join("rewarm-merge.json"))["greedy"];
    let steps: Vec<(&str, f64, bool)> = greedy["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            let name = Path::new(step["member"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
            (name, step["accuracy"].as_f64().unwrap(), step["is_kept"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(steps, [("best", 1.0, true), ("near", 1.0, true), ("worst", 0.0, false)]);
    assert!(greedy["steps"][2]["merged_accuracy"].as_f64().unwrap() < 1.0, "{greedy}");
    assert_eq!(greedy["left_out"], 2);
    let table = text(&result.stdout);
    assert!(table.contains("kept") && table.contains("dropped"), "{table}");

    let plain = folder.path().join("plain");
    assert_merged(&merge(&[best, near], &plain, &[]));
    assert!(tensors(&output) == tensors(&plain));

    std::fs::write(&pairs, "{}\n").unwrap();
    let result = merge(&members, &folder.path().join("other"), &["--greedy", path_str(&pairs)]);
    assert_eq!(result.status.code(), Some(1));
    assert!(text(&result.stderr).contains("pairs.jsonl:1: not a pair"), "{result:?}");
}

// ---- adapters ----

fn load(config: &VariantConfig) -> Local {
    let variant = Loader::default().load(config, &mut |_, _| ()).unwrap();
    Local { variant, truncation: Truncation::Reject, max_batch_tokens: 4096 }
}

fn rewards(local: &mut Local, inputs: Vec<Input>) -> Vec<f32> {
    local.score(inputs).unwrap().into_iter().map(|scored| scored.unwrap().reward.reward).collect()
}

fn lora(family: &str) -> (Vec<PathBuf>, PathBuf) {
    let dir = data("lora").join(family);
    (vec![dir.join("adapter-0"), dir.join("adapter-1")], dir.join("base"))
}

fn over(base: &Path, mode: Mode, members: &[PathBuf]) -> VariantConfig {
    VariantConfig { base: Some(base.to_owned()), ..VariantConfig::new("lora", mode, members.to_vec()) }
}

fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    for (ours, expected) in ours.iter().zip(expected) {
        assert!(
            (ours - expected).abs() <= REWARD_ATOL * expected.abs().max(1.0),
            "{what}: {ours}, not {expected}"
        );
    }
}

#[test]
fn adapters_score_as_with_peft_alone_merged_and_together() {
    for family in ["llama", "bert"] {
        let (adapters, base) = lora(family);
        let golden = read_json(&data("lora").join(family).join("golden.json"));
        let samples = golden["samples"].as_array().unwrap();
        let inputs = || {
            let ids = |sample: &Value| serde_json::from_value(sample["token_ids"].clone()).unwrap();
            samples.iter().map(|sample| Input::TokenIds(ids(sample))).collect::<Vec<_>>()
        };
        let of = |sample: &Value, index: usize| sample["adapter_rewards"][index].as_f64().unwrap() as f32;
        for (index, adapter) in adapters.iter().enumerate() {
            let expected: Vec<f32> = samples.iter().map(|sample| of(sample, index)).collect();
            let ours = rewards(&mut load(&over(&base, Mode::Warm, std::slice::from_ref(adapter))), inputs());
            assert_close(&ours, &expected, &format!("{family} {index}"));
        }
        let merged: Vec<f32> =
            samples.iter().map(|sample| sample["merged"].as_f64().unwrap() as f32).collect();
        let ours = rewards(&mut load(&over(&base, Mode::Warm, &adapters)), inputs());
        assert_close(&ours, &merged, &format!("{family} merged at load"));
        let mean: Vec<f32> = samples.iter().map(|sample| (of(sample, 0) + of(sample, 1)) / 2.0).collect();
        let ens = VariantConfig { reduction: Reduction::Mean, ..over(&base, Mode::Ens, &adapters) };
        assert_close(&rewards(&mut load(&ens), inputs()), &mean, &format!("{family} ens"));

        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let result = merge(&adapters, &output, &["--base", path_str(&base), "--dtype", "f32"]);
        assert_merged(&result);
        assert!(
            tensors(&output) == tensors_of(&data("lora").join(family).join("expected.safetensors")),
            "{family}"
        );
        let on_disk = VariantConfig::new("merged", Mode::Warm, vec![output.clone()]);
        assert_eq!(rewards(&mut load(&on_disk), inputs()), ours, "{family}: on disk and at load");
        let config = read_json(&output.join("config.json"));
        let class = if family == "llama" { "Llama" } else { "Bert" };
        assert_eq!(config["architectures"], json!([format!("{class}ForSequenceClassification")]));
        assert_eq!(config["id2label"].as_object().unwrap().len(), 1, "one label: {config}");
    }
}

#[test]
fn score_and_serve_take_adapters_over_a_base() {
    let (adapters, base) = lora("llama");
    let line = "{\"prompt\":\"Hi\",\"response\":\"Hello\"}\n";
    let scored = score(&["--model", path_str(&adapters[0]), "--base", path_str(&base)], line);
    assert!(scored.status.success(), "{scored:?}");
    let refused = score(&["--model", path_str(&adapters[0])], line);
    assert!(
        text(&refused.stderr).contains("is a LoRA adapter") && text(&refused.stderr).contains("--base"),
        "{refused:?}"
    );
    let useless = score(&["--model", path_str(&data("models/llama")), "--base", path_str(&base)], line);
    assert!(text(&useless.stderr).contains("none of the members is one"), "{useless:?}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rewarm.toml");
    let check = |base: &str| {
        let members = format!("members = ['{}', '{}']", adapters[0].display(), adapters[1].display());
        std::fs::write(&file, format!("[variants.ens]\nmode = 'ens'\n{members}\n{base}\n")).unwrap();
        run(&["serve", "--check", "--config", path_str(&file)])
    };
    let good = check(&format!("base = '{}'", base.display()));
    assert!(good.status.success(), "{good:?}");
    let bad = check("base = 'nowhere'");
    assert!(text(&bad.stderr).contains("nowhere` is not a directory"), "{bad:?}");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names_in(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn the_fingerprint_covers_the_base_and_the_adapter() {
    let (adapters, base) = lora("llama");
    let fingerprint = |base: &Path, adapter: &Path| {
        load(&over(base, Mode::Warm, &[adapter.to_owned()])).variant.info.fingerprint
    };
    let folder = tempfile::tempdir().unwrap();
    let (base_copy, adapter_copy) = (folder.path().join("base"), folder.path().join("adapter"));
    copy_folder(&base, &base_copy);
    copy_folder(&adapters[0], &adapter_copy);
    let first = fingerprint(&base, &adapters[0]);
    assert_eq!(first, fingerprint(&base_copy, &adapter_copy), "paths do not count");

    let change_last_byte = |file: &Path| {
        let mut bytes = std::fs::read(file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    change_last_byte(&base_copy.join("model.safetensors"));
    let other_base = fingerprint(&base_copy, &adapters[0]);
    change_last_byte(&adapter_copy.join("adapter_model.safetensors"));
    let other_adapter = fingerprint(&base, &adapter_copy);
    let settings = adapters[0].join("adapter_config.json");
    let config =
        std::fs::read_to_string(&settings).unwrap().replace("\"lora_alpha\": 8", "\"lora_alpha\": 9");
    copy_folder(&adapters[0], &adapter_copy);
    std::fs::write(adapter_copy.join("adapter_config.json"), config).unwrap();
    let other_scale = fingerprint(&base, &adapter_copy);
    let all = std::collections::BTreeSet::from([&first, &other_base, &other_adapter, &other_scale]);
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn adapters_that_we_cannot_follow_are_refused_by_name() {
    struct Case {
        name: &'static str,
        settings: fn(&mut Value),
        tensors: fn(&mut Tensors),
        says: &'static [&'static str],
    }
    const SAME: fn(&mut Value) = |_| ();
    const Q_PROJ: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let as_it_is = |_: &mut Tensors| ();
    let cases = [
        Case {
            name: "DoRA",
            settings: |c| c["use_dora"] = json!(true),
            tensors: as_it_is,
            says: &["adapter_config.json", "`use_dora` is true", "merge_and_unload().save_pretrained('OUT')"],
        },
        Case {
            // what peft makes of `target_modules` that name layers of experts
            name: "experts",
            settings: |c| c["target_parameters"] = json!(["gate_up_proj", "down_proj"]),
            tensors: as_it_is,
            says: &["`target_parameters` is [\"gate_up_proj\"", "experts", "merge_and_unload()"],
        },
        Case {
            name: "another method",
            settings: |c| c["peft_type"] = json!("IA3"),
            tensors: as_it_is,
            says: &["`peft_type` is \"IA3\"", "LORA"],
        },
        Case {
            name: "no method",
            settings: |c| drop(c.as_object_mut().unwrap().remove("peft_type")),
            tensors: as_it_is,
            says: &["`peft_type` is missing"],
        },
        Case {
            name: "PiSSA",
            settings: |c| c["init_lora_weights"] = json!("pissa_niter_4"),
            tensors: as_it_is,
            says: &["`init_lora_weights` is \"pissa_niter_4\""],
        },
        Case {
            name: "biases of updates",
            settings: |c| c["lora_bias"] = json!(true),
            tensors: as_it_is,
            says: &["`lora_bias`"],
        },
        Case {
            name: "layers used twice",
            settings: |c| c["layer_replication"] = json!([[0, 2]]),
            tensors: as_it_is,
            says: &["`layer_replication`"],
        },
        Case {
            name: "a pattern",
            settings: |c| c["alpha_pattern"] = json!({"layers.[01.q_proj": 3}),
            tensors: as_it_is,
            says: &["`alpha_pattern`", "layers.[01.q_proj", "no regular expression"],
        },
        Case {
            name: "a setting of tomorrow",
            settings: |c| c["use_tomorrow"] = json!(true),
            tensors: as_it_is,
            says: &["`use_tomorrow` is true", "do not know"],
        },
        Case {
            name: "another rank",
            settings: |c| c["r"] = json!(16),
            tensors: as_it_is,
            says: &[
                "rank 16",
                "layers.0.self_attn.q_proj",
                "lora_A.weight` is stored as [4, 16]",
                "of rank 4",
            ],
        },
        Case {
            name: "another rank of some layers",
            settings: |c| c["rank_pattern"] = json!({"layers.1.self_attn.v.proj": 2}),
            tensors: as_it_is,
            says: &["rank 2 for `model.layers.1.self_attn.v_proj`", "of rank 4"],
        },
        Case {
            name: "an update that is not targeted",
            settings: |c| c["target_modules"] = json!(["q_proj"]),
            tensors: as_it_is,
            says: &["stores an update of `model.layers.0.self_attn.v_proj`", "`target_modules`"],
        },
        Case {
            name: "an update that is excluded",
            settings: |c| c["exclude_modules"] = json!(".*layers.1.*q_proj"),
            tensors: as_it_is,
            says: &["stores an update of `model.layers.1.self_attn.q_proj`", "`exclude_modules`"],
        },
        Case {
            name: "an update of another layer",
            settings: |c| c["layers_to_transform"] = json!([0]),
            tensors: as_it_is,
            says: &["stores an update of `model.layers.1.self_attn.q_proj`", "`layers_to_transform`"],
        },
        Case {
            name: "a target without an update",
            settings: |c| c["target_modules"] = json!(["q_proj", "v_proj", "down_proj"]),
            tensors: as_it_is,
            says: &["lacks the update of `model.layers.0.mlp.down_proj`", "not whole"],
        },
        Case {
            name: "a module that was not saved",
            settings: |c| c["modules_to_save"] = json!(["score", "embed_tokens"]),
            tensors: as_it_is,
            says: &["lacks `model.embed_tokens.weight`", "`modules_to_save`"],
        },
        Case {
            name: "no alpha",
            settings: |c| c["lora_alpha"] = Value::Null,
            tensors: as_it_is,
            says: &["`lora_alpha` is missing"],
        },
        Case {
            name: "one factor",
            settings: SAME,
            tensors: |t| drop(t.remove(Q_PROJ)),
            says: &["`model.layers.0.self_attn.q_proj.weight` lacks its lora_A"],
        },
        Case {
            name: "factors that do not fit",
            settings: SAME,
            tensors: |t| t.get_mut(&Q_PROJ.replace("lora_A", "lora_B")).unwrap().1.swap(0, 1),
            says: &["`model.layers.0.self_attn.q_proj.weight`", "[4, 16]", "do not fit"],
        },
        Case {
            name: "a magnitude",
            settings: SAME,
            tensors: |t| {
                drop(t.insert(Q_PROJ.replace("lora_A.weight", "lora_magnitude_vector"), t[Q_PROJ].clone()))
            },
            says: &["lora_magnitude_vector", "DoRA is not supported"],
        },
        Case {
            name: "a layer that the base lacks",
            settings: SAME,
            tensors: |t| {
                for factor in ["lora_A", "lora_B"] {
                    let name = Q_PROJ.replace("lora_A", factor);
                    t.insert(name.replace("layers.0", "layers.7"), t[&name].clone());
                }
            },
            says: &["updates `model.layers.7.self_attn.q_proj.weight`, which the base lacks"],
        },
        Case {
            name: "a tensor that is not peft's",
            settings: SAME,
            tensors: |t| drop(t.insert("q_proj.weight".to_owned(), t[Q_PROJ].clone())),
            says: &["`q_proj.weight` is not one that we know"],
        },
        Case {
            name: "a whole tensor that no model asks for",
            settings: SAME,
            tensors: |t| drop(t.insert("base_model.model.model.extra.weight".to_owned(), t[Q_PROJ].clone())),
            says: &["`model.extra.weight`", "not part of the architecture"],
        },
        Case {
            name: "no head",
            settings: SAME,
            tensors: |t| drop(t.remove("base_model.model.score.weight")),
            says: &["has no reward head"],
        },
    ];
    let (adapters, base) = lora("llama");
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&adapters[0], folder.path());
        let mut settings = read_json(&folder.path().join("adapter_config.json"));
        (case.settings)(&mut settings);
        std::fs::write(folder.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let file = folder.path().join("adapter_model.safetensors");
        let mut all = tensors_of(&file);
        (case.tensors)(&mut all);
        let views = all.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        let error =
            Loader::default().check(&over(&base, Mode::Warm, &[folder.path().to_owned()])).unwrap_err();
        let chain: Vec<String> =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
                .map(ToString::to_string)
                .collect();
        let chain = chain.join(": ");
        assert!(case.says.iter().all(|part| chain.contains(part)), "{}: {chain}", case.name);
    }
}

/// The same adapter in the names that older versions and hand-written scripts use.
#[test]
fn names_with_an_adapters_own_name_are_the_same_adapter() {
    let (adapters, base) = lora("llama");
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&adapters[0], folder.path());
    let file = folder.path().join("adapter_model.safetensors");
    let all = tensors_of(&file);
    let renamed: Vec<(String, TensorView<'_>)> = all
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            let name = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.");
            let name = name.replace("score.weight", "score.modules_to_save.default.weight");
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    std::fs::write(&file, safetensors::serialize(renamed, None).unwrap()).unwrap();
    let fingerprint =
        |adapter: &Path| load(&over(&base, Mode::Warm, &[adapter.to_owned()])).variant.info.fingerprint;
    assert_eq!(fingerprint(folder.path()), fingerprint(&adapters[0]));
}
