//! Weights: from safetensors files to tensors laid out for the product.
//!
//! A [`Checkpoint`] is read tensor by tensor; a LoRA adapter over a base reads as one too, each tensor with its update
//! ([`crate::model::lora`]). [`Weights`] hands tensors to a model
//! while it is built: it checks names, shapes and finiteness before use, averages several members on the way
//! ([`crate::model::merge`]), and notices at the end which tensors nobody asked for. A [`TensorStore`] keeps
//! one copy of what is equal, by content digest, however many members and variants hold it.
//!
//! # Why not map the files into memory?
//!
//! They were, at first. An operator who copies new weights over the old ones shrinks the file for a moment, and
//! a reload that is reading the mapping then ends the whole server with SIGBUS. Reads answer with an error
//! instead; and what was digested is compared with what is used, so that a fingerprint never names other weights.
//!
//! It costs little. To look at each byte of 2.1 GB in the page cache took two threads of a shared virtual Xeon 0.3 s
//! of CPU time mapped, 0.4 s read into memory that is used again, and 1.6 to 3.3 s read into fresh memory, which
//! the system must find and clear page by page. So what is expensive is memory, not reading: a [`Checkpoint`] reads
//! tensors into the buffers of those before, several threads at a time, while the ones before are packed
//! ([`crate::model::ahead`]), and a tensor that is kept as it is stored is not copied.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use candle_core::DType;
use half::bf16;
use half::f16;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::disk;
use crate::model::ModelError;
use crate::model::ahead;
use crate::model::ahead::MemberTensors;
use crate::model::ahead::ReadAhead;
use crate::model::config::BackboneConfig;
use crate::model::foreign;
use crate::model::lora;
use crate::model::lora::Change;
use crate::model::lora::LowRank;
use crate::model::merge;
use crate::model::merge::Averaged;
use crate::model::ops::LinearSource;
use crate::model::ops::Ops;
use crate::model::ops::Precision;

/// A safetensors file starts with its header's length, in 8 bytes.
const HEADER_START: u64 = 8;
/// The longest header that safetensors writes; a longer one is no header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Each keeps a file open; the largest models known to us have some 200.
const MAX_SHARDS: usize = 1000;
const COPY_AGAIN: &str = "the file is truncated or damaged, copy or save it again";

/// Bytes that one thread reads at a time.
const PIECE: usize = 1 << 20;
/// Bytes that are read, then digested while they are in the cache.
const SLAB: usize = 16 * PIECE;

/// Buffers of a checkpoint that are used again, and the size of the largest.
const MAX_SPARE: usize = 8;
const MAX_SPARE_BYTES: usize = 256 << 20;

/// A blake3 digest.
pub type Digest = [u8; 32];

/// A digest in hexadecimal, as records tell it.
pub fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_string()
}

/// Tensors that checkpoints carry and a reward does not depend on, by the end of their names.
pub const IGNORED_SUFFIXES: [&str; 3] =
    ["rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids"];

/// And by the start: language-model heads, of which a reward model has no use.
pub const IGNORED_PREFIXES: [&str; 4] = ["lm_head.", "cls.", "pretrained_model.lm_head.", "model.lm_head."];

/// The safetensors files of a checkpoint directory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    /// Of an adapter.
    base: Option<PathBuf>,
    /// What was done to make a checkpoint of it, in words.
    notes: Vec<String>,
    files: Vec<OpenFile>,
    tensors: BTreeMap<String, Place>,
    digests: Mutex<HashMap<String, Digest>>,
    spare: Mutex<Vec<Stored>>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

/// Where a tensor is, and what an adapter adds to it.
#[derive(Debug)]
struct Place {
    file: usize,
    info: TensorInfo,
    update: Option<Update>,
}

/// The factors of a low-rank update, in the adapter's file.
#[derive(Debug)]
struct Update {
    file: usize,
    a: TensorInfo,
    b: TensorInfo,
    scale: f64,
    is_transposed: bool,
}

/// One tensor as it is on disk; with an adapter's update, the sum in `f64`.
#[derive(Clone, Debug)]
pub struct TensorBytes<'a> {
    /// As stored.
    pub dtype: safetensors::Dtype,
    /// As stored.
    pub shape: &'a [usize],
    /// As many as the shape says, or a sample of them.
    pub values: Stored,
}

impl TensorBytes<'_> {
    /// How many values there are.
    pub fn count(&self) -> usize {
        match &self.values {
            Stored::Other(_) => values_in(self.shape),
            values => values.count(),
        }
    }
}

/// What was read, in memory that fits its type: what is kept as it is stored need not be copied.
#[derive(Clone, Debug)]
pub enum Stored {
    /// `f64`
    F64(Vec<f64>),
    /// `f32`
    F32(Vec<f32>),
    /// `f16`
    F16(Vec<f16>),
    /// `bf16`
    Bf16(Vec<bf16>),
    /// Of a type that we do not compute with.
    Other(Vec<u8>),
}

// files are little endian, and so are the machines that we read them into
const _: () = assert!(cfg!(target_endian = "little"));

impl From<Averaged> for Stored {
    fn from(values: Averaged) -> Self {
        match values {
            Averaged::F32(values) => Self::F32(values),
            Averaged::F16(values) => Self::F16(values),
            Averaged::Bf16(values) => Self::Bf16(values),
        }
    }
}

impl Stored {
    /// As they are in memory, which is as they are in files.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F64(values) => bytemuck::cast_slice(values),
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F16(values) => bytemuck::cast_slice(values),
            Self::Bf16(values) => bytemuck::cast_slice(values),
            Self::Other(bytes) => bytes,
        }
    }

    /// How many values there are; of types that we do not compute with, how many bytes.
    pub fn count(&self) -> usize {
        match self {
            Self::F64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Other(bytes) => bytes.len(),
        }
    }

    fn capacity_bytes(&self) -> usize {
        match self {
            Self::F64(values) => values.capacity() * 8,
            Self::F32(values) => values.capacity() * 4,
            Self::F16(values) => values.capacity() * 2,
            Self::Bf16(values) => values.capacity() * 2,
            Self::Other(values) => values.capacity(),
        }
    }

    /// So many bytes of whatever it held, if it is of this type and has room for them, but not much more: what is
    /// kept, such as a norm's vector, would hold on to all of it.
    fn resized(&mut self, dtype: safetensors::Dtype, bytes: usize) -> bool {
        use safetensors::Dtype;
        let fits = (bytes..=2 * bytes).contains(&self.capacity_bytes());
        match (dtype, self) {
            (Dtype::F64, Self::F64(values)) if fits => values.resize(bytes / 8, 0.0),
            (Dtype::F32, Self::F32(values)) if fits => values.resize(bytes / 4, 0.0),
            (Dtype::F16, Self::F16(values)) if fits => values.resize(bytes / 2, f16::ZERO),
            (Dtype::BF16, Self::Bf16(values)) if fits => values.resize(bytes / 2, bf16::ZERO),
            _ => return false,
        }
        true
    }

    fn zeros(dtype: safetensors::Dtype, bytes: usize) -> Self {
        use safetensors::Dtype;
        // zeros of primitive types come from the system untouched, page by page when they are written
        match dtype {
            Dtype::F64 => Self::F64(vec![0.0; bytes / 8]),
            Dtype::F32 => Self::F32(vec![0.0; bytes / 4]),
            Dtype::F16 => Self::F16(vec![0_u16; bytes / 2].reinterpret_into()),
            Dtype::BF16 => Self::Bf16(vec![0_u16; bytes / 2].reinterpret_into()),
            _ => Self::Other(vec![0; bytes]),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F64(values) => bytemuck::cast_slice_mut(values),
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F16(values) => bytemuck::cast_slice_mut(values),
            Self::Bf16(values) => bytemuck::cast_slice_mut(values),
            Self::Other(values) => values,
        }
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the weights of a directory, and reads their headers: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists; and a value head beside them.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            let problem = match dir.is_file() {
                true => "is a file: give the directory that it is in",
                false => "there is no such directory",
            };
            return Err(ModelError::NoCheckpoint { path: dir.to_owned(), problem: problem.to_owned() });
        }
        if lora::is_adapter(dir) {
            return Err(ModelError::NoCheckpoint {
                path: dir.to_owned(),
                problem: "is a LoRA adapter, which is not a model by itself: say with `base` (or --base) what it was \
                          trained on"
                    .to_owned(),
            });
        }
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            base: None,
            notes: Vec::new(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            digests: Mutex::default(),
            spare: Mutex::default(),
        };
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if disk::is_there(&single) {
            checkpoint.add_file(single)?;
        } else if disk::is_there(&index) {
            checkpoint.open_shards(&index)?;
        } else {
            return Err(ModelError::NoCheckpoint { path: dir.to_owned(), problem: foreign::explain(dir) });
        }
        let value_head = value_head(dir)?;
        if disk::is_there(&value_head) {
            checkpoint.add_file(value_head)?;
        }
        checkpoint.unwrap();
        Ok(checkpoint)
    }

    /// The same, or, where the directory is a LoRA adapter, what it makes of `base`.
    ///
    /// The weights are those of the base, each plus the adapter's update, or the adapter's own where it has whole
    /// tensors (such as a head that the base may lack). They are named as the adapter names them.
    pub fn open_over(dir: &Path, base: Option<&Path>) -> Result<Self, ModelError> {
        let base = match base {
            Some(base) if lora::is_adapter(dir) => base,
            _ => return Self::open(dir),
        };
        let changes = lora::Settings::load(dir)?;
        let mut checkpoint = Self::open(base)?;
        let file = checkpoint.open_file(lora::weights_file(dir)?)?;
        let stored = checkpoint.files[file].metadata.tensors();
        let mut stored: BTreeMap<String, TensorInfo> =
            stored.into_iter().map(|(name, info)| (name, info.clone())).collect();
        if let Some((names, wrappers)) =
            foreign::unwrapped(&stored.keys().map(String::as_str).collect::<Vec<_>>())
        {
            checkpoint.notes.push(unwrapped_note(dir, &wrappers));
            stored = names.into_iter().map(|(name, short)| (short, stored[name].clone())).collect();
        }
        let changes = changes.read(&stored, &checkpoint.shapes())?;
        if !changes.prefix.is_empty() {
            let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
            checkpoint.tensors =
                tensors.map(|(name, place)| (format!("{}{name}", changes.prefix), place)).collect();
        }
        for (name, change) in changes.tensors {
            let Change { whole, low_rank } = change;
            if let Some(whole) = whole {
                let place = Place { file, info: stored[&whole].clone(), update: None };
                checkpoint.tensors.insert(name.clone(), place);
            }
            if let Some(LowRank { a, b, scale, is_transposed }) = low_rank {
                let (a, b) = (stored[&a].clone(), stored[&b].clone());
                let place = checkpoint.tensors.get_mut(&name).expect("updates are of the base's tensors");
                place.update = Some(Update { file, a, b, scale, is_transposed });
            }
        }
        let value_head = value_head(dir)?;
        if disk::is_there(&value_head) {
            let file = checkpoint.open_file(value_head)?;
            let head: Vec<_> = checkpoint.files[file].metadata.tensors().into_iter().collect();
            let head =
                head.into_iter().map(|(name, info)| (name, Place { file, info: info.clone(), update: None }));
            let head: Vec<_> = head.collect();
            checkpoint.tensors.extend(head); // in the place of a base's, from which it was trained on
        }
        checkpoint.base = Some(base.to_owned());
        checkpoint.dir = dir.to_owned();
        Ok(checkpoint)
    }

    /// Leaves wrappers out of the tensors' names.
    fn unwrap(&mut self) {
        let names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        let Some((mut names, wrappers)) = foreign::unwrapped(&names) else { return };
        let note = unwrapped_note(&self.dir, &wrappers);
        let short: Vec<String> = self.tensors.keys().filter_map(|name| names.remove(name.as_str())).collect();
        let places = std::mem::take(&mut self.tensors).into_values();
        self.tensors = short.into_iter().zip(places).collect();
        self.notes.push(note);
    }

    fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), place.info.shape.as_slice())).collect()
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), ModelError> {
        let text =
            disk::read(index, disk::SETTINGS_BYTES).map_err(|source| ModelError::read(index, source))?;
        let ShardIndex { weight_map } =
            serde_json::from_slice(&text).map_err(|error| ModelError::config(index, error))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        if shards.len() > MAX_SHARDS {
            let problem = format!("`weight_map` names {} files, the limit is {MAX_SHARDS}", shards.len());
            return Err(ModelError::config(index, problem));
        }
        for shard in shards {
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(ModelError::config(index, format!("shard `{shard}` is not a plain file name")));
            }
            self.add_file(self.dir.join(shard))?;
        }
        for (name, shard) in &weight_map {
            let held =
                self.tensors.get(name).is_some_and(|place| self.files[place.file].path.ends_with(shard));
            if !held {
                return Err(ModelError::config(index, format!("tensor `{name}` is not in shard `{shard}`")));
            }
        }
        Ok(())
    }

    /// Opens a file; its tensors are the checkpoint's.
    fn add_file(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let file = self.open_file(path)?;
        let OpenFile { path, metadata, .. } = &self.files[file];
        for (name, info) in metadata.tensors() {
            let place = Place { file, info: info.clone(), update: None };
            if self.tensors.insert(name.clone(), place).is_some() {
                let problem = format!("tensor `{name}` is in another file of the checkpoint as well");
                return Err(ModelError::Damaged { path: path.clone(), problem });
            }
        }
        Ok(())
    }

    fn open_file(&mut self, path: PathBuf) -> Result<usize, ModelError> {
        let damaged = |problem: String| ModelError::Damaged { path: path.clone(), problem };
        let (file, header) = read_header(&path).map_err(|source| match source.kind() {
            _ if is_pointer(&path) => damaged(disk::LFS_CURE.to_owned()),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                damaged(format!("{source}: {COPY_AGAIN}"))
            }
            _ => ModelError::read(&path, source),
        })?;
        // also checks that the tensors lie one after the other, each as long as its shape says
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("the header is not one: {error}: {COPY_AGAIN}")))?;
        let data_start = HEADER_START + header.len() as u64;
        let (size, end) = (file_bytes(&file, &path)?, data_start + metadata.data_len() as u64);
        if size != end {
            return Err(damaged(format!("has {size} bytes, its header tells of {end}: {COPY_AGAIN}")));
        }
        self.files.push(OpenFile { path, file, data_start, metadata });
        Ok(self.files.len() - 1)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Below an adapter: the directory of the base.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_deref()
    }

    /// What was done to make a checkpoint of the files, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether this tensor is an adapter's own, and not its base's.
    pub fn is_adapters(&self, name: &str) -> bool {
        let place = self.tensors.get(name);
        self.base.is_some() && place.is_some_and(|place| self.files[place.file].path.starts_with(&self.dir))
    }

    /// Whether an adapter adds to this tensor of its base.
    pub fn is_updated(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|place| place.update.is_some())
    }

    /// Where such a file is, `config.json` for example: an adapter's own, or else its base's.
    pub fn dir_of(&self, file: &str) -> &Path {
        match &self.base {
            Some(base) if !disk::is_there(&self.dir.join(file)) => base,
            _ => &self.dir,
        }
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Size of all files, in bytes.
    pub fn payload_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.metadata.data_len() as u64).sum()
    }

    /// What the header says of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors.get(name)?.info)
    }

    /// Reads one tensor. Fails if it is not what it was when it was read before.
    pub fn read(&self, name: &str) -> Result<TensorBytes<'_>, ModelError> {
        let Place { file, info, update } = self.find(name)?;
        let (mut values, mut digest) = self.read_stored(*file, info)?;
        if let Some(Update { file, a, b, scale, is_transposed }) = update {
            if let Stored::Other(_) = values {
                return Err(ModelError::Unsupported(format!(
                    "tensor `{name}` is stored as {:?}, to which no update can be added: supported are F64, F32, F16 \
                     and BF16",
                    info.dtype
                )));
            }
            let ((a, digest_a), (b, digest_b)) = (self.read_stored(*file, a)?, self.read_stored(*file, b)?);
            let mut sum = match self.room(safetensors::Dtype::F64, values_in(&info.shape) * 8) {
                Stored::F64(sum) => sum,
                _ => unreachable!("room is of the type that was asked for"),
            };
            lora::add(&values, &a, &b, *scale, *is_transposed, &info.shape, &mut sum);
            for read in [std::mem::replace(&mut values, Stored::F64(sum)), a, b] {
                self.give_back(read);
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"low rank\n").update(&digest).update(&digest_a).update(&digest_b);
            hasher.update(&scale.to_le_bytes()).update(&[u8::from(*is_transposed)]);
            digest = *hasher.finalize().as_bytes();
        }
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if *digests.entry(name.to_owned()).or_insert(digest) != digest {
            let problem = format!("tensor `{name}` changed while it was read");
            return Err(ModelError::Damaged { path: self.files[*file].path.clone(), problem });
        }
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, values })
    }

    /// What a file holds there, and its digest.
    fn read_stored(&self, file: usize, info: &TensorInfo) -> Result<(Stored, Digest), ModelError> {
        let (start, end) = info.data_offsets;
        let mut values = self.room(info.dtype, end - start);
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}\n", info.dtype, info.shape).as_bytes());
        let mut at = start as u64;
        for slab in values.bytes_mut().chunks_mut(SLAB) {
            self.files[file].read_at(slab, at)?;
            hasher.update_rayon(slab);
            at += slab.len() as u64;
        }
        Ok((values, *hasher.finalize().as_bytes()))
    }

    /// Reads at most so many values from the middle of a tensor, and compares them with nothing.
    pub fn sample(&self, name: &str, values: usize) -> Result<TensorBytes<'_>, ModelError> {
        let Place { file, info, update } = self.find(name)?;
        let (start, end) = info.data_offsets;
        let count = values_in(&info.shape);
        let sampled = values.min(count);
        let first = (count - sampled) / 2;
        if update.is_some() {
            let mut tensor = self.read(name)?; // whole: as many rows would need all of one factor anyway
            let Stored::F64(sum) = &mut tensor.values else { unreachable!("updated in f64") };
            let middle = sum[first..first + sampled].to_vec();
            self.give_back(std::mem::replace(&mut tensor.values, Stored::F64(middle)));
            return Ok(tensor);
        }
        let size = (end - start) / count.max(1);
        let mut values = Stored::zeros(info.dtype, sampled * size);
        self.files[*file].read_at(values.bytes_mut(), (start + first * size) as u64)?;
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, values })
    }

    /// Room for values, with whatever it held before.
    pub fn room(&self, dtype: safetensors::Dtype, bytes: usize) -> Stored {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter_mut().position(|values| values.resized(dtype, bytes));
        match fitting {
            Some(index) => spare.remove(index),
            None => Stored::zeros(dtype, bytes),
        }
    }

    /// Takes back values that nobody needs any more, to read others into their memory.
    pub fn give_back(&self, values: Stored) {
        if !(1..=MAX_SPARE_BYTES).contains(&values.capacity_bytes()) {
            return;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(values);
        spare.sort_by_key(Stored::capacity_bytes); // the smallest that fits is found first
        if spare.len() > MAX_SPARE {
            spare.remove(0);
        }
    }

    fn find(&self, name: &str) -> Result<&Place, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    /// Digest of a tensor's dtype, shape and bytes; read only once.
    pub fn digest(&self, name: &str) -> Result<Digest, ModelError> {
        if let Some(digest) = self.known_digest(name) {
            return Ok(digest);
        }
        self.read(name)?;
        Ok(self.known_digest(name).expect("reading notes the digest"))
    }

    /// Digest of these tensors, names and contents; sort the names.
    pub fn digest_of<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> Result<Digest, ModelError> {
        let mut hasher = blake3::Hasher::new();
        for name in names {
            // heads and backbones are told apart by name, so the prefix counts; lengths keep names apart
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&self.digest(name)?);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    fn known_digest(&self, name: &str) -> Option<Digest> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}

impl OpenFile {
    /// Reads bytes from this far into the tensors, several threads at a time.
    fn read_at(&self, bytes: &mut [u8], start: u64) -> Result<(), ModelError> {
        let read = |(piece, bytes): (usize, &mut [u8])| {
            self.file.read_exact_at(bytes, self.data_start + start + (piece * PIECE) as u64)
        };
        let read = bytes.par_chunks_mut(PIECE).enumerate().try_for_each(read);
        read.map_err(|source| ModelError::read(&self.path, source))
    }
}

fn values_in(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn read_header(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let file = disk::open(path)?;
    let mut length = [0; HEADER_START as usize];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        let problem = format!("the header has {length} bytes, the limit is {MAX_HEADER_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let size = file.metadata()?.len();
    if HEADER_START + length > size {
        let problem = format!("the header has {length} bytes, the file {size}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, HEADER_START)?;
    disk::seen(path, Some(&header))?;
    Ok((file, header))
}

fn file_bytes(file: &File, path: &Path) -> Result<u64, ModelError> {
    Ok(file.metadata().map_err(|source| ModelError::read(path, source))?.len())
}

/// Where LLaMA-Factory saves TRL's head, beside a model or an adapter. Fails if it is there in another form.
fn value_head(dir: &Path) -> Result<PathBuf, ModelError> {
    match foreign::value_head(dir) {
        Some(problem) => Err(ModelError::NoCheckpoint { path: dir.to_owned(), problem }),
        None => Ok(dir.join("value_head.safetensors")),
    }
}

fn unwrapped_note(dir: &Path, wrappers: &[&str]) -> String {
    format!(
        "the names of its tensors in {} have parts of wrappers, which were left out: {}",
        dir.display(),
        wrappers.join(", ")
    )
}

fn is_pointer(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = disk::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    read.is_ok() && disk::is_lfs_pointer(&start)
}

/// What makes weights equal: the same tensors with the same coefficients, kept the same way for the same use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StoreKey {
    /// For each tensor its members' digests and coefficients.
    sources: Vec<Vec<(Digest, u64)>>,
    /// Names the use, and what else determines the values.
    use_: String,
    form: String,
    dtype: DType,
}

/// Weights in memory, one copy of each content, for whatever form of the operations.
#[derive(Default)]
pub struct TensorStore {
    held: HashMap<StoreKey, Arc<dyn Any + Send + Sync>>,
}

/// Gives a model its tensors while it is built.
pub struct Weights<'a, O> {
    members: &'a [(&'a Checkpoint, f64)],
    prefix: String,
    ops: Arc<O>,
    /// `None`: only names and shapes are checked, and no values are read.
    store: Option<&'a mut TensorStore>,
    /// Else tensors are read when they are asked for.
    ahead: Option<ReadAhead<'a>>,
    /// Tensors that the checkpoint lacks and somebody else will make.
    lacking: BTreeMap<String, Vec<usize>>,
    used: BTreeSet<String>,
    /// Tensors that transformers has no place for and leaves out with a warning.
    ignored: BTreeSet<String>,
    /// The used ones, in the order in which they were asked for.
    order: Vec<String>,
    progress: &'a mut dyn FnMut(u64),
    /// Of the part that is being loaded.
    identity: blake3::Hasher,
    config: String,
}

/// A part of a model, and what tells it from the same part of another.
#[derive(Debug)]
pub struct Part<T> {
    /// Parts with equal identities compute the same: a digest of the backbone's config, the tensors and how they are
    /// kept. Only parts at the same place are compared.
    pub identity: Digest,
    /// The part.
    pub it: T,
}

/// Name and shape of a tensor that is asked for.
struct Asked<'n> {
    name: Cow<'n, str>,
    shape: Vec<usize>,
}

impl<'a, O: Ops> Weights<'a, O> {
    /// Weights of one checkpoint, or the average of several that share names and shapes, in proportion to their
    /// coefficients. Without a store nothing is read, and the form is the composed one. `progress` is told of bytes
    /// as they are read.
    pub fn new(
        members: &'a [(&'a Checkpoint, f64)],
        backbone: &BackboneConfig,
        ops: &Arc<O>,
        store: Option<&'a mut TensorStore>,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        let first = members[0].0;
        let probe = match backbone {
            BackboneConfig::Decoder(_) => "embed_tokens.weight",
            BackboneConfig::Encoder(_) => "embeddings.word_embeddings.weight",
        };
        let prefixes = backbone.prefixes();
        let prefix = prefixes.iter().find(|prefix| first.tensors.contains_key(&format!("{prefix}{probe}")));
        let prefix = (*prefix.unwrap_or(&prefixes[0])).to_owned();
        Self {
            members,
            prefix,
            ops: ops.clone(),
            store,
            ahead: None,
            lacking: BTreeMap::new(),
            used: BTreeSet::new(),
            ignored: BTreeSet::new(),
            order: Vec::new(),
            progress,
            identity: blake3::Hasher::new(),
            config: format!("{backbone:?}"),
        }
    }

    /// Takes from `ahead` what it has read of the same members.
    pub fn reading_ahead(mut self, ahead: Option<ReadAhead<'a>>) -> Self {
        self.ahead = ahead;
        self
    }

    /// Goes on as if the checkpoint had tensors of these names and shapes too. Only without a store: they have no values.
    pub fn with_lacking(mut self, lacking: BTreeMap<String, Vec<usize>>) -> Self {
        debug_assert!(self.store.is_none(), "what is lacking cannot be read");
        self.lacking = lacking;
        self
    }

    /// The tensors that were asked for and whose digests are not known yet, in order: what to read ahead.
    pub fn unread(&self) -> Vec<String> {
        let is_known = |name: &String| {
            self.members.iter().all(|(checkpoint, _)| checkpoint.known_digest(name).is_some())
        };
        self.order.iter().filter(|name| !is_known(name)).cloned().collect()
    }

    /// Loads a part of the backbone, and notes what it is made of.
    pub fn part<T>(
        &mut self,
        load: impl FnOnce(&mut Self) -> Result<T, ModelError>,
    ) -> Result<Part<T>, ModelError> {
        self.identity.reset().update(self.config.as_bytes());
        let it = load(self)?;
        Ok(Part { identity: *self.identity.finalize().as_bytes(), it })
    }

    /// What stands before the backbone's tensor names, for example "model.".
    pub fn backbone_prefix(&self) -> &str {
        &self.prefix
    }

    /// The form of the operations that the tensors are for.
    pub fn ops(&self) -> &Arc<O> {
        &self.ops
    }

    /// Whether the checkpoint has such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.lacking.contains_key(name) || self.members[0].0.tensors.contains_key(name)
    }

    /// Leaves a tensor out, if it is there, and says so.
    pub fn ignore(&mut self, name: &str, why: &str) {
        if self.contains(name) && self.ignored.insert(name.to_owned()) {
            tracing::warn!(tensor = name, why, "this tensor is left out, as transformers does");
        }
    }

    /// First dimension of a tensor.
    pub fn rows(&self, name: &str) -> Result<usize, ModelError> {
        let shape = self.shape(self.members[0].0, name)?;
        Ok(shape.first().copied().unwrap_or(1))
    }

    fn shape<'s>(&'s self, checkpoint: &'s Checkpoint, name: &str) -> Result<&'s [usize], ModelError> {
        let lacking = self.lacking.get(name);
        let shape = lacking.or_else(|| checkpoint.info(name).map(|info| &info.shape));
        shape.map(Vec::as_slice).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    /// A linear layer, `[output, input]` on disk, with or without bias.
    pub fn linear(
        &mut self,
        name: &str,
        output: usize,
        input: usize,
        bias: bool,
        precision: Precision,
    ) -> Result<Arc<O::Linear>, ModelError> {
        let dtype = self.ops.dtype(precision);
        self.load("linear", dtype, &asked_linear(name, output, input, bias), |ops, values| {
            ops.load_linear(linear_source(name, values, output, input), precision)
        })
    }

    /// Two linear layers, gate and up, that are used together.
    pub fn gated(
        &mut self,
        [gate, up]: [&str; 2],
        output: usize,
        input: usize,
        bias: bool,
    ) -> Result<Arc<O::Gated>, ModelError> {
        let dtype = self.ops.dtype(Precision::Working);
        let mut asked = asked_linear(gate, output, input, bias);
        asked.extend(asked_linear(up, output, input, bias));
        self.load("gated", dtype, &asked, |ops, values| {
            let (of_gate, of_up) = values.split_at(values.len() / 2);
            ops.load_gated(
                linear_source(gate, of_gate, output, input),
                linear_source(up, of_up, output, input),
            )
        })
    }

    /// An embedding `[rows, columns]`.
    pub fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<Arc<O::Table>, ModelError> {
        let asked = [Asked { name: name.into(), shape: vec![rows, columns] }];
        let dtype = self.ops.dtype(Precision::Working);
        self.load("table", dtype, &asked, |ops, values| ops.load_table(name, values.remove(0), rows, columns))
    }

    /// A norm's vector `[width]`, in `f32`, with `offset` added to each value.
    pub fn vector(&mut self, name: &str, width: usize, offset: f32) -> Result<Arc<O::Vector>, ModelError> {
        let asked = [Asked { name: name.into(), shape: vec![width] }];
        self.load(&format!("vector + {offset}"), DType::F32, &asked, |ops, values| {
            let Averaged::F32(values) = values.remove(0) else { unreachable!("averaged in f32") };
            ops.load_vector(name, values, offset)
        })
    }

    /// Checks what is asked for, and makes of it what the form keeps; or finds that the store has it.
    fn load<T: Send + Sync + 'static>(
        &mut self,
        use_: &str,
        dtype: DType,
        asked: &[Asked<'_>],
        make: impl FnOnce(&O, &mut Vec<Averaged>) -> candle_core::Result<T>,
    ) -> Result<Arc<T>, ModelError> {
        for asked in asked {
            self.check(asked)?;
            if self.used.insert(asked.name.clone().into_owned()) {
                self.order.push(asked.name.clone().into_owned());
            }
        }
        let Some(store) = self.store.as_deref_mut() else {
            let mut unread = asked.iter().map(|_| Averaged::F32(Vec::new())).collect();
            return Ok(Arc::new(make(&self.ops, &mut unread)?));
        };
        let mut tensors = asked
            .iter()
            .map(|asked| Sources::find(&asked.name, self.members, self.ahead.as_mut()))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let sources = tensors.iter().map(|sources| sources.key.clone()).collect();
        let key = StoreKey { sources, use_: use_.to_owned(), form: self.ops.name(), dtype };
        self.identity.update(format!("{key:?}").as_bytes());
        let held = store.held.get(&key).cloned().and_then(|held| held.downcast::<T>().ok());
        let made = match held {
            Some(held) => held,
            None => {
                let mut values = tensors
                    .iter_mut()
                    .map(|sources| sources.average(dtype))
                    .collect::<Result<Vec<_>, _>>()?;
                let made = Arc::new(make(&self.ops, &mut values)?);
                values.into_iter().for_each(|values| self.members[0].0.give_back(values.into()));
                store.held.insert(key, made.clone());
                made
            }
        };
        tensors.into_iter().for_each(Sources::give_back);
        for asked in asked {
            let infos = self.members.iter().filter_map(|(checkpoint, _)| checkpoint.info(&asked.name));
            let read: usize = infos.map(|info| info.data_offsets.1 - info.data_offsets.0).sum();
            (self.progress)(read as u64);
        }
        Ok(made)
    }

    fn check(&self, Asked { name, shape }: &Asked<'_>) -> Result<(), ModelError> {
        for (checkpoint, _) in self.members {
            let found = self.shape(checkpoint, name)?;
            if found != shape {
                return Err(ModelError::Shape {
                    name: name.clone().into_owned(),
                    expected: shape.clone(),
                    found: found.to_vec(),
                });
            }
        }
        Ok(())
    }

    /// Refuses a checkpoint with tensors that the model did not ask for: they would be left out of the reward in
    /// silence. Returns each member's digest of the tensors that were used.
    pub fn finish(self) -> Result<Vec<Digest>, ModelError> {
        // BERT's pooler is part of the backbone, and unused below RoBERTa's head
        let is_ignored = |name: &str| {
            IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || IGNORED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
                || name.starts_with(&format!("{}pooler.", self.prefix))
                || self.ignored.contains(name)
        };
        for (checkpoint, _) in self.members {
            let unused: Vec<&str> =
                checkpoint.names().filter(|name| !self.used.contains(*name) && !is_ignored(name)).collect();
            if !unused.is_empty() {
                return Err(ModelError::UnusedTensors {
                    path: checkpoint.dir.clone(),
                    count: unused.len(),
                    first: unused[0].to_owned(),
                });
            }
        }
        if self.store.is_none() {
            return Ok(vec![Digest::default(); self.members.len()]);
        }
        self.members.iter().map(|(checkpoint, _)| checkpoint.digest_of(&self.used)).collect()
    }
}

fn asked_linear(name: &str, output: usize, input: usize, bias: bool) -> Vec<Asked<'static>> {
    let mut asked = vec![Asked { name: format!("{name}.weight").into(), shape: vec![output, input] }];
    if bias {
        asked.push(Asked { name: format!("{name}.bias").into(), shape: vec![output] });
    }
    asked
}

fn linear_source<'a>(name: &'a str, values: &'a [Averaged], output: usize, input: usize) -> LinearSource<'a> {
    LinearSource { name, weight: &values[0], bias: values.get(1), output, input }
}

/// Where the values of one tensor come from.
struct Sources<'n, 'a> {
    name: &'n str,
    members: &'a [(&'a Checkpoint, f64)],
    /// Digests and coefficients; one source where all are equal.
    key: Vec<(Digest, u64)>,
    /// What had no digest yet was read for it: once, if the store does not have it.
    read: Option<MemberTensors<'a>>,
}

impl<'n, 'a> Sources<'n, 'a> {
    fn find(
        name: &'n str,
        members: &'a [(&'a Checkpoint, f64)],
        ahead: Option<&mut ReadAhead<'a>>,
    ) -> Result<Self, ModelError> {
        let is_known = || members.iter().all(|(checkpoint, _)| checkpoint.known_digest(name).is_some());
        let read = match ahead.and_then(|ahead| ahead.take(name)) {
            Some(read) => Some(read?),
            None if is_known() => None,
            None => Some(ahead::read(name, members)?),
        };
        let mut key = Vec::with_capacity(members.len());
        for (checkpoint, coefficient) in members {
            key.push((checkpoint.digest(name)?, coefficient.to_bits()));
        }
        if key.iter().all(|(digest, _)| *digest == key[0].0) {
            // coefficients sum to one: the average of equal tensors is that tensor, exactly
            key = vec![(key[0].0, 1.0_f64.to_bits())];
        }
        Ok(Self { name, members, key, read })
    }

    /// The average of the tensors that the key tells of.
    fn average(&mut self, dtype: DType) -> Result<Averaged, ModelError> {
        let read = self.read.take().map_or_else(|| ahead::read(self.name, self.members), Ok)?;
        let read = self.read.insert(read);
        let sources = &mut read[..self.key.len()];
        for ((_, coefficient), (_, bits)) in sources.iter_mut().zip(&self.key) {
            *coefficient = f64::from_bits(*bits);
        }
        let first = self.members[0].0;
        merge::average(self.name, sources, dtype, |dtype, bytes| first.room(dtype, bytes))
    }

    /// What was read and is not kept.
    fn give_back(self) {
        for ((tensor, _), (checkpoint, _)) in self.read.into_iter().flatten().zip(self.members) {
            checkpoint.give_back(tensor.values);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::RewardModel;
    use crate::model::config::CheckpointConfig;
    use crate::model::manifest::Manifest;
    use crate::model::ops::composed::Composed;

    /// How much the store holds after the load.
    fn load(path: &str, store: &mut TensorStore) -> usize {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge").join(path);
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let (members, mut progress) = ([(&checkpoint, 1.0)], |_| ());
        let ops = Arc::new(Composed { device: Device::Cpu, dtype: DType::F32 });
        let mut weights = Weights::new(&members, &config.backbone, &ops, Some(store), &mut progress);
        RewardModel::load(&mut weights, &config).unwrap();
        weights.finish().unwrap();
        store.held.len()
    }

    #[test]
    fn identical_tensors_of_members_are_held_once() {
        let mut store = TensorStore::default();
        let of_one = load("llama-f32/member-0", &mut store);
        assert!(of_one > 10, "{of_one}");
        assert_eq!(load("llama-f32/member-0", &mut store), of_one, "the same member again");
        // differs in all but the head
        assert_eq!(load("llama-f32/member-1", &mut store), 2 * of_one - 1);
    }

    /// One tensor of bytes that do not repeat, as a checkpoint.
    fn one_tensor(dir: &Path, count: usize) -> (Checkpoint, Vec<u8>) {
        let bytes: Vec<u8> =
            (0..count as u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 4).to_le_bytes()).collect();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![count], &bytes).unwrap();
        safetensors::serialize_to_file([("w", view)], None, &dir.join("model.safetensors")).unwrap();
        (Checkpoint::open(dir).unwrap(), bytes)
    }

    #[test]
    fn what_several_threads_read_piece_by_piece_is_the_tensor_and_its_digest() {
        for count in [1, 1000, PIECE / 4, SLAB / 4, SLAB / 4 + PIECE / 4 + 5] {
            let dir = tempfile::tempdir().unwrap();
            let (checkpoint, bytes) = one_tensor(dir.path(), count);
            let mut read = checkpoint.read("w").unwrap();
            assert!(read.values.bytes_mut() == bytes, "{count} values");
            let at_once = blake3::hash(&[format!("F32 [{count}]\n").as_bytes(), &bytes].concat());
            assert_eq!(checkpoint.digest("w").unwrap(), *at_once.as_bytes(), "{count} values");

            let sampled = 700.min(count);
            let start = (count - sampled) / 2 * 4;
            let mut sample = checkpoint.sample("w", 700).unwrap();
            assert_eq!(sample.count(), sampled);
            assert!(sample.values.bytes_mut() == &bytes[start..start + sampled * 4], "{count} values");
        }
    }

    #[test]
    fn a_piece_that_cannot_be_read_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, _) = one_tensor(dir.path(), SLAB / 4 + PIECE);
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(bytes - 1).unwrap();
        let error = checkpoint.read("w").unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}
