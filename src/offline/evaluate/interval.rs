//! Intervals of shares and of differences between two models on the same pairs, right at the edges too.
//!
//! A bootstrap draws from what was seen: where two models were right about the same 60 pairs, all its resamples say that they
//! differ in none, and its interval is 0 to 0. Score intervals ask instead which true values would have made what was seen
//! unlikely, and answer ±0.06. All are of 95%.

use serde::Serialize;

/// What is left out of an interval on both sides together is beyond so many standard errors: the 97.5th percentile of a normal
/// distribution.
const Z: f64 = 1.959_963_984_540_054;
/// Its 80th percentile: a difference is said to be shown by so many pairs if four of five such samples would.
const Z_POWER: f64 = 0.841_621_233_572_914_3;
/// Halvings of a search: below the last digit of an `f64` between −1 and 1.
const HALVINGS: usize = 60;

/// Where a figure lies, 95%.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// The decimals that a figure with this interval deserves, two to five: so many that rounding moves it by no more than a tenth
    /// of the interval's half.
    pub fn decimals(&self) -> usize {
        let half = (self.high - self.low) / 2.0;
        if half > 0.0 { (-(half / 5.0).log10()).ceil().clamp(2.0, 5.0) as usize } else { 4 }
    }
}

/// Of a share of `n`, where `successes` may hold halves: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
pub fn wilson(successes: f64, n: usize) -> Interval {
    let n = n as f64;
    let share = successes / n;
    let scale = 1.0 + Z * Z / n;
    let middle = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    // at the edges rounding would leave a trace of what is exactly none or all
    Interval {
        low: if successes == 0.0 { 0.0 } else { (middle - half).max(0.0) },
        high: if successes == n { 1.0 } else { (middle + half).min(1.0) },
    }
}

/// Two models on the same pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Discordant {
    /// Pairs that only the first is right about.
    pub only_of: usize,
    /// Pairs that only the second is right about.
    pub only_against: usize,
    /// All pairs, at least one.
    #[serde(skip)]
    pub pairs: usize,
}

impl Discordant {
    /// Of hits and misses of the same pairs in the same order.
    pub fn count(of: &[bool], against: &[bool]) -> Self {
        let only = |one: &[bool], other: &[bool]| {
            one.iter().zip(other).filter(|(one, other)| **one && !**other).count()
        };
        Self { only_of: only(of, against), only_against: only(against, of), pairs: of.len() }
    }

    /// Of the difference between the two shares: the score interval of Tango 1998, Stat. Med. 17, 891.
    pub fn interval(&self) -> Interval {
        let difference = (self.only_of as f64 - self.only_against as f64) / self.pairs as f64;
        // the score falls as the assumed difference rises
        let end = |level: f64, mut low: f64, mut high: f64| {
            for _ in 0..HALVINGS {
                let middle = (low + high) / 2.0;
                if self.score(middle) > level { low = middle } else { high = middle }
            }
            (low + high) / 2.0
        };
        Interval {
            low: if self.only_against == self.pairs { -1.0 } else { end(Z, -1.0, difference) },
            high: if self.only_of == self.pairs { 1.0 } else { end(-Z, difference, 1.0) },
        }
    }

    /// How far the seen difference is above `delta`, in standard errors as they were if `delta` were true.
    fn score(&self, delta: f64) -> f64 {
        let (of, against, n) = (self.only_of as f64, self.only_against as f64, self.pairs as f64);
        // the likeliest share of pairs that only the second is right about, given delta: the root of a quadratic
        let linear = -of - against + (2.0 * n - of + against) * delta;
        let constant = -against * delta * (1.0 - delta);
        let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
        let share = ((root - linear) / (4.0 * n)).max(0.0);
        let variance = n * (2.0 * share + delta * (1.0 - delta));
        let surplus = of - against - n * delta;
        if variance > 0.0 { surplus / variance.sqrt() } else { surplus.signum() * f64::INFINITY }
    }

    /// McNemar's exact test: how likely so uneven a split of the pairs that only one is right about is, or a more uneven one,
    /// if each were as likely to be either's.
    pub fn p_value(&self) -> f64 {
        let (n, fewer) = (self.only_of + self.only_against, self.only_of.min(self.only_against));
        if 2 * fewer == n {
            return 1.0;
        }
        // the logarithm of a binomial coefficient over 2^n, from one to the next
        let mut log_term = -(n as f64) * std::f64::consts::LN_2;
        let mut tail = 0.0;
        for k in 0..=fewer {
            tail += log_term.exp();
            log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        }
        (2.0 * tail).min(1.0)
    }

    /// The smallest true difference that so many pairs would show (an interval without zero) four times in five, where the two
    /// disagree as often as they did here, or as often as the difference takes: Connor 1987, Biometrics 43, 207. One pair of
    /// either kind is added to what was seen, so that no disagreement is no certainty. None where no difference would.
    pub fn detectable(&self) -> Option<f64> {
        let n = self.pairs as f64;
        let seen = (self.only_of + self.only_against + 2) as f64 / (n + 2.0);
        let needed = |difference: f64| {
            let disagree = seen.max(difference);
            let sum = Z * disagree.sqrt() + Z_POWER * (disagree - difference * difference).max(0.0).sqrt();
            (sum / difference).powi(2)
        };
        if needed(1.0) > n {
            return None;
        }
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = (low + high) / 2.0;
            if needed(middle) > n { low = middle } else { high = middle }
        }
        Some(high)
    }
}

/// Of the mean of differences between −1 and 1, one for each pair, at least one: Wald's after one pair of −1 and one of 1 are
/// added, which for differences of −1, 0 and 1 is that of Bonett and Price 2012, J. Educ. Behav. Stat. 37, 479.
pub fn of_mean_difference(differences: impl ExactSizeIterator<Item = f64>) -> Interval {
    let n = differences.len() as f64 + 2.0;
    let (sum, squares) =
        differences.fold((0.0, 2.0), |(sum, squares), value| (sum + value, squares + value * value));
    let mean = sum / n;
    let half = Z * ((squares / n - mean * mean) / n).sqrt();
    Interval { low: (mean - half).max(-1.0), high: (mean + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATOL: f64 = 1e-9;

    fn is_close(found: Interval, expected: [f64; 2]) {
        let far = (found.low - expected[0]).abs().max((found.high - expected[1]).abs());
        assert!(far < ATOL, "{found:?} is not {expected:?}");
    }

    #[test]
    fn intervals_tests_and_what_can_be_seen_are_those_of_scipy() {
        // tests/reference/evaluate.py: binomtest, constrained likelihoods by minimize_scalar, roots by brentq
        let text = include_str!("../../../tests/data/evaluate/intervals.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let ends = |value: &serde_json::Value| [number(&value[0]), number(&value[1])];
        let count = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        for case in cases["wilson"].as_array().unwrap() {
            is_close(wilson(number(&case["successes"]), count(&case["n"])), ends(&case["interval"]));
        }
        let mut seen = 0;
        for case in cases["paired"].as_array().unwrap() {
            let discordant = Discordant {
                only_of: count(&case["only_of"]),
                only_against: count(&case["only_against"]),
                pairs: count(&case["pairs"]),
            };
            let found = discordant.interval();
            let expected = ends(&case["interval"]);
            // a likelihood is flat at its maximum: the constrained one is found to half the digits
            assert!(
                (found.low - expected[0]).abs() < 1e-6 && (found.high - expected[1]).abs() < 1e-6,
                "{discordant:?}: {found:?} is not {expected:?}"
            );
            assert!((discordant.p_value() - number(&case["p_value"])).abs() < 1e-9, "{discordant:?}");
            match (discordant.detectable(), case["detectable"].as_f64()) {
                (Some(found), Some(expected)) => assert!((found - expected).abs() < 1e-9, "{discordant:?}"),
                (found, expected) => assert_eq!(found, expected, "{discordant:?}"),
            }
            seen += 1;
        }
        assert!(seen > 10);
        for case in cases["mean_difference"].as_array().unwrap() {
            let values: Vec<f64> = case["differences"].as_array().unwrap().iter().map(number).collect();
            is_close(of_mean_difference(values.into_iter()), ends(&case["interval"]));
        }
    }

    #[test]
    fn no_disagreement_in_sixty_pairs_is_no_certainty() {
        let same = Discordant { only_of: 0, only_against: 0, pairs: 60 };
        let Interval { low, high } = same.interval();
        assert!(low < -0.05 && high > 0.05 && (low + high).abs() < 1e-9, "{low} {high}");
        assert_eq!(same.p_value(), 1.0);
        assert!(same.detectable().unwrap() > 0.05);
        let mean = of_mean_difference([0.0; 60].into_iter());
        assert!(mean.low < -0.04 && mean.high > 0.04, "{mean:?}");
    }

    #[test]
    fn edges_stay_within_bounds() {
        assert_eq!(wilson(0.0, 5).low, 0.0);
        assert_eq!(wilson(5.0, 5).high, 1.0);
        let all = Discordant { only_of: 3, only_against: 0, pairs: 3 };
        assert_eq!(all.interval().high, 1.0);
        let none = Discordant { only_of: 0, only_against: 3, pairs: 3 };
        assert_eq!(none.interval().low, -1.0);
        assert_eq!(Discordant { only_of: 1, only_against: 0, pairs: 1 }.detectable(), None);
        assert_eq!(Discordant::count(&[true, true, false, false], &[true, false, true, false]).only_of, 1);
    }

    #[test]
    fn a_wide_interval_deserves_few_digits() {
        for (half, decimals) in [(0.3, 2), (0.06, 2), (0.03, 3), (0.012, 3), (0.0031, 4), (0.0, 4), (1e-9, 5)]
        {
            assert_eq!(Interval { low: -half, high: half }.decimals(), decimals, "{half}");
        }
    }
}
