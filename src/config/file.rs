//! Reads a TOML file key by key, so that every problem in it can be named at once, with its line.
//!
//! serde stops at the first. Here each reader takes the keys it knows out of a [`Section`]; a key that nobody
//! took is unknown.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

/// What is wrong, in words; the order is the order of finding.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }
}

/// One table of the file, from which keys are taken.
pub(super) struct Section<'i> {
    /// "variants.warm", or empty for the file itself.
    path: String,
    /// By key: where it stands, and its value.
    entries: BTreeMap<String, (usize, Spanned<DeValue<'i>>)>,
    source: SourceText<'i>,
}

/// Of what is not TOML, so many are named: a file of brackets has one mistake, not a million.
const MAX_NAMED: usize = 20;

/// The file, for line numbers.
#[derive(Clone)]
struct SourceText<'i> {
    name: &'i str,
    /// Where lines end.
    ends: Rc<[usize]>,
}

impl SourceText<'_> {
    fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.name, 1 + self.ends.partition_point(|&end| end < offset))
    }
}

impl<'i> Section<'i> {
    /// The file as a whole. What is not TOML is named, all of it, and what could be read goes on.
    pub(super) fn parse(name: &'i str, text: &'i str, problems: &mut Problems) -> Self {
        let source = SourceText { name, ends: text.match_indices('\n').map(|(end, _)| end).collect() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors.iter().take(MAX_NAMED) {
            let place = source.at(error.span().map_or(0, |span| span.start));
            problems.add(format!("{place}: {}", error.message()));
        }
        if errors.len() > MAX_NAMED {
            problems.add(format!("{name}: and {} more of this kind", errors.len() - MAX_NAMED));
        }
        Self::new(String::new(), table.into_inner(), source)
    }

    fn new(path: String, table: DeTable<'i>, source: SourceText<'i>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| (key.get_ref().to_string(), (key.span().start, value)))
            .collect();
        Self { path, entries, source }
    }

    /// The value of `key`, if it is there and of the right kind.
    pub(super) fn take<T: Deserialize<'i>>(&mut self, key: &str, problems: &mut Problems) -> Option<T> {
        let (offset, value) = self.entries.remove(key)?;
        let kind = value.get_ref().type_str();
        match T::deserialize(value.into_deserializer()) {
            Ok(value) => Some(value),
            Err(error) => {
                let place = self.source.at(error.span().map_or(offset, |span| span.start));
                // The first line says what; the others show the place again.
                let what = match error.message().lines().next().unwrap_or_default() {
                    // said of any enum, and of most it is not so
                    "wanted string or table" => format!("expected a string, found {kind}"),
                    what => what.to_owned(),
                };
                problems.add(format!("{place}: {}: {what}", self.name_of(key)));
                None
            }
        }
    }

    /// The table below `key`; empty when it is absent.
    pub(super) fn section(&mut self, key: &str, problems: &mut Problems) -> Section<'i> {
        let path = self.name_of(key);
        let table = match self.entries.remove(key) {
            None => DeTable::new(),
            Some((offset, value)) => match value.into_inner() {
                DeValue::Table(table) => table,
                other => {
                    let place = self.source.at(offset);
                    problems.add(format!("{place}: {path}: expected a table, found {}", other.type_str()));
                    DeTable::new()
                }
            },
        };
        Section::new(path, table, self.source.clone())
    }

    /// The tables of the list below `key`, `[[key]]`; none when it is absent.
    pub(super) fn sections(&mut self, key: &str, problems: &mut Problems) -> Vec<Section<'i>> {
        let path = self.name_of(key);
        let Some((offset, value)) = self.entries.remove(key) else { return Vec::new() };
        let DeValue::Array(values) = value.into_inner() else {
            problems.add(format!("{}: {path}: expected tables, [[{path}]]", self.source.at(offset)));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            let (path, place) = (format!("{path}[{index}]"), self.source.at(value.span().start));
            match value.into_inner() {
                DeValue::Table(table) => sections.push(Section::new(path, table, self.source.clone())),
                other => {
                    problems.add(format!("{place}: {path}: expected a table, found {}", other.type_str()));
                }
            }
        }
        sections
    }

    /// The keys that nobody took yet.
    pub(super) fn keys(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Whether nobody took `key` yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where `key` stands, before it is taken: "rewarm.toml:12".
    pub(super) fn place_of(&self, key: &str) -> String {
        self.source.at(self.entries.get(key).map_or(0, |(offset, _)| *offset))
    }

    /// Names what nobody took.
    pub(super) fn finish(self, problems: &mut Problems) {
        for (key, (offset, _)) in &self.entries {
            let place = self.source.at(*offset);
            problems.add(format!("{place}: unknown key `{}`", self.name_of(key)));
        }
    }

    fn name_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
