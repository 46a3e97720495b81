//! The folder of a family, and what is written down in it.
//!
//! ```text
//! OUTPUT/
//!   train.json                    the family's record: settings, data, members and their results
//!   probe.json                    the shared head
//!   start/                        the base with the shared head: the model before fine-tuning, a Hugging Face directory
//!   member-0/ …                   one each, and its own train.json
//!   logs/member-0.jsonl …         a line for each step and each validation
//!   train.svg                     loss, accuracy and margin of all members
//!   state/member-0.safetensors    of a member that is not finished; removed when it is
//!   failed/member-0-step-7.jsonl  the pairs of a step that broke, for study
//! ```
//!
//! What is there when a run starts is gone on from: a member that is finished is skipped, one that has a state goes on
//! from it. Both belong to the settings and the data that they were made with; when those have changed, the run is
//! refused with the name of what changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::checkpoint::hex;
use crate::checkpoint::write::PARTIAL;
use crate::checkpoint::write::replace_file;
use crate::offline::train::config::Config;
use crate::offline::train::config::Member;
use crate::offline::train::data::DataRecord;
use crate::offline::train::metrics::Metrics;
use crate::offline::train::probe::Probe;
use crate::offline::train::state;
use crate::offline::train::state::read_if_there;

/// The record's name, of the family as of a member.
pub const RECORD: &str = "train.json";
/// The folder of the model before fine-tuning, beside the family's record.
pub const START: &str = "start";
const PROBE: &str = "probe.json";

/// `OUTPUT/train.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyRecord {
    /// The version that began the family.
    pub rewarm: String,
    /// What all members share.
    pub settings: Value,
    /// Every line's fate.
    pub data: DataRecord,
    /// Digest of each starting checkpoint: weights, configuration, tokenizer.
    pub bases: BTreeMap<PathBuf, String>,
    /// How well the shared head alone does on the training pairs.
    pub probe: Option<ProbeRecord>,
    /// In the order of their folders.
    pub members: Vec<Member>,
    /// Of the finished ones among them, by their number.
    pub results: BTreeMap<usize, MemberResult>,
    /// What is odd about them, told when all are finished.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `OUTPUT/member-K/train.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The version that finished the member.
    pub rewarm: String,
    /// Its number in the family.
    pub member: usize,
    /// What all members share.
    pub settings: Value,
    /// In what this one differs.
    pub own: Member,
    /// Digest of its starting checkpoint.
    pub base_digest: String,
    /// The shared head alone.
    pub probe: Option<ProbeRecord>,
    /// How it went.
    pub result: MemberResult,
    /// Every line's fate.
    pub data: DataRecord,
}

/// The linear probe without its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// Bradley–Terry loss on the training pairs, in nats.
    pub loss: f64,
    /// On the training pairs, as they are labelled.
    pub accuracy: f64,
    /// The penalty, given or chosen.
    pub l2: f64,
}

/// How a member's training went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberResult {
    /// Updates that were done.
    pub steps: usize,
    /// And those that there would have been, had it not stopped early.
    pub planned_steps: usize,
    /// After which of them the weights were taken; 0: before the first.
    pub kept_step: usize,
    /// Pairs of all steps that were done.
    pub pairs: usize,
    /// Both sides of those.
    pub tokens: usize,
    /// Spent in steps; validation is not in it.
    pub seconds: f64,
    /// Over the last epoch's steps, with dropout, while the model changed.
    pub training: Metrics,
    /// Before the first step; none without validation pairs.
    pub validation_at_start: Option<Metrics>,
    /// After the kept step.
    pub validation: Option<Metrics>,
    /// After the last step that was done.
    pub validation_at_end: Option<Metrics>,
}

impl MemberResult {
    /// What to warn of: that fine-tuning brought nothing, or undid in the end what it had brought.
    pub(super) fn doubt(&self, member: usize, own: &Member) -> Option<String> {
        let (start, end) = (self.validation_at_start?.loss, self.validation_at_end?.loss);
        let rate = own.learning_rate;
        if self.kept_step == 0 {
            return Some(format!(
                "member-{member} is the model before fine-tuning: after no step its validation loss was below the {start:.4} of \
                 the shared head; try a lower learning rate (it had {rate:.1e}), or more pairs"
            ));
        }
        (end > start).then(|| {
            format!(
                "member-{member}: validation loss rose from {start:.4} before fine-tuning to {end:.4} after step {}, step {} was \
                 kept; try a lower learning rate (it had {rate:.1e}), fewer epochs, or more pairs",
                self.steps, self.kept_step
            )
        })
    }
}

/// The folder, held by one run at a time.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be. Fails if it holds something else than a family, or if another run is at work in it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let make = || -> io::Result<bool> {
            std::fs::create_dir_all(path)?;
            Ok(std::fs::read_dir(path)?.next().is_none())
        };
        let is_empty = make().with_context(|| format!("make {}", path.display()))?;
        ensure!(
            is_empty || path.join(RECORD).is_file(),
            "{} holds something that is not a family of rewarm train: remove it, or write elsewhere",
            path.display()
        );
        let lock = File::open(path).with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another rewarm train is at work in {}", path.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        folder.clean();
        Ok(folder)
    }

    /// Removes what a run that was killed has left half written. Nobody else writes here.
    fn clean(&self) {
        for folder in [self.path.clone(), self.path.join("state")] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                    // what cannot be removed only takes room
                    let path = entry.path();
                    let _ = if path.is_dir() {
                        std::fs::remove_dir_all(path)
                    } else {
                        std::fs::remove_file(path)
                    };
                }
            }
        }
    }

    pub(super) fn member(&self, member: usize) -> PathBuf {
        self.path.join(format!("member-{member}"))
    }

    pub(super) fn start(&self) -> PathBuf {
        self.path.join(START)
    }

    pub(super) fn log(&self, member: usize) -> PathBuf {
        self.path.join(format!("logs/member-{member}.jsonl"))
    }

    pub(super) fn state(&self, member: usize) -> PathBuf {
        self.path.join(format!("state/member-{member}.safetensors"))
    }

    pub(super) fn failed(&self, member: usize, step: usize) -> PathBuf {
        self.path.join(format!("failed/member-{member}-step-{step}.jsonl"))
    }

    pub(super) fn plot(&self) -> PathBuf {
        self.path.join("train.svg")
    }

    /// Makes the folder that a file of ours lies in.
    pub(super) fn make_room(file: &Path) -> anyhow::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
    }

    /// Removes a member's state, and the folder of states with the last of them.
    pub(super) fn remove_state(&self, member: usize) -> anyhow::Result<()> {
        let path = self.state(member);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
        // fails while another member's is in it
        let _ = std::fs::remove_dir(self.path.join("state"));
        Ok(())
    }

    /// The family's record: as it is there, if it is of the same settings and data, else a new one.
    pub(super) fn begin(
        &self,
        config: &Config,
        data: &DataRecord,
        bases: BTreeMap<PathBuf, String>,
    ) -> anyhow::Result<FamilyRecord> {
        let mut record = FamilyRecord {
            rewarm: env!("CARGO_PKG_VERSION").to_owned(),
            settings: config.settings(),
            data: data.clone(),
            bases,
            probe: None,
            members: config.members.clone(),
            results: BTreeMap::new(),
            warnings: Vec::new(),
        };
        if let Some(earlier) = read_json::<FamilyRecord>(&self.path.join(RECORD))? {
            let changed = changes(&earlier, &record);
            ensure!(
                changed.is_empty(),
                "{} was begun with other settings or data, and goes on only with the same:\n  {}\nchange them back, or \
                 write to another output",
                self.path.display(),
                changed.join("\n  ")
            );
            (record.rewarm, record.probe) = (earlier.rewarm, earlier.probe);
        }
        for (index, own) in record.members.iter().enumerate() {
            let (member, state) = (self.member(index), self.state(index));
            if let Some(finished) = read_json::<MemberRecord>(&member.join(RECORD))? {
                check_member(index, own, &finished.own, &member)?;
                record.results.insert(index, finished.result);
            } else if member.exists() {
                bail!("{} is in the way: it is no member of this family; remove it", member.display());
            } else if let Some((position, _)) = state::read(&state)? {
                check_member(index, own, &position.settings, &state)?;
            }
        }
        self.write(&record)?;
        Ok(record)
    }

    /// Writes the family's record.
    pub(super) fn write(&self, record: &FamilyRecord) -> anyhow::Result<()> {
        write_json(&self.path.join(RECORD), record)
    }

    /// The shared head, when it was learnt already.
    pub(super) fn read_probe(&self) -> anyhow::Result<Option<Probe>> {
        read_json(&self.path.join(PROBE))
    }

    pub(super) fn write_probe(&self, probe: &Probe) -> anyhow::Result<()> {
        write_json(&self.path.join(PROBE), probe)
    }
}

/// Fails by name if a member is not what it was when `made` was made with `then`.
fn check_member(member: usize, now: &Member, then: &Member, made: &Path) -> anyhow::Result<()> {
    let changed = differences("", &serde_json::json!(then), &serde_json::json!(now));
    ensure!(
        changed.is_empty(),
        "member-{member} has other settings than when {} was made:\n  {}\nchange them back, or remove it to begin this \
         member again",
        made.display(),
        changed.join("\n  ")
    );
    Ok(())
}

/// What of the settings and data that all members share is not as it was.
fn changes(then: &FamilyRecord, now: &FamilyRecord) -> Vec<String> {
    let mut changed = differences("", &then.settings, &now.settings);
    changed.extend(now.data.difference(&then.data).map(|difference| format!("data: {difference}")));
    for (base, digest) in &now.bases {
        if then.bases.get(base).is_some_and(|earlier| earlier != digest) {
            changed.push(format!("base: {} has another content", base.display()));
        }
    }
    changed
}

/// "recipe.epochs was 1, is 2" for each value that differs.
fn differences(name: &str, then: &Value, now: &Value) -> Vec<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let names: Vec<&String> =
                then.keys().chain(now.keys().filter(|key| !then.contains_key(*key))).collect();
            let absent = Value::Null;
            let of = |object: &serde_json::Map<String, Value>, key: &str| {
                object.get(key).unwrap_or(&absent).clone()
            };
            // the recipe's keys stand at the top of the file
            let name_of = |key: &str| match name {
                "" | "recipe" => key.to_owned(),
                _ => format!("{name}.{key}"),
            };
            names
                .into_iter()
                .flat_map(|key| differences(&name_of(key), &of(then, key), &of(now, key)))
                .collect()
        }
        _ if then == now => Vec::new(),
        // a number of 17 digits may be read back as its neighbour
        (Value::Number(then), Value::Number(now))
            if matches!((then.as_f64(), now.as_f64()), (Some(a), Some(b)) if (a - b).abs() <= 1e-14 * a.abs())
                && (then.is_f64() || now.is_f64()) =>
        {
            Vec::new()
        }
        _ => vec![format!("{name} was {then}, is {now}")],
    }
}

/// A digest of what a base gives to its members: weights, configuration, and how it makes tokens.
pub(super) fn digest(base: &Path, tokenizer: [u8; 32]) -> anyhow::Result<String> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries =
            std::fs::read_dir(base)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let counts = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "safetensors") || path.ends_with("config.json")
        };
        Ok(entries.into_iter().filter(counts).collect())
    };
    let mut files = list().with_context(|| format!("read {}", base.display()))?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&tokenizer);
    for path in files {
        let mut read = || -> io::Result<()> {
            let file = File::open(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {}\n", file.metadata()?.len()).as_bytes());
            hasher.update_reader(file)?;
            Ok(())
        };
        read().with_context(|| format!("read {}", path.display()))?;
    }
    Ok(hex(hasher.finalize().as_bytes()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let Some(bytes) = read_if_there(path)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).with_context(|| format!("read {}: not as rewarm train writes it", path.display()))
}

fn write_json(path: &Path, document: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(document)? + "\n";
    Ok(replace_file(path, text.as_bytes())?)
}
