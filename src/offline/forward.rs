//! One packed forward, from sequences to rewards: what `rewarm score` runs and `rewarm bench` measures.

use std::time::Duration;

use crate::model::ModelError;
use crate::model::batch::PackedBatch;
use crate::model::batch::Sequence;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;

/// The reward of each sequence, in order; not checked for finiteness.
///
/// With `share_prefixes`, what sequences begin with alike is computed once, where the models can.
pub(super) fn forward(
    scorer: &Scorer,
    sequences: &[&Sequence],
    share_prefixes: bool,
) -> Result<Vec<Reward>, ModelError> {
    let batch = if share_prefixes {
        scorer.pack_shared(sequences)
    } else {
        PackedBatch::pack(sequences.iter().copied())
    };
    let members = scorer.forward(&batch, &mut vec![Duration::ZERO; scorer.num_members()])?;
    let raw_rewards = |sample: usize| members.iter().map(|rewards| rewards[sample]).collect::<Vec<f32>>();
    Ok((0..batch.len()).map(|sample| scorer.reduce(&raw_rewards(sample))).collect())
}
