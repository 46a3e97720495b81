//! The form on a card that is played: against the textbook and the composed form, and what holds to the last bit.
//!
//! A played card shows what a kernel computes, not what its threads do to each other between two barriers, and no
//! time: that is for a card, and `deploy/gpu/check`.

use std::sync::Arc;

use proptest::prelude::*;
use rewarm_cuda::play;
use rewarm_cuda::played::Play;
use rewarm_cuda::played::Played;
use rewarm_cuda::played::Work;

use super::*;
use crate::ops::batch::Sequence;
use crate::ops::composed::Composed;
use crate::ops::textbook;
use crate::ops::textbook::Kind;
use crate::ops::tiny::KINDS;
use crate::ops::tiny::Tiny;
use crate::ops::tiny::bits_of;
use crate::ops::tiny::sequence;

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::F16];

/// A card to play on; none without a C++ compiler.
fn card() -> Option<Arc<Played>> {
    play::compiler()?;
    Some(Played::new(Play { tried_rows: 16, ..Play::new(Arc::new(play::Compiled)) }))
}

fn form(format: Format) -> Option<Cuda> {
    Some(Cuda::new(Arc::new(Device::new(card()?)), format))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn packed_attention_is_the_textbooks(case in textbook::cases().prop_map(textbook::Case::with_equal_widths)) {
        if let Some(ops) = form(Format::F32) {
            ops.run(|| case.check(&ops, &case.expected(|x| x), 1e-5))?;
        }
    }

    #[test]
    fn packed_attention_in_bfloat16_is_the_textbooks(case in textbook::cases().prop_map(textbook::Case::with_equal_widths)) {
        if let Some(ops) = form(Format::Bf16) {
            let round = |x: f32| Format::Bf16.round(x.into()) as f32;
            ops.run(|| case.check(&ops, &case.expected(round), 0.04))?;
        }
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn long_attention_is_the_textbooks(case in textbook::long_cases().prop_map(textbook::Case::with_equal_widths)) {
        if let Some(ops) = form(Format::F32) {
            ops.run(|| case.check(&ops, &case.expected(|x| x), 2e-5))?;
        }
    }
}

/// Another order of summation, and nothing else.
#[test]
fn kernels_give_what_the_composed_form_does() {
    let Some(ops) = form(Format::F32) else { return };
    let sequences = [sequence(&[1, 2, 3]), sequence(&[5; 70]), sequence(&[7]), sequence(&[1, 2, 3, 4, 4])];
    let batch = PackedBatch::pack(&sequences);
    for kind in KINDS {
        let composed = Composed { device: candle_core::Device::Cpu, format: Format::F32 };
        let expected = Tiny::new(composed, kind).rewards(&batch).concat();
        let ours = Tiny::new(ops.clone(), kind).rewards(&batch).concat();
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() < 1e-4, "{kind:?}: {ours}, not {expected}");
        }
    }
}

/// Every kind of attention in one of the formats, plain attention in each.
fn tinies() -> Vec<Tiny<Cuda>> {
    let forms: Vec<Cuda> = FORMATS.into_iter().filter_map(form).collect();
    let tiny = |(index, ops): (usize, &Cuda)| {
        let kinds = KINDS.into_iter().enumerate();
        let kinds = kinds.filter(|(kind, _)| kind % FORMATS.len() == index || *kind == 0);
        kinds.map(|(_, kind)| Tiny::new(ops.clone(), kind)).collect::<Vec<_>>()
    };
    forms.iter().enumerate().flat_map(tiny).collect()
}

/// Beside others, in another order, with common prefixes computed once, in batches of sizes that were seen before (which
/// are a graph) and were not.
#[test]
fn neighbours_graphs_and_shared_prefixes_change_no_bit() {
    let prefix: Vec<u32> = (0..70).map(|i| i * i % 8).collect();
    let ends: [&[u32]; 5] = [&[1], &[2; 20], &[], &[3, 3, 3], &[4; 70]];
    let mut sequences: Vec<Sequence> = ends.map(|end| sequence(&[&prefix, end].concat())).into();
    sequences.push(sequence(&[1]));
    sequences.push(sequence(&[6; 33]));
    for tiny in tinies() {
        let name = format!("{} {:?}", tiny.ops.name(), tiny.spec);
        let expected = tiny.alone(&sequences);
        assert!(expected.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()), "{name}");
        let packed = PackedBatch::pack(&sequences);
        for turn in 0..4 {
            assert_eq!(bits_of(&tiny.rewards(&packed)), expected, "{name}: beside others, turn {turn}");
        }
        let mut turned = bits_of(&tiny.rewards(&PackedBatch::pack(sequences.iter().rev())));
        turned.reverse();
        assert_eq!(turned, expected, "{name}: in another order");
        if tiny.spec.causal {
            for min_shared in [1, 16] {
                let shared = PackedBatch::pack_shared(&sequences, min_shared);
                assert_eq!(bits_of(&tiny.rewards(&shared)), expected, "{name}: sharing prefixes");
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_its_own_reward_and_no_other() {
    tinies().iter().for_each(Tiny::check_what_is_not_finite);
}

/// What a batch of a size that was seen before asks of a card: one copy there, one launch, one copy back, and nothing
/// that waits before it.
#[test]
fn a_small_batch_is_one_launch_and_one_read() {
    let Some(card) = card() else { return };
    let ops = Cuda::new(Arc::new(Device::new(card.clone())), Format::Bf16);
    let tiny = Tiny::new(ops.clone(), KINDS[0]);
    let batch = |tokens: &[u32]| PackedBatch::pack(&[sequence(tokens), sequence(&[1, 2])]);
    // the second and third batch have other tokens and another length, but the same size
    ops.reserve(128, |ops| ops.run(|| tiny.forward(ops, &batch(&[1; 100]))).map(drop)).unwrap();
    let first = tiny.rewards(&batch(&[5; 9]));
    tiny.rewards(&batch(&[3; 8]));
    let count = |work| card.count(work);
    let works = [Work::Upload, Work::Launch, Work::Multiply, Work::Replay, Work::Download, Work::Synchronize];
    let before = works.map(count);
    assert_eq!(tiny.rewards(&batch(&[5; 9])), first);
    let asked: Vec<usize> = works.iter().zip(before).map(|(work, before)| count(*work) - before).collect();
    assert_eq!(asked, [1, 0, 0, 1, 1, 0], "{works:?}");
    assert_eq!(ops.device().graphs(), 1);
}

/// Nothing is allocated by a forward of the size that was reserved for, and what a longer one takes comes back.
#[test]
fn a_forward_takes_its_memory_from_what_is_reserved() {
    let Some(card) = card() else { return };
    let ops = Cuda::new(Arc::new(Device::new(card.clone())), Format::F16);
    let tiny = Tiny::new(ops.clone(), KINDS[6]);
    let batch = |tokens: usize| PackedBatch::pack(&[sequence(&vec![1; tokens])]);
    let expected = tiny.rewards(&batch(200));
    ops.reserve(200, |ops| ops.run(|| tiny.forward(ops, &batch(200))).map(drop)).unwrap();
    let (allocated, free) = (card.count(Work::Allocate), ops.device().free().unwrap());
    for tokens in [200, 1, 77, 200] {
        tiny.rewards(&batch(tokens));
    }
    assert_eq!((card.count(Work::Allocate), ops.device().free().unwrap()), (allocated, free));
    assert_eq!(tiny.rewards(&batch(200)), expected);
    tiny.rewards(&batch(700));
    assert!(card.count(Work::Allocate) > allocated);
    assert_eq!(ops.device().free().unwrap(), free);
}

/// How many heads have their tables of distances at once, and so what products there are, depends on the number of rows.
#[test]
fn all_products_are_known_once_they_are_reserved_for() {
    for kind in KINDS.into_iter().filter(|(_, _, distance)| matches!(distance, Kind::Clipped | Kind::Shared))
    {
        let Some(card) = card() else { return };
        let ops = Cuda::new(Arc::new(Device::new(card.clone())), Format::Bf16);
        let tiny = Tiny::new(ops.clone(), kind);
        let batch = |tokens: usize| PackedBatch::pack(&[sequence(&vec![1; tokens])]);
        ops.reserve(300, |ops| ops.run(|| tiny.forward(ops, &batch(300))).map(drop)).unwrap();
        let before = card.count(Work::Download);
        for (forwards, tokens) in [300, 150, 60, 1].into_iter().enumerate() {
            tiny.rewards(&batch(tokens));
            assert_eq!(card.count(Work::Download), before + forwards + 1, "{kind:?}, {tokens} tokens");
        }
    }
}
