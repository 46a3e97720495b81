//! Accuracy along the line between two members, and against the number of members.
//!
//! Each point is a merge of its own, made at load and scored on one file of pairs. The ends of a line are members,
//! and an ensemble of some members reduces rewards that are there already: neither is forwarded again.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::offline::evaluate::interval;
use crate::offline::evaluate::interval::Interval;
use crate::offline::evaluate::metrics;
use crate::offline::random;

/// Steps from one member to the other.
pub(super) const STEPS: usize = 10;

/// The line between two members: weights `(1 - lambda) · first + lambda · second`.
#[derive(Clone, Debug, Serialize)]
pub struct Interpolation {
    /// A member's name.
    pub first: String,
    /// Another's.
    pub second: String,
    /// From one end to the other.
    pub points: Vec<Point>,
    /// How far the accuracy falls below the straight line between the ends, at most; 0 when it never does. No barrier
    /// means that the members lie in one basin (linear mode connectivity, Frankle et al. 2019, arXiv:1912.05671).
    pub accuracy_barrier: f64,
    /// How far the log-loss rises above its straight line, at most, in nats; 0 when it never does.
    pub log_loss_barrier: f64,
}

/// One merge on the line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The second member's coefficient.
    pub lambda: f64,
    /// Of the merge; a tie is wrong.
    pub accuracy: f64,
    /// Of the merge, in nats.
    pub log_loss: f64,
    /// Of that accuracy, as of any share.
    #[serde(flatten)]
    pub interval: Interval,
    /// How far it is above the straight line between the ends, pair by pair: what all of them find hard cancels.
    pub above_straight: Interval,
    /// What the straight line between the ends has here.
    pub straight_accuracy: f64,
    /// What the straight line between the ends has here.
    pub straight_log_loss: f64,
}

/// Some number of members, averaged and as an ensemble.
#[derive(Clone, Debug, Serialize)]
pub struct MemberCount {
    /// How many, M.
    pub members: usize,
    /// Subsets of that size that were tried.
    pub subsets: usize,
    /// How many there are.
    pub all_subsets: f64,
    /// Accuracy of the equal merge of each subset.
    pub warm: Band,
    /// Accuracy of the ensemble of each subset.
    pub ens: Band,
}

/// Over subsets, all of them judged by the same pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Band {
    /// The mean.
    pub mean: f64,
    /// The worst subset's.
    pub min: f64,
    /// The best subset's.
    pub max: f64,
    /// Where the mean lies by the number of pairs, as if it were one model's: Wilson's.
    pub interval: Interval,
}

impl Band {
    /// Of at least one accuracy over so many pairs.
    pub(super) fn new(values: &[f64], pairs: usize) -> Self {
        let mean = metrics::mean(values.iter().copied());
        Self {
            mean,
            interval: interval::wilson(mean * pairs as f64, pairs),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

impl Interpolation {
    /// From the margins of the merges at λ = 0, 0.1, .., 1.
    pub(super) fn new(first: &str, second: &str, margins: &[Vec<f64>]) -> Self {
        let measured: Vec<(f64, f64)> =
            margins.iter().map(|margins| (metrics::accuracy(margins), metrics::log_loss(margins))).collect();
        let (start, end) = (measured[0], measured[measured.len() - 1]);
        let pairs = margins[0].len();
        let hit = |step: usize, pair: usize| f64::from(u8::from(margins[step][pair] > 0.0));
        let point = |(step, &(accuracy, log_loss)): (usize, &(f64, f64))| {
            let lambda = lambda(step);
            let straight = |start: f64, end: f64| start * (1.0 - lambda) + end * lambda;
            let above =
                (0..pairs).map(|pair| hit(step, pair) - straight(hit(0, pair), hit(margins.len() - 1, pair)));
            Point {
                lambda,
                accuracy,
                log_loss,
                interval: interval::wilson(accuracy * pairs as f64, pairs),
                above_straight: interval::of_mean_difference(above),
                straight_accuracy: straight(start.0, end.0),
                straight_log_loss: straight(start.1, end.1),
            }
        };
        let points: Vec<Point> = measured.iter().enumerate().map(point).collect();
        let barrier = |height: fn(&Point) -> f64| points.iter().map(height).fold(0.0, f64::max);
        Self {
            first: first.to_owned(),
            second: second.to_owned(),
            accuracy_barrier: barrier(|point| point.straight_accuracy - point.accuracy),
            log_loss_barrier: barrier(|point| point.log_loss - point.straight_log_loss),
            points,
        }
    }
}

/// The second member's coefficient after so many steps.
pub(super) fn lambda(step: usize) -> f64 {
    step as f64 / STEPS as f64
}

/// Subsets of `size` of `members`: all, or `most` of them drawn by the seed.
pub(super) fn subsets(members: usize, size: usize, most: usize, seed: u64) -> Vec<Vec<usize>> {
    if count_subsets(members, size) <= most as f64 {
        return all_subsets(members, size);
    }
    let mut random = random::stream(seed, 0);
    let mut drawn = BTreeSet::new();
    while drawn.len() < most {
        let mut order: Vec<usize> = (0..members).collect();
        for place in 0..size {
            let other = place + random::below(members - place, &mut random);
            order.swap(place, other);
        }
        order.truncate(size);
        order.sort_unstable();
        drawn.insert(order);
    }
    drawn.into_iter().collect()
}

/// Binomial coefficient; a float, since it may be huge.
pub(super) fn count_subsets(members: usize, size: usize) -> f64 {
    (0..size).fold(1.0, |count, step| count * (members - step) as f64 / (step + 1) as f64).round()
}

/// In lexicographic order.
fn all_subsets(members: usize, size: usize) -> Vec<Vec<usize>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let with_last = |last: usize| {
        let shorter = all_subsets(last, size - 1);
        shorter.into_iter().map(move |subset| [subset, vec![last]].concat())
    };
    let mut subsets: Vec<Vec<usize>> = (size - 1..members).flat_map(with_last).collect();
    subsets.sort_unstable();
    subsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_subsets_are_taken_while_they_are_few() {
        assert_eq!(subsets(4, 2, 6, 0), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
        assert_eq!(subsets(3, 3, 1, 0), [[0, 1, 2]]);
        for (members, size) in [(5, 1), (6, 3), (7, 5)] {
            assert_eq!(all_subsets(members, size).len() as f64, count_subsets(members, size));
        }
    }

    #[test]
    fn of_many_some_are_drawn_each_once_and_by_the_seed() {
        let drawn = subsets(20, 10, 8, 3);
        assert_eq!(drawn.len(), 8);
        assert!(drawn.iter().all(|subset| subset.len() == 10 && subset.is_sorted()));
        assert_eq!(drawn, subsets(20, 10, 8, 3));
        assert_ne!(drawn, subsets(20, 10, 8, 4));
    }

    #[test]
    fn a_barrier_is_the_deepest_fall_below_the_straight_line() {
        // ends right about all and about half of 10; everything wrong in the middle
        let margins = |right: usize| (0..10).map(|pair| if pair < right { 1.0 } else { -1.0 }).collect();
        let mut line: Vec<Vec<f64>> = vec![margins(10); STEPS + 1];
        line[STEPS] = margins(5);
        let straight = Interpolation::new("a", "b", &line);
        assert_eq!(straight.accuracy_barrier, 0.0);
        line[5] = margins(0);
        let bent = Interpolation::new("a", "b", &line);
        assert!((bent.accuracy_barrier - 0.75).abs() < 1e-12, "{bent:?}");
        // margins of 1 the wrong way cost 1 nat more each than the right way
        assert!((bent.log_loss_barrier - 0.75).abs() < 1e-12, "{bent:?}");
        assert_eq!((bent.points[5].lambda, bent.points[5].accuracy), (0.5, 0.0));
        // ten pairs cannot tell a line from one that is straight, but from one that falls so deep
        let Interval { low, high } = straight.points[5].above_straight;
        assert!(low < 0.0 && high > 0.0 && bent.points[5].above_straight.high < -0.3, "{bent:?}");
    }
}
