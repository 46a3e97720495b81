//! What is told of rewards: pure functions of margins, rewards and lengths.
//!
//! A margin is `chosen_reward - rejected_reward`, in f64, of two f32 rewards: it is zero exactly when they tie.

use serde::Serialize;

use crate::learn::loss::softplus;
use crate::offline::evaluate::interval;
use crate::offline::evaluate::interval::Interval;

/// Bins of a reliability diagram at most, and the fewest pairs of one: the interval of a share of 20 is 0.2 wide on either side.
const RELIABILITY_BINS: usize = 10;
const PAIRS_A_BIN: usize = 20;

/// Share of pairs with `margin > 0`: a tie is wrong.
pub fn accuracy(margins: &[f64]) -> f64 {
    mean(margins.iter().map(|&margin| f64::from(u8::from(margin > 0.0))))
}

/// Share of pairs whose two rewards are equal.
pub fn ties(margins: &[f64]) -> f64 {
    mean(margins.iter().map(|&margin| f64::from(u8::from(margin == 0.0))))
}

/// Bradley–Terry loss in nats: the mean of `softplus(-margin)`.
pub fn log_loss(margins: &[f64]) -> f64 {
    mean(margins.iter().map(|margin| softplus(-margin)))
}

/// How often a model is right when it is so confident.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// Expected calibration error: the mean over pairs of |right − confident| of the pair's bin.
    pub expected_calibration_error: f64,
    /// From the least confident pairs to the most, of equal count; the first ones have one pair more where they do not divide.
    pub bins: Vec<ReliabilityBin>,
}

/// Pairs of about the same confidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// How many.
    pub pairs: usize,
    /// Mean of `max(p, 1 - p)`, where `p = sigmoid(margin)`.
    pub confidence: f64,
    /// Share of those pairs that the model is right about; a tie, of confidence 0.5, is half right.
    pub accuracy: f64,
    /// Where that share lies: Wilson's interval.
    #[serde(flatten)]
    pub interval: Interval,
}

/// Compares confidence and accuracy in bins of equal count (Nguyen and O'Connor 2015, arXiv:1508.05154): ten, or fewer where
/// they would hold less than `PAIRS_A_BIN` pairs. Equally wide bins are empty where a model is never so confident, and noise
/// where it seldom is.
pub fn reliability(margins: &[f64]) -> Reliability {
    let mut sorted = margins.to_vec();
    sorted.sort_by(|one, other| one.abs().total_cmp(&other.abs())); // equal ones stay in order
    let count = (margins.len() / PAIRS_A_BIN).clamp(1, RELIABILITY_BINS);
    let (least, larger) = (margins.len() / count, margins.len() % count);
    let mut left = sorted.as_slice();
    let bins: Vec<ReliabilityBin> = (0..count)
        .map(|bin| {
            let (of_bin, rest) = left.split_at(least + usize::from(bin < larger));
            left = rest;
            let rights: f64 = of_bin.iter().map(|margin| half_right(*margin)).sum();
            ReliabilityBin {
                pairs: of_bin.len(),
                confidence: mean(of_bin.iter().map(|margin| 1.0 / (1.0 + (-margin.abs()).exp()))),
                accuracy: rights / of_bin.len() as f64,
                interval: interval::wilson(rights, of_bin.len()),
            }
        })
        .collect();
    let error = |bin: &ReliabilityBin| bin.pairs as f64 * (bin.accuracy - bin.confidence).abs();
    let expected_calibration_error = bins.iter().map(error).sum::<f64>() / margins.len() as f64;
    Reliability { expected_calibration_error, bins }
}

/// What a model gets right when length cannot help it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthControlled {
    /// Mean of the two accuracies below, each counting the same: always preferring the longer response, or always the
    /// shorter, gets at most 0.5. Absent when one of the two is.
    pub accuracy: Option<f64>,
    /// Among pairs whose chosen response is longer; absent when there are none.
    pub accuracy_chosen_longer: Option<f64>,
    /// Among pairs whose chosen response is shorter; absent when there are none.
    pub accuracy_chosen_shorter: Option<f64>,
}

/// Controls for length by balance: accuracy (a tie is wrong) where the chosen response is longer and where it is
/// shorter, averaged; pairs of equal length stay out. `longer_by` is the chosen response's surplus of tokens.
///
/// # Why not by regression?
///
/// Dubois et al. 2024 (arXiv:2404.04475) fit a logistic model with a term for length and read it off at zero. That
/// fit has a scale to choose and diverges where length separates right from wrong. Balanced accuracy (Brodersen et al.
/// 2010) has neither trouble, and anybody can recompute it.
pub fn length_controlled(margins: &[f64], longer_by: &[i64]) -> LengthControlled {
    let accuracy_where = |is_in: fn(i64) -> bool| {
        let of_those = margins.iter().zip(longer_by).filter(|(_, longer_by)| is_in(**longer_by));
        let margins: Vec<f64> = of_those.map(|(margin, _)| *margin).collect();
        (!margins.is_empty()).then(|| accuracy(&margins))
    };
    let longer = accuracy_where(|longer_by| longer_by > 0);
    let shorter = accuracy_where(|longer_by| longer_by < 0);
    LengthControlled {
        accuracy: longer.zip(shorter).map(|(longer, shorter)| (longer + shorter) / 2.0),
        accuracy_chosen_longer: longer,
        accuracy_chosen_shorter: shorter,
    }
}

/// Pearson's correlation; absent where one side is constant.
pub fn pearson(left: &[f64], right: &[f64]) -> Option<f64> {
    let (mean_left, mean_right) = (mean(left.iter().copied()), mean(right.iter().copied()));
    let (mut both, mut of_left, mut of_right) = (0.0, 0.0, 0.0);
    for (left, right) in left.iter().zip(right) {
        let (left, right) = (left - mean_left, right - mean_right);
        both += left * right;
        of_left += left * left;
        of_right += right * right;
    }
    let scale = of_left.sqrt() * of_right.sqrt();
    (scale > 0.0).then(|| (both / scale).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of ranks, equal values sharing their mean rank; absent where one side is constant.
pub fn spearman(left: &[f64], right: &[f64]) -> Option<f64> {
    pearson(&ranks(left), &ranks(right))
}

/// Share of pairs in which two models prefer the same side, or both tie.
pub fn agreement(left: &[f64], right: &[f64]) -> f64 {
    // `signum` of zero is one
    let side = |margin: f64| if margin == 0.0 { 0.0 } else { margin.signum() };
    mean(left.iter().zip(right).map(|(&left, &right)| f64::from(u8::from(side(left) == side(right)))))
}

/// 1 for a pair that the model gets right, 0.5 for a tie.
pub(super) fn half_right(margin: f64) -> f64 {
    if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) }
}

/// Of at least one value.
pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// From 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| values[left].total_cmp(&values[right]));
    let mut ranks = vec![0.0; values.len()];
    let mut done = 0;
    for group in order.chunk_by(|&left, &right| values[left] == values[right]) {
        let rank = done as f64 + (group.len() + 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = rank);
        done += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn a_tie_is_wrong_or_half_right() {
        let margins = [1.0, -2.0, 0.0, -0.0, 3.0];
        assert_eq!((accuracy(&margins), ties(&margins)), (0.4, 0.4));
        is_close(mean(margins.iter().map(|&margin| half_right(margin))), 0.6);
        let all_ties = [0.0; 3];
        assert_eq!((accuracy(&all_ties), ties(&all_ties)), (0.0, 1.0));
        is_close(log_loss(&all_ties), 2.0_f64.ln());
        assert_eq!(reliability(&all_ties).expected_calibration_error, 0.0);
    }

    #[test]
    fn the_log_loss_is_finite_at_any_margin() {
        assert_eq!(log_loss(&[1e4]), 0.0);
        assert_eq!(log_loss(&[-1e4]), 1e4);
        is_close(log_loss(&[1.0, -1.0]), (1.0 + (-1.0_f64).exp()).ln() + 0.5);
    }

    #[test]
    fn bins_have_equal_counts_and_enough_pairs() {
        for margin in [0.0, 1e-300, 0.1, 30.0, 1e6, -1e6] {
            assert_eq!(reliability(&[margin]).bins.len(), 1, "{margin}");
        }
        let sure_and_wrong = reliability(&[-1e6, 1e6]);
        let bin = &sure_and_wrong.bins[0];
        assert_eq!((bin.pairs, bin.confidence, bin.accuracy), (2, 1.0, 0.5));
        assert!(bin.interval.low < 0.1 && bin.interval.high > 0.9, "{bin:?}");
        assert_eq!(sure_and_wrong.expected_calibration_error, 0.5);

        let sizes = |pairs: usize| -> Vec<usize> {
            let margins: Vec<f64> = (0..pairs).map(|pair| (pair * 37 % pairs) as f64 / 10.0).collect();
            let bins = reliability(&margins).bins;
            assert!(bins.is_sorted_by(|one, other| one.confidence <= other.confidence));
            bins.iter().map(|bin| bin.pairs).collect()
        };
        assert_eq!(sizes(39), [39]);
        assert_eq!(sizes(62), [21, 21, 20]);
        assert_eq!(sizes(1003), [101, 101, 101, 100, 100, 100, 100, 100, 100, 100]);
    }

    #[test]
    fn preferring_the_longer_gets_a_half_when_length_is_controlled() {
        let longer_by = [5, 3, 8, -2, 0];
        let margins: Vec<f64> = longer_by.iter().map(|&tokens| tokens as f64).collect();
        assert_eq!(accuracy(&margins), 0.6);
        assert_eq!(
            length_controlled(&margins, &longer_by),
            LengthControlled {
                accuracy: Some(0.5),
                accuracy_chosen_longer: Some(1.0),
                accuracy_chosen_shorter: Some(0.0),
            }
        );
        let one_sided = length_controlled(&[1.0, -1.0], &[2, 3]);
        assert_eq!((one_sided.accuracy, one_sided.accuracy_chosen_longer), (None, Some(0.5)));
    }

    #[test]
    fn a_constant_correlates_with_nothing() {
        assert_eq!(pearson(&[1.0, 2.0], &[3.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, 1.0], &[3.0, 4.0]), None);
        is_close(spearman(&[1.0, 2.0, 9.0], &[3.0, 4.0, 5.0]).unwrap(), 1.0);
    }

    #[test]
    fn equal_values_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
    }

    #[test]
    fn two_models_agree_where_they_prefer_the_same_side_or_both_tie() {
        assert_eq!(agreement(&[1.0, -1.0, 0.0, 0.0], &[2.0, 3.0, -0.0, 1.0]), 0.5);
    }
}
