//! What a shadow says beside who answered.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use ::metrics::Counter;
use ::metrics::counter;
use ::metrics::gauge;
use ::metrics::histogram;

use super::SHADOW_CORRELATION;
use super::SHADOW_DIFFERENCE;
use super::SHADOW_PAIRS;
use super::SHADOW_SAMPLES;
use super::SHADOW_WINDOW_SAMPLES;
use super::ShadowOutcome;
use super::window::Window;

/// Each sample of a request is compared with so many after it: all pairs of a group, and not a million of a large request.
const PAIRED_WITH: usize = 63;

/// Who answered, and who scored the same again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shadowing {
    /// Who answered.
    pub variant: String,
    /// Who shadowed.
    pub shadow: String,
}

impl Shadowing {
    /// Shows every series at zero. `models` says which models they are: others begin a new window.
    pub fn register(&self, models: &str) {
        for outcome in ShadowOutcome::ALL {
            self.samples(*outcome, 0);
        }
        self.pairs(true).increment(0);
        self.pairs(false).increment(0);
        let (variant, shadow) = (self.variant.clone(), self.shadow.clone());
        let _ = histogram!(SHADOW_DIFFERENCE, "variant" => variant, "shadow" => shadow);
        self.show(&self.window(models, Window::default()));
    }

    /// So many samples that were to be shadowed, by what became of them.
    pub fn samples(&self, outcome: ShadowOutcome, count: usize) {
        let (variant, shadow) = (self.variant.clone(), self.shadow.clone());
        counter!(SHADOW_SAMPLES, "variant" => variant, "shadow" => shadow, "outcome" => outcome.as_str())
            .increment(count as u64);
    }

    /// The rewards that both gave samples of a request.
    pub fn compared(&self, models: &str, rewards: &[(f32, f32)]) {
        let difference =
            histogram!(SHADOW_DIFFERENCE, "variant" => self.variant.clone(), "shadow" => self.shadow.clone());
        rewards.iter().for_each(|(own, other)| difference.record((own - other).abs()));
        let (agree, differ) = agreement(rewards);
        self.pairs(true).increment(agree);
        self.pairs(false).increment(differ);
        let pairs = rewards.iter().map(|&(own, other)| (own.into(), other.into()));
        self.show(&self.window(models, Window::of(pairs)));
    }

    fn pairs(&self, agree: bool) -> Counter {
        let (variant, shadow) = (self.variant.clone(), self.shadow.clone());
        let agree = if agree { "true" } else { "false" };
        counter!(SHADOW_PAIRS, "variant" => variant, "shadow" => shadow, "agree" => agree)
    }

    /// With what is new in it.
    fn window(&self, models: &str, new: Window) -> Window {
        static WINDOWS: Mutex<BTreeMap<Shadowing, (String, Window)>> = Mutex::new(BTreeMap::new());
        let mut windows = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, window) = windows.entry(self.clone()).or_default();
        if of != models {
            (*of, *window) = (models.to_owned(), Window::default());
        }
        window.take(new);
        *window
    }

    fn show(&self, window: &Window) {
        let labels = [("variant", self.variant.clone()), ("shadow", self.shadow.clone())];
        gauge!(SHADOW_WINDOW_SAMPLES, &labels).set(window.samples as f64);
        gauge!(SHADOW_CORRELATION, &labels).set(window.correlation().unwrap_or(f64::NAN));
    }
}

/// Pairs of a request that both order alike, and that they do not; a tie of either is no order.
fn agreement(rewards: &[(f32, f32)]) -> (u64, u64) {
    let (mut agree, mut differ) = (0, 0);
    for (index, (own, other)) in rewards.iter().enumerate() {
        for (next_own, next_other) in rewards[index + 1..].iter().take(PAIRED_WITH) {
            match (own.partial_cmp(next_own), other.partial_cmp(next_other)) {
                (Some(a), Some(b)) if a.is_ne() && b.is_ne() => {
                    *(if a == b { &mut agree } else { &mut differ }) += 1;
                }
                _ => {}
            }
        }
    }
    (agree, differ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_agree_if_both_order_them_alike_and_a_tie_is_no_order() {
        assert_eq!(agreement(&[(1.0, 5.0), (2.0, 7.0), (3.0, 6.0)]), (2, 1));
        assert_eq!(agreement(&[(1.0, 5.0), (1.0, 7.0), (3.0, 5.0)]), (0, 1));
        assert_eq!(agreement(&[(1.0, 1.0)]), (0, 0));
        let many: Vec<(f32, f32)> = (0..1024).map(|i| (i as f32, i as f32)).collect();
        assert!((60_000..66_000).contains(&agreement(&many).0));
    }
}
