//! Models that read a batch together, and share the forward of the layers that they have in common.

use std::sync::Arc;
use std::time::Duration;

use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::scorer::Members;
use crate::model::steps::Steps;
use crate::model::together;
use crate::model::together::Participant;
use crate::ops::Ahead;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;

/// The models of a variant: one, or the members of an ensemble.
#[derive(Debug)]
pub struct Ensemble<O: Ops> {
    ops: Arc<O>,
    models: Vec<RewardModel<O>>,
}

impl<O: Ops> Ensemble<O> {
    /// At least one model, all loaded for `ops`.
    pub fn new(ops: Arc<O>, models: Vec<RewardModel<O>>) -> Self {
        Self { ops, models }
    }

    /// Makes sure of what batches of up to `tokens` tokens take on a device, in sequences of up to `longest`: of one token
    /// each, or as long as can be.
    pub fn reserve(&self, tokens: usize, longest: usize) -> Result<(), ModelError> {
        let sequence = |tokens: usize| Sequence { token_ids: vec![0; tokens], type_ids: vec![0; tokens] };
        let batches = |tokens: usize| {
            let longest = longest.clamp(1, tokens);
            let long = std::iter::repeat_n(longest, tokens / longest).chain([tokens % longest]);
            let long: Vec<Sequence> = long.filter(|&tokens| tokens > 0).map(sequence).collect();
            [PackedBatch::pack(&long), PackedBatch::pack(&vec![sequence(1); tokens])]
        };
        let mut all = Vec::from(batches(tokens));
        // the most that models read side by side: they take more for each row
        let widest = self.models.iter().map(|model| model.backbone.width).max().unwrap_or(0);
        let beside = self.ops.rows_beside(widest);
        if self.models.len() > 1 && (1..tokens).contains(&beside) {
            all.extend(batches(beside));
        }
        Ok(self.ops.reserve(tokens, |ops| {
            for batch in &all {
                let mut spent = vec![Duration::ZERO; self.models.len()];
                run(ops, &self.models, batch, &mut spent, &mut Steps::whole())?;
            }
            Ok(())
        })?)
    }

    /// How many layers run for a batch, and how many the models have together.
    pub fn count_layers(&self) -> (usize, usize) {
        let backbones: Vec<_> = self.models.iter().map(|model| &model.backbone).collect();
        together::count_layers(&backbones)
    }
}

impl<O: Ops> Members for Ensemble<O> {
    fn num_members(&self) -> usize {
        self.models.len()
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        spent: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        forward_together(&*self.ops, &self.models, batch, spent, steps)
    }

    fn prepare(&self, batch: &PackedBatch) -> Result<Option<Ahead>, ModelError> {
        Ok(together::prepare(&*self.ops, &participants(&self.models, batch), batch)?)
    }

    fn takes_steps(&self) -> bool {
        self.ops.at_once().is_some()
    }

    fn shares_prefixes(&self, longest: usize) -> bool {
        self.models.iter().all(|model| model.backbone.shares_prefixes(longest))
    }
}

/// Raw rewards of each model, `[models][batch]`. What each took is added to its place in `spent`; what several have
/// in common is computed once, and its time divided equally among them.
pub(super) fn forward_together<O: Ops>(
    ops: &O,
    models: &[RewardModel<O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    Ok(run(ops, models, batch, spent, steps)?)
}

fn participants<'a, O: Ops>(models: &'a [RewardModel<O>], batch: &PackedBatch) -> Vec<Participant<'a, O>> {
    let of =
        |model: &'a RewardModel<O>| Participant { model: &model.backbone, wanted: model.head.wanted(batch) };
    models.iter().map(of).collect()
}

fn run<O: Ops>(
    ops: &O,
    models: &[RewardModel<O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
) -> crate::ops::error::Result<Vec<Vec<f32>>> {
    let participants = participants(models, batch);
    ops.run(|| {
        let logits = |index: usize, hidden: &[O::Rows], batch: &O::Batch<'_>| {
            models[index].head.logits(ops, hidden, batch)
        };
        let read =
            |logits: Vec<Vec<O::Rows>>, steps: &mut Steps<'_>| ops.read_after(&logits, || steps.meanwhile());
        let read = together::forward_together(ops, &participants, batch, spent, steps, logits, read)?;
        Ok(models.iter().zip(read).map(|(model, logits)| model.head.rewards(logits)).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::path::PathBuf;

    use rewarm_cuda::device::Device;
    use rewarm_cuda::driver::Card;
    use rewarm_cuda::play;
    use rewarm_cuda::played::Play;
    use rewarm_cuda::played::Played;
    use rewarm_cuda::played::Work;
    use safetensors::SafeTensors;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::config::CheckpointConfig;
    use crate::model::manifest::Manifest;
    use crate::model::weights::TensorStore;
    use crate::ops::cuda::Cuda;
    use crate::values::Format;

    /// A card with so many multiprocessors and bytes; none without a C++ compiler.
    fn card(multiprocessors: u32, memory: u64) -> Option<Arc<Played>> {
        play::compiler()?;
        let play = Play { tried_rows: 16, ..Play::new(Arc::new(play::Compiled)) };
        Some(Played::new(Play { card: Card { multiprocessors, memory, ..play.card }, ..play }))
    }

    fn folder(family: &str, member: usize) -> PathBuf {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge").join(family);
        dir.join(format!("member-{member}"))
    }

    /// The first member, with the layer of the third.
    fn cousin(family: &str, layer: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let read = |member: usize| std::fs::read(folder(family, member).join("model.safetensors")).unwrap();
        let files = [0, 2].map(read);
        let [first, third] = files.each_ref().map(|file| SafeTensors::deserialize(file).unwrap());
        let tensors = first.iter().map(|(name, tensor)| match name.contains(layer) {
            true => (name.to_owned(), third.tensor(name).unwrap()),
            false => (name.to_owned(), tensor),
        });
        let tensors: Vec<_> = tensors.collect();
        assert!(tensors.iter().any(|(name, _)| name.contains(layer)));
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).unwrap();
        std::fs::copy(folder(family, 0).join("config.json"), dir.path().join("config.json")).unwrap();
        dir
    }

    fn ensemble(card: &Arc<Played>, paths: &[PathBuf]) -> Ensemble<Cuda> {
        let ops = Arc::new(Cuda::new(Arc::new(Device::new(card.clone())), Format::Bf16));
        let mut store = TensorStore::default();
        let model = |path: &PathBuf| {
            let config = CheckpointConfig::load(&path.join("config.json"), &Manifest::default()).unwrap();
            let checkpoint = Checkpoint::open(path).unwrap();
            RewardModel::of_checkpoint(&checkpoint, &config, &ops, &mut store).unwrap()
        };
        let models = paths.iter().map(model).collect();
        Ensemble::new(ops, models)
    }

    /// The bits of each member's rewards, and what the members took together.
    fn scored(ensemble: &Ensemble<Cuda>, batch: &PackedBatch) -> (Vec<Vec<u32>>, Duration) {
        let mut spent = vec![Duration::ZERO; ensemble.num_members()];
        let rewards = ensemble.forward(batch, &mut spent, &mut Steps::whole()).unwrap();
        assert!(spent.iter().all(|spent| !spent.is_zero()), "{spent:?}");
        let bits = rewards.iter().map(|of_member| of_member.iter().map(|x| x.to_bits()).collect());
        (bits.collect(), spent.iter().sum())
    }

    /// An embedding that two of four members share, with and without a norm, which waits for who reads it.
    #[test]
    fn members_side_by_side_have_the_bits_that_they_have_alone() {
        let sequence = |tokens: usize| Sequence {
            token_ids: (0..tokens as u32).map(|i| i * i % 20 + 3).collect(),
            type_ids: vec![0; tokens],
        };
        let batch = PackedBatch::pack(&[sequence(5), sequence(17), sequence(1)]);
        for (family, layer) in [("llama-f32", "layers.0."), ("bert-f16", "layer.0.")] {
            let Some(busy) = card(0, 1 << 30) else { return };
            let cousin = cousin(family, layer);
            let mut paths: Vec<PathBuf> = (0..3).map(|member| folder(family, member)).collect();
            paths.insert(1, cousin.path().to_owned());
            let alone = paths.iter().map(|path| scored(&ensemble(&busy, std::slice::from_ref(path)), &batch));
            let alone: Vec<Vec<u32>> = alone.map(|(mut bits, _)| bits.remove(0)).collect();
            assert!((1..4).all(|member| alone[member] != alone[0]), "{family}: members differ");
            let after = |card: &Arc<Played>| card.count(Work::Wait);

            let one_by_one = ensemble(&busy, &paths);
            let waits = after(&busy);
            let (bits, serial) = scored(&one_by_one, &batch);
            assert_eq!(bits, alone, "{family}: one after the other");
            assert!(after(&busy) <= waits + 1, "{family}: for weights, and no more");

            let card = card(4, 1 << 30).unwrap();
            let beside = ensemble(&card, &paths);
            beside.reserve(64, 20).unwrap();
            let (used, mut waits) = (card.used(), after(&card));
            for turn in 0..3 {
                let (bits, whole) = scored(&beside, &batch);
                assert_eq!(bits, alone, "{family}: side by side, turn {turn}");
                // two members go together as far as they can: five branches, on four streams that are waited for
                assert_eq!(after(&card) - waits, [9 + usize::from(turn == 0), 9, 0][turn.min(2)]);
                waits = after(&card);
                // what overlaps is not counted twice
                assert!(whole < serial * 3 / 5 && whole > serial / 4, "{family}: {whole:?} of {serial:?}");
            }
            assert_eq!(card.count(Work::Replay), 2, "the last is one launch, with all its branches");
            assert_eq!(card.used(), used, "memory is what was reserved");
        }
    }

    /// What a batch is made of is on its way to the card before the results of the one before are waited for.
    #[test]
    fn the_next_batch_is_uploaded_before_the_present_one_is_read_and_has_the_same_bits() {
        use crate::model::scorer::Scorer;
        let sequence = |tokens: usize, token: u32| Sequence {
            token_ids: (0..tokens as u32).map(|i| (i * i + token) % 20 + 3).collect(),
            type_ids: vec![0; tokens],
        };
        let batches: Vec<PackedBatch> = [3, 9, 4, 11]
            .map(|token| PackedBatch::pack(&[sequence(20, token), sequence(7 + token as usize, 1)]))
            .into();
        for family in ["llama-f32", "bert-f16"] {
            let Some(card) = card(0, 1 << 30) else { return };
            let paths = [0, 1].map(|member| folder(family, member));
            let ensemble = ensemble(&card, &paths);
            ensemble.reserve(64, 40).unwrap();
            let forward = |scorer: &Scorer, batch: &PackedBatch| {
                scorer.forward(batch, &mut [Duration::ZERO; 2]).unwrap()
            };
            let scorer = Scorer::new(Box::new(ensemble), vec![None; 2], Some(Default::default()));
            let expected: Vec<_> = batches.iter().map(|batch| forward(&scorer, batch)).collect();
            assert!(expected.concat().concat().iter().all(|reward| reward.is_finite()), "{family}");
            let works = || [Work::Upload, Work::Download, Work::Allocate].map(|work| card.count(work));

            let mut next = Some(scorer.prepare(batches[0].clone()));
            for (index, expected) in expected.iter().enumerate() {
                let mut present = next.take().unwrap();
                let (before, mut asked) = (works(), None);
                let mut meanwhile = || {
                    let at = works();
                    next = batches.get(index + 1).map(|batch| scorer.prepare(batch.clone()));
                    asked = Some((at, works()));
                };
                let made = scorer.forward_prepared(&mut present, &mut [Duration::ZERO; 2], &mut meanwhile);
                assert_eq!(made.unwrap(), *expected, "{family}, batch {index}");
                let [uploads, downloads, allocations] = before;
                let (at, after) = asked.expect("it is called");
                let more = usize::from(index + 1 < batches.len());
                assert_eq!(at, before, "{family}: what was sent ahead is not sent again");
                assert_eq!(
                    after,
                    [uploads + more, downloads, allocations],
                    "{family}: sent, and nothing read"
                );
                assert_eq!(works(), [uploads + more, downloads + 1, allocations], "{family}: read then");
            }
            // one that was prepared and forgotten leaves nothing behind
            drop(scorer.prepare(batches[1].clone()));
            assert_eq!(forward(&scorer, &batches[2]), expected[2]);
            // two at a time: the second goes when it is its turn
            let [mut first, mut second] = [0, 3].map(|index| scorer.prepare(batches[index].clone()));
            for (prepared, expected) in [(&mut second, &expected[3]), (&mut first, &expected[0])] {
                let made = scorer.forward_prepared(prepared, &mut [Duration::ZERO; 2], &mut || ());
                assert_eq!(made.unwrap(), *expected, "{family}");
            }
        }
    }

    /// A batch of 64 tokens is four bytes for each and what its sequences are, once the card has the angles.
    #[test]
    fn angles_are_on_the_card_and_a_batch_only_names_them() {
        let Some(card) = card(0, 1 << 30) else { return };
        let ensemble = ensemble(&card, &[folder("llama-f32", 0)]);
        ensemble.reserve(64, 64).unwrap();
        let used = card.used();
        let sequence = Sequence { token_ids: (3..67).map(|i| i % 20).collect(), type_ids: vec![0; 64] };
        let batch = PackedBatch::pack(&[sequence]);
        let uploads = card.count(Work::Upload);
        scored(&ensemble, &batch);
        assert_eq!((card.count(Work::Upload), card.used()), (uploads + 1, used), "the batch, and no angles");
    }

    #[test]
    fn what_branches_take_is_reserved_with_the_rest_or_refused() {
        let paths = [0, 1].map(|member| folder("llama-f32", member));
        let Some(roomy) = card(4, 1 << 30) else { return };
        let fits = ensemble(&roomy, &paths);
        fits.reserve(256, 64).unwrap();
        let device = fits.ops.device();
        let reserved = device.reserved() as u64;
        let weights = roomy.used() - reserved;
        let busy = card(0, 1 << 30).unwrap();
        let serial = ensemble(&busy, &paths);
        serial.reserve(256, 64).unwrap();
        assert!(serial.ops.device().reserved() < device.reserved(), "each branch has memory of its own");

        let tight = ensemble(&card(4, weights + reserved - 256).unwrap(), &paths);
        let error = tight.reserve(256, 64).unwrap_err().to_string();
        let left = reserved - 256;
        assert_eq!(
            error,
            format!("memory for activations takes {reserved} bytes on a played card, which has {left} left")
        );
    }
}
