//! Shadow: a request that was answered is scored by another variant too, which nobody waits for.
//!
//! It gets the same tokens, once their own rewards are there. Its work has the lowest [priority](Priority::Shadow): where
//! the device has anything else to do, it is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::Call;
use crate::engine::Outcome;
use crate::engine::Priority;
use crate::metrics::ShadowOutcome;
use crate::metrics::Shadowing;
use crate::ops::batch::Sequence;
use crate::service::models::ServedVariant;

/// A shadow that finds no free device in this time is dropped: what it would tell is of the past.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request on its second way.
pub(super) struct Shadow {
    of: Arc<ServedVariant>,
    shadow: Arc<ServedVariant>,
    sequences: Vec<Sequence>,
}

impl Shadow {
    /// Of a request that is on its first.
    pub(super) fn of(
        served: &Arc<ServedVariant>,
        shadow: Arc<ServedVariant>,
        sequences: &[Sequence],
    ) -> Self {
        Self { of: served.clone(), shadow, sequences: sequences.to_vec() }
    }

    /// The request has its own outcomes. Those of its samples that have a reward are scored again; the caller does not wait.
    pub(super) fn begin(self, own: &[Outcome]) {
        let Self { of, shadow, sequences } = self;
        let both = own.iter().zip(sequences);
        let both = both.filter_map(|(own, sequence)| Some((own.as_ref().ok()?.reward, sequence)));
        let (own, sequences): (Vec<f32>, Vec<Sequence>) = both.unzip();
        if own.is_empty() {
            return;
        }
        // of no tracker: nothing waits for it, the end of the server neither
        tokio::spawn(async move {
            let names = Shadowing { variant: of.info.name.clone(), shadow: shadow.info.name.clone() };
            let call = Call { priority: Priority::Shadow, deadline: Some(Instant::now() + PATIENCE) };
            let is_too_long = |sequence: &Sequence| sequence.token_ids.len() > shadow.info.max_tokens;
            if sequences.iter().any(is_too_long) {
                return names.samples(ShadowOutcome::Dropped, own.len());
            }
            match shadow.lane.score(sequences, call).await {
                Err(_) => names.samples(ShadowOutcome::Dropped, own.len()),
                Ok(scored) => {
                    let other = scored.outcomes.iter().map(|outcome| outcome.as_ref().ok());
                    let compared: Vec<(f32, f32)> = own
                        .iter()
                        .zip(other)
                        .filter_map(|(own, other)| Some((*own, other?.reward)))
                        .collect();
                    names.samples(ShadowOutcome::Scored, compared.len());
                    names.samples(ShadowOutcome::Failed, own.len() - compared.len());
                    names.compared(&of.models_with(&shadow), &compared);
                }
            }
        });
    }
}
