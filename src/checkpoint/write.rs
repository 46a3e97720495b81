//! Weights out: an ordinary Hugging Face directory, written tensor by tensor, which appears whole or not at all.
//!
//! Everything goes into a hidden folder beside the target, is synced to the disk, and takes the target's name in
//! one step. A command that is killed leaves at most the hidden folder, never half a checkpoint.

use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::checkpoint::CheckpointError;
use crate::disk;
use crate::disk::write::LargeFile;
use crate::disk::write::sync_folder;
use crate::values::Values;

/// A larger checkpoint is cut into shards of at most this size, as transformers does.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

pub use crate::disk::write::PARTIAL;

/// What beside weights and `config.json` makes a checkpoint: text files, some of them only for `transformers`.
pub const TEXT_FILES: [&str; 15] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
];

/// What will be written of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// As in the checkpoint.
    pub name: String,
    /// What its values are stored in.
    pub dtype: Dtype,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How many bytes its values take.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// Writes one checkpoint.
#[derive(Debug)]
pub struct CheckpointWriter {
    target: PathBuf,
    staging: TempDir,
    /// File names and what they hold, in order.
    shards: Vec<(String, Vec<TensorSpec>)>,
    /// The shard that is being written, and how many of its tensors are there.
    current: Option<LargeFile>,
    shard: usize,
    written: usize,
}

impl CheckpointWriter {
    /// Begins a checkpoint of these tensors, which will be written in this order, in files of at most
    /// `max_shard_bytes` (or one tensor). Fails if something is at `target` that is not an empty directory.
    pub fn create(
        target: &Path,
        tensors: Vec<TensorSpec>,
        max_shard_bytes: u64,
    ) -> Result<Self, CheckpointError> {
        check_target(target)?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(|source| CheckpointError::write(parent, source))?;
        let staging = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent);
        let staging = staging.map_err(|source| CheckpointError::write(parent, source))?;
        Ok(Self {
            target: target.to_owned(),
            staging,
            shards: cut(tensors, max_shard_bytes),
            current: None,
            shard: 0,
            written: 0,
        })
    }

    /// Writes the next tensor; its name, type and size are those that were announced.
    pub fn write(&mut self, name: &str, values: &Values) -> Result<(), CheckpointError> {
        let format = values.format().expect("what was averaged or trained are numbers");
        self.write_bytes(name, format.into(), values.bytes())
    }

    /// The same of a tensor that is copied as it is.
    pub fn write_bytes(&mut self, name: &str, dtype: Dtype, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (file_name, specs) = &self.shards[self.shard];
        let spec = &specs[self.written];
        assert!(
            spec.name == name && spec.dtype == dtype && spec.bytes() == bytes.len() as u64,
            "announced {spec:?}, written `{name}` as {dtype:?} with {} bytes",
            bytes.len()
        );
        let path = self.staging.path().join(file_name);
        let io_error = |source| CheckpointError::write(&path, source);
        if self.current.is_none() {
            let mut file = LargeFile::new(File::create(&path).map_err(io_error)?);
            file.write(&header(specs)).map_err(io_error)?;
            self.current = Some(file);
        }
        let file = self.current.as_mut().expect("opened above");
        file.write(bytes).map_err(io_error)?;
        self.written += 1;
        if self.written == specs.len() {
            let file = self.current.take().expect("opened above");
            file.finish().map_err(io_error)?;
            self.shard += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Writes a file beside the weights.
    pub fn add_file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.staging.path().join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| CheckpointError::write(&path, source))
    }

    /// The same of a JSON document.
    pub fn add_json(&self, name: &str, document: &Value) -> Result<(), CheckpointError> {
        self.add_file(name, format!("{document:#}\n").as_bytes())
    }

    /// Copies what `from` has of tokenizer, chat template and the like.
    pub fn copy_text_files(&self, from: &Path) -> Result<(), CheckpointError> {
        for name in TEXT_FILES {
            self.copy_file(&from.join(name), name)?;
        }
        let folder = from.join(disk::ADDITIONAL_TEMPLATES);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(source) => return Err(CheckpointError::read(&folder, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| CheckpointError::read(&folder, source))?;
            let name = Path::new(disk::ADDITIONAL_TEMPLATES).join(entry.file_name());
            if name.extension().is_some_and(|extension| extension == "jinja") {
                let copy = self.staging.path().join(disk::ADDITIONAL_TEMPLATES);
                std::fs::create_dir_all(&copy).map_err(|source| CheckpointError::write(&copy, source))?;
                self.copy_file(&entry.path(), &name)?;
            }
        }
        Ok(())
    }

    /// If it is there.
    fn copy_file(&self, from: &Path, name: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let read = disk::read_if_there(from, disk::VOCABULARY_BYTES);
        match read.map_err(|source| CheckpointError::read(from, source))? {
            Some(bytes) => self.add_file(name, &bytes),
            None => Ok(()),
        }
    }

    /// Gives the checkpoint its name. All tensors must have been written.
    pub fn finish(self) -> Result<(), CheckpointError> {
        assert_eq!(self.shard, self.shards.len(), "all announced tensors are written");
        if self.shards.len() > 1 {
            self.add_json("model.safetensors.index.json", &index(&self.shards))?;
        }
        check_target(&self.target)?;
        let io_error = |source| CheckpointError::write(&self.target, source);
        sync_folder(self.staging.path()).map_err(io_error)?;
        std::fs::rename(self.staging.path(), &self.target).map_err(io_error)?;
        let _ = self.staging.keep(); // it has another name now
        share(&self.target).map_err(io_error)?;
        sync_folder(self.target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")))
            .map_err(io_error)
    }
}

/// Gives `path` this content in one step: whoever reads it finds the old one or the new one, whole.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    replace_file_with(path, |partial| std::fs::write(partial, bytes))
}

/// The same of what `write` puts into the file that it is given the path of.
pub fn replace_file_with(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let replace = || {
        // of the temporary file's permissions, the user's own mask takes what it takes from any new file
        let shared = Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(PARTIAL).permissions(shared).tempfile_in(folder)?;
        write(file.path())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_folder(folder)
    };
    replace().map_err(|source| CheckpointError::write(path, source))
}

/// Temporary folders are their owner's alone; a checkpoint is not, by the user's own mask.
fn share(folder: &Path) -> io::Result<()> {
    // a new folder has the permissions that the user wants; there is no other way to ask for the mask
    let probe = folder.join(".permissions");
    std::fs::create_dir(&probe)?;
    let permissions = std::fs::metadata(&probe)?.permissions();
    std::fs::remove_dir(&probe)?;
    std::fs::set_permissions(folder, permissions)
}

/// Fails if something is there that is not an empty directory.
pub fn check_target(target: &Path) -> Result<(), CheckpointError> {
    let is_free = match std::fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if is_free {
        return Ok(());
    }
    let problem = "exists already and nothing is overwritten: remove it, or write elsewhere";
    Err(CheckpointError::write(target, io::Error::new(io::ErrorKind::AlreadyExists, problem)))
}

fn cut(tensors: Vec<TensorSpec>, max_shard_bytes: u64) -> Vec<(String, Vec<TensorSpec>)> {
    let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
    let mut bytes = 0;
    for tensor in tensors {
        bytes += tensor.bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= max_shard_bytes => shard.push(tensor),
            _ => {
                bytes = tensor.bytes();
                shards.push(vec![tensor]);
            }
        }
    }
    let count = shards.len();
    let name = |index: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    shards.into_iter().enumerate().map(|(index, shard)| (name(index), shard)).collect()
}

/// Length and JSON, filled up with blanks so that values are aligned.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert("__metadata__".to_owned(), json!({"format": "pt"})); // without it transformers refuses the file
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let info = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        fields.insert(tensor.name.clone(), info);
        start = end;
    }
    let mut text = Value::Object(fields).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().as_slice(), &text].concat()
}

fn index(shards: &[(String, Vec<TensorSpec>)]) -> Value {
    let mut weight_map = Map::new();
    for (file, tensors) in shards {
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    let total: u64 = shards.iter().flat_map(|(_, tensors)| tensors).map(TensorSpec::bytes).sum();
    json!({"metadata": {"total_size": total}, "weight_map": weight_map})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn spec(name: &str, values: usize) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![values] }
    }

    fn write(target: &Path, max_shard_bytes: u64) -> Result<(), CheckpointError> {
        let mut writer = CheckpointWriter::create(target, vec![spec("a", 2), spec("b", 3)], max_shard_bytes)?;
        writer.write("a", &Values::F32(vec![1.0, 2.0]))?;
        writer.write("b", &Values::F32(vec![3.0, 4.0, 5.0]))?;
        writer.add_json("config.json", &json!({}))?;
        writer.finish()
    }

    #[test]
    fn what_is_written_is_read_in_one_file_or_in_shards() {
        let dir = tempfile::tempdir().unwrap();
        for (max_shard_bytes, files) in [(20, 1), (19, 2), (1, 2)] {
            let target = dir.path().join(format!("new/{max_shard_bytes}"));
            write(&target, max_shard_bytes).unwrap();
            let checkpoint = Checkpoint::open(&target).unwrap();
            assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(
                (checkpoint.info("b").unwrap().shape.as_slice(), checkpoint.payload_bytes()),
                (&[3][..], 20)
            );
            let weights = std::fs::read_dir(&target).unwrap().flatten();
            let weights =
                weights.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
            assert_eq!(weights.count(), files);
        }
    }

    #[test]
    fn an_unfinished_checkpoint_leaves_nothing_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut writer = CheckpointWriter::create(&target, vec![spec("a", 2)], 100).unwrap();
        writer.write("a", &Values::F32(vec![1.0, 2.0])).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        write(&target, 100).unwrap();
        let error = format!("{:?}", write(&target, 100).unwrap_err());
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
