//! Loads variants and shows how far it is: a bar on a terminal, lines in the log.

use crate::cli::progress;
use crate::model::ModelError;
use crate::model::variant::Loader;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;

/// Loads one variant, with a bar when standard error is a terminal.
pub(super) fn load(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    let bar = progress::bytes(&format!("load {}", config.name));
    let loaded = loader.load(config, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    loaded
}
