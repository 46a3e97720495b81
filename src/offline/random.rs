//! Everything random: ChaCha8, the same on every machine. A seed has many streams, so that what is drawn for one purpose
//! moves nothing in another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;

/// The random numbers of one of a seed's streams.
pub(super) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    random
}

/// Puts `values` into an order that is as likely as any other (Fisher and Yates).
pub(super) fn shuffle<T>(values: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..values.len()).rev() {
        values.swap(last, below(last + 1, random));
    }
}

/// From 0 to 1, without 1.
pub(super) fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A whole number below `end`, which is above 0. The high half of a product is uneven by less than `end` in 2⁶⁴: nobody
/// will see it.
pub(super) fn below(end: usize, random: &mut ChaCha8Rng) -> usize {
    ((u128::from(random.next_u64()) * end as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_everything_once_and_depends_on_seed_and_stream() {
        let order = |seed, number| {
            let mut values: Vec<usize> = (0..50).collect();
            shuffle(&mut values, &mut stream(seed, number));
            values
        };
        let first = order(1, 5);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(first, order(1, 5));
        assert_ne!(first, order(2, 5));
        assert_ne!(first, order(1, 1));
    }
}
