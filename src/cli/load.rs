//! Loads variants and shows how far it is: a bar on a terminal, lines in the log.

use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;

use crate::model::ModelError;
use crate::model::variant::Loader;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;

/// Loads one variant, with a bar when standard error is a terminal.
pub(super) fn load(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    let bar = progress_bar(format!("load {}", config.name));
    let loaded = loader.load(config, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    loaded
}

/// A bar over bytes; invisible unless standard error is a terminal.
pub(super) fn progress_bar(message: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {eta}")
        .expect("the template is a constant that was tried");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(message);
    bar
}
