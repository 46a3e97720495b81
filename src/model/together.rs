//! Several models on one batch: what they have in common runs once.
//!
//! Members of an ensemble often differ in their last layers only, or in nothing but the head. They go through equal
//! layers together; where they part, each goes on from a copy of the hidden states:
//!
//! ```text
//! embedding → layer 0 → layer 1 ┬→ layer 2 → norm ┬→ head of member 0
//!                               │                 └→ head of member 1
//!                               └→ layer 2 → norm ─→ head of member 2
//! ```

use std::time::Duration;

use candle_core::Result;

use crate::model::steps::Begun;
use crate::model::steps::Steps;
use crate::model::transformer;
use crate::model::transformer::BatchPass;
use crate::model::transformer::Start;
use crate::model::transformer::Transformer;
use crate::model::transformer::Wanted;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;

/// A model that takes part in the forward of a batch.
#[derive(Debug)]
pub struct Participant<'a, O: Ops> {
    /// Its layers.
    pub model: &'a Transformer<O>,
    /// What its head reads.
    pub wanted: Wanted,
}

/// Runs models on a batch; what they have in common runs once. `arrive` is given the index of each model and the
/// hidden states of the rows it wants, in blocks.
///
/// What a model takes, its `arrive` included, is added to its place in `spent`; what several have in common is
/// divided equally among them. Pauses between `steps` are nobody's.
pub fn forward_together<O: Ops>(
    ops: &O,
    models: &[Participant<'_, O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
    mut arrive: impl FnMut(usize, &[O::Rows]) -> Result<()>,
) -> Result<()> {
    let everyone: Vec<usize> = (0..models.len()).collect();
    for group in
        partition(&everyone, |a, b| models[a].model.embedding.identity == models[b].model.embedding.identity)
    {
        let begun = steps.begin();
        let model @ Transformer { embedding, ropes, .. } = models[group[0]].model;
        let packing = ops.packing(batch, ropes.iter().map(|rope| rope.packed(batch)).collect())?;
        let ids = embedding.part.ids(batch);
        let blocks = transformer::blocks(ops, model, batch, steps);
        let pass = BatchPass { ops, batch, packing: &packing, ids: &ids, blocks };
        let mut of_group = GroupRun { pass, models, spent, steps: &mut *steps, arrive: &mut arrive };
        of_group.charge(&group, begun);
        of_group.go(&group, 0, Start::Tokens)?;
    }
    Ok(())
}

/// How many layers run for a batch, and how many the models have. Pooling is taken to be the same.
pub fn count_layers<O: Ops>(models: &[&Transformer<O>]) -> (usize, usize) {
    fn count<O: Ops>(group: &[Participant<'_, O>], indices: &[usize], depth: usize) -> usize {
        let going: Vec<usize> =
            indices.iter().copied().filter(|&index| depth < group[index].model.layers.len()).collect();
        let parts = partition(&going, |a, b| same_layer(&group[a], &group[b], depth));
        parts.iter().map(|part| 1 + count(group, part, depth + 1)).sum()
    }
    let participants: Vec<_> =
        models.iter().map(|&model| Participant { model, wanted: Wanted::All }).collect();
    let everyone: Vec<usize> = (0..models.len()).collect();
    let groups = partition(&everyone, |a, b| models[a].embedding.identity == models[b].embedding.identity);
    let run = groups.iter().map(|group| count(&participants, group, 0)).sum();
    (run, models.iter().map(|model| model.layers.len()).sum())
}

/// Whether two models that have everything in common up to `depth` have this layer in common too. The last one
/// counts with what follows it.
fn same_layer<O: Ops>(a: &Participant<'_, O>, b: &Participant<'_, O>, depth: usize) -> bool {
    let is_last = |participant: &Participant<'_, O>| depth + 1 == participant.model.layers.len();
    let same_end = || a.wanted == b.wanted && a.model.end.identity == b.model.end.identity;
    a.model.layers[depth].identity == b.model.layers[depth].identity
        && is_last(a) == is_last(b)
        && (!is_last(a) || same_end())
}

/// Groups what is the same, in order.
fn partition(indices: &[usize], same: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &index in indices {
        match parts.iter_mut().find(|part| same(part[0], index)) {
            Some(part) => part.push(index),
            None => parts.push(vec![index]),
        }
    }
    parts
}

/// Takes a model's index and its hidden states, in blocks.
type Arrive<'a, R> = dyn FnMut(usize, &[R]) -> Result<()> + 'a;

/// The models of a batch that have one embedding, and what becomes of them.
struct GroupRun<'a, 'p, 'f, 's, O: Ops> {
    pass: BatchPass<'a, 'p, O>,
    models: &'a [Participant<'a, O>],
    spent: &'a mut [Duration],
    steps: &'a mut Steps<'s>,
    arrive: &'a mut Arrive<'f, O::Rows>,
}

impl<O: Ops> GroupRun<'_, '_, '_, '_, O> {
    /// Divides the time since then among the models of a group.
    fn charge(&mut self, group: &[usize], since: Begun) {
        let share = self.steps.since(since) / group.len() as u32;
        group.iter().for_each(|&index| self.spent[index] += share);
    }

    /// Takes a group through the layers from `depth` on, together as far as these are the same.
    fn go(&mut self, group: &[usize], depth: usize, mut start: Start<O::Rows>) -> Result<()> {
        let parts = partition(group, |a, b| same_layer(&self.models[a], &self.models[b], depth));
        if let (Start::Tokens, [_, _, ..]) = (&start, parts.as_slice()) {
            let begun = self.steps.begin();
            let embedded = self.pass.embed(self.models[group[0]].model)?;
            start = Start::Hidden(embedded);
            self.charge(group, begun);
        }
        let mut remaining = parts.len();
        for part in parts {
            remaining -= 1;
            let start =
                if remaining == 0 { std::mem::replace(&mut start, Start::Tokens) } else { start.clone() };
            let first = &self.models[part[0]];
            let together =
                |depth: usize| part.iter().all(|&index| same_layer(first, &self.models[index], depth));
            let num_layers = first.model.layers.len();
            let end = (depth + 1..num_layers).find(|&depth| !together(depth)).unwrap_or(num_layers);
            let begun = self.steps.begin();
            let x = self.pass.run(first.model, &first.wanted, depth..end, start, self.steps)?;
            self.charge(&part, begun);
            if end < num_layers {
                self.go(&part, end, Start::Hidden(x))?;
                continue;
            }
            for index in part {
                let begun = self.steps.begin();
                (self.arrive)(index, &x)?;
                self.charge(&[index], begun);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use candle_core::DType;
    use candle_core::Device;
    use candle_core::Tensor;

    use super::*;
    use crate::model::transformer::Embedding;
    use crate::model::transformer::End;
    use crate::model::transformer::Layer;
    use crate::model::weights::Identified;
    use crate::ops::AttentionSpec;
    use crate::ops::Distance;
    use crate::ops::Which;
    use crate::ops::batch::Sequence;
    use crate::ops::composed::Composed;
    use crate::ops::composed::Packing;
    use crate::values::Format;

    const OPS: Composed = Composed { device: Device::Cpu, format: Format::F32 };

    /// Embeds a token as its id, and multiplies by a factor; counts how often it runs.
    #[derive(Clone, Debug)]
    struct Step {
        factor: f64,
        runs: Arc<AtomicUsize>,
    }

    impl Embedding<Composed> for Step {
        fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>> {
            vec![batch.token_ids().into()]
        }

        fn forward(&self, _: &Composed, ids: &[&[u32]]) -> Result<Tensor> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            Tensor::new(ids[0], &Device::Cpu)?.to_dtype(DType::F32)?.unsqueeze(1)? * self.factor
        }
    }

    impl Layer<Composed> for Step {
        fn spec(&self) -> &AttentionSpec {
            &AttentionSpec {
                heads: 1,
                kv_heads: 1,
                head_dim: 1,
                causal: true,
                window: None,
                scale: 0.1,
                distance: Distance::Ignored,
                softcap: None,
            }
        }

        fn products(&self) -> usize {
            1
        }

        fn input<'a>(&self, _: &Composed, x: &'a Tensor) -> Result<Cow<'a, Tensor>> {
            Ok(Cow::Borrowed(x))
        }

        fn queries(&self, _: &Composed, x: &Tensor, _: &Packing<'_>, _: Which<'_>) -> Result<Tensor> {
            Ok(x.clone())
        }

        fn keys_and_values(
            &self,
            _: &Composed,
            x: &Tensor,
            _: &Packing<'_>,
            _: Which<'_>,
        ) -> Result<[Tensor; 2]> {
            Ok([x.clone(), x.clone()])
        }

        fn finish(&self, _: &Composed, x: Tensor, attended: &Tensor, _: Option<Tensor>) -> Result<Tensor> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            (x + attended)? * self.factor
        }
    }

    /// A model of steps named by a letter each: the embedding, then layers; equal letters are equal steps.
    fn model(steps: &str, runs: &Arc<AtomicUsize>) -> Transformer<Composed> {
        let step = |letter: u8| Step { factor: f64::from(letter - b'a') * 0.1 + 0.5, runs: runs.clone() };
        let layer = |letter: u8| Identified { identity: [letter; 32], part: Box::new(step(letter)) as _ };
        let (&embedding, layers) = steps.as_bytes().split_first().unwrap();
        Transformer {
            embedding: Identified { identity: [embedding; 32], part: Box::new(step(embedding)) },
            ropes: Vec::new(),
            layers: layers.iter().map(|&letter| layer(letter)).collect(),
            end: Identified { identity: [0; 32], part: End { norm: None, projection: None } },
        }
    }

    /// What arrives of each model, and how many steps ran.
    fn run(models: &[(&str, Wanted)], spent: &mut [Duration]) -> (Vec<Vec<f32>>, usize) {
        let runs = Arc::default();
        let backbones: Vec<_> = models.iter().map(|(steps, _)| model(steps, &runs)).collect();
        let participants: Vec<_> = backbones
            .iter()
            .zip(models)
            .map(|(model, (_, wanted))| Participant { model, wanted: wanted.clone() })
            .collect();
        let sequence = |token_ids: Vec<u32>| Sequence { type_ids: vec![0; token_ids.len()], token_ids };
        let batch = PackedBatch::pack(&[sequence(vec![1, 2]), sequence(vec![3, 1, 2])]);
        let mut arrived = vec![Vec::new(); models.len()];
        forward_together(&OPS, &participants, &batch, spent, &mut Steps::whole(), |index, hidden| {
            assert!(arrived[index].is_empty(), "model {index} arrived twice");
            arrived[index] = OPS.to_vec(hidden)?;
            Ok(())
        })
        .unwrap();
        (arrived, runs.load(Ordering::Relaxed))
    }

    #[test]
    fn what_models_have_in_common_runs_once_and_changes_nothing() {
        let (last, all) = (Wanted::Rows(vec![1, 4]), Wanted::All);
        for (models, runs) in [
            (vec![("abc", &last)], 3),
            (vec![("abc", &last), ("abc", &last), ("abc", &last)], 3),
            (vec![("abc", &last), ("abd", &last), ("abc", &last)], 4),
            (vec![("abc", &last), ("acc", &last)], 5),
            (vec![("abc", &last), ("bbc", &last)], 6),
            (vec![("abcd", &last), ("abed", &last), ("abef", &last), ("gbcd", &last)], 3 + 4 + 4),
            (vec![("abc", &last), ("abcd", &last)], 3 + 2), // the last layer runs for the wanted rows only
            (vec![("abc", &last), ("abc", &all)], 3 + 1),
            (vec![("abcd", &all), ("abcd", &all), ("abd", &all)], 4 + 1),
        ] {
            let models: Vec<_> = models.into_iter().map(|(steps, wanted)| (steps, wanted.clone())).collect();
            let mut spent = vec![Duration::ZERO; models.len()];
            let (together, ran) = run(&models, &mut spent);
            assert_eq!(ran, runs, "{models:?}");
            assert!(spent.iter().all(|spent| !spent.is_zero()), "{models:?}: {spent:?}");
            for (index, model) in models.iter().enumerate() {
                let (alone, _) = run(std::slice::from_ref(model), &mut [Duration::ZERO]);
                assert_eq!(together[index], alone[0], "{model:?} of {models:?}");
            }
        }
    }
}
