//! What `rewarm train` wrote down about its data: which lines it trained on, and which labels it had flipped.
//!
//! ```json
//! {"data": {"training": [{"path": "train.jsonl", "digest": "6b1f..", "training_lines": [1, 2], "flipped_lines": [2]}]}}
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::ensure;
use serde::Deserialize;

use crate::checkpoint::hex;
use crate::disk;
use crate::text::dataset::Dataset;

/// `train.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    training: Vec<TrainingFile>,
}

/// What became of one file of pairs.
#[derive(Debug, Deserialize)]
pub(super) struct TrainingFile {
    path: PathBuf,
    digest: String,
    training_lines: HashSet<usize>,
    flipped_lines: HashSet<usize>,
}

/// What a pair was to the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Trained on, as it is.
    Clean,
    /// Trained on with the wrong label.
    Corrupted,
    /// In the file, but not trained on.
    HeldOut,
}

impl Record {
    /// Reads a record; it must speak of at least one of `datasets`, by content.
    pub(super) fn read<'a>(
        path: &Path,
        mut datasets: impl Iterator<Item = &'a Dataset>,
    ) -> anyhow::Result<Self> {
        let act = || format!("read the training record {}", path.display());
        let text = disk::read_to_string(path, disk::VOCABULARY_BYTES).with_context(act)?;
        let record: Self = serde_json::from_str(&text).with_context(act)?;
        let training = &record.data.training;
        ensure!(!training.is_empty(), "{}: data.training is empty", path.display());
        ensure!(
            datasets.any(|dataset| record.file(dataset).is_some()),
            "{}: none of the pairs files has the content that was trained on: add --pairs train={} (digest {})",
            path.display(),
            training[0].path.display(),
            training[0].digest,
        );
        Ok(record)
    }

    /// What it says about the content of this file.
    pub(super) fn file(&self, dataset: &Dataset) -> Option<&TrainingFile> {
        let digest = hex(&dataset.digest);
        self.data.training.iter().find(|file| file.digest == digest)
    }
}

impl TrainingFile {
    /// Of the pair in this line.
    pub(super) fn role(&self, line: usize) -> Role {
        match (self.training_lines.contains(&line), self.flipped_lines.contains(&line)) {
            (_, true) => Role::Corrupted,
            (true, false) => Role::Clean,
            (false, false) => Role::HeldOut,
        }
    }

    /// Fails when the record names a line where the file has no pair.
    pub(super) fn check(&self, dataset: &Dataset) -> anyhow::Result<()> {
        let lines: HashSet<usize> =
            dataset.pairs.iter().map(|pair| pair.line).chain(dataset.equal_lines.iter().copied()).collect();
        for (name, recorded) in
            [("training_lines", &self.training_lines), ("flipped_lines", &self.flipped_lines)]
        {
            if let Some(line) = recorded.difference(&lines).min() {
                anyhow::bail!(
                    "the training record's {name} hold line {line}, where {} has no pair",
                    dataset.path.display()
                );
            }
        }
        Ok(())
    }
}
