//! The state of a member on the disk: weights, optimiser, position. A run that goes on from it ends as if it had never
//! stopped, bit for bit.
//!
//! One safetensors file, written beside its place, synced, and renamed over the last one: whatever happens meanwhile
//! (a kill, a full disk), either the last state is there or the next, whole.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::path::Path;

use anyhow::Context;
use anyhow::ensure;
use candle_core::Device;
use candle_core::Tensor;
use candle_core::safetensors::Load;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::Serialize;

use crate::checkpoint::write::replace_file_with;
use crate::disk;
use crate::offline::train::config::Member;

/// Under which the position is in the file's metadata.
const POSITION: &str = "rewarm";

/// How far a member is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The member's settings: a state is of no use under others.
    pub(super) settings: Member,
    /// Steps done.
    pub(super) step: usize,
    /// The last step after which the model was validated.
    pub(super) validated_at: Option<usize>,
    /// The best of those, where it is kept: its weights are in the state too.
    pub(super) best: Option<Best>,
    /// How much of the log belongs to this state.
    pub(super) log_bytes: u64,
}

/// The step of least validation loss so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    /// So many steps were done.
    pub(super) step: usize,
    /// On the validation pairs, in nats.
    pub(super) loss: f64,
    /// Validations since.
    pub(super) worse_since: usize,
}

impl Position {
    pub(super) fn start(settings: &Member) -> Self {
        Self { settings: settings.clone(), step: 0, validated_at: None, best: None, log_bytes: 0 }
    }

    /// Takes note of a validation; whether it is the best so far.
    pub(super) fn judge(&mut self, step: usize, loss: f64) -> bool {
        match &mut self.best {
            Some(best) if best.loss <= loss => {
                best.worse_since += 1;
                false
            }
            best => {
                *best = Some(Best { step, loss, worse_since: 0 });
                true
            }
        }
    }
}

/// Replaces the state at `path`.
pub(super) fn write(
    path: &Path,
    position: &Position,
    tensors: &BTreeMap<String, Tensor>,
) -> anyhow::Result<()> {
    let metadata = HashMap::from([(POSITION.to_owned(), serde_json::to_string(position)?)]);
    let write = |partial: &Path| {
        safetensors::serialize_to_file(tensors.iter(), Some(metadata), partial).map_err(io::Error::other)
    };
    replace_file_with(path, write).context("the state before is as it was")
}

/// Reads the state at `path`; none where there is no file.
pub(super) fn read(path: &Path) -> anyhow::Result<Option<(Position, BTreeMap<String, Tensor>)>> {
    let Some(bytes) = read_if_there(path)? else {
        return Ok(None);
    };
    let parse = || -> anyhow::Result<_> {
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let position = header.metadata().as_ref().and_then(|metadata| metadata.get(POSITION));
        let position: Position = serde_json::from_str(position.context("its position is missing")?)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            tensors.insert(name.to_owned(), view.load(&Device::Cpu)?);
        }
        ensure!(!tensors.is_empty(), "it holds no tensors");
        Ok(Some((position, tensors)))
    };
    parse().with_context(|| format!("{} is damaged: remove it to begin this member again", path.display()))
}

/// The file's content; none where there is no file.
pub(super) fn read_if_there(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    // a state of the training holds all weights: no limit but what the file says
    disk::read_if_there(path, u64::MAX - 1).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_and_a_damaged_one_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("member-0.safetensors");
        assert!(read(&path).unwrap().is_none());
        let settings =
            Member { base: PathBuf::from("base"), learning_rate: 1.1e-5, dropout: 0.1, epochs: 2, seed: 7 };
        let mut position =
            Position { step: 3, validated_at: Some(2), log_bytes: 99, ..Position::start(&settings) };
        assert!(position.judge(0, 0.7) && position.judge(1, 0.1 + 0.2) && !position.judge(2, 0.1 + 0.2));
        assert_eq!(position.best, Some(Best { step: 1, loss: 0.1 + 0.2, worse_since: 1 }));
        let tensor = Tensor::new(&[[1.5f32, f32::MIN_POSITIVE], [-0.0, 3.0]], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("weight a".to_owned(), tensor)]);
        write(&path, &position, &tensors).unwrap();
        position.step = 4;
        write(&path, &position, &tensors).unwrap();

        let (read_position, read_tensors) = read(&path).unwrap().unwrap();
        assert_eq!(read_position, position);
        let bits = |tensors: &BTreeMap<String, Tensor>| -> Vec<u32> {
            let values: Vec<f32> = tensors["weight a"].flatten_all().unwrap().to_vec1().unwrap();
            values.iter().map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits(&read_tensors), bits(&tensors));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("is damaged"));
    }
}
