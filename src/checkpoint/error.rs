//! What can be wrong with the files of a checkpoint.

use std::path::Path;
use std::path::PathBuf;

/// Why a checkpoint cannot be read, averaged or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a checkpoint directory.
    #[error("{}: {problem}", path.display())]
    NoCheckpoint {
        /// Which directory.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        problem: String,
    },
    /// A JSON file says something that we cannot follow.
    #[error("{}: {problem}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Names the field and the value.
        problem: String,
    },
    /// A weights file that is not whole.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The config promises a tensor that the files do not hold.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Which.
        name: String,
    },
    /// NaN or infinity among the weights.
    #[error("tensor `{name}` holds a value that is not finite in this precision ({value})")]
    NotFiniteWeight {
        /// Which tensor.
        name: String,
        /// The value.
        value: f64,
    },
    /// Something that we cannot follow faithfully.
    #[error("{0}")]
    Unsupported(String),
}

impl CheckpointError {
    /// A file cannot be read.
    pub fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    /// A file cannot be written.
    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    /// A JSON file says something that we cannot follow.
    pub fn config(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Config { path: path.to_owned(), problem: problem.to_string() }
    }
}
