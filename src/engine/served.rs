//! What the device threads know of a lane.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::Priority;
use crate::metrics::VariantMetrics;
use crate::model::scorer::Scorer;

/// So many batches in a row without a single reward, and a copy is not healthy.
const UNHEALTHY_AFTER: u32 = 3;

/// The models of a lane, and whom to tell how they do.
pub(super) struct Served {
    pub(super) variant: String,
    /// At least one, each on a device of its own.
    pub(super) copies: Vec<Copy>,
    pub(super) share_prefixes: bool,
    muted: VariantMetrics,
    shown: OnceLock<VariantMetrics>,
    /// Of shadow work: device seconds, and nothing else.
    of_shadows: OnceLock<VariantMetrics>,
    // dropped last: who sees it closed knows that the models are gone
    health: watch::Sender<bool>,
}

/// The models, on one device.
pub(super) struct Copy {
    pub(super) device: usize,
    pub(super) scorer: Scorer,
    batches_without_reward: AtomicU32,
}

impl Copy {
    pub(super) fn new(device: usize, scorer: Scorer) -> Self {
        Self { device, scorer, batches_without_reward: 0.into() }
    }

    fn is_healthy(&self) -> bool {
        self.batches_without_reward.load(Ordering::Relaxed) < UNHEALTHY_AFTER
    }
}

impl Served {
    pub(super) fn new(
        variant: &str,
        copies: Vec<Copy>,
        share_prefixes: bool,
        health: watch::Sender<bool>,
    ) -> Self {
        Self {
            variant: variant.to_owned(),
            copies,
            share_prefixes,
            muted: VariantMetrics::muted(),
            shown: OnceLock::new(),
            of_shadows: OnceLock::new(),
            health,
        }
    }

    /// What happens from here on is counted.
    pub(super) fn show(&self) {
        let num_members = self.copies[0].scorer.num_members();
        let shown = self.shown.get_or_init(|| VariantMetrics::new(&self.variant, num_members));
        self.of_shadows.get_or_init(|| shown.of_device_only());
    }

    /// Where to count what has this priority: nowhere before it is shown, since what a server asks itself is no traffic.
    pub(super) fn metrics_of(&self, priority: Priority) -> &VariantMetrics {
        let metrics = match priority {
            Priority::Shadow => &self.of_shadows,
            Priority::Interactive | Priority::Normal | Priority::Background => &self.shown,
        };
        metrics.get().unwrap_or(&self.muted)
    }

    /// Whether a forward can pause.
    pub(super) fn takes_steps(&self) -> bool {
        self.copies.iter().all(|copy| copy.scorer.takes_steps())
    }

    /// Whether a copy takes work. One that fails again and again would be the one that is always free: it takes none as
    /// long as others do well. If none does, all try, since a lane needs work to recover.
    pub(super) fn may_run(&self, copy: usize) -> bool {
        self.copies[copy].is_healthy() || !self.copies.iter().any(Copy::is_healthy)
    }

    /// A batch of a copy ended; tells health.
    pub(super) fn batch_ended(&self, copy: usize, has_reward: bool) {
        let (copies, copy) = (&self.copies, &self.copies[copy]);
        let was_healthy = copy.is_healthy();
        // only its own device thread counts: no order to keep
        let in_a_row = copy.batches_without_reward.load(Ordering::Relaxed);
        let in_a_row = if has_reward { 0 } else { in_a_row.saturating_add(1) };
        copy.batches_without_reward.store(in_a_row, Ordering::Relaxed);
        if copies.len() > 1 && was_healthy != copy.is_healthy() {
            let (variant, device, is_healthy) = (&self.variant, copy.device, copy.is_healthy());
            tracing::warn!(variant, device, is_healthy, "health of a copy changed");
        }
        let is_healthy = copies.iter().any(Copy::is_healthy);
        if self.health.send_if_modified(|health| std::mem::replace(health, is_healthy) != is_healthy) {
            tracing::warn!(variant = self.variant, is_healthy, "health of the variant changed");
        }
    }
}
