//! Hands tensors to a model while it is built: checks names, shapes and finiteness before use, averages several members
//! on the way ([`merge`]), and notices at the end which tensors nobody asked for. A [`TensorStore`] keeps
//! one copy of what is equal, by content digest, however many members and variants hold it.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::DType;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::Digest;
use crate::checkpoint::IGNORED_PREFIXES;
use crate::checkpoint::IGNORED_SUFFIXES;
use crate::checkpoint::ahead;
use crate::checkpoint::ahead::MemberTensors;
use crate::checkpoint::ahead::ReadAhead;
use crate::merge;
use crate::model::ModelError;
use crate::ops::LinearSource;
use crate::ops::Ops;
use crate::ops::Precision;
use crate::values::Averaged;

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
    /// coefficients. `prefix` stands before the backbone's names; `config` tells its parts from another's. Without a
    /// store nothing is read, and the form is the composed one. `progress` is told of bytes as they are read.
    pub fn new(
        members: &'a [(&'a Checkpoint, f64)],
        prefix: &str,
        config: &impl Debug,
        ops: &Arc<O>,
        store: Option<&'a mut TensorStore>,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            members,
            prefix: prefix.to_owned(),
            ops: ops.clone(),
            store,
            ahead: None,
            lacking: BTreeMap::new(),
            used: BTreeSet::new(),
            ignored: BTreeSet::new(),
            order: Vec::new(),
            progress,
            identity: blake3::Hasher::new(),
            config: format!("{config:?}"),
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
        self.lacking.contains_key(name) || self.members[0].0.contains(name)
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
        let missing = || CheckpointError::MissingTensor { name: name.to_owned() };
        Ok(shape.map(Vec::as_slice).ok_or_else(missing)?)
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
                    path: checkpoint.dir().to_owned(),
                    count: unused.len(),
                    first: unused[0].to_owned(),
                });
            }
        }
        if self.store.is_none() {
            return Ok(vec![Digest::default(); self.members.len()]);
        }
        let digests = self.members.iter().map(|(checkpoint, _)| checkpoint.digest_of(&self.used));
        Ok(digests.collect::<Result<_, CheckpointError>>()?)
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
        Ok(merge::average(self.name, sources, dtype, |dtype, bytes| first.room(dtype, bytes))?)
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
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::model::RewardModel;
    use crate::model::config::CheckpointConfig;
    use crate::model::manifest::Manifest;
    use crate::ops::composed::Composed;

    /// How much the store holds after the load.
    fn load(path: &str, store: &mut TensorStore) -> usize {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge").join(path);
        let config = CheckpointConfig::load(&dir.join("config.json"), &Manifest::default()).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let (members, mut progress) = ([(&checkpoint, 1.0)], |_| ());
        let ops = Arc::new(Composed { device: Device::Cpu, dtype: DType::F32 });
        let mut weights = Weights::new(
            &members,
            config.backbone.prefix_in(&checkpoint),
            &config.backbone,
            &ops,
            Some(store),
            &mut progress,
        );
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
}
