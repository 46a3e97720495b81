//! Why a model of the hub is not here.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::hub::settings::DOWNLOAD_TIMEOUT;

/// What went wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A variable that cannot be followed.
    #[error("{0}")]
    Setting(String),
    /// There is no such repository, or it is not ours to see.
    #[error(
        "{endpoint} has no model `{repo}`, or it is private: look at the name; {}",
        if *has_token { "if it is private, the token in HF_TOKEN must be allowed to read it" }
        else { "if it is private, set HF_TOKEN to a token that may read it" }
    )]
    NoRepository {
        /// "org/name"
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether we have shown one.
        has_token: bool,
    },
    /// The repository is there, the revision is not.
    #[error(
        "`{repo}` has no revision `{revision}`: see its branches, tags and commits at {endpoint}/{repo}/tree/main"
    )]
    NoRevision {
        /// "org/name"
        repo: String,
        /// A branch, a tag or a commit.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// Its owner asks for something first.
    #[error(
        "`{repo}` is gated: accept its conditions at {endpoint}/{repo}, {}",
        if *has_token { "with the account whose token is in HF_TOKEN (and let the token read gated repositories)" }
        else { "and set HF_TOKEN to a token of that account" }
    )]
    Gated {
        /// "org/name"
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether we have shown one.
        has_token: bool,
    },
    /// Expired, revoked or mistyped.
    #[error("{endpoint} does not know the token in HF_TOKEN (or in the token file): make another one")]
    BadToken {
        /// The hub.
        endpoint: String,
    },
    /// `HF_HUB_OFFLINE`, and the cache does not hold it whole.
    #[error(
        "`{id}` is not in the cache {}, or not whole ({problem}), and HF_HUB_OFFLINE forbids to fetch it: run once without it, \
         or `hf download`",
        cache.display()
    )]
    Offline {
        /// "org/name@revision"
        id: String,
        /// Where it was looked for.
        cache: PathBuf,
        /// What it lacks there.
        problem: String,
    },
    /// Nothing that can be read.
    #[error("`{id}` has no safetensors (and no pytorch_model.bin) at commit {commit}{}", list(others))]
    NoWeights {
        /// "org/name@revision"
        id: String,
        /// In hexadecimal.
        commit: String,
        /// What it has instead.
        others: Vec<String>,
    },
    /// No answer, or none that is an answer.
    #[error("{url} cannot be reached: {problem}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why not.
        problem: String,
    },
    /// Too long without a new byte of a file.
    #[error(
        "{url}: no new byte came for {} s, in {attempts} attempts ({problem}); {bytes} of {of} bytes are in the cache, and the same \
         command goes on from there; a longer {DOWNLOAD_TIMEOUT} waits longer",
        patience.as_secs()
    )]
    Stalled {
        /// What was asked for.
        url: String,
        /// Why the last attempt failed.
        problem: String,
        /// So many are there,
        bytes: u64,
        /// of so many.
        of: u64,
        /// So many failed since the last byte.
        attempts: u32,
        /// How long it was waited for another one.
        patience: Duration,
    },
    /// The disk has less room than what is still to be fetched.
    #[error(
        "`{id}` has {needed} bytes to fetch, and {free} are free on the disk of the cache {}: make room there, or point          HF_HUB_CACHE (or HF_HOME) to a larger one",
        cache.display()
    )]
    NoRoom {
        /// "org/name@revision"
        id: String,
        /// Bytes that are not in the cache yet.
        needed: u64,
        /// Bytes.
        free: u64,
        /// Where it would be.
        cache: PathBuf,
    },
    /// An answer that we cannot follow.
    #[error("{url}: {problem}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What came is not what the hub lists.
    #[error("`{file}` of `{id}`: {problem}")]
    Damaged {
        /// "org/name@revision"
        id: String,
        /// Its path in the repository.
        file: String,
        /// In what it differs.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error("{} {}, in the hub's cache", doing, path.display())]
    Cache {
        /// "write", for example.
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether what was fetched before may stand in: nobody said no.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. })
    }

    pub(super) fn cache(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Cache { doing, path: path.to_owned(), source }
    }
}

fn list(others: &[String]) -> String {
    match others {
        [] => ", and nothing else that holds weights".to_owned(),
        _ => format!(", but {}: convert it, or take a repository that has them", others.join(", ")),
    }
}
