//! Weights: from safetensors files to tensors laid out for the product.
//!
//! A [`Checkpoint`] is read tensor by tensor. [`Weights`] hands tensors to a model
//! while it is built: it checks names, shapes and finiteness before use, averages several members on the way
//! ([`crate::model::merge`]), and notices at the end which tensors nobody asked for. A [`TensorStore`] keeps
//! one copy of what is equal, by content digest, however many members and variants hold it.
//!
//! # Why not map the files into memory?
//!
//! They were, at first. An operator who copies new weights over the old ones shrinks the file for a moment, and
//! a reload that is reading the mapping then ends the whole server with SIGBUS. Reads answer with an error
//! instead; and what was digested is compared with what is used, so that a fingerprint never names other weights.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use candle_core::DType;
use candle_core::Device;
use candle_core::Tensor;
use safetensors::tensor::Metadata;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::model::ModelError;
use crate::model::config::BackboneConfig;
use crate::model::merge;
use crate::model::ops::Linear;

/// A safetensors file starts with its header's length, in 8 bytes.
const HEADER_START: u64 = 8;
/// The longest header that safetensors writes; a longer one is no header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const COPY_AGAIN: &str = "the file is truncated or damaged, copy or save it again";

/// A blake3 digest.
pub type Digest = [u8; 32];

/// Tensors that checkpoints carry and a reward does not depend on, by the end of their names.
const IGNORED_SUFFIXES: [&str; 3] =
    ["rotary_emb.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids"];

/// And by the start: language-model heads, of which a reward model has no use.
const IGNORED_PREFIXES: [&str; 4] = ["lm_head.", "cls.", "pretrained_model.lm_head.", "model.lm_head."];

/// The safetensors files of a checkpoint directory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<OpenFile>,
    tensors: BTreeMap<String, usize>,
    digests: Mutex<HashMap<String, Digest>>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

/// One tensor as it is on disk.
#[derive(Clone, Debug)]
pub struct TensorBytes<'a> {
    /// As stored.
    pub dtype: safetensors::Dtype,
    /// As stored.
    pub shape: &'a [usize],
    /// Little endian.
    pub bytes: Vec<u8>,
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
            return Err(ModelError::NoCheckpoint {
                path: dir.to_owned(),
                problem: "there is no such directory".to_owned(),
            });
        }
        if dir.join("adapter_config.json").is_file() {
            return Err(ModelError::NoCheckpoint {
                path: dir.to_owned(),
                problem: "is a LoRA adapter: merge it into its base first (peft's `merge_and_unload`)"
                    .to_owned(),
            });
        }
        let mut checkpoint = Self {
            dir: dir.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            digests: Mutex::default(),
        };
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if single.is_file() {
            checkpoint.open_file(single)?;
        } else if index.is_file() {
            checkpoint.open_shards(&index)?;
        } else {
            return Err(ModelError::NoCheckpoint { path: dir.to_owned(), problem: missing_weights(dir) });
        }
        let value_head = dir.join("value_head.safetensors"); // as LLaMA-Factory saves TRL's
        if value_head.is_file() {
            checkpoint.open_file(value_head)?;
        }
        Ok(checkpoint)
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), ModelError> {
        let text = std::fs::read_to_string(index).map_err(|source| ModelError::read(index, source))?;
        let ShardIndex { weight_map } =
            serde_json::from_str(&text).map_err(|error| ModelError::config(index, error))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        for shard in shards {
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(ModelError::config(index, format!("shard `{shard}` is not a plain file name")));
            }
            self.open_file(self.dir.join(shard))?;
        }
        for (name, shard) in &weight_map {
            let held = self.tensors.get(name).is_some_and(|&file| self.files[file].path.ends_with(shard));
            if !held {
                return Err(ModelError::config(index, format!("tensor `{name}` is not in shard `{shard}`")));
            }
        }
        Ok(())
    }

    fn open_file(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let damaged = |problem: String| ModelError::Damaged { path: path.clone(), problem };
        let (file, header) = read_header(&path).map_err(|source| match source.kind() {
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
        for name in metadata.tensors().into_keys() {
            if self.tensors.insert(name.clone(), self.files.len()).is_some() {
                return Err(damaged(format!("tensor `{name}` is in another file of the checkpoint as well")));
            }
        }
        self.files.push(OpenFile { path, file, data_start, metadata });
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
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
        self.files[*self.tensors.get(name)?].metadata.info(name)
    }

    /// Reads one tensor. Fails if it is not what it was when it was read before.
    pub fn read(&self, name: &str) -> Result<TensorBytes<'_>, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let file = &self.files[*self.tensors.get(name).ok_or_else(missing)?];
        let info = file.metadata.info(name).ok_or_else(missing)?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        file.file
            .read_exact_at(&mut bytes, file.data_start + start as u64)
            .map_err(|source| ModelError::read(&file.path, source))?;

        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}\n", info.dtype, info.shape).as_bytes());
        hasher.update(&bytes);
        let digest = *hasher.finalize().as_bytes();
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if *digests.entry(name.to_owned()).or_insert(digest) != digest {
            let problem = format!("tensor `{name}` changed while it was read");
            return Err(ModelError::Damaged { path: file.path.clone(), problem });
        }
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// Digest of a tensor's dtype, shape and bytes; read only once.
    pub fn digest(&self, name: &str) -> Result<Digest, ModelError> {
        if let Some(digest) = self.known_digest(name) {
            return Ok(digest);
        }
        self.read(name)?;
        Ok(self.known_digest(name).expect("reading notes the digest"))
    }

    fn known_digest(&self, name: &str) -> Option<Digest> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}

fn read_header(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let file = File::open(path)?;
    let mut length = [0; HEADER_START as usize];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        let problem = format!("the header has {length} bytes, the limit is {MAX_HEADER_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, HEADER_START)?;
    Ok((file, header))
}

fn file_bytes(file: &File, path: &Path) -> Result<u64, ModelError> {
    Ok(file.metadata().map_err(|source| ModelError::read(path, source))?.len())
}

fn missing_weights(dir: &Path) -> String {
    let pickled = std::fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "bin" || extension == "pt" || extension == "pth")
    });
    if pickled {
        "holds pickled weights (.bin), which can run code when read: convert them with transformers, \
         `AutoModelForSequenceClassification.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)`"
            .to_owned()
    } else {
        "holds neither model.safetensors nor model.safetensors.index.json".to_owned()
    }
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layout {
    AsStored,
    Transposed,
}

/// What makes two tensors equal: the same sources with the same coefficients, kept the same way.
#[derive(Debug, PartialEq, Eq, Hash)]
struct StoreKey {
    sources: Vec<(Digest, u64)>,
    layout: Layout,
    dtype: DType,
    device: String,
}

/// Tensors in memory, one copy of each content.
#[derive(Debug, Default)]
pub struct TensorStore {
    tensors: HashMap<StoreKey, Tensor>,
}

/// Gives a model its tensors while it is built.
pub struct Weights<'a> {
    members: &'a [(&'a Checkpoint, f64)],
    prefix: String,
    dtype: DType,
    device: Device,
    /// `None`: only names and shapes are checked, and tensors are placeholders without memory.
    store: Option<&'a mut TensorStore>,
    used: BTreeSet<String>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Weights<'a> {
    /// Weights of one checkpoint, or the average of several that share names and shapes, in proportion to their
    /// coefficients. Without a store nothing is read. `progress` is told of bytes as they are read.
    pub fn new(
        members: &'a [(&'a Checkpoint, f64)],
        backbone: &BackboneConfig,
        dtype: DType,
        device: &Device,
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
        Self { members, prefix, dtype, device: device.clone(), store, used: BTreeSet::new(), progress }
    }

    /// What stands before the backbone's tensor names, for example "model.".
    pub fn backbone_prefix(&self) -> &str {
        &self.prefix
    }

    /// Where the tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the checkpoint has such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.members[0].0.tensors.contains_key(name)
    }

    /// First dimension of a tensor.
    pub fn rows(&self, name: &str) -> Result<usize, ModelError> {
        let tensor = self.members[0].0.info(name);
        let tensor = tensor.ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        Ok(tensor.shape.first().copied().unwrap_or(1))
    }

    /// A linear layer `[out, in]` on disk, in the working precision.
    pub fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear, ModelError> {
        self.linear_in(name, out, input, bias, self.dtype)
    }

    /// A linear layer of the head, in `f32`.
    pub fn linear_f32(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        self.linear_in(name, out, input, bias, DType::F32)
    }

    fn linear_in(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        bias: bool,
        dtype: DType,
    ) -> Result<Linear, ModelError> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, input], Layout::Transposed, dtype)?;
        let bias = if bias {
            Some(self.tensor(&format!("{name}.bias"), &[out], Layout::AsStored, dtype)?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    /// An embedding `[rows, columns]`, in the working precision.
    pub fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, ModelError> {
        self.tensor(name, &[rows, columns], Layout::AsStored, self.dtype)
    }

    /// A norm's vector `[width]`, in `f32`.
    pub fn vector_f32(&mut self, name: &str, width: usize) -> Result<Tensor, ModelError> {
        self.tensor(name, &[width], Layout::AsStored, DType::F32)
    }

    fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        layout: Layout,
        dtype: DType,
    ) -> Result<Tensor, ModelError> {
        for (checkpoint, _) in self.members {
            let tensor =
                checkpoint.info(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
            if tensor.shape != shape {
                return Err(ModelError::Shape {
                    name: name.to_owned(),
                    expected: shape.to_vec(),
                    found: tensor.shape.clone(),
                });
            }
        }
        self.used.insert(name.to_owned());
        let Some(store) = self.store.as_deref_mut() else {
            let placeholder = Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)?;
            return Ok(if layout == Layout::Transposed { placeholder.t()? } else { placeholder });
        };
        let read_all = || {
            let read = |(checkpoint, coefficient): &(&'a Checkpoint, f64)| {
                Ok((checkpoint.read(name)?, *coefficient))
            };
            self.members.iter().map(read).collect::<Result<Vec<_>, ModelError>>()
        };
        // What has no digest yet is read for it: once, if the store does not have it.
        let is_known = self.members.iter().all(|(checkpoint, _)| checkpoint.known_digest(name).is_some());
        let read_now = if is_known { None } else { Some(read_all()?) };
        let mut keys = Vec::with_capacity(self.members.len());
        for (checkpoint, coefficient) in self.members {
            keys.push((checkpoint.digest(name)?, coefficient.to_bits()));
        }
        let are_equal = keys.iter().all(|(digest, _)| *digest == keys[0].0);
        if are_equal {
            // coefficients sum to one: the average of equal tensors is that tensor, exactly
            keys = vec![(keys[0].0, 1.0_f64.to_bits())];
        }
        let key = StoreKey { sources: keys, layout, dtype, device: format!("{:?}", self.device.location()) };
        let tensor = match store.tensors.get(&key) {
            Some(tensor) => tensor.clone(),
            None => {
                let mut sources = read_now.map_or_else(read_all, Ok)?;
                if are_equal {
                    sources.truncate(1);
                    sources[0].1 = 1.0;
                }
                let average = merge::average(name, &sources, dtype)?;
                let tensor = average.into_tensor(shape)?;
                let tensor = match layout {
                    Layout::AsStored => tensor,
                    Layout::Transposed => tensor.t()?.contiguous()?,
                };
                let tensor = tensor.to_device(&self.device)?;
                store.tensors.insert(key, tensor.clone());
                tensor
            }
        };
        let infos = self.members.iter().filter_map(|(checkpoint, _)| checkpoint.info(name));
        let read: usize = infos.map(|info| info.data_offsets.1 - info.data_offsets.0).sum();
        (self.progress)(read as u64);
        Ok(tensor)
    }

    /// Refuses a checkpoint with tensors that the model did not ask for: they would be left out of the reward in
    /// silence. Returns each member's digest of the tensors that were used.
    pub fn finish(self) -> Result<Vec<Digest>, ModelError> {
        // BERT's pooler is part of the backbone, and unused below RoBERTa's head
        let is_ignored = |name: &str| {
            IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || IGNORED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
                || name.starts_with(&format!("{}pooler.", self.prefix))
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
        let digest_of = |checkpoint: &Checkpoint| {
            let mut hasher = blake3::Hasher::new();
            for name in &self.used {
                // heads and backbones are told apart by name, so the prefix counts; lengths keep names apart
                hasher.update(&(name.len() as u64).to_le_bytes());
                hasher.update(name.as_bytes());
                hasher.update(&checkpoint.digest(name)?);
            }
            Ok(*hasher.finalize().as_bytes())
        };
        self.members.iter().map(|(checkpoint, _)| digest_of(checkpoint)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RewardModel;
    use crate::model::config::CheckpointConfig;
    use crate::model::manifest::Manifest;

    fn load(path: &str, store: &mut TensorStore) -> usize {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge").join(path);
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let (members, mut progress) = ([(&checkpoint, 1.0)], |_| ());
        let mut weights =
            Weights::new(&members, &config.backbone, DType::F32, &Device::Cpu, Some(store), &mut progress);
        RewardModel::load(&mut weights, &config).unwrap();
        let used = weights.used.len();
        weights.finish().unwrap();
        used
    }

    #[test]
    fn identical_tensors_of_members_are_held_once() {
        let mut store = TensorStore::default();
        let used = load("llama-f32/member-0", &mut store);
        assert_eq!(store.tensors.len(), used);
        load("llama-f32/member-0", &mut store);
        assert_eq!(store.tensors.len(), used, "the same member again");
        load("llama-f32/member-1", &mut store); // differs in all but the head
        assert_eq!(store.tensors.len(), 2 * used - 1);
    }
}
