//! `rewarm train`: flags over a TOML file over defaults, checked as a whole.
//!
//! The flags are declared here and not in `cli`, because each says the same as a key of the file. The keys are documented
//! in `rewarm train --help`.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::ConfigError;
use crate::config::file::Problems;
use crate::config::file::Section;
use crate::disk;
use crate::hub;
use crate::offline::train::config::Choice;
use crate::offline::train::config::Choices;
use crate::offline::train::config::Config;
use crate::offline::train::config::DataConfig;
use crate::offline::train::config::Decay;
use crate::offline::train::config::Keep;
use crate::offline::train::config::Member;
use crate::offline::train::config::ProbeConfig;
use crate::offline::train::config::Range;
use crate::offline::train::config::Recipe;
use crate::text::Truncation;
use crate::values::Format;

/// More members than anybody averages, and few enough for a plot.
const MAX_MEMBERS: usize = 64;

/// What flags say; they win over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TrainOptions {
    /// The configuration, a TOML file; flags win over it. Its keys are below.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The checkpoint to start from, a directory or a model of the hub: *Model, *ForCausalLM or *ForSequenceClassification of any family that is served.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Pairs to train on: JSON lines, plain or gzipped, {"prompt", "chosen", "rejected"}, strings or lists of messages.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pairs: Option<Vec<PathBuf>>,
    /// Pairs to validate on [default: a part of the training pairs].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    validation: Option<Vec<PathBuf>>,
    /// The share of the training pairs that is set aside [default: 0.1].
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
    /// The folder of the family; a run that finds its own state there goes on from it.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How many members [default: 4].
    #[arg(long, value_name = "N")]
    num_members: Option<usize>,
    /// What the members draw their learning rates from [default: half, one and two times what is proposed for the base and the number of steps; --check says it].
    #[arg(long, value_name = "RATE,RATE", value_delimiter = ',')]
    learning_rate: Option<Vec<f64>>,
    /// What the members draw their dropouts from [default: 0,0.05,0.1].
    #[arg(long, value_name = "P,P", value_delimiter = ',')]
    dropout: Option<Vec<f64>>,
    /// How often each pair is seen [default: 1].
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// A step takes pairs up to this many tokens [default: 4096, or no limit with --batch-pairs].
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,
    /// A step takes at most so many pairs [default: no limit].
    #[arg(long, value_name = "N")]
    batch_pairs: Option<usize>,
    /// The limit for tokens, in place of the model's own.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// The share of training pairs whose label is turned round, to measure memorisation [default: 0].
    #[arg(long, value_name = "SHARE")]
    corrupt: Option<f64>,
    /// Of everything random [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Which step of a member is written: the one of least validation loss, of which the start is one, or the last [default: best].
    #[arg(long)]
    keep: Option<Keep>,
}

/// `truncation`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum TruncationName {
    Reject,
    Left,
    Right,
}

impl From<TruncationName> for Truncation {
    fn from(name: TruncationName) -> Self {
        match name {
            TruncationName::Reject => Self::Reject,
            TruncationName::Left => Self::Left,
            TruncationName::Right => Self::Right,
        }
    }
}

/// One path or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl From<Paths> for Vec<PathBuf> {
    fn from(paths: Paths) -> Self {
        match paths {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths,
        }
    }
}

impl TrainOptions {
    /// Reads the file, if there is one, and checks everything.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let Some(path) = &self.config else { return self.assemble("the command line", "", Path::new("")) };
        let name = path.display().to_string();
        let text = disk::read_to_string(path, disk::HAND_WRITTEN_BYTES)
            .map_err(|error| ConfigError::from(vec![format!("read {name}: {error}")]))?;
        // Paths in a file are relative to the file.
        self.assemble(&name, &text, path.parent().unwrap_or(Path::new("")))
    }

    fn assemble(&self, name: &str, text: &str, folder: &Path) -> Result<Config, ConfigError> {
        let mut problems = Problems::default();
        let section = Section::parse(name, text, &[], &mut problems);
        let mut file = Keys { section, problems };

        let base = file.model("base", &self.base, folder);
        let output = file.path("output", &self.output, folder);
        let seed = file.value("seed", self.seed, 0, any());
        let epochs = file.value("epochs", self.epochs, 1, AT_LEAST_ONE);
        let data = self.data(&mut file, folder, seed);
        let recipe = self.recipe(&mut file);
        let checkpoint_every = file.value("checkpoint_every", None, 100, AT_LEAST_ONE);
        let (members, proposed) = self.members(&mut file, folder, base.as_deref(), epochs, seed);
        let probe = file.probe();
        let mut problems = file.finish();

        for path in data.pairs.iter().chain(&data.validation).filter(|path| !path.exists()) {
            problems.add(format!("there is no file {}", path.display()));
        }
        match (base, output) {
            (Some(base), Some(output)) if problems.0.is_empty() => {
                Ok(Config { base, output, seed, data, probe, recipe, members, proposed, checkpoint_every })
            }
            _ => Err(problems.0.into()),
        }
    }

    fn data(&self, file: &mut Keys<'_>, folder: &Path, seed: u64) -> DataConfig {
        let pairs = file.paths("pairs", &self.pairs, folder);
        let validation = file.paths("validation", &self.validation, folder);
        if pairs.is_empty() {
            file.problems
                .add("pairs is missing: name files of preference pairs, in the file or with --pairs");
        }
        let fraction = file.optional("validation_fraction", self.validation_fraction, SHARE);
        if !validation.is_empty() && fraction.is_some() {
            file.problems.add("validation and validation_fraction: give one of them");
        }
        DataConfig {
            pairs,
            validation,
            validation_fraction: fraction.unwrap_or(0.1),
            max_tokens: file.optional("max_tokens", self.max_tokens, AT_LEAST_ONE),
            truncation: file.take::<TruncationName>("truncation").map(Truncation::from).unwrap_or_default(),
            corrupt: file.value("corrupt", self.corrupt, 0.0, SHARE),
            corrupt_seed: file.value("corrupt_seed", None, seed, any()),
        }
    }

    fn recipe(&self, file: &mut Keys<'_>) -> Recipe {
        let batch_tokens = file.optional("batch_tokens", self.batch_tokens, AT_LEAST_ONE);
        let batch_pairs = file.optional("batch_pairs", self.batch_pairs, AT_LEAST_ONE);
        Recipe {
            batch_tokens: batch_tokens.or(batch_pairs.is_none().then_some(4096)),
            batch_pairs,
            micro_batch_tokens: file.value("micro_batch_tokens", None, 512, AT_LEAST_ONE),
            warmup_fraction: file.value("warmup_fraction", None, 0.06, SHARE),
            decay: file.value("decay", None, Decay::Linear, any()),
            weight_decay: file.value("weight_decay", None, 0.01, NOT_NEGATIVE),
            betas: file.value("betas", None, [0.9, 0.999], BETAS),
            eps: file.value("eps", None, 1e-8, POSITIVE),
            clip_norm: file.value("clip_norm", None, 1.0, NOT_NEGATIVE),
            centering: file.value("centering", None, 0.0, NOT_NEGATIVE),
            frozen_layers: file.value("frozen_layers", None, 0, any()),
            frozen_embeddings: file.value("frozen_embeddings", None, false, any()),
            dtype: file.value("dtype", None, Format::F32, any()),
            keep: file.value("keep", self.keep, Keep::Best, any()),
            patience: file.value("patience", None, 3, any()),
            validate_every: file.optional("validate_every", None, AT_LEAST_ONE),
        }
    }

    /// `[[members]]`, or so many as are drawn; what a table leaves out is drawn too. And those whose learning rate is a share of
    /// the one that will be proposed: nobody gave any.
    fn members(
        &self,
        file: &mut Keys<'_>,
        folder: &Path,
        base: Option<&Path>,
        epochs: usize,
        seed: u64,
    ) -> (Vec<Member>, BTreeSet<usize>) {
        let is_given = self.learning_rate.is_some() || file.section.has("learning_rate");
        let choices = Choices {
            learning_rate: file.choice("learning_rate", &self.learning_rate, &SHARES, POSITIVE),
            dropout: file.choice("dropout", &self.dropout, &DROPOUTS, BELOW_ONE),
        };
        let asked = file.optional("num_members", self.num_members, A_FEW);
        let tables = file.section.sections("members", &mut file.problems);
        if !tables.is_empty() && asked.is_some() {
            file.problems.add("num_members and [[members]]: give one of them");
        }
        let count = if tables.is_empty() { asked.unwrap_or(4) } else { tables.len() };
        let drawn = choices.draw(count, base.unwrap_or(Path::new("")), epochs, seed);
        let mut proposed: BTreeSet<usize> = if is_given { BTreeSet::new() } else { (0..count).collect() };
        if tables.is_empty() {
            return (drawn, proposed);
        }
        for (member, _) in tables.iter().enumerate().filter(|(_, table)| table.has("learning_rate")) {
            proposed.remove(&member);
        }
        let members =
            drawn.into_iter().zip(tables).map(|(drawn, table)| self.member(drawn, table, file, folder));
        (members.collect(), proposed)
    }

    fn member(&self, drawn: Member, section: Section<'_>, file: &mut Keys<'_>, folder: &Path) -> Member {
        let mut own = Keys { section, problems: std::mem::take(&mut file.problems) };
        let flags = [
            ("learning_rate", "--learning-rate", self.learning_rate.is_some()),
            ("dropout", "--dropout", self.dropout.is_some()),
            ("epochs", "--epochs", self.epochs.is_some()),
        ];
        for (key, flag, _) in flags.iter().filter(|(key, _, is_given)| *is_given && own.section.has(key)) {
            let place = own.section.place_of(key);
            own.problems
                .add(format!("{place}: a member has its own {key}, and {flag} is given: give one of them"));
        }
        let base = own.take::<PathBuf>("base").and_then(|path| own.place("base of a member", &path, folder));
        let member = Member {
            base: base.unwrap_or(drawn.base),
            learning_rate: own.value("learning_rate", None, drawn.learning_rate, POSITIVE),
            dropout: own.value("dropout", None, drawn.dropout, BELOW_ONE),
            epochs: own.value("epochs", None, drawn.epochs, AT_LEAST_ONE),
            seed: own.value("seed", None, drawn.seed, any()),
        };
        file.problems = own.finish();
        member
    }
}

/// When nothing is said, learning rates are these shares of what is proposed for the base and the number of steps; WARM's own, and
/// its dropouts, are of this kind.
const SHARES: [f64; 3] = [0.5, 1.0, 2.0];
const DROPOUTS: [f64; 3] = [0.0, 0.05, 0.1];

/// What a value must be.
#[derive(Clone, Copy)]
struct Limit<T> {
    holds: fn(&T) -> bool,
    words: &'static str,
}

fn any<T>() -> Limit<T> {
    Limit { holds: |_| true, words: "" }
}

const AT_LEAST_ONE: Limit<usize> = Limit { holds: |number| *number >= 1, words: "at least 1" };
const A_FEW: Limit<usize> =
    Limit { holds: |number| (1..=MAX_MEMBERS).contains(number), words: "from 1 to 64" };
const SHARE: Limit<f64> = Limit { holds: |share| (0.0..=1.0).contains(share), words: "from 0 to 1" };
const BELOW_ONE: Limit<f64> =
    Limit { holds: |number| (0.0..1.0).contains(number), words: "at least 0 and below 1" };
const POSITIVE: Limit<f64> = Limit { holds: |number| *number > 0.0 && number.is_finite(), words: "above 0" };
const NOT_NEGATIVE: Limit<f64> =
    Limit { holds: |number| *number >= 0.0 && number.is_finite(), words: "at least 0" };
const BETAS: Limit<[f64; 2]> = Limit {
    holds: |betas| betas.iter().all(|beta| (0.0..1.0).contains(beta)),
    words: "two numbers, at least 0 and below 1",
};

/// A table of the file, and all that is wrong so far.
struct Keys<'i> {
    section: Section<'i>,
    problems: Problems,
}

impl<'i> Keys<'i> {
    fn take<T: Deserialize<'i>>(&mut self, key: &str) -> Option<T> {
        self.section.take(key, &mut self.problems)
    }

    /// What the flag says, or else the file; none where it says what cannot be.
    fn optional<T>(&mut self, key: &str, flag: Option<T>, limit: Limit<T>) -> Option<T>
    where
        T: Deserialize<'i> + std::fmt::Debug,
    {
        let place = match flag {
            Some(_) => format!("--{}", key.replace('_', "-")),
            None => format!("{}: {key}", self.section.place_of(key)),
        };
        // what a flag overrides must be right all the same
        let in_file = self.take(key);
        let value = flag.or(in_file)?;
        if !(limit.holds)(&value) {
            self.problems.add(format!("{place} must be {}, not {value:?}", limit.words));
            return None;
        }
        Some(value)
    }

    /// The same with a default.
    fn value<T>(&mut self, key: &str, flag: Option<T>, default: T, limit: Limit<T>) -> T
    where
        T: Deserialize<'i> + std::fmt::Debug,
    {
        self.optional(key, flag, limit).unwrap_or(default)
    }

    fn choice(&mut self, key: &str, flag: &Option<Vec<f64>>, default: &[f64], limit: Limit<f64>) -> Choice {
        let place = match flag {
            Some(_) => format!("--{}", key.replace('_', "-")),
            None => format!("{}: {key}", self.section.place_of(key)),
        };
        let in_file = self.take::<Choice>(key);
        let choice = flag.clone().map(Choice::OneOf).or(in_file).unwrap_or(Choice::OneOf(default.to_vec()));
        let values = choice.values();
        if let Some(wrong) = values.iter().find(|value| !(limit.holds)(value)) {
            self.problems.add(format!("{place} must be {}, not {wrong:?}", limit.words));
        }
        if values.is_empty() {
            self.problems.add(format!("{place}: the list is empty"));
            return Choice::OneOf(default.to_vec());
        }
        if let Choice::Between(Range { min, max }) = &choice
            && min >= max
        {
            self.problems.add(format!("{place}: min {min:?} is not below max {max:?}"));
        }
        choice
    }

    /// A path that must be given. The file's are relative to its folder.
    fn path(&mut self, key: &str, flag: &Option<PathBuf>, folder: &Path) -> Option<PathBuf> {
        let in_file = self.take::<PathBuf>(key).map(|path| folder.join(path));
        let path = flag.clone().or(in_file);
        if path.is_none() {
            self.problems.add(format!("{key} is missing: name it in the file or with --{key}"));
        }
        path
    }

    /// The same for a model: a directory, or one of the hub.
    fn model(&mut self, key: &str, flag: &Option<PathBuf>, folder: &Path) -> Option<PathBuf> {
        let in_file = self.take::<PathBuf>(key);
        match (flag, in_file) {
            (Some(flag), _) => self.place(key, flag, Path::new("")),
            (None, Some(path)) => self.place(key, &path, folder),
            (None, None) => {
                self.problems.add(format!("{key} is missing: name it in the file or with --{key}"));
                None
            }
        }
    }

    fn place(&mut self, key: &str, path: &Path, folder: &Path) -> Option<PathBuf> {
        hub::place(path, folder).map_err(|problem| self.problems.add(format!("{key}: {problem}"))).ok()
    }

    fn paths(&mut self, key: &str, flag: &Option<Vec<PathBuf>>, folder: &Path) -> Vec<PathBuf> {
        let in_file = self.take::<Paths>(key).map(Vec::from);
        let in_file = in_file.map(|paths| paths.into_iter().map(|path| folder.join(path)).collect());
        flag.clone().or(in_file).unwrap_or_default()
    }

    fn probe(&mut self) -> ProbeConfig {
        let section = self.section.section("probe", &mut self.problems);
        let mut probe = Keys { section, problems: std::mem::take(&mut self.problems) };
        let config = ProbeConfig {
            enabled: probe.value("enabled", None, true, any()),
            l2: probe.optional("l2", None, POSITIVE),
        };
        self.problems = probe.finish();
        config
    }

    /// Names the keys that nobody took.
    fn finish(mut self) -> Problems {
        self.section.finish(&mut self.problems);
        self.problems
    }
}
