//! The laws, as property tests, on tiny models made from a seed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
mod checkpoints;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use checkpoints::TinyCheckpoint;
use checkpoints::VOCAB;
use proptest::prelude::*;
use rewarm::checkpoint::Checkpoint;
use rewarm::model::RewardModel;
use rewarm::model::config::CheckpointConfig;
use rewarm::model::dtype::Dtype;
use rewarm::model::ensemble::Ensemble;
use rewarm::model::manifest::Manifest;
use rewarm::model::scorer::Scorer;
use rewarm::model::steps::Steps;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::model::weights::TensorStore;
use rewarm::ops::batch::MIN_SHARED_PREFIX;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::batch::Sequence;
use rewarm::ops::composed::Composed;
use rewarm::values::Format;

/// Room for another order of summation in `f32`, and nothing else.
const F32_ATOL: f32 = 1e-5;

fn load(mode: Mode, members: Vec<PathBuf>) -> Scorer {
    let config = VariantConfig::new("tiny", mode, members);
    Loader::default().load(&config, &mut |_, _| ()).unwrap().scorer
}

fn rewards(scorer: &Scorer, sequences: &[Sequence]) -> Vec<f32> {
    let batch = PackedBatch::pack(sequences);
    let raw = raw_rewards(scorer, &batch);
    (0..sequences.len())
        .map(|index| scorer.reduce(&raw.iter().map(|rewards| rewards[index]).collect::<Vec<_>>()).reward)
        .collect()
}

/// `[members][batch]`
fn raw_rewards(scorer: &Scorer, batch: &PackedBatch) -> Vec<Vec<f32>> {
    scorer.forward(batch, &mut vec![Duration::ZERO; scorer.num_members()]).unwrap()
}

/// The models of an ensemble, without its scorer.
fn family(paths: &[PathBuf]) -> Ensemble<Composed> {
    let ops = Arc::new(Composed { device: Device::Cpu, format: Format::F32 });
    let mut store = TensorStore::default();
    let load = |path: &PathBuf| {
        let config = CheckpointConfig::load(&path.join("config.json"), &Manifest::default()).unwrap();
        let checkpoint = Checkpoint::open(path).unwrap();
        RewardModel::of_checkpoint(&checkpoint, &config, &ops, &mut store).unwrap()
    };
    Ensemble::new(ops.clone(), paths.iter().map(load).collect())
}

fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let sequence = prop::collection::vec(0..VOCAB as u32, 1..40)
        .prop_map(|token_ids| Sequence { type_ids: vec![0; token_ids.len()], token_ids });
    prop::collection::vec(sequence, 1..8)
}

fn assert_close(ours: &[f32], theirs: &[f32]) -> Result<(), TestCaseError> {
    prop_assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        prop_assert!((a - b).abs() <= F32_ATOL * a.abs().max(1.0), "{} and {}", a, b);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bit for bit, in every dtype; whatever is computed together, and whether what is common is computed once.
    #[test]
    fn a_reward_does_not_depend_on_neighbours_or_order(
        batch in sequences(), common in 0usize..60, seed in 0u64..100, cut in 0usize..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(seed).write(dir.path());
        let common: Vec<u32> = (0..common as u32).map(|i| i * i % VOCAB as u32).collect();
        let batch: Vec<Sequence> = batch
            .iter()
            .map(|sequence| {
                let token_ids = [&common[..], &sequence.token_ids].concat();
                Sequence { type_ids: vec![0; token_ids.len()], token_ids }
            })
            .collect();
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let config = VariantConfig::new("tiny", Mode::Warm, vec![dir.path().to_owned()]);
            let config = VariantConfig { dtype, ..config };
            let scorer = Loader::default().load(&config, &mut |_, _| ()).unwrap().scorer;
            let together = rewards(&scorer, &batch);
            let alone: Vec<f32> = batch.iter().flat_map(|one| rewards(&scorer, std::slice::from_ref(one))).collect();
            prop_assert_eq!(&together, &alone, "{:?}", dtype);

            let shared = scorer.pack_shared(&batch.iter().collect::<Vec<_>>());
            prop_assert!(common.len() < MIN_SHARED_PREFIX || batch.len() < 2 || shared.shared_tokens() > 0);
            prop_assert_eq!(&raw_rewards(&scorer, &shared)[0], &together, "{:?}, prefixes shared", dtype);

            let turn = cut % batch.len();
            let mut turned = batch.clone();
            turned.rotate_left(turn);
            let mut expected = together;
            expected.rotate_left(turn);
            prop_assert_eq!(rewards(&scorer, &turned), expected, "{:?}, in another order", dtype);
        }
    }

    #[test]
    fn merging_identical_members_changes_nothing(batch in sequences(), seed in 0u64..100, copies in 2usize..6) {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(seed).write(dir.path());
        let one = load(Mode::Warm, vec![dir.path().to_owned()]);
        let merged = load(Mode::Warm, vec![dir.path().to_owned(); copies]);
        prop_assert_eq!(rewards(&one, &batch), rewards(&merged, &batch));
    }

    #[test]
    fn an_ensemble_of_one_is_that_member(batch in sequences(), seed in 0u64..100) {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(seed).write(dir.path());
        let paths = vec![dir.path().to_owned()];
        prop_assert_eq!(rewards(&load(Mode::Warm, paths.clone()), &batch), rewards(&load(Mode::Ens, paths), &batch));
    }

    #[test]
    fn members_that_differ_only_in_the_head_score_the_same_merged_or_averaged(
        batch in sequences(), seed in 0u64..100, members in 2u64..5,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = TinyCheckpoint::llama(seed);
        let paths: Vec<PathBuf> = (0..members)
            .map(|member| {
                let path = dir.path().join(member.to_string());
                start.perturbed(member, 0.3, "score.").write(&path);
                path
            })
            .collect();
        let merged = rewards(&load(Mode::Warm, paths.clone()), &batch);
        assert_close(&merged, &rewards(&load(Mode::Ens, paths), &batch))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))] // each loads dozens of models

    /// Bit for bit, whatever the members have in common and the sequences begin with, in steps of any size.
    #[test]
    fn a_forward_in_steps_is_the_forward(
        lengths in prop::collection::vec(1usize..1300, 1..4), common in 0usize..600, max_tokens in 1usize..2000,
        trained in prop::sample::select(vec!["score.", "model.layers.1.", "model.layers.0.", ""]), seed in 0u64..100,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = TinyCheckpoint::llama(seed);
        let paths: Vec<PathBuf> = (0..2)
            .map(|member| {
                let path = dir.path().join(member.to_string());
                start.perturbed(member, 0.3, trained).write(&path);
                path
            })
            .collect();
        let scorer = load(Mode::Ens, paths);
        prop_assert!(scorer.takes_steps());
        let token = |sample: usize, at: usize| ((at * at + if at < common { 0 } else { sample }) % VOCAB) as u32;
        let sequences: Vec<Sequence> = (1..)
            .zip(&lengths)
            .map(|(sample, &length)| (0..length).map(|at| token(sample, at)).collect::<Vec<_>>())
            .map(|token_ids| Sequence { type_ids: vec![0; token_ids.len()], token_ids })
            .collect();
        let batch = scorer.pack_shared(&sequences.iter().collect::<Vec<_>>());
        let whole = raw_rewards(&scorer, &batch);
        let (mut pauses, mut spent) = (0, vec![Duration::ZERO; 2]);
        let mut pause = || {
            pauses += 1;
            ControlFlow::Continue(())
        };
        let mut steps = Steps::new(max_tokens, &mut pause);
        prop_assert_eq!(scorer.forward_in_steps(&batch, &mut spent, &mut steps).unwrap(), whole);
        prop_assert!(pauses >= 3, "{} pauses", pauses);
    }

    /// From a frozen trunk or embedding, with all layers of their own, or with nothing in common but the start.
    #[test]
    fn members_that_share_layers_score_as_each_alone_bit_for_bit(
        batch in sequences(), seed in 0u64..100, members in 2usize..5, pooling in 0usize..2,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = TinyCheckpoint::llama(seed);
        for (trained, layers_run) in [
            ("score.", 2),
            ("model.norm.", 1 + members),
            ("model.layers.1.", 1 + members),
            ("model.layers.0.", 2 * members),
            ("model.embed_tokens.", 2 * members),
            ("", 2 * members),
        ] {
            let paths: Vec<PathBuf> = (0..members)
                .map(|member| {
                    let path = dir.path().join(format!("{trained}{member}"));
                    start.perturbed(member as u64, 0.3, trained).write(&path);
                    std::fs::write(path.join("rewarm.json"), [r#"{}"#, r#"{"pooling": "mean"}"#][pooling]).unwrap();
                    path
                })
                .collect();
            prop_assert_eq!(family(&paths).count_layers(), (layers_run, 2 * members), "{} is trained", trained);
            let packed = PackedBatch::pack(&batch);
            let together = raw_rewards(&load(Mode::Ens, paths.clone()), &packed);
            for (path, of_member) in paths.into_iter().zip(together) {
                let alone = raw_rewards(&load(Mode::Warm, vec![path]), &packed);
                prop_assert_eq!(&alone[0], &of_member, "{} is trained", trained);
            }
        }
    }
}
