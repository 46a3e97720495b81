//! A layer of any family, as its plan says.
//!
//! ```text
//! one after the other   x = norm(x + norm(attention(norm(x))))     each of the norms where the family has it
//!                       x = norm(x + norm(mlp(norm(x))))
//! parallel              x = x + norm(attention(norm(x))) + norm(mlp(norm(x)))
//! and then, if it has one   x = norm(x + act(convolution of the layer's input))
//!
//! attention   q, k, v → norm, rope → attend → output         mlp   down(act(gate) · up), or down(act(up)); or experts
//! gated delta rule   q, k, v → convolution → memory → output; either's output may have a gate
//! latent attention   q of a narrower row; k, v of another, and the part of k that turns, for all heads
//! ```
//!
//! How a batch goes through the layers is in [`transformer`].

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

use crate::model::ModelError;
use crate::model::experts::Experts;
use crate::model::mlp::Mlp;
use crate::model::norm::Norm;
use crate::model::plan::AttentionPlan;
use crate::model::plan::ConvolutionPlan;
use crate::model::plan::DeltaPlan;
use crate::model::plan::FeedForwardPlan;
use crate::model::plan::LatentPlan;
use crate::model::plan::LayerPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::NormPlan;
use crate::model::plan::OutputGatePlan;
use crate::model::plan::RelativePlan;
use crate::model::transformer;
use crate::model::transformer::Finished;
use crate::model::transformer::KEYS;
use crate::model::transformer::QUERIES;
use crate::model::transformer::Routed;
use crate::model::transformer::VALUES;
use crate::model::weights::Weights;
use crate::ops::AttentionSpec;
use crate::ops::Convolution;
use crate::ops::Delta;
use crate::ops::DeltaSpec;
use crate::ops::Distance;
use crate::ops::Gate;
use crate::ops::Ops;
use crate::ops::Precision::Working;
use crate::ops::error::Result;
use crate::ops::inputs::Which;

/// What a [`LayerPlan`] describes.
#[derive(Debug)]
pub struct Layer<O: Ops> {
    norms: Norms<O>,
    attention: Attention<O>,
    feed_forward: FeedForward<O>,
    /// With the norm of what it and the layer make.
    convolution: Option<(Convolution<O>, Norm<O>)>,
    is_parallel: bool,
    /// Factors on what attention and MLP add.
    added_scale: Option<Arc<O::Vector>>,
    /// Multiplications for one row, but for those of attention and experts.
    products: usize,
}

/// See [`NormsPlan`](crate::model::plan::NormsPlan).
#[derive(Debug)]
struct Norms<O: Ops> {
    attention_input: Option<Norm<O>>,
    attention_output: Option<Norm<O>>,
    attention_sum: Option<Norm<O>>,
    mlp_input: Option<Norm<O>>,
    mlp_output: Option<Norm<O>>,
    mlp_sum: Option<Norm<O>>,
}

#[derive(Debug)]
struct Attention<O: Ops> {
    projections: Projections<O>,
    /// With what says how much is learned, and how much forgotten.
    delta: Option<(Delta<O>, Arc<O::Joined>)>,
    gate: Option<OutputGate<O>>,
    qk_norms: Option<[Norm<O>; 2]>,
    norms_turned: bool,
    ropes: Option<[usize; 2]>,
    growth: Option<usize>,
    relative: Option<Relative<O>>,
    sinks: Option<Arc<O::Vector>>,
    spec: AttentionSpec,
    output: Arc<O::Linear>,
}

/// What makes queries, keys and values.
#[derive(Debug)]
enum Projections<O: Ops> {
    /// Each a layer of the input.
    Direct(Arc<O::Joined>),
    Latent(Latent<O>),
}

/// See [`LatentPlan`].
#[derive(Debug)]
struct Latent<O: Ops> {
    /// What reads the layer's input: queries, or what they are made of; what keys and values are made of; the keys' shared part.
    inputs: Arc<O::Joined>,
    /// From what they are made of to queries, where that is not the input.
    query: Option<(Norm<O>, Arc<O::Linear>)>,
    norm: Norm<O>,
    /// Keys but for their shared part, and values.
    key_value: Arc<O::Joined>,
    /// Columns of a head: of that part, and the others.
    widths: [usize; 2],
}

/// See [`OutputGatePlan`].
#[derive(Debug)]
struct OutputGate<O: Ops> {
    norm: Option<Norm<O>>,
    linear: Arc<O::Linear>,
    function: Gate,
}

/// See [`RelativePlan`].
#[derive(Debug)]
struct Relative<O: Ops> {
    table: Arc<O::Table>,
    rows: usize,
    norm: Option<Norm<O>>,
    key: Option<Arc<O::Linear>>,
    query: Option<Arc<O::Linear>>,
    /// What is made of the above.
    made: OnceLock<Arc<O::ByDistance>>,
}

#[derive(Debug)]
enum FeedForward<O: Ops> {
    Mlp(Mlp<O>),
    Experts(Experts<O>),
}

impl<O: Ops> Layer<O> {
    /// Reads what the plan names.
    pub fn load(weights: &mut Weights<'_, O>, plan: &LayerPlan) -> std::result::Result<Self, ModelError> {
        let mut norm =
            |plan: &Option<NormPlan>| plan.as_ref().map(|plan| Norm::load(weights, plan)).transpose();
        let norms = Norms {
            attention_input: norm(&plan.norms.attention_input)?,
            attention_output: norm(&plan.norms.attention_output)?,
            attention_sum: norm(&plan.norms.attention_sum)?,
            mlp_input: norm(&plan.norms.mlp_input)?,
            mlp_output: norm(&plan.norms.mlp_output)?,
            mlp_sum: norm(&plan.norms.mlp_sum)?,
        };
        Ok(Self {
            norms,
            attention: Attention::load(weights, &plan.attention)?,
            feed_forward: match &plan.feed_forward {
                FeedForwardPlan::Mlp(plan) => FeedForward::Mlp(Mlp::load(weights, plan)?),
                FeedForwardPlan::Experts(plan) => FeedForward::Experts(Experts::load(weights, plan)?),
            },
            convolution: plan.convolution.as_ref().map(|plan| convolution(weights, plan)).transpose()?,
            is_parallel: plan.is_parallel,
            added_scale: match plan.added_scale {
                Some(scale) => Some(weights.vector([], plan.attention.output.output, 0.0, scale as f32)?),
                None => None,
            },
            products: products(plan),
        })
    }
}

fn convolution<O: Ops>(
    weights: &mut Weights<'_, O>,
    plan: &ConvolutionPlan,
) -> std::result::Result<(Convolution<O>, Norm<O>), ModelError> {
    let mut groups = Vec::with_capacity(plan.groups.len());
    for group in &plan.groups {
        groups.push(weights.linear(group, Working)?);
    }
    let layer = Convolution { groups, kernel: plan.kernel, activation: plan.activation };
    Ok((layer, Norm::load(weights, &plan.norm)?))
}

/// Of a layer, but for those of attention and experts.
fn products(LayerPlan { attention, feed_forward, convolution, .. }: &LayerPlan) -> usize {
    let AttentionPlan { query, key, value, latent, delta, gate, output, .. } = attention;
    let after = match feed_forward {
        FeedForwardPlan::Mlp(mlp) => mlp.products(),
        FeedForwardPlan::Experts(experts) => experts.router.products(),
    };
    let beside = convolution.iter().flat_map(|layer| &layer.groups).map(LinearPlan::products);
    let narrow = latent.iter().flat_map(|LatentPlan { query, key_value, shared_key }| {
        query.iter().chain([key_value]).map(|narrow| &narrow.linear).chain([shared_key])
    });
    let of_delta = delta.iter().flat_map(|delta| [&delta.learning, &delta.forgetting]);
    let others = of_delta.chain(gate.iter().map(|gate| &gate.linear));
    let attention = [query, key, value, output].into_iter().chain(narrow).chain(others);
    let attention = attention.map(LinearPlan::products);
    attention.chain(beside).sum::<usize>() + after
}

impl<O: Ops> Attention<O> {
    fn load(weights: &mut Weights<'_, O>, plan: &AttentionPlan) -> std::result::Result<Self, ModelError> {
        let heads = plan.spec.heads;
        Ok(Self {
            projections: match &plan.latent {
                None => Projections::Direct(weights.joined(&[&plan.query, &plan.key, &plan.value])?),
                Some(latent) => Projections::Latent(Latent::load(weights, plan, latent)?),
            },
            delta: plan.delta.as_ref().map(|delta| load_delta(weights, plan, delta)).transpose()?,
            gate: plan.gate.as_ref().map(|gate| OutputGate::load(weights, gate)).transpose()?,
            qk_norms: match &plan.qk_norms {
                Some([query, key]) => Some([Norm::load(weights, query)?, Norm::load(weights, key)?]),
                None => None,
            },
            norms_turned: plan.norms_turned,
            ropes: plan.ropes,
            growth: plan.growth,
            relative: plan.relative.as_ref().map(|plan| Relative::load(weights, plan)).transpose()?,
            sinks: plan.sinks.as_ref().map(|name| weights.vector([name], heads, 0.0, 0.0)).transpose()?,
            spec: plan.spec.clone(),
            output: weights.linear(&plan.output, Working)?,
        })
    }

    /// Norms and turns queries (`which_of` 0) or keys (1).
    fn place(
        &self,
        ops: &O,
        mut x: O::Rows,
        which_of: usize,
        batch: &O::Batch<'_>,
        which: &Which,
    ) -> Result<O::Rows> {
        let norm = self.qk_norms.as_ref().map(|norms| &norms[which_of]);
        if let Some(norm) = norm.filter(|_| !self.norms_turned) {
            x = norm.forward(ops, &x)?;
        }
        if let Some(ropes) = self.ropes {
            x = ops.rotary(x, self.spec.head_dim, ropes[which_of], batch, which)?;
        }
        if let Some(growth) = self.growth.filter(|_| which_of == QUERIES) {
            x = ops.rotary(x, self.spec.head_dim, growth, batch, which)?;
        }
        match norm.filter(|_| self.norms_turned) {
            Some(norm) => norm.forward(ops, &x),
            None => Ok(x),
        }
    }
}

fn load_delta<O: Ops>(
    weights: &mut Weights<'_, O>,
    AttentionPlan { spec, .. }: &AttentionPlan,
    plan: &DeltaPlan,
) -> std::result::Result<(Delta<O>, Arc<O::Joined>), ModelError> {
    let DeltaPlan { convolution, kernel, activation, learning, forgetting, rates, offsets } = plan;
    let gates = weights.joined(&[learning, forgetting])?;
    let spec = DeltaSpec {
        key_heads: spec.kv_heads,
        value_heads: spec.heads,
        key_dim: spec.head_dim,
        value_dim: spec.value_dim,
        kernel: *kernel,
        activation: *activation,
    };
    let width = spec.widths().iter().sum::<usize>() * kernel;
    let convolution = weights.vector([convolution], width, 0.0, 0.0)?;
    let [rates, offsets] = [rates, offsets].map(|name| weights.vector([name], spec.value_heads, 0.0, 0.0));
    Ok((Delta { spec, convolution, rates: rates?, offsets: offsets? }, gates))
}

impl<O: Ops> OutputGate<O> {
    fn load(weights: &mut Weights<'_, O>, plan: &OutputGatePlan) -> std::result::Result<Self, ModelError> {
        let norm = plan.norm.as_ref().map(|norm| Norm::load(weights, norm)).transpose()?;
        Ok(Self { norm, linear: weights.linear(&plan.linear, Working)?, function: plan.function })
    }
}

impl<O: Ops> Latent<O> {
    fn load(
        weights: &mut Weights<'_, O>,
        AttentionPlan { query, key, value, spec, .. }: &AttentionPlan,
        LatentPlan { query: narrow, key_value, shared_key }: &LatentPlan,
    ) -> std::result::Result<Self, ModelError> {
        let of_queries = narrow.as_ref().map_or(query, |narrow| &narrow.linear);
        Ok(Self {
            inputs: weights.joined(&[of_queries, &key_value.linear, shared_key])?,
            query: match narrow {
                Some(narrow) => Some((Norm::load(weights, &narrow.norm)?, weights.linear(query, Working)?)),
                None => None,
            },
            norm: Norm::load(weights, &key_value.norm)?,
            key_value: weights.joined(&[key, value])?,
            widths: [shared_key.output, spec.head_dim - shared_key.output],
        })
    }

    /// See [`transformer::Layer::project`].
    fn project(
        &self,
        ops: &O,
        attention: &Attention<O>,
        input: &O::Rows,
        (batch, which): (&O::Batch<'_>, &Which),
        parts: Range<usize>,
    ) -> Result<Vec<O::Rows>> {
        let mut projected = Vec::with_capacity(parts.len());
        if parts.contains(&QUERIES) {
            let mut x = ops.joined(input, &self.inputs, QUERIES..KEYS)?.remove(0);
            if let Some((norm, linear)) = &self.query {
                x = ops.linear(&norm.forward(ops, &x)?, linear)?;
            }
            projected.push(attention.place(ops, x, QUERIES, batch, which)?);
        }
        if parts.end > KEYS {
            let [shared_dim, own_dim] = self.widths;
            let mut made = ops.joined(input, &self.inputs, KEYS..VALUES + 1)?;
            let (mut shared, narrow) = (made.remove(1), made.remove(0));
            let narrow = ops.operand(Cow::Owned(self.norm.forward(ops, &narrow)?))?;
            let mut made = ops.joined(&narrow, &self.key_value, 0..2)?;
            let (values, own) = (made.remove(1), made.remove(0));
            if let Some([_, rope]) = attention.ropes {
                shared = ops.rotary(shared, shared_dim, rope, batch, which)?;
            }
            let keys = ops.before_heads(&own, own_dim, &shared)?;
            let made = [(KEYS, keys), (VALUES, values)].into_iter();
            projected.extend(made.filter(|(part, _)| parts.contains(part)).map(|(_, rows)| rows));
        }
        Ok(projected)
    }
}

impl<O: Ops> Relative<O> {
    fn load(weights: &mut Weights<'_, O>, plan: &RelativePlan) -> std::result::Result<Self, ModelError> {
        let table = weights.table(&plan.table)?;
        let norm = plan.norm.as_ref().map(|norm| Norm::load(weights, norm)).transpose()?;
        let mut linear =
            |plan: &Option<LinearPlan>| plan.as_ref().map(|plan| weights.linear(plan, Working)).transpose();
        let (key, query) = (linear(&plan.key)?, linear(&plan.query)?);
        Ok(Self { table, rows: plan.table.rows, norm, key, query, made: OnceLock::new() })
    }

    fn make(&self, ops: &O, spec: &AttentionSpec) -> Result<O::ByDistance> {
        let mut x = ops.rows_of(&self.table, 0..self.rows)?;
        if let Distance::Biases(_) = spec.distance {
            return ops.biases_by_distance(x);
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(ops, &x)?;
        }
        let x = ops.operand(Cow::Owned(ops.dropout(x)?))?;
        let project =
            |layer: &Option<Arc<O::Linear>>| layer.as_ref().map(|layer| ops.linear(&x, layer)).transpose();
        ops.products_by_distance(project(&self.key)?, project(&self.query)?, spec)
    }
}

impl<O: Ops> transformer::Layer<O> for Layer<O> {
    fn spec(&self) -> Option<&AttentionSpec> {
        let Attention { delta, spec, .. } = &self.attention;
        delta.is_none().then_some(spec)
    }

    fn products(&self) -> usize {
        self.products
    }

    fn experts(&self) -> Option<&Experts<O>> {
        match &self.feed_forward {
            FeedForward::Mlp(_) => None,
            FeedForward::Experts(experts) => Some(experts),
        }
    }

    fn input<'a>(&self, ops: &O, x: &'a O::Rows) -> Result<Cow<'a, O::Rows>> {
        ops.operand(normed(ops, x, self.norms.attention_input.as_ref())?)
    }

    fn project(
        &self,
        ops: &O,
        input: &O::Rows,
        batch: &O::Batch<'_>,
        which: &Which,
        parts: Range<usize>,
    ) -> Result<Vec<O::Rows>> {
        let projections = match &self.attention.projections {
            Projections::Direct(projections) => projections,
            Projections::Latent(latent) => {
                return latent.project(ops, &self.attention, input, (batch, which), parts);
            }
        };
        let projected = ops.joined(input, projections, parts.clone())?;
        let place = |(x, part): (O::Rows, usize)| match part {
            VALUES => Ok(x),
            part => self.attention.place(ops, x, part, batch, which),
        };
        projected.into_iter().zip(parts).map(place).collect()
    }

    fn delta(&self) -> Option<&Delta<O>> {
        self.attention.delta.as_ref().map(|(delta, _)| delta)
    }

    fn delta_gates(&self, ops: &O, input: &O::Rows) -> Result<Option<[O::Rows; 2]>> {
        let Some((_, layers)) = &self.attention.delta else { return Ok(None) };
        let made = ops.joined(input, layers, 0..2)?;
        Ok(Some(made.try_into().unwrap_or_else(|_| unreachable!("as many as were asked for"))))
    }

    fn by_distance(&self, ops: &O) -> Result<Option<Arc<O::ByDistance>>> {
        let Attention { relative, spec, .. } = &self.attention;
        let made = |relative: &Relative<O>| ops.of_weights(&relative.made, || relative.make(ops, spec));
        relative.as_ref().map(made).transpose()
    }

    fn sinks(&self) -> Option<&O::Vector> {
        self.attention.sinks.as_deref()
    }

    fn convolution(&self) -> Option<&Convolution<O>> {
        self.convolution.as_ref().map(|(layer, _)| layer)
    }

    fn finish(
        &self,
        ops: &O,
        x: O::Rows,
        attended: &O::Rows,
        convolved: Option<O::Rows>,
    ) -> Result<Finished<O::Rows>> {
        let Self { norms, feed_forward, .. } = self;
        let mlp = match feed_forward {
            FeedForward::Mlp(mlp) => mlp,
            FeedForward::Experts(experts) => {
                let x = self.add_attention(ops, x, attended)?;
                let input = normed(ops, &x, norms.mlp_input.as_ref())?.into_owned();
                let choices = experts.choose(ops, &input)?;
                return Ok(Finished::Routed(Routed { x, input, choices }));
            }
        };
        let inside = |x: &O::Rows| mlp.inside(ops, &*normed(ops, x, norms.mlp_input.as_ref())?);
        let beside = if self.is_parallel { Some(inside(&x)?) } else { None };
        let x = self.add_attention(ops, x, attended)?;
        let inside = match beside {
            Some(inside) => inside,
            None => inside(&x)?,
        };
        let x = self.add(ops, x, &inside, &mlp.down, norms.mlp_output.as_ref())?;
        let x = norm_of(ops, x, norms.mlp_sum.as_ref())?;
        Ok(Finished::Whole(match (convolved, &self.convolution) {
            (Some(convolved), Some((_, norm))) => {
                norm.forward(ops, &ops.add(x, &ops.dropout(convolved)?)?)?
            }
            _ => x,
        }))
    }

    fn add_experts(&self, ops: &O, x: O::Rows, made: O::Rows) -> Result<O::Rows> {
        let made = self.scaled(ops, norm_of(ops, made, self.norms.mlp_output.as_ref())?)?;
        norm_of(ops, ops.add(x, &made)?, self.norms.mlp_sum.as_ref())
    }
}

impl<O: Ops> Layer<O> {
    fn add_attention(&self, ops: &O, x: O::Rows, attended: &O::Rows) -> Result<O::Rows> {
        let Self { norms, attention, .. } = self;
        let attended = self.let_through(ops, &x, attended)?;
        let x = self.add(ops, x, &attended, &attention.output, norms.attention_output.as_ref())?;
        norm_of(ops, x, norms.attention_sum.as_ref())
    }

    /// What the gate of attention's output, if it has one, makes of it; `x` is the layer's input.
    fn let_through<'x>(&self, ops: &O, x: &O::Rows, attended: &'x O::Rows) -> Result<Cow<'x, O::Rows>> {
        let Some(OutputGate { norm, linear, function }) = &self.attention.gate else {
            return Ok(Cow::Borrowed(attended));
        };
        let by = ops.linear(&*normed(ops, x, self.norms.attention_input.as_ref())?, linear)?;
        let attended = normed(ops, attended, norm.as_ref())?;
        Ok(Cow::Owned(ops.let_through(&attended, &by, *function)?))
    }

    /// `x + scale · (norm of) layer(y)`
    fn add(
        &self,
        ops: &O,
        x: O::Rows,
        y: &O::Rows,
        layer: &O::Linear,
        norm: Option<&Norm<O>>,
    ) -> Result<O::Rows> {
        if norm.is_none() && self.added_scale.is_none() {
            return ops.linear_add(y, layer, x);
        }
        let made = self.scaled(ops, norm_of(ops, ops.linear(y, layer)?, norm)?)?;
        ops.add(x, &ops.dropout(made)?)
    }

    /// What is added to the layer's input.
    fn scaled(&self, ops: &O, made: O::Rows) -> Result<O::Rows> {
        match &self.added_scale {
            Some(scale) => ops.scale(made, scale),
            None => Ok(made),
        }
    }
}

/// `(norm of) x`
fn normed<'x, O: Ops>(ops: &O, x: &'x O::Rows, norm: Option<&Norm<O>>) -> Result<Cow<'x, O::Rows>> {
    Ok(match norm {
        Some(norm) => Cow::Owned(norm.forward(ops, x)?),
        None => Cow::Borrowed(x),
    })
}

/// The same of what nobody else reads.
fn norm_of<O: Ops>(ops: &O, x: O::Rows, norm: Option<&Norm<O>>) -> Result<O::Rows> {
    match norm {
        Some(norm) => norm.forward(ops, &x),
        None => Ok(x),
    }
}
