//! The linear probe: the one head that all members start from.
//!
//! Weights can be averaged only when members stay in one basin, and a random head pulls each to a basin of its own
//! while it is learnt. So the head is learnt first, on features of the frozen base: a convex problem,
//!
//! ```text
//! minimise over w:  mean over pairs of softplus(-w·d)  +  l2/2 · s · |w|²,     d = features(chosen) - features(rejected)
//! ```
//!
//! where `s` is the mean square of the features' differences, so that `l2` means the same for every base. Newton's
//! method, each step solved by conjugate gradients, in `f64`; sums go in a fixed order, whatever the number of threads.
//!
//! Where `l2` is not given it is chosen: from the largest on, by the loss on thirds of the pairs that were left out, until
//! that rises. One number does not do for all: with 640 pairs, a quarter of them turned round, and MiniLM's 384 features, a
//! penalty of 0.01 learnt the noise by heart (0.38 nats on its pairs, 1.25 on others), and more pairs want a smaller one.

use anyhow::bail;
use anyhow::ensure;
use rayon::iter::IndexedParallelIterator;
use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSlice;
use serde::Deserialize;
use serde::Serialize;

use crate::learn::loss::softplus;

/// Rows that are summed on their own before the sums are added: fixed, so that the result is.
const ROWS_AT_A_TIME: usize = 256;
/// Newton's method doubles its digits at each step once it is near.
const MAX_NEWTON_STEPS: usize = 50;
/// The gradient, against that at zero, where the search ends.
const GRADIENT_TOLERANCE: f64 = 1e-8;
/// And that of the equations of one step.
const STEP_TOLERANCE: f64 = 1e-4;
/// What a penalty is chosen from.
const PENALTIES: [f64; 9] = [100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01];
/// Parts of the pairs, each left out once.
const FOLDS: usize = 3;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// `[hidden]`: the shared head.
    pub weight: Vec<f32>,
    /// Bradley–Terry loss on the training pairs, in nats, without the penalty.
    pub loss: f64,
    /// Share of training pairs with a margin above 0.
    pub accuracy: f64,
    /// The penalty, given or chosen.
    pub l2: f64,
    /// Steps of Newton's method.
    pub steps: usize,
}

/// Differences of features, `[pairs, hidden]`.
pub(super) struct Differences {
    values: Vec<f32>,
    hidden: usize,
}

impl Differences {
    pub(super) fn new() -> Self {
        Self { values: Vec::new(), hidden: 0 }
    }

    /// Adds a pair.
    pub(super) fn push(&mut self, chosen: &[f32], rejected: &[f32]) {
        debug_assert_eq!(chosen.len(), rejected.len());
        self.hidden = chosen.len();
        self.values.extend(chosen.iter().zip(rejected).map(|(chosen, rejected)| chosen - rejected));
    }

    fn pairs(&self) -> usize {
        self.values.len() / self.hidden
    }

    /// `d·w` of each pair.
    fn margins(&self, weight: &[f64]) -> Vec<f64> {
        let margin = |row: &[f32]| row.iter().zip(weight).map(|(d, w)| f64::from(*d) * w).sum();
        self.values.par_chunks(self.hidden).map(margin).collect()
    }

    /// The sum of the pairs' differences, each times its factor.
    fn weighted_sum(&self, factors: &[f64]) -> Vec<f64> {
        let partial = |(rows, factors): (&[f32], &[f64])| {
            let mut sum = vec![0.0; self.hidden];
            for (row, factor) in rows.chunks_exact(self.hidden).zip(factors) {
                sum.iter_mut().zip(row).for_each(|(sum, d)| *sum += factor * f64::from(*d));
            }
            sum
        };
        let chunks =
            self.values.par_chunks(self.hidden * ROWS_AT_A_TIME).zip(factors.par_chunks(ROWS_AT_A_TIME));
        let partials: Vec<Vec<f64>> = chunks.map(partial).collect();
        let mut total = vec![0.0; self.hidden];
        for partial in partials {
            total.iter_mut().zip(partial).for_each(|(total, sum)| *total += sum);
        }
        total
    }

    /// The head of least loss, under this penalty or the one that is best on pairs that were left out.
    pub(super) fn fit(&self, l2: Option<f64>) -> anyhow::Result<Probe> {
        let scale = self.values.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>() / self.values.len() as f64;
        ensure!(scale.is_finite(), "a feature of the base is not finite: no head can be learnt on it");
        ensure!(
            scale > 0.0,
            "the base has the same features for chosen and rejected in every pair: no head can tell them apart"
        );
        let l2 = match l2 {
            Some(l2) => l2,
            None => self.choose(scale)?,
        };
        let all = Problem { differences: self, penalty: l2 * scale, left_out: None };
        let (weight, steps) = all.solve(vec![0.0; self.hidden])?;
        let margins = self.margins(&weight);
        let pairs = self.pairs() as f64;
        Ok(Probe {
            weight: weight.iter().map(|w| *w as f32).collect(),
            loss: margins.iter().map(|margin| softplus(-margin)).sum::<f64>() / pairs,
            accuracy: margins.iter().filter(|margin| **margin > 0.0).count() as f64 / pairs,
            l2,
            steps,
        })
    }

    /// The penalty before the loss on pairs that were left out rises.
    fn choose(&self, scale: f64) -> anyhow::Result<f64> {
        let mut weights = vec![vec![0.0; self.hidden]; FOLDS];
        let mut best = (f64::INFINITY, PENALTIES[0]);
        for l2 in PENALTIES {
            let mut loss = 0.0;
            for (fold, weight) in weights.iter_mut().enumerate() {
                let problem = Problem { differences: self, penalty: l2 * scale, left_out: Some(fold) };
                (*weight, _) = problem.solve(std::mem::take(weight))?;
                let margins = self.margins(weight);
                loss += margins.iter().skip(fold).step_by(FOLDS).map(|margin| softplus(-margin)).sum::<f64>();
            }
            if loss >= best.0 {
                break;
            }
            best = (loss, l2);
        }
        Ok(best.1)
    }
}

/// What is minimised.
struct Problem<'a> {
    differences: &'a Differences,
    /// `l2 · s`.
    penalty: f64,
    /// Every pair of this fold: the first is its number, and the others follow [`FOLDS`] apart.
    left_out: Option<usize>,
}

/// The problem at one weight.
struct Point {
    value: f64,
    gradient: Vec<f64>,
    /// `[pairs]`: second derivative of each pair's loss.
    curvature: Vec<f64>,
}

impl Problem<'_> {
    /// The weight of least loss, found from `start` on, and the steps that it took.
    fn solve(&self, start: Vec<f64>) -> anyhow::Result<(Vec<f64>, usize)> {
        let target = GRADIENT_TOLERANCE * norm(&self.at(&vec![0.0; start.len()]).gradient);
        let mut weight = start;
        let mut point = self.at(&weight);
        let mut steps = 0;
        while norm(&point.gradient) > target {
            if steps == MAX_NEWTON_STEPS {
                bail!(
                    "the linear probe found no optimum in {MAX_NEWTON_STEPS} steps: give a larger probe.l2"
                );
            }
            steps += 1;
            let direction = self.newton_direction(&point);
            let Some(next) = self.descend(&weight, &point, &direction) else { break };
            (weight, point) = next;
        }
        Ok((weight, steps))
    }

    /// 1 for each pair that counts, 0 for the others.
    fn share(&self, pair: usize) -> f64 {
        if self.left_out.is_some_and(|fold| pair % FOLDS == fold) { 0.0 } else { 1.0 }
    }

    fn at(&self, weight: &[f64]) -> Point {
        let margins = self.differences.margins(weight);
        let shares: Vec<f64> = (0..margins.len()).map(|pair| self.share(pair)).collect();
        let pairs = shares.iter().sum::<f64>().max(1.0);
        // the derivative of softplus(-m) is -σ(-m)
        let wrong: Vec<f64> = margins.iter().map(|margin| 1.0 / (1.0 + margin.exp())).collect();
        let slopes: Vec<f64> =
            wrong.iter().zip(&shares).map(|(wrong, share)| -share * wrong / pairs).collect();
        let mut gradient = self.differences.weighted_sum(&slopes);
        gradient.iter_mut().zip(weight).for_each(|(gradient, w)| *gradient += self.penalty * w);
        Point {
            value: margins.iter().zip(&shares).map(|(margin, share)| share * softplus(-margin)).sum::<f64>()
                / pairs
                + 0.5 * self.penalty * dot(weight, weight),
            gradient,
            curvature: (wrong.iter().zip(&shares))
                .map(|(wrong, share)| share * wrong * (1.0 - wrong) / pairs)
                .collect(),
        }
    }

    /// Solves `H·direction = -gradient` by conjugate gradients: `H` is positive definite, for the penalty is above 0.
    fn newton_direction(&self, point: &Point) -> Vec<f64> {
        let hidden = point.gradient.len();
        let mut direction = vec![0.0; hidden];
        let mut residual: Vec<f64> = point.gradient.iter().map(|g| -g).collect();
        let mut search = residual.clone();
        let mut square = dot(&residual, &residual);
        let target = square * STEP_TOLERANCE * STEP_TOLERANCE;
        for _ in 0..2 * hidden {
            if square <= target {
                break;
            }
            let factors: Vec<f64> = (self.differences.margins(&search).iter().zip(&point.curvature))
                .map(|(margin, curvature)| margin * curvature)
                .collect();
            let mut product = self.differences.weighted_sum(&factors);
            product.iter_mut().zip(&search).for_each(|(product, s)| *product += self.penalty * s);
            let length = square / dot(&search, &product);
            direction.iter_mut().zip(&search).for_each(|(direction, s)| *direction += length * s);
            residual.iter_mut().zip(&product).for_each(|(residual, p)| *residual -= length * p);
            let next = dot(&residual, &residual);
            search.iter_mut().zip(&residual).for_each(|(s, r)| *s = r + next / square * *s);
            square = next;
        }
        direction
    }

    /// The first of 1, ½, ¼ … times the direction that lowers the value as its slope promises, in part; none where
    /// rounding is larger than what is left to gain.
    fn descend(&self, weight: &[f64], point: &Point, direction: &[f64]) -> Option<(Vec<f64>, Point)> {
        let slope = dot(&point.gradient, direction);
        (0..40).find_map(|halvings| {
            let length = 0.5f64.powi(halvings);
            let next: Vec<f64> = weight.iter().zip(direction).map(|(w, d)| w + length * d).collect();
            let at_next = self.at(&next);
            (at_next.value < point.value + 1e-4 * length * slope).then_some((next, at_next))
        })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::random;
    use crate::offline::train::purpose::Purpose;

    fn differences(rows: &[&[f32]]) -> Differences {
        let mut differences = Differences::new();
        rows.iter().for_each(|row| differences.push(row, &vec![0.0; row.len()]));
        differences
    }

    #[test]
    fn one_feature_has_the_optimum_that_can_be_written_down() {
        // 3 of 4 pairs say +1, one says -1: mean loss is least where σ(w) = 3/4, w = ln 3; the penalty is next to none
        let probe = differences(&[&[1.0], &[1.0], &[1.0], &[-1.0]]).fit(Some(1e-9)).unwrap();
        assert!((probe.weight[0] - 3f32.ln()).abs() < 1e-6, "{probe:?}");
        assert_eq!(probe.accuracy, 0.75);
        let loss = 0.75 * (4f64 / 3.0).ln() + 0.25 * 4f64.ln();
        assert!((probe.loss - loss).abs() < 1e-7, "{probe:?}");
    }

    #[test]
    fn the_gradient_is_zero_at_the_optimum_also_of_a_separable_problem() {
        let (pairs, hidden, l2) = (700, 20, 0.01);
        let mut random = Purpose::Order.stream(3);
        let mut draw = || random::unit(&mut random) as f32 - 0.5;
        let mut differences = Differences::new();
        for _ in 0..pairs {
            let mut row: Vec<f32> = (0..hidden).map(|feature| draw() * (1 + feature) as f32).collect();
            let sign = (row[0] + row[1]).signum();
            row.iter_mut().for_each(|value| *value *= sign);
            differences.push(&row, &vec![0.0; hidden]);
        }
        let probe = differences.fit(Some(l2)).unwrap();
        let weight: Vec<f64> = probe.weight.iter().map(|w| f64::from(*w)).collect();
        let scale = differences.values.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>()
            / differences.values.len() as f64;
        for feature in 0..hidden {
            let mut gradient = l2 * scale * weight[feature];
            for row in differences.values.chunks(hidden) {
                let margin: f64 = row.iter().zip(&weight).map(|(d, w)| f64::from(*d) * w).sum();
                gradient -= f64::from(row[feature]) / (1.0 + margin.exp()) / f64::from(pairs);
            }
            assert!(gradient.abs() < 1e-6, "{feature}: {gradient}");
        }
        assert!(probe.accuracy > 0.85, "{}", probe.accuracy);
        // in units of the features, the same problem has the same answer
        let scaled = Differences {
            values: differences.values.iter().map(|d| d * 1000.0).collect(),
            hidden: differences.hidden,
        };
        let scaled = scaled.fit(Some(l2)).unwrap();
        for (one, other) in probe.weight.iter().zip(scaled.weight) {
            assert!((one - 1000.0 * other).abs() < 1e-4 * (1.0 + one.abs()), "{one} {other}");
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let rows: Vec<Vec<f32>> =
            (0..1000).map(|row| (0..7).map(|column| ((row * 7 + column) as f32).sin()).collect()).collect();
        let differences = differences(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| differences.fit(None)).unwrap()
        };
        assert_eq!(with(1), with(5));
    }

    #[test]
    fn the_penalty_is_large_where_there_is_noise_and_small_where_there_is_none() {
        let chosen = |noise: f64| {
            let mut random = Purpose::Order.stream(11);
            let mut differences = Differences::new();
            for _ in 0..300 {
                let mut row: Vec<f32> = (0..30).map(|_| random::unit(&mut random) as f32 - 0.5).collect();
                let is_noise = random::unit(&mut random) < noise;
                let sign = if is_noise { random::unit(&mut random) as f32 - 0.5 } else { row[0] }.signum();
                row.iter_mut().for_each(|value| *value *= sign);
                differences.push(&row, &[0.0; 30]);
            }
            differences.fit(None).unwrap().l2
        };
        assert_eq!(chosen(0.0), 0.01);
        assert!(chosen(0.6) >= 0.1, "{}", chosen(0.6));
        assert_eq!(chosen(1.0), 100.0);
    }

    #[test]
    fn features_that_say_nothing_are_an_error() {
        let error = differences(&[&[0.0, 0.0]]).fit(Some(0.1)).unwrap_err().to_string();
        assert!(error.contains("the same features"), "{error}");
        let error = differences(&[&[f32::NAN]]).fit(Some(0.1)).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }
}
