//! Load on a server: when requests are sent, and what came of them. Who sends them is a [`Target`].
//!
//! # Two kinds of load
//!
//! In a *closed* loop each caller waits for its answer before it asks again. That finds what a server can do,
//! but its latencies flatter: a server that stalls is asked less while it stalls, so the stall is seen by a few
//! requests only (coordinated omission). In an *open* loop requests come when they come, as from many
//! independent callers, and a latency counts from the moment a request was *due*, not from when it could be
//! sent. Tails are honest there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bench::Label;
use crate::bench::noise::Noise;
use crate::offline::Stop;
use crate::text::Input;

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// So many callers, each of which sends its next request when it has its answer.
    Closed {
        /// How many there are, one or more.
        callers: usize,
    },
    /// Each request at its time after the start.
    Open {
        /// `[requests]`, rising.
        due: Vec<Duration>,
    },
}

/// Arrivals of a Poisson process: `count` requests, `rate` a second on average.
pub fn poisson(rate: f64, count: usize, seed: u64) -> Vec<Duration> {
    let mut noise = Noise::new(seed);
    let mut seconds = 0.0;
    (0..count)
        .map(|_| {
            seconds += -(1.0 - noise.unit()).ln() / rate;
            Duration::from_secs_f64(seconds)
        })
        .collect()
}

/// What came of some requests.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// From the start until the last answer.
    pub seconds: f64,
    /// Of each request that was answered.
    pub latencies: Vec<Duration>,
    /// Samples that got a reward.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Samples of answered requests that got an error instead.
    pub failed_samples: usize,
    /// Requests that were not answered, by status.
    pub errors: BTreeMap<String, usize>,
}

impl Outcome {
    /// Adds what came of other requests, sent at the same time.
    pub fn add(&mut self, other: Self) {
        self.seconds = self.seconds.max(other.seconds);
        self.latencies.extend(other.latencies);
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.failed_samples += other.failed_samples;
        for (status, count) in other.errors {
            *self.errors.entry(status).or_default() += count;
        }
    }
}

/// A server, for whoever puts load on it.
pub trait Target {
    /// Its variants.
    fn variants(&mut self) -> anyhow::Result<Vec<Label>>;

    /// Sends each of `requests` once to `variant`, at this pace. A request that the server refuses is counted
    /// and not sent again. `None` if the run was stopped meanwhile.
    fn load(
        &mut self,
        variant: &str,
        requests: &[Vec<Input>],
        pace: &Pace,
        stop: &Stop,
    ) -> anyhow::Result<Option<Outcome>>;
}

/// How long requests took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many were answered.
    pub requests: u64,
    /// The median.
    pub p50: f64,
    /// 90 in 100 are below it, or equal.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1000.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
}

/// A histogram keeps three digits: enough to compare, in memory that does not grow.
const DIGITS: u8 = 3;

impl Percentiles {
    /// Of all `latencies` together; `None` of none.
    pub fn of(latencies: impl IntoIterator<Item = Duration>) -> anyhow::Result<Option<Self>> {
        let mut histogram: Histogram<u64> = Histogram::new(DIGITS).context("start a histogram")?;
        let mut longest = Duration::ZERO;
        for latency in latencies {
            longest = longest.max(latency);
            histogram.record(latency.as_nanos() as u64).context("record a latency")?;
        }
        // Its bins reach above what is in them, but nothing took longer than the longest.
        let longest = longest.as_secs_f64() * 1e3;
        let ms = |quantile: f64| (histogram.value_at_quantile(quantile) as f64 / 1e6).min(longest);
        Ok((!histogram.is_empty()).then(|| Self {
            requests: histogram.len(),
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p99_9: ms(0.999),
            max: longest,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_rise_at_their_rate_and_are_the_same_for_a_seed() {
        let due = poisson(50.0, 5000, 1);
        assert_eq!(due, poisson(50.0, 5000, 1));
        assert_ne!(due, poisson(50.0, 5000, 2));
        assert!(due.windows(2).all(|pair| pair[0] <= pair[1]));
        // 5000 arrivals at 50 a second take 100 s, give or take 1.4 s (one standard deviation).
        let seconds = due[4999].as_secs_f64();
        assert!((93.0..107.0).contains(&seconds), "{seconds}");
        // Gaps of a Poisson process: the share above the mean gap is 1/e = 0.368.
        let long = due.windows(2).filter(|pair| (pair[1] - pair[0]).as_secs_f64() > 0.02).count();
        assert!((0.33..0.41).contains(&(long as f64 / 4999.0)), "{long}");
    }

    #[test]
    fn percentiles_are_within_three_digits() {
        let percentiles = Percentiles::of((1..=1000).map(Duration::from_millis)).unwrap().unwrap();
        assert_eq!((percentiles.requests, percentiles.max), (1000, 1000.0));
        let Percentiles { p50, p90, p99, p99_9, .. } = percentiles;
        for (found, expected) in [(p50, 500.0), (p90, 900.0), (p99, 990.0), (p99_9, 999.0)] {
            assert!((found - expected).abs() <= expected * 1e-3, "{found} for {expected}");
        }
        let one = Percentiles::of([Duration::from_micros(1500)]).unwrap().unwrap();
        assert!([one.p50, one.p99_9, one.max].iter().all(|ms| (ms - 1.5).abs() < 2e-3), "{one:?}");
        assert_eq!(Percentiles::of([]).unwrap(), None);
    }

    #[test]
    fn outcomes_of_callers_add_up() {
        let outcome = |status: &str| Outcome {
            seconds: 2.0,
            latencies: vec![Duration::from_secs(1)],
            samples: 3,
            tokens: 30,
            failed_samples: 1,
            errors: [(status.to_owned(), 2)].into(),
        };
        let mut sum = outcome("UNAVAILABLE");
        sum.add(outcome("RESOURCE_EXHAUSTED"));
        sum.add(outcome("RESOURCE_EXHAUSTED"));
        assert_eq!((sum.seconds, sum.latencies.len(), sum.samples, sum.tokens), (2.0, 3, 9, 90));
        assert_eq!(
            (sum.failed_samples, sum.errors["RESOURCE_EXHAUSTED"], sum.errors["UNAVAILABLE"]),
            (3, 4, 2)
        );
    }
}
