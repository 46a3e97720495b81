//! Progress bars, on standard error; invisible unless that is a terminal.

use std::time::Duration;

use indicatif::HumanCount;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressState;
use indicatif::ProgressStyle;

/// A bar over bytes.
pub(super) fn bytes(message: &str) -> ProgressBar {
    styled("{msg} [{bar:40}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
        .with_message(message.to_owned())
}

/// A bar over `things`: pairs, texts, tokens.
pub(super) fn counted(message: &str, things: &str) -> ProgressBar {
    let numbers = "{human_pos}/{human_len}";
    let bar = styled(&format!("{{msg}} [{{bar:40}}] {numbers} {things}, {{rate}}/s, {{eta}} left"));
    bar.enable_steady_tick(Duration::from_millis(250)); // a batch may take long
    bar.with_message(message.to_owned())
}

/// A bar of another look; the template is a constant that was tried.
pub(super) fn styled(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .expect("the templates are constants that were tried")
        .with_key("rate", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{}", HumanCount(state.per_sec() as u64)); // drawn again soon
        })
        .progress_chars("=> ");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_can_be_read() {
        assert_eq!(
            (bytes("read").message(), counted("score", "pairs").message()),
            ("read".into(), "score".into())
        );
    }
}
