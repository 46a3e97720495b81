//! Starts the log: text or JSON, to standard error.
//!
//! ERROR wants a person, WARN is odd but survived, INFO is a change of state, DEBUG is per request. Prompts and
//! responses are never logged.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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

/// What is logged: a level, or directives such as `info,rewarm=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
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
        match filter {
            Ok(_) if !text.trim().is_empty() => Ok(Self(text.to_owned())),
            _ => Err(format!("`{text}` is not a log level such as `info`, or `info,rewarm=debug`")),
        }
    }
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
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(EnvFilter::new(&config.level.0))
        // It would complain of an unwritable standard error on standard error, and panic: a server must outlive
        // whoever collects its log.
        .log_internal_errors(false);
    // A program that embeds this library, or another test, may have been first.
    let _ = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
