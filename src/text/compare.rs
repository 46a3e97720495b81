//! In what two checkpoints differ that make other tokens of a text, for people: each difference with both values and the files.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::files::{TemplateSource, TextFiles, read_json};
use super::{SampleTokenizer, TextError, TextRule};

/// So many letters of a value are shown.
const SHOWN: usize = 60;

/// The first place at which two values differ.
#[derive(Debug)]
pub struct FieldDifference {
    /// For example `model.vocab.the` or `added_tokens[4]`.
    pub path: String,
    /// What is there in the first, for people; "absent" where nothing is.
    pub first: String,
    /// And in the second.
    pub second: String,
}

impl FieldDifference {
    /// Between two values of JSON.
    pub fn between(first: &Value, second: &Value) -> Option<Self> {
        find("", Some(first), Some(second))
    }
}

impl fmt::Display for FieldDifference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, first, second } = self;
        write!(formatter, "`{path}` is {first} in the first and {second} in the second")
    }
}

fn find(path: &str, first: Option<&Value>, second: Option<&Value>) -> Option<FieldDifference> {
    match (first, second) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                find(&path, a.get(key), b.get(key))
            })
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => (0..a.len().max(b.len()))
            .find_map(|index| find(&format!("{path}[{index}]"), a.get(index), b.get(index))),
        (a, b) if a == b => None,
        (a, b) => Some(FieldDifference { path: path.to_owned(), first: shown(a), second: shown(b) }),
    }
}

/// A value for people: its beginning, where it is long.
pub fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| cut(&value.to_string()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// All kinds of differences between two checkpoints that may make other tokens of a text, one of each kind; none: their files
/// differ at most in how they are written. Nothing is read where their digests are equal.
pub fn differences(first: &SampleTokenizer, other: &SampleTokenizer) -> Result<Vec<String>, TextError> {
    if first.digest() == other.digest() {
        return Ok(Vec::new());
    }
    let (first_dir, dir) = (first.dir(), other.dir());
    let mut found = Vec::new();
    let (first_files, files) = (TextFiles::read(first_dir)?, TextFiles::read(dir)?);
    let [a, b] = [first_dir, dir].map(|dir| dir.display());
    if let Some(FieldDifference { path, first, second }) =
        FieldDifference::between(&tokenizer_json(first_dir)?, &tokenizer_json(dir)?)
    {
        found.push(format!("`{path}` is {first} in {a}/tokenizer.json and {second} in {b}/tokenizer.json"));
    }
    if let Some(FieldDifference { path, first, second }) =
        FieldDifference::between(first.identity(), other.identity())
    {
        found.push(format!(
            "`{path}` is {first} for {a} and {second} for {b} (tokenizer_config.json, special_tokens_map.json or \
             added_tokens.json)"
        ));
    }
    for (what, first, other) in [
        ("chat template", &first_files.template, &files.template),
        ("chat template for tools", &first_files.tool_template, &files.tool_template),
    ] {
        found.extend(templates(what, (first_dir, first.as_ref()), (dir, other.as_ref())));
    }
    let rule = TextRule::name_of;
    let has_template = |files: &TextFiles| files.template.is_some();
    // without a template the rule is another one by itself
    if first.rule() != other.rule() && has_template(&first_files) == has_template(&files) {
        found.push(format!(
            "text_rule is {} for {a} and {} for {b} (rewarm.json)",
            rule(first.rule()),
            rule(other.rule())
        ));
    }
    if first.end() != other.end() {
        let [first, other] = [first, other].map(|tokenizer| tokenizer.end().name());
        found.push(format!("text_end is {first} for {a} and {other} for {b} (rewarm.json)"));
    }
    if first.max_tokens() != other.max_tokens() {
        let [first, other] = [first, other].map(SampleTokenizer::max_tokens);
        found.push(format!(
            "the longest sample has {first} tokens for {a} and {other} for {b} (give both one `max_tokens`, for example \
             {})",
            first.min(other)
        ));
    }
    Ok(found)
}

/// `tokenizer.json`, without the truncation and padding that are reset anyway; null where there is none.
pub fn tokenizer_json(dir: &Path) -> Result<Value, TextError> {
    let mut content: Value = read_json(&dir.join("tokenizer.json"))?.unwrap_or_default();
    if let Value::Object(fields) = &mut content {
        fields.remove("truncation");
        fields.remove("padding");
    }
    Ok(content)
}

fn templates(
    what: &str,
    (first_dir, first): (&Path, Option<&TemplateSource>),
    (dir, other): (&Path, Option<&TemplateSource>),
) -> Option<String> {
    match (first, other) {
        (None, None) => None,
        (Some(first), None) => {
            Some(format!("{} has a {what}, {} has none", first.path.display(), dir.display()))
        }
        (None, Some(other)) => {
            Some(format!("{} has a {what}, {} has none", other.path.display(), first_dir.display()))
        }
        (Some(first), Some(other)) => {
            if first.source == other.source {
                return None;
            }
            let [mut a, mut b] = [first, other].map(|template| template.source.split('\n'));
            let line = 1 + (&mut a).zip(&mut b).take_while(|(one, other)| one == other).count();
            let shown = |template: &TemplateSource| {
                let text = template.source.split('\n').nth(line - 1);
                let place = format!("{}:{line}", template.path.display());
                match text.map(|text| around(text, first, other, line)) {
                    Some(text) => format!("`{text}` ({place})"),
                    None => format!("at its end ({place})"),
                }
            };
            Some(format!("the {what} is {} and {}", shown(first), shown(other)))
        }
    }
}

/// Of a line of two templates what is around the first letter that differs: a whole template is often one line.
fn around(text: &str, first: &TemplateSource, other: &TemplateSource, line: usize) -> String {
    let [a, b] = [first, other].map(|template| template.source.split('\n').nth(line - 1).unwrap_or_default());
    let alike = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let start = alike.saturating_sub(SHOWN / 3);
    let letters: String = text.chars().skip(start).collect();
    let dots = if start > 0 { "…" } else { "" };
    format!("{dots}{}", cut(&letters))
}
