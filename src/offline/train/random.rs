//! Everything random: ChaCha8, the same on every machine. Each purpose has a stream of its own, so that using more
//! of one moves nothing in another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;

/// What random numbers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Purpose {
    /// Which pairs validate.
    Split = 1,
    /// Which labels are turned round.
    Flips = 2,
    /// The members' learning rates.
    LearningRates = 3,
    /// The members' dropouts.
    Dropouts = 4,
    /// A member's order of the pairs.
    Order = 5,
    /// The members' own seeds.
    Members = 6,
    /// The seeds of a member's steps.
    Steps = 7,
}

/// The numbers for one purpose.
pub(super) fn stream(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(purpose as u64);
    random
}

/// Puts `values` into an order that is as likely as any other (Fisher and Yates).
pub(super) fn shuffle<T>(values: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..values.len()).rev() {
        values.swap(last, below(last + 1, random));
    }
}

/// The seed of a step's dropout, which does not depend on where a run was resumed.
pub(super) fn step_seed(seed: u64, step: usize) -> u64 {
    let mut random = stream(seed, Purpose::Steps);
    random.set_word_pos(2 * step as u128); // 32 bits each
    random.next_u64()
}

/// From 0 to 1, without 1.
pub(super) fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A whole number below `limit`. The high half of a product is uneven by 2⁻⁶⁴ of the limit: nobody will see it.
fn below(limit: usize, random: &mut ChaCha8Rng) -> usize {
    ((u128::from(random.next_u64()) * limit as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_everything_once_and_depends_on_seed_and_purpose() {
        let order = |seed, purpose| {
            let mut values: Vec<usize> = (0..50).collect();
            shuffle(&mut values, &mut stream(seed, purpose));
            values
        };
        let first = order(1, Purpose::Order);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(first, order(1, Purpose::Order));
        assert_ne!(first, order(2, Purpose::Order));
        assert_ne!(first, order(1, Purpose::Split));
    }

    #[test]
    fn the_numbers_of_today_are_those_of_tomorrow() {
        // a family must be made again from its record: another generator, or another use of it, would break that
        let mut values: Vec<usize> = (0..8).collect();
        shuffle(&mut values, &mut stream(42, Purpose::Order));
        assert_eq!((values, step_seed(42, 3)), (vec![1, 6, 0, 7, 5, 3, 4, 2], 9_109_578_469_052_101_476));
    }

    #[test]
    fn steps_have_their_own_seeds() {
        let seeds: std::collections::BTreeSet<u64> = (0..1000).map(|step| step_seed(9, step)).collect();
        assert_eq!(seeds.len(), 1000);
    }
}
