//! What a commit consists of: as the hub lists it, and as it is kept beside the snapshots, in Python's form.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

/// Of the files; others are not understood.
const FORMAT: u32 = 1;

/// What a commit consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tree {
    format_version: u32,
    /// By path.
    pub(super) files: BTreeMap<String, Entry>,
}

/// One file of a commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// In bytes.
    pub(super) size: u64,
    /// Git's: SHA-1 of the content with a header, or of the pointer to a large file.
    pub(super) blob_id: String,
    /// Of a large file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lfs_size: Option<u64>,
    /// Of no use here; Python's library asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) xet_hash: Option<String>,
}

impl Tree {
    pub(super) fn new(files: BTreeMap<String, Entry>) -> Self {
        Self { format_version: FORMAT, files }
    }

    /// Digests become names of files.
    pub(super) fn is_sound(&self) -> bool {
        let is_digest =
            |text: &str| (40..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.format_version == FORMAT
            && self.files.values().all(|entry| is_digest(entry.etag()) && is_digest(&entry.blob_id))
    }
}

impl Entry {
    /// What the content is known by; the name of its blob.
    pub(super) fn etag(&self) -> &str {
        self.lfs_sha256.as_deref().unwrap_or(&self.blob_id)
    }
}
