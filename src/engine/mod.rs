//! Many callers, one thread for each device.
//!
//! ```text
//! Lane::score ─┐  admit or refuse   ┌─────────┐  next_batch   ┌────────┐
//! Lane::score ─┼──────────────────▶ │  Queue  │ ────────────▶ │ device │ ─▶ one outcome per sample,
//! Lane::score ─┘                    │ (lanes) │ ◀──────────── │ thread │    back to each caller
//!      ╎  deadline passed, or       └─────────┘  batch_ended  └────────┘
//!      └╌╌ future dropped: withdraw ╌╌╌▲
//! ```
//!
//! Each variant has a lane: a queue bounded by tokens, and a scorer that only a device thread calls; on several devices,
//! one for each, and one queue for all. When a device is free it takes what waits, without waiting for more: batches form because work queues while a batch
//! runs. `queue` keeps the books of each `request`, `batcher` decides who goes together, `estimate` guesses how
//! long it will take, `worker` runs it.
//!
//! # What a caller can rely on
//!
//! - A request is admitted whole or refused at once; an admitted one gets exactly one outcome for each sample,
//!   whatever the model does, and at its deadline at the latest it gets [`EngineError::DeadlineExceeded`].
//! - Within a lane: [`Priority`] first, then first come first served, and no batch mixes priorities.
//! - A sample above `max_step_tokens` holds the device for a step at a time: others go between its steps, in turns.
//! - Between lanes: equal shares of a device's time while they contend for it, except that background work yields to
//!   anything else in any lane.
//! - What a caller no longer waits for never reaches the model, or stops at its next step. Its room in the queue is
//!   free at once.
//! - [`Shadow`](Priority::Shadow) work finds a device that has nothing else to do, or is refused; what else comes while
//!   it is computed waits for a step of it at most, on a card for a batch of a step's tokens.
//! - A [lost](Engine::lost) device ends all: what waits, and what ran there, is answered with
//!   [`EngineError::DeviceLost`]; what runs elsewhere is finished.
//!
//! # Several devices
//!
//! A device that is free takes what waits, so the least loaded goes first, and a slow one takes less. While several have
//! nothing to do, they share what comes, down to a thousand tokens each: a large request of one caller is computed on all of
//! them, and its outcomes come together in their order. Which device, and beside what, changes no bit of a reward.
//!
//! # Why one thread?
//!
//! For one device: two forwards at a time on it take turns anyway, with twice the memory for
//! activations. On a CPU a forward uses all cores by itself. What runs between the steps of a batch does need the
//! memory for both: that of the largest batch of each priority at most.
//!
//! # Why one lock?
//!
//! It is held for a map operation or two when a request comes and when a batch goes; packing, scoring and
//! answering happen without it. 256 callers with one sample of 128 tokens at a time got 90,000 answers per second
//! from a model that costs nothing (unoptimised build, two shared cores): no model comes near.

use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout_at;

use self::queue::Queue;
use self::request::Batch;
use self::request::Departure;
use self::request::Ended;
use self::request::LaneId;
use self::request::Request;
use self::request::Ticket;
use self::served::Copy;
use self::served::Served;
use self::worker::Next;
use self::worker::Work;
use crate::metrics;
use crate::metrics::Rejection;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;
use crate::ops::batch::Sequence;

mod batcher;
mod estimate;
mod queue;
mod request;
mod served;
mod worker;

/// Limits of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A batch takes samples up to this many tokens; a longer sample goes alone.
    pub max_batch_tokens: usize,
    /// A longer sample is computed in steps, each of the work of an eighth of so many tokens, where the model can.
    pub max_step_tokens: usize,
    /// A request is refused when it and what waits for its variant with its [`Priority`] or a more urgent one have
    /// more tokens. So a person finds room whatever background work waits; in all, three times as much may wait.
    pub max_queue_tokens: usize,
    /// Whether tokens that samples of a batch begin with alike are computed once, where the model allows it.
    pub share_prefixes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_batch_tokens: 16_384,
            max_step_tokens: 1024,
            max_queue_tokens: 1 << 20,
            share_prefixes: true,
        }
    }
}

/// Which of the requests that wait goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A person or an evaluation waits.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Whenever nothing else waits, in any lane.
    Background,
    /// Nobody waits for it: admitted only where nothing else waits, and forgotten by a drain. It takes the device for a
    /// step at a time, and is no part of what is estimated, shared or counted.
    Shadow,
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
    pub outcomes: Vec<Outcome>,
    /// From admission until the last batch that held one of the sequences started, and its pauses for others.
    pub queue: Duration,
    /// The model's time for the batches that held the sequences.
    pub compute: Duration,
    /// Samples of the largest of these batches.
    pub batch_samples: usize,
}

/// What became of one sample.
pub type Outcome = Result<Reward, SampleError>;

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
    #[error(
        "the queue is full: {waiting} tokens wait that are as urgent, the limit is {limit}; retry in {retry_after:?}"
    )]
    QueueFull {
        /// Tokens that wait with its priority or a more urgent one.
        waiting: usize,
        /// `max_queue_tokens`.
        limit: usize,
        /// When there may be room: between 10 ms and 60 s.
        retry_after: Duration,
    },
    /// It would only wait in vain.
    #[error("the estimated wait of {wait:?} exceeds the time that is left, {left:?}")]
    WouldExpire {
        /// Until its answer, by the present throughput, and half as long again.
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
    /// A card failed, and nothing in this process brings it back.
    #[error("the server has lost a device and ends")]
    DeviceLost,
}

impl EngineError {
    /// `None` if the request was not refused but too late.
    fn rejection(&self) -> Option<Rejection> {
        match self {
            Self::TooLarge { .. } => Some(Rejection::TooLarge),
            Self::QueueFull { .. } => Some(Rejection::QueueFull),
            Self::WouldExpire { .. } => Some(Rejection::WouldExpire),
            Self::Draining => Some(Rejection::Draining),
            Self::DeviceLost => Some(Rejection::DeviceLost),
            Self::DeadlineExceeded => None,
        }
    }
}

/// Owns the device threads. Cheap to clone.
///
/// They end when the last clone and the last [`Lane`] are gone, after the batches that run. Dropping does
/// not wait for them, since that may happen on a thread of the async runtime.
#[derive(Clone)]
pub struct Engine {
    devices: Arc<Devices>,
}

/// The device of [`Engine::add_lane`].
const CPU: &str = "cpu";

impl Engine {
    /// A device thread starts with the first lane that has a copy on the device.
    pub fn start(config: Config) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { queue: Queue::new(config), is_abandoned: false }),
            work: Condvar::new(),
            idle: Notify::new(),
            lost: watch::channel(None).0,
        });
        Self { devices: Arc::new(Devices { shared, config, names: Mutex::default() }) }
    }

    /// The limits it was started with.
    pub fn config(&self) -> &Config {
        &self.devices.config
    }

    /// Adds a queue for a variant that is computed on the CPU, or on whatever is this machine's only device.
    pub fn add_lane(&self, variant: &str, scorer: Scorer) -> Lane {
        self.add_lane_on(variant, vec![(CPU.to_owned(), scorer)])
    }

    /// Adds a queue for a variant, with a copy of its models on each of some devices, which go by their names: at least
    /// one. `variant` labels its metrics, which count nothing before [`Lane::show`]; after a reload two lanes may bear one
    /// name for as long as the old one drains.
    pub fn add_lane_on(&self, variant: &str, copies: Vec<(String, Scorer)>) -> Lane {
        let (sender, health) = watch::channel(true);
        let copies = copies.into_iter().map(|(name, scorer)| Copy::new(self.devices.index_of(name), scorer));
        let share_prefixes = self.devices.config.share_prefixes;
        let served = Served::new(variant, copies.collect(), share_prefixes, sender);
        let id = self.devices.shared.lock().queue.add_lane(served);
        Lane { handle: Arc::new(LaneHandle { id, devices: self.devices.clone(), health }) }
    }

    /// What the driver said of a device that this process has lost for good, once it has. From then on nothing is
    /// admitted, and all that waited was answered with [`EngineError::DeviceLost`]: the process should end.
    pub fn lost(&self) -> watch::Receiver<Option<String>> {
        self.devices.shared.lost.subscribe()
    }

    /// A device was lost elsewhere: while models were loaded onto it.
    pub fn lose(&self, fault: &str) {
        self.devices.shared.device_lost(fault);
    }

    /// Refuses new work in every lane and returns when all that was admitted is answered.
    pub async fn drain(&self) {
        let shared = &self.devices.shared;
        shared.lock().queue.drain();
        loop {
            // before the look, so that nothing that happens after it is missed
            let idle = shared.idle.notified();
            if shared.lock().queue.is_idle() {
                return;
            }
            idle.await;
        }
    }
}

/// The queue of one variant. Cheap to clone; the last clone that is dropped closes it.
#[derive(Clone)]
pub struct Lane {
    handle: Arc<LaneHandle>,
}

impl Lane {
    /// Admits all `sequences` or none, waits, and returns one outcome for each. Dropping the future withdraws
    /// what has not been started. No sequence may be empty.
    ///
    /// A first call with a few tokens before a variant is shown to anyone warms it up.
    pub async fn score(&self, sequences: Vec<Sequence>, call: Call) -> Result<Scored, EngineError> {
        let num_samples = sequences.len();
        if num_samples == 0 {
            return Ok(Scored {
                outcomes: Vec::new(),
                queue: Duration::ZERO,
                compute: Duration::ZERO,
                batch_samples: 0,
            });
        }
        let LaneHandle { id, devices, .. } = &*self.handle;
        let (answer, answered) = oneshot::channel();
        let request = Request::new(sequences, call.priority, call.deadline, answer);
        let ticket = devices.shared.admit(*id, request)?;
        let mut place =
            Place { shared: &devices.shared, lane: *id, ticket, answered, departure: Departure::Withdrawn };
        let answer = match call.deadline {
            None => (&mut place.answered).await,
            Some(deadline) => match timeout_at(deadline, &mut place.answered).await {
                Ok(answer) => answer,
                Err(_) => {
                    place.departure = Departure::Expired;
                    return Err(EngineError::DeadlineExceeded);
                }
            },
        };
        answer.unwrap_or_else(|_| {
            // only if a device thread ended, and only a bug in this room ends one while a lane lives
            let outcomes = vec![Err(SampleError::ForwardFailed); num_samples];
            Ok(Scored { outcomes, queue: Duration::ZERO, compute: Duration::ZERO, batch_samples: 0 })
        })
    }

    /// Callers come from here on: what happens is counted.
    pub fn show(&self) {
        self.handle.devices.shared.lock().queue.show(self.handle.id);
    }

    /// Refuses new work; what was admitted is finished, then the scorer is dropped.
    pub fn close(&self) {
        self.handle.close();
    }

    /// Whether forwards succeed: false after three batches in a row without a single reward, true again after
    /// one with. An unhealthy lane still takes work, and needs some to recover: callers may try. Of several copies, those
    /// that fail take none while others do well, and the lane is as healthy as the best. Closed once the models are gone.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.handle.health.clone()
    }
}

struct LaneHandle {
    id: LaneId,
    devices: Arc<Devices>,
    health: watch::Receiver<bool>,
}

impl LaneHandle {
    fn close(&self) {
        self.devices.shared.lock().queue.close(self.id);
        self.devices.shared.work.notify_all();
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        self.close();
    }
}

/// A caller's place in the queue: leaving it, in whatever way, frees the room.
struct Place<'a> {
    shared: &'a Shared,
    lane: LaneId,
    ticket: Ticket,
    answered: oneshot::Receiver<Result<Scored, EngineError>>,
    departure: Departure,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.answered.is_terminated() {
            return;
        }
        self.answered.close();
        let withdrawn = self.shared.lock().queue.withdraw(self.lane, self.ticket, self.departure);
        if withdrawn.is_some() {
            // it may have been the last that a drain or a closed lane waited for
            self.shared.work.notify_all();
        }
    }
}

/// The device threads, as long as anybody may need them.
struct Devices {
    shared: Arc<Shared>,
    config: Config,
    /// By index.
    names: Mutex<Vec<String>>,
}

impl Devices {
    /// A device that is new gets a thread.
    fn index_of(&self, name: String) -> usize {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = names.iter().position(|known| *known == name) {
            return index;
        }
        let index = self.shared.lock().queue.add_device();
        let of_thread = self.shared.clone();
        std::thread::Builder::new()
            .name(format!("device {name}"))
            .spawn(move || worker::run(of_thread, index))
            .expect("a system that has no thread to spare for a device cannot serve");
        names.push(name);
        index
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.shared.lock().is_abandoned = true;
        self.shared.work.notify_all();
    }
}

/// What callers and the device threads share.
struct Shared {
    state: Mutex<State>,
    /// Told when there may be work.
    work: Condvar,
    /// Told when all that was admitted is answered.
    idle: Notify,
    lost: watch::Sender<Option<String>>,
}

struct State {
    queue: Queue,
    is_abandoned: bool,
}

impl Shared {
    /// A panic under the lock would be a bug in [`queue`]; its books are better used than lost.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits all samples of a request or none.
    fn admit(&self, lane: LaneId, request: Request) -> Result<Ticket, EngineError> {
        let mut state = self.lock();
        if let Err(error) = state.queue.check(lane, &request) {
            drop(state); // before the request, whose thousand vectors take a while to free
            if request.priority != Priority::Shadow {
                error.rejection().into_iter().for_each(metrics::request_rejected);
            }
            return Err(error);
        }
        let ticket = state.queue.enter(lane, request);
        drop(state);
        self.work.notify_all(); // whose device it is for, nobody knows yet
        Ok(ticket)
    }

    /// Blocks a device thread until there is something to do. `ahead` is what it has taken already.
    fn wait_for_work(&self, device: usize, ahead: &mut Option<Next>) -> Work {
        let mut state = self.lock();
        loop {
            if let Some(served) = state.queue.take_retired() {
                return Work::Retire(served);
            }
            if ahead.is_some()
                && let Some(batch) = state.queue.next_before_ahead(device, Instant::now())
            {
                return Work::Score(batch.into());
            }
            if let Some(next) = ahead.take() {
                state.queue.start_ahead(device, Instant::now());
                return Work::Score(next);
            }
            if state.is_abandoned {
                return Work::Stop;
            }
            if let Some(batch) = state.queue.next_batch(device, Instant::now()) {
                return Work::Score(batch.into());
            }
            self.idle.notify_waiters();
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a device thread does at a pause of the batch that runs, which ran for so long since the last.
    fn work_between_steps(&self, device: usize, ran: Duration) -> Option<Work> {
        let mut state = self.lock();
        state.queue.step_ended(device, ran);
        if let Some(served) = state.queue.take_retired() {
            return Some(Work::Retire(served));
        }
        state.queue.next_between_steps(device, Instant::now()).map(|batch| Work::Score(batch.into()))
    }

    /// What a device thread will do after the batch that its device computes, if that is certain.
    fn take_ahead(&self, device: usize) -> Option<Batch> {
        self.lock().queue.take_ahead(device, Instant::now())
    }

    fn batch_ended(&self, device: usize, ended: Ended) {
        let mut state = self.lock();
        state.queue.batch_ended(device, ended);
        // copies on other devices may have to take over, or to drop a lane that waited for this batch
        if state.queue.has_several_devices() {
            self.work.notify_all();
        }
    }

    /// Ends all that waits: there is no way back for this process.
    fn device_lost(&self, fault: &str) {
        tracing::error!(fault, "a device is lost: all that waits is refused, and the process should end");
        self.lock().queue.refuse_all(&EngineError::DeviceLost);
        self.lost.send_if_modified(|lost| lost.is_none().then(|| *lost = Some(fault.to_owned())).is_some());
    }
}
