//! What training makes small: the Bradley–Terry loss of preference pairs.
//!
//! Plain numbers, in `f64`: a loss is a sum over rewards, of which there are few, and its slope is known. So what
//! runs backward through the model starts from exact numbers, however large the margins.

/// Of one pair of rewards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// In nats, with the regulariser.
    pub loss: f64,
    /// Its derivative by the reward of the chosen response.
    pub by_chosen: f64,
    /// And of the rejected one.
    pub by_rejected: f64,
}

/// Bradley–Terry loss of one preference pair, in nats: `softplus(rejected - chosen)`.
///
/// `-ln(sigmoid(margin))` in `f32` is infinite, and its gradient NaN, once the margin falls below about -88.
/// Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1.
pub fn bradley_terry_loss(chosen: f32, rejected: f32) -> f64 {
    softplus(f64::from(rejected) - f64::from(chosen))
}

/// `ln(1 + eˣ)`, finite for every `x`: the exponent is never positive.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The same with `centering · (chosen + rejected)²`, and its slopes.
///
/// The loss only knows differences of rewards; the regulariser keeps them near zero. Source: Eisenstein et al. 2023
/// (arXiv:2312.09244), as in TRL's `center_rewards_coefficient`.
pub fn pair_loss(chosen: f32, rejected: f32, centering: f64) -> PairLoss {
    let (c, r) = (f64::from(chosen), f64::from(rejected));
    let slope = sigmoid(r - c);
    let pull = 2.0 * centering * (c + r);
    PairLoss {
        loss: bradley_terry_loss(chosen, rejected) + centering * (c + r) * (c + r),
        by_chosen: pull - slope,
        by_rejected: pull + slope,
    }
}

/// Never the quotient of two infinities.
fn sigmoid(x: f64) -> f64 {
    let small = (-x.abs()).exp();
    if x < 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_equal_rewards_is_ln_2() {
        let PairLoss { loss, by_chosen, by_rejected } = pair_loss(3.5, 3.5, 0.0);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-15, "{loss}");
        assert_eq!((by_chosen, by_rejected), (-0.5, 0.5));
    }

    #[test]
    fn the_loss_and_its_slopes_are_finite_at_any_margin() {
        for (margin, loss, slope) in
            [(10_000.0, 0.0, 0.0), (-10_000.0, 10_000.0, 1.0), (-800.0, 800.0, 1.0), (1e30, 0.0, 0.0)]
        {
            let pair = pair_loss(margin, 0.0, 0.0);
            assert_eq!(pair, PairLoss { loss, by_chosen: -slope, by_rejected: slope }, "{margin}");
        }
    }

    #[test]
    fn slopes_are_the_change_of_the_loss() {
        let step = 1.0 / 1024.0; // exact in f32
        for (chosen, rejected) in [(0.5, -0.25), (-2.0, 1.5), (7.0, 7.0), (-30.0, 5.0)] {
            for centering in [0.0, 0.01, 1.0] {
                let pair = pair_loss(chosen, rejected, centering);
                let change = |by: fn(f32) -> (f32, f32)| {
                    let loss = |step: f32| {
                        let (c, r) = by(step);
                        pair_loss(chosen + c, rejected + r, centering).loss
                    };
                    (loss(step) - loss(-step)) / (2.0 * f64::from(step))
                };
                let (by_chosen, by_rejected) = (change(|step| (step, 0.0)), change(|step| (0.0, step)));
                assert!((pair.by_chosen - by_chosen).abs() < 1e-6, "{pair:?} {by_chosen}");
                assert!((pair.by_rejected - by_rejected).abs() < 1e-6, "{pair:?} {by_rejected}");
            }
        }
    }
}
