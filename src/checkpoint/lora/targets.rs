//! Which layers an adapter's config is about: names and patterns, as peft 0.21.2 matches them.
//!
//! A layer is named as in the model that was trained, without `.weight`: `model.layers.0.self_attn.q_proj`. Patterns are
//! Python's regular expressions. Those of [`Patterns`] stand for the end of a name after a dot, or for all of it
//! (`get_pattern_key`: `(.*\.)?(PATTERN)$`), and the first that fits counts; a `target_modules` that is one string stands
//! for all of a name. `.` is any letter, so `layers.1.mlp` also fits `layers.1xmlp`.

use fancy_regex::Regex;
use serde_json::Map;
use serde_json::Value;

/// `rank_pattern` or `alpha_pattern`, in the order of the file.
#[derive(Debug)]
pub(super) struct Patterns<T> {
    entries: Vec<(Regex, T)>,
}

/// The layers that have an update.
#[derive(Debug)]
pub(super) struct Targets {
    target: Names,
    exclude: Option<Names>,
    /// Layers in these are saved whole.
    saved: Vec<Regex>,
    /// Only layers with these numbers, and where in a name the number is.
    layers: Option<(Vec<u64>, Vec<Regex>)>,
}

#[derive(Debug)]
enum Names {
    /// Of all of a name.
    Pattern(Regex),
    /// Names, or their ends after a dot.
    List(Vec<String>),
}

impl<T> Patterns<T> {
    /// `read` makes a value of what a pattern stands before.
    pub(super) fn parse(
        key: &str,
        patterns: &Map<String, Value>,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Self, String> {
        let entry = |(pattern, value): (&String, &Value)| {
            let read =
                read(value).ok_or_else(|| format!("`{key}.{pattern}` is {value}: expected a number"))?;
            Ok((regex(key, &format!(r"^(.*\.)?({pattern})$"))?, read))
        };
        Ok(Self { entries: patterns.iter().map(entry).collect::<Result<_, String>>()? })
    }

    /// What the first pattern that fits stands before.
    pub(super) fn get(&self, layer: &str) -> Result<Option<&T>, String> {
        for (regex, value) in &self.entries {
            if fits(regex, layer)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

impl Targets {
    /// None where the config leaves it to peft to find the layers.
    pub(super) fn parse(fields: &Map<String, Value>) -> Result<Option<Self>, String> {
        let Some(target) = Names::parse("target_modules", fields)? else { return Ok(None) };
        if matches!(fields.get("target_modules"), Some(Value::String(all)) if all == "all-linear") {
            return Ok(None);
        }
        let saved = strings("modules_to_save", fields)?.unwrap_or_default();
        let saved = saved.iter().map(|name| regex("modules_to_save", &format!(r"^(^|.*\.){name}($|\..*)")));
        let layers = numbers("layers_to_transform", fields)?.filter(|layers| !layers.is_empty());
        let places = match strings("layers_pattern", fields)?.filter(|patterns| !patterns.is_empty()) {
            None => vec![r"^.*?\.[^.]*\.(\d+)\.".to_owned()],
            Some(patterns) => {
                patterns.iter().map(|pattern| format!(r"^(?:^|.*?\.){pattern}\.(\d+)\.")).collect()
            }
        };
        let places = places.iter().map(|place| regex("layers_pattern", place)).collect::<Result<_, _>>()?;
        Ok(Some(Self {
            target,
            exclude: Names::parse("exclude_modules", fields)?,
            saved: saved.collect::<Result<_, _>>()?,
            layers: layers.map(|layers| (layers, places)),
        }))
    }

    /// Whether this layer has an update.
    pub(super) fn contain(&self, layer: &str) -> Result<bool, String> {
        if let Some(exclude) = &self.exclude
            && exclude.contain(layer)?
        {
            return Ok(false);
        }
        for saved in &self.saved {
            if fits(saved, layer)? {
                return Ok(false);
            }
        }
        if !self.target.contain(layer)? {
            return Ok(false);
        }
        match (&self.layers, &self.target) {
            (Some((layers, places)), Names::List(names)) if !names.iter().any(|name| name == layer) => {
                for place in places {
                    let found = place.captures(layer).map_err(|error| format!("{place}: {error}"))?;
                    if let Some(number) = found.and_then(|found| found.get(1)?.as_str().parse().ok()) {
                        return Ok(layers.contains(&number));
                    }
                }
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}

impl Names {
    fn parse(key: &str, fields: &Map<String, Value>) -> Result<Option<Self>, String> {
        if let Some(Value::String(pattern)) = fields.get(key) {
            return Ok(Some(Self::Pattern(regex(key, &format!("^(?:{pattern})$"))?)));
        }
        Ok(strings(key, fields)?.filter(|names| !names.is_empty()).map(Self::List))
    }

    fn contain(&self, layer: &str) -> Result<bool, String> {
        match self {
            Self::Pattern(regex) => fits(regex, layer),
            Self::List(names) => Ok(names.iter().any(|name| is_or_ends_with(layer, name))),
        }
    }
}

/// Whether this is the name, or its end after a dot.
pub(super) fn is_or_ends_with(layer: &str, name: &str) -> bool {
    layer.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A list of strings, or one alone.
pub(super) fn strings(key: &str, fields: &Map<String, Value>) -> Result<Option<Vec<String>>, String> {
    list(key, fields, "strings", |value| value.as_str().map(str::to_owned))
}

fn numbers(key: &str, fields: &Map<String, Value>) -> Result<Option<Vec<u64>>, String> {
    list(key, fields, "numbers", Value::as_u64)
}

fn list<T>(
    key: &str,
    fields: &Map<String, Value>,
    of: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<Vec<T>>, String> {
    let read = match fields.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values.iter().map(read).collect(),
        Some(value) => read(value).map(|value| vec![value]),
    };
    read.map(Some).ok_or_else(|| format!("`{key}` is {}: expected a list of {of}", fields[key]))
}

fn regex(key: &str, pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern)
        .map_err(|error| format!("`{key}` has a pattern that is no regular expression, {pattern}: {error}"))
}

/// An error where the pattern would try for too long.
fn fits(regex: &Regex, layer: &str) -> Result<bool, String> {
    regex.is_match(layer).map_err(|error| format!("pattern {regex} on `{layer}`: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    /// Each expectation is what peft 0.21.2's `get_pattern_key` gives (`tests/reference/make_adapters.py` asserts it).
    #[test]
    fn patterns_fit_as_pefts_do() {
        for (patterns, layer, expected) in [
            (json!({"q_proj": 1}), "model.layers.0.self_attn.q_proj", Some(1)),
            (json!({"proj": 1}), "model.layers.0.self_attn.q_proj", None),
            (json!({"._proj": 1}), "model.layers.0.self_attn.q_proj", Some(1)),
            (json!({"layers.0.self_attn.._proj": 1}), "model.layers.0.self_attn.v_proj", Some(1)),
            (json!({"layers.1.mlp": 1}), "model.layers.1xmlp", Some(1)),
            (json!({"^model.layers.0.self_attn.q_proj": 1}), "model.layers.0.self_attn.q_proj", Some(1)),
            (json!({"^layers.0.self_attn.q_proj": 1}), "model.layers.0.self_attn.q_proj", None),
            (json!({"layers.(0|1).mlp.(?!up)\\w+": 1}), "model.layers.1.mlp.down_proj", Some(1)),
            (json!({"layers.(0|1).mlp.(?!up)\\w+": 1}), "model.layers.1.mlp.up_proj", None),
            (
                json!({"layers.\\d+.self_attn.q_proj": 1, "q_proj": 2}),
                "model.layers.3.self_attn.q_proj",
                Some(1),
            ),
            (
                json!({"q_proj": 2, "layers.\\d+.self_attn.q_proj": 1}),
                "model.layers.3.self_attn.q_proj",
                Some(2),
            ),
            (json!({"k_proj|q_proj": 1}), "model.layers.3.self_attn.q_proj", Some(1)),
        ] {
            let parsed = Patterns::parse("rank_pattern", &map(patterns.clone()), Value::as_u64).unwrap();
            assert_eq!(parsed.get(layer).unwrap(), expected.as_ref(), "{patterns} {layer}");
        }
        let bad = |patterns| Patterns::parse("rank_pattern", &map(patterns), Value::as_u64).unwrap_err();
        assert!(bad(json!({"(": 1})).contains("no regular expression"));
        assert!(bad(json!({"q": "4"})).contains("`rank_pattern.q` is \"4\""));
    }

    /// Each expectation is what peft 0.21.2's `check_target_module_exists` gives (`tests/reference/make_adapters.py`).
    #[test]
    fn targets_are_pefts() {
        let layer = "model.layers.1.self_attn.q_proj";
        for (config, layer, expected) in [
            (json!({"target_modules": ["q_proj"]}), layer, true),
            (json!({"target_modules": ["proj"]}), layer, false),
            (json!({"target_modules": "q_proj"}), layer, false),
            (json!({"target_modules": ".*q_proj"}), layer, true),
            (json!({"target_modules": "(?!.*mlp).*_proj"}), layer, true),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]}),
                layer,
                false,
            ),
            (json!({"target_modules": ["q_proj"], "exclude_modules": ".*layers.1.*"}), layer, false),
            (json!({"target_modules": ["q_proj"], "exclude_modules": "layers.1.*"}), layer, true),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}), layer, true),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": 0}), layer, false),
            (json!({"target_modules": [layer], "layers_to_transform": 0}), layer, true),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
                layer,
                true,
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h"]}),
                layer,
                false,
            ),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": 1}), "norm.q_proj", false),
            (
                json!({"target_modules": ["dense"], "modules_to_save": ["classifier"]}),
                "classifier.dense",
                false,
            ),
            (
                json!({"target_modules": ["dense"], "modules_to_save": ["classifier"]}),
                "bert.pooler.dense",
                true,
            ),
        ] {
            let targets = Targets::parse(&map(config.clone())).unwrap().unwrap();
            assert_eq!(targets.contain(layer).unwrap(), expected, "{config} {layer}");
        }
        assert!(Targets::parse(&map(json!({"target_modules": "all-linear"}))).unwrap().is_none());
        assert!(Targets::parse(&map(json!({"target_modules": null}))).unwrap().is_none());
        let error = Targets::parse(&map(json!({"target_modules": {"a": 1}}))).unwrap_err();
        assert!(error.contains("`target_modules` is"), "{error}");
    }
}
