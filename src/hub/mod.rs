//! A hub id is a model: `org/name@revision` becomes a directory of the cache that Python's `huggingface_hub` keeps.
//!
//! ```text
//! org/name@main ─ place ─▶ hf://org/name@main ─ Hub::fetch ─▶ CACHE/models--org--name/snapshots/COMMIT
//! ```
//!
//! [`place`] decides what was named, without network: a directory that exists wins. [`Hub::fetch`] asks the hub which commit
//! that is now, and for the files that it lacks: settings and tokenizer first, weights last (`choose`). The cache has
//! Python's layout, refs, snapshots of links, blobs by digest, listings of commits and locks, so each uses what the other
//! has fetched (`cache`). A model that is pinned by its commit, listed, and whole in the cache, needs no network. Where the hub
//! cannot be reached, what was fetched last is used, with a warning; where it answers that something is not there or not
//! allowed, that is the error.
//!
//! What else the variables of the Python library say is followed by `settings`; the rest of the program knows directories.
//!
//! # Why not the crate `hf-hub`?
//!
//! Its version 1.0 begins a file that was cut anew, compares no digest, writes over what another process fetches, and brings
//! some 110 crates, a second TLS and an async runtime of its own with it. 0.5 does continue, and appends the whole file where
//! a server sends the whole. What would be left of either is less than this room, which is `ureq`, digests and files.

mod cache;
mod choose;
mod client;
mod download;
mod error;
mod id;
mod settings;
mod tree;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::disk;
pub use crate::hub::error::HubError;
pub use crate::hub::id::HubId;
pub use crate::hub::id::Snapshot;
pub use crate::hub::id::place;
pub use crate::hub::settings::Settings;

use crate::hub::cache::Repository;
use crate::hub::client::Client;
use crate::hub::tree::Tree;

/// A hub and the cache of what it holds.
pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    /// Nothing is asked yet.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        Ok(Self { client: Client::new(&settings)?, settings })
    }

    /// The directory of a model, after fetching what the cache lacks. `progress` is told (bytes, bytes in all).
    pub fn fetch(&self, id: &HubId, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, HubError> {
        let repository = Repository::new(&self.settings.cache, &id.repo);
        if let Some(commit) = id.pinned()
            && let Some(tree) = repository.tree(commit)
            && let Ok(dir) = repository.whole(commit, &tree)
        {
            tracing::info!(model = %id, commit, "taken from the hub's cache");
            return Ok(dir);
        }
        if self.settings.is_offline {
            let cache = self.settings.cache.clone();
            return self.in_cache(id, &repository).map_err(|problem| HubError::Offline {
                id: id.to_string(),
                cache,
                problem,
            });
        }
        match self.fetch_now(id, &repository, progress) {
            Err(error) if error.is_unreachable() => match self.in_cache(id, &repository) {
                Ok(dir) => {
                    tracing::warn!(model = %id, dir = %dir.display(), %error, "taken from the hub's cache as it is");
                    Ok(dir)
                }
                Err(_) => Err(error),
            },
            outcome => outcome,
        }
    }

    /// What was fetched last, if that is a model. The error says what it lacks.
    fn in_cache(&self, id: &HubId, repository: &Repository) -> Result<PathBuf, String> {
        let commit = id.pinned().map(str::to_owned).or_else(|| repository.commit_of(&id.revision));
        let commit = commit.ok_or("it was never fetched")?;
        let dir = match repository.tree(&commit) {
            Some(tree) => repository.whole(&commit, &tree)?,
            // who fetched it did not list it: all that can be asked of it is weights
            None => Some(repository.snapshot(&commit))
                .filter(|dir| choose::looks_whole(dir))
                .ok_or("its settings or its weights are not there")?,
        };
        tracing::info!(model = %id, commit, "taken from the hub's cache");
        Ok(dir)
    }

    fn fetch_now(
        &self,
        id: &HubId,
        repository: &Repository,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<PathBuf, HubError> {
        let commit = match id.pinned() {
            Some(commit) => commit.to_owned(),
            None => self.client.commit_of(id)?,
        };
        let known = repository.tree(&commit);
        let is_known = known.is_some();
        let tree = known.map_or_else(|| self.client.tree(id, &commit), Ok)?;
        let small = choose::small(&tree);
        // before anything is written: a disk that is full harms all who use it
        let all = small.iter().cloned().chain(choose::likely_weights(&tree)).collect();
        self.check_room(id, repository, &tree, &all)?;
        if !is_known {
            repository.write_tree(&commit, &tree)?;
        }
        if id.pinned().is_none() {
            repository.set_commit(&id.revision, &commit)?;
        }
        let dir = repository.snapshot(&commit);
        self.fetch_files(id, repository, &commit, &tree, &small, progress)?;
        // an index names the shards, so it has to be here before they are chosen
        let weights = choose::weights(&tree, &dir)?;
        if weights.is_empty() {
            let others = choose::other_weights(&tree);
            return Err(HubError::NoWeights { id: id.to_string(), commit, others });
        }
        self.check_room(id, repository, &tree, &weights)?;
        self.fetch_files(id, repository, &commit, &tree, &weights, progress)?;
        tracing::info!(model = %id, commit, files = small.len() + weights.len(), "taken from the hub");
        Ok(dir)
    }

    fn check_room(
        &self,
        id: &HubId,
        repository: &Repository,
        tree: &Tree,
        files: &BTreeSet<String>,
    ) -> Result<(), HubError> {
        let needed = repository.lacks(tree, files);
        match disk::free(repository.folder()) {
            Some(free) if needed > free => {
                Err(HubError::NoRoom { id: id.to_string(), needed, free, cache: self.settings.cache.clone() })
            }
            _ => Ok(()),
        }
    }

    fn fetch_files(
        &self,
        id: &HubId,
        repository: &Repository,
        commit: &str,
        tree: &Tree,
        files: &BTreeSet<String>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), HubError> {
        let missing: Vec<_> = files
            .iter()
            .filter_map(|file| Some((file.as_str(), tree.files.get(file)?)))
            .filter_map(|(file, entry)| Some((file, entry, repository.fault(commit, file, entry)?)))
            .collect();
        let total: u64 = missing.iter().map(|(_, entry, _)| entry.size).sum();
        if total > 0 {
            tracing::info!(model = %id, commit, files = missing.len(), bytes = total, "fetching from the hub");
        }
        let mut before = 0;
        for (file, entry, fault) in missing {
            if repository.snapshot(commit).join(file).exists() {
                tracing::warn!(model = %id, file, fault, "a file in the hub's cache cannot be used, fetching it anew");
            }
            let _lock = repository.lock(entry.etag())?;
            if repository.fault_of_blob(file, entry).is_some() {
                let partial = repository.partial(entry.etag())?;
                self.client.download(id, commit, file, entry, &partial, &mut |done| {
                    progress(before + done, total)
                })?;
                repository.keep(&partial, entry.etag())?;
            }
            repository.link(commit, file, entry.etag())?;
            before += entry.size;
            progress(before, total);
        }
        Ok(())
    }
}
