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

pub mod best_of_n;
pub mod bootstrap;
pub mod curves;
pub mod evaluation;
pub mod metrics;
mod output;
mod page;
mod plot;
mod record;
mod samples;
mod sets;
mod table;
mod verdict;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

pub use self::output::write;
pub use self::page::page;
pub use self::table::table;

use crate::model::scorer::Calibration;
use crate::model::scorer::Reduction;
use crate::model::variant::Dtype;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::offline::bench::report::Machine;
use crate::offline::evaluate::bootstrap::Resamples;
use crate::offline::evaluate::curves::Band;
use crate::offline::evaluate::curves::Interpolation;
use crate::offline::evaluate::curves::MemberCount;
use crate::offline::evaluate::evaluation::BestOfN;
use crate::offline::evaluate::evaluation::BestOfNPoint;
use crate::offline::evaluate::evaluation::Cost;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::Settings;
use crate::offline::evaluate::evaluation::Unscorable;
use crate::offline::evaluate::record::Record;
use crate::offline::evaluate::samples::Origin;
use crate::offline::evaluate::samples::Pool;
use crate::offline::evaluate::samples::Runner;
use crate::offline::evaluate::samples::Sample;
use crate::offline::evaluate::samples::Scores;
use crate::offline::evaluate::sets::PairSet;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::Truncation;
use crate::text::dataset::Dataset;

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Checkpoint directories; at least one.
    pub members: Vec<PathBuf>,
    /// The members' merge, if it was made already.
    pub warm: Option<PathBuf>,
    /// Of a merge at load: one per member, summing to 1; equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// How ENS makes one reward of its members'.
    pub reduction: Reduction,
    /// What to compute in.
    pub dtype: Dtype,
    /// "cpu", "cuda" or "cuda:N".
    pub device: String,
    /// Lowers the models' own limit.
    pub max_tokens: Option<usize>,
    /// What to do with samples that are too long.
    pub truncation: Truncation,
    /// A batch takes samples up to this many tokens.
    pub max_batch_tokens: usize,
    /// Files of pairs; at least one, with different names.
    pub pairs: Vec<NamedFile>,
    /// What `rewarm train` wrote down.
    pub record: Option<PathBuf>,
    /// Which lines between members to follow.
    pub curve: Curve,
    /// The file of pairs for the curves; the first when absent.
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

    let mut loader = Loader::default();
    let names = member_names(&config.members);
    let ens = load(&mut loader, &ens_config(config), progress)?;
    let warm = match warm_config(config) {
        Some(warm) => Some(load(&mut loader, &warm, progress)?),
        None => None,
    };
    let tokenizer = ens.tokenizer.clone();
    if let Some(warm) = &warm {
        ensure!(
            warm.tokenizer.digest() == tokenizer.digest(),
            "{} does not read the tokens that the members read: they differ in tokenizer, chat template, text rule or \
             length limit",
            warm.info.members[0].path
        );
    }

    let mut pool = Pool::default();
    let mut sets = Vec::new();
    for (file, dataset) in config.pairs.iter().zip(&datasets) {
        sets.extend(sets::split(file, dataset, record.as_ref(), &mut pool, &tokenizer, config.truncation)?);
    }
    let mut candidates = candidates
        .zip(config.best_of_n.as_ref())
        .map(|(candidates, (path, _))| Choices::new(path, &candidates, &mut pool, &tokenizer, config.truncation));

    let everything: Vec<usize> = (0..pool.len()).collect();
    let mut runners = vec![Runner { names: names.iter().map(String::as_str).collect(), scorer: &ens.scorer }];
    runners.extend(warm.iter().map(|warm| Runner { names: vec!["WARM"], scorer: &warm.scorer }));
    let scores =
        samples::score(&pool, &everything, &runners, config.max_batch_tokens, "score", &mut *progress)?;
    let cost = cost(&scores, &pool, config.members.len());
    let judges = judge(&names, &ens, warm.as_ref(), scores)?;
    let settings = settings(config, &ens);
    // the curves' merges need the room
    drop((ens, warm, loader));

    let results = sets
        .iter()
        .map(|set| sets::evaluate(set, &judges.infos, &judges.rewards, config.resamples, config.seed))
        .collect();
    let curve_set = curve_set(config, &sets)?;
    let (interpolations, member_counts) = match curve_set {
        Some(set) if config.members.len() > 1 => {
            follow_curves(config, &names, set, &judges, &pool, progress)?
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
        format: 1,
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
    let read = |file: &NamedFile| Dataset::read(&file.path).with_context(|| format!("read pairs `{}`", file.name));
    config.pairs.iter().map(read).collect()
}

/// The last folder of each path, where that tells the members apart; else the paths.
fn member_names(members: &[PathBuf]) -> Vec<String> {
    let short: Vec<String> = members
        .iter()
        .map(|path| path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned()))
        .collect();
    let is_taken = |number: usize| {
        short[..number].contains(&short[number]) || ["WARM", "ENS"].contains(&short[number].as_str())
    };
    if (0..short.len()).any(is_taken) {
        return (1..).zip(members).map(|(number, path)| format!("{number}: {}", path.display())).collect();
    }
    short
}

fn variant_config(config: &Config, name: &str, mode: Mode, members: Vec<PathBuf>) -> VariantConfig {
    VariantConfig {
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
        dtype: ens.info.dtype,
        device: ens.info.device.clone(),
        max_tokens: ens.info.max_tokens,
        truncation: match config.truncation {
            Truncation::Reject => "reject",
            Truncation::Left => "left",
            Truncation::Right => "right",
        },
        reduction: ens.info.reduction.clone(),
        resamples: config.resamples,
        seed: config.seed,
    }
}

/// What WARM and ENS took; scores are of the members, then of WARM.
fn cost(scores: &[Scores], pool: &Pool, members: usize) -> Option<Cost> {
    let [ens, warm] = scores else { return None };
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

/// Puts the models in order: members, WARM, ENS. One member alone is no ensemble.
fn judge(
    names: &[String],
    ens: &Variant,
    warm: Option<&Variant>,
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
            ens.info.reduction
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
    Ok(Judges { infos, rewards, calibrations })
}

// ---- curves ----

/// The set that the curves are measured on: the named file's, or else the first that nothing was trained on.
fn curve_set<'a>(config: &Config, sets: &'a [PairSet]) -> anyhow::Result<Option<&'a PairSet>> {
    if config.curve == Curve::Off && config.subsets == 0 {
        return Ok(None);
    }
    let is_named = |set: &&PairSet| config.curve_on.as_ref().is_none_or(|name| *name == set.file_name);
    let is_unseen = |set: &&PairSet| matches!(set.part, Part::All | Part::HeldOut);
    let mut named = sets.iter().filter(is_named);
    let unseen = sets.iter().filter(is_named).find(is_unseen);
    Ok(unseen.or_else(|| named.next()))
}

/// A merge that a curve needs.
struct Merge {
    members: Vec<usize>,
    /// Equal when absent.
    coefficients: Option<Vec<f64>>,
}

fn follow_curves(
    config: &Config,
    names: &[String],
    set: &PairSet,
    judges: &Judges,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> anyhow::Result<(Vec<Interpolation>, Vec<MemberCount>)> {
    let lines: Vec<[usize; 2]> = match config.curve {
        Curve::Off => Vec::new(),
        Curve::First => vec![[0, 1]],
        Curve::Pairs => (1..names.len()).flat_map(|last| (0..last).map(move |first| [first, last])).collect(),
    };
    let counts = if config.subsets == 0 { 0..0 } else { 1..names.len() + 1 };
    let subsets: Vec<Vec<Vec<usize>>> =
        counts.map(|size| curves::subsets(names.len(), size, config.subsets, config.seed)).collect();

    let on_lines = lines.iter().flat_map(|line| {
        (1..curves::STEPS).map(|step| {
            let lambda = curves::lambda(step);
            Merge { members: line.to_vec(), coefficients: Some(vec![1.0 - lambda, lambda]) }
        })
    });
    let of_subsets = subsets.iter().flatten().filter(|subset| subset.len() > 1);
    let merges: Vec<Merge> =
        on_lines.chain(of_subsets.map(|subset| Merge { members: subset.clone(), coefficients: None })).collect();

    let samples = set.samples();
    let each = pool.tokens(&samples);
    let mut margins = Vec::with_capacity(merges.len());
    for (merge, done) in merges.iter().zip(0..) {
        let members = merge.members.iter().map(|&member| config.members[member].clone()).collect();
        let variant = VariantConfig {
            coefficients: merge.coefficients.clone(),
            ..variant_config(config, "a merge of the curves", Mode::Warm, members)
        };
        // a loader of its own: nothing is kept when it goes
        let variant = load(&mut Loader::default(), &variant, &mut |_| ())?;
        let runner = Runner { names: vec!["a merge of the curves"], scorer: &variant.scorer };
        let mut shift = |inner: Progress<'_>| {
            let total = each * merges.len() as u64;
            progress(Progress { what: "curves", done: each * done + inner.done, total, ..inner });
        };
        let scores = samples::score(pool, &samples, &[runner], config.max_batch_tokens, "curves", &mut shift)?;
        margins.push(set.margins(&scores[0].raw[0]));
    }

    let mut margins = margins.into_iter();
    let interpolations = lines
        .iter()
        .map(|&[first, last]| {
            let inner = margins.by_ref().take(curves::STEPS - 1);
            let ends = |member: usize| set.margins(&judges.rewards[member]);
            let along: Vec<Vec<f64>> = [ends(first)].into_iter().chain(inner).chain([ends(last)]).collect();
            Interpolation::new(&names[first], &names[last], &along)
        })
        .collect();
    let mut count_of = |subsets: &Vec<Vec<usize>>| {
        let members = subsets[0].len();
        let ens: Vec<f64> = subsets.iter().map(|subset| ens_accuracy(config, set, judges, subset)).collect();
        let warm: Vec<f64> = match members {
            1 => subsets.iter().map(|subset| metrics::accuracy(&set.margins(&judges.rewards[subset[0]]))).collect(),
            _ => margins.by_ref().take(subsets.len()).map(|margins| metrics::accuracy(&margins)).collect(),
        };
        MemberCount {
            members,
            subsets: subsets.len(),
            all_subsets: curves::count_subsets(names.len(), members),
            warm: Band::new(&warm),
            ens: Band::new(&ens),
        }
    };
    let counts = subsets.iter().map(&mut count_of).collect();
    Ok((interpolations, counts))
}

fn ens_accuracy(config: &Config, set: &PairSet, judges: &Judges, members: &[usize]) -> f64 {
    let reward = |sample: usize| {
        let calibrated = |&member: &usize| {
            let raw = f64::from(judges.rewards[member][sample]);
            judges.calibrations[member].map_or(raw, |calibration| calibration.apply(raw))
        };
        config.reduction.apply(&members.iter().map(calibrated).collect::<Vec<_>>()) as f32
    };
    let rewards: Vec<f32> = (0..judges.rewards[0].len()).map(reward).collect();
    metrics::accuracy(&set.margins(&rewards))
}

// ---- best-of-n ----

/// Prompts whose responses can all be scored.
struct Choices {
    file: Arc<Path>,
    /// `[prompts][responses]`, with the line of each prompt.
    prompts: Vec<(usize, Vec<(Input, Sample)>)>,
    unscorable: Vec<Unscorable>,
}

impl Choices {
    fn new(
        path: &Path,
        candidates: &[best_of_n::Candidates],
        pool: &mut Pool,
        tokenizer: &SampleTokenizer,
        truncation: Truncation,
    ) -> Self {
        let mut choices = Self { file: path.into(), prompts: Vec::new(), unscorable: Vec::new() };
        for candidates in candidates {
            match add_responses(pool, &choices.file, candidates.line, &candidates.responses, tokenizer, truncation)
            {
                Ok(samples) => {
                    let responses = candidates.responses.iter().cloned().zip(samples).collect();
                    choices.prompts.push((candidates.line, responses));
                }
                Err(problem) => choices.unscorable.push(Unscorable { line: candidates.line, problem }),
            }
        }
        choices
    }

    /// Loads the gold model and lets it judge what the others choose.
    fn judge(
        &mut self,
        config: &Config,
        gold: &Path,
        judges: &Judges,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> anyhow::Result<BestOfN> {
        // its own limit: `max_tokens` is about the models that are judged
        let variant = VariantConfig {
            dtype: config.dtype,
            device: config.device.clone(),
            ..VariantConfig::new("gold", Mode::Warm, vec![gold.to_owned()])
        };
        let gold = load(&mut Loader::default(), &variant, progress)?;
        let mut pool = Pool::default();
        let mut prompts: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (line, responses) in &self.prompts {
            let inputs: Vec<Input> = responses.iter().map(|(input, _)| input.clone()).collect();
            match add_responses(&mut pool, &self.file, *line, &inputs, &gold.tokenizer, config.truncation) {
                Ok(samples) => prompts.push((
                    responses.iter().map(|(_, sample)| sample.index).collect(),
                    samples.iter().map(|sample| sample.index).collect(),
                )),
                Err(problem) => {
                    self.unscorable.push(Unscorable { line: *line, problem: format!("gold model: {problem}") });
                }
            }
        }
        if prompts.is_empty() {
            let why = self.unscorable.first().map_or("", |unscorable| &unscorable.problem);
            bail!("no prompt of {} can be scored: {why}", self.file.display());
        }
        let everything: Vec<usize> = (0..pool.len()).collect();
        let runner = Runner { names: vec!["the gold model"], scorer: &gold.scorer };
        let scores = samples::score(
            &pool,
            &everything,
            &[runner],
            config.max_batch_tokens,
            "score with the gold model",
            progress,
        )?;
        let gold_rewards = &scores[0].raw[0];
        let most = prompts.iter().map(|(responses, _)| responses.len()).min().unwrap_or(1);
        let at = |n: usize| {
            let chosen_by = |rewards: Option<&Vec<f32>>| -> Vec<f64> {
                let of_prompt = |(proxy, gold): &(Vec<usize>, Vec<usize>)| {
                    let gold_f32: Vec<f32> = gold.iter().map(|&sample| gold_rewards[sample]).collect();
                    let gold: Vec<f64> = gold_f32.iter().map(|&reward| f64::from(reward)).collect();
                    let proxy = match rewards {
                        Some(rewards) => proxy.iter().map(|&sample| rewards[sample]).collect(),
                        None => gold_f32,
                    };
                    best_of_n::best_of_n(&proxy, &gold, n)
                };
                prompts.iter().map(of_prompt).collect()
            };
            let columns: Vec<Vec<f64>> = judges.rewards.iter().map(|rewards| chosen_by(Some(rewards))).collect();
            let resamples = Resamples::new(&columns, config.resamples, config.seed);
            let estimate = |(column, values): (usize, &Vec<f64>)| Estimate {
                value: metrics::mean(values.iter().copied()),
                interval: resamples.interval(|means| means[column]),
            };
            BestOfNPoint {
                n,
                kl: best_of_n::kl(n),
                models: columns.iter().enumerate().map(estimate).collect(),
                gold: metrics::mean(chosen_by(None).into_iter()),
            }
        };
        Ok(BestOfN {
            path: self.file.display().to_string(),
            gold: gold.info.members[0].path.clone(),
            gold_fingerprint: gold.info.fingerprint.clone(),
            prompts: prompts.len(),
            responses: most,
            unscorable: std::mem::take(&mut self.unscorable),
            points: best_of_n::sizes(most).into_iter().map(at).collect(),
        })
    }
}

/// All responses to a prompt, or why one of them cannot be scored.
fn add_responses(
    pool: &mut Pool,
    file: &Arc<Path>,
    line: usize,
    responses: &[Input],
    tokenizer: &SampleTokenizer,
    truncation: Truncation,
) -> Result<Vec<Sample>, String> {
    let origin = |number: usize| Origin { file: file.clone(), line, part: format!("response {number}") };
    let responses: Vec<_> = responses.iter().zip(1..).map(|(input, number)| (input, origin(number))).collect();
    let samples = pool.add(tokenizer, truncation, &responses);
    let numbered = |(sample, number): (Result<Sample, String>, usize)| {
        sample.map_err(|problem| format!("response {number}: {problem}"))
    };
    samples.into_iter().zip(1..).map(numbered).collect()
}
