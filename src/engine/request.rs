//! A request on its way: it waits, runs in portions, and is answered.
//!
//! A request waits until a batch has taken its last sample, and is served in their order: each batch takes as many as it
//! has room for, and several may run at the same time, on devices of their own. What they find comes together in
//! [`Asked`], which whoever brings the last outcome answers, once: the caller's sender is taken out of it. One that is
//! dropped without an answer is one whose caller has left.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::EngineError;
use super::Outcome;
use super::Priority;
use super::SampleError;
use super::Scored;
use super::served::Served;
use crate::metrics::VariantMetrics;
use crate::model::scorer::Scorer;
use crate::ops::batch::Sequence;

/// Names a lane of the queue.
pub(super) type LaneId = u64;

/// A place in a lane's queue. The order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    pub(super) priority: Priority,
    pub(super) number: u64,
}

/// What happens to a request that leaves the queue unserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Its deadline passed.
    Expired,
    /// Its caller left.
    Withdrawn,
    /// Nothing is served any more.
    Refused,
}

/// A request that has samples which no batch has taken.
pub(super) struct Request {
    pub(super) priority: Priority,
    pub(super) deadline: Option<Instant>,
    pub(super) admitted: Instant,
    asked: Arc<Asked>,
    /// The first sample that waits.
    next: usize,
    /// Tokens of those that wait.
    pub(super) tokens_left: usize,
    /// Tokens of the longest sequence of all.
    pub(super) longest: usize,
}

/// Samples that one caller wants scored, and what is known of them so far.
pub(super) struct Asked {
    sequences: Vec<Sequence>,
    found: Mutex<Found>,
}

struct Found {
    /// One for each sequence.
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    queue: Duration,
    compute: Duration,
    reduce: Duration,
    batch_samples: usize,
    /// Until it is answered.
    answer: Option<oneshot::Sender<Result<Scored, EngineError>>>,
}

impl Request {
    pub(super) fn new(
        sequences: Vec<Sequence>,
        priority: Priority,
        deadline: Option<Instant>,
        answer: oneshot::Sender<Result<Scored, EngineError>>,
    ) -> Self {
        let found = Found {
            outcomes: vec![None; sequences.len()],
            missing: sequences.len(),
            queue: Duration::ZERO,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            batch_samples: 0,
            answer: Some(answer),
        };
        Self {
            priority,
            deadline,
            admitted: Instant::now(),
            tokens_left: sequences.iter().map(tokens_of).sum(),
            longest: sequences.iter().map(tokens_of).max().unwrap_or(0),
            asked: Arc::new(Asked { sequences, found: Mutex::new(found) }),
            next: 0,
        }
    }

    /// The samples that no batch has taken.
    pub(super) fn waiting(&self) -> &[Sequence] {
        &self.asked.sequences[self.next..]
    }

    /// Takes the first of them.
    pub(super) fn take(&mut self, ticket: Ticket, num_samples: usize) -> Portion {
        let samples = self.next..self.next + num_samples;
        self.next = samples.end;
        self.tokens_left -= self.asked.sequences[samples.clone()].iter().map(tokens_of).sum::<usize>();
        Portion { ticket, admitted: self.admitted, asked: self.asked.clone(), samples }
    }

    /// Tells the caller why there is no answer, if anybody still listens.
    pub(super) fn refuse(&self, error: EngineError) {
        self.asked.refuse(error);
    }

    /// Why it is of no use to score this request, if so.
    pub(super) fn departure(&self, now: Instant) -> Option<Departure> {
        if self.asked.caller_has_left() {
            Some(Departure::Withdrawn)
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Departure::Expired)
        } else {
            None
        }
    }
}

impl Asked {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn caller_has_left(&self) -> bool {
        self.found().answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn refuse(&self, error: EngineError) {
        if let Some(answer) = self.found().answer.take() {
            let _ = answer.send(Err(error));
        }
    }

    /// Answers the caller if these were the last outcomes.
    fn bring(
        &self,
        samples: Range<usize>,
        outcomes: impl Iterator<Item = Outcome>,
        queue: Duration,
        times: Times,
        batch_samples: usize,
        metrics: &VariantMetrics,
    ) {
        let mut found = self.found();
        found.missing -= samples.len();
        for (place, outcome) in found.outcomes[samples].iter_mut().zip(outcomes) {
            *place = Some(outcome);
        }
        found.queue = found.queue.max(queue);
        found.compute += times.compute;
        found.reduce += times.reduce;
        found.batch_samples = found.batch_samples.max(batch_samples);
        if found.missing > 0 {
            return;
        }
        let Some(answer) = found.answer.take() else { return };
        let outcomes = std::mem::take(&mut found.outcomes);
        let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(SampleError::ForwardFailed)));
        let (queue, compute, reduce) = (found.queue, found.compute, found.reduce);
        let batch_samples = found.batch_samples;
        let scored = Scored { outcomes: outcomes.collect(), queue, compute, batch_samples };
        drop(found);
        if answer.send(Ok(scored)).is_ok() {
            metrics.request_scored(queue, compute, reduce);
        }
    }
}

pub(super) fn tokens_of(sequence: &Sequence) -> usize {
    sequence.token_ids.len()
}

/// Samples of a request, on their way through the model.
pub(super) struct Portion {
    pub(super) ticket: Ticket,
    admitted: Instant,
    asked: Arc<Asked>,
    samples: Range<usize>,
}

impl Portion {
    pub(super) fn sequences(&self) -> &[Sequence] {
        &self.asked.sequences[self.samples.clone()]
    }

    pub(super) fn caller_has_left(&self) -> bool {
        self.asked.caller_has_left()
    }
}

/// Samples of one lane and priority that go through a model together.
pub(super) struct Batch {
    pub(super) served: Arc<Served>,
    /// Which of its copies.
    pub(super) copy: usize,
    /// Of all that is in it.
    pub(super) priority: Priority,
    pub(super) portions: Vec<Portion>,
    pub(super) num_tokens: usize,
    pub(super) started: Instant,
    /// Tokens of a [step](crate::model::steps::Steps::new), if it is computed in steps.
    pub(super) step_tokens: Option<usize>,
}

/// Where the time of a batch went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// The model's.
    pub(super) compute: Duration,
    pub(super) reduce: Duration,
    /// When others ran between its steps.
    pub(super) paused: Duration,
}

impl Batch {
    /// Where to count what becomes of it.
    pub(super) fn metrics(&self) -> &VariantMetrics {
        self.served.metrics_of(self.priority)
    }

    /// What scores it.
    pub(super) fn scorer(&self) -> &Scorer {
        &self.served.copies[self.copy].scorer
    }

    /// It begins now, and may have been taken ahead. Whoever has left meanwhile is no part of it any more; tells whether anybody has.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.started = now;
        let left: Vec<Portion> = self.portions.extract_if(.., |portion| portion.caller_has_left()).collect();
        for portion in &left {
            self.num_tokens -= portion.sequences().iter().map(tokens_of).sum::<usize>();
            self.metrics().samples_withdrawn(portion.samples.len());
        }
        !left.is_empty()
    }

    /// Hands out one outcome per sample, in their order, and answers the requests that have all of theirs.
    /// Returns what the queue must be told.
    pub(super) fn answer(self, outcomes: impl IntoIterator<Item = Outcome>, times: Times) -> Ended {
        let mut outcomes = outcomes.into_iter();
        let batch_samples = self.portions.iter().map(|portion| portion.samples.len()).sum();
        let metrics = self.served.metrics_of(self.priority); // before the answer, upon which the lane may be shown
        for Portion { admitted, asked, samples, .. } in self.portions {
            let queue = self.started.saturating_duration_since(admitted) + times.paused;
            let of_portion = outcomes.by_ref().take(samples.len());
            asked.bring(samples, of_portion, queue, times, batch_samples, metrics);
        }
        debug_assert!(outcomes.next().is_none(), "one outcome per sample");
        Ended { num_tokens: self.num_tokens, elapsed: times.compute + times.reduce }
    }

    /// Ends it without rewards: nobody waits for any.
    pub(super) fn give_up(self, times: Times) -> Ended {
        let num_samples = self.portions.iter().map(|portion| portion.samples.len()).sum();
        self.metrics().samples_withdrawn(num_samples);
        let outcomes = vec![Err(SampleError::ForwardFailed); num_samples];
        Ended { num_tokens: 0, ..self.answer(outcomes, times) }
    }

    /// Ends it without rewards: its requests are told why.
    pub(super) fn refuse(self, error: &EngineError, times: Times) -> Ended {
        self.portions.iter().for_each(|portion| portion.asked.refuse(error.clone()));
        Ended { num_tokens: 0, elapsed: times.compute + times.reduce }
    }
}

/// The batch that was taken last has ended.
pub(super) struct Ended {
    /// None if it was given up.
    pub(super) num_tokens: usize,
    pub(super) elapsed: Duration,
}
