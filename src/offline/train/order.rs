//! Which pairs a member sees in which step: each epoch its own order, filled into batches by tokens.

use crate::model::fill::Fill;
use crate::offline::random;
use crate::offline::train::config::Recipe;
use crate::offline::train::purpose::Purpose;

/// The pairs of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// From 0.
    pub(super) epoch: usize,
    /// Indices of training pairs.
    pub(super) pairs: Vec<usize>,
    /// Of both sides of all of them.
    pub(super) tokens: usize,
}

/// All steps of a member, which depend on nothing but the lengths of the pairs, the recipe's batch and the seed.
///
/// A batch never crosses epochs, so the last one of an epoch may be small. A pair that is larger than a batch makes one
/// of its own.
pub(super) fn batches(lengths: &[usize], recipe: &Recipe, epochs: usize, seed: u64) -> Vec<Batch> {
    let mut random = Purpose::Order.stream(seed);
    let (most_tokens, most_pairs) =
        (recipe.batch_tokens.unwrap_or(usize::MAX), recipe.batch_pairs.unwrap_or(usize::MAX));
    let mut batches = Vec::new();
    for epoch in 0..epochs {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        random::shuffle(&mut order, &mut random);
        let mut left = order.as_slice();
        while !left.is_empty() {
            let mut fill = Fill::new(most_tokens);
            let next = left.iter().take(most_pairs);
            let (pairs, after) = left.split_at(fill.take(next.map(|&pair| lengths[pair])));
            batches.push(Batch { epoch, pairs: pairs.to_vec(), tokens: fill.tokens() });
            left = after;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::train::config::tests::recipe;

    #[test]
    fn every_epoch_sees_every_pair_once_in_an_order_of_its_own() {
        let lengths: Vec<usize> = (1..40).collect();
        let mut recipe = recipe();
        recipe.batch_tokens = Some(60);
        let steps = batches(&lengths, &recipe, 3, 5);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let order: Vec<usize> =
                steps.iter().filter(|batch| batch.epoch == epoch).flat_map(|b| b.pairs.clone()).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..39).collect::<Vec<_>>());
            orders.push(order);
        }
        assert!(orders[0] != orders[1] && orders[1] != orders[2]);
        assert_eq!(steps, batches(&lengths, &recipe, 3, 5));
        assert_eq!(
            batches(&lengths, &recipe, 1, 5),
            steps.iter().filter(|b| b.epoch == 0).cloned().collect::<Vec<_>>()
        );
        assert_ne!(steps, batches(&lengths, &recipe, 3, 6));
        for batch in &steps {
            assert_eq!(batch.tokens, batch.pairs.iter().map(|pair| lengths[*pair]).sum::<usize>());
            assert!(batch.tokens <= 60, "{batch:?}");
        }
    }

    #[test]
    fn a_batch_ends_at_the_first_limit_and_a_large_pair_goes_alone() {
        let mut recipe = recipe();
        (recipe.batch_tokens, recipe.batch_pairs) = (Some(10), Some(2));
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            batches(lengths, &recipe, 1, 0).iter().map(|batch| batch.pairs.len()).collect()
        };
        assert_eq!(sizes(&[1; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[6; 3]), [1, 1, 1]);
        assert_eq!(sizes(&[50; 2]), [1, 1]);
    }
}
