//! What several labels mean: a reward is one number, so the manifest says which of them it is, or of which of them it is the sum.
//!
//! ```json
//! {"label": "helpfulness"}                                             or {"label": 0}
//! {"label_weights": {"helpfulness": 0.65, "verbosity": -0.1}}          or {"label_weights": [0.65, 0, 0, 0, -0.1]}
//! ```
//!
//! Names are those of `id2label` in `config.json`, or its indices. Nothing is guessed: a checkpoint with several labels of which
//! the manifest chooses none is refused. What is chosen is one row of the head: a row of its last layer, or a sum of rows, made
//! when the model is loaded; so it costs what one label costs, and is part of the fingerprint.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::fields::Fields;

/// So many of them are told.
const MAX_TOLD: usize = 8;

/// A label in the manifest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected the name or the index of a label")]
pub enum Label {
    /// By its place among the head's outputs.
    Index(usize),
    /// By `id2label`.
    Name(String),
}

/// Weights in the manifest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a number for each label, or numbers by their names")]
pub enum LabelWeights {
    /// Of all, in order.
    All(Vec<f64>),
    /// Of some, by name or index; of the others 0.
    Some(BTreeMap<String, f64>),
}

/// Which of a head's labels make the reward.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// This one, of so many; how many, where the config says so.
    One {
        /// Its place.
        index: usize,
        /// How many there are.
        of: Option<usize>,
    },
    /// The sum of all, with a weight for each.
    Sum(Vec<f64>),
}

impl Labels {
    /// What config and manifest, which chooses, say; none of a model with one label. The second is what is to be told.
    pub(super) fn settle(
        fields: &Fields<'_>,
        label: Option<&Label>,
        weights: Option<&LabelWeights>,
    ) -> Result<(Option<Self>, Option<String>), String> {
        let names = names(fields)?;
        let declared = match fields.optional::<usize>("num_labels")? {
            Some(0) => return Err("`num_labels` is 0: expected a number above zero".to_owned()),
            Some(count) => Some(count),
            None => Some(names.len()).filter(|count| *count > 0),
        };
        let of = declared.map_or("an unknown number".to_owned(), |count| count.to_string());
        let find = |label: &Label| {
            let index = match label {
                Label::Index(index) => Some(*index),
                Label::Name(name) => {
                    let mut named = names.iter().filter(|(_, known)| *known == name).map(|(index, _)| *index);
                    let first = named.next();
                    if let Some(second) = named.next() {
                        let first = first.unwrap_or_default();
                        return Err(format!(
                            "rewarm.json names label \"{name}\", and `id2label` has it twice, at {first} and {second}: give \
                             its index"
                        ));
                    }
                    first.or_else(|| name.parse().ok())
                }
            };
            index.filter(|index| declared.is_none_or(|count| *index < count)).ok_or_else(|| {
                let label = match label {
                    Label::Index(index) => index.to_string(),
                    Label::Name(name) => format!("\"{name}\""),
                };
                format!("rewarm.json names label {label}, the model has {of}{}", told(&names))
            })
        };
        let name = |index: usize| names.get(&index).map_or(index.to_string(), |name| format!("\"{name}\""));
        let labels = match (label, weights) {
            (Some(_), Some(_)) => {
                return Err("rewarm.json has `label` and `label_weights`: give one of them".to_owned());
            }
            (None, None) => match declared {
                None | Some(1) => return Ok((None, None)),
                Some(count) => {
                    let example = name(0);
                    return Err(format!(
                        "the model has {count} labels{}, a reward is one number: say in rewarm.json which of them it is, \
                         {{\"label\": {example}}}, or with what weights they are added, {{\"label_weights\": {{{}: 1.0, ..}}}}",
                        told(&names),
                        if names.is_empty() { format!("\"{example}\"") } else { example.clone() }
                    ));
                }
            },
            (Some(label), None) => Self::One { index: find(label)?, of: declared },
            (None, Some(weights)) => {
                let weights = match weights {
                    LabelWeights::All(weights) if declared.is_none_or(|count| count == weights.len()) => {
                        weights.clone()
                    }
                    LabelWeights::All(weights) => {
                        return Err(format!(
                            "`label_weights` of rewarm.json has {} numbers, the model {of} labels",
                            weights.len()
                        ));
                    }
                    LabelWeights::Some(by_name) => {
                        let found = by_name
                            .iter()
                            .map(|(name, weight)| Ok((find(&Label::Name(name.clone()))?, *weight)));
                        let found = found.collect::<Result<Vec<(usize, f64)>, String>>()?;
                        let count = declared.ok_or(
                            "config.json does not say how many labels there are: give `label_weights` of rewarm.json as a list",
                        )?;
                        let mut weights = vec![None; count];
                        for (index, weight) in &found {
                            if weights[*index].replace(*weight).is_some() {
                                return Err(format!(
                                    "`label_weights` of rewarm.json names label {} twice",
                                    name(*index)
                                ));
                            }
                        }
                        weights.into_iter().map(Option::unwrap_or_default).collect()
                    }
                };
                // as small or large as rows of f32 can be made of
                let is_usable = |weight: &f64| *weight == 0.0 || (weight.abs() as f32).is_normal();
                if !weights.iter().all(is_usable) || weights.iter().all(|weight| *weight == 0.0) {
                    return Err(format!(
                        "`label_weights` of rewarm.json is {weights:?}: expected finite numbers, not all 0, that `f32` can \
                         hold"
                    ));
                }
                Self::Sum(weights)
            }
        };
        let note = match &labels {
            Self::One { index, .. } => format!("the reward is label {} of {of}", name(*index)),
            Self::Sum(weights) => {
                let parts = weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
                let parts = parts.map(|(index, weight)| format!("{weight} · {}", name(index)));
                format!("the reward is a sum of labels: {}", parts.collect::<Vec<_>>().join(" + "))
            }
        };
        if declared == Some(1) && labels == (Self::One { index: 0, of: declared }) {
            return Ok((None, None));
        }
        Ok((Some(labels), Some(note)))
    }

    /// Whether a head with so many outputs has the labels that this is about.
    pub(super) fn fits(&self, outputs: usize) -> bool {
        match self {
            Self::One { index, of } => *index < outputs && of.is_none_or(|count| count == outputs),
            Self::Sum(weights) => weights.len() == outputs,
        }
    }
}

/// `id2label`, by index.
fn names(fields: &Fields<'_>) -> Result<BTreeMap<usize, String>, String> {
    let Some(Value::Object(named)) = fields.0.get("id2label") else { return Ok(BTreeMap::new()) };
    let mut names = BTreeMap::new();
    for (index, name) in named {
        let index =
            index.parse().map_err(|_| format!("`id2label` has the key \"{index}\": expected an index"))?;
        names.insert(index, name.as_str().map_or_else(|| name.to_string(), str::to_owned));
    }
    Ok(names)
}

fn told(names: &BTreeMap<usize, String>) -> String {
    match names.len() {
        0 => String::new(),
        1..=MAX_TOLD => format!(" ({})", names.values().map(String::as_str).collect::<Vec<_>>().join(", ")),
        _ => format!(
            " ({}, ..)",
            names.values().take(MAX_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
    }
}
