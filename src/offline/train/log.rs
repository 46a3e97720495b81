//! A member's log: one JSON line for each step and each validation, flushed as it is written.
//!
//! A run that goes on cuts the log back to the state it goes on from, so that each step is there once.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;
use serde::Serialize;

use crate::offline::train::metrics::Metrics;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogLine {
    /// A step, on its own pairs, with dropout, before its update.
    Training(TrainingLine),
    /// All validation pairs, after so many steps.
    Validation(ValidationLine),
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingLine {
    /// From 1.
    pub step: usize,
    /// From 0.
    pub epoch: usize,
    /// Both sides of its pairs.
    pub tokens: usize,
    /// Of its update.
    pub learning_rate: f64,
    /// Of its pairs, as they are labelled, turned round or not.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// What was minimised: the loss, and the centering term where there is one.
    pub objective: f64,
    /// Of all gradients together, before they are cut.
    pub gradient_norm: f64,
    /// How long it took.
    pub seconds: f64,
}

/// How the model judges pairs it does not learn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationLine {
    /// So many steps are done.
    pub step: usize,
    /// Of all validation pairs.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// How long it took.
    pub seconds: f64,
}

/// A log that is written.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Log {
    /// Opens the log and keeps its first `bytes`.
    pub(super) fn open(path: &Path, bytes: u64) -> anyhow::Result<Self> {
        let open = || -> io::Result<File> {
            let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
            if file.metadata()?.len() < bytes {
                return Err(io::Error::other("it is shorter than it was: lines were removed"));
            }
            file.set_len(bytes)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().with_context(|| format!("write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), bytes })
    }

    /// Adds a line, which others can read at once.
    pub(super) fn add(&mut self, line: &LogLine) -> anyhow::Result<()> {
        let text = serde_json::to_string(line).context("a log line as JSON")? + "\n";
        self.file.write_all(text.as_bytes()).with_context(|| format!("write {}", self.path.display()))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// How many bytes are safe on the disk.
    pub(super) fn sync(&self) -> anyhow::Result<u64> {
        self.file.sync_data().with_context(|| format!("write {}", self.path.display()))?;
        Ok(self.bytes)
    }
}

/// All lines of a log; of one that a run still writes, the whole ones.
pub fn read(path: &Path) -> anyhow::Result<Vec<LogLine>> {
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        match serde_json::from_slice(&line) {
            Ok(line) => lines.push(line),
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error).with_context(|| format!("{}:{number}", path.display())),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_back_to_where_a_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line = |step| {
            let metrics = Metrics { pairs: 3, loss: 0.5, accuracy: 1.0, margin: 0.25 };
            LogLine::Validation(ValidationLine { step, metrics, seconds: 0.125 })
        };
        let mut log = Log::open(&path, 0).unwrap();
        log.add(&line(1)).unwrap();
        let kept = log.sync().unwrap();
        log.add(&line(2)).unwrap();
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"kind\":\"trai").unwrap();
        assert_eq!(read(&path).unwrap(), [line(1), line(2)]);

        Log::open(&path, kept).unwrap().add(&line(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [line(1), line(3)]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"kind\":\"validation\",\"step\":1,\"pairs\":3,\"loss\":0.5,"), "{text}");
        let error = format!("{:#}", Log::open(&path, 10_000).unwrap_err());
        assert!(error.contains("log.jsonl: it is shorter than it was"), "{error}");
    }
}
