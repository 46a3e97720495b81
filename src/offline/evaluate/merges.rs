//! The merges that curves are made of: which there are, and what each one scores.

use tracing::subscriber::NoSubscriber;

use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;
use crate::offline::evaluate::Config;
use crate::offline::evaluate::Curve;
use crate::offline::evaluate::Judges;
use crate::offline::evaluate::Progress;
use crate::offline::evaluate::curves;
use crate::offline::evaluate::curves::Band;
use crate::offline::evaluate::curves::Interpolation;
use crate::offline::evaluate::curves::MemberCount;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::load;
use crate::offline::evaluate::metrics;
use crate::offline::evaluate::samples;
use crate::offline::evaluate::samples::Pool;
use crate::offline::evaluate::samples::Runner;
use crate::offline::evaluate::sets::PairSet;
use crate::offline::evaluate::variant_config;

/// The set that the curves are measured on: the named file's, or else the first that nothing was trained on.
pub(super) fn set<'a>(config: &Config, sets: &'a [PairSet]) -> Option<&'a PairSet> {
    if config.curve == Curve::Off && config.subsets == 0 {
        return None;
    }
    let is_named = |set: &&PairSet| config.curve_on.as_ref().is_none_or(|name| *name == set.file_name);
    let is_unseen = |set: &&PairSet| matches!(set.part, Part::All | Part::HeldOut);
    let mut named = sets.iter().filter(is_named);
    let unseen = sets.iter().filter(is_named).find(is_unseen);
    unseen.or_else(|| named.next())
}

/// A merge that a curve needs.
struct Merge {
    members: Vec<usize>,
    /// Equal when absent.
    coefficients: Option<Vec<f64>>,
}

pub(super) fn follow(
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
    let merges: Vec<Merge> = on_lines
        .chain(of_subsets.map(|subset| Merge { members: subset.clone(), coefficients: None }))
        .collect();

    let samples = set.samples();
    let each = pool.tokens(&samples);
    let mut margins = Vec::with_capacity(merges.len());
    for (merge, done) in merges.iter().zip(0..) {
        let members = merge.members.iter().map(|&member| config.members[member].clone()).collect();
        let variant = VariantConfig {
            coefficients: merge.coefficients.clone(),
            ..variant_config(config, "a merge of the curves", Mode::Warm, members)
        };
        // a loader of its own: nothing is kept when it goes; what there is to warn of was told with WARM and ENS
        let load = || load(&mut Loader::default(), &variant, &mut |_| ());
        let variant = tracing::subscriber::with_default(NoSubscriber::default(), load)?;
        let runner = Runner { names: vec!["a merge of the curves"], scorer: &variant.scorer };
        let mut shift = |inner: Progress<'_>| {
            let total = each * merges.len() as u64;
            progress(Progress { what: "curves", done: each * done + inner.done, total, ..inner });
        };
        let scores =
            samples::score(pool, &samples, &[runner], config.max_batch_tokens, "curves", &mut shift)?;
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
            1 => subsets
                .iter()
                .map(|subset| metrics::accuracy(&set.margins(&judges.rewards[subset[0]])))
                .collect(),
            _ => margins.by_ref().take(subsets.len()).map(|margins| metrics::accuracy(&margins)).collect(),
        };
        MemberCount {
            members,
            subsets: subsets.len(),
            all_subsets: curves::count_subsets(names.len(), members),
            warm: Band::new(&warm, set.pairs.len()),
            ens: Band::new(&ens, set.pairs.len()),
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
