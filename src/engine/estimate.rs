//! How long work will take, from how long work took. Pure.
//!
//! An estimate refuses work that would only wait in vain. It is never more than a guess: the deadline itself is
//! kept by a timer.

use std::time::Duration;

/// How much one batch counts against the ones before it: about the last ten decide.
const DECAY: f64 = 0.9;

/// A lane's tokens per second of device time.
///
/// The quotient of two moving averages, not the average of quotients: so a batch weighs by its tokens, and a
/// warm-up forward of five tokens, which is all overhead, is outweighed by the first real batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throughput {
    tokens: f64,
    seconds: f64,
}

impl Throughput {
    /// A batch of so many tokens took so long.
    pub(super) fn observe(&mut self, tokens: usize, elapsed: Duration) {
        self.tokens = DECAY * self.tokens + tokens as f64;
        self.seconds = DECAY * self.seconds + elapsed.as_secs_f64();
    }

    /// Seconds that the device needs for so many tokens; `None` before any measurement.
    pub(super) fn seconds_for(&self, tokens: usize) -> Option<f64> {
        (self.tokens > 0.0).then(|| tokens as f64 * self.seconds / self.tokens)
    }
}

/// Seconds until a lane has had `own` seconds of the device, while the backlogs of `other` lanes want theirs.
///
/// Lanes share the device equally while they contend: until this one has had its own, each other that contends now has had as
/// much, since more of its work may come meanwhile. Background work waits for all that there is.
pub(super) fn seconds_until_served(own: f64, others: impl Iterator<Item = f64>, is_background: bool) -> f64 {
    let until = |other: f64| if is_background { other } else { own };
    own + others.map(until).sum::<f64>()
}

/// How long a caller should be ready to wait for what is estimated to take so many seconds: half as long again.
///
/// The estimate leaves out who comes later and is computed beside it, since a batch is answered at its end; and it errs.
/// Without a reserve, what is admitted under overload would be answered just about at its deadline, and half of it too late.
pub(super) fn with_reserve(seconds: f64) -> Duration {
    duration(seconds * 1.5)
}

/// When to come back to a full queue: at once is rude, in an hour is useless.
pub(super) fn retry_after(seconds: Option<f64>) -> Duration {
    /// Before any measurement.
    const UNKNOWN: f64 = 1.0;
    Duration::from_secs_f64(seconds.unwrap_or(UNKNOWN).clamp(0.01, 60.0))
}

/// Saturates where `Duration::from_secs_f64` panics.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_estimate_before_a_measurement() {
        assert_eq!(Throughput::default().seconds_for(100), None);
        assert_eq!(retry_after(None), Duration::from_secs(1));
    }

    #[test]
    fn a_real_batch_outweighs_a_warm_up() {
        let mut throughput = Throughput::default();
        throughput.observe(5, Duration::from_millis(100));
        assert!(throughput.seconds_for(1000).is_some_and(|seconds| seconds > 10.0));
        throughput.observe(10_000, Duration::from_secs(1));
        let seconds = throughput.seconds_for(10_000).expect("measured");
        assert!((1.0..1.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_device_is_shared_while_lanes_contend() {
        let until_served = |own, others: &[f64], is_background| {
            seconds_until_served(own, others.iter().copied(), is_background)
        };
        assert_eq!(until_served(2.0, &[], false), 2.0);
        assert_eq!(until_served(2.0, &[100.0], false), 4.0);
        assert_eq!(until_served(2.0, &[1.0, 100.0], false), 6.0);
        assert_eq!(until_served(2.0, &[1.0, 100.0], true), 103.0);
    }

    #[test]
    fn a_hint_to_retry_is_sane() {
        assert_eq!(retry_after(Some(0.0)), Duration::from_millis(10));
        assert_eq!(retry_after(Some(2.5)), Duration::from_millis(2500));
        assert_eq!(retry_after(Some(f64::INFINITY)), Duration::from_secs(60));
        assert_eq!(duration(f64::INFINITY), Duration::MAX);
    }
}
