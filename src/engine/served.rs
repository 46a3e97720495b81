//! What the device thread knows of a lane.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use tokio::sync::watch;

use crate::metrics::VariantMetrics;
use crate::model::scorer::Scorer;

/// The models of a lane, and whom to tell how they do.
pub(super) struct Served {
    pub(super) variant: String,
    pub(super) scorer: Scorer,
    pub(super) share_prefixes: bool,
    muted: VariantMetrics,
    shown: OnceLock<VariantMetrics>,
    pub(super) health: watch::Sender<bool>,
    pub(super) batches_without_reward: AtomicU32,
}

impl Served {
    pub(super) fn new(
        variant: &str,
        scorer: Scorer,
        share_prefixes: bool,
        health: watch::Sender<bool>,
    ) -> Self {
        Self {
            variant: variant.to_owned(),
            scorer,
            share_prefixes,
            muted: VariantMetrics::muted(),
            shown: OnceLock::new(),
            health,
            batches_without_reward: 0.into(),
        }
    }

    /// What happens from here on is counted.
    pub(super) fn show(&self) {
        self.shown.get_or_init(|| VariantMetrics::new(&self.variant, self.scorer.num_members()));
    }

    /// Where to count: nowhere before it is shown, since what a server asks itself is no traffic.
    pub(super) fn metrics(&self) -> &VariantMetrics {
        self.shown.get().unwrap_or(&self.muted)
    }

    /// Whether a forward can pause.
    pub(super) fn takes_steps(&self) -> bool {
        self.scorer.takes_steps()
    }
}
