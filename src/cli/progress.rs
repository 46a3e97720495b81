//! Progress bars, on standard error; invisible unless that is a terminal.
//!
//! A bar is drawn anew four times a second, and its first letter turns, so that a long step does not look like a dead program.
//! It is one line: what has no room at its end is cut. Rates and the time that is left are those of the last seconds.

use std::time::Duration;

use console::Term;
use indicatif::HumanCount;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressState;
use indicatif::ProgressStyle;

/// Between two drawings.
const TICK: Duration = Duration::from_millis(250);
/// Fewer columns have no room for a bar and numbers.
const WIDE: u16 = 84;

/// A bar over bytes.
pub(super) fn bytes(message: &str) -> ProgressBar {
    styled("{bytes}/{total_bytes}, {bytes_per_sec}").with_message(message.to_owned())
}

/// A bar over `things`: pairs, texts, tokens.
pub(super) fn counted(message: &str, things: &str) -> ProgressBar {
    styled(&format!("{{human_pos}}/{{human_len}} {things}, {{rate}}/s")).with_message(message.to_owned())
}

/// A bar with these numbers behind it, the time that is left, and a message that is cut to what room there is.
pub(super) fn styled(numbers: &str) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let is_drawn = !target.is_hidden();
    let bar = ProgressBar::with_draw_target(None, target).with_style(style(numbers, Term::stderr().size().1));
    if is_drawn {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// On a terminal of so many columns.
fn style(numbers: &str, columns: u16) -> ProgressStyle {
    let template = if columns < WIDE {
        "{spinner} {percent}%, {eta} left: {wide_msg}".to_owned()
    } else {
        format!("{{spinner}} [{{bar:24}}] {numbers}, {{eta}} left: {{wide_msg}}")
    };
    ProgressStyle::with_template(&template)
        .expect("the templates are constants that were tried")
        .with_key("rate", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{}", HumanCount(state.per_sec() as u64)); // drawn again soon
        })
        .tick_chars("|/-\\ ")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_can_be_read() {
        for columns in [20, WIDE] {
            for numbers in ["{percent}%", "{pos}/{len}", "{bytes}/{total_bytes}"] {
                style(numbers, columns);
            }
        }
        assert_eq!(
            (bytes("read").message(), counted("score", "pairs").message()),
            ("read".into(), "score".into())
        );
    }
}
