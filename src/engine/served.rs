//! What the device thread knows of a lane.

use std::sync::atomic::AtomicU32;

use tokio::sync::watch;

use crate::metrics::VariantMetrics;
use crate::model::scorer::Scorer;

/// The models of a lane, and whom to tell how they do.
pub(super) struct Served {
    pub(super) variant: String,
    pub(super) scorer: Scorer,
    pub(super) share_prefixes: bool,
    pub(super) metrics: VariantMetrics,
    pub(super) health: watch::Sender<bool>,
    pub(super) batches_without_reward: AtomicU32,
}

impl Served {
    pub(super) fn new(
        variant: &str,
        scorer: Scorer,
        share_prefixes: bool,
        metrics: VariantMetrics,
        health: watch::Sender<bool>,
    ) -> Self {
        Self {
            variant: variant.to_owned(),
            scorer,
            share_prefixes,
            metrics,
            health,
            batches_without_reward: 0.into(),
        }
    }

    /// Whether a forward can pause.
    pub(super) fn takes_steps(&self) -> bool {
        self.scorer.takes_steps()
    }
}
