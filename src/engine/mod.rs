//! Many callers, one device thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::batch::Sequence;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;

/// Limits of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A batch takes samples up to this many tokens; a longer sample goes alone.
    pub max_batch_tokens: usize,
    /// What waits for one variant, at most.
    pub max_queue_tokens: usize,
}

/// Which of the requests that wait goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A person or an evaluation waits.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Whenever nothing else waits.
    Background,
}

/// How a request wants to be served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// Its rank among the requests that wait.
    pub priority: Priority,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
}

/// The answer to one request.
#[derive(Debug)]
pub struct Scored {
    /// One outcome for each sequence, in their order.
    pub outcomes: Vec<Result<Reward, SampleError>>,
    /// From admission until the last batch that held one of the sequences started.
    pub queue: Duration,
    /// The model's time for the batches that held the sequences.
    pub compute: Duration,
}

/// Why one sample has no reward, though its request was served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// NaN or infinite: never returned as a number.
    #[error("the reward is not finite ({reward})")]
    NotFinite {
        /// What the model answered.
        reward: f32,
    },
    /// The model failed on this sample alone.
    #[error("the forward failed")]
    ForwardFailed,
}

/// Why a request as a whole is not served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// It can never be admitted.
    #[error("the request has {tokens} tokens, the queue holds {limit}: send fewer samples in one request")]
    TooLarge {
        /// Of all its samples.
        tokens: usize,
        /// `max_queue_tokens`.
        limit: usize,
    },
    /// Not now.
    #[error("the queue is full: {waiting} of {limit} tokens wait; retry in {retry_after:?}")]
    QueueFull {
        /// Tokens that wait.
        waiting: usize,
        /// `max_queue_tokens`.
        limit: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// It would only wait in vain.
    #[error("the estimated wait of {wait:?} exceeds the time that is left, {left:?}")]
    WouldExpire {
        /// Until its answer, by the present throughput.
        wait: Duration,
        /// Until its deadline.
        left: Duration,
    },
    /// The deadline passed while it waited.
    #[error("the deadline passed while the request waited")]
    DeadlineExceeded,
    /// No new work: the server stops, or this variant was replaced.
    #[error("the server is draining")]
    Draining,
}

/// Owns the device thread. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<()>,
}

impl Engine {
    /// Starts the device thread.
    pub fn start(_config: Config) -> Self {
        Self { shared: Arc::new(()) }
    }

    /// Adds a queue for a variant. `variant` labels its metrics; after a reload two lanes may bear one name
    /// for as long as the old one drains.
    pub fn add_lane(&self, _variant: &str, _scorer: Scorer) -> Lane {
        Lane { shared: self.shared.clone() }
    }

    /// Refuses new work in every lane and returns when all that was admitted is answered.
    pub async fn drain(&self) {}
}

/// The queue of one variant. Cheap to clone; the last clone that is dropped closes it.
#[derive(Clone)]
pub struct Lane {
    #[expect(dead_code, reason = "skeleton")]
    shared: Arc<()>,
}

impl Lane {
    /// Admits all `sequences` or none, waits, and returns one outcome for each. Dropping the future withdraws
    /// what has not been started.
    pub async fn score(&self, _sequences: Vec<Sequence>, _call: Call) -> Result<Scored, EngineError> {
        Err(EngineError::Draining)
    }

    /// Refuses new work; what was admitted is finished, then the scorer is dropped.
    pub fn close(&self) {}

    /// Whether forwards succeed: false after several failed or non-finite in a row, true again after one success.
    pub fn health(&self) -> tokio::sync::watch::Receiver<bool> {
        tokio::sync::watch::channel(true).1
    }
}
