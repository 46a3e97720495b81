//! PyTorch's own files, `pytorch_model.bin` and the like: tensors, and nothing else.
//!
//! ```text
//! a zip: archive/data.pkl   a pickle: a dictionary of names and of what makes each tensor: type, shape, steps, storage
//!        archive/data/0     a storage: values, not compressed, read from the file as those of safetensors are
//! ```
//!
//! A pickle is a program. candle's unpickler follows it without calling anything: what it would have called is an object
//! that tells the name (`follow`). What came out is looked at (`state_dict`), and accepted are PyTorch's own ways to write
//! a tensor, by their names; anything else is refused by its name.
//!
//! # Why not candle's reader of tensors?
//!
//! `PthTensors` (candle 0.11.1) leaves out what it does not understand, with a line on standard error at most: a parameter
//! that has attributes, tensors of integers or booleans, and whatever else the file holds. It reads no tensor whose
//! values are in steps, ignores that a view is negated, opens the file anew for each tensor, and panics where an
//! argument is missing. So it is the unpickler alone that is used, one instruction at a time, each looked at before: candle takes
//! a dictionary's instruction for an empty dictionary's, believes any length, shifts bits away in long numbers, and copies
//! what a pickle remembers as often as it says.

mod follow;
mod state_dict;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zip::CompressionMethod;
use zip::ZipArchive;

use crate::checkpoint::extent::Extent;

/// Of `data.pkl`; that of a thousand tensors has two hundred kilobytes.
const MAX_PICKLE_BYTES: u64 = 32 << 20;
/// How a file begins that torch wrote before 1.6: a pickle of a number that says so.
const LEGACY_START: &[u8] = &[0x80, 0x02, 0x8a, 0x0a];
const ZIP_START: &[u8] = b"PK\x03\x04";

/// What a file holds.
pub(super) struct Pickled {
    /// Offsets are from the beginning of the file.
    pub(super) tensors: BTreeMap<String, Extent>,
    /// All that decided about them.
    pub(super) header: Vec<u8>,
}

/// Where storages are in the file, by their names in the archive.
type Storages = BTreeMap<String, (u64, u64)>;

/// Reads what a file of PyTorch holds, but for the values.
pub(super) fn read(file: &File, path: &Path) -> Result<Pickled, String> {
    let mut start = [0; 4];
    let is_read = file.read_exact_at(&mut start, 0).is_ok();
    if is_read && start == LEGACY_START {
        return Err(format!(
            "is in the form that torch wrote before version 1.6: write it again with {}",
            rewrite(path, "")
        ));
    }
    if !is_read || start != ZIP_START {
        return Err("is no file of PyTorch, or damaged: copy or save it again".to_owned());
    }
    let damaged = |error: &dyn std::fmt::Display| {
        format!("{error}: the file is truncated or damaged, copy or save it again")
    };
    let mut archive = ZipArchive::new(file).map_err(|error| damaged(&error))?;
    let mut storages = Storages::new();
    let mut pickles = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| damaged(&error))?;
        let name = entry.name().map_err(|error| damaged(&error))?.into_owned();
        if name.contains("/code/") || name.ends_with("/constants.pkl") {
            return Err(
                "is a program (TorchScript), not weights: save the model's state_dict instead".to_owned()
            );
        }
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!(
                "holds `{name}` compressed, as torch never writes weights: write it again with {}",
                rewrite(path, "")
            ));
        }
        let begins = entry.data_start().ok_or_else(|| damaged(&"an entry begins nowhere"))?;
        if name.ends_with("/data.pkl") {
            pickles.push(name.clone());
        }
        storages.insert(name, (begins, entry.size()));
    }
    let name = match pickles.as_slice() {
        [only] => only,
        _ => return Err(format!("holds {} files data.pkl: expected one", pickles.len())),
    };
    let root = name.trim_end_matches("data.pkl");
    // nothing is compressed, so an entry is a part of the file
    let content = |name: &str, limit: u64| {
        let Some((begins, size)) = storages.get(name) else { return Ok(None) };
        if *size > limit {
            return Err(format!("holds `{name}` of {size} bytes, the limit is {limit}"));
        }
        let mut bytes = vec![0; *size as usize];
        file.read_exact_at(&mut bytes, *begins).map_err(|error| damaged(&error))?;
        Ok(Some(bytes))
    };
    let order = content(&format!("{root}byteorder"), 16)?.unwrap_or_else(|| b"little".to_vec());
    if order != b"little" {
        return Err(format!("its byte order is `{}`: expected `little`", String::from_utf8_lossy(&order)));
    }
    let pickle = content(name, MAX_PICKLE_BYTES)?.unwrap_or_default();
    let mut header = format!("{storages:?}").into_bytes();
    header.extend_from_slice(&pickle);
    let tensors = state_dict::tensors(follow::unpickle(&pickle)?, root, &storages, path)?;
    Ok(Pickled { tensors, header })
}

/// The command that writes a part of a file in today's form.
fn rewrite(path: &Path, part: &str) -> String {
    format!(
        "`python -c \"import torch; torch.save(torch.load('{}', map_location='cpu', weights_only=True){part}, \
         'OUT/{}')\"`",
        path.display(),
        path.file_name().unwrap_or_default().display()
    )
}
