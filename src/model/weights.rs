//! Hands tensors to a model while it is built: reads what its plan names, checks that it is finite, and averages several
//! members on the way ([`merge`]). A [`TensorStore`] keeps one copy of what is equal, by content digest, however many
//! members and variants hold it.

use std::any::Any;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::Digest;
use crate::checkpoint::ahead;
use crate::checkpoint::ahead::MemberTensors;
use crate::checkpoint::ahead::ReadAhead;
use crate::merge;
use crate::model::ModelError;
use crate::model::plan::LinearPlan;
use crate::model::plan::ModelPlan;
use crate::model::plan::RowsPlan;
use crate::model::plan::TablePlan;
use crate::model::shelf::Shelf;
use crate::ops::Ops;
use crate::ops::Precision;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::ops::source::Source;
use crate::values::Format;
use crate::values::Values;

/// What makes weights equal: the same tensors with the same coefficients, kept the same way for the same use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StoreKey {
    /// For each tensor its members' digests and coefficients.
    sources: Vec<Vec<(Digest, u64)>>,
    /// What they are used as, and what else determines the values.
    usage: String,
    form: String,
    format: Format,
}

/// Weights in memory, one copy of each content, for whatever form of the operations.
#[derive(Default)]
pub struct TensorStore {
    held: HashMap<StoreKey, Arc<dyn Any + Send + Sync>>,
}

impl TensorStore {
    /// Lets go of what no model has.
    pub fn drop_unused(&mut self) {
        self.held.retain(|_, held| Arc::strong_count(held) > 1);
    }
}

/// Weights that were packed before, for a form that lays them out so.
pub struct OnShelf<'a> {
    /// Where they are.
    pub shelf: &'a mut Shelf,
    /// As [`Ops::layout`] names it.
    pub layout: &'a str,
}

impl OnShelf<'_> {
    fn key(&self, key: &StoreKey) -> Digest {
        *blake3::hash(format!("{}\n{key:?}", self.layout).as_bytes()).as_bytes()
    }
}

/// Gives a model its tensors while it is built.
pub struct Weights<'a, O> {
    members: &'a [(&'a Checkpoint, f64)],
    ops: Arc<O>,
    /// `None`: nothing is read, and the form makes do with names.
    store: Option<&'a mut TensorStore>,
    /// Else tensors are read when they are asked for.
    ahead: Option<ReadAhead<'a>>,
    /// What is packed already need not be read.
    shelf: Option<OnShelf<'a>>,
    progress: &'a mut dyn FnMut(u64),
    /// What stands before the names that are asked for.
    prefix: String,
    /// How many layers of the plan are still to ask for each tensor.
    uses_left: HashMap<String, usize>,
    /// What those of whom others take other rows were averaged to.
    kept: HashMap<(String, Format), Values>,
    /// Of the part that is being loaded.
    identity: blake3::Hasher,
}

/// A part of a model, and what tells it from the same part of another.
#[derive(Debug)]
pub struct Identified<T> {
    /// Parts with equal identities compute the same: a digest of their plan, their tensors and how these are kept.
    /// Only parts at the same place are compared.
    pub identity: Digest,
    /// The part itself.
    pub part: T,
}

impl<'a, O: Ops> Weights<'a, O> {
    /// Weights of one checkpoint, or the average of several that share names and shapes, in proportion to their
    /// coefficients, for a model of that plan. Without a store nothing is read: for forms that keep names only.
    /// `progress` is told of bytes as they are read.
    pub fn new(
        plan: &ModelPlan,
        members: &'a [(&'a Checkpoint, f64)],
        ops: &Arc<O>,
        store: Option<&'a mut TensorStore>,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            members,
            ops: ops.clone(),
            store,
            ahead: None,
            shelf: None,
            progress,
            prefix: String::new(),
            uses_left: plan.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.uses)).collect(),
            kept: HashMap::new(),
            identity: blake3::Hasher::new(),
        }
    }

    /// Takes from `ahead` what it has read of the same members.
    pub fn reading_ahead(mut self, ahead: Option<ReadAhead<'a>>) -> Self {
        self.ahead = ahead;
        self
    }

    /// Takes what was packed from there, and puts there what is packed.
    pub fn from_shelf(mut self, shelf: Option<OnShelf<'a>>) -> Self {
        self.shelf = shelf;
        self
    }

    /// From now on this stands before the names that are asked for.
    pub fn below(&mut self, prefix: &str) -> &mut Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Loads a part of a model, and notes what it is made of.
    pub fn part<T>(
        &mut self,
        plan: &impl Debug,
        load: impl FnOnce(&mut Self) -> Result<T, ModelError>,
    ) -> Result<Identified<T>, ModelError> {
        self.identity.reset().update(format!("{plan:?}").as_bytes());
        let part = load(self)?;
        Ok(Identified { identity: *self.identity.finalize().as_bytes(), part })
    }

    /// The form of the operations that the tensors are for.
    pub fn ops(&self) -> &Arc<O> {
        &self.ops
    }

    /// A linear layer.
    pub fn linear(&mut self, plan: &LinearPlan, precision: Precision) -> Result<Arc<O::Linear>, ModelError> {
        let format = self.ops.format(precision);
        let usage = format!("linear {}", rows_of(&[plan]));
        let names = self.names_of(&[plan]);
        self.load(&usage, format, &names, |ops, tensors| ops.load_linear(tensors.linear(plan), precision))
    }

    /// A linear layer of one row, the sum of a layer's rows with these weights: in `f64`, rounded once.
    pub fn sum_of_rows(
        &mut self,
        plan: &LinearPlan,
        weights: &[f64],
        precision: Precision,
    ) -> Result<Arc<O::Linear>, ModelError> {
        let format = self.ops.format(precision);
        let names = self.names_of(&[plan]);
        let one = LinearPlan {
            output: 1,
            weight: RowsPlan { rows: RowMap::all(1), ..plan.weight.clone() },
            bias: plan.bias.as_ref().map(|bias| RowsPlan { rows: RowMap::all(1), ..bias.clone() }),
            ..plan.clone()
        };
        self.load(&format!("sum of rows {weights:?}"), format, &names, |ops, tensors| {
            let sums = tensors.values.iter().map(|values| sum_of_rows(values, weights)).collect();
            ops.load_linear(Tensors { values: sums, ..*tensors }.linear(&one), precision)
        })
    }

    /// Two linear layers, gate and up, that are used together.
    pub fn gated(&mut self, gate: &LinearPlan, up: &LinearPlan) -> Result<Arc<O::Gated>, ModelError> {
        let format = self.ops.format(Precision::Working);
        let usage = format!("gated {}", rows_of(&[gate, up]));
        let names = self.names_of(&[gate, up]);
        self.load(&usage, format, &names, |ops, tensors| {
            ops.load_gated(tensors.linear(gate), tensors.linear(up))
        })
    }

    /// Linear layers that read the same.
    pub fn joined(&mut self, plans: &[&LinearPlan]) -> Result<Arc<O::Joined>, ModelError> {
        let format = self.ops.format(Precision::Working);
        let usage = format!("joined {}", rows_of(plans));
        let names = self.names_of(plans);
        self.load(&usage, format, &names, |ops, tensors| {
            ops.load_joined(&plans.iter().map(|plan| tensors.linear(plan)).collect::<Vec<_>>())
        })
    }

    /// An embedding.
    pub fn table(&mut self, plan: &TablePlan) -> Result<Arc<O::Table>, ModelError> {
        let TablePlan { name, rows, width } = plan;
        let (format, name) = (self.ops.format(Precision::Working), self.full(name));
        let names = [name.clone()];
        self.load("table", format, &names, |ops, tensors| {
            ops.load_table(&name, tensors.values.remove(0), *rows, *width)
        })
    }

    /// A norm's vector, in `f32`: these tensors, one after the other, with `offset` added to each value; or, without a
    /// name, `width` times this `constant`.
    pub fn vector<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n String>,
        width: usize,
        offset: f32,
        constant: f32,
    ) -> Result<Arc<O::Vector>, ModelError> {
        let names: Vec<String> = names.into_iter().map(|name| self.full(name)).collect();
        if names.is_empty() {
            return Ok(Arc::new(self.ops.constant(vec![constant; width])?));
        }
        self.load(&format!("vector + {offset}"), Format::F32, &names, |ops, tensors| {
            let mut values = Vec::with_capacity(tensors.values.len() * width);
            for tensor in tensors.values.drain(..) {
                let Values::F32(tensor) = tensor else { unreachable!("averaged in f32") };
                values.extend(tensor);
            }
            ops.load_vector(&names, values, offset)
        })
    }

    /// A vector that no operation reads, in `f32`.
    pub fn numbers(&mut self, name: &str) -> Result<Arc<Vec<f32>>, ModelError> {
        let names = [self.full(name)];
        self.load("numbers", Format::F32, &names, |_, tensors| match tensors.values.remove(0) {
            Values::F32(values) => Ok(values),
            _ => unreachable!("averaged in f32"),
        })
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Of the tensors of some layers, each weight before its bias.
    fn names_of(&self, plans: &[&LinearPlan]) -> Vec<String> {
        let tensors = plans.iter().flat_map(|plan| std::iter::once(&plan.weight).chain(&plan.bias));
        tensors.map(|tensor| self.full(&tensor.name)).collect()
    }

    /// Makes of some tensors what the form keeps; or finds that the store has it. A tensor that is named several times is there
    /// once.
    fn load<T: Send + Sync + 'static>(
        &mut self,
        usage: &str,
        format: Format,
        names: &[String],
        make: impl FnOnce(&O, &mut Tensors<'_>) -> crate::ops::error::Result<T>,
    ) -> Result<Arc<T>, ModelError> {
        let mut distinct: Vec<&String> = Vec::with_capacity(names.len());
        for name in names {
            if !distinct.contains(&name) {
                distinct.push(name);
            }
        }
        let Some(store) = self.store.as_deref_mut() else {
            let values = distinct.iter().map(|_| Values::F32(Vec::new())).collect();
            let mut unread = Tensors { prefix: &self.prefix, names: &distinct, values };
            return Ok(Arc::new(make(&self.ops, &mut unread)?));
        };
        let mut sources = distinct
            .iter()
            .map(|name| Sources::find(name, self.members, self.ahead.as_mut()))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let keys = sources.iter().map(|sources| sources.key.clone()).collect();
        let key = StoreKey { sources: keys, usage: usage.to_owned(), form: self.ops.name(), format };
        self.identity.update(format!("{key:?}").as_bytes());
        let held = store.held.get(&key).cloned().and_then(|held| held.downcast::<T>().ok());
        let packed_before = match (&held, &mut self.shelf) {
            (None, Some(on)) => {
                let key = on.key(&key);
                let found = on.shelf.find(&*self.ops, &key);
                found.and_then(|found| found.downcast::<T>().ok())
            }
            _ => None,
        };
        for name in names {
            *self.uses_left.get_mut(name).expect("the plan names what its model loads") -= 1;
        }
        let made = match held.or(packed_before) {
            Some(held) => {
                store.held.insert(key, held.clone());
                held
            }
            None => {
                let mut values = Vec::with_capacity(distinct.len());
                for (name, sources) in distinct.iter().zip(&mut sources) {
                    values.push(match self.kept.remove(&((*name).clone(), format)) {
                        Some(kept) => kept,
                        None => sources.values(&*self.ops, format)?,
                    });
                }
                let mut tensors = Tensors { prefix: &self.prefix, names: &distinct, values };
                let made = Arc::new(make(&self.ops, &mut tensors)?);
                // the form has kept those that are missing
                for (name, values) in distinct.iter().zip(tensors.values) {
                    if self.uses_left[*name] > 0 {
                        self.kept.insert(((*name).clone(), format), values);
                    } else {
                        self.members[0].0.give_back(values);
                    }
                }
                if let Some(on) = &mut self.shelf {
                    let key = on.key(&key);
                    on.shelf.put(&*self.ops, &key, &*made);
                }
                store.held.insert(key, made.clone());
                made
            }
        };
        sources.into_iter().for_each(Sources::give_back);
        for name in distinct.into_iter().filter(|name| self.uses_left[*name] == 0) {
            self.kept.remove(&(name.clone(), format));
            let infos = self.members.iter().filter_map(|(checkpoint, _)| checkpoint.info(name));
            let read: usize = infos.map(|info| info.data_offsets.1 - info.data_offsets.0).sum();
            (self.progress)(read as u64);
        }
        Ok(made)
    }

    /// Each member's digest of the tensors that were used; with a store, after all were asked for.
    pub fn finish(self) -> Result<Vec<Digest>, ModelError> {
        debug_assert!(
            self.uses_left.values().all(|left| *left == 0),
            "a model loads all that its plan names"
        );
        let used: BTreeSet<String> = self.uses_left.into_keys().collect();
        let digests = self.members.iter().map(|(checkpoint, _)| checkpoint.digest_of(&used));
        Ok(digests.collect::<Result<_, CheckpointError>>()?)
    }
}

/// Tells the rows that some layers take of their tensors from others; empty where they take all.
fn rows_of(plans: &[&LinearPlan]) -> String {
    let is_whole = |plan: &LinearPlan| plan.weight.rows == RowMap::all(plan.output);
    if plans.iter().all(|plan| is_whole(plan)) {
        return String::new();
    }
    format!("{:?}", plans.iter().map(|plan| plan.weight.rows).collect::<Vec<_>>())
}

/// Of rows as long as each other; of nothing, nothing.
fn sum_of_rows(values: &Values, weights: &[f64]) -> Values {
    let Values::F32(values) = values else { unreachable!("heads are averaged in f32") };
    let width = values.len() / weights.len();
    let sum = |column: usize| -> f64 {
        weights.iter().enumerate().map(|(row, weight)| weight * f64::from(values[row * width + column])).sum()
    };
    Values::F32((0..width).map(|column| sum(column) as f32).collect())
}

/// Tensors that were read for some layers.
struct Tensors<'n> {
    /// What stands before the names in plans.
    prefix: &'n str,
    /// Each once.
    names: &'n [&'n String],
    /// Of each.
    values: Vec<Values>,
}

impl Tensors<'_> {
    fn source(&self, plan: &RowsPlan) -> Source<'_> {
        let is_named = |name: &&String| name.strip_prefix(self.prefix) == Some(plan.name.as_str());
        let place = self.names.iter().position(is_named).expect("what a layer names was read");
        Source { name: self.names[place], values: &self.values[place], rows: plan.rows }
    }

    fn linear(&self, plan: &LinearPlan) -> LinearSource<'_> {
        LinearSource {
            weight: self.source(&plan.weight),
            bias: plan.bias.as_ref().map(|bias| self.source(bias)),
            output: plan.output,
            input: plan.input,
        }
    }
}

/// Whether a form takes what is stored so, and rounds it to another format itself.
fn is_taken<O: Ops>(ops: &O, stored: Option<Format>, format: Format) -> bool {
    stored.is_some_and(|stored| stored != format && ops.takes(stored, format) == stored)
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
            None => Some(ahead::read(name, members, None)?),
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

    /// The average of the tensors that the key tells of, in a format; or, of one that the form rounds itself, its values as
    /// they are stored.
    fn values<O: Ops>(&mut self, ops: &O, format: Format) -> Result<Values, ModelError> {
        // what is wanted wider than most is (a head) was rounded too early
        let stored = self.members[0].0.info(self.name).and_then(|info| Format::of(info.dtype));
        let is_usable = |read: &MemberTensors<'_>| {
            let of_values = read[0].0.values.format();
            let was_rounded = of_values.zip(stored).is_some_and(|(now, stored)| now.bytes() < stored.bytes());
            !was_rounded || of_values == Some(format)
        };
        let read = self.read.take().filter(is_usable);
        let read = read.map_or_else(|| ahead::read(self.name, self.members, None), Ok)?;
        let read = self.read.insert(read);
        let sources = &mut read[..self.key.len()];
        for ((_, coefficient), (_, bits)) in sources.iter_mut().zip(&self.key) {
            *coefficient = f64::from_bits(*bits);
        }
        let first = self.members[0].0;
        let values = match sources {
            [(tensor, 1.0)] if is_taken(ops, tensor.values.format(), format) => {
                merge::unrounded(self.name, tensor, format)
            }
            _ => merge::average(self.name, sources, format, |dtype, bytes| first.room(dtype, bytes)),
        };
        values.map_err(|error| match merge::source_at_fault(sources) {
            None => error.into(),
            Some(member) => ModelError::Member {
                path: self.members[member].0.dir().to_owned(),
                source: Box::new(error.into()),
            },
        })
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
        let ops = Arc::new(Composed { device: Device::Cpu, format: Format::F32 });
        RewardModel::of_checkpoint(&checkpoint, &config, &ops, store).unwrap();
        store.held.len()
    }

    #[test]
    fn identical_tensors_of_members_are_held_once() {
        let mut store = TensorStore::default();
        let of_one = load("llama-f32/member-0", &mut store);
        assert!(of_one > 8, "{of_one}");
        assert_eq!(load("llama-f32/member-0", &mut store), of_one, "the same member again");
        // differs in all but the head
        assert_eq!(load("llama-f32/member-1", &mut store), 2 * of_one - 1);
    }
}
