//! Starts the log: text or JSON, to standard error.
//!
//! ERROR wants a person, WARN is odd but survived, INFO is a change of state, DEBUG is per request. Prompts and
//! responses are never logged.
//!
//! What callers and files say may be part of a line (an error quotes an id, a template's refusal), and must not
//! look like a line of ours: in text, whatever would break or move a line is escaped as it is written; JSON does
//! so by itself. Panics are log lines like any other.

use std::borrow::Cow;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object per line, for machines.
    Json,
}

/// What is logged: a level, or directives such as `info,h2=debug`. A level is that of our crates: what others say (tokenizers
/// some lines for each text, at trace) is logged from WARN on, unless a directive names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl Default for Level {
    fn default() -> Self {
        Self(of_ours("info"))
    }
}

impl Level {
    /// For commands whose output is not a log: only what is odd.
    pub fn warnings() -> Self {
        Self("warn".to_owned())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let filter: Result<EnvFilter, _> = EnvFilter::builder().parse(text);
        // a word alone could be the name of a crate, of which all would be logged, and nothing of the others
        let is_whole =
            |word: &str| word.is_empty() || word.contains(['=', '[']) || word.parse::<LevelFilter>().is_ok();
        match filter {
            Ok(_) if !text.trim().is_empty() && text.split(',').all(|word| is_whole(word.trim())) => {
                Ok(Self(of_ours(text)))
            }
            _ => Err(format!("`{text}` is not a log level such as `info`, or `info,rewarm=debug`")),
        }
    }
}

/// Directives in which those that name nobody are for our crates, whose names all begin with `rewarm`.
fn of_ours(text: &str) -> String {
    let one = |directive: &str| match directive.trim().parse::<LevelFilter>() {
        Ok(level) => format!("{},rewarm={level}", level.min(LevelFilter::WARN)),
        Err(_) => directive.to_owned(),
    };
    // what names nobody first: of two for the same the last one counts
    let (levels, named): (Vec<&str>, Vec<&str>) = text
        .split(',')
        .filter(|directive| !directive.trim().is_empty())
        .partition(|directive| directive.trim().parse::<LevelFilter>().is_ok());
    levels.into_iter().chain(named).map(one).collect::<Vec<_>>().join(",")
}

/// How to log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How lines look.
    pub format: Format,
    /// What is logged.
    pub level: Level,
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(config: &Config) {
    let is_terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_ansi(is_terminal)
        .with_env_filter(EnvFilter::new(&config.level.0))
        // It would complain of an unwritable standard error on standard error, and panic: a server must outlive
        // whoever collects its log.
        .log_internal_errors(false);
    // A program that embeds this library, or another test, may have been first.
    let started = match config.format {
        Format::Text => builder.with_writer(move || Lines { to: io::stderr(), is_terminal }).try_init(),
        Format::Json => builder.with_writer(io::stderr).json().flatten_event(true).try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            let location = panic.location().map(ToString::to_string);
            let message: String =
                panic.payload_as_str().unwrap_or_default().chars().take(MAX_PANIC).collect();
            tracing::error!(thread, location, message, "panicked");
        }));
    }
}

/// Characters of a panic's message that are logged: it may quote the text that was worked on.
const MAX_PANIC: usize = 200;

/// Takes one event with each write, and makes one line of it.
struct Lines<W> {
    to: W,
    /// Colours are ours; what callers wrote was escaped before they were added.
    is_terminal: bool,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.to.write_all(one_line(event, self.is_terminal).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// An event whose only line feed is its last byte, and that holds nothing else that moves a terminal's cursor.
fn one_line(event: &[u8], keeps_colours: bool) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(event);
    let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
    // the last two end a line for those who follow Unicode
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let is_bad = |c: char| breaks(c) && !(keeps_colours && c == '\u{1b}');
    if !line.contains(is_bad) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in line.chars() {
        match is_bad(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    (escaped + end).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_our_crates() {
        for (text, directives) in [
            ("trace", "warn,rewarm=trace"),
            ("ERROR", "error,rewarm=error"),
            ("off", "off,rewarm=off"),
            ("h2=debug, info,", "warn,rewarm=info,h2=debug"),
            ("info,rewarm=debug", "warn,rewarm=info,rewarm=debug"),
            ("tokenizers=trace", "tokenizers=trace"),
        ] {
            assert_eq!(text.parse::<Level>().unwrap().0, directives);
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let forged = "refused \"a\n2026-11-27 ERROR forged\r\u{1b}[2K\u{85}\u{2028}\t\"\n";
        assert_eq!(
            one_line(forged.as_bytes(), false),
            "refused \"a\\n2026-11-27 ERROR forged\\r\\u{1b}[2K\\u{85}\\u{2028}\\t\"\n"
        );
        let coloured = "\u{1b}[32m INFO\u{1b}[0m ready\n";
        assert_eq!(one_line(coloured.as_bytes(), true), coloured);
        assert_eq!(one_line("plain é\n".as_bytes(), false), "plain é\n");
    }
}
