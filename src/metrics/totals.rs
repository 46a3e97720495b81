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

/// The counters, each named once: its field, its place, and how those of several variants become one.
macro_rules! totals {
    ($($(#[$doc:meta])* $field:ident: $count:ident by $together:expr,)+) => {
        /// A variant's counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[$doc])* pub $field: u64,)+
        }

        /// Their places.
        #[derive(Clone, Copy)]
        pub(super) enum Count {
            $($count,)+
        }

        /// The counters themselves.
        #[derive(Debug, Default)]
        pub(super) struct Counters([AtomicU64; [$(Count::$count),+].len()]);

        impl Counters {
            fn read(&self) -> Totals {
                Totals { $($field: self.0[Count::$count as usize].load(Ordering::Relaxed),)+ }
            }
        }

        /// Of several variants together.
        impl std::iter::Sum for Totals {
            fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
                totals.fold(Self::default(), |sum, one| Self { $($field: $together(sum.$field, one.$field),)+ })
            }
        }
    };
}

totals! {
    /// Requests with an answer, from their arrival to it.
    answered: Answered by u64::saturating_add,
    /// Their time.
    answered_ns: AnsweredNs by u64::saturating_add,
    /// When the last of them was, in milliseconds since 1970; 0: none yet.
    last_answer_ms: LastAnswerMs by u64::max,
    /// Requests that found the variant, and have no answer.
    failed: Failed by u64::saturating_add,
    /// Their time.
    failed_ns: FailedNs by u64::saturating_add,
    /// Requests that were rendered and tokenized.
    tokenized: Tokenized by u64::saturating_add,
    /// Their time for it.
    tokenize_ns: TokenizeNs by u64::saturating_add,
    /// Requests of which all samples went through the model.
    scored: Scored by u64::saturating_add,
    /// Their time in the queue.
    queue_ns: QueueNs by u64::saturating_add,
    /// In the forwards of the batches that held their samples.
    compute_ns: ComputeNs by u64::saturating_add,
    /// In the reductions after these.
    reduce_ns: ReduceNs by u64::saturating_add,
    /// Samples that have a reward.
    samples: Samples by u64::saturating_add,
    /// Batches that went through the model.
    batches: Batches by u64::saturating_add,
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
