//! A forward in steps is the forward, to the last bit: of every family, in every form, for any size of a step.

use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::model::RewardModel;
use crate::model::config::CheckpointConfig;
use crate::model::manifest::Manifest;
use crate::model::pooling::Pooling;
use crate::model::scorer::Forward;
use crate::model::steps::Steps;
use crate::model::weights::TensorStore;

/// The tiny checkpoints of every family, with windows, soft caps, every kind of angles and of head.
fn families() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let mut families: Vec<_> =
        std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    families.sort();
    assert!(families.len() > 20);
    families
}

fn load(dir: &Path, cpu: &Cpu, pooling: Option<Pooling>) -> RewardModel<Cpu> {
    let mut config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
    config.pooling = pooling.or(config.pooling);
    let checkpoint = Checkpoint::open(dir).unwrap();
    RewardModel::of_checkpoint(&checkpoint, &config, &Arc::new(cpu.clone()), &mut TensorStore::default())
        .unwrap()
}

/// Bits of the rewards, and how often the forward paused.
fn in_steps(model: &RewardModel<Cpu>, batch: &PackedBatch, max_tokens: usize) -> (Vec<u32>, usize) {
    let mut pauses = 0;
    let mut pause = || {
        pauses += 1;
        ControlFlow::Continue(())
    };
    let rewards = model.forward_in_steps(batch, &mut Steps::new(max_tokens, &mut pause)).unwrap();
    (bits(&rewards), pauses)
}

#[test]
fn steps_change_no_bit() {
    for dir in families() {
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        let has_end = !config.backbone.has_endless_positions();
        let lengths: &[usize] = if has_end { &[60, 1, 33] } else { &[530, 1, 60, 240] };
        // some begin alike
        let token = |sample: usize, at: usize| (5 + (at * at + if at < 40 { 0 } else { sample }) % 20) as u32;
        let sequences: Vec<Sequence> = (0..)
            .zip(lengths)
            .map(|(sample, &length)| sequence(&(0..length).map(|at| token(sample, at)).collect::<Vec<_>>()))
            .collect();
        for (index, cpu) in forms().into_iter().enumerate() {
            // every number of threads with some form, and the other kind of pooling with one
            let poolings: &[_] = if index == 0 { &[None, Some(Pooling::Mean)] } else { &[None] };
            let threads = 1 + (index + index / 3) % 3;
            for &pooling in poolings {
                let model = load(&dir, &cpu.clone().with_threads(threads), pooling);
                let mut batches = vec![PackedBatch::pack(&sequences)];
                if model.shares_prefixes(lengths[0]) {
                    batches.push(PackedBatch::pack_shared(&sequences, 16));
                }
                for batch in batches {
                    poison();
                    let whole = bits(&model.forward(&batch).unwrap());
                    let name = format!("{} {} {pooling:?}, {threads} threads", dir.display(), cpu.name());
                    let mut fewer = usize::MAX;
                    for max_tokens in [1, 100, usize::MAX] {
                        let (stepped, pauses) = in_steps(&model, &batch, max_tokens);
                        assert!(stepped == whole, "{name}: steps of {max_tokens}");
                        assert!(
                            pauses <= fewer,
                            "{name}: {pauses} pauses in steps of {max_tokens}, not {fewer}"
                        );
                        fewer = pauses;
                    }
                    let layers = &model.backbone.layers;
                    // before and after experts
                    let experts = layers.iter().filter(|layer| layer.part.experts().is_some()).count();
                    let expected = layers.len() + 1 + 2 * experts;
                    assert_eq!(fewer, expected, "{name}: before, between and after layers");
                }
            }
        }
    }
}

#[test]
fn a_forward_that_is_given_up_stops_at_that_pause() {
    let dir = families().into_iter().find(|dir| dir.ends_with("llama")).unwrap();
    let model = load(&dir, &forms()[0], None);
    let batch = PackedBatch::pack([&sequence(&[5; 500])]);
    let (_, all) = in_steps(&model, &batch, 1);
    assert!(all > 20, "{all} pauses");
    for last in [1, 2, all] {
        let mut pauses = 0;
        let mut pause = || {
            pauses += 1;
            if pauses < last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let given_up = model.forward_in_steps(&batch, &mut Steps::new(1, &mut pause));
        assert!(given_up.unwrap_err().to_string().contains("given up"));
        assert_eq!(pauses, last);
    }
}

/// What [`super::laws`] says of a small transformer holds of layers with experts: a row's experts have others beside it in each
/// batch, and those that many rows chose take them in several groups. And of those whose keys and values are made of narrower rows.
#[test]
fn neighbours_order_threads_and_shared_prefixes_change_no_bit_of_experts_and_latent_attention() {
    let is_meant = |dir: &PathBuf| {
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        config.backbone.on_cpu_alone().is_some()
    };
    let token = |sample: usize, at: usize| (5 + (at * at + if at < 40 { 0 } else { sample }) % 20) as u32;
    let sequences: Vec<Sequence> = [530, 1, 60, 240, 7]
        .into_iter()
        .enumerate()
        .map(|(sample, length)| sequence(&(0..length).map(|at| token(sample, at)).collect::<Vec<_>>()))
        .collect();
    let turned: Vec<Sequence> = sequences.iter().rev().cloned().collect();
    let mut checked = 0;
    for dir in families().into_iter().filter(is_meant) {
        for cpu in forms() {
            poison();
            let one_thread = load(&dir, &cpu.clone().with_threads(1), None);
            let alone = |one| bits(&one_thread.forward(&PackedBatch::pack([one])).unwrap())[0];
            let alone: Vec<u32> = sequences.iter().map(alone).collect();
            for threads in [1, 3] {
                let model = load(&dir, &cpu.clone().with_threads(threads), None);
                let name = format!("{} {}, {threads} threads", dir.display(), cpu.name());
                let rewards = |batch: &PackedBatch| bits(&model.forward(batch).unwrap());
                assert!(rewards(&PackedBatch::pack(&sequences)) == alone, "{name}: beside others");
                let mut together = rewards(&PackedBatch::pack(&turned));
                together.reverse();
                assert!(together == alone, "{name}: in another order");
                let shared = rewards(&PackedBatch::pack_shared(&sequences, 1));
                assert!(shared == alone, "{name}: sharing prefixes");
                checked += 1;
            }
        }
    }
    assert!(checked >= 8, "{checked}");
}

/// More outputs of experts than are kept at a time.
#[test]
fn a_batch_of_many_rows_goes_through_experts_in_parts() {
    let dir = families().into_iter().find(|dir| dir.ends_with("mixtral")).unwrap();
    let model = load(&dir, &Cpu::new(Format::F32), None);
    let long = |seed: u32| sequence(&(0..2000).map(|at| 3 + (at * at + seed) % 70).collect::<Vec<_>>());
    let sequences = [1, 2, 3].map(long);
    let alone = |one| bits(&model.forward(&PackedBatch::pack([one])).unwrap())[0];
    let together = bits(&model.forward(&PackedBatch::pack(&sequences)).unwrap());
    assert_eq!(together, sequences.iter().map(alone).collect::<Vec<_>>());
}

/// An expert whose weights overflow: what goes through it is no number from there on, and changes no bit of what does not.
#[test]
fn what_an_expert_makes_infinite_stays_with_the_rows_that_chose_it() {
    let sequences: Vec<Sequence> =
        (3..63).map(|token| sequence(&[token, token, 70][..1 + token as usize % 3])).collect();
    for (name, experts, parts) in [
        ("deepseek-v3", "layers.1.mlp.experts", ["gate_proj", "up_proj"]),
        ("qwen3-moe", "layers.0.mlp.experts", ["gate_proj", "up_proj"]),
        ("mixtral", "layers.0.block_sparse_moe.experts", ["w1", "w3"]),
    ] {
        let dir = families().into_iter().find(|dir| dir.ends_with(name)).unwrap();
        let device = candle_core::Device::Cpu;
        let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &device).unwrap();
        let mut told_apart = 0;
        for expert in 0..5 {
            let mut tensors = tensors.clone();
            for part in parts {
                let weight = tensors.get_mut(&format!("model.{experts}.{expert}.{part}.weight")).unwrap();
                *weight = (&*weight * 1e25).unwrap();
            }
            let broken = tempfile::tempdir().unwrap();
            std::fs::copy(dir.join("config.json"), broken.path().join("config.json")).unwrap();
            candle_core::safetensors::save(&tensors, broken.path().join("model.safetensors")).unwrap();
            for cpu in forms().into_iter().filter(|cpu| cpu.format == Format::F32) {
                let [whole, broken] = [dir.as_path(), broken.path()].map(|dir| load(dir, &cpu, None));
                let rewards = |model: &RewardModel<Cpu>, batch: &PackedBatch| model.forward(batch).unwrap();
                let packed = PackedBatch::pack(&sequences);
                let (expected, ours) = (rewards(&whole, &packed), rewards(&broken, &packed));
                let finite = ours.iter().filter(|reward| reward.is_finite()).count();
                told_apart += usize::from((5..55).contains(&finite));
                for ((ours, expected), sequence) in ours.iter().zip(&expected).zip(&sequences) {
                    let is_same = ours.to_bits() == expected.to_bits();
                    assert!(!ours.is_finite() || is_same, "{name} {sequence:?}: {ours}, not {expected}");
                    let alone = rewards(&broken, &PackedBatch::pack([sequence]))[0];
                    assert_eq!(alone.is_finite(), ours.is_finite(), "{name} {sequence:?} alone");
                }
            }
        }
        assert!(told_apart >= 2, "{name}: {told_apart} experts that some rows chose and others did not");
    }
}
