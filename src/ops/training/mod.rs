//! The form that gradients come from: the composed one, with two things more.
//!
//! **Parameters have names.** A model that is loaded for training keeps no values, only the names of its tensors in
//! the checkpoint; each forward brings the [`Parameters`] it is to use. So two norms that are equal at the start stay two
//! parameters, a forward without gradients takes the same model with other tensors, and the model descriptions know
//! nothing of training.
//!
//! **[Dropout](Ops::dropout)** where transformers has `hidden_dropout_prob`, in every family: after the embedding, on what
//! attention and MLP add to the residual stream, and in the head. Attention weights are not dropped.
//!
//! Where that is faster, an operation and its gradient are one piece (`fused`).
//!
//! # Embeddings
//!
//! candle's gradient of a lookup is as large as the table, for every forward. So what a forward looked up is a leaf of
//! its own; [`Training::take_embedded`] tells which rows of which tables it was made of, and whoever sums gradients
//! adds its rows to theirs.

mod fused;

use std::borrow::Cow;
use std::collections::HashMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use candle_core::Device;
use candle_core::Tensor;
use candle_core::Var;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::Activation;
use super::AttentionSpec;
use super::Convolution;
use super::Ops;
use super::Precision;
use super::Term;
use super::composed;
use super::composed::Batch;
use super::composed::ByDistance;
use super::composed::Composed;
use super::composed::Remembered;
use crate::ops::error::OpsError;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::ops::source::Source;
use crate::values::Format;
use crate::values::Values;

/// The tensors of a model by their names in the checkpoint, all `f32`: variables where a gradient is wanted.
pub type Parameters = HashMap<String, Tensor>;

/// The composed form for one forward, and its gradients.
#[derive(Debug)]
pub struct Training {
    parameters: Arc<Parameters>,
    composed: Composed,
    dropout: Option<Dropout>,
    embedded: Mutex<Vec<Embedded>>,
}

/// A linear layer: what it takes of which tensors.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Named,
    bias: Option<Named>,
    output: usize,
}

/// A tensor, and the rows that a layer takes of it.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    rows: RowMap,
}

impl From<Source<'_>> for Named {
    fn from(source: Source<'_>) -> Self {
        Self { name: source.name.to_owned(), rows: source.rows }
    }
}

/// Two linear layers on the same input.
#[derive(Clone, Debug)]
pub struct Gated {
    gate: Linear,
    up: Linear,
}

/// A norm's vector.
#[derive(Clone, Debug)]
pub enum Vector {
    /// The tensors of these names, one after the other.
    Parameters {
        /// In the checkpoint.
        names: Vec<String>,
        /// What is added to them.
        offset: f64,
    },
    /// What no checkpoint has, and no gradient changes.
    Constant(Tensor),
}

/// What a forward looked up in tables: the sum of one row of each, times `scale`.
#[derive(Debug)]
pub struct Embedded {
    /// `[rows, width]`
    pub rows: Var,
    /// Names of the tables whose gradient is wanted, and the row of each that each row took.
    pub tables: Vec<(String, Vec<u32>)>,
    /// Factor on the sum.
    pub scale: f64,
}

/// Drops values of activations, and scales the others up so that the mean stays.
#[derive(Debug)]
pub struct Dropout {
    /// Of 65,536 values so many are dropped.
    threshold: u16,
    /// In the order of the operations, which one forward does one after the other.
    random: Mutex<ChaCha8Rng>,
}

impl Dropout {
    /// Drops this share of values, in steps of 1/65,536; `None` if that is none. It must be in 0..1.
    pub fn new(share: f64, random: ChaCha8Rng) -> Option<Self> {
        debug_assert!((0.0..1.0).contains(&share), "dropout of {share}");
        let threshold = (share * 65_536.0).round().min(65_535.0) as u16;
        (threshold > 0).then(|| Self { threshold, random: Mutex::new(random) })
    }

    /// What to multiply `count` values with: zero, or one over the share that is kept.
    fn factors(&self, count: usize) -> Vec<f32> {
        let kept = (65_536.0 / (65_536.0 - f64::from(self.threshold))) as f32;
        let mut draws = vec![0_u16; count];
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        random.fill_bytes(bytemuck::cast_slice_mut(&mut draws));
        draws.into_iter().map(|draw| if draw < self.threshold { 0.0 } else { kept }).collect()
    }
}

impl Training {
    /// For a forward with these parameters.
    pub fn new(parameters: Arc<Parameters>, dropout: Option<Dropout>) -> Self {
        let composed = Composed { device: Device::Cpu, format: Format::F32 };
        Self { parameters, composed, dropout, embedded: Mutex::default() }
    }

    /// What was looked up since this was asked last, of tables that want a gradient.
    pub fn take_embedded(&self) -> Vec<Embedded> {
        mem::take(&mut *self.embedded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn parameter(&self, name: &str) -> Result<&Tensor> {
        self.parameters.get(name).ok_or_else(|| OpsError::NoParameter(name.to_owned()))
    }

    /// What was looked up in some tables, as a leaf of its own if any of them wants a gradient.
    fn leaf<'t>(
        &self,
        rows: Tensor,
        tables: impl IntoIterator<Item = (&'t String, Vec<u32>)>,
        scale: Option<f64>,
    ) -> Result<Tensor> {
        let mut wanting = Vec::new();
        for (name, ids) in tables {
            if self.parameter(name)?.is_variable() {
                wanting.push((name.clone(), ids));
            }
        }
        if wanting.is_empty() {
            return Ok(rows);
        }
        let rows = Var::from_tensor(&rows)?;
        let leaf = rows.as_tensor().clone();
        let embedded = Embedded { rows, tables: wanting, scale: scale.unwrap_or(1.0) };
        self.embedded.lock().unwrap_or_else(PoisonError::into_inner).push(embedded);
        Ok(leaf)
    }

    fn vector(&self, vector: &Vector) -> Result<Tensor> {
        match vector {
            Vector::Constant(values) => Ok(values.clone()),
            Vector::Parameters { names, offset } => {
                let tensors = names.iter().map(|name| self.parameter(name)).collect::<Result<Vec<_>>>()?;
                let joined = match tensors[..] {
                    [alone] => alone.clone(),
                    _ => Tensor::cat(&tensors, 0)?,
                };
                Ok(if *offset == 0.0 { joined } else { (joined + *offset)? })
            }
        }
    }
}

impl Ops for Training {
    type Rows = Tensor;
    type Linear = Linear;
    type Gated = Gated;
    type Joined = Vec<Linear>;
    type Vector = Vector;
    type Table = String;
    type Batch<'a> = Batch<'a>;
    type Remembered<'a> = Remembered<'a>;
    type ByDistance = ByDistance;
    type Moment = Instant;

    fn name(&self) -> String {
        "training".to_owned()
    }

    fn format(&self, _: Precision) -> Format {
        Format::F32
    }

    fn load_linear(&self, source: LinearSource<'_>, _: Precision) -> Result<Linear> {
        let LinearSource { weight, bias, output, .. } = source;
        Ok(Linear { weight: weight.into(), bias: bias.map(Named::from), output })
    }

    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Gated> {
        let load = |source| self.load_linear(source, Precision::Working);
        Ok(Gated { gate: load(gate)?, up: load(up)? })
    }

    fn load_joined(&self, sources: &[LinearSource<'_>]) -> Result<Vec<Linear>> {
        sources.iter().map(|source| self.load_linear(*source, Precision::Working)).collect()
    }

    fn load_vector(&self, names: &[String], _: Vec<f32>, offset: f32) -> Result<Vector> {
        Ok(Vector::Parameters { names: names.to_vec(), offset: f64::from(offset) })
    }

    fn constant(&self, values: Vec<f32>) -> Result<Vector> {
        Ok(Vector::Constant(self.composed.constant(values)?))
    }

    fn load_table(&self, name: &str, _: Values, _: usize, _: usize) -> Result<String> {
        Ok(name.to_owned())
    }

    fn batch<'a>(&self, inputs: &'a Inputs<'a>) -> Result<Batch<'a>> {
        self.composed.batch(inputs)
    }

    fn moment(&self) -> Result<Instant> {
        self.composed.moment()
    }

    fn between(&self, from: &Instant, to: &Instant) -> Result<Duration> {
        self.composed.between(from, to)
    }

    fn blocks(&self, rows: usize) -> Vec<Range<usize>> {
        self.composed.blocks(rows)
    }

    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>> {
        self.composed.each(blocks, f)
    }

    fn embed(
        &self,
        tables: &[(&String, usize)],
        scale: Option<f64>,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Tensor> {
        let values = tables.iter().map(|(name, _)| Ok(self.parameter(name)?.detach()));
        let values = values.collect::<Result<Vec<_>>>()?;
        let looked_up: Vec<_> = values.iter().zip(tables).map(|(table, (_, ids))| (table, *ids)).collect();
        let rows = self.composed.embed(&looked_up, scale, batch, which)?;
        let inputs = batch.inputs();
        let ids = |ids: usize| inputs.rows(which).map(|row| inputs.ids[ids][row]).collect();
        self.leaf(rows, tables.iter().map(|&(name, table)| (name, ids(table))), scale)
    }

    fn rows_of(&self, table: &String, rows: Range<usize>) -> Result<Tensor> {
        let values = self.composed.rows_of(&self.parameter(table)?.detach(), rows.clone())?;
        self.leaf(values, [(table, rows.map(|row| row as u32).collect())], None)
    }

    fn operand<'a>(&self, x: Cow<'a, Tensor>) -> Result<Cow<'a, Tensor>> {
        Ok(x)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        let of = |named: &Named| -> Result<Tensor> {
            Ok(composed::outputs_of(self.parameter(&named.name)?, &named.rows, layer.output)?)
        };
        let bias = layer.bias.as_ref().map(of).transpose()?;
        // a convolution's has an axis of positions, which follow each other
        Ok(fused::linear(x, &of(&layer.weight)?.flatten_from(1)?, bias.as_ref())?)
    }

    fn joined(&self, x: &Tensor, layers: &Vec<Linear>, which: Range<usize>) -> Result<Vec<Tensor>> {
        layers[which].iter().map(|layer| self.linear(x, layer)).collect()
    }

    fn linear_add(&self, x: &Tensor, layer: &Linear, residual: Tensor) -> Result<Tensor> {
        let added = self.linear(x, layer)?;
        Ok(match &self.dropout {
            None => (residual + added)?,
            Some(dropout) => fused::add_dropped(&residual, &added, dropout.factors(added.elem_count()))?,
        })
    }

    fn linear_act(&self, x: &Tensor, layer: &Linear, activation: Activation) -> Result<Tensor> {
        Ok(fused::activate(&self.linear(x, layer)?, activation)?)
    }

    fn gated(&self, x: &Tensor, layer: &Gated, activation: Activation) -> Result<Tensor> {
        Ok(fused::gate(&self.linear(x, &layer.gate)?, &self.linear(x, &layer.up)?, activation)?)
    }

    fn dropout(&self, x: Tensor) -> Result<Tensor> {
        match &self.dropout {
            None => Ok(x),
            Some(dropout) => {
                let factors = dropout.factors(x.elem_count());
                let factors = Tensor::from_vec(factors, x.shape(), x.device())?;
                Ok((x * factors)?)
            }
        }
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f64) -> Result<Tensor> {
        Ok(fused::rms_norm(x, &self.vector(weight)?, eps)?)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f64) -> Result<Tensor> {
        Ok(fused::layer_norm(x, &self.vector(weight)?, &self.vector(bias)?, eps)?)
    }

    fn scale(&self, x: Tensor, factors: &Vector) -> Result<Tensor> {
        self.composed.scale(x, &self.vector(factors)?)
    }

    fn rotary(
        &self,
        x: Tensor,
        head_dim: usize,
        rope: usize,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Tensor> {
        let (cos, sin) = batch.angles(rope, which)?;
        Ok(fused::rotary(&x, head_dim, &cos, &sin)?)
    }

    /// Each forward makes it anew, of its own parameters.
    fn weights_stay(&self) -> bool {
        false
    }

    fn products_by_distance(
        &self,
        keys: Option<Tensor>,
        queries: Option<Tensor>,
        spec: &AttentionSpec,
    ) -> Result<ByDistance> {
        self.composed.products_by_distance(keys, queries, spec)
    }

    fn biases_by_distance(&self, table: Tensor) -> Result<ByDistance> {
        self.composed.biases_by_distance(table)
    }

    fn remember<'a>(
        &self,
        keys: Vec<Tensor>,
        values: Vec<Tensor>,
        by_distance: Option<&'a ByDistance>,
        batch: &'a Batch<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Remembered<'a>> {
        self.composed.remember(keys, values, by_distance, batch, spec)
    }

    fn attend(&self, queries: &Tensor, which: &Which, to: &Remembered<'_>) -> Result<Tensor> {
        if to.by_distance.is_some() {
            return self.composed.attend(queries, which, to);
        }
        let (key, value) = (to.key.flatten_from(1)?, to.value.flatten_from(1)?);
        Ok(fused::attention([queries, &key, &value], which, to.batch.inputs(), to.spec)?)
    }

    fn convolve(
        &self,
        blocks: &[Tensor],
        which: &Which,
        layer: &Convolution<Self>,
        batch: &Batch<'_>,
    ) -> Result<Tensor> {
        composed::convolve(self, blocks, which, layer, batch.inputs())
    }

    fn gather(&self, blocks: &[Tensor], list: usize, batch: &Batch<'_>) -> Result<Vec<Tensor>> {
        self.composed.gather(blocks, list, batch)
    }

    fn pick(&self, _: &[Tensor], _: &[usize]) -> Result<Tensor> {
        Err(OpsError::Unsupported("gradients of experts"))
    }

    fn combine(&self, _: &[Tensor], _: &[Term], _: usize) -> Result<Tensor> {
        Err(OpsError::Unsupported("gradients of experts"))
    }

    fn mean(&self, blocks: &[Tensor], batch: &Batch<'_>) -> Result<Vec<Tensor>> {
        self.composed.mean(blocks, batch)
    }

    fn read(&self, results: &[Vec<Tensor>]) -> Result<Vec<Vec<f32>>> {
        self.composed.read(results)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_norm_without_parameters_is_one_of_ones_and_zeros() {
        let values: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Var::from_vec(values, (2, 6), &Device::Cpu).unwrap();
        let run = |training: &Training, weight: &Vector, bias: &Vector| {
            let normed = training.layer_norm(&x, weight, bias, 1e-5).unwrap();
            let gradients = normed.sqr().unwrap().tanh().unwrap().sum_all().unwrap().backward().unwrap();
            [&normed, gradients.get(&x).unwrap()].map(|x| x.to_vec2::<f32>().unwrap())
        };
        let none = Training::new(Arc::default(), None);
        let [weight, bias] = [1.0, 0.0].map(|value| none.constant(vec![value; 3]).unwrap());
        let constants = run(&none, &weight, &bias);
        let of = |value: f32| Var::new(vec![value; 3], &Device::Cpu).unwrap().into_inner();
        let parameters = HashMap::from([("a".to_owned(), of(1.0)), ("b".to_owned(), of(0.0))]);
        let some = Training::new(Arc::new(parameters), None);
        let [weight, bias] =
            ["a", "b"].map(|name| some.load_vector(&[name.to_owned()], Vec::new(), 0.0).unwrap());
        assert_eq!(constants, run(&some, &weight, &bias));
    }

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        const COUNT: usize = 1 << 18;
        for share in [0.05, 0.1, 0.5] {
            let random = ChaCha8Rng::seed_from_u64(5);
            let factors = Dropout::new(share, random).unwrap().factors(COUNT);
            let dropped = factors.iter().filter(|&&factor| factor == 0.0).count() as f64 / COUNT as f64;
            let mean = factors.iter().map(|&factor| f64::from(factor)).sum::<f64>() / COUNT as f64;
            // six standard deviations of a share of so many
            let room = 6.0 * (share * (1.0 - share) / COUNT as f64).sqrt();
            assert!((dropped - share).abs() < room, "{dropped} of {share}");
            assert!((mean - 1.0).abs() < room / (1.0 - share), "{mean}");
            let kept = factors.iter().find(|&&factor| factor != 0.0).unwrap();
            assert!((f64::from(*kept) - 1.0 / (1.0 - share)).abs() < 1e-4);
        }
        assert!(Dropout::new(0.0, ChaCha8Rng::seed_from_u64(5)).is_none());
    }
}
