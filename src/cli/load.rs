//! Loads variants, fetched from a hub if need be and tried in another process before, and shows how far it is: a bar on a
//! terminal, lines in the log.

use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::trial;
use crate::cli::trial::Refused;
use crate::model::ModelError;
use crate::model::trial::Subject;
use crate::model::variant::Loader;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::service::LoadError;
use crate::service::Loaded;
use crate::text::TextRule;

/// Loads one variant, with a bar when standard error is a terminal.
pub(super) fn load(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    let config = &Fetcher::default().variant(config)?;
    trial::then(&[subject(config, false)], || load_tried(loader, config))
        .unwrap_or_else(|Refused { problem, .. }| Err(ModelError::Refused(problem)))
}

/// Loads what a server serves, tried all at once.
pub(super) fn all(loader: &mut Loader, configs: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError> {
    let failed = |config: &VariantConfig, source| LoadError::Model { variant: config.name.clone(), source };
    let mut load = |config: &VariantConfig| {
        tracing::info!(variant = config.name, members = config.members.len(), "loading variant");
        let golden = config.golden_rewards().map_err(|source| failed(config, source))?;
        let variant = load_tried(loader, config).map_err(|source| failed(config, source))?;
        Ok(Loaded { variant, golden })
    };
    let mut fetcher = Fetcher::default();
    let fetch = |config| fetcher.variant(config).map_err(|source| failed(config, source));
    let configs = configs.iter().map(fetch).collect::<Result<Vec<_>, _>>()?;
    let subjects: Vec<Subject> = configs.iter().map(|config| subject(config, true)).collect();
    trial::then(&subjects, || configs.iter().map(&mut load).collect()).unwrap_or_else(
        |Refused { subject, problem }| Err(failed(&configs[subject], ModelError::Refused(problem))),
    )
}

/// Everything that can be checked without reading weights. Returns the text rule.
pub(super) fn check(loader: &mut Loader, config: &VariantConfig) -> Result<Option<TextRule>, ModelError> {
    let config = &Fetcher::default().variant(config)?;
    // again in this process, which logs what is odd
    let check = || {
        let text_rule = loader.check(config)?;
        config.golden_rewards()?;
        Ok(text_rule)
    };
    trial::then(&[subject(config, true)], check)
        .unwrap_or_else(|Refused { problem, .. }| Err(ModelError::Refused(problem)))
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
