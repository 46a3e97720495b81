//! The device thread: takes a batch, scores it, answers each caller, and again.
//!
//! ```text
//! queue → batch → pack → forward of all members → reduce → check → one outcome per sample → callers
//! ```
//!
//! Whatever a model does, the thread lives on and every sample of the batch gets an outcome. When a forward
//! fails, panics, or answers with too few rewards, each sample of the batch is tried again alone: so a bad sample
//! fails, and its neighbours do not. An ensemble whose member fails has failed: it never averages fewer members
//! than it names.
//!
//! # Between the steps of a batch
//!
//! A batch that is larger than a step is computed in [`steps`](crate::model::steps). At each pause the thread asks the queue
//! who may go now (`batcher` tells), runs that to its end, and goes on: the batch under way waits on the stack, and
//! is the same code as any. Once all of its callers have left, or their deadlines have passed, it is given up.
//!
//! # One batch ahead
//!
//! Where a device computes by itself, this thread would wait for it. It takes the next batch instead, packs it, and sends
//! it there, so that the device goes on without a pause; if a full batch waits, since a smaller one could still grow. What
//! is more urgent and comes later goes before it, whoever has left it by its turn is no part of it, and drains and reloads
//! wait for it as for one that runs. Rotary angles of 16,384 tokens were 8 MB of what was sent for each batch: they stay on the
//! device, and what is left is 0.3 MB.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::EngineError;
use super::Outcome;
use super::Priority;
use super::SampleError;
use super::Shared;
use super::request::Batch;
use super::request::Ended;
use super::request::Portion;
use super::request::Times;
use super::served::Served;
use crate::model::ModelError;
use crate::model::scorer::Prepared;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;
use crate::model::steps::Steps;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;

/// What the device thread does next.
pub(super) enum Work {
    /// Score this.
    Score(Next),
    /// Drop the scorer of a lane that has served all it admitted.
    Retire(Arc<Served>),
    /// Nobody is left who could ask for anything.
    Stop,
}

/// A batch, and what was made of it already.
pub(super) struct Next {
    batch: Batch,
    /// Absent: it was not taken ahead, or what failed is to fail when it runs.
    prepared: Option<Prepared>,
}

impl From<Batch> for Next {
    fn from(batch: Batch) -> Self {
        Self { batch, prepared: None }
    }
}

/// Runs one device until the engine and all its lanes are gone.
pub(super) fn run(shared: Arc<Shared>, device: usize) {
    let _last_act = LastAct(&shared);
    let mut ahead = None;
    loop {
        match shared.wait_for_work(device, &mut ahead) {
            Work::Stop => return,
            work => perform(&shared, device, work, &mut ahead),
        }
    }
}

fn perform(shared: &Shared, device: usize, work: Work, ahead: &mut Option<Next>) {
    match work {
        Work::Score(next) => {
            let ended = score(shared, device, next, ahead);
            shared.batch_ended(device, ended);
        }
        Work::Retire(served) => drop(served),
        Work::Stop => {}
    }
}

/// The pauses of a batch, and where its time goes.
struct Pauses<'a> {
    shared: &'a Shared,
    device: usize,
    batch: &'a Batch,
    /// The one after it, once it is known.
    ahead: &'a mut Option<Next>,
    begun: Instant,
    /// When it began to run, or went on.
    running_since: Instant,
    times: Times,
    is_given_up: bool,
}

impl<'a> Pauses<'a> {
    fn new(shared: &'a Shared, device: usize, batch: &'a Batch, ahead: &'a mut Option<Next>) -> Self {
        let now = Instant::now();
        let times = Times::default();
        Self { shared, device, batch, ahead, begun: now, running_since: now, times, is_given_up: false }
    }

    /// The device computes, and this thread would wait: takes the next batch, packs it, and sends it there.
    fn prepare_next(&mut self) {
        if self.ahead.is_some() {
            return;
        }
        // kept first: whatever happens to it below, it will be run
        let Some(batch) = self.shared.take_ahead(self.device) else { return };
        let next = self.ahead.insert(batch.into());
        let prepare = || {
            let sequences: Vec<&Sequence> = next.batch.portions.iter().flat_map(Portion::sequences).collect();
            let scorer = next.batch.scorer();
            scorer.prepare(next.batch.served.pack(scorer, &sequences))
        };
        next.prepared = catch_unwind(AssertUnwindSafe(prepare)).ok();
    }

    /// Runs whatever may go now, and tells whether the batch goes on.
    fn pause(&mut self) -> ControlFlow<()> {
        if self.batch.portions.iter().all(Portion::caller_has_left) {
            self.is_given_up = true;
            return ControlFlow::Break(());
        }
        let begun = Instant::now();
        let mut ran = begun - self.running_since;
        while let Some(work) = self.shared.work_between_steps(self.device, std::mem::take(&mut ran)) {
            perform(self.shared, self.device, work, self.ahead);
        }
        self.running_since = Instant::now();
        self.times.paused += self.running_since - begun;
        ControlFlow::Continue(())
    }

    fn times(&self) -> Times {
        let Times { reduce, paused, .. } = self.times;
        Times { compute: self.begun.elapsed().saturating_sub(reduce + paused), ..self.times }
    }
}

/// When the thread ends, in whatever way, nobody is left waiting: dropping a request tells its caller.
struct LastAct<'a>(&'a Shared);

impl Drop for LastAct<'_> {
    fn drop(&mut self) {
        let lanes = self.0.lock().queue.take_all();
        self.0.idle.notify_waiters();
        drop(lanes); // not under the lock: freeing a model takes a while
    }
}

/// Why a forward gave no rewards.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("member {member} gave {rewards} rewards for {samples} samples")]
    WrongCount { member: usize, rewards: usize, samples: usize },
    #[error("the model panicked: {0}")]
    Panicked(String),
}

impl Failure {
    /// What the driver said, if the device is lost for this process.
    fn fault(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.fault(),
            Self::WrongCount { .. } | Self::Panicked(_) => None,
        }
    }
}

impl Served {
    /// One outcome per sequence.
    fn score(
        &self,
        sequences: &[&Sequence],
        prepared: Option<Prepared>,
        pauses: &mut Pauses<'_>,
    ) -> Result<Vec<Outcome>, Failure> {
        // Nothing that a panic leaves half done is used again: the batch is packed anew, and a model has no state.
        catch_unwind(AssertUnwindSafe(|| {
            let batch = pauses.batch;
            let scorer = batch.scorer();
            let mut prepared = prepared.unwrap_or_else(|| self.pack(scorer, sequences).into());
            let raw_rewards = self.forward(scorer, &mut prepared, pauses)?; // [members][batch]
            let batch = prepared.batch();
            pauses.batch.metrics().prefix_tokens_shared(batch.shared_tokens());
            let begun = Instant::now();
            let mut of_sample = Vec::with_capacity(raw_rewards.len()); // [members]
            let outcomes = (0..batch.len())
                .map(|sample| {
                    of_sample.clear();
                    of_sample.extend(raw_rewards.iter().map(|of_member| of_member[sample]));
                    finite(scorer.reduce(&of_sample))
                })
                .collect();
            pauses.times.reduce += begun.elapsed();
            Ok(outcomes)
        }))
        .unwrap_or_else(|panic| Err(Failure::Panicked(panic_message(&*panic))))
    }

    fn pack(&self, scorer: &Scorer, sequences: &[&Sequence]) -> PackedBatch {
        match self.share_prefixes {
            true => scorer.pack_shared(sequences),
            false => PackedBatch::pack(sequences.iter().copied()),
        }
    }

    /// Raw rewards of every member, `[members][batch]`.
    fn forward(
        &self,
        scorer: &Scorer,
        prepared: &mut Prepared,
        pauses: &mut Pauses<'_>,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let mut spent = vec![Duration::ZERO; scorer.num_members()];
        let result = match pauses.batch.step_tokens {
            None => scorer.forward_prepared(prepared, &mut spent, &mut || pauses.prepare_next()),
            Some(max_tokens) => {
                let mut pause = || pauses.pause();
                let mut steps = Steps::new(max_tokens, &mut pause);
                scorer.forward_in_steps(prepared.batch(), &mut spent, &mut steps)
            }
        };
        for (member, &spent) in spent.iter().enumerate() {
            pauses.batch.metrics().member_ran(member, spent);
        }
        let (raw_rewards, samples) = (result?, prepared.batch().len());
        for (member, rewards) in raw_rewards.iter().enumerate() {
            if rewards.len() != samples {
                let rewards = rewards.len();
                return Err(Failure::WrongCount { member, rewards, samples });
            }
        }
        Ok(raw_rewards)
    }
}

/// Tells health and metrics.
fn record(batch: &Batch, outcomes: &[Outcome]) {
    let metrics = batch.metrics();
    metrics.batch_scored(outcomes.len(), batch.num_tokens);
    for outcome in outcomes {
        match outcome {
            Ok(reward) => metrics.sample_scored(reward.reward, reward.reward_std),
            Err(SampleError::NotFinite { .. }) => metrics.sample_not_finite(),
            Err(SampleError::ForwardFailed) => metrics.samples_failed(1),
        }
    }
    if batch.priority != Priority::Shadow {
        batch.served.batch_ended(batch.copy, outcomes.iter().any(Result::is_ok));
    }
}

/// Why a batch as a whole has no outcomes.
enum NoOutcomes {
    /// Nobody waits for any.
    GivenUp,
    /// The device is lost.
    Lost,
}

/// Scores a batch and answers every request that is complete with it.
fn score(shared: &Shared, device: usize, next: Next, ahead: &mut Option<Next>) -> Ended {
    let Next { mut batch, mut prepared } = next;
    if batch.begin(tokio::time::Instant::now()) {
        prepared = None;
        if batch.portions.is_empty() {
            return batch.give_up(Times::default());
        }
    }
    let mut pauses = Pauses::new(shared, device, &batch, ahead);
    let served = &batch.served;
    let sequences: Vec<&Sequence> = batch.portions.iter().flat_map(Portion::sequences).collect();
    let outcomes = served.score(&sequences, prepared, &mut pauses).or_else(|failure| {
        if let Some(fault) = failure.fault() {
            shared.device_lost(&fault);
            return Err(NoOutcomes::Lost);
        }
        let outcomes = match sequences.len() {
            _ if pauses.is_given_up => return Err(NoOutcomes::GivenUp),
            1 => vec![Err(SampleError::ForwardFailed)],
            _ => score_each_alone(&batch, &mut pauses)?,
        };
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        tracing::error!(
            variant = served.variant,
            error = %failure,
            samples = sequences.len(),
            tokens = batch.num_tokens,
            failed,
            "forward failed, each sample was tried alone"
        );
        Ok(outcomes)
    });
    let times = pauses.times();
    match outcomes {
        Ok(outcomes) => {
            record(&batch, &outcomes);
            batch.answer(outcomes, times)
        }
        Err(NoOutcomes::GivenUp) => batch.give_up(times),
        Err(NoOutcomes::Lost) => {
            batch.metrics().samples_failed(sequences.len());
            batch.refuse(&EngineError::DeviceLost, times)
        }
    }
}

fn score_each_alone(batch: &Batch, pauses: &mut Pauses<'_>) -> Result<Vec<Outcome>, NoOutcomes> {
    let mut outcomes = Vec::new();
    for portion in &batch.portions {
        for sequence in portion.sequences() {
            // nobody waits for the others of a caller who has left
            let alone = (!portion.caller_has_left()).then(|| batch.served.score(&[sequence], None, pauses));
            let outcome = match alone {
                Some(Ok(mut outcomes)) => outcomes.pop(),
                Some(Err(failure)) => {
                    if let Some(fault) = failure.fault() {
                        pauses.shared.device_lost(&fault);
                        return Err(NoOutcomes::Lost);
                    }
                    None
                }
                None => None,
            };
            outcomes.push(outcome.unwrap_or(Err(SampleError::ForwardFailed)));
        }
    }
    Ok(outcomes)
}

/// A reward only if every number in it is one.
fn finite(reward: Reward) -> Outcome {
    let numbers =
        [reward.reward].into_iter().chain(reward.member_rewards.iter().copied()).chain(reward.reward_std);
    match numbers.into_iter().find(|number| !number.is_finite()) {
        Some(number) => Err(SampleError::NotFinite { reward: number }),
        None => Ok(reward),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
