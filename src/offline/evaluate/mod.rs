//! `rewarm evaluate`: members, WARM and ENS on named files of preference pairs.
//!
//! ```text
//! pairs files ─▶ sets of pairs ─┐        (a training record splits a file: clean, corrupted, held out)
//! best-of-n candidates ─────────┴▶ samples: each different one once
//!                                     │  members (ENS) and WARM, batch by batch, in turns
//!                                     ▼
//!                                  rewards ─▶ metrics, bootstrap ─┐
//! merges along lines, and of some members ─▶ curves ──────────────┴▶ Evaluation ─▶ table, JSON, page
//! ```
//!
//! One forward of a member serves both the member on its own (its raw reward) and ENS (calibrated, then reduced).
//! Everything random has a seed; two runs on one machine differ in the measured seconds only.

mod against;
mod best_of_n;
pub mod bootstrap;
mod choices;
pub mod curves;
pub mod evaluation;
pub mod interval;
mod merges;
pub mod metrics;
mod output;
mod page;
mod plot;
mod record;
mod samples;
mod sets;
mod table;
mod verdict;

use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

pub use self::output::write;
pub use self::table::table;

use crate::hub::Snapshot;
use crate::model::compatible;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::scorer::Calibration;
use crate::model::scorer::Reduction;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::offline::evaluate::against::Other;
use crate::offline::evaluate::choices::Choices;
use crate::offline::evaluate::evaluation::Cost;
use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::evaluation::Settings;
use crate::offline::evaluate::record::Record;
use crate::offline::evaluate::samples::Pool;
use crate::offline::evaluate::samples::Runner;
use crate::offline::evaluate::samples::Scores;
use crate::offline::train::family::START;
use crate::ops::machine::Machine;
use crate::text::Truncation;
use crate::text::dataset::Dataset;

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Checkpoint directories; at least one.
    pub members: Vec<PathBuf>,
    /// What members that are LoRA adapters were trained on.
    pub base: Option<PathBuf>,
    /// The members' merge, if it was made already.
    pub warm: Option<PathBuf>,
    /// Of a merge at load: one per member, summing to 1; equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// How ENS makes one reward of its members'.
    pub reduction: Reduction,
    /// What to compute in.
    pub dtype: Dtype,
    /// Where.
    pub device: DeviceName,
    /// The limit for tokens, in place of the models' own.
    pub max_tokens: Option<usize>,
    /// What to do with samples that are too long.
    pub truncation: Truncation,
    /// A batch takes samples up to this many tokens.
    pub max_batch_tokens: usize,
    /// Files of pairs; at least one, with different names.
    pub pairs: Vec<NamedFile>,
    /// What `rewarm train` wrote down.
    pub record: Option<PathBuf>,
    /// What members were before fine-tuning; beside the record, where there is one, when absent.
    pub start: Option<PathBuf>,
    /// Another evaluation of the same pairs, to compare with.
    pub against: Option<PathBuf>,
    /// Which lines between members to follow.
    pub curve: Curve,
    /// The file of pairs for the curves; the first that was not trained on when absent.
    pub curve_on: Option<String>,
    /// Subsets of members to try, of each size; 0: no curve over the number of members.
    pub subsets: usize,
    /// Prompts with responses, and the gold model's directory.
    pub best_of_n: Option<(PathBuf, PathBuf)>,
    /// Of each bootstrap; at least one.
    pub resamples: usize,
    /// Of everything random.
    pub seed: u64,
}

/// A file and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// In tables and plots.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Which lines between members to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Curve {
    /// From the first member to the second.
    #[default]
    First,
    /// Between all pairs of members.
    Pairs,
    /// None.
    Off,
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is under way.
    pub what: &'a str,
    /// So much of it is done.
    pub done: u64,
    /// Of so much.
    pub total: u64,
    /// Of what.
    pub unit: Unit,
}

/// What progress is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of checkpoints.
    Bytes,
    /// That went through models.
    Tokens,
}

/// What a run found, and the rewards that it was found from.
pub struct Outcome {
    /// What was found.
    pub evaluation: Evaluation,
    /// JSON lines, one for each pair.
    pub rewards: String,
}

/// The models of a run, and their rewards.
struct Judges {
    infos: Vec<ModelInfo>,
    /// `[models][samples of the pool]`.
    rewards: Vec<Vec<f32>>,
    /// How ENS calibrates each member.
    calibrations: Vec<Option<Calibration>>,
}

/// Evaluates. `progress` is told how far it is.
pub fn run(config: &Config, progress: &mut dyn FnMut(Progress<'_>)) -> anyhow::Result<Outcome> {
    let datasets = read_pairs(config)?;
    let record = match &config.record {
        Some(path) => Some(Record::read(path, datasets.iter())?),
        None => None,
    };
    let candidates = match &config.best_of_n {
        Some((path, _)) => Some(best_of_n::read_candidates(path)?),
        None => None,
    };

    let other = config.against.as_deref().map(Other::read).transpose()?;

    let names = member_names(&config.members);
    let Models { ens, warm, start } = load_models(config, progress)?;

    let mut pool = Pool::default();
    let mut sets = Vec::new();
    for (file, dataset) in config.pairs.iter().zip(&datasets) {
        sets.extend(sets::split(
            file,
            dataset,
            record.as_ref(),
            &mut pool,
            &ens.tokenizer,
            config.truncation,
        )?);
    }
    let mut candidates = candidates.zip(config.best_of_n.as_ref()).map(|(candidates, (path, _))| {
        Choices::new(path, &candidates, &mut pool, &ens.tokenizer, config.truncation)
    });

    let everything: Vec<usize> = (0..pool.len()).collect();
    let mut runners = vec![Runner { names: names.iter().map(String::as_str).collect(), scorer: &ens.scorer }];
    runners.extend(warm.iter().map(|warm| Runner { names: vec!["WARM"], scorer: &warm.scorer }));
    runners.extend(start.iter().map(|start| Runner { names: vec![START], scorer: &start.scorer }));
    let scores =
        samples::score(&pool, &everything, &runners, config.max_batch_tokens, "score", &mut *progress)?;
    let cost = warm.as_ref().and_then(|_| cost(&scores, &pool, config.members.len()));
    let judges = judge(&names, &ens, warm.as_ref(), start.as_ref(), scores)?;
    let settings = settings(config, &ens);
    // the curves' merges need the room
    drop((ens, warm, start));

    let mut results: Vec<SetResult> = sets
        .iter()
        .map(|set| sets::evaluate(set, &judges.infos, &judges.rewards, config.resamples, config.seed))
        .collect();
    if let Some(other) = &other {
        for (set, result) in sets.iter().zip(&mut results) {
            let margins: Vec<Vec<f64>> = judges.rewards.iter().map(|rewards| set.margins(rewards)).collect();
            result.differences_against =
                other.differences(set, &judges.infos, &margins, config.resamples, config.seed)?;
        }
    }
    let curve_set = merges::set(config, &sets);
    let (interpolations, member_counts) = match curve_set {
        Some(set) if config.members.len() > 1 => {
            merges::follow(config, &names, set, &judges, &pool, progress)?
        }
        _ => (Vec::new(), Vec::new()),
    };
    let best_of_n = match (&mut candidates, &config.best_of_n) {
        (Some(choices), Some((_, gold))) => Some(choices.judge(config, gold, &judges, progress)?),
        _ => None,
    };
    let rewards = output::rewards_jsonl(&sets, &judges.infos, &judges.rewards);
    let has_curves = !(interpolations.is_empty() && member_counts.is_empty());
    let mut evaluation = Evaluation {
        format: 2,
        rewarm: env!("CARGO_PKG_VERSION"),
        machine: Machine::here(),
        settings,
        verdict: Vec::new(),
        models: judges.infos,
        sets: results,
        interpolations,
        member_counts,
        curves_on: curve_set.filter(|_| has_curves).map(|set| set.name.clone()),
        cost,
        best_of_n,
    };
    evaluation.verdict = verdict::verdict(&evaluation);
    Ok(Outcome { evaluation, rewards })
}

fn read_pairs(config: &Config) -> anyhow::Result<Vec<Dataset>> {
    for (number, file) in config.pairs.iter().enumerate() {
        if config.pairs[..number].iter().any(|other| other.name == file.name) {
            bail!("two files of pairs are called `{}`: name them, as in --pairs NAME=FILE", file.name);
        }
    }
    if let Some(name) = &config.curve_on {
        let names: Vec<&str> = config.pairs.iter().map(|file| file.name.as_str()).collect();
        ensure!(
            names.contains(&name.as_str()),
            "curves are asked for on `{name}`, the files of pairs are called {}",
            names.join(", ")
        );
    }
    let read =
        |file: &NamedFile| Dataset::read(&file.path).with_context(|| format!("read pairs `{}`", file.name));
    config.pairs.iter().map(read).collect()
}

/// The last folder of each path (a model of the hub by its own name), where that tells the members apart; else the paths.
fn member_names(members: &[PathBuf]) -> Vec<String> {
    let short: Vec<String> = members
        .iter()
        .map(|path| {
            if let Some(snapshot) = Snapshot::of(path) {
                return snapshot.to_string();
            }
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        })
        .collect();
    let is_taken = |number: usize| {
        short[..number].contains(&short[number]) || ["WARM", "ENS", START].contains(&short[number].as_str())
    };
    if (0..short.len()).any(is_taken) {
        return (1..).zip(members).map(|(number, path)| format!("{number}: {}", path.display())).collect();
    }
    short
}

fn variant_config(config: &Config, name: &str, mode: Mode, members: Vec<PathBuf>) -> VariantConfig {
    VariantConfig {
        base: config.base.clone(),
        reduction: config.reduction,
        dtype: config.dtype,
        device: config.device.clone(),
        max_tokens: config.max_tokens,
        ..VariantConfig::new(name, mode, members)
    }
}

/// All members; of one, too: it runs them apart and keeps their raw rewards.
fn ens_config(config: &Config) -> VariantConfig {
    variant_config(config, "members", Mode::Ens, config.members.clone())
}

/// None where there is nothing to average.
fn warm_config(config: &Config) -> Option<VariantConfig> {
    match &config.warm {
        Some(merged) => Some(variant_config(config, "WARM", Mode::Warm, vec![merged.clone()])),
        None if config.members.len() == 1 => None,
        None => Some(VariantConfig {
            coefficients: config.coefficients.clone(),
            ..variant_config(config, "WARM", Mode::Warm, config.members.clone())
        }),
    }
}

/// What is loaded for a run.
struct Models {
    /// The members, which run as an ensemble does.
    ens: Variant,
    /// Where there is something to average.
    warm: Option<Variant>,
    /// Where it is known.
    start: Option<Variant>,
}

fn load_models(config: &Config, progress: &mut dyn FnMut(Progress<'_>)) -> anyhow::Result<Models> {
    let mut loader = Loader::default();
    let ens = load(&mut loader, &ens_config(config), progress)?;
    let mut beside = |config: VariantConfig| {
        let other = load(&mut loader, &config, progress)?;
        compatible::check_same_tokens(&ens.tokenizer, &other.tokenizer)?;
        anyhow::Ok(other)
    };
    let warm = warm_config(config).map(&mut beside).transpose()?;
    let start = start(config).map(|start| variant_config(config, START, Mode::Warm, vec![start]));
    let start = start.map(&mut beside).transpose()?;
    Ok(Models { ens, warm, start })
}

/// The model before fine-tuning: as given, or as `rewarm train` left it beside its record.
fn start(config: &Config) -> Option<PathBuf> {
    let beside = || {
        let folder = config.record.as_ref()?.parent()?.join(START);
        folder.is_dir().then_some(folder)
    };
    config.start.clone().or_else(beside)
}

fn load(
    loader: &mut Loader,
    config: &VariantConfig,
    progress: &mut dyn FnMut(Progress<'_>),
) -> anyhow::Result<Variant> {
    let what = format!("load {}", config.name);
    let mut progress = |done, total| progress(Progress { what: &what, done, total, unit: Unit::Bytes });
    loader.load(config, &mut progress).with_context(|| what.clone())
}

fn settings(config: &Config, ens: &Variant) -> Settings {
    Settings {
        dtype: ens.info.dtype.name(),
        device: ens.info.placement.to_string(),
        max_tokens: ens.info.max_tokens,
        truncation: match config.truncation {
            Truncation::Reject => "reject",
            Truncation::Left => "left",
            Truncation::Right => "right",
        },
        reduction: ens.info.reduction_name(),
        resamples: config.resamples,
        seed: config.seed,
    }
}

/// What WARM and ENS took; scores are of the members, then of WARM, then perhaps of the start.
fn cost(scores: &[Scores], pool: &Pool, members: usize) -> Option<Cost> {
    let [ens, warm, ..] = scores else { return None };
    if members == 1 {
        return None;
    }
    let samples = pool.len();
    let (warm, ens) = (warm.time.as_secs_f64(), ens.time.as_secs_f64());
    Some(Cost {
        samples,
        tokens: pool.tokens(&(0..samples).collect::<Vec<_>>()),
        members,
        warm_seconds: warm,
        ens_seconds: ens,
        warm_seconds_per_sample: warm / samples as f64,
        ens_seconds_per_sample: ens / samples as f64,
        ens_over_warm: ens / warm,
    })
}

/// Puts the models in order: members, WARM, ENS, start. One member alone is no ensemble.
fn judge(
    names: &[String],
    ens: &Variant,
    warm: Option<&Variant>,
    start: Option<&Variant>,
    scores: Vec<Scores>,
) -> anyhow::Result<Judges> {
    let mut infos: Vec<ModelInfo> = names
        .iter()
        .zip(&ens.info.members)
        .map(|(name, member)| ModelInfo {
            name: name.clone(),
            kind: Kind::Member,
            paths: vec![member.path.clone()],
            fingerprint: member.digest.clone(),
            coefficients: None,
            calibrations: None,
        })
        .collect();
    let paths = |variant: &Variant| variant.info.members.iter().map(|member| member.path.clone()).collect();
    let calibrations: Vec<_> = ens.info.members.iter().map(|member| member.calibration).collect();
    let mut rewards: Vec<Vec<f32>> = scores.into_iter().flat_map(|scores| scores.raw).collect();
    let rewards_of_start = start.and_then(|_| rewards.pop());
    if let Some(warm) = warm {
        let coefficients: Vec<f64> = warm.info.members.iter().map(|member| member.coefficient).collect();
        infos.push(ModelInfo {
            name: "WARM".to_owned(),
            kind: Kind::Warm,
            paths: paths(warm),
            fingerprint: warm.info.fingerprint.clone(),
            coefficients: (coefficients.len() > 1).then_some(coefficients),
            calibrations: None,
        });
    }
    if names.len() > 1 {
        let reduce = |sample: usize| {
            let raw: Vec<f32> = rewards[..names.len()].iter().map(|rewards| rewards[sample]).collect();
            ens.scorer.reduce(&raw).reward
        };
        let reduced: Vec<f32> = (0..rewards[0].len()).map(reduce).collect();
        ensure!(
            reduced.iter().all(|reward| reward.is_finite()),
            "the members' rewards are finite, but ENS ({}) makes one of them that is not: look at the members' \
             calibrations",
            ens.info.reduction_name()
        );
        infos.push(ModelInfo {
            name: "ENS".to_owned(),
            kind: Kind::Ens,
            paths: paths(ens),
            fingerprint: ens.info.fingerprint.clone(),
            coefficients: None,
            calibrations: Some(calibrations.clone()),
        });
        rewards.push(reduced);
    }
    if let Some(start) = start {
        infos.push(ModelInfo {
            name: START.to_owned(),
            kind: Kind::Start,
            paths: paths(start),
            fingerprint: start.info.fingerprint.clone(),
            coefficients: None,
            calibrations: None,
        });
    }
    rewards.extend(rewards_of_start);
    Ok(Judges { infos, rewards, calibrations })
}
