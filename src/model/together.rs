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
//!
//! Where a form [gains](Ops::rows_beside) by it, what is not in common is computed side by side.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use crate::model::rope::RopeTable;
use crate::model::steps::Steps;
use crate::model::transformer;
use crate::model::transformer::BatchPass;
use crate::model::transformer::Start;
use crate::model::transformer::Transformer;
use crate::model::transformer::Wanted;
use crate::ops::Ahead;
use crate::ops::Ops;
use crate::ops::batch::PackedBatch;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;

/// A model that takes part in the forward of a batch.
#[derive(Debug)]
pub struct Participant<'a, O: Ops> {
    /// Its layers.
    pub model: &'a Transformer<O>,
    /// What its head reads.
    pub wanted: Wanted,
}

/// Runs models on a batch; what they have in common runs once. `arrive` is given the index of each model, the hidden
/// states of the rows it wants, in blocks, and the batch as the form has it; `read` what it made of them, in the order
/// of the models. Returns what that is.
///
/// What a model takes, its `arrive` included, is added to its place in `spent`, by the form's own clock; what several
/// have in common is divided equally among them, and what took a time together in proportion to what each took of it.
/// Pauses between `steps` are nobody's.
pub fn forward_together<O: Ops, T, R>(
    ops: &O,
    models: &[Participant<'_, O>],
    batch: &PackedBatch,
    spent: &mut [Duration],
    steps: &mut Steps<'_>,
    arrive: impl Fn(usize, &[O::Rows], &O::Batch<'_>) -> Result<T>,
    read: impl FnOnce(Vec<T>, &mut Steps<'_>) -> Result<R>,
) -> Result<R> {
    let mut times = Times { spans: Vec::new(), beside: Vec::new() };
    // times last: where they are taken elsewhere, this machine waits for nothing before the results
    let arrived = run(ops, models, batch, &mut times, steps, arrive);
    let arrived = arrived.and_then(|arrived| read(arrived, steps));
    times.charge(ops, spent)?;
    arrived
}

/// Gives a form a batch ahead, if all of the models read the same of it.
pub fn prepare<O: Ops>(ops: &O, models: &[Participant<'_, O>], batch: &PackedBatch) -> Result<Option<Ahead>> {
    let (going, lists) = all_going(models, batch);
    let everyone: Vec<usize> = (0..models.len()).collect();
    match partition(&everyone, |a, b| read_the_same(&going, a, b)).as_slice() {
        [readers] => ops.prepare(&going[readers[0]].inputs(batch, &lists)),
        _ => Ok(None),
    }
}

/// The models before they go, and the rows that their heads read.
fn all_going<'a, O: Ops>(
    models: &'a [Participant<'_, O>],
    batch: &'a PackedBatch,
) -> (Vec<Going<'a, O>>, Vec<Vec<usize>>) {
    let mut lists: Vec<Vec<usize>> = Vec::new();
    let mut list_of = |wanted: &Wanted| {
        let Wanted::Rows(rows) = wanted else { return None };
        let known = lists.iter().position(|list| list == rows);
        Some(known.unwrap_or_else(|| {
            lists.push(rows.clone());
            lists.len() - 1
        }))
    };
    let going = models.iter().map(|Participant { model, wanted }| Going {
        model,
        list: list_of(wanted),
        ids: model.embedding.part.ids(batch),
    });
    (going.collect(), lists)
}

/// Members of a family read the same of a batch, whatever their weights: the form gets it once.
fn read_the_same<O: Ops>(going: &[Going<'_, O>], a: usize, b: usize) -> bool {
    let ropes = |index: usize| going[index].model.ropes.iter().map(RopeTable::config);
    going[a].ids == going[b].ids && ropes(a).eq(ropes(b))
}

/// The same; what was spent is told in spans.
fn run<O: Ops, T>(
    ops: &O,
    models: &[Participant<'_, O>],
    batch: &PackedBatch,
    times: &mut Times<O>,
    steps: &mut Steps<'_>,
    arrive: impl Fn(usize, &[O::Rows], &O::Batch<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut arrived: Vec<Option<T>> = models.iter().map(|_| None).collect();
    let (going, lists) = all_going(models, batch);
    let everyone: Vec<usize> = (0..models.len()).collect();
    for readers in partition(&everyone, |a, b| read_the_same(&going, a, b)) {
        let mut clock = Clock::begin(ops, steps)?;
        let inputs = going[readers[0]].inputs(batch, &lists);
        let of_form = match steps.take_ahead() {
            Some(ahead) => ops.prepared_batch(&inputs, ahead)?,
            None => ops.batch(&inputs)?,
        };
        clock.charge(ops, steps, times, &readers)?;
        let same_embedding =
            |a: usize, b: usize| going[a].model.embedding.identity == going[b].model.embedding.identity;
        let groups = partition(&readers, same_embedding);
        let widest = readers.iter().map(|&index| going[index].model.width).max().unwrap_or(0);
        let is_beside = batch.num_rows() <= ops.rows_beside(widest);
        let (is_branch, first_span) = (is_beside && groups.len() > 1, times.spans.len());
        for group in groups {
            let blocks = transformer::blocks(ops, going[group[0]].model, batch, steps);
            let pass = BatchPass { ops, inputs: &inputs, batch: &of_form, blocks };
            let mut arrive = |index: usize, hidden: &[O::Rows]| {
                arrived[index] = Some(arrive(index, hidden, &of_form)?);
                Ok(())
            };
            let mut of_group = GroupRun {
                pass,
                models: &going,
                is_beside,
                times: &mut *times,
                steps: &mut *steps,
                arrive: &mut arrive,
            };
            let mut go = || of_group.go(&group, 0, Start::Tokens);
            if is_branch { ops.branch(go)? } else { go()? }
        }
        if ops.join()? {
            let spans = first_span..times.spans.len();
            times.beside.push(Beside { spans, from: clock.at, to: ops.moment()? });
        }
    }
    Ok(arrived.into_iter().map(|arrived| arrived.expect("every model arrives")).collect())
}

/// How many layers run for a batch, and how many the models have. Pooling is taken to be the same.
pub fn count_layers<O: Ops>(models: &[&Transformer<O>]) -> (usize, usize) {
    fn count<O: Ops>(group: &[Going<'_, O>], indices: &[usize], depth: usize) -> usize {
        let going: Vec<usize> =
            indices.iter().copied().filter(|&index| depth < group[index].model.layers.len()).collect();
        let parts = partition(&going, |a, b| same_layer(&group[a], &group[b], depth));
        parts.iter().map(|part| 1 + count(group, part, depth + 1)).sum()
    }
    let going: Vec<_> = models.iter().map(|&model| Going { model, list: None, ids: Vec::new() }).collect();
    let everyone: Vec<usize> = (0..models.len()).collect();
    let groups = partition(&everyone, |a, b| models[a].embedding.identity == models[b].embedding.identity);
    let run = groups.iter().map(|group| count(&going, group, 0)).sum();
    (run, models.iter().map(|model| model.layers.len()).sum())
}

/// Whether two models that have everything in common up to `depth` have this layer in common too. The last one
/// counts with what follows it.
fn same_layer<O: Ops>(a: &Going<'_, O>, b: &Going<'_, O>, depth: usize) -> bool {
    let is_last = |going: &Going<'_, O>| depth + 1 == going.model.layers.len();
    let same_end = || a.list == b.list && a.model.end.identity == b.model.end.identity;
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

/// A model on its way.
struct Going<'a, O: Ops> {
    model: &'a Transformer<O>,
    /// What its head reads, among the lists of the batch; absent: all rows.
    list: Option<usize>,
    /// `[tables][rows]`
    ids: Vec<Cow<'a, [u32]>>,
}

impl<O: Ops> Going<'_, O> {
    fn inputs<'b>(&'b self, batch: &'b PackedBatch, lists: &[Vec<usize>]) -> Inputs<'b> {
        Inputs {
            packed: batch,
            ids: self.ids.iter().map(|ids| Cow::Borrowed(&**ids)).collect(),
            ropes: self.model.ropes.iter().map(|rope| rope.packed(batch)).collect(),
            lists: lists.to_vec(),
        }
    }
}

/// What some models took together.
struct Span<O: Ops> {
    models: Vec<usize>,
    from: O::Moment,
    to: O::Moment,
    /// Of this for pauses.
    paused: Duration,
}

/// Spans of which some overlap.
struct Beside<O: Ops> {
    /// Which.
    spans: Range<usize>,
    /// When the first began.
    from: O::Moment,
    /// When all were done.
    to: O::Moment,
}

/// Where the time of a batch went.
struct Times<O: Ops> {
    spans: Vec<Span<O>>,
    beside: Vec<Beside<O>>,
}

impl<O: Ops> Times<O> {
    /// Adds to each model's place what it took.
    fn charge(self, ops: &O, spent: &mut [Duration]) -> Result<()> {
        let took = |span: &Span<O>| Ok(ops.between(&span.from, &span.to)?.saturating_sub(span.paused));
        let mut took = self.spans.iter().map(took).collect::<Result<Vec<Duration>>>()?;
        for Beside { spans, from, to } in self.beside {
            let (whole, sum) = (ops.between(&from, &to)?, took[spans.clone()].iter().sum::<Duration>());
            if !sum.is_zero() {
                let share = whole.as_secs_f64() / sum.as_secs_f64();
                took[spans].iter_mut().for_each(|took| *took = took.mul_f64(share));
            }
        }
        for (Span { models, .. }, took) in self.spans.iter().zip(took) {
            models.iter().for_each(|&index| spent[index] += took / models.len() as u32);
        }
        Ok(())
    }
}

/// Since when nobody was charged.
struct Clock<O: Ops> {
    at: O::Moment,
    paused: Duration,
}

impl<O: Ops> Clock<O> {
    fn begin(ops: &O, steps: &Steps<'_>) -> Result<Self> {
        Ok(Self { at: ops.moment()?, paused: steps.paused() })
    }

    /// Charges some models with what passed, and begins anew.
    fn charge(&mut self, ops: &O, steps: &Steps<'_>, times: &mut Times<O>, models: &[usize]) -> Result<()> {
        let now = Self::begin(ops, steps)?;
        let Self { at: from, paused } = std::mem::replace(self, now);
        let (to, paused) = (self.at.clone(), self.paused - paused);
        times.spans.push(Span { models: models.to_vec(), from, to, paused });
        Ok(())
    }
}

/// The models of a batch that have one embedding, and what becomes of them.
struct GroupRun<'a, 'p, 'f, 's, O: Ops> {
    pass: BatchPass<'a, 'p, O>,
    models: &'a [Going<'a, O>],
    /// Whether what is not in common goes side by side.
    is_beside: bool,
    times: &'a mut Times<O>,
    steps: &'a mut Steps<'s>,
    arrive: &'a mut Arrive<'f, O::Rows>,
}

impl<O: Ops> GroupRun<'_, '_, '_, '_, O> {
    /// Takes a group through the layers from `depth` on, together as far as these are the same.
    fn go(&mut self, group: &[usize], depth: usize, mut start: Start<O::Rows>) -> Result<()> {
        let ops = self.pass.ops;
        let mut clock = Clock::begin(ops, self.steps)?;
        let parts = partition(group, |a, b| same_layer(&self.models[a], &self.models[b], depth));
        if let (Start::Tokens, [_, _, ..]) = (&start, parts.as_slice()) {
            let embedded = self.pass.embed(self.models[group[0]].model)?;
            start = Start::Hidden(embedded);
            clock.charge(ops, self.steps, self.times, group)?;
        }
        if self.is_beside && parts.len() > 1 {
            if let Start::Hidden(x) = &start {
                x.iter().try_for_each(|x| ops.before_branches(x))?;
            }
            // each has a copy, since all read it: the last one too
            return parts
                .into_iter()
                .try_for_each(|part| ops.branch(|| self.take(part, depth, start.clone())));
        }
        let mut remaining = parts.len();
        for part in parts {
            remaining -= 1;
            let start =
                if remaining == 0 { std::mem::replace(&mut start, Start::Tokens) } else { start.clone() };
            self.take(part, depth, start)?;
        }
        Ok(())
    }

    /// Takes models that have the layer at `depth` in common to the end.
    fn take(&mut self, part: Vec<usize>, depth: usize, start: Start<O::Rows>) -> Result<()> {
        let ops = self.pass.ops;
        let first = &self.models[part[0]];
        let together = |depth: usize| part.iter().all(|&index| same_layer(first, &self.models[index], depth));
        let num_layers = first.model.layers.len();
        let end = (depth + 1..num_layers).find(|&depth| !together(depth)).unwrap_or(num_layers);
        let mut clock = Clock::begin(ops, self.steps)?;
        let x = self.pass.run(first.model, first.list, depth..end, start, self.steps)?;
        clock.charge(ops, self.steps, self.times, &part)?;
        if end < num_layers {
            return self.go(&part, end, Start::Hidden(x));
        }
        for index in part {
            (self.arrive)(index, &x)?;
            clock.charge(ops, self.steps, self.times, &[index])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use candle_core::DType;
    use candle_core::Device;
    use candle_core::Tensor;

    use super::*;
    use crate::model::transformer::Embedding;
    use crate::model::transformer::End;
    use crate::model::transformer::Finished;
    use crate::model::transformer::Layer;
    use crate::model::weights::Identified;
    use crate::ops::AttentionSpec;
    use crate::ops::Distance;
    use crate::ops::batch::Sequence;
    use crate::ops::composed::Batch;
    use crate::ops::composed::Composed;
    use crate::ops::inputs::Which;
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

        fn forward(&self, _: &Composed, batch: &Batch<'_>, _: &Which) -> Result<Tensor> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            let ids = Tensor::new(&*batch.inputs().ids[0], &Device::Cpu)?;
            Ok((ids.to_dtype(DType::F32)?.unsqueeze(1)? * self.factor)?)
        }
    }

    impl Layer<Composed> for Step {
        fn spec(&self) -> Option<&AttentionSpec> {
            Some(&AttentionSpec {
                heads: 1,
                kv_heads: 1,
                head_dim: 1,
                value_dim: 1,
                causal: true,
                window: None,
                scale: 0.1,
                distance: Distance::Ignored,
                softcap: None,
            })
        }

        fn products(&self) -> usize {
            1
        }

        fn input<'a>(&self, _: &Composed, x: &'a Tensor) -> Result<Cow<'a, Tensor>> {
            Ok(Cow::Borrowed(x))
        }

        fn project(
            &self,
            _: &Composed,
            x: &Tensor,
            _: &Batch<'_>,
            _: &Which,
            parts: Range<usize>,
        ) -> Result<Vec<Tensor>> {
            Ok(parts.map(|_| x.clone()).collect())
        }

        fn finish(
            &self,
            _: &Composed,
            x: Tensor,
            attended: &Tensor,
            _: Option<Tensor>,
        ) -> Result<Finished<Tensor>> {
            self.runs.fetch_add(1, Ordering::Relaxed);
            Ok(Finished::Whole(((x + attended)? * self.factor)?))
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
            width: 1,
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
        let read = |_, hidden: &[Tensor], _: &Batch<'_>| OPS.read(&[hidden.to_vec()]);
        let arrived =
            forward_together(&OPS, &participants, &batch, spent, &mut Steps::whole(), read, |made, _| {
                Ok(made)
            })
            .unwrap();
        let arrived = arrived.into_iter().map(|read| read.concat()).collect();
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
