//! Which pairs are learnt from and which ones judge, which labels are turned round, and their tokens.
//!
//! ```text
//! files → Split: training and validation, flips drawn → tokenize → Data: what fits
//!                                                         └→ DataRecord: every line's fate
//! ```
//!
//! The split and the flips are drawn before anything is tokenized: they depend on the files and the seeds, not on the
//! model. Validation pairs keep their labels.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use rayon::iter::IntoParallelRefIterator;
use rayon::iter::ParallelIterator;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

use crate::checkpoint::hex;
use crate::learn::trainable::TokenPair;
use crate::model::fill;
use crate::offline::random;
use crate::offline::train::config::DataConfig;
use crate::offline::train::config::Member;
use crate::offline::train::config::Recipe;
use crate::offline::train::order;
use crate::offline::train::order::Batch;
use crate::offline::train::purpose::Purpose;
use crate::ops::batch::Sequence;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::TextError;
use crate::text::dataset::Dataset;
use crate::text::dataset::PreferencePair;

/// Validation and the probe compute so many tokens between two looks at the stop switch.
const CHUNK_TOKENS: usize = 8192;

/// The pairs of all files, sorted by what they are for.
#[derive(Debug)]
pub(super) struct Split {
    files: Vec<Dataset>,
    training: Vec<Chosen>,
    validation: Vec<Chosen>,
}

/// One pair of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    file: usize,
    /// Among the file's pairs.
    index: usize,
    is_flipped: bool,
}

/// What a run learns from, ready for a model.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) training: Vec<Pair>,
    pub(super) validation: Vec<Pair>,
    pub(super) record: DataRecord,
}

impl Data {
    /// All steps of a member.
    pub(super) fn batches(&self, recipe: &Recipe, own: &Member) -> Vec<Batch> {
        let lengths: Vec<usize> = self.training.iter().map(|pair| pair.tokens.num_tokens()).collect();
        order::batches(&lengths, recipe, own.epochs, own.seed)
    }
}

/// Pairs in their order, a number of tokens at a time.
pub(super) fn chunks(pairs: &[Pair]) -> impl Iterator<Item = &[Pair]> {
    let lengths = pairs.iter().map(|pair| pair.tokens.num_tokens());
    fill::runs(lengths, CHUNK_TOKENS).into_iter().map(|run| &pairs[run])
}

/// All chosen ones, then all rejected ones.
pub(super) fn both_sides(pairs: &[Pair]) -> Vec<&Sequence> {
    let chosen = pairs.iter().map(|pair| &pair.tokens.chosen);
    chosen.chain(pairs.iter().map(|pair| &pair.tokens.rejected)).collect()
}

/// A pair as it is learnt: when flipped, its given labels are already turned round.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) tokens: TokenPair,
    pub(super) text: PreferencePair,
    pub(super) path: PathBuf,
    pub(super) is_flipped: bool,
}

/// What became of every line: kept with the family and with each member, under `data` in `train.json`.
///
/// With `flipped_lines` memorisation can be measured: the label that was learnt there is the wrong one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// One for each file of pairs to train on.
    pub training: Vec<TrainingFile>,
    /// One for each file that has pairs to validate on; they may be the same.
    pub validation: Vec<ValidationFile>,
    /// The share of training pairs that were turned round.
    pub corrupt: f64,
    /// Decided which.
    pub corrupt_seed: u64,
}

/// What became of a file's lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingFile {
    /// As it was given.
    pub path: PathBuf,
    /// blake3 of its content, unpacked, in hexadecimal.
    pub digest: String,
    /// Left out: both responses are the same, as texts or after truncation.
    pub equal_lines: Vec<usize>,
    /// Left out: a side is longer than the model takes.
    pub too_long_lines: Vec<usize>,
    /// Pairs that lost tokens to fit.
    pub truncated_pairs: usize,
    /// Trained on, from 1.
    pub training_lines: Vec<usize>,
    /// Those among them that were learnt with chosen and rejected turned round.
    pub flipped_lines: Vec<usize>,
}

/// Which of a file's lines judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationFile {
    /// As it was given.
    pub path: PathBuf,
    /// blake3 of its content, unpacked, in hexadecimal.
    pub digest: String,
    /// Left out: both responses are the same, as texts or after truncation.
    pub equal_lines: Vec<usize>,
    /// Left out: a side is longer than the model takes.
    pub too_long_lines: Vec<usize>,
    /// From 1.
    pub validation_lines: Vec<usize>,
}

impl Split {
    /// Reads all files, sets validation pairs aside, and draws the flips.
    pub(super) fn read(config: &DataConfig, seed: u64) -> anyhow::Result<Self> {
        let paths = config.pairs.iter().chain(&config.validation);
        let files: Vec<Dataset> = paths.map(|path| Dataset::read(path)).collect::<Result<_, _>>()?;
        for (later, file) in files.iter().enumerate() {
            let same = files[..later].iter().find(|earlier| earlier.digest == file.digest);
            if let Some(same) = same {
                let (first, second) = (same.path.display(), file.path.display());
                bail!("{first} and {second} hold the same pairs: name each file once");
            }
        }
        let all = |files: std::ops::Range<usize>, of: &[Dataset]| -> Vec<Chosen> {
            let pairs = |file: usize| {
                (0..of[file].pairs.len()).map(move |index| Chosen { file, index, is_flipped: false })
            };
            files.flat_map(pairs).collect()
        };
        let mut training = all(0..config.pairs.len(), &files);
        let mut validation = all(config.pairs.len()..files.len(), &files);
        if config.validation.is_empty() && config.validation_fraction > 0.0 {
            (training, validation) = set_aside(training, &files, config.validation_fraction, seed)?;
        }
        for index in drawn(training.len(), config.corrupt, config.corrupt_seed) {
            training[index].is_flipped = true;
        }
        Ok(Self { files, training, validation })
    }

    /// Tokenizes everything and leaves out what does not fit.
    pub(super) fn tokenize(self, tokenizer: &SampleTokenizer, config: &DataConfig) -> anyhow::Result<Data> {
        let files = &self.files;
        let fates = |chosen: &[Chosen]| -> anyhow::Result<Vec<Fate>> {
            chosen
                .par_iter()
                .map(|chosen| {
                    let file = &files[chosen.file];
                    let pair = &file.pairs[chosen.index];
                    let place = || format!("{}:{}", file.path.display(), pair.line);
                    tokenize(pair, chosen.is_flipped, tokenizer, config).with_context(place)
                })
                .collect()
        };
        let (trained, validated) = (fates(&self.training)?, fates(&self.validation)?);
        let mut training_files: Vec<TrainingFile> =
            files[..config.pairs.len()].iter().map(TrainingFile::new).collect();
        let mut validation_files: Vec<ValidationFile> = files.iter().map(ValidationFile::new).collect();
        for (record, file) in validation_files.iter_mut().zip(files).skip(config.pairs.len()) {
            record.equal_lines.clone_from(&file.equal_lines);
        }
        let pair = |chosen: &Chosen, tokens| {
            let Dataset { path, pairs, .. } = &files[chosen.file];
            let mut text = pairs[chosen.index].clone();
            if chosen.is_flipped {
                std::mem::swap(&mut text.chosen, &mut text.rejected);
            }
            Pair { tokens, text, path: path.clone(), is_flipped: chosen.is_flipped }
        };
        let (mut training, mut validation) = (Vec::new(), Vec::new());
        for (chosen, fate) in self.training.iter().zip(trained) {
            let line = files[chosen.file].pairs[chosen.index].line;
            let record = &mut training_files[chosen.file];
            match fate {
                Fate::TooLong => record.too_long_lines.push(line),
                Fate::Equal => record.equal_lines.push(line),
                Fate::Fits { tokens, is_truncated } => {
                    record.truncated_pairs += usize::from(is_truncated);
                    record.training_lines.push(line);
                    if chosen.is_flipped {
                        record.flipped_lines.push(line);
                    }
                    training.push(pair(chosen, tokens));
                }
            }
        }
        for (chosen, fate) in self.validation.iter().zip(validated) {
            let line = files[chosen.file].pairs[chosen.index].line;
            let record = &mut validation_files[chosen.file];
            match fate {
                Fate::TooLong => record.too_long_lines.push(line),
                Fate::Equal => record.equal_lines.push(line),
                Fate::Fits { tokens, .. } => {
                    record.validation_lines.push(line);
                    validation.push(pair(chosen, tokens));
                }
            }
        }
        let equal_lines = training_files.iter_mut().map(|file| &mut file.equal_lines);
        equal_lines.chain(validation_files.iter_mut().map(|file| &mut file.equal_lines)).for_each(|lines| {
            lines.sort_unstable();
        });
        // a file to train on is listed here only where some of its lines were set aside
        validation_files.retain(|file| {
            let lines = [&file.validation_lines, &file.too_long_lines, &file.equal_lines];
            lines.iter().any(|lines| !lines.is_empty())
        });
        ensure!(
            !training.is_empty(),
            "none of the {} training pairs is left: all are longer than the {} tokens that the model takes, or equal \
             once they are cut: raise max_tokens, or set truncation",
            self.training.len(),
            tokenizer.max_tokens()
        );
        let record = DataRecord {
            training: training_files,
            validation: validation_files,
            corrupt: config.corrupt,
            corrupt_seed: config.corrupt_seed,
        };
        Ok(Data { training, validation, record })
    }
}

/// Training and validation pairs. No prompt is in both, unless there is only one.
fn set_aside(
    mut pairs: Vec<Chosen>,
    files: &[Dataset],
    fraction: f64,
    seed: u64,
) -> anyhow::Result<(Vec<Chosen>, Vec<Chosen>)> {
    let wanted = ((fraction * pairs.len() as f64).round() as usize).clamp(1, pairs.len().max(2) - 1);
    let mut random = Purpose::Split.stream(seed);
    let mut by_prompt: BTreeMap<String, Vec<Chosen>> = BTreeMap::new();
    for chosen in &pairs {
        by_prompt.entry(prompt(&files[chosen.file].pairs[chosen.index])).or_default().push(*chosen);
    }
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    if by_prompt.len() == 1 {
        random::shuffle(&mut pairs, &mut random);
        training = pairs.split_off(wanted);
        validation = pairs;
    } else {
        let mut groups: Vec<Vec<Chosen>> = by_prompt.into_values().collect();
        random::shuffle(&mut groups, &mut random);
        for group in groups {
            let has_room = validation.len() + group.len() <= wanted;
            if has_room { &mut validation } else { &mut training }.extend(group);
        }
    }
    ensure!(
        !training.is_empty() && !validation.is_empty(),
        "no part of the training pairs can be set aside for validation ({wanted} of {} were asked for, and no prompt \
         shall be on both sides): name files for validation, or set validation_fraction to 0",
        training.len() + validation.len()
    );
    training.sort_unstable();
    validation.sort_unstable();
    Ok((training, validation))
}

/// What both responses answer.
fn prompt(pair: &PreferencePair) -> String {
    match (&pair.chosen, &pair.rejected) {
        (Input::Text { prompt, .. }, _) => prompt.clone(),
        (Input::Conversation(chosen), Input::Conversation(rejected)) => {
            let (chosen, rejected) = (&chosen.messages, &rejected.messages);
            let common = chosen.iter().zip(rejected).take_while(|(one, other)| one == other).count();
            json!(chosen[..common]).to_string()
        }
        (chosen, rejected) => unreachable!("a data set has no such pair: {chosen:?}, {rejected:?}"),
    }
}

/// Which of `count` are turned round: exactly the share, rounded.
fn drawn(count: usize, share: f64, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    random::shuffle(&mut order, &mut Purpose::Flips.stream(seed));
    order.truncate((share * count as f64).round() as usize);
    order
}

/// What becomes of a pair.
enum Fate {
    Fits { tokens: TokenPair, is_truncated: bool },
    TooLong,
    Equal,
}

fn tokenize(
    pair: &PreferencePair,
    is_flipped: bool,
    tokenizer: &SampleTokenizer,
    config: &DataConfig,
) -> anyhow::Result<Fate> {
    let mut is_truncated = false;
    let mut side = |name: &str, input: &Input| match tokenizer.tokenize(input, config.truncation) {
        Ok(sample) => {
            is_truncated |= sample.truncated_tokens > 0;
            Ok(Some(Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids }))
        }
        Err(TextError::TooLong { .. } | TextError::ScaffoldTooLong { .. }) => Ok(None),
        Err(error) => Err(error).context(name.to_owned()),
    };
    let (chosen, rejected) = (side("chosen", &pair.chosen)?, side("rejected", &pair.rejected)?);
    let (Some(mut chosen), Some(mut rejected)) = (chosen, rejected) else { return Ok(Fate::TooLong) };
    if chosen == rejected {
        return Ok(Fate::Equal);
    }
    if is_flipped {
        std::mem::swap(&mut chosen, &mut rejected);
    }
    Ok(Fate::Fits { tokens: TokenPair { chosen, rejected }, is_truncated })
}

impl TrainingFile {
    fn new(file: &Dataset) -> Self {
        Self {
            path: file.path.clone(),
            digest: hex(&file.digest),
            equal_lines: file.equal_lines.clone(),
            too_long_lines: Vec::new(),
            truncated_pairs: 0,
            training_lines: Vec::new(),
            flipped_lines: Vec::new(),
        }
    }
}

impl ValidationFile {
    fn new(file: &Dataset) -> Self {
        Self {
            path: file.path.clone(),
            digest: hex(&file.digest),
            equal_lines: Vec::new(),
            too_long_lines: Vec::new(),
            validation_lines: Vec::new(),
        }
    }
}

impl DataRecord {
    /// In which of its files, by name, this differs from `earlier`.
    pub(super) fn difference(&self, earlier: &Self) -> Option<String> {
        if self == earlier {
            return None;
        }
        let digests = |record: &Self| -> Vec<(PathBuf, String)> {
            let training = record.training.iter().map(|file| (file.path.clone(), file.digest.clone()));
            let validation = record.validation.iter().map(|file| (file.path.clone(), file.digest.clone()));
            training.chain(validation).collect()
        };
        let (now, then) = (digests(self), digests(earlier));
        let paths = |files: &[(PathBuf, String)]| -> Vec<PathBuf> {
            files.iter().map(|(path, _)| path.clone()).collect()
        };
        Some(if paths(&now) != paths(&then) {
            let list = |paths: Vec<PathBuf>| {
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
            };
            format!("the files were {}, and are {}", list(paths(&then)), list(paths(&now)))
        } else {
            match now.iter().zip(&then).find(|(now, then)| now.1 != then.1) {
                Some(((path, _), _)) => format!("{} has another content", path.display()),
                None => "other lines of the same files were used".to_owned(),
            }
        })
    }
}

/// Pairs as JSON lines that [`Dataset`] reads again, with where they come from.
pub(super) fn write_lines(pairs: &[&Pair], path: &Path) -> anyhow::Result<()> {
    let mut lines = String::new();
    for pair in pairs {
        let mut line = match (&pair.text.chosen, &pair.text.rejected) {
            (Input::Text { prompt, response: chosen }, Input::Text { response: rejected, .. }) => {
                json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            }
            (Input::Conversation(chosen), Input::Conversation(rejected)) => {
                let mut line = json!({"chosen": chosen.messages, "rejected": rejected.messages});
                if let Some(tools) = &chosen.tools {
                    line["tools"] = json!(tools);
                }
                if !chosen.arguments.is_empty() {
                    line["chat_template_kwargs"] = json!(chosen.arguments);
                }
                line
            }
            (chosen, rejected) => unreachable!("a data set has no such pair: {chosen:?}, {rejected:?}"),
        };
        line["path"] = json!(pair.path);
        line["line"] = json!(pair.text.line);
        line["flipped"] = json!(pair.is_flipped);
        lines += &format!("{line}\n");
    }
    std::fs::write(path, lines).with_context(|| format!("write {}", path.display()))
}
