//! Which variant answers a request that names none: a deterministic draw by weight.
//!
//! Weighted rendezvous hashing: every variant draws a number from the key and its own name, scaled by its
//! weight, and the largest wins. The same key and weights give the same variant in every process and after
//! every restart, and a change of weights moves only the keys that must move.
//!
//! Source: Schindelhauer & Schomaker 2005, "Weighted distributed hash tables", the logarithmic method.

use std::collections::BTreeMap;

/// Shares of the requests by variant; they sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Routing {
    weights: BTreeMap<String, f64>,
    shadow: Option<ShadowRouting>,
}

/// Who scores a fraction of the requests too, beside who answers them.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowRouting {
    /// Its name. What it answers itself has no shadow.
    pub variant: String,
    /// Of the keys, from 0 to 1.
    pub fraction: f64,
}

/// What a shadow draws its lot by: no variant has this name.
const SHADOW: &str = "\0shadow";

impl Routing {
    /// Scales `weights` to shares. They were checked: known names, finite, none negative, not all zero.
    pub(super) fn new(weights: &BTreeMap<String, f64>, shadow: Option<ShadowRouting>) -> Self {
        let sum: f64 = weights.values().sum();
        let weights = weights.iter().map(|(name, weight)| (name.clone(), weight / sum)).collect();
        Self { weights, shadow }
    }

    /// Who scores a fraction of the requests too.
    pub(super) fn shadow(&self) -> Option<&ShadowRouting> {
        self.shadow.as_ref()
    }

    /// Who shadows a request with this key that `variant` answers. A larger fraction takes more keys, and all that a smaller
    /// one took.
    pub(super) fn shadow_of(&self, variant: &str, key: &[u8]) -> Option<&str> {
        let shadow = self.shadow.as_ref().filter(|shadow| shadow.variant != variant)?;
        // 0 is below any draw, and 1 above
        (shadow.fraction > 0.0 && uniform(SHADOW, key) < shadow.fraction).then_some(&shadow.variant)
    }

    /// Shares by variant.
    pub(super) fn weights(&self) -> &BTreeMap<String, f64> {
        &self.weights
    }

    /// Whether these weights lead to the same shares, as far as a caller can tell who knows them from metrics.
    pub(super) fn is_by(&self, weights: &BTreeMap<String, f64>) -> bool {
        const SAME: f64 = 1e-6;
        let sum: f64 = weights.values().sum();
        let of = |weights: &BTreeMap<String, f64>, name| weights.get(name).copied().unwrap_or(0.0);
        let mut names = self.weights.keys().chain(weights.keys());
        names.all(|name| (of(weights, name) / sum - of(&self.weights, name)).abs() < SAME)
    }

    /// Shares in words.
    pub(super) fn shares(&self) -> String {
        let one = |(name, share): (&String, &f64)| format!("{name} {:.1}%", 100.0 * share);
        self.weights.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The variant for `key`.
    pub(super) fn choose(&self, key: &[u8]) -> &str {
        let drawn = |(name, weight): &(&String, &f64)| {
            // `u` in (0, 1): −ln(u) / weight is exponential with rate `weight`, and the smallest of several
            // exponentials is the i-th with probability weightᵢ / Σ weight.
            -uniform(name, key).ln() / **weight
        };
        self.weights
            .iter()
            .filter(|(_, weight)| **weight > 0.0)
            .min_by(|a, b| drawn(a).total_cmp(&drawn(b)))
            .map(|(name, _)| name.as_str())
            .expect("at least one weight is above zero")
    }
}

/// What is wrong with a shadow beside `variants`, in words; empty when nothing is.
pub fn shadow_problems<'a>(
    shadow: &ShadowRouting,
    variants: impl Iterator<Item = &'a str> + Clone,
) -> Vec<String> {
    let ShadowRouting { variant, fraction } = shadow;
    let mut problems = Vec::new();
    if !variants.clone().any(|name| name == variant) {
        problems.push(format!("names the unknown variant `{variant}`"));
    } else if variants.count() == 1 {
        problems.push(format!("names `{variant}`, which is the only variant: it shadows what others answer"));
    }
    if !(0.0..=1.0).contains(fraction) {
        problems.push(format!("has the fraction {fraction}: it must be from 0 to 1"));
    }
    problems
}

/// What is wrong with routing weights for `variants`, in words; empty when nothing is.
pub fn weight_problems<'a>(
    weights: &BTreeMap<String, f64>,
    variants: impl Iterator<Item = &'a str> + Clone,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, weight) in weights {
        if !variants.clone().any(|variant| variant == name) {
            problems.push(format!("names the unknown variant `{name}`"));
        }
        if !weight.is_finite() || *weight < 0.0 {
            problems.push(format!("gives `{name}` the weight {weight}: it must be finite and at least 0"));
        }
    }
    // Each may be finite and the sum still not be: shares would be zero.
    if weights.values().sum::<f64>() == f64::INFINITY {
        problems.push("gives weights whose sum is infinite".to_owned());
    }
    if !weights.values().any(|weight| *weight > 0.0) {
        problems.push("gives no variant a weight above 0".to_owned());
    }
    problems
}

/// A number in (0, 1) from a digest of both.
fn uniform(name: &str, key: &[u8]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(key);
    let digest = hasher.finalize();
    let bits = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"));
    // The 53 bits a double holds exactly, moved off zero by half a step.
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(weights: &[(&str, f64)]) -> Routing {
        Routing::new(&weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect(), None)
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..10_000).map(|index| format!("prompt {index}"))
    }

    #[test]
    fn shares_follow_the_weights() {
        let routing = routing(&[("ens", 1.0), ("warm", 9.0), ("off", 0.0)]);
        let ens = keys().filter(|key| routing.choose(key.as_bytes()) == "ens").count();
        let off = keys().filter(|key| routing.choose(key.as_bytes()) == "off").count();
        // 10,000 draws at 0.1 have a standard deviation of 30: five of them.
        assert!((850..=1150).contains(&ens), "{ens}");
        assert_eq!(off, 0);
    }

    #[test]
    fn weights_that_are_known_from_metrics_are_known_again() {
        let by = |weights: &[(&str, f64)]| {
            let weights = weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
            routing(&[("warm", 2.0), ("ens", 1.0), ("off", 0.0)]).is_by(&weights)
        };
        assert!(
            by(&[("warm", 0.6666667), ("ens", 0.3333333)])
                && by(&[("warm", 8.0), ("ens", 4.0), ("off", 0.0)])
        );
        for other in [
            &[("warm", 0.67), ("ens", 0.33)][..],
            &[("warm", 2.0)],
            &[("warm", 2.0), ("ens", 1.0), ("new", 1.0)],
            &[],
        ] {
            assert!(!by(other), "{other:?}");
        }
        assert!(!by(&[("warm", 0.0)]), "no share at all");
    }

    #[test]
    fn a_change_of_weights_moves_only_the_keys_that_must_move() {
        let before = routing(&[("a", 1.0), ("b", 1.0), ("c", 2.0)]);
        let after = routing(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
        let moves: Vec<(String, String)> = keys()
            .map(|key| (before.choose(key.as_bytes()).to_owned(), after.choose(key.as_bytes()).to_owned()))
            .filter(|(old, new)| old != new)
            .collect();
        // `c` gives up 1/2 − 1/3 of all keys, and nobody else gives up any.
        assert!(moves.iter().all(|(old, _)| old == "c"), "only `c` lost weight");
        assert!((1480..=1860).contains(&moves.len()), "{}", moves.len());
    }

    #[test]
    fn a_larger_fraction_shadows_more_keys_and_all_that_it_shadowed() {
        let weights = BTreeMap::from([("warm".to_owned(), 9.0), ("ens".to_owned(), 1.0)]);
        let shadowed = |fraction: f64| -> Vec<String> {
            let shadow = ShadowRouting { variant: "ens".to_owned(), fraction };
            let routing = Routing::new(&weights, Some(shadow));
            keys().filter(|key| routing.shadow_of("warm", key.as_bytes()) == Some("ens")).collect()
        };
        let (few, more) = (shadowed(0.05), shadowed(0.2));
        assert!((400..=600).contains(&few.len()) && (1850..=2150).contains(&more.len()), "{}", few.len());
        assert!(few.iter().all(|key| more.contains(key)));
        assert_eq!((shadowed(0.0).len(), shadowed(1.0).len()), (0, keys().count()));
        let routing =
            Routing::new(&weights, Some(ShadowRouting { variant: "ens".to_owned(), fraction: 1.0 }));
        assert_eq!(routing.shadow_of("ens", b"key"), None, "nobody shadows itself");
        // drawn apart from the choice: the sample has its share of both
        let of_ens = more.iter().filter(|key| routing.choose(key.as_bytes()) == "ens").count();
        assert!((140..=260).contains(&of_ens), "{of_ens}");
    }

    #[test]
    fn a_choice_is_the_same_in_every_process_forever() {
        let routing = routing(&[("ens", 1.0), ("warm", 1.0)]);
        let choices: Vec<&str> =
            ["a", "b", "c", "d", "e", "f"].map(|key| routing.choose(key.as_bytes())).into();
        assert_eq!(choices, GOLDEN_CHOICES);
    }

    /// Noted when the hash was chosen: a change here splits the groups of every run under way.
    const GOLDEN_CHOICES: [&str; 6] = ["ens", "warm", "ens", "ens", "ens", "warm"];
}
