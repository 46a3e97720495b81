//! `rewarm train`: from preference pairs to a family of reward models that can be averaged.
//!
//! ```text
//! pairs ─▶ data ─┬─▶ probe ──▶ one shared head ──┐
//!                ├─▶ order ──▶ batches ──────────┼─▶ loop, once a member ─▶ member-K, log, state
//!   base ────────┴──▶ start ──────────────────────┘                └─▶ record, plot
//! ```
//!
//! This file is the loop from top to bottom: the data is read and split, a linear probe learns the head that all members
//! start from, and each member is trained from there with its own learning rate, dropout and order of the pairs
//! (WARM, arXiv 2401.12187). What a step computes is [`Trainable`]'s; where things lie is `family`'s.
//!
//! # Which step is kept
//!
//! Where there are validation pairs, the one with the least loss on them, and training stops when that has not fallen for some
//! validations (`patience`). Step 0 competes: the frozen base with the shared head, which `start` holds as a checkpoint of its own.
//! A small model on few pairs learns them by heart in a few steps, and fine-tuning that ends behind its start is worse than none.
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
pub mod plan;
mod plot;
pub mod probe;
mod purpose;
mod state;
mod twins;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use candle_core::Tensor;

use crate::learn::adamw::AdamW;
use crate::learn::adamw::AdamWOptions;
use crate::learn::adamw::AdamWState;
use crate::learn::adamw::clip_gradients;
use crate::learn::parameter::Parameter;
use crate::learn::trainable::LoadOptions;
use crate::learn::trainable::Objective;
use crate::learn::trainable::StepGradients;
use crate::learn::trainable::TokenPair;
use crate::learn::trainable::Trainable;
use crate::model::memory;
use crate::offline::Stop;
use crate::offline::train::config::Config;
use crate::offline::train::config::Keep;
use crate::offline::train::config::Member;
use crate::offline::train::data::Data;
use crate::offline::train::data::DataRecord;
use crate::offline::train::data::Pair;
use crate::offline::train::data::Split;
use crate::offline::train::data::both_sides;
use crate::offline::train::data::chunks;
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
use crate::offline::train::plan::Plan;
use crate::offline::train::probe::Differences;
use crate::offline::train::probe::Probe;
use crate::offline::train::purpose::step_seed;
use crate::offline::train::state::Position;

/// What tensors of a state are called, before their own names.
const WEIGHTS: &str = "weights.";
const OPTIMIZER: &str = "optimizer.";
const BEST: &str = "best.";

/// Something that whoever watches may want to show.
#[derive(Debug)]
pub enum Event<'a> {
    /// What is learnt from.
    Data(&'a DataRecord),
    /// What will be done, and about how long it takes.
    Planned(&'a Plan),
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
        /// How it went.
        result: &'a MemberResult,
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

/// What would be done.
#[derive(Debug)]
pub struct Checked {
    /// The settings, with the learning rates that were proposed.
    pub config: Config,
    /// What would be learnt from.
    pub data: DataRecord,
    /// How much work that is.
    pub plan: Plan,
}

/// Checks the configuration against files and bases, and trains nothing.
pub fn check(config: &Config) -> anyhow::Result<Checked> {
    let split = Split::read(&config.data, config.seed)?;
    let (base, _) = open_bases(config)?;
    let data = split.tokenize(base.tokenizer(), &config.data)?;
    let config = settle(config, &base, &data);
    doubt_memory(&config, &base, &data);
    let plan = Plan::new(&config, &base, &data)?;
    Ok(Checked { config, data: data.record, plan })
}

/// With the learning rates that nobody gave.
fn settle(config: &Config, base: &Trainable, data: &Data) -> Config {
    config.settled(base.features_width(), |own| data.batches(&config.recipe, own).len())
}

/// Trains a family, or goes on with one.
pub fn run(config: &Config, stop: &Stop, watch: &mut Watch<'_>) -> anyhow::Result<Outcome> {
    let split = Split::read(&config.data, config.seed)?;
    let (mut base, bases) = open_bases(config)?;
    let data = split.tokenize(base.tokenizer(), &config.data)?;
    watch(&Event::Data(&data.record));
    let config = &settle(config, &base, &data);
    doubt_memory(config, &base, &data);
    let folder = Folder::open(&config.output)?; // not before: nothing is left behind by pairs that cannot be read
    let mut record = folder.begin(config, &data.record, bases)?;

    if record.results.len() < config.members.len() {
        watch(&Event::Planned(&Plan::new(config, &base, &data)?));
    }
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
    if let Some(probe) = &probe {
        base.set_head(&probe.weight)?;
    }
    if !folder.start().exists() {
        base.save(&folder.start(), config.recipe.dtype, &[]).context("write the start of all members")?;
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
        watch(&Event::Finished { member: index, path: &path, result: &record.results[&index], is_old });
    }
    record.warnings = warnings(&record, &folder)?;
    folder.write(&record)?;
    let logs =
        record.results.iter().map(|(&index, result)| Ok((log::read(&folder.log(index))?, result.kept_step)));
    plot::draw(&folder.plot(), &logs.collect::<anyhow::Result<Vec<_>>>()?)?;
    Ok(Outcome::Finished(Box::new(record)))
}

/// What is odd about a finished family.
fn warnings(record: &FamilyRecord, folder: &Folder) -> anyhow::Result<Vec<String>> {
    let mut warnings: Vec<String> = record
        .results
        .iter()
        .filter_map(|(member, result)| result.doubt(*member, &record.members[*member]))
        .collect();
    let members: Vec<PathBuf> = record.results.keys().map(|member| folder.member(*member)).collect();
    for twins::Twins { members: [one, other], cosine } in twins::find(&folder.start(), &members)? {
        let how = match cosine {
            Some(cosine) => format!("what they learnt has a cosine of {cosine:.5}"),
            None => "neither has learnt anything".to_owned(),
        };
        warnings.push(format!(
            "member-{one} and member-{other} are copies of each other ({how}): averaging them brings nothing; give them other \
             learning rates, dropouts or bases, or more steps"
        ));
    }
    Ok(warnings)
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
    let steps =
        config.members.iter().flat_map(|own| data.batches(&config.recipe, own)).map(|batch| batch.tokens);
    let longest = data.training.iter().map(|pair| pair.tokens.num_tokens()).max().unwrap_or(0);
    let micro_batch = config.recipe.micro_batch_tokens.max(longest); // a pair is never cut
    if let Some(doubt) = base.memory_doubt(steps.max().unwrap_or(0), micro_batch, memory::left()) {
        tracing::warn!("{doubt}");
    }
}

/// `memory_left`: refuse what training cannot do with so many bytes.
fn load(config: &Config, base: &Path, memory_left: Option<u64>) -> anyhow::Result<Trainable> {
    let judges = !config.data.validation.is_empty() || config.data.validation_fraction > 0.0;
    let options = LoadOptions {
        frozen_embeddings: config.recipe.frozen_embeddings,
        frozen_layers: config.recipe.frozen_layers,
        train_head: true,
        seed: config.seed, // the family's: what a base lacks must be the same in all members
        keeps_best: judges && config.recipe.keep == Keep::Best,
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

/// The weights as they are now.
fn copies(model: &Trainable) -> anyhow::Result<Vec<Tensor>> {
    model.parameters().iter().map(|parameter| Ok(parameter.var.as_tensor().copy()?)).collect()
}

/// Where a member is.
struct Standing {
    position: Position,
    optimizer: AdamW,
    /// The weights of the best step, as [`Position::best`] tells it; of none without.
    best: Vec<Tensor>,
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
        let recipe = &self.config.recipe;
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
        let Standing { mut position, mut optimizer, mut best } = self.resume(&model, options)?;

        let batches = self.data.batches(recipe, self.own);
        let steps = batches.len();
        let validate_every = recipe.validate_every(steps);
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
                    if recipe.keep == Keep::Best && position.judge(step, line.metrics.loss) {
                        drop(best); // before there is another: they are as large as the model
                        best = copies(&model)?;
                    }
                    log.add(&LogLine::Validation(line))?;
                    position.validated_at = Some(step);
                }
            }
            if position.best.as_ref().is_some_and(|best| recipe.is_out_of_patience(best.worse_since)) {
                break;
            }
            if self.stop.is_set() {
                self.remember(&model, &optimizer, &best, &mut position, &log)?;
                return Ok(Progress::Stopped { step, steps });
            }
            let Some(batch) = batches.get(step) else { break };
            let line = self.step(&model, &mut optimizer, batch, step, steps)?;
            watch(&Event::Stepped { member: self.index, line: &line });
            log.add(&LogLine::Training(line))?;
            position.step += 1;
            if position.step.is_multiple_of(self.config.checkpoint_every) {
                self.remember(&model, &optimizer, &best, &mut position, &log)?;
            }
        }
        log.sync()?;
        for (parameter, best) in model.parameters().iter().zip(&best) {
            parameter.var.set(best)?;
        }
        let kept = position.best.map_or(position.step, |best| best.step);
        self.finish(&model, kept, steps).map(Progress::Done)
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
    fn resume(&self, model: &Trainable, options: AdamWOptions) -> anyhow::Result<Standing> {
        let parameters = model.parameters();
        let path = self.folder.state(self.index);
        let Some((position, mut tensors)) = state::read(&path)? else {
            let position = Position::start(self.own);
            return Ok(Standing { position, optimizer: AdamW::new(parameters, options), best: Vec::new() });
        };
        let mut take = |kind: &str, parameter: &Parameter| {
            let tensor = tensors.remove(&format!("{kind}{}", parameter.name));
            tensor.with_context(|| format!("{} lacks `{kind}{}`", path.display(), parameter.name))
        };
        for parameter in parameters {
            parameter.var.set(&take(WEIGHTS, parameter)?)?;
        }
        let best: Vec<Tensor> = match position.best {
            Some(_) => {
                parameters.iter().map(|parameter| take(BEST, parameter)).collect::<anyhow::Result<_>>()?
            }
            None => Vec::new(),
        };
        let moments = tensors.into_iter();
        let moments =
            moments.filter_map(|(name, tensor)| Some((name.strip_prefix(OPTIMIZER)?.to_owned(), tensor)));
        let state = AdamWState { steps: position.step as u64, tensors: moments.collect() };
        let optimizer = AdamW::resume(parameters, options, &state)
            .with_context(|| format!("go on from {}", path.display()))?;
        Ok(Standing { position, optimizer, best })
    }

    /// Writes down where the member is.
    fn remember(
        &self,
        model: &Trainable,
        optimizer: &AdamW,
        best: &[Tensor],
        position: &mut Position,
        log: &Log,
    ) -> anyhow::Result<()> {
        position.log_bytes = log.sync()?;
        let parameters = model.parameters();
        let weights = parameters
            .iter()
            .map(|parameter| (format!("{WEIGHTS}{}", parameter.name), parameter.var.as_tensor().clone()));
        let best = (parameters.iter().zip(best))
            .map(|(parameter, tensor)| (format!("{BEST}{}", parameter.name), tensor.clone()));
        let moments = optimizer.state(parameters)?.tensors.into_iter();
        let moments = moments.map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor));
        let path = self.folder.state(self.index);
        Folder::make_room(&path)?;
        state::write(&path, position, &weights.chain(moments).chain(best).collect())
    }

    /// Writes the member, of which this step was kept, with its record.
    fn finish(&self, model: &Trainable, kept_step: usize, steps: usize) -> anyhow::Result<MemberResult> {
        let lines = log::read(&self.folder.log(self.index))?;
        let done: Vec<&TrainingLine> = (lines.iter())
            .filter_map(|line| if let LogLine::Training(line) = line { Some(line) } else { None })
            .collect();
        let validations = (lines.iter())
            .filter_map(|line| if let LogLine::Validation(line) = line { Some(line) } else { None });
        let validations: Vec<&ValidationLine> = validations.collect();
        let last_epoch = done.last().context("the log has no steps")?.epoch;
        let last = done.iter().filter(|line| line.epoch == last_epoch);
        let metrics = |line: &&ValidationLine| line.metrics;
        let result = MemberResult {
            steps: done.len(),
            planned_steps: steps,
            kept_step,
            pairs: done.iter().map(|line| line.metrics.pairs).sum(),
            tokens: done.iter().map(|line| line.tokens).sum(),
            seconds: done.iter().map(|line| line.seconds).sum(),
            training: Metrics::together(last.map(|line| line.metrics)).context("the log has no steps")?,
            validation_at_start: validations.first().map(metrics),
            validation: validations.iter().find(|line| line.step == kept_step).map(metrics),
            validation_at_end: validations.last().map(metrics),
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
