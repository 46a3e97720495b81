//! What of a variant's counters can be read back, for whoever asks the server itself: the exporter only renders.
//!
//! Counted by the same calls as the metrics, from the start of the process. Times are in nanoseconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// A variant's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests with an answer, from their arrival to it.
    pub answered: u64,
    /// Their time.
    pub answered_ns: u64,
    /// When the last of them was, in milliseconds since 1970; 0: none yet.
    pub last_answer_ms: u64,
    /// Requests that found the variant, and have no answer.
    pub failed: u64,
    /// Their time.
    pub failed_ns: u64,
    /// The time that requests took to be rendered and tokenized.
    pub tokenize_ns: u64,
    /// Requests of which all samples went through the model.
    pub scored: u64,
    /// Their time in the queue.
    pub queue_ns: u64,
    /// In the forwards of the batches that held their samples.
    pub compute_ns: u64,
    /// In the reductions after these.
    pub reduce_ns: u64,
    /// Samples that have a reward.
    pub samples: u64,
    /// Batches that went through the model.
    pub batches: u64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; 12]);

/// Their places.
#[derive(Clone, Copy)]
pub(super) enum Count {
    Answered,
    AnsweredNs,
    LastAnswerMs,
    Failed,
    FailedNs,
    TokenizeNs,
    Scored,
    QueueNs,
    ComputeNs,
    ReduceNs,
    Samples,
    Batches,
}

impl Counters {
    pub(super) fn add(&self, count: Count, value: u64) {
        self.0[count as usize].fetch_add(value, Ordering::Relaxed);
    }

    pub(super) fn add_time(&self, count: Count, time: Duration) {
        self.add(count, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn answered_now(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.0[Count::LastAnswerMs as usize].fetch_max(now, Ordering::Relaxed);
    }

    fn read(&self) -> Totals {
        let [
            answered,
            answered_ns,
            last_answer_ms,
            failed,
            failed_ns,
            tokenize_ns,
            scored,
            queue_ns,
            compute_ns,
            reduce_ns,
            samples,
            batches,
        ] = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Totals {
            answered,
            answered_ns,
            last_answer_ms,
            failed,
            failed_ns,
            tokenize_ns,
            scored,
            queue_ns,
            compute_ns,
            reduce_ns,
            samples,
            batches,
        }
    }
}

/// Those of a variant, which has them from here on.
pub(super) fn of(variant: &str) -> Arc<Counters> {
    let mut variants = variants();
    match variants.get(variant) {
        Some(counters) => counters.clone(),
        None => variants.entry(variant.to_owned()).or_default().clone(),
    }
}

/// What was counted for a variant by now.
pub fn totals(variant: &str) -> Totals {
    let counters = variants().get(variant).cloned();
    counters.map(|counters| counters.read()).unwrap_or_default()
}

fn variants() -> MutexGuard<'static, BTreeMap<String, Arc<Counters>>> {
    static VARIANTS: Mutex<BTreeMap<String, Arc<Counters>>> = Mutex::new(BTreeMap::new());
    VARIANTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of several variants together.
impl std::iter::Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::default(), |sum, one| Self {
            answered: sum.answered + one.answered,
            answered_ns: sum.answered_ns + one.answered_ns,
            last_answer_ms: sum.last_answer_ms.max(one.last_answer_ms),
            failed: sum.failed + one.failed,
            failed_ns: sum.failed_ns + one.failed_ns,
            tokenize_ns: sum.tokenize_ns + one.tokenize_ns,
            scored: sum.scored + one.scored,
            queue_ns: sum.queue_ns + one.queue_ns,
            compute_ns: sum.compute_ns + one.compute_ns,
            reduce_ns: sum.reduce_ns + one.reduce_ns,
            samples: sum.samples + one.samples,
            batches: sum.batches + one.batches,
        })
    }
}
