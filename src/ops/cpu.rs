//! The form for CPUs: the kernels of [`rewarm_kernels`] over weights that were packed when they were loaded. What
//! they cost and why they look as they do is told there.
//!
//! One pool of threads computes, one for each CPU that the process may use; the engine's device thread waits
//! meanwhile, and tokenizers and gRPC have threads that mostly sleep. A forward runs inside the pool ([`Ops::run`]), so
//! that from one attention to the next nothing is handed over but blocks.
//!
//! # How rows are cut
//!
//! Into blocks that cost the same, attention included ([`Ops::even_blocks`]), as many for each thread; none is smaller
//! than a tile of a product, so that few rows do not read all weights once for each thread. Whoever has no block
//! left takes columns of the products, and heads of the attention, of those who have. Blocks are rounded up for the tile
//! registers of AMX alone: rounded for everybody, 32 rows were 24 and 8 (AVX-512), and one of two threads waited for
//! the other.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use rayon::ThreadPool;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use rewarm_kernels::Attention;
use rewarm_kernels::Blocks;
use rewarm_kernels::ByDistance;
pub use rewarm_kernels::Isa;
use rewarm_kernels::Linear;
use rewarm_kernels::Number;
use rewarm_kernels::Relative;
use rewarm_kernels::Remembered as Panels;
use rewarm_kernels::Rows;
use rewarm_kernels::Then;
use rewarm_kernels::Weights;

use super::Activation;
use super::AttentionSpec;
use super::Clamp;
use super::Convolution;
use super::Delta;
use super::Gate;
use super::Ops;
use super::Precision;
use super::Term;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::packed;
use crate::ops::packed::Kind;
use crate::ops::packed::Packed;
use crate::ops::packed::Region;
use crate::ops::packed::Shape;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::ops::source::Source;
use crate::values::Format;
use crate::values::Values;

/// Rows of a block, at most: enough to read weights once for many rows, few enough that a block stays in the cache
/// of its core.
const MAX_BLOCK_ROWS: usize = 192;

/// Our own kernels.
#[derive(Clone, Debug)]
pub struct Cpu {
    format: Format,
    isa: Isa,
    pool: Arc<ThreadPool>,
}

/// An embedding, row-major.
#[derive(Debug)]
pub struct Table {
    values: TableValues,
    width: usize,
}

#[derive(Debug)]
enum TableValues {
    Own(Values),
    Mapped(Format, Region),
}

impl Table {
    fn read_row(&self, row: usize, to: &mut [f32]) {
        let range = row * self.width..(row + 1) * self.width;
        match &self.values {
            TableValues::Own(values) => values.to_f32s(range, to),
            TableValues::Mapped(format, bytes) => Values::bytes_to_f32s(*format, bytes, range, to),
        }
    }
}

/// Keys and values of a batch.
pub struct Remembered<'a> {
    inputs: &'a Inputs<'a>,
    panels: Panels<'a>,
}

impl Cpu {
    /// Weights in `format`, products with the best that the machine has.
    ///
    /// `F32` multiplies in `f32`. `BF16` rounds what is multiplied to bfloat16, both sides, where the machine has
    /// instructions for that; else only the weights. `F16` rounds the weights to `f16` and multiplies in `f32`.
    pub fn new(format: Format) -> Self {
        Self::with_isa(format, Isa::best())
    }

    /// The same with one of the instruction sets that the machine has.
    pub fn with_isa(format: Format, isa: Isa) -> Self {
        Self { format, isa, pool: pool() }
    }

    /// What is fastest on this CPU of what weights lose nothing by, and why.
    pub fn preferred(stored_in_f16: bool) -> (Format, String) {
        let isa = Isa::best();
        if stored_in_f16 {
            return (Format::F32, "the weights are f16, of which bf16 would drop three bits".to_owned());
        }
        match isa.prefers_bf16() {
            true => (Format::Bf16, format!("the CPU has {}", isa.name())),
            false => (Format::F32, format!("the CPU ({}) is not faster in bf16", isa.name())),
        }
    }

    fn number(&self, precision: Precision) -> Number {
        match (precision, self.format) {
            (Precision::Working, Format::Bf16) => Number::Bf16,
            _ => Number::F32,
        }
    }

    /// A block has a multiple of so many rows: tile registers take theirs whole.
    fn rows_at_once(&self) -> usize {
        let number = self.operand_number();
        if self.isa.has_tiles(number) { self.isa.tile_rows(number).min(16) } else { 1 }
    }

    /// What activations that are only multiplied are kept in.
    fn operand_number(&self) -> Number {
        match self.number(Precision::Working) {
            Number::Bf16 if self.isa.multiplies_bf16() => Number::Bf16,
            _ => Number::F32,
        }
    }
}

/// The threads that compute, as many as rayon has: one for each CPU that the process may use (the cgroup's quota and the
/// affinity count), unless it was told otherwise.
fn pool() -> Arc<ThreadPool> {
    static POOL: OnceLock<Arc<ThreadPool>> = OnceLock::new();
    let start = || {
        let pool = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
        let pool = pool.thread_name(|index| format!("compute-{index}")).build();
        Arc::new(pool.expect("the system has threads to give"))
    };
    POOL.get_or_init(start).clone()
}

/// Some of an output's weights, of as many as `input`, in what they are packed.
fn write_weights(source: Source<'_>, output: usize, input: usize, inputs: Range<usize>, to: Weights<'_>) {
    let Source { values, rows, .. } = source;
    let (first, row) = (rows.first_value(input), rows.row(output));
    if !rows.transposed {
        let of_row = first + row * input;
        let range = of_row + inputs.start..of_row + inputs.end;
        return match to {
            Weights::F32(to) => values.to_f32s(range, to),
            Weights::Bf16(to) => values.to_bf16s(range, to),
        };
    }
    let at = inputs.map(|input| first + input * rows.of + row);
    match to {
        Weights::F32(to) => {
            to.chunks_exact_mut(1).zip(at).for_each(|(to, at)| values.to_f32s(at..at + 1, to))
        }
        Weights::Bf16(to) => {
            to.chunks_exact_mut(1).zip(at).for_each(|(to, at)| values.to_bf16s(at..at + 1, to))
        }
    }
}

impl Ops for Cpu {
    type Rows = Rows;
    type Linear = Linear;
    type Gated = Linear;
    type Joined = Vec<Linear>;
    type Vector = Vec<f32>;
    type Table = Table;
    type Batch<'a> = &'a Inputs<'a>;
    type Remembered<'a> = Remembered<'a>;
    type ByDistance = ByDistance;
    type Moment = Instant;

    fn name(&self) -> String {
        format!("cpu {:?} {:?}", self.isa, self.format)
    }

    fn format(&self, precision: Precision) -> Format {
        match precision {
            Precision::Working => self.format,
            Precision::F32 => Format::F32,
        }
    }

    fn load_linear(&self, source: LinearSource<'_>, precision: Precision) -> Result<Linear> {
        let LinearSource { weight, bias, output, input } = source;
        let bias = bias.map(|bias| bias.numbers(output));
        let read = |output: usize, inputs: Range<usize>, to: Weights<'_>| {
            write_weights(weight, output, input, inputs, to);
        };
        let (isa, number) = (self.isa, self.number(precision));
        Ok(self.pool.install(|| Linear::new(isa, number, [input, output], bias.as_deref(), read)))
    }

    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Linear> {
        let LinearSource { output, input, .. } = gate;
        let bias = match (gate.bias, up.bias) {
            (Some(gate), Some(up)) => Some([gate, up].map(|bias| bias.numbers(output)).concat()),
            _ => None,
        };
        let read = |column: usize, inputs: Range<usize>, to: Weights<'_>| {
            let layer = if column < output { gate } else { up };
            write_weights(layer.weight, column % output, input, inputs, to);
        };
        let (isa, number) = (self.isa, self.number(Precision::Working));
        Ok(self.pool.install(|| Linear::gated(isa, number, [input, output], bias.as_deref(), read)))
    }

    fn load_joined(&self, sources: &[LinearSource<'_>]) -> Result<Vec<Linear>> {
        sources.iter().map(|source| self.load_linear(*source, Precision::Working)).collect()
    }

    fn load_vector(&self, _: &[String], mut values: Vec<f32>, offset: f32) -> Result<Vec<f32>> {
        values.iter_mut().for_each(|value| *value += offset);
        Ok(values)
    }

    fn constant(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn load_table(&self, _: &str, values: Values, _: usize, width: usize) -> Result<Table> {
        Ok(Table { values: TableValues::Own(values), width })
    }

    /// Known by what it makes of small layers: whoever changes it need not think of files that were written before.
    fn layout(&self) -> Option<String> {
        let numbers = |count: usize| Values::F32((0..count).map(|i| (i as f32 * 0.7).sin()).collect());
        let (input, output) = (67, 37);
        let (weights, bias) = (numbers(input * output), numbers(output));
        let source = |values, rows| Source { name: "", values, rows };
        let layer = LinearSource {
            weight: source(&weights, RowMap::all(output)),
            bias: Some(source(&bias, RowMap::all(output))),
            output,
            input,
        };
        let mut digest = blake3::Hasher::new();
        let linears =
            [Precision::Working, Precision::F32].map(|precision| self.load_linear(layer, precision));
        for linear in linears.into_iter().chain([self.load_gated(layer, layer)]) {
            let linear = linear.ok()?;
            digest.update(linear.bytes()).update(bytemuck::cast_slice(linear.bias()?));
        }
        Some(format!("{} {}", self.name(), digest.finalize()))
    }

    fn packed<'w>(&self, weights: &'w (dyn Any + Send + Sync)) -> Option<Packed<'w>> {
        let of_layer = |layer: &'w Linear| {
            let is_bf16 = layer.number() == Number::Bf16;
            let shape = Shape::Panels { is_bf16, widths: layer.widths(), is_gated: layer.is_gated() };
            let bias = layer.bias().map(|bias| (Shape::Bias, Cow::Borrowed(bytemuck::cast_slice(bias))));
            std::iter::once((shape, Cow::Borrowed(layer.bytes()))).chain(bias)
        };
        if let Some(layer) = weights.downcast_ref::<Linear>() {
            return Some(Packed { kind: Kind::Linear, pieces: of_layer(layer).collect() });
        }
        if let Some(layers) = weights.downcast_ref::<Vec<Linear>>() {
            return Some(Packed { kind: Kind::Joined, pieces: layers.iter().flat_map(of_layer).collect() });
        }
        let Table { values, width } = weights.downcast_ref::<Table>()?;
        let (format, bytes) = match values {
            TableValues::Own(values) => (values.format()?, values.bytes()),
            TableValues::Mapped(format, bytes) => (*format, &bytes[..]),
        };
        let shape = Shape::Rows { format, width: *width };
        Some(Packed { kind: Kind::Table, pieces: vec![(shape, Cow::Borrowed(bytes))] })
    }

    fn mapped(&self, kind: Kind, pieces: Vec<(Shape, Region)>) -> Option<packed::Weights> {
        if let (Kind::Table, [(Shape::Rows { format, width }, bytes)]) = (kind, &pieces[..]) {
            return Some(Arc::new(Table {
                values: TableValues::Mapped(*format, bytes.clone()),
                width: *width,
            }));
        }
        let mut pieces = pieces.into_iter().peekable();
        let mut layers = Vec::new();
        while let Some((shape, bytes)) = pieces.next() {
            let Shape::Panels { is_bf16, widths, is_gated } = shape else { return None };
            let number = if is_bf16 { Number::Bf16 } else { Number::F32 };
            let bias = pieces.next_if(|(shape, _)| *shape == Shape::Bias);
            let bias = bias.map(|(_, bias)| bytemuck::cast_slice(&bias).to_vec());
            layers.push(Linear::mapped(self.isa, number, (widths, is_gated), bytes, bias)?);
        }
        match kind {
            Kind::Linear => Some(Arc::new(layers.pop()?)),
            Kind::Joined => Some(Arc::new(layers)),
            Kind::Table => None,
        }
    }

    fn batch<'a>(&self, inputs: &'a Inputs<'a>) -> Result<&'a Inputs<'a>> {
        Ok(inputs)
    }

    fn moment(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn between(&self, from: &Instant, to: &Instant) -> Result<Duration> {
        Ok(to.duration_since(*from))
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    fn blocks(&self, rows: usize) -> Vec<Range<usize>> {
        self.small_blocks(rows, MAX_BLOCK_ROWS)
    }

    fn small_blocks(&self, rows: usize, max_rows: usize) -> Vec<Range<usize>> {
        let tile_rows = self.isa.tile_rows(self.operand_number()).min(16);
        let threads = self.pool.current_num_threads();
        let count = rows.div_ceil(max_rows.clamp(1, MAX_BLOCK_ROWS)).next_multiple_of(threads);
        let size =
            rows.div_ceil(count.min(rows.div_ceil(tile_rows)).max(1)).next_multiple_of(self.rows_at_once());
        (0..rows).step_by(size.max(1)).map(|start| start..(start + size).min(rows)).collect()
    }

    fn even_blocks(&self, costs: &[usize]) -> Vec<Range<usize>> {
        let whole = self.rows_at_once();
        let count = self.blocks(costs.len()).len();
        if count < 2 {
            return self.blocks(costs.len());
        }
        let total: usize = costs.iter().sum();
        let (mut blocks, mut start, mut cost) = (Vec::with_capacity(count), 0, 0);
        for (row, of_row) in costs.iter().enumerate() {
            // where half of a row's cost is beyond a block's share, the next one begins
            let is_full = (2 * cost + of_row) * count >= 2 * total * (blocks.len() + 1);
            if is_full && row > start && (row - start).is_multiple_of(whole) {
                blocks.push(start..row);
                start = row;
            }
            cost += of_row;
        }
        blocks.push(start..costs.len());
        blocks
    }

    fn at_once(&self) -> Option<usize> {
        Some(self.pool.current_num_threads())
    }

    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>> {
        if blocks.len() == 1 {
            blocks.into_iter().map(f).collect()
        } else {
            // one at a time: whoever is done takes the next
            blocks.into_par_iter().with_max_len(1).map(&f).collect()
        }
    }

    fn embed(
        &self,
        tables: &[(&Table, usize)],
        scale: Option<f64>,
        batch: &&Inputs<'_>,
        which: &Which,
    ) -> Result<Rows> {
        let width = tables[0].0.width;
        let mut x = Rows::new(Number::F32, which.len(), width);
        let scale = scale.map_or(1.0, |scale| self.format.round(scale) as f32);
        let mut of_table = vec![0.0; width];
        for (place, row) in batch.rows(which).enumerate() {
            let to = x.row_mut(place);
            for (index, (table, ids)) in tables.iter().enumerate() {
                let id = batch.ids[*ids][row] as usize;
                if index == 0 {
                    table.read_row(id, to);
                } else {
                    table.read_row(id, &mut of_table);
                    to.iter_mut().zip(&of_table).for_each(|(to, x)| *to += x);
                }
            }
            if scale != 1.0 {
                to.iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(x)
    }

    fn rows_of(&self, table: &Table, rows: Range<usize>) -> Result<Rows> {
        let mut x = Rows::new(Number::F32, rows.len(), table.width);
        for (place, row) in rows.enumerate() {
            table.read_row(row, x.row_mut(place));
        }
        Ok(x)
    }

    fn operand<'a>(&self, x: Cow<'a, Rows>) -> Result<Cow<'a, Rows>> {
        Ok(match self.operand_number() {
            Number::Bf16 if x.number() == Number::F32 => Cow::Owned(x.to_bf16(self.isa)),
            _ => x,
        })
    }

    fn linear(&self, x: &Rows, layer: &Linear) -> Result<Rows> {
        Ok(layer.forward(x, Rows::new(Number::F32, x.len(), layer.output()), Then::Keep))
    }

    fn joined(&self, x: &Rows, layers: &Vec<Linear>, which: Range<usize>) -> Result<Vec<Rows>> {
        layers[which].iter().map(|layer| self.linear(x, layer)).collect()
    }

    fn linear_add(&self, x: &Rows, layer: &Linear, residual: Rows) -> Result<Rows> {
        Ok(layer.forward(x, residual, Then::Add))
    }

    fn linear_act(&self, x: &Rows, layer: &Linear, activation: Activation) -> Result<Rows> {
        // only the next layer reads this, which multiplies in the same
        let to = Rows::new(layer.operand_number(), x.len(), layer.output());
        Ok(layer.forward(x, to, Then::Activate(activation)))
    }

    fn gated(&self, x: &Rows, layer: &Linear, activation: Activation) -> Result<Rows> {
        // only the next layer reads this, which multiplies in the same
        let to = Rows::new(layer.operand_number(), x.len(), layer.output());
        Ok(layer.forward(x, to, Then::Gate(activation)))
    }

    fn gated_clamped(&self, x: &Rows, layer: &Linear, Clamp { alpha, limit }: Clamp) -> Result<Rows> {
        let to = Rows::new(layer.operand_number(), x.len(), layer.output());
        Ok(layer.forward(x, to, Then::ClampedGate { alpha, limit }))
    }

    fn add(&self, x: Rows, y: &Rows) -> Result<Rows> {
        Ok(x.add(self.isa, y))
    }

    fn rms_norm(&self, x: &Rows, weight: &Vec<f32>, eps: f64) -> Result<Rows> {
        Ok(x.rms_norm(self.isa, weight, eps as f32))
    }

    fn layer_norm(&self, x: &Rows, weight: &Vec<f32>, bias: &Vec<f32>, eps: f64) -> Result<Rows> {
        Ok(x.layer_norm(self.isa, weight, bias, eps as f32))
    }

    fn scale(&self, mut x: Rows, factors: &Vec<f32>) -> Result<Rows> {
        for row in 0..x.len() {
            x.row_mut(row).iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
        Ok(x)
    }

    fn rotary(
        &self,
        x: Rows,
        head_dim: usize,
        rope: usize,
        batch: &&Inputs<'_>,
        which: &Which,
    ) -> Result<Rows> {
        let of_rope = &batch.ropes[rope];
        let angles = |place: usize| of_rope.of_row(batch.row(which, place));
        Ok(x.rotary(self.isa, head_dim, &angles))
    }

    fn before_heads(&self, x: &Rows, head_dim: usize, shared: &Rows) -> Result<Rows> {
        let width = shared.width() + head_dim;
        let mut to = Rows::new(Number::F32, x.len(), x.width() / head_dim * width);
        for row in 0..x.len() {
            let heads = x.row(row).chunks_exact(head_dim);
            for (to, own) in to.row_mut(row).chunks_exact_mut(width).zip(heads) {
                let (first, rest) = to.split_at_mut(shared.width());
                first.copy_from_slice(shared.row(row));
                rest.copy_from_slice(own);
            }
        }
        Ok(to)
    }

    fn products_by_distance(
        &self,
        keys: Option<Rows>,
        queries: Option<Rows>,
        spec: &AttentionSpec,
    ) -> Result<ByDistance> {
        let tables = Relative::new(self.isa, self.operand_number(), spec, keys.as_ref(), queries.as_ref());
        Ok(ByDistance::Products(tables))
    }

    fn biases_by_distance(&self, table: Rows) -> Result<ByDistance> {
        Ok(ByDistance::Biases(table))
    }

    fn remember<'a>(
        &self,
        keys: Vec<Rows>,
        values: Vec<Rows>,
        by_distance: Option<&'a ByDistance>,
        batch: &'a &Inputs<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Remembered<'a>> {
        let (isa, number) = (self.isa, self.operand_number());
        let attention = Attention { isa, number, segments: batch.packed.segments(), spec };
        let in_parallel = keys.len() > 1;
        let panels = attention.remember(Blocks::new(&keys), Blocks::new(&values), by_distance, in_parallel);
        Ok(Remembered { inputs: batch, panels })
    }

    fn with_sinks<'a>(&self, remembered: Remembered<'a>, sinks: &'a Vec<f32>) -> Result<Remembered<'a>> {
        let Remembered { inputs, panels } = remembered;
        Ok(Remembered { inputs, panels: panels.with_sinks(sinks) })
    }

    fn attend(&self, queries: &Rows, which: &Which, to: &Remembered<'_>) -> Result<Rows> {
        let packed = to.inputs.packed;
        let place = |query: usize| {
            let row = to.inputs.row(which, query);
            let segment = packed.segment_of(row);
            (segment, packed.segments()[segment].position(row))
        };
        Ok(to.panels.attend(queries, &place))
    }

    fn delta(
        &self,
        inputs: [Vec<Rows>; 3],
        gates: [Vec<Rows>; 2],
        layer: &Delta<Self>,
        batch: &&Inputs<'_>,
    ) -> Result<Vec<Rows>> {
        let in_parallel = inputs[0].len() > 1;
        let rule = rewarm_kernels::Delta {
            isa: self.isa,
            segments: batch.packed.segments(),
            spec: layer.spec,
            convolution: &layer.convolution,
            rates: &layer.rates,
            offsets: &layer.offsets,
        };
        let inputs = inputs.each_ref().map(|rows| Blocks::new(rows));
        let gates = gates.each_ref().map(|rows| Blocks::new(rows));
        Ok(vec![rule.run(inputs, gates, in_parallel)])
    }

    fn let_through(&self, x: &Rows, by: &Rows, gate: Gate) -> Result<Rows> {
        Ok(x.gated(self.isa, by, gate))
    }

    fn convolve(
        &self,
        blocks: &[Rows],
        which: &Which,
        layer: &Convolution<Self>,
        batch: &&Inputs<'_>,
    ) -> Result<Rows> {
        let (from, width) = (Blocks::new(blocks), blocks[0].width());
        let columns = width / layer.groups.len();
        let mut convolved = Rows::new(Number::F32, which.len(), width);
        for (group, linear) in layer.groups.iter().enumerate() {
            let of_group = group * columns..(group + 1) * columns;
            let mut neighbours = Rows::new(Number::F32, which.len(), columns * layer.kernel);
            for place in 0..which.len() {
                let to = neighbours.row_mut(place);
                let around = batch.packed.neighbours(batch.row(which, place), layer.kernel);
                for (position, row) in around.enumerate() {
                    let to = to[position..].iter_mut().step_by(layer.kernel);
                    match row {
                        Some(row) => to.zip(&from.row(row)[of_group.clone()]).for_each(|(to, x)| *to = *x),
                        None => to.for_each(|to| *to = 0.0),
                    }
                }
            }
            let neighbours = self.operand(Cow::Owned(neighbours))?;
            let made = Rows::new(Number::F32, which.len(), columns);
            let made = linear.forward(&neighbours, made, Then::Activate(layer.activation));
            for place in 0..which.len() {
                convolved.row_mut(place)[of_group.clone()].copy_from_slice(made.row(place));
            }
        }
        Ok(convolved)
    }

    fn gather(&self, blocks: &[Rows], list: usize, batch: &&Inputs<'_>) -> Result<Vec<Rows>> {
        let rows = &batch.lists[list];
        self.blocks(rows.len()).into_iter().map(|places| self.pick(blocks, &rows[places])).collect()
    }

    fn pick(&self, blocks: &[Rows], rows: &[usize]) -> Result<Rows> {
        let (from, width) = (Blocks::new(blocks), blocks[0].width());
        let mut to = Rows::new(Number::F32, rows.len(), width);
        for (at, &row) in rows.iter().enumerate() {
            to.row_mut(at).copy_from_slice(from.row(row));
        }
        Ok(to)
    }

    fn combine(&self, blocks: &[Rows], terms: &[Term], of_row: usize) -> Result<Rows> {
        Ok(Rows::sums(self.isa, blocks, terms, of_row))
    }

    fn mean(&self, blocks: &[Rows], batch: &&Inputs<'_>) -> Result<Vec<Rows>> {
        let (from, width) = (Blocks::new(blocks), blocks[0].width());
        let mean = |sequences: Range<usize>| {
            let mut to = Rows::new(Number::F32, sequences.len(), width);
            for (at, sequence) in sequences.enumerate() {
                let sums = to.row_mut(at);
                sums.fill(0.0);
                for row in batch.packed.runs(sequence).into_iter().flatten() {
                    sums.iter_mut().zip(from.row(row)).for_each(|(sum, x)| *sum += x);
                }
                let count = batch.packed.length(sequence) as f32;
                sums.iter_mut().for_each(|sum| *sum /= count);
            }
            to
        };
        Ok(self.blocks(batch.packed.len()).into_iter().map(mean).collect())
    }

    fn read(&self, results: &[Vec<Rows>]) -> Result<Vec<Vec<f32>>> {
        let read = |blocks: &Vec<Rows>| {
            blocks.iter().flat_map(|block| (0..block.len()).flat_map(|row| block.row(row))).copied().collect()
        };
        Ok(results.iter().map(read).collect())
    }
}
