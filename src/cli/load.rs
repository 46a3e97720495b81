//! Loads variants, fetched from a hub if need be and tried in another process before, and shows how far it is: a bar on a
//! terminal, lines in the log.

use std::io;
use std::io::Write;
use std::path::PathBuf;

use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::trial;
use crate::cli::trial::Refusals;
use crate::cli::trial::Refused;
use crate::config::ConfigError;
use crate::hub::HubId;
use crate::model::ModelError;
use crate::model::device::Device;
use crate::model::trial::Subject;
use crate::model::variant::Checked;
use crate::model::variant::Loader;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::service::LoadError;
use crate::service::Loaded;

/// Loads one variant, with a bar when standard error is a terminal, and says there which card it is on, if it is one.
pub(super) fn load(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    let load = |loader: &mut Loader, configs: &[VariantConfig]| load_tried(loader, &configs[0]);
    let loaded = tried(loader, std::slice::from_ref(config), false, load)
        .unwrap_or_else(|problems| Err(problems.into_iter().map(|(_, problem)| problem).collect()));
    if let Ok(Variant { info, .. }) = &loaded
        && info.placement.devices[0].card().is_some()
    {
        let devices: Vec<String> = info.placement.devices.iter().map(Device::to_string).collect();
        // whoever has closed standard error does not want to know
        let _ = writeln!(io::stderr(), "{}: {} on {}", info.name, info.dtype.name(), devices.join(", "));
    }
    loaded
}

/// Loads what a server serves, tried all at once.
pub(super) fn all(loader: &mut Loader, configs: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError> {
    let failed = |config: &VariantConfig, source| LoadError::Model { variant: config.name.clone(), source };
    let load_one = |loader: &mut Loader, config: &VariantConfig| {
        tracing::info!(variant = config.name, members = config.members.len(), "loading variant");
        let golden = config.golden_rewards().map_err(|source| failed(config, source))?;
        let variant = load_tried(loader, config).map_err(|source| failed(config, source))?;
        Ok(Loaded { variant, golden })
    };
    let load = |loader: &mut Loader, configs: &[VariantConfig]| {
        loader.check_memory(configs).map_err(|(index, problem)| match index {
            Some(index) => failed(&configs[index], problem),
            None => LoadError::Together(problem),
        })?;
        configs.iter().map(|config| load_one(loader, config)).collect()
    };
    tried(loader, configs, true, load).unwrap_or_else(|problems| {
        let mut errors: Vec<LoadError> =
            problems.into_iter().map(|(index, problem)| failed(&configs[index], problem)).collect();
        Err(if errors.len() == 1 { errors.remove(0) } else { LoadError::Several(errors) })
    })
}

/// Everything that can be checked without reading weights: what each variant is, or all that is wrong with any.
pub(super) fn check(configs: &[VariantConfig]) -> Result<Vec<Checked>, ConfigError> {
    let check_all = |loader: &mut Loader, configs: &[VariantConfig]| {
        configs.iter().map(|config| check_tried(loader, config)).collect::<Vec<_>>()
    };
    let outcomes = match tried(&mut Loader::default(), configs, true, check_all) {
        Ok(outcomes) => outcomes,
        Err(problems) => return Err(ConfigError::of_variants(configs, problems)),
    };
    let (mut checked, mut problems) = (Vec::new(), Vec::new());
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(variant) => checked.push(variant),
            Err(problem) => problems.push((index, problem)),
        }
    }
    if problems.is_empty() { Ok(checked) } else { Err(ConfigError::of_variants(configs, problems)) }
}

/// What is wrong with a configuration, and with the checkpoints that it names: those that are here.
pub(super) fn look_further(mut error: ConfigError) -> ConfigError {
    let is_here = |path: &PathBuf| HubId::of(path).is_none();
    let mut variants = std::mem::take(&mut error.readable);
    for variant in &mut variants {
        variant.members.retain(is_here);
        variant.base.take_if(|base| !is_here(base));
    }
    variants.retain(|variant| !variant.members.is_empty());
    if let Err(found) = check(&variants) {
        error.problems.extend(found.problems);
    }
    error
}

/// Fetches variants and tries them, then lets `load` read them, if nothing is wrong with any. Else all that is wrong, by the
/// indices of the variants: what would be found by loading the others, too.
fn tried<T>(
    loader: &mut Loader,
    configs: &[VariantConfig],
    with_golden: bool,
    mut load: impl FnMut(&mut Loader, &[VariantConfig]) -> T,
) -> Result<T, Vec<(usize, ModelError)>> {
    let (mut fetcher, mut fetched, mut problems) = (Fetcher::default(), Vec::new(), Vec::new());
    for (index, config) in configs.iter().enumerate() {
        match fetcher.variant(config) {
            Ok(config) => fetched.push((index, config)),
            Err(problem) => problems.push((index, problem)),
        }
    }
    let here: Vec<VariantConfig> = fetched.iter().map(|(_, config)| config.clone()).collect();
    let subjects: Vec<Subject> = here.iter().map(|config| subject(config, with_golden)).collect();
    let of_trial = |Refused { subject, problem }: &Refused| {
        let index = fetched.get(*subject).map_or(0, |(index, _)| *index);
        (index, ModelError::Refused(problem.clone()))
    };
    let has_problems = !problems.is_empty();
    let outcome = trial::then(&subjects, |refused| {
        if refused.is_empty() && !has_problems {
            return Ok(load(loader, &here));
        }
        let is_refused = |place: usize| refused.iter().any(|refused| refused.subject == place);
        let others = fetched.iter().enumerate().filter(|(place, _)| !is_refused(*place));
        let found =
            others.filter_map(|(_, (index, config))| Some((*index, check_tried(loader, config).err()?)));
        Err(refused.iter().map(of_trial).chain(found).collect::<Vec<_>>())
    });
    let found = match outcome {
        Ok(Ok(loaded)) => return Ok(loaded),
        Ok(Err(found)) => found,
        Err(Refusals(refused)) => refused.iter().map(of_trial).collect(),
    };
    problems.extend(found);
    problems.sort_by_key(|(index, _)| *index);
    Err(problems)
}

/// The same in this process, which logs what is odd.
fn check_tried(loader: &mut Loader, config: &VariantConfig) -> Result<Checked, ModelError> {
    let checked = loader.check(config)?;
    config.golden_rewards()?;
    Ok(checked)
}

fn subject(config: &VariantConfig, with_golden: bool) -> Subject {
    Subject::Variant { config: config.clone(), with_golden }
}

fn load_tried(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    let bar = progress::bytes(&format!("load {}", config.name));
    let loaded = loader.load(config, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    loaded
}
