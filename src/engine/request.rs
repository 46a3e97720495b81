//! A request on its way: it waits, runs in portions, and is answered.
//!
//! A request waits as a whole and is served in the order of its samples: the device thread moves it out of the
//! queue, runs as many samples as a batch has room for, and moves it back if some are left. So it has one owner
//! at any time, which is what makes "answered exactly once" easy to see: [`Request::finish`] and
//! [`Request::expire`] consume it, and one that is merely dropped is one whose caller has left.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::EngineError;
use super::Outcome;
use super::Priority;
use super::SampleError;
use super::Scored;
use super::served::Served;
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
}

/// Samples that one caller wants scored, and what is known of them so far.
pub(super) struct Request {
    pub(super) priority: Priority,
    pub(super) deadline: Option<Instant>,
    pub(super) admitted: Instant,
    sequences: Vec<Sequence>,
    /// Tokens of the sequences that still wait.
    pub(super) tokens_left: usize,
    /// Tokens of the longest sequence of all.
    pub(super) longest: usize,
    /// Of the first sequences, in order; the others still wait or run.
    outcomes: Vec<Outcome>,
    queue: Duration,
    compute: Duration,
    reduce: Duration,
    answer: oneshot::Sender<Result<Scored, EngineError>>,
}

impl Request {
    pub(super) fn new(
        sequences: Vec<Sequence>,
        priority: Priority,
        deadline: Option<Instant>,
        answer: oneshot::Sender<Result<Scored, EngineError>>,
    ) -> Self {
        Self {
            priority,
            deadline,
            admitted: Instant::now(),
            tokens_left: sequences.iter().map(tokens_of).sum(),
            longest: sequences.iter().map(tokens_of).max().unwrap_or(0),
            outcomes: Vec::with_capacity(sequences.len()),
            sequences,
            queue: Duration::ZERO,
            compute: Duration::ZERO,
            reduce: Duration::ZERO,
            answer,
        }
    }

    /// The samples without an outcome.
    pub(super) fn waiting(&self) -> &[Sequence] {
        &self.sequences[self.outcomes.len()..]
    }

    pub(super) fn caller_has_left(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers the caller; all outcomes are known.
    fn finish(self, served: &Served) {
        debug_assert_eq!(self.outcomes.len(), self.sequences.len());
        let Self { outcomes, queue, compute, reduce, .. } = self;
        let metrics = served.metrics(); // before the answer, upon which the lane may be shown
        if self.answer.send(Ok(Scored { outcomes, queue, compute })).is_ok() {
            metrics.request_scored(queue, compute, reduce);
        }
    }

    /// Tells the caller that it was too late, if anybody still listens.
    pub(super) fn expire(self) {
        let _ = self.answer.send(Err(EngineError::DeadlineExceeded));
    }

    /// Why it is of no use to score this request, if so.
    pub(super) fn departure(&self, now: Instant) -> Option<Departure> {
        if self.caller_has_left() {
            Some(Departure::Withdrawn)
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Departure::Expired)
        } else {
            None
        }
    }
}

pub(super) fn tokens_of(sequence: &Sequence) -> usize {
    sequence.token_ids.len()
}

/// The next samples of a request, on their way through the model.
pub(super) struct Portion {
    pub(super) ticket: Ticket,
    pub(super) request: Request,
    pub(super) num_samples: usize,
}

impl Portion {
    pub(super) fn sequences(&self) -> &[Sequence] {
        &self.request.waiting()[..self.num_samples]
    }

    pub(super) fn caller_has_left(&self) -> bool {
        self.request.caller_has_left()
    }
}

/// Samples of one lane and priority that go through the model together.
pub(super) struct Batch {
    pub(super) served: Arc<Served>,
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
    /// Hands out one outcome per sample, in their order, and answers the requests that have all of theirs.
    /// Returns what the queue must be told.
    pub(super) fn answer(self, outcomes: impl IntoIterator<Item = Outcome>, times: Times) -> Ended {
        let Times { compute, reduce, paused } = times;
        let mut outcomes = outcomes.into_iter();
        let mut unfinished = None;
        for Portion { ticket, mut request, num_samples } in self.portions {
            request.outcomes.extend(outcomes.by_ref().take(num_samples));
            request.queue = self.started.saturating_duration_since(request.admitted) + paused;
            request.compute += compute;
            request.reduce += reduce;
            if request.waiting().is_empty() {
                request.finish(&self.served);
            } else {
                debug_assert!(unfinished.is_none(), "only the last request of a batch is cut");
                unfinished = Some((ticket, request));
            }
        }
        debug_assert!(outcomes.next().is_none(), "one outcome per sample");
        Ended { num_tokens: self.num_tokens, elapsed: compute + reduce, unfinished }
    }

    /// Ends it without rewards: nobody waits for any.
    pub(super) fn give_up(self, times: Times) -> Ended {
        let num_samples = self.portions.iter().map(|portion| portion.num_samples).sum();
        self.served.metrics().samples_withdrawn(num_samples);
        let outcomes = vec![Err(SampleError::ForwardFailed); num_samples];
        Ended { num_tokens: 0, ..self.answer(outcomes, times) }
    }
}

/// The batch that was taken last has ended.
pub(super) struct Ended {
    /// None if it was given up.
    pub(super) num_tokens: usize,
    pub(super) elapsed: Duration,
    /// What was cut, to wait on.
    pub(super) unfinished: Option<(Ticket, Request)>,
}
