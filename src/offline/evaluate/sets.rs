//! Sets of pairs: from a file to samples, and from rewards to what is told of them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;

use crate::checkpoint::hex;
use crate::offline::evaluate::NamedFile;
use crate::offline::evaluate::bootstrap::Resamples;
use crate::offline::evaluate::evaluation::Agreement;
use crate::offline::evaluate::evaluation::Difference;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::LengthBaseline;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::evaluation::ModelResult;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::evaluation::SourceResult;
use crate::offline::evaluate::evaluation::Unscorable;
use crate::offline::evaluate::interval;
use crate::offline::evaluate::interval::Discordant;
use crate::offline::evaluate::metrics;
use crate::offline::evaluate::record::Record;
use crate::offline::evaluate::record::Role;
use crate::offline::evaluate::samples::Origin;
use crate::offline::evaluate::samples::Pool;
use crate::offline::evaluate::samples::Sample;
use crate::text::SampleTokenizer;
use crate::text::Truncation;
use crate::text::dataset::Dataset;

/// What differences call the member with the highest share.
const BEST_MEMBER: &str = "best member";

/// Pairs of one file, or of a part of it.
#[derive(Debug)]
pub(super) struct PairSet {
    pub(super) name: String,
    /// As given.
    pub(super) file_name: String,
    pub(super) part: Part,
    path: String,
    pub(super) digest: String,
    /// What is judged, never nothing.
    pub(super) pairs: Vec<Pair>,
    pub(super) unscorable: Vec<Unscorable>,
    equal_lines: Vec<usize>,
}

/// A pair of samples of the pool.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// In its file, from 1.
    pub(super) line: usize,
    pub(super) source: Option<String>,
    pub(super) chosen: Sample,
    pub(super) rejected: Sample,
}

impl Pair {
    /// The chosen response's surplus of tokens; the prompt is the same.
    fn longer_by(&self) -> i64 {
        self.chosen.tokens as i64 - self.rejected.tokens as i64
    }
}

impl PairSet {
    /// Chosen minus rejected reward of each pair; `rewards` are those of the pool.
    pub(super) fn margins(&self, rewards: &[f32]) -> Vec<f64> {
        let margin =
            |pair: &Pair| f64::from(rewards[pair.chosen.index]) - f64::from(rewards[pair.rejected.index]);
        self.pairs.iter().map(margin).collect()
    }

    /// Each sample of the pool that is in here, once.
    pub(super) fn samples(&self) -> Vec<usize> {
        self.responses().map(|sample| sample.index).collect::<BTreeSet<usize>>().into_iter().collect()
    }

    /// Chosen, rejected, chosen, ..
    fn responses(&self) -> impl Iterator<Item = Sample> {
        self.pairs.iter().flat_map(|pair| [pair.chosen, pair.rejected])
    }
}

/// Puts a file's pairs into the pool: one set, or with a training record of this file up to three.
///
/// Fails when no pair of the file can be scored.
pub(super) fn split(
    file: &NamedFile,
    dataset: &Dataset,
    record: Option<&Record>,
    pool: &mut Pool,
    tokenizer: &SampleTokenizer,
    truncation: Truncation,
) -> anyhow::Result<Vec<PairSet>> {
    let path: Arc<Path> = dataset.path.as_path().into();
    let origin = |line, part: &str| Origin { file: path.clone(), line, part: part.to_owned() };
    let responses: Vec<_> = dataset
        .pairs
        .iter()
        .flat_map(|pair| {
            [(&pair.chosen, origin(pair.line, "chosen")), (&pair.rejected, origin(pair.line, "rejected"))]
        })
        .collect();
    let samples = pool.add(tokenizer, truncation, &responses);

    let trained_on = record.and_then(|record| record.file(dataset));
    if let Some(trained_on) = trained_on {
        trained_on.check(dataset)?;
    }
    let parts: &[(Part, &str)] = match trained_on {
        None => &[(Part::All, "")],
        Some(_) => {
            &[(Part::Clean, " (clean)"), (Part::Corrupted, " (corrupted)"), (Part::HeldOut, " (held out)")]
        }
    };
    let mut sets: Vec<PairSet> = parts
        .iter()
        .map(|&(part, suffix)| PairSet {
            name: format!("{}{suffix}", file.name),
            file_name: file.name.clone(),
            part,
            path: dataset.path.display().to_string(),
            digest: hex(&dataset.digest),
            pairs: Vec::new(),
            unscorable: Vec::new(),
            equal_lines: dataset.equal_lines.clone(),
        })
        .collect();
    for (pair, samples) in dataset.pairs.iter().zip(samples.chunks(2)) {
        let part = match trained_on.map(|file| file.role(pair.line)) {
            None => Part::All,
            Some(Role::Clean) => Part::Clean,
            Some(Role::Corrupted) => Part::Corrupted,
            Some(Role::HeldOut) => Part::HeldOut,
        };
        for set in sets.iter_mut().filter(|set| set.part == part) {
            match samples {
                [Ok(chosen), Ok(rejected)] => set.pairs.push(Pair {
                    line: pair.line,
                    source: pair.source.clone(),
                    chosen: *chosen,
                    rejected: *rejected,
                }),
                _ => {
                    let name = |(part, sample): (&str, &Result<Sample, String>)| {
                        sample.as_ref().err().map(|problem| format!("{part}: {problem}"))
                    };
                    let problems: Vec<String> =
                        ["chosen", "rejected"].into_iter().zip(samples).filter_map(name).collect();
                    set.unscorable.push(Unscorable { line: pair.line, problem: problems.join("; ") });
                }
            }
        }
    }
    let unscorable = sets.iter().flat_map(|set| &set.unscorable).next();
    ensure!(
        sets.iter().any(|set| !set.pairs.is_empty()),
        "no pair of {} can be scored: {}",
        dataset.path.display(),
        unscorable.map_or(String::new(), |pair| format!("line {}: {}", pair.line, pair.problem))
    );
    // a part that lost all its pairs has no figures, but what it lost is told by another
    let lost: Vec<Unscorable> =
        sets.iter().filter(|set| set.pairs.is_empty()).flat_map(|set| set.unscorable.clone()).collect();
    sets.retain(|set| !set.pairs.is_empty());
    sets[0].unscorable.extend(lost);
    Ok(sets)
}

/// Everything that is told of one set; `rewards` is `[models][samples of the pool]`.
pub(super) fn evaluate(
    set: &PairSet,
    models: &[ModelInfo],
    rewards: &[Vec<f32>],
    resamples: usize,
    seed: u64,
) -> SetResult {
    let margins: Vec<Vec<f64>> = rewards.iter().map(|rewards| set.margins(rewards)).collect();
    let of_responses: Vec<Vec<f64>> = rewards
        .iter()
        .map(|rewards| set.responses().map(|sample| f64::from(rewards[sample.index])).collect())
        .collect();
    let lengths: Vec<f64> = set.responses().map(|sample| sample.tokens as f64).collect();
    let longer_by: Vec<i64> = set.pairs.iter().map(Pair::longer_by).collect();

    let compare = |is_hit: fn(f64) -> bool| compare(&margins, is_hit, models, resamples, seed);
    let (accuracies, differences) = compare(|margin| margin > 0.0);
    let is_best = |difference: &Difference| difference.against.starts_with(BEST_MEMBER);
    let (memorised, memorised_differences) = match set.part {
        Part::Corrupted => {
            let (memorised, mut differences) = compare(|margin| margin < 0.0);
            // nobody wants to be the one that memorises most
            differences.retain(|difference| !is_best(difference));
            (memorised.into_iter().map(Some).collect(), differences)
        }
        Part::All | Part::Clean | Part::HeldOut => (vec![None; models.len()], Vec::new()),
    };

    let result = |model: usize| {
        let margins = &margins[model];
        ModelResult {
            name: models[model].name.clone(),
            accuracy: accuracies[model],
            accuracy_ties_half: metrics::mean(margins.iter().map(|&margin| metrics::half_right(margin))),
            ties: metrics::ties(margins),
            mean_margin: metrics::mean(margins.iter().copied()),
            log_loss: metrics::log_loss(margins),
            reliability: metrics::reliability(margins),
            length_controlled: metrics::length_controlled(margins, &longer_by),
            reward_length_pearson: metrics::pearson(&of_responses[model], &lengths),
            reward_length_spearman: metrics::spearman(&of_responses[model], &lengths),
            memorised: memorised[model],
        }
    };
    let by_length: Vec<f64> = longer_by.iter().map(|&longer_by| longer_by as f64).collect();
    SetResult {
        name: set.name.clone(),
        part: set.part,
        path: set.path.clone(),
        digest: set.digest.clone(),
        pairs: set.pairs.len(),
        truncated_pairs: set
            .pairs
            .iter()
            .filter(|pair| pair.chosen.truncated_tokens + pair.rejected.truncated_tokens > 0)
            .count(),
        unscorable: set.unscorable.clone(),
        equal_lines: set.equal_lines.clone(),
        length_baseline: LengthBaseline {
            accuracy: metrics::accuracy(&by_length),
            accuracy_ties_half: metrics::mean(by_length.iter().map(|&margin| metrics::half_right(margin))),
        },
        models: (0..models.len()).map(result).collect(),
        differences,
        differences_against: Vec::new(),
        memorised_differences,
        agreement: Agreement {
            same_side: matrix(&margins, metrics::agreement),
            pearson: matrix(&of_responses, metrics::pearson),
            spearman: matrix(&of_responses, metrics::spearman),
        },
        sources: sources(set, &margins),
    }
}

/// The share of hits of each model, and how they differ; bootstraps are all of the same resamples.
fn compare(
    margins: &[Vec<f64>],
    is_hit: fn(f64) -> bool,
    models: &[ModelInfo],
    resamples: usize,
    seed: u64,
) -> (Vec<Estimate>, Vec<Difference>) {
    let hits: Vec<Vec<bool>> =
        margins.iter().map(|margins| margins.iter().map(|&margin| is_hit(margin)).collect()).collect();
    let columns: Vec<Vec<f64>> =
        hits.iter().map(|hits| hits.iter().map(|&hit| f64::from(u8::from(hit))).collect()).collect();
    let shares: Vec<f64> = columns.iter().map(|column| metrics::mean(column.iter().copied())).collect();
    let resamples = Resamples::new(&columns, resamples, seed);
    let pairs = columns[0].len();
    let estimate = |model: usize| Estimate {
        value: shares[model],
        interval: interval::wilson(columns[model].iter().sum(), pairs),
        bootstrap: resamples.interval(|means| means[model]),
    };
    let differ = |of: usize, against: usize, name: String| {
        let discordant = Discordant::count(&hits[of], &hits[against]);
        let estimate = Estimate {
            value: shares[of] - shares[against],
            interval: discordant.interval(),
            bootstrap: resamples.interval(|means| means[of] - means[against]),
        };
        Difference { of: models[of].name.clone(), against: name, estimate, paired: Some(discordant.into()) }
    };
    let of_kind =
        |kind| models.iter().enumerate().filter(move |(_, model)| model.kind == kind).map(|(at, _)| at);
    let members: Vec<usize> = of_kind(Kind::Member).collect();
    let (warm, ens) = (of_kind(Kind::Warm).next(), of_kind(Kind::Ens).next());
    let mean_of_members = |means: &[f64]| metrics::mean(members.iter().map(|&member| means[member]));
    let from_mean = |of: usize| {
        let rows = (0..pairs).map(|pair| {
            columns[of][pair] - metrics::mean(members.iter().map(|&member| columns[member][pair]))
        });
        let estimate = Estimate {
            value: shares[of] - mean_of_members(&shares),
            interval: interval::of_mean_difference(rows),
            bootstrap: resamples.interval(|means| means[of] - mean_of_members(means)),
        };
        Difference { of: models[of].name.clone(), against: "mean member".to_owned(), estimate, paired: None }
    };

    let mut differences = Vec::new();
    differences.extend(warm.zip(ens).map(|(warm, ens)| differ(warm, ens, models[ens].name.clone())));
    let made = || warm.into_iter().chain(ens);
    if let Some(start) = of_kind(Kind::Start).next() {
        let single = (members.len() == 1).then_some(members[0]);
        differences.extend(made().chain(single).map(|of| differ(of, start, models[start].name.clone())));
    }
    match members.as_slice() {
        [] => {}
        &[only] => differences.extend(warm.map(|warm| differ(warm, only, models[only].name.clone()))),
        [first, ..] => {
            // of equals the first
            let best = members
                .iter()
                .fold(*first, |best, &member| if shares[member] > shares[best] { member } else { best });
            let name = format!("{BEST_MEMBER} ({})", models[best].name);
            differences.extend(made().map(|of| differ(of, best, name.clone())));
            differences.extend(made().chain(members.iter().copied()).map(from_mean));
        }
    }
    ((0..models.len()).map(estimate).collect(), differences)
}

fn matrix<T>(models: &[Vec<f64>], of: fn(&[f64], &[f64]) -> T) -> Vec<Vec<T>> {
    models.iter().map(|left| models.iter().map(|right| of(left, right)).collect()).collect()
}

fn sources(set: &PairSet, margins: &[Vec<f64>]) -> Vec<SourceResult> {
    let mut of_source: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (number, pair) in set.pairs.iter().enumerate() {
        of_source.entry(pair.source.as_deref()).or_default().push(number);
    }
    if of_source.keys().all(Option::is_none) {
        return Vec::new();
    }
    of_source
        .into_iter()
        .map(|(source, pairs)| {
            let accuracy = |margins: &Vec<f64>| {
                metrics::accuracy(&pairs.iter().map(|&pair| margins[pair]).collect::<Vec<_>>())
            };
            SourceResult {
                source: source.map(str::to_owned),
                pairs: pairs.len(),
                accuracy: margins.iter().map(accuracy).collect(),
            }
        })
        .collect()
}
