//! `rewarm train`: from preference pairs to a family of reward models that can be averaged.
//!
//! ```text
//! pairs ─▶ data ─┬─▶ probe ──▶ one shared head ──┐
//!                ├─▶ order ──▶ batches ──────────┼─▶ loop, once a member ─▶ member-K, log, state
//!   base ────────┴───────────────────────────────┘                └─▶ record, plot
//! ```
//!
//! This file is the loop from top to bottom: the data is read and split, a linear probe learns the head that all members
//! start from, and each member is trained from there with its own learning rate, dropout and order of the pairs
//! (WARM, arXiv 2401.12187). What a step computes is [`Trainable`]'s; where things lie is `family`'s.
//!
//! # The same, whatever happens
//!
//! A run's result depends on its settings, data and base alone: not on the number of threads, and not on how often it
//! was stopped or killed. So every order and every seed is a function of the settings and the step, nothing carries over
//! from one step to the next but weights and optimiser, and those are written down together with the position
//! (`state`). A run that finds a folder with other settings refuses to go on.

pub mod config;
pub mod data;
pub mod family;
pub mod log;
pub mod metrics;
mod order;
mod plot;
pub mod probe;
mod purpose;
mod state;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use crate::learn::adamw::AdamW;
use crate::learn::adamw::AdamWOptions;
use crate::learn::adamw::AdamWState;
use crate::learn::adamw::clip_gradients;
use crate::learn::trainable::LoadOptions;
use crate::learn::trainable::Objective;
use crate::learn::trainable::StepGradients;
use crate::learn::trainable::TokenPair;
use crate::learn::trainable::Trainable;
use crate::model::fill;
use crate::model::memory;
use crate::offline::Stop;
use crate::offline::train::config::Config;
use crate::offline::train::config::Member;
use crate::offline::train::data::Data;
use crate::offline::train::data::DataRecord;
use crate::offline::train::data::Pair;
use crate::offline::train::data::Split;
use crate::offline::train::family::FamilyRecord;
use crate::offline::train::family::Folder;
use crate::offline::train::family::MemberRecord;
use crate::offline::train::family::MemberResult;
use crate::offline::train::family::ProbeRecord;
use crate::offline::train::log::Log;
use crate::offline::train::log::LogLine;
use crate::offline::train::log::TrainingLine;
use crate::offline::train::log::ValidationLine;
use crate::offline::train::metrics::Metrics;
use crate::offline::train::order::Batch;
use crate::offline::train::probe::Differences;
use crate::offline::train::probe::Probe;
use crate::offline::train::purpose::step_seed;
use crate::offline::train::state::Position;
use crate::ops::batch::Sequence;

/// Validation and the probe compute so many tokens between two looks at the stop switch.
const CHUNK_TOKENS: usize = 8192;
/// What tensors of a state are called, before their own names.
const WEIGHTS: &str = "weights.";
const OPTIMIZER: &str = "optimizer.";
/// Validations of a member, where the settings do not say.
const VALIDATIONS: usize = 10;

/// Something that whoever watches may want to show.
#[derive(Debug)]
pub enum Event<'a> {
    /// What is learnt from.
    Data(&'a DataRecord),
    /// So many of all pairs have gone through the frozen base.
    ProbeProgress {
        /// Pairs that have.
        done: usize,
        /// Pairs of the training in all.
        pairs: usize,
    },
    /// The shared head is there.
    Probed(&'a ProbeRecord),
    /// A member begins, or goes on.
    MemberBegins {
        /// Its number.
        member: usize,
        /// Its settings.
        own: &'a Member,
        /// Steps that were done before.
        done: usize,
        /// Steps of the member in all.
        steps: usize,
        /// Tokens of all steps, and of those that were done before.
        tokens: (usize, usize),
    },
    /// A step was done.
    Stepped {
        /// The member's number.
        member: usize,
        /// What happened.
        line: &'a TrainingLine,
    },
    /// So many of all validation pairs were judged.
    ValidationProgress {
        /// The member's number.
        member: usize,
        /// Pairs that were.
        done: usize,
        /// Pairs of the validation in all.
        pairs: usize,
    },
    /// A validation is done.
    Validated {
        /// The member's number.
        member: usize,
        /// What it found.
        line: &'a ValidationLine,
    },
    /// A member is written; or it was, by an earlier run.
    Finished {
        /// Its number.
        member: usize,
        /// Where it is.
        path: &'a Path,
        /// Whether it was there before.
        is_old: bool,
    },
}

/// Who is told how far a run is.
pub type Watch<'a> = dyn FnMut(&Event<'_>) + 'a;

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All members are written.
    Finished(Box<FamilyRecord>),
    /// It was told to stop; the same command goes on.
    Stopped {
        /// What was under way.
        at: String,
    },
}

/// Checks the configuration against files and bases, and trains nothing.
pub fn check(config: &Config) -> anyhow::Result<DataRecord> {
    let split = Split::read(&config.data, config.seed)?;
    let (base, _) = open_bases(config)?;
    let data = split.tokenize(base.tokenizer(), &config.data)?;
    doubt_memory(config, &base, &data);
    Ok(data.record)
}

/// Trains a family, or goes on with one.
pub fn run(config: &Config, stop: &Stop, watch: &mut Watch<'_>) -> anyhow::Result<Outcome> {
    let split = Split::read(&config.data, config.seed)?;
    let (base, bases) = open_bases(config)?;
    let data = split.tokenize(base.tokenizer(), &config.data)?;
    watch(&Event::Data(&data.record));
    doubt_memory(config, &base, &data);
    let folder = Folder::open(&config.output)?; // not before: nothing is left behind by pairs that cannot be read
    let mut record = folder.begin(config, &data.record, bases)?;

    let mut probe = None;
    if config.probe.enabled && record.results.len() < config.members.len() {
        let Some(found) = shared_head(config, &folder, &base, &data, stop, watch)? else {
            return Ok(Outcome::Stopped { at: "the linear probe".to_owned() });
        };
        record.probe = Some(ProbeRecord { loss: found.loss, accuracy: found.accuracy, l2: found.l2 });
        folder.write(&record)?;
        probe = Some(found);
    }
    if let Some(probe) = &record.probe {
        watch(&Event::Probed(probe));
    }
    drop(base);

    for (index, own) in config.members.iter().enumerate() {
        let path = folder.member(index);
        let is_old = record.results.contains_key(&index);
        if !is_old {
            let head = probe.as_ref().map(|probe| probe.weight.as_slice());
            let run = MemberRun { config, own, index, data: &data, folder: &folder, family: &record, stop };
            match run.train(head, watch).with_context(|| format!("member-{index}"))? {
                Progress::Done(result) => record.results.insert(index, result),
                Progress::Stopped { step, steps } => {
                    return Ok(Outcome::Stopped {
                        at: format!("member-{index}, after step {step} of {steps}"),
                    });
                }
            };
            folder.write(&record)?;
        }
        folder.remove_state(index)?;
        watch(&Event::Finished { member: index, path: &path, is_old });
    }
    let logs = (0..config.members.len()).map(|index| log::read(&folder.log(index)));
    plot::draw(&folder.plot(), &logs.collect::<anyhow::Result<Vec<_>>>()?)?;
    Ok(Outcome::Finished(Box::new(record)))
}

/// The family's own base, and the digest of each. All must make the same tokens and have the same parameters: members
/// that do not could not be averaged.
fn open_bases(config: &Config) -> anyhow::Result<(Trainable, BTreeMap<PathBuf, String>)> {
    let shapes = |model: &Trainable| -> Vec<(String, Vec<usize>)> {
        let parameters = model.parameters().iter();
        parameters.map(|parameter| (parameter.name.clone(), parameter.var.dims().to_vec())).collect()
    };
    let base = load(config, &config.base, memory::left())?;
    let digest_of = |path: &Path, model: &Trainable| family::digest(path, model.tokenizer().digest());
    let mut digests = BTreeMap::from([(config.base.clone(), digest_of(&config.base, &base)?)]);
    for member in &config.members {
        if digests.contains_key(&member.base) {
            continue;
        }
        let other = load(config, &member.base, None)?;
        let (first, second) = (config.base.display(), member.base.display());
        ensure!(
            other.tokenizer().digest() == base.tokenizer().digest(),
            "{first} and {second} make different tokens of the same text: members of such bases cannot be averaged"
        );
        ensure!(
            shapes(&other) == shapes(&base),
            "{first} and {second} have different parameters: members of such bases cannot be averaged"
        );
        digests.insert(member.base.clone(), digest_of(&member.base, &other)?);
    }
    Ok((base, digests))
}

/// Warns where the largest steps may take more memory than there is.
fn doubt_memory(config: &Config, base: &Trainable, data: &Data) {
    let recipe = &config.recipe;
    let lengths: Vec<usize> = data.training.iter().map(|pair| pair.tokens.num_tokens()).collect();
    let steps = config
        .members
        .iter()
        .flat_map(|own| order::batches(&lengths, recipe, own.epochs, own.seed))
        .map(|batch| batch.tokens);
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let micro_batch = recipe.micro_batch_tokens.max(longest); // a pair is never cut
    if let Some(doubt) = base.memory_doubt(steps.max().unwrap_or(0), micro_batch, memory::left()) {
        tracing::warn!("{doubt}");
    }
}

/// `memory_left`: refuse what training cannot do with so many bytes.
fn load(config: &Config, base: &Path, memory_left: Option<u64>) -> anyhow::Result<Trainable> {
    let options = LoadOptions {
        frozen_embeddings: config.recipe.frozen_embeddings,
        frozen_layers: config.recipe.frozen_layers,
        train_head: true,
        seed: config.seed, // the family's: what a base lacks must be the same in all members
        max_tokens: config.data.max_tokens,
        memory_left,
    };
    Trainable::load(base, &options).with_context(|| format!("load {}", base.display()))
}

/// The head that was learnt before, or else learns it; none when told to stop.
fn shared_head(
    config: &Config,
    folder: &Folder,
    base: &Trainable,
    data: &Data,
    stop: &Stop,
    watch: &mut Watch<'_>,
) -> anyhow::Result<Option<Probe>> {
    if let Some(probe) = folder.read_probe()? {
        return Ok(Some(probe));
    }
    let pairs = data.training.len();
    let mut differences = Differences::new();
    let mut done = 0;
    for chunk in chunks(&data.training) {
        if stop.is_set() {
            return Ok(None);
        }
        let features = base.features(&both_sides(chunk)).context("the linear probe")?;
        let (chosen, rejected) = features.split_at(chunk.len());
        chosen.iter().zip(rejected).for_each(|(chosen, rejected)| differences.push(chosen, rejected));
        done += chunk.len();
        watch(&Event::ProbeProgress { done, pairs });
    }
    let probe = differences.fit(config.probe.l2)?;
    folder.write_probe(&probe)?;
    Ok(Some(probe))
}

/// Pairs in their order, a number of tokens at a time.
fn chunks(pairs: &[Pair]) -> impl Iterator<Item = &[Pair]> {
    let lengths = pairs.iter().map(|pair| pair.tokens.num_tokens());
    fill::runs(lengths, CHUNK_TOKENS).into_iter().map(|run| &pairs[run])
}

/// All chosen ones, then all rejected ones.
fn both_sides(pairs: &[Pair]) -> Vec<&Sequence> {
    let chosen = pairs.iter().map(|pair| &pair.tokens.chosen);
    chosen.chain(pairs.iter().map(|pair| &pair.tokens.rejected)).collect()
}

/// One member's training.
struct MemberRun<'a> {
    config: &'a Config,
    own: &'a Member,
    index: usize,
    data: &'a Data,
    folder: &'a Folder,
    family: &'a FamilyRecord,
    stop: &'a Stop,
}

enum Progress {
    Done(MemberResult),
    Stopped { step: usize, steps: usize },
}

impl MemberRun<'_> {
    /// From the start, or from where the last run stopped, to the written member.
    fn train(&self, head: Option<&[f32]>, watch: &mut Watch<'_>) -> anyhow::Result<Progress> {
        let (recipe, pace) = (&self.config.recipe, &self.config.pace);
        let mut model = load(self.config, &self.own.base, None)?;
        if let Some(head) = head {
            model.set_head(head)?;
        }
        let options = AdamWOptions {
            beta1: recipe.betas[0],
            beta2: recipe.betas[1],
            eps: recipe.eps,
            weight_decay: recipe.weight_decay,
        };
        let (mut position, mut optimizer) = self.resume(&model, options)?;

        let lengths: Vec<usize> = self.data.training.iter().map(|pair| pair.tokens.num_tokens()).collect();
        let batches = order::batches(&lengths, recipe, self.own.epochs, self.own.seed);
        let steps = batches.len();
        let validate_every = pace.validate_every.unwrap_or(steps.div_ceil(VALIDATIONS));
        Folder::make_room(&self.folder.log(self.index))?;
        let mut log = Log::open(&self.folder.log(self.index), position.log_bytes)?;
        let tokens = |batches: &[Batch]| batches.iter().map(|batch| batch.tokens).sum();
        watch(&Event::MemberBegins {
            member: self.index,
            own: self.own,
            done: position.step,
            steps,
            tokens: (tokens(&batches), tokens(&batches[..position.step])),
        });

        loop {
            let step = position.step;
            let is_due = step.is_multiple_of(validate_every) || step == steps;
            if is_due && position.validated_at != Some(step) && !self.data.validation.is_empty() {
                let validated =
                    self.validate(&model, step, watch).map_err(|error| match step.checked_sub(1) {
                        Some(last) => self.keep(&self.pairs(&batches[last]), step, error),
                        None => error,
                    });
                if let Some(line) = validated? {
                    watch(&Event::Validated { member: self.index, line: &line });
                    log.add(&LogLine::Validation(line))?;
                    position.validated_at = Some(step);
                }
            }
            if self.stop.is_set() {
                self.remember(&model, &optimizer, &mut position, &log)?;
                return Ok(Progress::Stopped { step, steps });
            }
            let Some(batch) = batches.get(step) else { break };
            let line = self.step(&model, &mut optimizer, batch, step, steps)?;
            watch(&Event::Stepped { member: self.index, line: &line });
            log.add(&LogLine::Training(line))?;
            position.step += 1;
            if position.step.is_multiple_of(pace.checkpoint_every) {
                self.remember(&model, &optimizer, &mut position, &log)?;
            }
        }
        log.sync()?;
        self.finish(&model).map(Progress::Done)
    }

    /// One update: gradients of the batch, cut to their norm, and a step of AdamW.
    fn step(
        &self,
        model: &Trainable,
        optimizer: &mut AdamW,
        batch: &Batch,
        step: usize,
        steps: usize,
    ) -> anyhow::Result<TrainingLine> {
        let start = Instant::now();
        let recipe = &self.config.recipe;
        let pairs = self.pairs(batch);
        let objective = Objective {
            centering: recipe.centering,
            dropout: self.own.dropout,
            dropout_seed: step_seed(self.own.seed, step),
            micro_batch_tokens: recipe.micro_batch_tokens,
        };
        let tokens: Vec<&TokenPair> = pairs.iter().map(|pair| &pair.tokens).collect();
        let learning_rate = recipe.learning_rate(self.own.learning_rate, step, steps);
        let mut update = || -> anyhow::Result<(StepGradients, f64)> {
            let mut found = model.gradients(&tokens, &objective)?;
            let most = if recipe.clip_norm > 0.0 { recipe.clip_norm } else { f64::INFINITY };
            let norm = clip_gradients(&mut found.gradients, most)?;
            ensure!(found.loss.is_finite(), "the loss is {}, which is not finite", found.loss);
            ensure!(norm.is_finite(), "the gradients' norm is {norm}, which is not finite");
            optimizer.step(model.parameters(), &found.gradients, learning_rate)?;
            Ok((found, norm))
        };
        let (found, gradient_norm) = update().map_err(|error| self.keep(&pairs, step + 1, error))?;
        Ok(TrainingLine {
            step: step + 1,
            epoch: batch.epoch,
            tokens: batch.tokens,
            learning_rate,
            metrics: Metrics::of(&found.chosen, &found.rejected),
            objective: found.loss,
            gradient_norm,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn pairs(&self, batch: &Batch) -> Vec<&Pair> {
        batch.pairs.iter().map(|pair| &self.data.training[*pair]).collect()
    }

    /// Keeps the pairs of a step that broke something; the error says where.
    fn keep(&self, pairs: &[&Pair], step: usize, error: anyhow::Error) -> anyhow::Error {
        let path = self.folder.failed(self.index, step);
        let kept = Folder::make_room(&path).and_then(|()| data::write_lines(pairs, &path));
        let where_to = match kept {
            Ok(()) => format!("its {} pairs are in {}", pairs.len(), path.display()),
            Err(error) => format!("its {} pairs could not be kept: {error:#}", pairs.len()),
        };
        error.context(format!(
            "step {step} broke, with a learning rate of at most {:e}; {where_to}",
            self.own.learning_rate
        ))
    }

    /// All validation pairs; none when told to stop.
    fn validate(
        &self,
        model: &Trainable,
        step: usize,
        watch: &mut Watch<'_>,
    ) -> anyhow::Result<Option<ValidationLine>> {
        let start = Instant::now();
        let pairs = self.data.validation.len();
        let (mut all_chosen, mut all_rejected) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
        for chunk in chunks(&self.data.validation) {
            if self.stop.is_set() {
                return Ok(None);
            }
            let rewards = model.rewards(&both_sides(chunk)).context("validation")?;
            if let Some(reward) = rewards.iter().find(|reward| !reward.is_finite()) {
                bail!("a validation reward is {reward}, which is not finite");
            }
            let (chosen, rejected) = rewards.split_at(chunk.len());
            all_chosen.extend_from_slice(chosen);
            all_rejected.extend_from_slice(rejected);
            watch(&Event::ValidationProgress { member: self.index, done: all_chosen.len(), pairs });
        }
        let metrics = Metrics::of(&all_chosen, &all_rejected);
        Ok(Some(ValidationLine { step, metrics, seconds: start.elapsed().as_secs_f64() }))
    }

    /// Where the member goes on: at its start, or where its state says, with weights and optimiser as they were.
    fn resume(&self, model: &Trainable, options: AdamWOptions) -> anyhow::Result<(Position, AdamW)> {
        let parameters = model.parameters();
        let path = self.folder.state(self.index);
        let Some((position, mut tensors)) = state::read(&path)? else {
            let start = Position { settings: self.own.clone(), step: 0, validated_at: None, log_bytes: 0 };
            return Ok((start, AdamW::new(parameters, options)));
        };
        for parameter in parameters {
            let tensor = tensors.remove(&format!("{WEIGHTS}{}", parameter.name));
            let tensor = tensor.with_context(|| format!("{} lacks `{}`", path.display(), parameter.name))?;
            parameter.var.set(&tensor)?;
        }
        let moments = tensors.into_iter();
        let moments =
            moments.filter_map(|(name, tensor)| Some((name.strip_prefix(OPTIMIZER)?.to_owned(), tensor)));
        let state = AdamWState { steps: position.step as u64, tensors: moments.collect() };
        let optimizer = AdamW::resume(parameters, options, &state)
            .with_context(|| format!("go on from {}", path.display()))?;
        Ok((position, optimizer))
    }

    /// Writes down where the member is.
    fn remember(
        &self,
        model: &Trainable,
        optimizer: &AdamW,
        position: &mut Position,
        log: &Log,
    ) -> anyhow::Result<()> {
        position.log_bytes = log.sync()?;
        let parameters = model.parameters();
        let weights = parameters
            .iter()
            .map(|parameter| (format!("{WEIGHTS}{}", parameter.name), parameter.var.as_tensor().clone()));
        let moments = optimizer.state(parameters)?.tensors.into_iter();
        let moments = moments.map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor));
        let path = self.folder.state(self.index);
        Folder::make_room(&path)?;
        state::write(&path, position, &weights.chain(moments).collect())
    }

    /// Writes the member with its record.
    fn finish(&self, model: &Trainable) -> anyhow::Result<MemberResult> {
        let lines = log::read(&self.folder.log(self.index))?;
        let steps: Vec<&TrainingLine> = (lines.iter())
            .filter_map(|line| if let LogLine::Training(line) = line { Some(line) } else { None })
            .collect();
        let validations = (lines.iter())
            .filter_map(|line| if let LogLine::Validation(line) = line { Some(line.metrics) } else { None });
        let validations: Vec<Metrics> = validations.collect();
        let last = steps.iter().filter(|line| line.epoch + 1 == self.own.epochs);
        let result = MemberResult {
            steps: steps.len(),
            tokens: steps.iter().map(|line| line.tokens).sum(),
            seconds: steps.iter().map(|line| line.seconds).sum(),
            training: Metrics::together(last.map(|line| line.metrics)).context("the log has no steps")?,
            validation_at_start: validations.first().copied(),
            validation: validations.last().copied(),
        };
        let record = MemberRecord {
            rewarm: env!("CARGO_PKG_VERSION").to_owned(),
            member: self.index,
            settings: self.family.settings.clone(),
            own: self.own.clone(),
            base_digest: self.family.bases[&self.own.base].clone(),
            probe: self.family.probe.clone(),
            result: result.clone(),
            data: self.data.record.clone(),
        };
        let record = serde_json::to_value(&record).context("the record as JSON")?;
        let files = [(family::RECORD, record)];
        model.save(&self.folder.member(self.index), self.config.recipe.dtype, &files)?;
        Ok(result)
    }
}
