//! Reads a TOML file, and the variables that win over it, key by key, so that every problem in them can be named at once,
//! with its line or its variable.
//!
//! serde stops at the first. Here each reader takes the keys it knows out of a [`Section`]; a key that nobody
//! took is unknown, and the nearest of those that somebody asked for may be what was meant.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
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

/// A setting from the environment: `REWARM_SERVER__LISTEN` is `server.listen`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    name: String,
    /// In the file.
    path: Vec<String>,
    text: String,
}

impl Variable {
    const PREFIX: &str = "REWARM_";
    /// Between tables and keys. Variables without it are flags.
    const SEPARATOR: &str = "__";

    /// If a variable of the environment is one.
    pub fn new(name: &str, text: &str) -> Option<Self> {
        let path = name.strip_prefix(Self::PREFIX)?;
        if !path.contains(Self::SEPARATOR) || text.is_empty() {
            return None; // empty is how compose files say that a variable is not set
        }
        let path = path.split(Self::SEPARATOR).map(str::to_lowercase).collect();
        Some(Self { name: name.to_owned(), path, text: text.to_owned() })
    }

    /// Of this process.
    pub fn of_environment() -> Vec<Self> {
        // what is not UTF-8 is not left out: it is wrong, and will be named
        let all = std::env::vars_os();
        all.filter_map(|(name, text)| Self::new(&name.to_string_lossy(), &text.to_string_lossy())).collect()
    }

    /// Whether it says something of the table `key`.
    pub(super) fn is_below(&self, key: &str) -> bool {
        self.path[0] == key
    }

    /// What it may mean, the likeliest first: TOML, a string that needs no quotes, a list without brackets.
    fn meanings(&self) -> Vec<Spanned<DeValue<'_>>> {
        fn read(text: &str) -> Spanned<DeValue<'_>> {
            let string = || Spanned::new(0..text.len(), DeValue::String(text.into()));
            DeValue::parse(text).unwrap_or_else(|_| string())
        }
        let items = self.text.split(',').map(|item| read(item.trim()));
        let whole = 0..self.text.len();
        vec![
            read(&self.text),
            Spanned::new(whole.clone(), DeValue::String(self.text.as_str().into())),
            Spanned::new(whole, DeValue::Array(items.collect())),
        ]
    }
}

/// A variable, as a section sees it.
#[derive(Clone, Copy)]
struct Given<'i> {
    variable: &'i Variable,
    /// Its path below the section.
    path: &'i [String],
}

/// One table of the file, from which keys are taken.
pub(super) struct Section<'i> {
    /// "variants.warm", or empty for the file itself.
    path: String,
    /// By key: where it stands, and its value.
    entries: BTreeMap<String, (usize, Spanned<DeValue<'i>>)>,
    /// They win over the entries.
    given: Vec<Given<'i>>,
    /// All keys that somebody asked for.
    known: BTreeSet<String>,
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
    pub(super) fn parse(
        name: &'i str,
        text: &'i str,
        variables: &'i [Variable],
        problems: &mut Problems,
    ) -> Self {
        let source = SourceText { name, ends: text.match_indices('\n').map(|(end, _)| end).collect() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors.iter().take(MAX_NAMED) {
            let place = source.at(error.span().map_or(0, |span| span.start));
            problems.add(format!("{place}: {}", error.message()));
        }
        if errors.len() > MAX_NAMED {
            problems.add(format!("{name}: and {} more of this kind", errors.len() - MAX_NAMED));
        }
        let given = variables.iter().map(|variable| Given { variable, path: &variable.path });
        Self::new(String::new(), table.into_inner(), given.collect(), source)
    }

    fn new(path: String, table: DeTable<'i>, given: Vec<Given<'i>>, source: SourceText<'i>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| (key.get_ref().to_string(), (key.span().start, value)))
            .collect();
        Self { path, entries, given, known: BTreeSet::new(), source }
    }

    /// The value of `key`, if it is there and of the right kind.
    pub(super) fn take<T: Deserialize<'i>>(&mut self, key: &str, problems: &mut Problems) -> Option<T> {
        self.known.insert(key.to_owned());
        let in_file = self.entries.remove(key);
        let given: Vec<Given<'i>> = self.given.extract_if(.., |given| given.path[0] == key).collect();
        if let Some(Given { variable, .. }) = given.iter().find(|given| given.path.len() == 1) {
            if let Some(part) = given.iter().find(|given| given.path.len() > 1) {
                let (whole, part) = (&variable.name, &part.variable.name);
                problems.add(format!("{whole} and {part} are the same setting: give one of them"));
                return None;
            }
            let mut meanings = variable.meanings().into_iter().map(|value| read::<T>(value));
            let first = meanings.next().expect("three");
            return match first {
                Ok(value) => Some(value),
                Err(error) => meanings.find_map(Result::ok).or_else(|| {
                    problems.add(format!("{}: {}: {}", variable.name, self.name_of(key), error.what));
                    None
                }),
            };
        }
        let (offset, value) = if given.is_empty() { in_file? } else { overlaid(in_file, &given) };
        match read(value) {
            Ok(value) => Some(value),
            Err(Unreadable { start, what }) => {
                // of a value that is put together, which part is wrong is told by what is said
                let names = given.iter().map(|given| given.variable.name.as_str()).collect::<Vec<_>>();
                let in_file = || self.source.at(start.unwrap_or(offset));
                let place = if names.is_empty() { in_file() } else { names.join(", ") };
                problems.add(format!("{place}: {}: {what}", self.name_of(key)));
                None
            }
        }
    }

    /// The table below `key`; empty when it is absent.
    pub(super) fn section(&mut self, key: &str, problems: &mut Problems) -> Section<'i> {
        self.known.insert(key.to_owned());
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
        let (below, itself): (Vec<_>, Vec<_>) =
            self.given.extract_if(.., |given| given.path[0] == key).partition(|given| given.path.len() > 1);
        for Given { variable: Variable { name, .. }, .. } in itself {
            problems.add(format!("{name}: {path} is a table: give {name}__KEY for each of its keys"));
        }
        let below = below.into_iter().map(|given| Given { path: &given.path[1..], ..given });
        Section::new(path, table, below.collect(), self.source.clone())
    }

    /// The tables of the list below `key`, `[[key]]`; none when it is absent.
    pub(super) fn sections(&mut self, key: &str, problems: &mut Problems) -> Vec<Section<'i>> {
        self.known.insert(key.to_owned());
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
                DeValue::Table(table) => {
                    sections.push(Section::new(path, table, Vec::new(), self.source.clone()));
                }
                other => {
                    problems.add(format!("{place}: {path}: expected a table, found {}", other.type_str()));
                }
            }
        }
        sections
    }

    /// A variable that gives one of two keys which mean the same wins over the other one in the file.
    pub(super) fn settle(&mut self, keys: [&str; 2]) {
        let is_given = |key: &str| self.given.iter().any(|given| given.path[0] == key);
        match keys.map(is_given) {
            [true, false] => self.entries.remove(keys[1]),
            [false, true] => self.entries.remove(keys[0]),
            _ => None,
        };
    }

    /// The keys that nobody took yet.
    pub(super) fn keys(&self) -> Vec<String> {
        let given = self.given.iter().map(|given| given.path[0].clone());
        self.entries.keys().cloned().chain(given).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether nobody took `key` yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.given.iter().any(|given| given.path[0] == key)
    }

    /// Where `key` stands, before it is taken: "rewarm.toml:12", or its variable.
    pub(super) fn place_of(&self, key: &str) -> String {
        match self.given.iter().find(|given| given.path[0] == key) {
            Some(given) => given.variable.name.clone(),
            None => self.source.at(self.entries.get(key).map_or(0, |(offset, _)| *offset)),
        }
    }

    /// Names what nobody took.
    pub(super) fn finish(self, problems: &mut Problems) {
        for key in self.keys() {
            let meant = nearest(&key, self.known.iter().map(String::as_str));
            let meant = meant.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
            problems.add(format!("{}: unknown key `{}`{meant}", self.place_of(&key), self.name_of(&key)));
        }
    }

    fn name_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// What a value is not, and where in its source that shows.
struct Unreadable {
    start: Option<usize>,
    what: String,
}

fn read<'i, T: Deserialize<'i>>(value: Spanned<DeValue<'i>>) -> Result<T, Unreadable> {
    let kind = value.get_ref().type_str();
    T::deserialize(value.into_deserializer()).map_err(|error| {
        // The first line says what; the others show the place again.
        let what = match error.message().lines().next().unwrap_or_default() {
            // said of any enum, and of most it is not so
            "wanted string or table" => format!("expected a string, found {kind}"),
            // in serde's words; a variant is something else here
            what => what.replacen("unknown variant", "unknown value", 1) + &meant(what).unwrap_or_default(),
        };
        Unreadable { start: error.span().map(|span| span.start), what }
    })
}

/// Of "unknown variant `a`, expected one of `b`, `c`", and of unknown fields: what may have been meant.
fn meant(what: &str) -> Option<String> {
    let mut names = what.starts_with("unknown ").then(|| what.split('`').skip(1).step_by(2))?;
    let near = nearest(names.next()?, names)?;
    Some(format!(": did you mean `{near}`?"))
}

/// A table that is one value, with the keys that variables give it.
fn overlaid<'i>(
    in_file: Option<(usize, Spanned<DeValue<'i>>)>,
    given: &[Given<'i>],
) -> (usize, Spanned<DeValue<'i>>) {
    let (offset, value) = in_file.unzip();
    let mut table = match value.map(Spanned::into_inner) {
        Some(DeValue::Table(table)) => table,
        _ => DeTable::new(),
    };
    for Given { variable, path } in given {
        // deeper is one string, which is none of the kinds that a key of such a table may have
        let value = variable.meanings().swap_remove(0);
        table.insert(Spanned::new(0..0, path[1..].join(".").into()), value);
    }
    (offset.unwrap_or(0), Spanned::new(0..0, DeValue::Table(table)))
}

/// Which of the names somebody may have meant who wrote `name`, if any is near.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Of Jaro-Winkler, from 0 to 1.
    const NEAR: f64 = 0.8;
    names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness > NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, other)| other)
}
