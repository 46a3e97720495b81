//! A directory ⇄ tensors, by name and shape; what a model is, is nobody's business here.
//!
//! A [`Checkpoint`] is read tensor by tensor; a LoRA adapter over a base reads as one too, each tensor with its update
//! ([`lora`]), and so do PyTorch's own files (`pickled`). [`mod@write`] makes a directory, whole or not at all.
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
//! ([`ahead`]), and a tensor that is kept as it is stored is not copied.

pub mod ahead;
pub mod error;
mod extent;
pub mod fields;
mod foreign;
mod known;
pub mod lora;
mod pickled;
pub mod quantized;
pub mod write;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

pub use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::extent::Extent;
use crate::checkpoint::known::Known;
use crate::checkpoint::lora::Change;
use crate::checkpoint::lora::LowRank;
use crate::checkpoint::quantized::Part;
use crate::checkpoint::quantized::Recipe;
use crate::disk;
use crate::disk::kept::Kept;
use crate::values::Format;
use crate::values::Values;

/// A safetensors file starts with its header's length, in 8 bytes.
const HEADER_START: u64 = 8;
/// The longest header that safetensors writes; a longer one is no header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Where weights are: of these the first that is there, a file or what lists several. transformers has the same order.
pub const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// Where a reward head may be beside them: the first that is there.
pub const VALUE_HEADS: [&str; 2] = ["value_head.safetensors", "value_head.bin"];

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

/// The files of a checkpoint directory that hold its weights: safetensors, or else PyTorch's.
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
    spare: Mutex<Vec<Values>>,
    /// Room for codes while they are decoded.
    slab: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    known: Known,
    /// Offsets are from here.
    data_start: u64,
    tensors: BTreeMap<String, Extent>,
    /// What a header says beside.
    metadata: HashMap<String, String>,
}

/// What a tensor is made of, and what an adapter adds to it.
#[derive(Debug)]
struct Place {
    source: Source,
    update: Option<Update>,
}

#[derive(Debug)]
enum Source {
    Stored(Stored),
    Quantized(Box<Quantized>),
}

/// A tensor in one of the files.
#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    extent: Extent,
}

/// Codes and scales.
#[derive(Debug)]
struct Quantized {
    /// What they make; as far from each other as the parts are long are its offsets.
    info: TensorInfo,
    recipe: Recipe,
    codes: Stored,
    /// Beside them, by name.
    parts: Vec<(String, Stored)>,
}

/// The factors of a low-rank update, in the adapter's file.
#[derive(Debug)]
struct Update {
    a: Stored,
    b: Stored,
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
    pub values: Values,
}

impl Source {
    /// What it is read as.
    fn info(&self) -> &TensorInfo {
        match self {
            Self::Stored(stored) => &stored.extent.info,
            Self::Quantized(quantized) => &quantized.info,
        }
    }

    /// Where it is, or its codes are.
    fn file(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.file,
            Self::Quantized(quantized) => quantized.codes.file,
        }
    }
}

impl Place {
    fn stored(file: usize, extent: Extent) -> Self {
        Self { source: Source::Stored(Stored { file, extent }), update: None }
    }
}

impl Quantized {
    /// Of what is made, from the digests of what it is made of.
    fn digest(&self, codes: &Digest, parts: &[Digest]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(format!("quantized\n{:?} {:?}\n", self.info.shape, self.recipe).as_bytes())
            .update(codes);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

impl Update {
    /// Of a tensor with its update, from the digests of what both are made of.
    fn digest(&self, stored: &Digest, a: &Digest, b: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"low rank\n").update(stored).update(a).update(b);
        hasher.update(&self.scale.to_le_bytes()).update(&[u8::from(self.is_transposed)]);
        *hasher.finalize().as_bytes()
    }
}

impl TensorBytes<'_> {
    /// How many values there are.
    pub fn count(&self) -> usize {
        match &self.values {
            Values::Other(_) => values_in(self.shape),
            values => values.count(),
        }
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the weights of a directory, and reads their headers: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists, or else the same of `pytorch_model.bin`; and a value head beside them.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            let problem = match dir.is_file() {
                true => "is a file: give the directory that it is in",
                false => "there is no such directory",
            };
            return Err(CheckpointError::NoCheckpoint { path: dir.to_owned(), problem: problem.to_owned() });
        }
        if lora::is_adapter(dir) {
            return Err(CheckpointError::NoCheckpoint {
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
            slab: Mutex::default(),
        };
        match WEIGHTS.iter().map(|name| dir.join(name)).find(|path| disk::is_there(path)) {
            Some(index) if index.extension().is_some_and(|extension| extension == "json") => {
                checkpoint.open_shards(&index)?;
            }
            Some(single) => checkpoint.add_file(single)?,
            None => {
                let problem = foreign::explain(dir);
                return Err(CheckpointError::NoCheckpoint { path: dir.to_owned(), problem });
            }
        }
        if let Some(value_head) = value_head(dir) {
            checkpoint.add_file(value_head)?;
        }
        checkpoint.unwrap();
        checkpoint.dequantize()?;
        Ok(checkpoint)
    }

    /// The same, or, where the directory is a LoRA adapter, what it makes of `base`.
    ///
    /// The weights are those of the base, each plus the adapter's update, or the adapter's own where it has whole
    /// tensors (such as a head that the base may lack). They are named as the adapter names them.
    pub fn open_over(dir: &Path, base: Option<&Path>) -> Result<Self, CheckpointError> {
        let base = match base {
            Some(base) if lora::is_adapter(dir) => base,
            _ => return Self::open(dir),
        };
        let changes = lora::Settings::load(dir)?;
        let mut checkpoint = Self::open(base)?;
        let file = checkpoint.open_file(lora::weights_file(dir)?)?;
        let mut stored = checkpoint.files[file].tensors.clone();
        if let Some((names, wrappers)) =
            foreign::unwrapped(&stored.keys().map(String::as_str).collect::<Vec<_>>())
        {
            checkpoint.notes.push(unwrapped_note(dir, &wrappers));
            stored = names.into_iter().map(|(name, short)| (short, stored[name].clone())).collect();
        }
        let infos = stored.iter().map(|(name, extent)| (name.clone(), extent.info.clone())).collect();
        let changes = changes.read(&infos, &checkpoint.shapes())?;
        if !changes.prefix.is_empty() {
            let tensors = std::mem::take(&mut checkpoint.tensors).into_iter();
            checkpoint.tensors =
                tensors.map(|(name, place)| (format!("{}{name}", changes.prefix), place)).collect();
        }
        for (name, change) in changes.tensors {
            let Change { whole, low_rank } = change;
            if let Some(whole) = whole {
                checkpoint.tensors.insert(name.clone(), Place::stored(file, stored[&whole].clone()));
            }
            if let Some(LowRank { a, b, scale, is_transposed }) = low_rank {
                let [a, b] = [a, b].map(|name| Stored { file, extent: stored[&name].clone() });
                let place = checkpoint.tensors.get_mut(&name).expect("updates are of the base's tensors");
                place.update = Some(Update { a, b, scale, is_transposed });
            }
        }
        if let Some(value_head) = value_head(dir) {
            let file = checkpoint.open_file(value_head)?;
            let head = checkpoint.files[file].tensors.clone().into_iter();
            // in the place of a base's, from which it was trained on
            checkpoint.tensors.extend(head.map(|(name, extent)| (name, Place::stored(file, extent))));
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

    /// Puts tensors that are quantized in the place of their parts.
    fn dequantize(&mut self) -> Result<(), CheckpointError> {
        let Some(settings) = quantized::Settings::of(&self.dir)? else { return Ok(()) };
        let infos = self.tensors.iter().map(|(name, place)| (name.as_str(), place.source.info())).collect();
        let read = |name: &str| self.read_part(name, self.stored(name)?).map(|(part, _)| part);
        let metadata =
            |name: &str| self.files.iter().find_map(|file| file.metadata.get(name)).map(String::as_str);
        let quantized::Dequantized { found, unused, note } =
            settings.find(quantized::Stored::new(infos, &read, &metadata))?;
        let mut made = Vec::with_capacity(found.len());
        for quantized::Found { name, shape, parts, recipe } in found {
            let mut parts = parts.into_iter().map(|part| Ok((part.clone(), self.stored(&part)?.clone())));
            let parts = parts.by_ref().collect::<Result<Vec<_>, CheckpointError>>()?;
            let bytes = parts.iter().map(|(_, part)| part.extent.bytes()).sum();
            let info = TensorInfo { dtype: recipe.format().into(), shape, data_offsets: (0, bytes) };
            made.push((name, info, recipe, parts));
        }
        unused.iter().for_each(|name| drop(self.tensors.remove(name)));
        for (_, _, _, parts) in &made {
            parts.iter().for_each(|(name, _)| drop(self.tensors.remove(name)));
        }
        for (name, info, recipe, mut parts) in made {
            let (_, codes) = parts.remove(0);
            let source = Source::Quantized(Box::new(Quantized { info, recipe, codes, parts }));
            self.tensors.insert(name, Place { source, update: None });
        }
        self.notes.push(note);
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<&Stored, CheckpointError> {
        match &self.find(name)?.source {
            Source::Stored(stored) => Ok(stored),
            Source::Quantized(_) => Err(CheckpointError::MissingTensor { name: name.to_owned() }),
        }
    }

    fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        let shapes = self.tensors.iter();
        shapes.map(|(name, place)| (name.as_str(), place.source.info().shape.as_slice())).collect()
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), CheckpointError> {
        let text =
            disk::read(index, disk::SETTINGS_BYTES).map_err(|source| CheckpointError::read(index, source))?;
        let ShardIndex { weight_map } =
            serde_json::from_slice(&text).map_err(|error| CheckpointError::config(index, error))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        if shards.len() > MAX_SHARDS {
            let problem = format!("`weight_map` names {} files, the limit is {MAX_SHARDS}", shards.len());
            return Err(CheckpointError::config(index, problem));
        }
        for shard in shards {
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(CheckpointError::config(
                    index,
                    format!("shard `{shard}` is not a plain file name"),
                ));
            }
            self.add_file(self.dir.join(shard))?;
        }
        for (name, shard) in &weight_map {
            let held = self
                .tensors
                .get(&foreign::todays(name))
                .is_some_and(|place| self.files[place.source.file()].path.ends_with(shard));
            if !held {
                return Err(CheckpointError::config(
                    index,
                    format!("tensor `{name}` is not in shard `{shard}`"),
                ));
            }
        }
        Ok(())
    }

    /// Opens a file; its tensors are the checkpoint's.
    fn add_file(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let file = self.open_file(path)?;
        let OpenFile { path, tensors, .. } = &self.files[file];
        for (name, extent) in tensors {
            if self.tensors.insert(foreign::todays(name), Place::stored(file, extent.clone())).is_some() {
                let problem =
                    format!("tensor `{name}` is there twice, or in another file of the checkpoint as well");
                return Err(CheckpointError::Damaged { path: path.clone(), problem });
            }
        }
        Ok(())
    }

    fn open_file(&mut self, path: PathBuf) -> Result<usize, CheckpointError> {
        let file = match path.extension().is_some_and(|extension| extension == "bin") {
            true => open_pickled(path)?,
            false => open_safetensors(path)?,
        };
        self.files.push(file);
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
        self.base.is_some()
            && place.is_some_and(|place| self.files[place.source.file()].path.starts_with(&self.dir))
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

    /// Where its tokenizer and template are.
    pub fn text_dir(&self) -> &Path {
        self.dir_of("tokenizer.json")
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Size of all files, in bytes.
    pub fn payload_bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| file.tensors.values()).map(|extent| extent.bytes() as u64).sum()
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What the header says of a tensor; of one that is quantized, what it is read as.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        Some(self.tensors.get(name)?.source.info())
    }

    /// Reads one tensor. Fails if it is not what it was when it was read before.
    pub fn read(&self, name: &str) -> Result<TensorBytes<'_>, CheckpointError> {
        self.read_for(name, None)
    }

    /// The same for somebody who would round it to a format: products of codes and scales that have no type of their own are rounded
    /// to that at once, and half as much memory is written.
    pub fn read_for(&self, name: &str, wanted: Option<Format>) -> Result<TensorBytes<'_>, CheckpointError> {
        let Place { source, update } = self.find(name)?;
        let info = source.info();
        let (mut values, mut digest) = match source {
            Source::Stored(stored) => self.read_stored(stored)?,
            Source::Quantized(quantized) => {
                let is_exact = quantized.recipe.format() == Format::F32;
                let wanted = wanted.filter(|_| is_exact && update.is_none());
                self.read_quantized(name, quantized, wanted.unwrap_or(quantized.recipe.format()))?
            }
        };
        if let Some(update @ Update { a, b, scale, is_transposed }) = update {
            if let Values::Other(_) = values {
                return Err(CheckpointError::Unsupported(format!(
                    "tensor `{name}` is stored as {:?}, to which no update can be added: supported are F64, F32, F16 \
                     and BF16",
                    info.dtype
                )));
            }
            let ((a, digest_a), (b, digest_b)) = (self.read_stored(a)?, self.read_stored(b)?);
            let mut sum = match self.room(safetensors::Dtype::F64, values_in(&info.shape) * 8) {
                Values::F64(sum) => sum,
                _ => unreachable!("room is of the type that was asked for"),
            };
            lora::add(&values, &a, &b, *scale, *is_transposed, &info.shape, &mut sum);
            for read in [std::mem::replace(&mut values, Values::F64(sum)), a, b] {
                self.give_back(read);
            }
            digest = update.digest(&digest, &digest_a, &digest_b);
        }
        let is_as_recalled = self.recalled_digest(name).is_none_or(|recalled| recalled == digest);
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if *digests.entry(name.to_owned()).or_insert(digest) != digest || !is_as_recalled {
            self.files.iter().for_each(|file| file.known.forget());
            let problem = format!("tensor `{name}` changed while it was read");
            return Err(CheckpointError::Damaged { path: self.files[source.file()].path.clone(), problem });
        }
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, values })
    }

    /// What a file holds there, and its digest.
    fn read_stored(&self, stored: &Stored) -> Result<(Values, Digest), CheckpointError> {
        let (file, extent) = (stored.file, &stored.extent);
        let Extent { info, view } = extent;
        let (start, end) = info.data_offsets;
        let mut values = self.room(info.dtype, end - start);
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}\n", info.dtype, info.shape).as_bytes());
        let mut at = start as u64;
        if let Some(view) = view {
            let mut from = vec![0; view.bytes];
            self.files[file].read_at(&mut from, at)?;
            view.gather(&from, info, values.bytes_mut());
            hasher.update_rayon(values.bytes());
            return Ok((values, *hasher.finalize().as_bytes()));
        }
        for slab in values.bytes_mut().chunks_mut(SLAB) {
            self.files[file].read_at(slab, at)?;
            hasher.update_rayon(slab);
            at += slab.len() as u64;
        }
        let digest = *hasher.finalize().as_bytes();
        self.files[file].known.was_read(extent, &digest);
        Ok((values, digest))
    }

    /// A tensor that others are made of, and its digest.
    fn read_part(&self, name: &str, stored: &Stored) -> Result<(Part, Digest), CheckpointError> {
        let (values, digest) = self.read_stored(stored)?;
        Ok((Part { name: name.to_owned(), dtype: stored.extent.info.dtype, values }, digest))
    }

    /// What codes and scales make, and its digest: codes are read, digested and decoded while they are in the cache, so that they
    /// are never there as a whole.
    fn read_quantized(
        &self,
        name: &str,
        quantized: &Quantized,
        format: Format,
    ) -> Result<(Values, Digest), CheckpointError> {
        let Quantized { info, recipe, codes, parts } = quantized;
        let mut slab = std::mem::take(&mut *self.slab.lock().unwrap_or_else(PoisonError::into_inner));
        let parts = parts.iter().map(|(name, part)| self.read_part(name, part));
        let (parts, digests): (Vec<_>, Vec<_>) = parts.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let scales = recipe.scales(&parts).map_err(|problem| {
            CheckpointError::Unsupported(format!("tensor `{name}` cannot be dequantized: {problem}"))
        })?;
        let mut values = self.room(format.into(), values_in(&info.shape) * format.bytes());
        let Stored { file, extent } = codes;
        let (file, start) = (&self.files[*file], extent.info.data_offsets.0);
        let of_codes = match &extent.view {
            // in steps, as no file of a quantizer has it
            Some(_) => {
                let (codes, digest) = self.read_stored(codes)?;
                recipe.fill(&scales, &mut values, &mut slab, |at, bytes| {
                    bytes.copy_from_slice(&codes.bytes()[at..][..bytes.len()]);
                    Ok::<_, CheckpointError>(())
                })?;
                digest
            }
            None => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(format!("{:?} {:?}\n", extent.info.dtype, extent.info.shape).as_bytes());
                recipe.fill(&scales, &mut values, &mut slab, |at, bytes| {
                    file.read_at(bytes, (start + at) as u64)?;
                    hasher.update_rayon(bytes);
                    Ok::<_, CheckpointError>(())
                })?;
                let digest = *hasher.finalize().as_bytes();
                file.known.was_read(extent, &digest);
                digest
            }
        };
        *self.slab.lock().unwrap_or_else(PoisonError::into_inner) = slab;
        parts.into_iter().for_each(|part| self.give_back(part.values));
        Ok((values, quantized.digest(&of_codes, &digests)))
    }

    /// Reads at most so many values from the middle of a tensor, and compares them with nothing.
    pub fn sample(&self, name: &str, values: usize) -> Result<TensorBytes<'_>, CheckpointError> {
        let Place { source, update } = self.find(name)?;
        let info = source.info();
        let count = values_in(&info.shape);
        let sampled = values.min(count);
        let first = (count - sampled) / 2;
        let stored = match source {
            Source::Stored(stored) if update.is_none() => stored,
            // whole: of an update as many rows would need all of one factor anyway
            _ => {
                let mut tensor = self.read(name)?;
                let middle = tensor.values.part(first..first + sampled);
                self.give_back(std::mem::replace(&mut tensor.values, middle));
                return Ok(tensor);
            }
        };
        let (start, end) = info.data_offsets;
        let size = (end - start) / count.max(1);
        let mut values = Values::zeros(info.dtype, sampled * size);
        if stored.extent.view.is_some() {
            let (whole, _) = self.read_stored(stored)?;
            values.bytes_mut().copy_from_slice(&whole.bytes()[first * size..][..sampled * size]);
            self.give_back(whole);
            return Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, values });
        }
        self.files[stored.file].read_at(values.bytes_mut(), (start + first * size) as u64)?;
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, values })
    }

    /// Room for values, with whatever it held before.
    pub fn room(&self, dtype: safetensors::Dtype, bytes: usize) -> Values {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter_mut().position(|values| values.resized(dtype, bytes));
        match fitting {
            Some(index) => spare.remove(index),
            None => Values::zeros(dtype, bytes),
        }
    }

    /// Takes back values that nobody needs any more, to read others into their memory.
    pub fn give_back(&self, values: Values) {
        if !(1..=MAX_SPARE_BYTES).contains(&values.capacity_bytes()) {
            return;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(values);
        spare.sort_by_key(Values::capacity_bytes); // the smallest that fits is found first
        if spare.len() > MAX_SPARE {
            spare.remove(0);
        }
    }

    fn find(&self, name: &str) -> Result<&Place, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })
    }

    /// Digest of a tensor's dtype, shape and bytes; read only once.
    pub fn digest(&self, name: &str) -> Result<Digest, CheckpointError> {
        if let Some(digest) = self.known_digest(name) {
            return Ok(digest);
        }
        self.read(name)?;
        Ok(self.known_digest(name).expect("reading notes the digest"))
    }

    /// Digest of these tensors, names and contents; sort the names.
    pub fn digest_of<'n>(
        &self,
        names: impl IntoIterator<Item = &'n String>,
    ) -> Result<Digest, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        for name in names {
            // heads and backbones are told apart by name, so the prefix counts; lengths keep names apart
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&self.digest(name)?);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Learns the digests of files that were read before and have not changed since.
    pub fn recall(&self, kept: &Kept) {
        self.files.iter().for_each(|file| file.known.recall(kept));
    }

    /// Notes what was read, for who opens the same files again.
    pub fn note(&self, kept: &Kept) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.known.note(&file.file, kept))
    }

    fn recalled_digest(&self, name: &str) -> Option<Digest> {
        let Place { source, update } = self.tensors.get(name)?;
        let of = |stored: &Stored| self.files[stored.file].known.recalled(&stored.extent);
        let before = match source {
            Source::Stored(stored) => of(stored)?,
            Source::Quantized(quantized) => {
                let parts = quantized.parts.iter().map(|(_, part)| of(part)).collect::<Option<Vec<_>>>()?;
                quantized.digest(&of(&quantized.codes)?, &parts)
            }
        };
        Some(match update {
            Some(update) => update.digest(&before, &of(&update.a)?, &of(&update.b)?),
            None => before,
        })
    }

    /// The same, if it was read already, or is [recalled](Self::recall).
    pub fn known_digest(&self, name: &str) -> Option<Digest> {
        self.read_digest(name).or_else(|| self.recalled_digest(name))
    }

    /// The same, if it was read already.
    pub fn read_digest(&self, name: &str) -> Option<Digest> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}

impl OpenFile {
    /// Reads bytes from this far into the tensors, several threads at a time.
    fn read_at(&self, bytes: &mut [u8], start: u64) -> Result<(), CheckpointError> {
        let read = |(piece, bytes): (usize, &mut [u8])| {
            self.file.read_exact_at(bytes, self.data_start + start + (piece * PIECE) as u64)
        };
        let read = bytes.par_chunks_mut(PIECE).enumerate().try_for_each(read);
        read.map_err(|source| CheckpointError::read(&self.path, source))
    }
}

fn open_safetensors(path: PathBuf) -> Result<OpenFile, CheckpointError> {
    let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
    let (file, header) = read_header(&path).map_err(|source| match source.kind() {
        _ if is_pointer(&path) => damaged(disk::LFS_CURE.to_owned()),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            damaged(format!("{source}: {COPY_AGAIN}"))
        }
        _ => CheckpointError::read(&path, source),
    })?;
    // also checks that the tensors lie one after the other, each as long as its shape says
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| damaged(format!("the header is not one: {error}: {COPY_AGAIN}")))?;
    let data_start = HEADER_START + header.len() as u64;
    let (size, end) = (file_bytes(&file, &path)?, data_start + metadata.data_len() as u64);
    if size != end {
        return Err(damaged(format!("has {size} bytes, its header tells of {end}: {COPY_AGAIN}")));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, Extent::from(info))).collect();
    let known = Known::of(&file);
    let metadata = metadata.metadata().clone().unwrap_or_default();
    Ok(OpenFile { path, file, known, data_start, tensors, metadata })
}

fn open_pickled(path: PathBuf) -> Result<OpenFile, CheckpointError> {
    let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
    let file = disk::open(&path).map_err(|source| CheckpointError::read(&path, source))?;
    let read = pickled::read(&file, &path).map_err(|problem| match is_pointer(&path) {
        true => damaged(disk::LFS_CURE.to_owned()),
        false => damaged(problem),
    })?;
    disk::seen(&path, Some(&read.header)).map_err(|source| CheckpointError::read(&path, source))?;
    let known = Known::of(&file);
    let metadata = HashMap::new();
    Ok(OpenFile { path, file, known, data_start: 0, tensors: read.tensors, metadata })
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

fn file_bytes(file: &File, path: &Path) -> Result<u64, CheckpointError> {
    Ok(file.metadata().map_err(|source| CheckpointError::read(path, source))?.len())
}

/// Where LLaMA-Factory saves TRL's head, beside a model or an adapter.
fn value_head(dir: &Path) -> Option<PathBuf> {
    VALUE_HEADS.iter().map(|name| dir.join(name)).find(|path| disk::is_there(path))
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

#[cfg(test)]
mod tests {
    use super::*;

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
