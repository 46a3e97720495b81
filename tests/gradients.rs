//! Gradients and optimiser steps against numbers made by torch.
//!
//! `tests/data/gradients` is made by `tests/reference/gradients.py`; the models are those of `tests/data/models`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;

use candle_core::Device;
use candle_core::Tensor;
use candle_core::Var;
use rewarm::learn::adamw::AdamW;
use rewarm::learn::adamw::AdamWOptions;
use rewarm::learn::adamw::clip_gradients;
use rewarm::learn::parameter::Parameter;
use rewarm::learn::trainable::LoadOptions;
use rewarm::learn::trainable::Objective;
use rewarm::learn::trainable::StepGradients;
use rewarm::learn::trainable::TokenPair;
use rewarm::learn::trainable::Trainable;
use rewarm::ops::batch::Sequence;
use rewarm::values::Format;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

/// Of the norm of a gradient: ours in `f32` from torch's in `f64`. Seen: 2e-6.
const GRADIENT_RTOL: f64 = 1e-4;
/// Of a gradient that is zero but for rounding, such as of BERT's key biases, to the norm of all gradients.
const ZERO_RTOL: f64 = 1e-6;
/// Of parameters and rewards after steps of AdamW.
const STEP_ATOL: f32 = 1e-5;

const PLAIN: Objective =
    Objective { centering: 0.0, dropout: 0.0, dropout_seed: 0, micro_batch_tokens: 10_000 };

#[derive(Deserialize)]
struct Expected {
    models: BTreeMap<String, ExpectedModel>,
    steps: BTreeMap<String, ExpectedSteps>,
}

#[derive(Deserialize)]
struct ExpectedModel {
    pairs: Vec<[usize; 2]>,
    centering: f64,
    loss: f64,
    rewards: Vec<[f32; 2]>,
}

#[derive(Deserialize)]
struct ExpectedSteps {
    options: TorchOptions,
    learning_rate: f64,
    /// After each step.
    rewards: Vec<Vec<[f32; 2]>>,
}

#[derive(Deserialize)]
struct TorchOptions {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

impl TorchOptions {
    fn ours(&self) -> AdamWOptions {
        let [beta1, beta2] = self.betas;
        AdamWOptions { beta1, beta2, eps: self.eps, weight_decay: self.weight_decay }
    }
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(data(path)).unwrap()).unwrap()
}

fn expected() -> Expected {
    read_json("gradients/gradients.json")
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data(path), &Device::Cpu).unwrap()
}

/// A copy of a tiny model with a tokenizer, which some lack.
fn with_tokenizer(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for from in [data("models/llama"), data("models").join(name)] {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn load(name: &str, options: &LoadOptions) -> Trainable {
    Trainable::load(with_tokenizer(name).path(), options).unwrap()
}

fn all() -> LoadOptions {
    LoadOptions::default()
}

fn pairs(name: &str, places: &[[usize; 2]]) -> Vec<TokenPair> {
    let golden: Value = read_json(&format!("models/{name}/golden.json"));
    let sequence = |place: usize| {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(golden["samples"][place][key].clone()).ok();
        let token_ids = ids("token_ids").unwrap();
        Sequence { type_ids: ids("type_ids").unwrap_or_else(|| vec![0; token_ids.len()]), token_ids }
    };
    let pair = |&[chosen, rejected]: &[usize; 2]| TokenPair {
        chosen: sequence(chosen),
        rejected: sequence(rejected),
    };
    places.iter().map(pair).collect()
}

fn gradients(model: &Trainable, pairs: &[TokenPair], objective: &Objective) -> StepGradients {
    model.gradients(&pairs.iter().collect::<Vec<_>>(), objective).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn norm<'a>(values: impl IntoIterator<Item = &'a f32>) -> f64 {
    values.into_iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn assert_near(what: &str, ours: &[f32], theirs: &[f32], atol: f32) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= atol, "{what}[{index}]: ours {a}, torch {b}");
    }
}

#[test]
fn every_parameters_gradient_is_torchs_in_every_family() {
    let mut failures = Vec::new();
    let mut worst: f64 = 0.0;
    for (name, expected) in expected().models {
        let model = load(&name, &all());
        let pairs = pairs(&name, &expected.pairs);
        let theirs = tensors(&format!("gradients/{name}.safetensors"));
        let of_all = norm(theirs.values().flat_map(values).collect::<Vec<_>>().iter());
        for micro_batch_tokens in [10_000, 1] {
            let objective = Objective { centering: expected.centering, micro_batch_tokens, ..PLAIN };
            let ours = gradients(&model, &pairs, &objective);
            assert!((ours.loss - expected.loss).abs() < 1e-5, "{name}: {} {}", ours.loss, expected.loss);
            for (place, [chosen, rejected]) in expected.rewards.iter().enumerate() {
                assert!((ours.chosen[place] - chosen).abs() < 1e-5, "{name} pair {place}");
                assert!((ours.rejected[place] - rejected).abs() < 1e-5, "{name} pair {place}");
            }
            let names: Vec<&str> = model.parameters().iter().map(|parameter| &*parameter.name).collect();
            let unknown: Vec<_> = theirs.keys().filter(|key| !names.contains(&&***key)).collect();
            assert!(unknown.is_empty() && names.len() == theirs.len(), "{name}: not trained: {unknown:?}");
            for (parameter, gradient) in model.parameters().iter().zip(&ours.gradients) {
                let theirs = values(&theirs[&parameter.name]);
                let of_this = norm(&theirs);
                let distance = distance(&values(gradient), &theirs);
                let relative = distance / of_this;
                if of_this > ZERO_RTOL * of_all {
                    worst = worst.max(relative);
                }
                if distance > (GRADIENT_RTOL * of_this).max(ZERO_RTOL * of_all) || !distance.is_finite() {
                    failures.push(format!("{name} {}: {relative:e} of {of_this:e}", parameter.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    println!("the worst relative distance is {worst:e}");
}

#[test]
fn three_steps_of_training_are_torchs() {
    let expected = expected();
    for (name, steps) in expected.steps {
        let model = load(&name, &all());
        let of_model = &expected.models[&name];
        let pairs = pairs(&name, &of_model.pairs);
        let objective = Objective { centering: of_model.centering, ..PLAIN };
        let mut optimizer = AdamW::new(model.parameters(), steps.options.ours());
        for (step, rewards) in steps.rewards.iter().enumerate() {
            let gradients = gradients(&model, &pairs, &objective).gradients;
            optimizer.step(model.parameters(), &gradients, steps.learning_rate).unwrap();
            let sequences: Vec<_> = pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]).collect();
            let ours = model.rewards(&sequences).unwrap();
            assert_near(&format!("{name} step {step}"), &ours, &rewards.concat(), STEP_ATOL);
        }
        let theirs = tensors(&format!("gradients/{name}.stepped.safetensors"));
        for parameter in model.parameters() {
            if parameter.name.ends_with("key.bias") {
                continue; // BERT's have a gradient of rounding noise only, which AdamW scales to full steps
            }
            assert_near(
                &parameter.name,
                &values(&parameter.var),
                &values(&theirs[&parameter.name]),
                STEP_ATOL,
            );
        }
    }
}

#[derive(Deserialize)]
struct Made {
    options: TorchOptions,
    rates: Vec<f64>,
    shapes: Vec<Vec<usize>>,
    start: Vec<Vec<f32>>,
    gradients: Vec<Vec<Vec<f32>>>,
    after: Vec<Vec<Vec<f32>>>,
    clipped: Vec<Clipped>,
}

#[derive(Deserialize)]
struct Clipped {
    max_norm: f64,
    norm: f64,
    gradients: Vec<Vec<f32>>,
}

impl Made {
    fn tensors(&self, values: &[Vec<f32>]) -> Vec<Tensor> {
        let shaped = values.iter().zip(&self.shapes);
        shaped.map(|(v, shape)| Tensor::from_slice(v, shape.as_slice(), &Device::Cpu).unwrap()).collect()
    }

    fn parameters(&self) -> Vec<Parameter> {
        let start = self.tensors(&self.start).into_iter().zip(["matrix", "vector"]);
        start
            .map(|(tensor, name)| Parameter {
                name: name.to_owned(),
                var: Var::from_tensor(&tensor).unwrap(),
                decays: tensor.rank() > 1,
            })
            .collect()
    }
}

#[test]
fn adamw_steps_as_torch_does_and_goes_on_where_it_was_left() {
    let made: Made = read_json("gradients/adamw.json");
    let parameters = made.parameters();
    let mut optimizer = AdamW::new(&parameters, made.options.ours());
    for (step, rate) in made.rates.iter().enumerate() {
        if step == 2 {
            let state = optimizer.state(&parameters).unwrap();
            optimizer = AdamW::resume(&parameters, made.options.ours(), &state).unwrap();
        }
        optimizer.step(&parameters, &made.tensors(&made.gradients[step]), *rate).unwrap();
        for (parameter, theirs) in parameters.iter().zip(&made.after[step]) {
            assert_near(&format!("step {step} {}", parameter.name), &values(&parameter.var), theirs, 1e-6);
        }
    }
    let mut state = optimizer.state(&parameters).unwrap();
    state.tensors.remove("vector.exp_avg_sq");
    let error = AdamW::resume(&parameters, made.options.ours(), &state).unwrap_err().to_string();
    assert!(error.contains("vector.exp_avg_sq"), "{error}");
}

#[test]
fn gradients_are_clipped_as_torch_does() {
    let made: Made = read_json("gradients/adamw.json");
    for Clipped { max_norm, norm, gradients } in &made.clipped {
        let mut ours = made.tensors(&made.gradients[0]);
        let found = clip_gradients(&mut ours, *max_norm).unwrap();
        assert!((found - norm).abs() < 1e-6 * norm, "{found} {norm}");
        for (ours, theirs) in ours.iter().zip(gradients) {
            assert_near("gradient", &values(ours), theirs, 1e-7 * *max_norm as f32);
        }
    }
}

#[test]
fn pairs_packed_together_have_the_gradient_of_each_alone() {
    for name in ["bert", "gemma2"] {
        let model = load(name, &all());
        let pairs = pairs(name, &[[1, 2], [3, 4], [5, 6], [2, 5]]);
        let together = gradients(&model, &pairs, &PLAIN);
        let alone = Objective { micro_batch_tokens: 1, ..PLAIN };
        let alone = gradients(&model, &pairs, &alone);
        assert!((together.loss - alone.loss).abs() < 1e-6);
        let of_all = norm(&together.gradients.iter().flat_map(values).collect::<Vec<_>>());
        for (a, b) in together.gradients.iter().zip(&alone.gradients) {
            assert!(distance(&values(a), &values(b)) < 1e-5 * of_all, "{name}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let pairs = pairs("bert", &[[1, 2], [3, 4], [5, 6], [2, 5], [3, 1], [6, 4], [4, 5]]);
    let objective = Objective { dropout: 0.1, dropout_seed: 3, micro_batch_tokens: 60, ..PLAIN };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = load("bert", &all());
            let mut optimizer = AdamW::new(model.parameters(), AdamWOptions::default());
            for _ in 0..2 {
                let mut step = gradients(&model, &pairs, &objective).gradients;
                clip_gradients(&mut step, 0.5).unwrap();
                optimizer.step(model.parameters(), &step, 1e-3).unwrap();
            }
            let bits = |parameter: &Parameter| {
                values(&parameter.var).into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            model.parameters().iter().map(bits).collect::<Vec<_>>()
        })
    };
    let with_one = run(1);
    for threads in [2, 5] {
        assert!(run(threads) == with_one, "{threads} threads");
    }
}

#[test]
fn dropout_is_drawn_by_its_seed() {
    let model = load("bert", &all());
    let pairs = pairs("bert", &[[1, 2], [3, 4], [5, 6]]);
    let with = |dropout: f64, dropout_seed: u64| {
        gradients(&model, &pairs, &Objective { dropout, dropout_seed, ..PLAIN })
    };
    let without = with(0.0, 1);
    assert_eq!(without.chosen, with(0.0, 2).chosen, "no dropout, no seed");
    assert_eq!(with(0.2, 1).chosen, with(0.2, 1).chosen);
    assert_ne!(with(0.2, 1).chosen, with(0.2, 2).chosen);
    assert_ne!(with(0.2, 1).chosen, without.chosen);
}

#[test]
fn what_is_frozen_is_no_parameter_and_changes_no_other_gradient() {
    for (name, embeddings, first_layer, last) in [
        ("bert", "bert.embeddings.", "bert.encoder.layer.0.", "classifier."),
        ("qwen3", "model.embed_tokens.", "model.layers.0.", "score."),
    ] {
        let pairs = pairs(name, &[[1, 2], [3, 4]]);
        let by_name = |options: &LoadOptions| {
            let model = load(name, options);
            let names = model.parameters().iter().map(|parameter| parameter.name.clone());
            let gradients = gradients(&model, &pairs, &PLAIN).gradients;
            names.zip(gradients.iter().map(values)).collect::<BTreeMap<_, _>>()
        };
        let full = by_name(&all());
        let of_all = norm(&full.values().flatten().copied().collect::<Vec<_>>());
        for (options, frozen) in [
            (LoadOptions { frozen_embeddings: true, ..all() }, vec![embeddings]),
            (LoadOptions { frozen_layers: 1, ..all() }, vec![embeddings, first_layer]),
            (LoadOptions { train_head: false, ..all() }, vec![last]),
        ] {
            let some = by_name(&options);
            let is_frozen = |key: &str| frozen.iter().any(|start| key.starts_with(start));
            let kept: Vec<&String> = full.keys().filter(|key| !is_frozen(key)).collect();
            assert!(kept.len() < full.len() && !kept.is_empty());
            assert_eq!(some.keys().collect::<Vec<_>>(), kept, "{name} {options:?}");
            for (key, gradient) in &some {
                assert!(distance(gradient, &full[key]) <= 1e-6 * of_all, "{name} {key}");
            }
        }
        let too_many = LoadOptions { frozen_layers: 9, ..all() };
        let error = Trainable::load(with_tokenizer(name).path(), &too_many).unwrap_err();
        let error = format!("{:?}", error);
        assert!(error.contains("frozen_layers is 9, the model has 2 layers"), "{error}");
    }
}

#[test]
fn the_last_bias_moves_with_centering_alone() {
    let model = load("bert", &all());
    let pairs = pairs("bert", &[[1, 2], [3, 4]]);
    let place = model.parameters().iter().position(|parameter| parameter.name == "classifier.bias").unwrap();
    let of_bias = |centering: f64| {
        values(&gradients(&model, &pairs, &Objective { centering, ..PLAIN }).gradients[place])[0]
    };
    assert_eq!(of_bias(0.0), 0.0);
    assert!(of_bias(0.01).abs() > 1e-4);
}

#[test]
fn margins_of_ten_thousand_have_a_finite_loss_and_gradient() {
    let mut model = load("bert", &all());
    let feature = model.features(&[&pairs("bert", &[[3, 4]])[0].chosen]).unwrap().remove(0);
    let pairs = pairs("bert", &[[3, 4], [4, 3]]);
    model.set_head(&feature).unwrap();
    let small = gradients(&model, &pairs, &PLAIN);
    let factor = 10_000.0 / (small.chosen[0] - small.rejected[0]);
    model.set_head(&feature.iter().map(|x| x * factor).collect::<Vec<_>>()).unwrap();
    let large = gradients(&model, &pairs, &PLAIN);
    let margins: Vec<f32> = large.chosen.iter().zip(&large.rejected).map(|(c, r)| c - r).collect();
    assert!((margins[0] - 10_000.0).abs() < 1.0 && (margins[1] + 10_000.0).abs() < 1.0, "{margins:?}");
    assert!((large.loss - 5_000.0).abs() < 1.0, "{}", large.loss);
    let of_all = norm(&large.gradients.iter().flat_map(values).collect::<Vec<_>>());
    assert!(of_all.is_finite() && of_all > 1.0, "{of_all}");
}

#[test]
fn what_is_not_finite_is_an_error_that_names_it() {
    let mut model = load("bert", &all());
    let pairs = pairs("bert", &[[1, 2], [3, 4]]);
    model.set_head(&[f32::NAN; 16]).unwrap();
    let error = model.gradients(&pairs.iter().collect::<Vec<_>>(), &PLAIN).unwrap_err().to_string();
    assert_eq!(error, "the chosen reward of pair 0 is NaN, which is not finite");
    let dropout = Objective { dropout: 1.0, ..PLAIN };
    let error = model.gradients(&pairs.iter().collect::<Vec<_>>(), &dropout).unwrap_err().to_string();
    assert_eq!(error, "dropout is 1, expected 0 or more and less than 1");
}

#[test]
fn features_times_the_head_are_rewards() {
    let mut model = load("roberta", &all());
    let pairs = pairs("roberta", &[[1, 2], [3, 4]]);
    let sequences: Vec<_> = pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]).collect();
    let head: Vec<f32> = (0..16).map(|i| (i as f32).sin()).collect();
    model.set_head(&head).unwrap();
    let rewards = model.rewards(&sequences).unwrap();
    for (feature, reward) in model.features(&sequences).unwrap().iter().zip(rewards) {
        let product: f32 = feature.iter().zip(&head).map(|(x, w)| x * w).sum();
        assert!((product - reward).abs() < 1e-5, "{product} {reward}");
    }
    assert!(model.set_head(&head[1..]).is_err());
}

#[test]
fn a_saved_model_is_loaded_again_as_it_was() {
    for name in ["bert", "roberta", "gemma2", "llama", "trl-v-head-file", "openrlhf-normalized"] {
        let base = with_tokenizer(name);
        let model = Trainable::load(base.path(), &all()).unwrap();
        let pairs = pairs(name, &[[1, 2], [3, 4]]);
        let step = gradients(&model, &pairs, &PLAIN);
        let mut optimizer = AdamW::new(model.parameters(), AdamWOptions::default());
        optimizer.step(model.parameters(), &step.gradients, 1e-2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("trained");
        model.save(&target, Format::F32, &[("training.json", serde_json::json!({"steps": 1}))]).unwrap();
        assert!(target.join("training.json").is_file() && target.join("tokenizer.json").is_file());
        let again = Trainable::load(&target, &all()).unwrap();
        let sequences: Vec<_> = pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]).collect();
        assert_eq!(model.rewards(&sequences).unwrap(), again.rewards(&sequences).unwrap(), "{name}");
        for (ours, read) in model.parameters().iter().zip(again.parameters()) {
            assert_eq!((&ours.name, values(&ours.var)), (&read.name, values(&read.var)));
        }
        assert!(model.save(&target, Format::F32, &[]).is_err(), "nothing is overwritten");
        std::fs::remove_file(base.path().join("tokenizer.json")).unwrap();
        let error = model.save(&dir.path().join("other"), Format::F32, &[]).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn what_runs_on_a_cpu_alone_is_not_trained_and_says_so() {
    let latent = [
        "deepseek-v2",
        "deepseek-v3",
        "axk1",
        "mistral4",
        "minicpm3",
        "qwen3-next",
        "qwen3-5-text",
        "qwen3-5",
    ];
    for name in
        ["mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "hunyuan-v1-moe", "phimoe"].into_iter().chain(latent)
    {
        let what = match name {
            "minicpm3" => "latent attention",
            "qwen3-5-text" | "qwen3-5" => "linear attention",
            _ => "experts",
        };
        let problem = Trainable::load(with_tokenizer(name).path(), &all()).unwrap_err().problems().join("; ");
        let model_type = name.replace('-', "_");
        assert!(
            problem.contains(&format!("{model_type}: {what} can be served and merged here, but not trained")),
            "{problem}"
        );
    }
}
