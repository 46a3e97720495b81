//! One packed forward, from sequences to rewards: what `rewarm score` runs and `rewarm bench` measures.

use std::time::Duration;

use crate::model::ModelError;
use crate::model::batch::MIN_SHARED_PREFIX;
use crate::model::batch::PackedBatch;
use crate::model::batch::Sequence;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;

/// The reward of each sequence, in order; not checked for finiteness.
///
/// With `share_prefixes`, equal beginnings of sequences are computed once, where the models can; see
/// [`can_share`].
pub(super) fn forward(
    scorer: &Scorer,
    sequences: &[&Sequence],
    share_prefixes: bool,
) -> Result<Vec<Reward>, ModelError> {
    let batch = if share_prefixes && can_share(scorer, sequences) {
        PackedBatch::pack_shared(sequences.iter().copied(), MIN_SHARED_PREFIX)
    } else {
        PackedBatch::pack(sequences.iter().copied())
    };
    let members = scorer.forward(&batch, &mut vec![Duration::ZERO; scorer.num_members()])?;
    let raw_rewards = |sample: usize| members.iter().map(|rewards| rewards[sample]).collect::<Vec<f32>>();
    Ok((0..batch.len()).map(|sample| scorer.reduce(&raw_rewards(sample))).collect())
}

/// Whether sharing changes what is computed and not what comes out: not for encoders, where every token sees all.
pub(super) fn can_share(scorer: &Scorer, sequences: &[&Sequence]) -> bool {
    scorer.shares_prefixes(sequences.iter().map(|sequence| sequence.token_ids.len()).max().unwrap_or(0))
}
