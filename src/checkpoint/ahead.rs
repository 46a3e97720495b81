//! Reads tensors ahead of their use: while one is averaged and packed, the next come from the disk.
//!
//! ```text
//! names, in the order of use → reader: read, digest → [one waits] → Weights: average, pack
//! ```
//!
//! So many tensors are in memory as they are stored: the one that is read, the one that waits, and those that one
//! layer is made of; never the whole model. A merge has each of its members' tensors there.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::sync_channel;
use std::thread::Scope;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::TensorBytes;
use crate::values::Format;

/// Members' tensors of one name, with their coefficients.
pub type MemberTensors<'a> = Vec<(TensorBytes<'a>, f64)>;

/// Tensors that are on their way.
#[derive(Debug)]
pub struct ReadAhead<'a> {
    /// Of those that were not taken yet.
    names: VecDeque<String>,
    tensors: Receiver<Result<MemberTensors<'a>, CheckpointError>>,
}

impl<'a> ReadAhead<'a> {
    /// Starts to read these tensors in this order, for who would round them to `wanted` (see [`read`]), on a thread that ends with the last, with the first that cannot be
    /// read, or when nobody waits for them any more.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        members: &'a [(&'a Checkpoint, f64)],
        names: Vec<String>,
        wanted: Option<Format>,
    ) -> Self
    where
        'a: 'scope,
    {
        let (sender, tensors) = sync_channel(1);
        let ahead = Self { names: names.iter().cloned().collect(), tensors };
        scope.spawn(move || {
            for name in names {
                let read = read(&name, members, wanted);
                let is_last = read.is_err();
                if sender.send(read).is_err() || is_last {
                    return;
                }
            }
        });
        ahead
    }

    /// Waits for a tensor; `None` if it is not the next in order.
    pub fn take(&mut self, name: &str) -> Option<Result<MemberTensors<'a>, CheckpointError>> {
        self.names.pop_front_if(|next| next == name)?;
        self.tensors.recv().ok()
    }
}

/// Reads a tensor of all members; that of one member alone [for](Checkpoint::read_for) who would round it to `wanted`: sums are made
/// of what is exact.
pub fn read<'a>(
    name: &str,
    members: &'a [(&'a Checkpoint, f64)],
    wanted: Option<Format>,
) -> Result<MemberTensors<'a>, CheckpointError> {
    let wanted = wanted.filter(|_| members.len() == 1);
    let read = |checkpoint: &'a Checkpoint| checkpoint.read_for(name, wanted);
    members.iter().map(|(checkpoint, coefficient)| Ok((read(checkpoint)?, *coefficient))).collect()
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    const NAMES: [&str; 5] = ["e", "a", "d", "b", "c"];

    fn with_checkpoint(test: impl FnOnce(&Checkpoint, &std::path::Path)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let values = bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0]);
        let view = TensorView::new(safetensors::Dtype::F32, vec![2], values).unwrap();
        safetensors::serialize_to_file(NAMES.map(|name| (name, view.clone())), None, &path).unwrap();
        test(&Checkpoint::open(dir.path()).unwrap(), &path);
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tensors_come_in_order_and_others_are_not_waited_for() {
        with_checkpoint(|checkpoint, _| {
            let members = [(checkpoint, 0.5), (checkpoint, 0.5)];
            std::thread::scope(|scope| {
                let mut ahead = ReadAhead::start(scope, &members, names(&NAMES), None);
                assert!(ahead.take("c").is_none(), "not its turn");
                for name in NAMES {
                    assert_eq!(ahead.take(name).unwrap().unwrap().len(), 2, "{name}");
                    assert!(ahead.take(name).is_none(), "{name} was taken");
                }
            });
        });
    }

    #[test]
    fn a_reader_that_nobody_waits_for_ends() {
        with_checkpoint(|checkpoint, _| {
            let members = [(checkpoint, 1.0)];
            std::thread::scope(|scope| {
                let mut ahead = ReadAhead::start(scope, &members, names(&NAMES), None);
                ahead.take("e").unwrap().unwrap();
            });
        });
    }

    #[test]
    fn what_cannot_be_read_is_told_in_its_turn() {
        with_checkpoint(|checkpoint, path| {
            let bytes = std::fs::metadata(path).unwrap().len();
            // sorted in the file: "e" is cut off
            std::fs::File::options().write(true).open(path).unwrap().set_len(bytes - 1).unwrap();
            let members = [(checkpoint, 1.0)];
            std::thread::scope(|scope| {
                let mut ahead = ReadAhead::start(scope, &members, names(&["a", "e", "b"]), None);
                ahead.take("a").unwrap().unwrap();
                let error = ahead.take("e").unwrap().unwrap_err().to_string();
                assert!(error.contains("model.safetensors"), "{error}");
                assert!(ahead.take("b").is_none(), "the reader has ended");
            });
        });
    }
}
