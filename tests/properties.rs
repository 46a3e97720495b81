//! The laws, as property tests, on tiny models made from a seed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
mod checkpoints;

use std::path::PathBuf;

use checkpoints::TinyCheckpoint;
use checkpoints::VOCAB;
use proptest::prelude::*;
use rewarm::model::batch::PackedBatch;
use rewarm::model::batch::Sequence;
use rewarm::model::scorer::Scorer;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;

/// Room for another order of summation in `f32`, and nothing else.
const F32_ATOL: f32 = 1e-5;

fn load(mode: Mode, members: Vec<PathBuf>) -> Scorer {
    let config = VariantConfig::new("tiny", mode, members);
    Loader::default().load(&config, &mut |_, _| ()).unwrap().scorer
}

fn rewards(scorer: &Scorer, sequences: &[Sequence]) -> Vec<f32> {
    let batch = PackedBatch::pack(sequences);
    let raw: Vec<Vec<f32>> =
        (0..scorer.num_members()).map(|member| scorer.forward_member(member, &batch).unwrap()).collect();
    (0..sequences.len())
        .map(|index| scorer.reduce(&raw.iter().map(|rewards| rewards[index]).collect::<Vec<_>>()).reward)
        .collect()
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

    #[test]
    fn a_reward_does_not_depend_on_neighbours_or_order(batch in sequences(), seed in 0u64..100, cut in 0usize..8) {
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::llama(seed).write(dir.path());
        let scorer = load(Mode::Warm, vec![dir.path().to_owned()]);
        let together = rewards(&scorer, &batch);
        let alone: Vec<f32> = batch.iter().flat_map(|one| rewards(&scorer, std::slice::from_ref(one))).collect();
        assert_close(&together, &alone)?;
        let turn = cut % batch.len();
        let mut turned = batch.clone();
        turned.rotate_left(turn);
        let mut expected = together;
        expected.rotate_left(turn);
        assert_close(&rewards(&scorer, &turned), &expected)?;
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
