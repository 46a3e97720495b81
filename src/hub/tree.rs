//! What a commit consists of: as the hub lists it, and as it is kept beside the snapshots, in Python's form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use ring::digest::Context;
use ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
use ring::digest::SHA256;
use serde::Deserialize;
use serde::Serialize;

/// Of the files; others are not understood.
const FORMAT: u32 = 1;
/// Of what a digest is made of at a time.
const BUFFER_BYTES: usize = 1 << 20;

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

    /// A digest of the kind that the hub lists for this file, of nothing yet.
    pub(super) fn digest(&self) -> ContentDigest {
        if self.lfs_sha256.is_some() {
            return ContentDigest { of: Context::new(&SHA256), name: "SHA-256" };
        }
        // `git hash-object`
        let mut of = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        of.update(format!("blob {}\0", self.size).as_bytes());
        ContentDigest { of, name: "git SHA-1" }
    }

    /// In what a content differs from what the hub lists.
    pub(super) fn difference(&self, digest: ContentDigest) -> Option<String> {
        let name = digest.name;
        let is = digest.finish();
        (is != self.etag()).then(|| format!("its {name} is {is}, the hub lists {}", self.etag()))
    }
}

/// What a content is known by, while it is read.
pub(super) struct ContentDigest {
    of: Context,
    name: &'static str,
}

impl ContentDigest {
    /// Goes on with these bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.of.update(bytes);
    }

    /// Goes on with all that a file holds. How much that is, in bytes.
    pub(super) fn update_from(&mut self, file: &mut File) -> io::Result<u64> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut done = 0;
        file.seek(SeekFrom::Start(0))?;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(done),
                read => {
                    self.of.update(&buffer[..read]);
                    done += read as u64;
                }
            }
        }
    }

    /// In hexadecimal.
    fn finish(self) -> String {
        self.of.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_digest_is_the_one_that_the_hub_lists() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"Hello, World!").unwrap();
        let entry = |lfs_sha256: Option<&str>| Entry {
            size: 13,
            // huggingface_hub 2.4.0: utils/sha.py, git_hash(b"Hello, World!")
            blob_id: "b45ef6fec89518d314f546fd6c3025367b721684".to_owned(),
            lfs_sha256: lfs_sha256.map(str::to_owned),
            lfs_size: None,
            xet_hash: None,
        };
        // printf 'Hello, World!' | sha256sum
        let sha256 = "dffd6021bb2bd5b0af676290809ec3a53191dd81c7f70a4b28688a362182986f";
        for entry in [entry(None), entry(Some(sha256))] {
            let mut digest = entry.digest();
            assert_eq!(digest.update_from(&mut file).unwrap(), 13);
            assert_eq!(entry.difference(digest), None);
            let mut other = entry.digest();
            other.update(b"Hello, World?");
            assert!(entry.difference(other).unwrap().contains(entry.etag()));
        }
    }
}
