//! Our rewards against numbers made by Hugging Face `transformers`, and our merges against numpy in float64.
//!
//! The checkpoints and numbers under `tests/data` are made by `tests/reference/make_tiny.py` and
//! `tests/reference/merge.py`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use candle_core::Device;
use candle_core::Tensor;
use rewarm::checkpoint::Checkpoint;
use rewarm::merge;
use rewarm::model::RewardModel;
use rewarm::model::config::CheckpointConfig;
use rewarm::model::dtype::Dtype;
use rewarm::model::families::FAMILIES;
use rewarm::model::families::Family;
use rewarm::model::manifest::Manifest;
use rewarm::model::pooling::Pooling;
use rewarm::model::scorer::Forward;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::model::weights::TensorStore;
use rewarm::ops::Ops;
use rewarm::ops::batch::MIN_SHARED_PREFIX;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::batch::Sequence;
use rewarm::ops::composed::Composed;
use rewarm::ops::cpu::Cpu;
use rewarm::ops::cpu::Isa;
use rewarm::ops::cuda::Cuda;
use rewarm::values::Format;
use rewarm_cuda::play;
use rewarm_cuda::played::Play;
use rewarm_cuda::played::Played;
use serde::Deserialize;

/// Room for another order of summation in `f32`, and nothing else.
const F32_ATOL: f32 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    pooling: String,
    samples: Vec<GoldenSample>,
}

#[derive(Deserialize)]
struct GoldenSample {
    token_ids: Vec<u32>,
    type_ids: Option<Vec<u32>>,
    reward: f32,
    /// By transformers in the precision the weights are stored in.
    reward_low: Option<f32>,
}

impl Golden {
    /// Of a checkpoint.
    fn of(dir: &Path) -> Self {
        serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap()
    }

    fn sequences(&self) -> Vec<Sequence> {
        self.samples.iter().map(GoldenSample::sequence).collect()
    }
}

impl GoldenSample {
    fn sequence(&self) -> Sequence {
        let type_ids = self.type_ids.clone().unwrap_or_else(|| vec![0; self.token_ids.len()]);
        Sequence { token_ids: self.token_ids.clone(), type_ids }
    }
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn folders(path: &str) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(data(path)).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

/// A form of the operations: the composed one, the CPU's with an instruction set, or a GPU's on a card that is played.
#[derive(Clone, Copy, Debug)]
enum Form {
    Composed,
    Cpu(Isa),
    Cuda,
}

/// Those of them that compute a checkpoint: experts, latent and linear attention run on a CPU alone.
fn forms_of(dir: &Path) -> Vec<Form> {
    let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
    let is_on_cpu_alone = config.backbone.on_cpu_alone().is_some();
    forms().into_iter().filter(|form| !is_on_cpu_alone || !matches!(form, Form::Cuda)).collect()
}

/// Every form that this machine can run.
fn forms() -> Vec<Form> {
    let mut forms = vec![Form::Composed];
    forms.extend(Isa::all().into_iter().map(Form::Cpu));
    forms.extend(card().map(|_| Form::Cuda));
    forms
}

/// A card to play on; none without a C++ compiler.
fn card() -> Option<Arc<rewarm_cuda::device::Device>> {
    static CARD: OnceLock<Option<Arc<rewarm_cuda::device::Device>>> = OnceLock::new();
    let play = || {
        play::compiler()?;
        Some(Arc::new(rewarm_cuda::device::Device::new(Played::new(Play::new(Arc::new(play::Compiled))))))
    };
    CARD.get_or_init(play).clone()
}

/// What the tests ask a model, whatever its form.
struct Model {
    forward: Box<dyn Forward>,
    pooling: Pooling,
}

impl Form {
    fn load(self, dir: &Path, config_file: &str, format: Format, pooling: Option<Pooling>) -> Model {
        match self {
            Self::Composed => load_model(Composed { device: Device::Cpu, format }, dir, config_file, pooling),
            Self::Cpu(isa) => load_model(Cpu::with_isa(format, isa), dir, config_file, pooling),
            Self::Cuda => load_model(Cuda::new(card().unwrap(), format), dir, config_file, pooling),
        }
    }
}

fn load_model<O: Ops>(ops: O, dir: &Path, config_file: &str, pooling: Option<Pooling>) -> Model {
    let mut config = CheckpointConfig::load(&dir.join(config_file), &Manifest::default()).unwrap();
    config.pooling = pooling;
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = RewardModel::of_checkpoint(&checkpoint, &config, &Arc::new(ops), &mut TensorStore::default())
        .unwrap();
    let pooling = model.head().pooling();
    Model { forward: Box::new(model), pooling }
}

impl Model {
    fn rewards(&self, samples: &[Sequence]) -> Vec<f32> {
        self.forward.forward(&PackedBatch::pack(samples)).unwrap()
    }
}

#[test]
fn every_family_gives_the_rewards_of_transformers() {
    let mut failures = Vec::new();
    let mut checked = 0;
    for dir in folders("models") {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let golden = Golden::of(&dir);
        let sequences = golden.sequences();
        for config_file in ["config.json", "config_v4.json"] {
            if !dir.join(config_file).exists() {
                continue;
            }
            for form in forms_of(&dir) {
                let model = form.load(&dir, config_file, Format::F32, None);
                if model.pooling.name() != golden.pooling {
                    failures.push(format!("{name}: pooling {:?}, not {}", model.pooling, golden.pooling));
                }
                let packed = model.rewards(&sequences);
                for (index, sample) in golden.samples.iter().enumerate() {
                    let alone = model.rewards(&sequences[index..=index])[0];
                    for (how, reward) in [("packed", packed[index]), ("alone", alone)] {
                        checked += 1;
                        if (reward - sample.reward).abs() > F32_ATOL * sample.reward.abs().max(1.0) {
                            failures.push(format!(
                                "{name}/{config_file} sample {index} ({} tokens) {form:?} {how}: {reward}, \
                                 transformers {}",
                                sample.token_ids.len(),
                                sample.reward
                            ));
                        }
                    }
                    if !matches!(form, Form::Composed) && packed[index].to_bits() != alone.to_bits() {
                        failures
                            .push(format!("{name} sample {index} {form:?}: neighbours change the last bits"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {checked} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(checked > 400, "only {checked} rewards were checked");
}

/// The table of docs/pages/models.md is what runs: each family is in it, with the classes of its name, and is held to transformers
/// here and in `tests/gradients.rs`, unless its row says that it is not trained.
#[test]
fn the_page_tells_what_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("docs/pages/models.md")).unwrap();
    let (_, table) = readme.split_once("## What runs").unwrap();
    let (table, _) = table.split_once("\n\nEach is").unwrap();
    let told: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| `") && !line.contains("transformers")).collect();
    let kind = |dir: &Path| -> String {
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&config).unwrap()["model_type"].as_str().unwrap().to_owned()
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let checked: BTreeMap<String, String> =
        folders("models").iter().map(|dir| (name(dir), kind(dir))).collect();
    let differentiated: Vec<String> = folders("gradients")
        .iter()
        .filter_map(|path| checked.get(name(path).strip_suffix(".safetensors")?).cloned())
        .collect();
    for Family { model_type, class, .. } in &FAMILIES {
        let row = format!("| `{model_type}` | `{class}` |");
        let line = told.iter().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{row}"));
        assert!(checked.values().any(|checked| checked == model_type), "no rewards of {model_type}");
        let by_torch = *model_type != "internlm2"; // which transformers does not have
        let is_differentiated = differentiated.iter().any(|checked| checked == model_type);
        let is_trained =
            !["experts", "latent attention", "linear attention"].iter().any(|what| line.contains(what));
        assert_eq!(is_differentiated, is_trained && by_torch, "gradients of {model_type}");
        for (dir, _) in checked.iter().filter(|(_, checked)| *checked == model_type) {
            let file = data("models").join(dir).join("config.json");
            let config = CheckpointConfig::load(&file, &Manifest::default()).unwrap();
            let told = config.backbone.on_cpu_alone();
            assert_eq!(told.is_none(), is_trained, "{dir}");
            assert!(told.is_none_or(|what| line.contains(what)), "{dir}: {told:?}");
        }
    }
    assert_eq!(told.len(), FAMILIES.len(), "{told:?}");
}

/// transformers has the experts of a layer in two tensors in memory, and reads files that have them so (mergekit's): of each family
/// that has them apart on disk. `mixtral-stacked` is such a file, of which it has computed the rewards itself.
#[test]
fn stacked_experts_give_the_same_rewards() {
    let mut families = BTreeMap::new();
    for dir in folders("models") {
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        if !config.backbone.has_experts() {
            continue;
        }
        let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
        let is_apart = tensors.keys().any(|name| name.contains(".experts.0."));
        if !is_apart {
            continue;
        }
        let stacked = tempfile::tempdir().unwrap();
        std::fs::copy(dir.join("config.json"), stacked.path().join("config.json")).unwrap();
        let tensors = stack(tensors, config.model_type == "phimoe");
        candle_core::safetensors::save(&tensors, stacked.path().join("model.safetensors")).unwrap();
        let sequences = Golden::of(&dir).sequences();
        for form in [Form::Composed, Form::Cpu(Isa::best())] {
            let rewards = |dir: &Path| form.load(dir, "config.json", Format::F32, None).rewards(&sequences);
            assert_eq!(rewards(stacked.path()), rewards(&dir), "{} {form:?}", dir.display());
        }
        families.insert(config.model_type, ());
    }
    let expected = [
        "axk1",
        "deepseek_v2",
        "deepseek_v3",
        "hunyuan_v1_moe",
        "mixtral",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
    ];
    assert_eq!(families.into_keys().collect::<Vec<_>>(), expected);
}

/// Names and shapes that transformers has in memory: gate and up above each other, Mixtral's below `mlp`, and PhiMoE's router is one.
fn stack(tensors: HashMap<String, Tensor>, is_phimoe: bool) -> HashMap<String, Tensor> {
    let mut stacked = HashMap::new();
    let mut experts: BTreeMap<(String, usize), HashMap<&str, Tensor>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name.replace("block_sparse_moe", "mlp");
        let name = if is_phimoe { name.replace("mlp.gate", "mlp.router") } else { name };
        match name.split_once(".experts.") {
            Some((layer, rest)) => {
                let (expert, part) = rest.split_once('.').unwrap();
                let part = match part.strip_suffix(".weight").unwrap() {
                    "gate_proj" | "w1" => "gate",
                    "up_proj" | "w3" => "up",
                    "down_proj" | "w2" => "down",
                    other => panic!("{other}"),
                };
                experts.entry((layer.to_owned(), expert.parse().unwrap())).or_default().insert(part, tensor);
            }
            None => drop(stacked.insert(name, tensor)),
        }
    }
    let mut layers: BTreeMap<String, [Vec<Tensor>; 2]> = BTreeMap::new();
    for ((layer, _), of) in experts {
        let [gate_up, down] = layers.entry(layer).or_default();
        gate_up.push(Tensor::cat(&[&of["gate"], &of["up"]], 0).unwrap());
        down.push(of["down"].clone());
    }
    for (layer, [gate_up, down]) in layers {
        stacked.insert(format!("{layer}.experts.gate_up_proj"), Tensor::stack(&gate_up, 0).unwrap());
        stacked.insert(format!("{layer}.experts.down_proj"), Tensor::stack(&down, 0).unwrap());
    }
    stacked
}

/// Of every causal family, with windows, softcap, and every pooling rule: the samples, each with a few endings.
#[test]
fn shared_prefixes_change_no_reward() {
    let mut failures = Vec::new();
    let mut checked = 0;
    for dir in folders("models") {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let golden = Golden::of(&dir);
        let ending = |sample: &GoldenSample, length: usize| {
            let Sequence { mut token_ids, mut type_ids } = sample.sequence();
            let repeated: Vec<u32> = token_ids.iter().rev().cycle().take(length).copied().collect();
            token_ids.extend(repeated);
            type_ids.resize(token_ids.len(), 0);
            Sequence { token_ids, type_ids }
        };
        let endings = |sample| [0, 5, 0, 12, 1].map(|length| ending(sample, length));
        let samples = golden.samples.iter().filter(|sample| sample.token_ids.len() < 100);
        let sequences: Vec<Sequence> = samples.flat_map(endings).collect();
        let longest = sequences.iter().map(|sequence| sequence.token_ids.len()).max().unwrap();
        let cases = [(None, 1), (None, MIN_SHARED_PREFIX), (Some(Pooling::Mean), 1)];
        // a card that is played is slow
        let is_tried = |&(form, case): &(Form, _)| !matches!(form, Form::Cuda) || case == cases[0];
        for (form, (pooling, min_shared)) in
            forms_of(&dir).into_iter().flat_map(|form| cases.map(|case| (form, case))).filter(is_tried)
        {
            let model = form.load(&dir, "config.json", Format::F32, pooling);
            if !model.forward.shares_prefixes(longest) {
                let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
                let depends_on_length = ["llama-rope-dynamic", "phi3-longrope"].contains(&&*name);
                assert!(depends_on_length || !config.backbone.is_causal(), "{name}");
                continue;
            }
            let apart = model.rewards(&sequences);
            let batch = PackedBatch::pack_shared(&sequences, min_shared);
            assert!(batch.shared_tokens() > batch.num_rows(), "{name}: {} shared", batch.shared_tokens());
            let shared = model.forward.forward(&batch).unwrap();
            for (index, (ours, apart)) in shared.iter().zip(&apart).enumerate() {
                checked += 1;
                // candle's products depend on their number of rows, ours do not
                let tolerance = match form {
                    Form::Composed => F32_ATOL * apart.abs().max(1.0),
                    Form::Cpu(_) | Form::Cuda => 0.0,
                };
                if (ours - apart).abs() > tolerance {
                    let how = model.pooling;
                    failures.push(format!(
                        "{name} {form:?} {how:?} {min_shared}, {index}: {ours}, apart {apart}"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {checked} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(checked > 1000, "only {checked} rewards were checked");
}

/// Low precision has no reference to the last place: the error against `f32` must be of the size that
/// transformers itself makes.
#[test]
fn half_precision_errs_no_more_than_transformers_does() {
    for (name, dtype) in [("llama-f16", Format::F16), ("llama-bf16", Format::Bf16)] {
        let dir = data("models").join(name);
        let golden = Golden::of(&dir);
        let sequences = golden.sequences();
        let worst = |pairs: Vec<(f32, f32)>| pairs.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let their_error = worst(golden.samples.iter().map(|s| (s.reward, s.reward_low.unwrap())).collect());
        for form in forms() {
            let model = form.load(&dir, "config.json", dtype, None);
            let ours = model.rewards(&sequences);
            let alone: Vec<f32> =
                sequences.iter().flat_map(|s| model.rewards(std::slice::from_ref(s))).collect();
            if !matches!(form, Form::Composed) {
                assert_eq!(ours, alone, "{name} {form:?}: neighbours change the last bits");
            }
            let our_error = worst(golden.samples.iter().map(|s| s.reward).zip(ours).collect());
            assert!(
                our_error < 3.0 * their_error,
                "{name} {form:?}: {our_error}, transformers' {their_error}"
            );
            // f16 on a CPU is the weights' precision: they are multiplied in f32
            let is_exact = matches!(form, Form::Cpu(isa) if dtype == Format::F16 || !isa.multiplies_bf16());
            assert_eq!(our_error < F32_ATOL, is_exact, "{name} {form:?}: {our_error}");
        }
    }
}

/// The demo's weights are f16; copies of them are what f32 and bf16 checkpoints are.
#[test]
fn dtype_auto_is_one_that_is_told_and_never_narrows_f16_weights() {
    let fast = if Isa::best().prefers_bf16() { "bf16" } else { "f32" };
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo/member-0");
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo.join(file), copy.path().join(file)).unwrap();
    }
    let tensors = candle_core::safetensors::load(demo.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(candle_core::DType::F32).unwrap()))
        .collect();
    candle_core::safetensors::save(&tensors, copy.path().join("model.safetensors")).unwrap();
    for (path, expected) in [(demo.as_path(), "f32"), (copy.path(), fast)] {
        let mut config = VariantConfig::new("auto", Mode::Warm, vec![path.to_owned()]);
        config.dtype = Dtype::Auto;
        let auto = Loader::default().load(&config, &mut |_, _| ()).unwrap().info;
        assert_eq!(auto.dtype.name(), expected, "{}", path.display());
        config.dtype = if expected == "f32" { Dtype::F32 } else { Dtype::Bf16 };
        let told = Loader::default().load(&config, &mut |_, _| ()).unwrap().info;
        assert_eq!(auto.fingerprint, told.fingerprint, "auto is what it says");
    }
}

#[test]
fn merged_weights_equal_a_float64_merge_rounded_once_bit_for_bit() {
    let mut checked = 0;
    for dir in folders("merge") {
        let members: Vec<Checkpoint> =
            (0..3).map(|i| Checkpoint::open(&dir.join(format!("member-{i}"))).unwrap()).collect();
        for (which, coefficients) in [("equal", [1.0 / 3.0; 3]), ("weighted", [0.5, 0.3, 0.2])] {
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let path = dir.join(format!("expected-{which}-{format}.safetensors"));
                let bytes = std::fs::read(&path).unwrap();
                let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                assert_eq!(expected.len(), members[0].names().count());
                for name in members[0].names() {
                    let mut sources: Vec<_> =
                        members.iter().map(|m| m.read(name).unwrap()).zip(coefficients).collect();
                    let room = |dtype, bytes| members[0].room(dtype, bytes);
                    let ours = merge::average(name, &mut sources, format, room).unwrap();
                    assert!(
                        ours.bytes() == expected.tensor(name).unwrap().data(),
                        "{}: {name}",
                        path.display()
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 200, "only {checked} tensors were checked");
}
