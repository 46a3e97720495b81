//! How well rewards tell chosen from rejected.

use serde::Deserialize;
use serde::Serialize;

use crate::learn::loss::bradley_terry_loss;

/// Over a number of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// How many.
    pub pairs: usize,
    /// Bradley–Terry loss: mean over pairs of `softplus(rejected - chosen)`, in nats.
    pub loss: f64,
    /// Share of pairs with a margin above 0; a tie is wrong.
    pub accuracy: f64,
    /// Mean of `chosen - rejected`.
    pub margin: f64,
}

impl Metrics {
    /// Of rewards of the same pairs in the same order; at least one.
    pub fn of(chosen: &[f32], rejected: &[f32]) -> Self {
        debug_assert_eq!(chosen.len(), rejected.len());
        let pairs = || chosen.iter().zip(rejected);
        let margins = || pairs().map(|(chosen, rejected)| f64::from(*chosen) - f64::from(*rejected));
        let count = chosen.len() as f64;
        Self {
            pairs: chosen.len(),
            loss: pairs().map(|(chosen, rejected)| bradley_terry_loss(*chosen, *rejected)).sum::<f64>()
                / count,
            accuracy: margins().filter(|margin| *margin > 0.0).count() as f64 / count,
            margin: margins().sum::<f64>() / count,
        }
    }

    /// Of all pairs of several; none of none.
    pub fn together(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        parts.into_iter().reduce(|one, other| {
            let pairs = one.pairs + other.pairs;
            let mean = |a: f64, b: f64| (a * one.pairs as f64 + b * other.pairs as f64) / pairs as f64;
            Self {
                pairs,
                loss: mean(one.loss, other.loss),
                accuracy: mean(one.accuracy, other.accuracy),
                margin: mean(one.margin, other.margin),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_wrong_and_large_margins_are_finite() {
        let metrics = Metrics::of(&[1.0, 2.0, 10_000.0, -10_000.0], &[1.0, 1.0, 0.0, 0.0]);
        assert_eq!((metrics.pairs, metrics.accuracy), (4, 0.5));
        let loss = (2f64.ln() + (-1f64).exp().ln_1p() + 0.0 + 10_000.0) / 4.0;
        assert!((metrics.loss - loss).abs() < 1e-9, "{metrics:?}");
        assert_eq!(metrics.margin, 0.25);
    }

    #[test]
    fn parts_make_the_whole() {
        let (chosen, rejected) = ([1.0, 2.0, 3.0, -4.0], [0.5, 2.5, 1.0, 1.0]);
        let parts = [Metrics::of(&chosen[..1], &rejected[..1]), Metrics::of(&chosen[1..], &rejected[1..])];
        let (whole, together) = (Metrics::of(&chosen, &rejected), Metrics::together(parts).unwrap());
        assert_eq!((whole.pairs, whole.accuracy), (together.pairs, together.accuracy));
        assert!((whole.loss - together.loss).abs() < 1e-12 && (whole.margin - together.margin).abs() < 1e-12);
        assert_eq!(Metrics::together([]), None);
    }
}
