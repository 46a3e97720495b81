//! What a run draws random numbers for. Each purpose has a stream of its own: more members, say, have the same order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::offline::random;

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

impl Purpose {
    /// The numbers for this purpose.
    pub(super) fn stream(self, seed: u64) -> ChaCha8Rng {
        random::stream(seed, self as u64)
    }
}

/// The seed of a step's dropout, which does not depend on where a run was resumed.
pub(super) fn step_seed(seed: u64, step: usize) -> u64 {
    let mut random = Purpose::Steps.stream(seed);
    random.set_word_pos(2 * step as u128); // 32 bits each
    random.next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_today_are_those_of_tomorrow() {
        // a family must be made again from its record: another generator, or another use of it, would break that
        let mut values: Vec<usize> = (0..8).collect();
        random::shuffle(&mut values, &mut Purpose::Order.stream(42));
        assert_eq!((values, step_seed(42, 3)), (vec![1, 6, 0, 7, 5, 3, 4, 2], 9_109_578_469_052_101_476));
    }

    #[test]
    fn steps_have_their_own_seeds() {
        let seeds: std::collections::BTreeSet<u64> = (0..1000).map(|step| step_seed(9, step)).collect();
        assert_eq!(seeds.len(), 1000);
    }
}
