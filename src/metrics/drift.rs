//! How far what a variant answers has moved from what it answered on the references of `rewarm calibrate`.
//!
//! One window for each variant and each name of a token (none: the empty name). A request's samples are joined with one
//! lock; the gauges are made when somebody looks.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use ::metrics::gauge;

use super::window::Window;
use crate::values::reference::Reference;
use crate::values::reference::Spread;

/// A window of fewer is not shown.
const LEAST_SAMPLES: u64 = 100;
/// Fisher's z of a correlation of one is infinite.
const MOST_CORRELATED: f64 = 0.999_999;

/// A sample that has a reward.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its reward.
    pub reward: f32,
    /// It was scored with so many.
    pub tokens: usize,
    /// Whether it had had more.
    pub is_truncated: bool,
    /// How far members were apart.
    pub reward_std: Option<f32>,
}

/// Of a variant, its models and what they answered on the references.
#[derive(Default)]
struct Watched {
    models: String,
    reference: Reference,
    /// By name of a token.
    windows: BTreeMap<String, OfToken>,
    /// Whether there is disagreement.
    is_ensemble: bool,
}

#[derive(Default)]
struct OfToken {
    /// Rewards and tokens.
    rewards: Window,
    /// Truncation and disagreement.
    others: Window,
    /// Whether its gauges exist: they stay when the models are others.
    is_shown: bool,
}

fn watched() -> MutexGuard<'static, BTreeMap<String, Watched>> {
    static WATCHED: Mutex<BTreeMap<String, Watched>> = Mutex::new(BTreeMap::new());
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A variant is served by these models: others than before begin new windows.
pub fn watch(variant: &str, models: &str, reference: Reference) {
    let mut watched = watched();
    let of = watched.entry(variant.to_owned()).or_default();
    of.reference = reference;
    if of.models != models {
        models.clone_into(&mut of.models);
        of.is_ensemble = false;
        for of_token in of.windows.values_mut() {
            *of_token = OfToken { is_shown: of_token.is_shown, ..OfToken::default() };
        }
    }
}

/// Samples of a request have their rewards. `token` names whose request it is.
pub fn seen(variant: &str, models: &str, token: &str, samples: &[Seen]) {
    let of_rewards = Window::of(samples.iter().map(|seen| (seen.reward.into(), seen.tokens as f64)));
    let beside =
        |seen: &Seen| (f64::from(u8::from(seen.is_truncated)), seen.reward_std.unwrap_or(0.0).into());
    let beside = Window::of(samples.iter().map(beside));
    let is_ensemble = samples.iter().any(|seen| seen.reward_std.is_some());
    let mut watched = watched();
    // of models that were replaced meanwhile nothing is counted
    let Some(of) = watched.get_mut(variant).filter(|of| of.models == models) else { return };
    of.is_ensemble |= is_ensemble;
    let of_token = match of.windows.get_mut(token) {
        Some(of_token) => of_token,
        None => of.windows.entry(token.to_owned()).or_default(),
    };
    of_token.rewards.take(of_rewards);
    of_token.others.take(beside);
}

/// Makes the gauges.
pub(super) fn show() {
    for (variant, of) in &mut *watched() {
        for (token, of_token) in &mut of.windows {
            let disagreement = of.is_ensemble.then(|| of_token.others.mean()[1]);
            of_token.show([variant, token], disagreement, &of.reference);
        }
        let Reference { reward, tokens, length_correlation, disagreement, .. } = of.reference;
        for (name, value) in [
            (super::REFERENCE_REWARD_MEAN, reward.map(|of| of.mean)),
            (super::REFERENCE_REWARD_STD, reward.map(|of| of.std)),
            (super::REFERENCE_TOKENS_MEAN, tokens.map(|of| of.mean)),
            (super::REFERENCE_LENGTH_CORRELATION, length_correlation),
            (super::REFERENCE_DISAGREEMENT_MEAN, disagreement.map(|of| of.mean)),
        ] {
            if let Some(value) = value {
                gauge!(name, "variant" => variant.clone()).set(value);
            }
        }
    }
}

impl OfToken {
    fn show(&mut self, [variant, token]: [&String; 2], disagreement: Option<f64>, reference: &Reference) {
        let labels = [("variant", variant.clone()), ("token", token.clone())];
        let rewards = &self.rewards;
        gauge!(super::WINDOW_SAMPLES, &labels).set(rewards.samples as f64);
        let is_known = rewards.samples >= LEAST_SAMPLES;
        self.is_shown |= is_known;
        if !self.is_shown {
            return;
        }
        // a series that is there stays, and says that it knows nothing
        let known = |value: Option<f64>| value.filter(|_| is_known).unwrap_or(f64::NAN);
        let ([reward, tokens], [reward_std, _]) = (rewards.mean(), rewards.std());
        let [truncated, _] = self.others.mean();
        for (name, value) in [
            (super::WINDOW_REWARD_MEAN, Some(reward)),
            (super::WINDOW_REWARD_STD, Some(reward_std)),
            (super::WINDOW_TOKENS_MEAN, Some(tokens)),
            (super::WINDOW_TRUNCATED_RATIO, Some(truncated)),
            (super::WINDOW_LENGTH_CORRELATION, rewards.correlation()),
        ] {
            gauge!(name, &labels).set(known(value));
        }
        if disagreement.is_some() {
            gauge!(super::WINDOW_DISAGREEMENT_MEAN, &labels).set(known(disagreement));
        }
        for (statistic, distance) in reference.distances(rewards, truncated, disagreement) {
            let [variant, token] = labels.clone();
            gauge!(super::DRIFT, &[variant, token, ("statistic", statistic.to_owned())])
                .set(known(Some(distance)));
        }
    }
}

impl Reference {
    /// From the reference in its standard deviations; of a correlation the difference of Fisher's z.
    fn distances(
        &self,
        rewards: &Window,
        truncated: f64,
        disagreement: Option<f64>,
    ) -> Vec<(&'static str, f64)> {
        let far = |mean: f64, of: Spread| (of.std > 0.0).then(|| (mean - of.mean) / of.std);
        let z = |correlation: f64| correlation.clamp(-MOST_CORRELATED, MOST_CORRELATED).atanh();
        let truncation = self.too_long.map(|(share, count)| {
            // none of a hundred says that there is less than one in a hundred
            let least = share.clamp(1.0 / count.max(2) as f64, 0.5);
            (truncated - share) / (least * (1.0 - least)).sqrt()
        });
        let [reward, tokens] = rewards.mean();
        let correlation = self.length_correlation.zip(rewards.correlation());
        [
            ("reward", self.reward.and_then(|of| far(reward, of))),
            ("length", self.tokens.and_then(|of| far(tokens, of))),
            ("truncation", truncation),
            ("length_correlation", correlation.map(|(of, now)| z(now) - z(of))),
            ("disagreement", self.disagreement.zip(disagreement).and_then(|(of, now)| far(now, of))),
        ]
        .into_iter()
        .filter_map(|(statistic, distance)| Some((statistic, distance?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_the_distance_in_standard_deviations_of_the_reference() {
        let reference = Reference {
            reward: Some(Spread { mean: 1.0, std: 0.5 }),
            tokens: Some(Spread { mean: 20.0, std: 10.0 }),
            length_correlation: Some(0.0),
            disagreement: Some(Spread { mean: 0.1, std: 0.05 }),
            too_long: Some((0.0, 100)),
        };
        // rewards of 2 and 3 at 30 and 50 tokens: they rise with length, all the way
        let window = Window::of([(2.0, 30.0), (3.0, 50.0)].into_iter());
        let distances: BTreeMap<_, _> = reference.distances(&window, 0.25, Some(0.3)).into_iter().collect();
        let near = |statistic: &str, expected: f64| (distances[statistic] - expected).abs() < 1e-6;
        assert!(near("reward", 3.0) && near("length", 2.0) && near("disagreement", 4.0), "{distances:?}");
        assert!(near("truncation", 0.25 / (0.01f64 * 0.99).sqrt()), "{distances:?}");
        assert!(near("length_correlation", MOST_CORRELATED.atanh()), "{distances:?}");
        // what no reference says has no drift, and one that never changes measures nothing
        let constant = Reference { reward: Some(Spread { mean: 1.0, std: 0.0 }), ..Reference::default() };
        assert!(constant.distances(&window, 0.5, None).is_empty());
    }
}
