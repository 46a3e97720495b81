//! Which experts a row goes to, and with what weights: the words in which families differ.
//!
//! ```text
//! logits [experts] → scores → (+ correction, groups hidden) → the best → their scores, normalised, scaled
//! ```
//!
//! Scores are made and compared in `f32`, as transformers does. Of equal scores those of lower experts are taken; torch takes
//! what its partial sort comes upon, so nothing can depend on it that is meant.

use serde::Serialize;

/// Added to a sum before something is divided by it.
const NOT_ZERO: f32 = 1e-20;

/// How logits of a router become a choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Routing {
    /// Experts that a row goes to.
    pub top_k: usize,
    /// What logits become.
    pub scores: Scores,
    /// Of which experts are chosen from some only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// Whether weights are divided by their sum.
    pub is_normalised: bool,
    /// Factor on the weights.
    pub scale: f64,
}

/// What logits become before the best are chosen, and what these weigh.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Their softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
    /// They stay; the chosen weigh their softmax among themselves (GPT-OSS, JetMoE).
    Logits,
    /// Two experts, one after the other: each weighs its softmax among those that are no further from it than so much,
    /// relatively, and that were not chosen before (PhiMoE's sparsemixer, without the noise of training).
    Mixer {
        /// How far.
        reach: f64,
    },
}

/// Experts in groups of one size, of which a row sees but a few.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// How many a row sees.
    pub seen: usize,
    /// By what they are chosen.
    pub by: GroupScore,
    /// What becomes of the experts of the others.
    pub hidden: Hidden,
}

/// The score of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The best of its experts (DeepSeek-V2).
    Best,
    /// The sum of the best two (DeepSeek-V3).
    BestTwo,
}

/// What becomes of experts that a row does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// They are never chosen (DeepSeek-V3).
    Never,
    /// They are chosen as if their score were zero, and then weigh what they scored (A.X-K2, Mistral-4).
    ByZero,
    /// They are chosen as if their score were zero, and weigh that (DeepSeek-V2).
    AreZero,
}

/// An expert of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub expert: usize,
    /// What its output is multiplied with.
    pub weight: f32,
}

impl Routing {
    /// The softmax of all, of which the best are taken: most families.
    pub fn softmax(top_k: usize, is_normalised: bool) -> Self {
        Self { top_k, scores: Scores::Softmax, groups: None, is_normalised, scale: 1.0 }
    }

    /// Adds the choice of a row to `to`: `top_k` experts, in ascending order. `correction`, `[experts]`, is added to scores
    /// for the choice alone. Weights are not numbers where a logit is none.
    pub fn choose(&self, logits: &[f32], correction: Option<&[f32]>, to: &mut Vec<Choice>) {
        let first = to.len();
        if logits.iter().any(|logit| logit.is_nan()) {
            to.extend((0..self.top_k).map(|expert| Choice { expert, weight: f32::NAN }));
            return;
        }
        match self.scores {
            Scores::Softmax => self.best(softmax(logits), correction, to),
            Scores::Sigmoid => {
                let scores = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
                self.best(scores, correction, to);
            }
            Scores::Logits => {
                let experts = largest(logits, self.top_k);
                let of_chosen: Vec<f32> = experts.iter().map(|&expert| logits[expert]).collect();
                let weights = experts.into_iter().zip(softmax(&of_chosen));
                to.extend(weights.map(|(expert, weight)| Choice { expert, weight }));
            }
            Scores::Mixer { reach } => mix(logits, reach as f32, self.top_k, to),
        }
        let chosen = &mut to[first..];
        chosen.sort_unstable_by_key(|choice| choice.expert);
        if self.is_normalised {
            let sum = chosen.iter().map(|choice| choice.weight).sum::<f32>() + NOT_ZERO;
            chosen.iter_mut().for_each(|choice| choice.weight /= sum);
        }
        chosen.iter_mut().for_each(|choice| choice.weight *= self.scale as f32);
    }

    fn best(&self, mut scores: Vec<f32>, correction: Option<&[f32]>, to: &mut Vec<Choice>) {
        let mut ranked = scores.clone();
        if let Some(correction) = correction {
            ranked.iter_mut().zip(correction).for_each(|(score, correction)| *score += correction);
        }
        if let Some(Groups { count, seen, by, hidden }) = self.groups {
            let size = scores.len() / count;
            let of_group = |group: &[f32]| match by {
                GroupScore::Best => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                GroupScore::BestTwo => largest(group, 2).into_iter().map(|expert| group[expert]).sum(),
            };
            let of_groups: Vec<f32> = ranked.chunks_exact(size).map(of_group).collect();
            let seen = largest(&of_groups, seen);
            for group in (0..count).filter(|group| !seen.contains(group)) {
                let experts = group * size..(group + 1) * size;
                let as_if = if hidden == Hidden::Never { f32::NEG_INFINITY } else { 0.0 };
                ranked[experts.clone()].fill(as_if);
                if hidden == Hidden::AreZero {
                    scores[experts].fill(0.0);
                }
            }
        }
        let chosen = largest(&ranked, self.top_k);
        to.extend(chosen.into_iter().map(|expert| Choice { expert, weight: scores[expert] }));
    }
}

/// The places of so many of the largest, the largest first; of equal ones the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for (place, value) in values.iter().enumerate() {
        if best.len() == count && best.last().is_none_or(|&last| *value <= values[last]) {
            continue;
        }
        let rank = best.partition_point(|&other| values[other] >= *value);
        best.insert(rank, place);
        best.truncate(count);
    }
    best
}

fn softmax(values: &[f32]) -> Vec<f32> {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = values.iter().map(|value| (value - largest).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

/// See [`Scores::Mixer`].
fn mix(logits: &[f32], reach: f32, top_k: usize, to: &mut Vec<Choice>) {
    let mut left = logits.to_vec();
    for expert in largest(logits, top_k) {
        let best = logits[expert];
        // of zeros that are equal this is no number, and no distance
        let is_far = |logit: f32| (best - logit) / logit.abs().max(best) > reach;
        let near = left.iter().map(|&logit| if is_far(logit) { f32::NEG_INFINITY } else { logit });
        let near: Vec<f32> = near.collect();
        to.push(Choice { expert, weight: softmax(&near)[expert] });
        left[expert] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Expected {
        logits: Vec<Vec<f32>>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        correction: Option<Vec<f32>>,
        experts: Vec<Vec<usize>>,
        weights: Vec<Vec<f32>>,
    }

    const NOTHING: f32 = 1e-30;
    const BY_TWO: Groups = Groups { count: 4, seen: 2, by: GroupScore::BestTwo, hidden: Hidden::Never };
    const BY_ONE: Groups = Groups { count: 4, seen: 2, by: GroupScore::Best, hidden: Hidden::AreZero };

    /// In our words.
    fn routing_of(name: &str) -> Routing {
        let softmax = |is_normalised| Routing::softmax(3, is_normalised);
        let scaled = |groups, of: Routing| Routing { groups, scale: 2.5, ..of };
        let sigmoid = |is_normalised, groups| {
            scaled(groups, Routing { scores: Scores::Sigmoid, ..softmax(is_normalised) })
        };
        let by_zero = Groups { hidden: Hidden::ByZero, ..BY_TWO };
        match name {
            "mixtral" | "hunyuan_v1_moe" | "qwen3_moe, norm_topk_prob" => softmax(true),
            "qwen3_moe" => softmax(false),
            "gpt_oss" | "jetmoe" => Routing { scores: Scores::Logits, ..softmax(false) },
            "phimoe" => Routing { top_k: 2, scores: Scores::Mixer { reach: 0.1 }, ..softmax(false) },
            "deepseek_v2, greedy" => scaled(None, softmax(false)),
            "deepseek_v2" => scaled(Some(BY_ONE), softmax(false)),
            "deepseek_v2, one group" => scaled(Some(Groups { seen: 1, ..BY_ONE }), softmax(false)),
            "deepseek_v3" => sigmoid(false, Some(BY_TWO)),
            "deepseek_v3, norm_topk_prob" => sigmoid(true, Some(BY_TWO)),
            "axk2" => sigmoid(true, Some(by_zero)),
            "axk2, below zero" => Routing { top_k: 6, ..sigmoid(false, Some(Groups { seen: 3, ..by_zero })) },
            "axk2, no groups" => sigmoid(true, None),
            "mistral4" => scaled(Some(by_zero), softmax(true)),
            other => panic!("no words for {other}"),
        }
    }

    /// Made by `tests/reference/routing.py`.
    #[test]
    fn choices_are_those_of_transformers() {
        let expected: Expected = serde_json::from_str(include_str!("../../tests/data/routing.json")).unwrap();
        assert!(expected.cases.len() >= 16);
        for Case { name, correction, experts, weights } in &expected.cases {
            let routing = routing_of(name);
            for ((logits, experts), weights) in expected.logits.iter().zip(experts).zip(weights) {
                let mut ours = Vec::new();
                routing.choose(logits, correction.as_deref(), &mut ours);
                assert_eq!(ours.len(), experts.len(), "{name} {logits:?}");
                // what weighs next to nothing is anybody: its score was one of several zeros
                ours.retain(|choice| choice.weight > NOTHING);
                let theirs: Vec<_> =
                    experts.iter().zip(weights).filter(|(_, weight)| **weight > NOTHING).collect();
                assert_eq!(
                    ours.iter().map(|choice| &choice.expert).collect::<Vec<_>>(),
                    theirs.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(),
                    "{name} {logits:?}"
                );
                for (ours, (_, theirs)) in ours.iter().zip(theirs) {
                    let is_close = (ours.weight - theirs).abs() <= 1e-6 * theirs.abs().max(1e-30);
                    assert!(is_close, "{name} {logits:?}: {ours:?}, not {theirs}");
                }
            }
        }
    }

    /// Of PhiMoE's, torch takes the first of equal scores too; and zeros divide zero by zero.
    #[test]
    fn of_equal_scores_the_first_are_taken() {
        let choose = |routing: &Routing, logits: &[f32]| {
            let mut chosen = Vec::new();
            routing.choose(logits, None, &mut chosen);
            chosen.into_iter().map(|choice| (choice.expert, choice.weight)).collect::<Vec<_>>()
        };
        let softmax = Routing::softmax(2, true);
        assert_eq!(choose(&softmax, &[0.0; 4]), [(0, 0.5), (1, 0.5)]);
        assert_eq!(choose(&softmax, &[0.0, 1.0, 0.0, 1.0, 1.0]), [(1, 0.5), (3, 0.5)]);
        let mixer = routing_of("phimoe");
        assert_eq!(choose(&mixer, &[0.0; 4]), [(0, 0.25), (1, 1.0 / 3.0)]);
        assert_eq!(choose(&mixer, &[-3.0, 2.0, 2.0, 0.5]), [(1, 0.5), (2, 1.0)]);
    }

    #[test]
    fn what_is_no_number_is_chosen_with_none() {
        for routing in [Routing::softmax(2, true), routing_of("gpt_oss"), routing_of("deepseek_v3")] {
            for broken in [f32::NAN, -f32::NAN] {
                let mut chosen = Vec::new();
                routing.choose(&[1.0, 0.5, broken, 0.1, 0.2, 0.3, 0.4, 0.6], None, &mut chosen);
                assert_eq!(chosen.len(), routing.top_k);
                assert!(chosen.iter().all(|choice| choice.weight.is_nan()), "{chosen:?}");
            }
        }
    }
}
