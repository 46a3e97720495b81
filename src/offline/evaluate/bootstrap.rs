//! Percentile intervals of means and of their differences, from resampled rows.
//!
//! One row is one pair (or one prompt), one column is what one model got for it. A resample draws as many rows as
//! there are, with replacement, and is the same for all columns: what two models have in common, the hard pairs
//! above all, cancels in their difference. Source: Efron and Tibshirani 1993, chapter 13; Koehn 2004, on pairs.

use rayon::iter::IntoParallelIterator;
use rayon::iter::ParallelIterator;

use crate::offline::evaluate::interval::Interval;
use crate::offline::random;

/// What lies outside of an interval, on each side.
const TAIL: f64 = 0.025;

/// The columns' means in each resample.
pub struct Resamples {
    /// `[resamples][columns]`.
    means: Vec<Vec<f64>>,
}

impl Resamples {
    /// Resamples the rows of `columns`, `[columns][rows]`, so many times; the columns are equally long, and not empty.
    ///
    /// Each resample has a random stream of its own: the result depends on the seed, not on the threads.
    pub fn new(columns: &[Vec<f64>], resamples: usize, seed: u64) -> Self {
        let rows = columns.first().map_or(0, Vec::len);
        debug_assert!(rows > 0 && columns.iter().all(|column| column.len() == rows));
        let resample = |stream: usize| {
            let mut random = random::stream(seed, stream as u64);
            let mut counts = vec![0.0_f64; rows];
            for _ in 0..rows {
                counts[random::below(rows, &mut random)] += 1.0;
            }
            let mean = |column: &Vec<f64>| {
                let sum: f64 = column.iter().zip(&counts).map(|(value, count)| value * count).sum();
                sum / rows as f64
            };
            columns.iter().map(mean).collect()
        };
        Self { means: (0..resamples).into_par_iter().map(resample).collect() }
    }

    /// The middle 95% of what `statistic` makes of the columns' means.
    pub fn interval(&self, statistic: impl Fn(&[f64]) -> f64) -> Interval {
        let mut values: Vec<f64> = self.means.iter().map(|means| statistic(means)).collect();
        values.sort_by(f64::total_cmp);
        Interval { low: quantile(&values, TAIL), high: quantile(&values, 1.0 - TAIL) }
    }
}

/// Of sorted values, linear between neighbours, as numpy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(ones: usize, rows: usize) -> Vec<f64> {
        (0..rows).map(|row| f64::from(u8::from(row < ones))).collect()
    }

    #[test]
    fn the_interval_of_a_share_is_the_binomials() {
        // scipy: binom.ppf([0.025, 0.975], 400, 0.75) / 400; a step is 0.0025
        let interval = Resamples::new(&[share(300, 400)], 10_000, 1).interval(|means| means[0]);
        assert!((interval.low - 0.7075).abs() < 0.003, "{interval:?}");
        assert!((interval.high - 0.7925).abs() < 0.003, "{interval:?}");
    }

    #[test]
    fn what_models_have_in_common_cancels_in_their_difference() {
        // the second is wrong where the first is, and in 4 rows more, which is 0.01 of them
        let resamples = Resamples::new(&[share(304, 400), share(300, 400)], 10_000, 7);
        let difference = resamples.interval(|means| means[0] - means[1]);
        // the 2.5 and 97.5 percentiles of a binomial with 400 trials of 0.01 are 1 and 8
        assert!((difference.low - 1.0 / 400.0).abs() < 1e-9, "{difference:?}");
        assert!((difference.high - 8.0 / 400.0).abs() < 1e-9, "{difference:?}");
        let same = resamples.interval(|means| means[0] - means[0]);
        assert_eq!((same.low, same.high), (0.0, 0.0));
    }

    #[test]
    fn a_seed_gives_the_same_interval_whatever_the_threads() {
        let columns = [share(30, 70), (0..70).map(f64::from).collect()];
        let interval = |seed, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Resamples::new(&columns, 500, seed).interval(|means| means[1] - means[0]))
        };
        assert_eq!(interval(5, 1), interval(5, 3));
        assert_ne!(interval(5, 1), interval(6, 1));
    }

    #[test]
    fn quantiles_are_numpys() {
        // np.quantile([1, 2, 4, 8], [0, 0.025, 0.5, 0.975, 1])
        let values = [1.0, 2.0, 4.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.025, 1.075), (0.5, 3.0), (0.975, 7.7), (1.0, 8.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-12, "{share}");
        }
    }
}
