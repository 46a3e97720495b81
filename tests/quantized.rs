//! Quantized checkpoints, as libraries write them (`tests/reference/quantized.py`): their weights bit for bit, their rewards, and
//! what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod checkpoints;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use checkpoints::Noise;
use checkpoints::TinyCheckpoint;
use program::root;
use program::text;
use rewarm::checkpoint::Checkpoint;
use rewarm::checkpoint::hex;
use rewarm::learn::trainable::LoadOptions;
use rewarm::learn::trainable::Trainable;
use rewarm::values::Format;
use safetensors::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

/// Between our f32 forward and that of transformers, on the same weights.
const REWARD_ATOL: f64 = 2e-5;

/// Every fixture, by name.
fn fixtures() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(root().join("tests/data/quantized"))
        .unwrap()
        .map(|entry| (entry.as_ref().unwrap().file_name().into_string().unwrap(), entry.unwrap().path()))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A checkpoint, to be changed and written.
#[derive(Clone)]
struct Files {
    config: Value,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    /// `hf_quant_config.json`.
    modelopt: Option<Vec<u8>>,
}

fn tensors_of(path: &Path) -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
    let file = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let tensor =
            Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        (name, tensor)
    };
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    (tensors.tensors().into_iter().map(tensor).collect(), metadata)
}

impl Files {
    fn of(name: &str) -> Self {
        let dir = root().join("tests/data/quantized").join(name);
        let (tensors, metadata) = tensors_of(&dir.join("model.safetensors"));
        let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        Self { config, tensors, metadata, modelopt: fs::read(dir.join("hf_quant_config.json")).ok() }
    }

    /// The same model with the weights that the library makes of it.
    fn dequantized(name: &str) -> Self {
        let mut files = Self::of(name);
        let (expected, _) =
            tensors_of(&root().join("tests/data/quantized").join(name).join("expected.safetensors"));
        let stem = |name: &str| name.split(".weight").next().unwrap().to_owned();
        let modules: Vec<String> = expected.keys().map(|name| stem(name)).collect();
        let is_part = |name: &str, module: &String| {
            name.strip_prefix(&**module)
                .is_some_and(|rest| [".", "_blocks", "_scales"].iter().any(|end| rest.starts_with(end)))
        };
        files.tensors.retain(|name, _| !modules.iter().any(|module| is_part(name, module)));
        files.tensors.extend(expected);
        files.config.as_object_mut().unwrap().remove("quantization_config");
        files.modelopt = None;
        files
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(1).write(dir.path()); // for its tokenizer
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        if let Some(settings) = &self.modelopt {
            fs::write(dir.path().join("hf_quant_config.json"), settings).unwrap();
        }
        self.write_weights(dir.path());
        dir
    }

    fn write_weights(&self, dir: &Path) {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".to_owned(), json!(self.metadata));
        let (mut data, mut at) = (Vec::new(), 0);
        for (name, tensor) in &self.tensors {
            let end = at + tensor.bytes.len();
            let info = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
            header.insert(name.clone(), info);
            data.extend(&tensor.bytes);
            at = end;
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        fs::write(dir.join("model.safetensors"), file).unwrap();
    }
}

fn score(dir: &Path) -> Vec<f64> {
    score_in(dir, "f32")
}

fn score_in(dir: &Path, dtype: &str) -> Vec<f64> {
    let output = program::score(&["--model", dir.to_str().unwrap(), "--dtype", dtype], golden_ids());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap())
        .collect()
}

/// The samples of every golden file.
fn golden_ids() -> String {
    golden("fp8-blocks").iter().map(|(ids, _)| format!("{}\n", json!({"token_ids": ids}))).collect()
}

fn golden(name: &str) -> Vec<(Value, f64)> {
    let path = root().join("tests/data/quantized").join(name).join("golden.json");
    let golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let samples = golden["samples"].as_array().unwrap().iter();
    samples.map(|sample| (sample["token_ids"].clone(), sample["reward"].as_f64().unwrap())).collect()
}

#[test]
fn weights_are_those_of_the_library_bit_for_bit() {
    let mut failures = Vec::new();
    for (name, dir) in fixtures() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let expected = Files::dequantized(&name).tensors;
        let names: Vec<&str> = checkpoint.names().collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, expected) in expected {
            let read = checkpoint.read(&tensor).unwrap();
            let found = (read.dtype, read.shape, read.values.format().map(Format::bytes));
            let count: usize = expected.shape.iter().product();
            assert_eq!(
                found,
                (expected.dtype, &*expected.shape, Some(expected.bytes.len() / count)),
                "{name}: {tensor}"
            );
            let size = expected.bytes.len() / count;
            let (ours, theirs) = (read.values.bytes().chunks(size), expected.bytes.chunks(size));
            let wrong = ours.clone().zip(theirs).filter(|(ours, theirs)| ours != theirs).count();
            if wrong > 0 {
                failures.push(format!("{name}: {tensor}: {wrong} of {count}"));
            }
            // a part of it, and all of it once more
            let sample = checkpoint.sample(&tensor, 7).unwrap();
            let first = (count - sample.count()) / 2 * size;
            assert_eq!(
                sample.values.bytes(),
                &read.values.bytes()[first..][..sample.count() * size],
                "{name}: {tensor}"
            );
            assert_eq!(
                checkpoint.read(&tensor).unwrap().values.bytes(),
                read.values.bytes(),
                "{name}: {tensor}"
            );
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn rewards_are_those_of_the_dequantized_checkpoint_bit_for_bit() {
    for (name, _) in fixtures() {
        let (quantized, plain) = (Files::of(&name).write(), Files::dequantized(&name).write());
        let rewards = score(quantized.path());
        assert_eq!(rewards, score(plain.path()), "{name}");
        for (reward, (_, expected)) in rewards.iter().zip(golden(&name)) {
            assert!(
                (reward - expected).abs() < REWARD_ATOL,
                "{name}: {reward}, and transformers has {expected}"
            );
        }
    }
}

#[test]
fn a_merge_and_a_training_of_quantized_members_are_plain() {
    let names = ["fp8-blocks", "ct-packed"];
    let members = names.map(|name| Files::of(name).write());
    let plain = names.map(|name| Files::dequantized(name).write());
    let merge = |members: &[TempDir; 2]| {
        let output = tempfile::tempdir().unwrap().path().join("merged");
        let mut args = vec!["merge"];
        args.extend(members.iter().map(|member| member.path().to_str().unwrap()));
        args.extend(["--dtype", "f32", "--output", output.to_str().unwrap()]);
        let merged = program::run(&args);
        assert!(merged.status.success(), "{}", text(&merged.stderr));
        output
    };
    let (merged, expected) = (merge(&members), merge(&plain));
    assert_eq!(
        tensors_of(&merged.join("model.safetensors")),
        tensors_of(&expected.join("model.safetensors"))
    );
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.get("quantization_config"), None);
    assert_eq!(score(&merged), score(&expected));

    let trained = tempfile::tempdir().unwrap().path().join("trained");
    let base = Trainable::load(members[0].path(), &LoadOptions::default()).unwrap();
    base.save(&trained, Format::F32, &[]).unwrap();
    assert_eq!(score(&trained), score(plain[0].path()));
    for dir in [merged, expected, trained] {
        fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    }
}

/// Trainers pin fingerprints, over versions of this program too.
#[test]
fn digests_stay_what_they_are() {
    let digests = ["fp8-blocks", "ct-packed", "bnb-nf4", "gptq-v1", "mxfp4"].map(|name| {
        let checkpoint = Checkpoint::open(&root().join("tests/data/quantized").join(name)).unwrap();
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        hex(&checkpoint.digest_of(&names).unwrap())[..16].to_owned()
    });
    assert_eq!(
        digests,
        ["c12bf28579013dbe", "d40226d379e4f037", "77cd75e8f7584ea1", "1b50871332381153", "1a170b9fa299b041"]
    );
}

/// What is served in 16 bits is the exact product, rounded once, and the head is exact.
#[test]
fn rewards_in_16_bits_are_those_of_the_dequantized_checkpoint() {
    for (name, _) in fixtures() {
        let (quantized, plain) = (Files::of(&name).write(), Files::dequantized(&name).write());
        for dtype in ["bf16", "f16"] {
            assert_eq!(score_in(quantized.path(), dtype), score_in(plain.path(), dtype), "{name}: {dtype}");
        }
    }
}

/// QLoRA: what was trained on a quantized base is scored on what the base means.
#[test]
fn an_adapter_over_a_quantized_base_is_one_over_the_plain_base() {
    let (quantized, plain) = (Files::of("bnb-nf4").write(), Files::dequantized("bnb-nf4").write());
    let adapter = tempfile::tempdir().unwrap();
    let settings = json!({"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    fs::write(adapter.path().join("adapter_config.json"), settings.to_string()).unwrap();
    let mut noise = Noise::new(3);
    let mut factor = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|_| 0.5 * noise.draw()).collect();
        Tensor { dtype: Dtype::F32, shape: vec![rows, columns], bytes: bytes_of(&values) }
    };
    let files = Files {
        tensors: BTreeMap::from([
            (format!("base_model.model.{Q}.lora_A.weight"), factor(2, 64)),
            (format!("base_model.model.{Q}.lora_B.weight"), factor(64, 2)),
        ]),
        ..Files::of("bnb-nf4")
    };
    files.write_weights(adapter.path());
    let weights = adapter.path().join("adapter_model.safetensors");
    fs::rename(adapter.path().join("model.safetensors"), weights).unwrap();
    let score = |base: &TempDir| {
        let [adapter, base] = [adapter.path(), base.path()].map(|path| path.to_str().unwrap());
        let output = program::score(&["--model", adapter, "--base", base, "--dtype", "f32"], golden_ids());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let with_adapter = score(&quantized);
    assert_eq!(with_adapter, score(&plain));
    let rewards =
        with_adapter.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64());
    assert_ne!(rewards.map(Option::unwrap).collect::<Vec<_>>(), self::score(quantized.path()));
}

/// transformers would quantize it, if it can; the tensors say that nobody has.
#[test]
fn plain_weights_under_a_quantized_config_are_read_as_they_are() {
    for (name, _) in fixtures() {
        let plain = Files::dequantized(&name);
        let files =
            Files { config: Files::of(&name).config, modelopt: Files::of(&name).modelopt, ..plain.clone() };
        assert_eq!(score(files.write().path()), score(plain.write().path()), "{name}");
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// One way to spoil a fixture, and parts of the error.
struct Case {
    what: &'static str,
    fixture: &'static str,
    spoil: fn(&mut Files),
    says: &'static [&'static str],
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const EXPERTS: &str = "model.layers.0.mlp.experts";

impl Files {
    fn drop(&mut self, name: &str) -> Tensor {
        self.tensors.remove(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Cuts a tensor to its first rows.
    fn cut(&mut self, name: &str, rows: usize) {
        let tensor = self.tensors.get_mut(name).unwrap();
        let row = tensor.bytes.len() / tensor.shape[0];
        tensor.shape[0] = rows;
        tensor.bytes.truncate(rows * row);
    }

    fn settings(&mut self) -> &mut Value {
        &mut self.config["quantization_config"]
    }
}

#[test]
fn what_is_not_what_its_scheme_says_is_refused_by_name() {
    let case = |what, fixture, spoil, says| Case { what, fixture, spoil, says };
    let cases = [
        case(
            "a method",
            "fp8-blocks",
            |f| f.settings()["quant_method"] = json!("higgs"),
            &["`higgs`", "fp8, ", "dequantize()"],
        ),
        case(
            "no method",
            "fp8-blocks",
            |f| drop(f.settings().as_object_mut().unwrap().remove("quant_method")),
            &["`quant_method` is missing"],
        ),
        case(
            "no settings",
            "fp8-blocks",
            |f| drop(f.config.as_object_mut().unwrap().remove("quantization_config")),
            &["10 tensors", "down_proj.qscale_weight"],
        ),
        case(
            "fp8: no scale",
            "fp8-blocks",
            |f| drop(f.drop(&format!("{Q}.weight_scale_inv"))),
            &["q_proj.weight` is stored as F8_E4M3", "is missing"],
        ),
        case(
            "fp8: the scale of another",
            "fp8-blocks",
            |f| {
                let scale = f.drop(&format!("{Q}.weight_scale_inv"));
                f.tensors.insert(format!("{Q}.weight_scale"), scale);
            },
            &[
                "q_proj.weight` is",
                "`model.layers.0.self_attn.q_proj.weight_scale` is the scale of another method",
                "compressed-tensors",
            ],
        ),
        case(
            "fp8: no codes",
            "fp8-blocks",
            |f| drop(f.drop(&format!("{Q}.weight"))),
            &["q_proj.weight_scale_inv` is left over"],
        ),
        case(
            "fp8: too few scales",
            "fp8-blocks",
            |f| f.cut(&format!("{Q}.weight_scale_inv"), 2),
            &["q_proj.weight_scale_inv` is [2, 2]", "12 by 16"],
        ),
        case(
            "fp8: other blocks",
            "fp8-blocks",
            |f| f.settings()["weight_block_size"] = json!([16, 16]),
            &["down_proj.qscale_weight` is [3, 3]", "16 by 16"],
        ),
        case(
            "fp8: blocks of nothing",
            "fp8-blocks",
            |f| f.settings()["weight_block_size"] = json!([0, 16]),
            &["`weight_block_size` is [0, 16]"],
        ),
        case(
            "ct: no scale",
            "ct-bytes",
            |f| drop(f.drop(&format!("{Q}.weight_scale"))),
            &["q_proj.weight_scale` is missing"],
        ),
        case(
            "ct: sparse",
            "ct-bytes",
            |f| f.settings()["sparsity_config"] = json!({"format": "sparse-24-bitmask"}),
            &["`sparsity_config`", "sparse weights"],
        ),
        case(
            "ct: a transform",
            "ct-bytes",
            |f| f.settings()["transform_config"] = json!({"config_groups": {"R1": {}}}),
            &["`transform_config`"],
        ),
        case(
            "ct: a scale of a dense weight",
            "ct-fours",
            |f| {
                let scale = f.tensors[&format!("{Q}.weight_scale")].clone();
                f.tensors.insert("score.weight_scale".to_owned(), scale);
            },
            &["`score.weight_scale` is left over"],
        ),
        case(
            "ct: no shape",
            "ct-packed",
            |f| drop(f.drop(&format!("{Q}.weight_shape"))),
            &["q_proj.weight_shape` is missing"],
        ),
        case(
            "ct: other bits",
            "ct-packed",
            |f| f.settings()["config_groups"]["group_0"]["weights"]["num_bits"] = json!(7),
            &["k_proj.weight_packed` is [16, 4]", "no group"],
        ),
        case(
            "ct: zeros as they are not",
            "ct-packed",
            |f| f.cut("model.layers.0.self_attn.v_proj.weight_zero_point", 1),
            &["v_proj.weight_zero_point` is I32 [1, 4]"],
        ),
        case(
            "ct: the global scale is missing",
            "ct-fours",
            |f| drop(f.drop(&format!("{Q}.weight_global_scale"))),
            &["q_proj.weight_scale` is F8_E4M3", "weight_global_scale"],
        ),
        case(
            "bnb: no state",
            "bnb-nf4",
            |f| drop(f.drop(&format!("{Q}.weight.quant_state.bitsandbytes__nf4"))),
            &["q_proj.weight.absmax` is left over"],
        ),
        case(
            "bnb: no nested scales",
            "bnb-nf4",
            |f| drop(f.drop(&format!("{Q}.weight.nested_absmax"))),
            &["q_proj.weight.nested_absmax` is missing"],
        ),
        case(
            "bnb: too few scales",
            "bnb-nf4",
            |f| f.cut(&format!("{Q}.weight.absmax"), 5),
            &["q_proj.weight.absmax` is [5]", "4096 values in blocks of 64"],
        ),
        case(
            "bnb: too few codes",
            "bnb-nf4",
            |f| f.cut(&format!("{Q}.weight"), 100),
            &["q_proj.weight` has 100 bytes of codes", "2048"],
        ),
        case(
            "gptq: no zeros",
            "gptq-v1",
            |f| drop(f.drop(&format!("{Q}.qzeros"))),
            &["q_proj.qzeros` is missing"],
        ),
        case(
            "gptq: another format",
            "gptq-v1",
            |f| f.settings()["checkpoint_format"] = json!("marlin"),
            &["`checkpoint_format` is `marlin`"],
        ),
        case(
            "gptq: too few groups",
            "gptq-v1",
            |f| f.cut(&format!("{Q}.scales"), 1),
            &["q_proj.qweight` is I32 [4, 32]", "scales` [1, 32]"],
        ),
        case(
            "gptq: a group that is not there",
            "gptq-v1",
            |f| f.tensors.get_mut(&format!("{Q}.g_idx")).unwrap().bytes[0] = 9,
            &["q_proj.weight` cannot be dequantized", "q_proj.g_idx` names the group 9, there are 2"],
        ),
        case(
            "awq: another layout",
            "awq",
            |f| f.settings()["version"] = json!("gemv"),
            &["`version` is \"gemv\"", "gemm"],
        ),
        case(
            "awq: too few groups",
            "awq",
            |f| f.cut(&format!("{Q}.scales"), 1),
            &["q_proj.scales` is [1, 32]", "qzeros` [2, 4]"],
        ),
        case(
            "mxfp4: no scales",
            "mxfp4",
            |f| drop(f.drop(&format!("{EXPERTS}.down_proj_scales"))),
            &["down_proj_scales` is missing"],
        ),
        case(
            "mxfp4: too few scales",
            "mxfp4",
            |f| f.cut(&format!("{EXPERTS}.down_proj_scales"), 2),
            &["down_proj_scales` is U8 [2, 64, 1]", "[3, 64, 1, 16]"],
        ),
        case(
            "mxfp4: a power that is no number",
            "mxfp4",
            |f| f.tensors.get_mut(&format!("{EXPERTS}.down_proj_scales")).unwrap().bytes.fill(255),
            &["down_proj` holds a value that is not finite"],
        ),
        case(
            "torchao: no metadata",
            "torchao",
            |f| f.metadata.clear(),
            &["down_proj._weight_qdata` is quantized, and the metadata"],
        ),
        case(
            "torchao: another kind",
            "torchao",
            |f| drop(f.metadata.insert(format!("{Q}.weight"), r#"{"_type": "Int4Tensor"}"#.to_owned())),
            &["q_proj.weight` is of the kind Int4Tensor", "Float8Tensor"],
        ),
        case(
            "torchao: no scale",
            "torchao",
            |f| drop(f.drop(&format!("{Q}._weight_scale"))),
            &["q_proj._weight_scale` is missing"],
        ),
        case(
            "modelopt: no scale",
            "modelopt-fp8",
            |f| drop(f.drop(&format!("{Q}.weight_scale"))),
            &["q_proj.weight_scale` is missing"],
        ),
        case(
            "modelopt: smoothed",
            "modelopt-fp8",
            |f| {
                let ones = f.tensors["model.norm.weight"].clone();
                f.tensors.insert(format!("{Q}.pre_quant_scale"), ones);
            },
            &["q_proj.pre_quant_scale` is left over"],
        ),
        case(
            "bnb: a layout of a card",
            "bnb-int8",
            |f| f.tensors.get_mut(&format!("{Q}.weight_format")).unwrap().bytes[0] = 2,
            &["q_proj.weight_format` is [2]"],
        ),
    ];
    let mut failures = Vec::new();
    for Case { what, fixture, spoil, says } in cases {
        let mut files = Files::of(fixture);
        spoil(&mut files);
        let dir = files.write();
        // nothing to score: it ends before it would read that
        let output = program::run(&["score", "--model", dir.path().to_str().unwrap()]);
        let error = text(&output.stderr);
        let missing: Vec<&&str> = says.iter().filter(|word| !error.contains(**word)).collect();
        if output.status.success() || !missing.is_empty() {
            failures.push(format!("{what}: {missing:?} not in {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Whatever a file says, it is a checkpoint or an error that names a tensor or a file.
#[test]
fn files_that_are_cut_swapped_or_absurd_are_errors() {
    let mut noise = Noise::new(7);
    let mut random =
        |below: usize| ((f64::from(noise.draw()) + 1.0) / 2.0 * below as f64) as usize % below.max(1);
    for (name, _) in fixtures() {
        let whole = Files::of(&name);
        let dir = whole.write();
        let names: Vec<&String> = whole.tensors.keys().collect();
        for _ in 0..150 {
            let mut files = whole.clone();
            for _ in 0..1 + random(2) {
                let one = names[random(names.len())];
                let other = names[random(names.len())].clone();
                let Some(tensor) = files.tensors.get_mut(one) else { continue };
                match random(8) {
                    0 => drop(files.tensors.remove(one)),
                    1 => {
                        let moved = files.tensors.remove(one).unwrap();
                        files.tensors.insert(other, moved);
                    }
                    2 if tensor.shape.first().is_some_and(|rows| *rows > 0) => {
                        let rows = random(tensor.shape[0]);
                        files.cut(one, rows);
                    }
                    3 => tensor.shape.reverse(),
                    4 => tensor.shape = vec![tensor.shape.iter().product()],
                    5 if random(4) == 0 => {
                        // as much as nothing
                        tensor.bytes.clear();
                        tensor.shape = vec![[0, 3, usize::MAX >> 3][random(3)], 0];
                    }
                    5 => tensor.shape.insert(0, 1),
                    6 => {
                        let of_size = match tensor.dtype.bitsize() {
                            8 => [Dtype::U8, Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E8M0],
                            16 => [Dtype::F16, Dtype::BF16, Dtype::I16, Dtype::U16],
                            32 => [Dtype::F32, Dtype::I32, Dtype::U32, Dtype::I32],
                            _ => [Dtype::F64, Dtype::I64, Dtype::U64, Dtype::I64],
                        };
                        tensor.dtype = of_size[random(4)];
                    }
                    _ => {
                        for _ in 0..1 + random(4) {
                            if !tensor.bytes.is_empty() {
                                let at = random(tensor.bytes.len());
                                tensor.bytes[at] = random(256) as u8;
                            }
                        }
                    }
                }
            }
            files.write_weights(dir.path());
            let read = || -> Result<(), rewarm::checkpoint::CheckpointError> {
                let checkpoint = Checkpoint::open(dir.path())?;
                for name in checkpoint.names().map(str::to_owned).collect::<Vec<_>>() {
                    let tensor = checkpoint.read(&name)?;
                    assert_eq!(tensor.count(), tensor.shape.iter().product::<usize>(), "{name}");
                }
                Ok(())
            };
            if let Err(error) = read() {
                let error = error.to_string();
                assert!(error.contains("tensor `") || error.contains("model.safetensors"), "{name}: {error}");
            }
        }
    }
}
