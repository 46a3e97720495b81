//! Draws that nobody has to repeat, and that no secret depends on: by the keys that the standard library draws for its hashes.

use std::hash::BuildHasher;
use std::hash::RandomState;

/// Any number.
pub(super) fn number() -> u64 {
    RandomState::new().hash_one(())
}

/// From 0 to 1, which it never is.
pub(super) fn share() -> f64 {
    // the 53 bits that a double holds exactly
    (number() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_differ() {
        let draws: Vec<f64> = (0..10_000).map(|_| share()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        // ten standard deviations of a mean of so many
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
        let mut all: Vec<u64> = (0..1000).map(|_| number()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1000);
    }
}
