//! The form for GPUs: the kernels of [`rewarm_cuda`], asked for one after the other and waited for once.
//!
//! ```text
//! f32                    the residual stream, insides of norms, softmax, rotary, functions; heads
//! the working precision  weights, and what is multiplied with them: queries, keys, values, insides of MLPs
//! ```
//!
//! All rows are one block. Small batches are padded with rows that nobody reads, so that few sizes occur and each
//! becomes [one launch](rewarm_cuda::device::SMALL_BATCH).
//!
//! # Members side by side
//!
//! A product of few rows leaves a part of the card without work, and its last tiles another. So members of an ensemble
//! are [branches](rewarm_cuda::device::Device::branch), each with memory of its own, as long as there is
//! something to gain: then a card of 132 multiprocessors has 4,224 rows of a model 1,024 wide, 1,056 of one 4,096 wide.
//!
//! # Norms wait
//!
//! A norm is computed when somebody reads it, since only then it is known what for: in the working precision for the
//! next product (before a layer's attention and MLP), in `f32` for the residual stream, or both at once (after them,
//! in BERT and its like). A norm of heads that a rotary embedding follows is one kernel with it.
//!
//! # Exactness
//!
//! What a row becomes depends on that row and those its attention sees, to the last bit: see [`rewarm_cuda`].

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rewarm_cuda::Moment;
use rewarm_cuda::Sections;
use rewarm_cuda::calls;
use rewarm_cuda::calls::Distances;
use rewarm_cuda::calls::Function;
use rewarm_cuda::calls::NormOf;
use rewarm_cuda::calls::Places;
use rewarm_cuda::calls::Rope;
use rewarm_cuda::calls::TILE;
use rewarm_cuda::calls::Tiles;
use rewarm_cuda::device::Device;
use rewarm_cuda::device::SMALL_BATCH;
use rewarm_cuda::device::Staged;
use rewarm_cuda::driver::Number;
use rewarm_cuda::matrix::Integers;
use rewarm_cuda::matrix::Matrix;

use super::Activation;
use super::Ahead;
use super::AttentionSpec;
use super::Buckets;
use super::Convolution;
use super::Distance;
use super::Ops;
use super::Precision;
use super::Term;
use super::whole;
use crate::ops::batch::PackedBatch;
use crate::ops::error::OpsError;
use crate::ops::error::Result;
use crate::ops::inputs::AngleTable;
use crate::ops::inputs::Angles;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::source::LinearSource;
use crate::ops::source::Source;
use crate::values::Format;
use crate::values::Values;

/// Products with tables of distances at a time, in bytes: heads take turns. In tests they do in small batches too.
const MAX_BY_DISTANCE: usize = if cfg!(test) { 40 << 10 } else { 128 << 20 };

/// So many tiles of 128 by 128 numbers of hidden states for each multiprocessor are work enough for a card. An ENS of 4 of
/// 1,024 wide members gained 6% by four streams at 1,024 rows, 5% at 4,096 (H200), which is about as many: what
/// is left is the last tiles of each product.
const BUSY_TILES: usize = 2;

/// A form for one card.
#[derive(Clone, Debug)]
pub struct Cuda {
    device: Arc<Device>,
    format: Format,
    /// Whether nothing is computed.
    rehearses: bool,
    angles: Arc<Mutex<Vec<OnCard>>>,
}

/// Angles that batches have in common, where they are on a card: cosines and sines.
#[derive(Debug)]
struct OnCard {
    of: Arc<AngleTable>,
    numbers: [Integers; 2],
}

/// Activations.
#[derive(Clone, Debug)]
pub struct Rows {
    x: X,
    /// Rows that somebody reads; those behind them are there for a batch's size.
    len: usize,
}

#[derive(Clone, Debug)]
enum X {
    /// `f32`, or the working precision.
    Here(Matrix),
    Normed(Arc<Normed>),
}

/// What a norm will make.
#[derive(Debug)]
struct Normed {
    norm: NormOf,
    eps: f32,
    made: Mutex<Made>,
}

#[derive(Debug)]
struct Made {
    /// Absent once both are made.
    of: Option<Matrix>,
    wide: Option<Matrix>,
    rounded: Option<Matrix>,
}

/// Weights of a linear layer, `[output, input]`.
#[derive(Debug)]
pub struct Linear {
    weight: Matrix,
    /// In `f32`, and in what the weights are.
    bias: Option<[Matrix; 2]>,
    precision: Precision,
}

/// Layers that read the same, one below the other.
#[derive(Debug)]
pub struct Joined {
    layer: Linear,
    /// Zero, then where the outputs of each end.
    ends: Vec<usize>,
}

/// A batch on its card.
#[derive(Debug)]
pub struct Batch<'a> {
    inputs: &'a Inputs<'a>,
    /// With those that nobody reads.
    rows: usize,
    sequences: usize,
    ids: Vec<Integers>,
    ropes: Vec<Rope>,
    lists: Vec<Integers>,
    /// Of all rows, then of each list.
    tiles: Vec<Tiles>,
    /// First row and end of each row's segment.
    bounds: Integers,
    /// Of each sequence, for means.
    first_run: Integers,
    runs: Integers,
}

/// Keys and values of a batch.
pub struct Remembered<'a> {
    key: Matrix,
    value: Matrix,
    by_distance: Option<&'a ByDistance>,
    batch: &'a Batch<'a>,
    spec: &'a AttentionSpec,
}

/// Parameters by distance.
#[derive(Debug)]
pub enum ByDistance {
    /// `[buckets, kv_heads · head_dim]` and `[buckets, heads · head_dim]`, as queries and keys are.
    Products {
        /// For queries.
        keys: Option<Matrix>,
        /// For keys.
        queries: Option<Matrix>,
    },
    /// `[buckets, heads]` in `f32`.
    Biases(Matrix),
}

impl Cuda {
    /// Weights in `format`: bf16, f16 or f32.
    pub fn new(device: Arc<Device>, format: Format) -> Self {
        Self { device, format, rehearses: false, angles: Arc::default() }
    }

    /// What is best on cards for weights that lose nothing by it, and why.
    pub fn preferred(stored_in_f16: bool) -> (Format, String) {
        match stored_in_f16 {
            true => (Format::F16, "the weights are f16, of which bf16 would drop three bits".to_owned()),
            false => (Format::Bf16, "tensor cores multiply in it".to_owned()),
        }
    }

    /// The card.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn angles(&self) -> MutexGuard<'_, Vec<OnCard>> {
        self.angles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table that batches have in common: it is uploaded once, and goes when whoever made it has a larger one.
    fn on_card(&self, table: &Arc<AngleTable>) -> Result<[Integers; 2]> {
        let mut angles = self.angles();
        if let Some(known) = angles.iter().find(|known| Arc::ptr_eq(&known.of, table)) {
            return Ok(known.numbers.clone());
        }
        angles.retain(|known| Arc::strong_count(&known.of) > 1);
        let numbers = [self.device.table(&table.cos)?, self.device.table(&table.sin)?];
        angles.push(OnCard { of: table.clone(), numbers: numbers.clone() });
        Ok(numbers)
    }

    /// What a batch is made of, list by list as [`Self::batch_of`] takes them.
    fn sections(&self, inputs: &Inputs<'_>) -> Sections {
        let packed = inputs.packed;
        let rows = padded(packed.num_rows());
        let paths = Paths::of(packed);
        let (mut first_run, mut runs) = (vec![0u32], Vec::new());
        for sequence in 0..packed.len() {
            for rows in packed.runs(sequence) {
                runs.extend([rows.start as u32, rows.len() as u32]);
            }
            first_run.push(runs.len() as u32 / 2);
        }
        first_run.resize(padded(packed.len()) + 1, runs.len() as u32 / 2);
        let bounds = packed.segments().iter().flat_map(|segment| {
            let of_row = [segment.rows.start as u32, segment.rows.end as u32];
            segment.rows.clone().flat_map(move |_| of_row)
        });

        let mut sections = self.device.sections();
        inputs.ids.iter().for_each(|ids| sections.add(ids, rows));
        for Angles { table, of_rows, stays } in &inputs.ropes {
            sections.add(of_rows, rows);
            if !stays {
                sections.add(&table.cos, rows * table.pairs);
                sections.add(&table.sin, rows * table.pairs);
            }
        }
        for list in &inputs.lists {
            let list: Vec<u32> = list.iter().map(|&row| row as u32).collect();
            sections.add(&list, padded(list.len()));
        }
        sections.add(&paths.runs, padded(paths.runs.len()));
        let of_lists = inputs.lists.iter().map(|list| paths.of_list(packed, list));
        for tiles in std::iter::once(paths.of_all(packed)).chain(of_lists) {
            // no tile: no queries
            sections.add(tiles.as_flattened(), 6 * padded(tiles.len()));
        }
        sections.add(&bounds.collect::<Vec<u32>>(), 2 * rows);
        sections.add(&first_run, first_run.len());
        sections.add(&runs, padded(runs.len()));
        sections
    }

    /// A batch whose [sections](Self::sections) are on the card.
    fn batch_of<'a>(&self, inputs: &'a Inputs<'a>, uploaded: Vec<Integers>) -> Result<Batch<'a>> {
        let (rows, sequences) = (padded(inputs.packed.num_rows()), padded(inputs.packed.len()));
        let mut uploaded = uploaded.into_iter();
        let mut next = || uploaded.next().expect("as many as there are sections");
        let ids = inputs.ids.iter().map(|_| next()).collect();
        let mut ropes = Vec::with_capacity(inputs.ropes.len());
        for Angles { table, stays, .. } in &inputs.ropes {
            let of_rows = next();
            let [cos, sin] = if *stays { self.on_card(table)? } else { [next(), next()] };
            ropes.push(Rope { cos, sin, of_rows, pairs: table.pairs });
        }
        let lists = inputs.lists.iter().map(|_| next()).collect();
        let paths = next();
        let tiles = (0..=inputs.lists.len()).map(|_| Tiles { tiles: next(), runs: paths.clone() }).collect();
        let (bounds, first_run, runs) = (next(), next(), next());
        Ok(Batch { inputs, rows, sequences, ids, ropes, lists, tiles, bounds, first_run, runs })
    }

    fn number(&self, precision: Precision) -> Number {
        match (precision, self.format) {
            (Precision::Working, Format::Bf16) => Number::Bf16,
            (Precision::Working, Format::F16) => Number::F16,
            _ => Number::F32,
        }
    }

    fn working(&self) -> Number {
        self.number(Precision::Working)
    }

    /// In `f32`.
    fn wide(&self, x: &Rows) -> Result<Matrix> {
        match &x.x {
            X::Here(matrix) if matrix.number() == Number::F32 => Ok(matrix.clone()),
            X::Here(matrix) => Ok(self.device.convert(matrix, Number::F32)?),
            X::Normed(normed) => Ok(normed.wide(self)?),
        }
    }

    /// In the working precision.
    fn rounded(&self, x: &Rows) -> Result<Matrix> {
        match &x.x {
            X::Here(matrix) if matrix.number() == self.working() => Ok(matrix.clone()),
            X::Here(matrix) => Ok(self.device.convert(matrix, self.working())?),
            X::Normed(normed) => Ok(normed.rounded(self)?),
        }
    }

    /// In whichever it is, made if need be in `f32`.
    fn either(&self, x: &Rows) -> Result<Matrix> {
        match &x.x {
            X::Here(matrix) => Ok(matrix.clone()),
            X::Normed(normed) => {
                let made = normed.made().of.as_ref().is_some_and(|of| of.number() != Number::F32);
                if made { normed.rounded(self) } else { normed.wide(self) }
            }
        }
    }

    /// In `f32`, to be changed in place.
    fn owned_wide(&self, x: Rows) -> Result<Matrix> {
        let wide = self.wide(&x)?;
        drop(x);
        self.mine(wide)
    }

    fn mine(&self, x: Matrix) -> Result<Matrix> {
        if x.is_mine() { Ok(x) } else { Ok(self.device.convert(&x, x.number())?) }
    }

    fn here(&self, x: Matrix, len: usize) -> Rows {
        Rows { x: X::Here(x), len }
    }

    fn norm(&self, x: &Rows, norm: NormOf, eps: f64) -> Result<Rows> {
        let of = self.either(x)?;
        let made = Mutex::new(Made { of: Some(of), wide: None, rounded: None });
        Ok(Rows { x: X::Normed(Arc::new(Normed { norm, eps: eps as f32, made })), len: x.len })
    }

    /// Values `[rows, width]`, row-major, as the card has them.
    fn upload(&self, values: &Values, rows: usize, width: usize, number: Number) -> Result<Matrix> {
        let matrix = self.device.weights(rows, width, number)?;
        self.device.fill(&matrix, values.bytes(), stored_in(values)?)?;
        Ok(matrix)
    }

    /// Rows of a tensor.
    fn fill(&self, weights: &Matrix, Source { values, rows, .. }: &Source<'_>) -> Result<()> {
        if rows.place_in_stack().is_some() {
            return Err(OpsError::Unsupported("experts on a card"));
        }
        let (outputs, input, number) = (weights.rows(), weights.width(), stored_in(values)?);
        let (bytes, size, first) = (values.bytes(), number.bytes(), rows.row(0));
        if !rows.transposed && (0..outputs).all(|output| rows.row(output) == first + output) {
            let bytes = &bytes[first * input * size..(first + outputs) * input * size];
            return Ok(self.device.fill(weights, bytes, number)?);
        }
        let mut picked = vec![0u8; outputs * input * size];
        for (output, to) in picked.chunks_exact_mut(input * size).enumerate() {
            let row = rows.row(output);
            if rows.transposed {
                for (input, to) in to.chunks_exact_mut(size).enumerate() {
                    to.copy_from_slice(&bytes[(input * rows.of + row) * size..][..size]);
                }
            } else {
                to.copy_from_slice(&bytes[row * input * size..][..input * size]);
            }
        }
        Ok(self.device.fill(weights, &picked, number)?)
    }

    fn vector(&self, values: Vec<f32>, number: Number) -> Result<Matrix> {
        let width = values.len();
        self.upload(&Values::F32(values), 1, width, number)
    }

    /// The weights of layers with the same input, one after the other.
    fn load(&self, layers: &[LinearSource<'_>], has_bias: bool, precision: Precision) -> Result<Linear> {
        let number = self.number(precision);
        let outputs: usize = layers.iter().map(|layer| layer.output).sum();
        let weight = self.device.weights(outputs, layers[0].input, number)?;
        let (mut first, mut biases) = (0, Vec::new());
        for LinearSource { weight: source, bias, output, .. } in layers {
            self.fill(&weight.some_rows(first..first + output), source)?;
            first += output;
            match bias {
                Some(bias) => biases.extend(bias.numbers(*output)),
                None => biases.resize(first, 0.0),
            }
        }
        // both are what the card keeps of it
        let kept = self.format(precision);
        biases.iter_mut().for_each(|bias| *bias = kept.round((*bias).into()) as f32);
        let bias = match (has_bias, number) {
            (false, _) => None,
            (true, Number::F32) => {
                let bias = self.vector(biases, number)?;
                Some([bias.clone(), bias])
            }
            (true, _) => Some([self.vector(biases.clone(), Number::F32)?, self.vector(biases, number)?]),
        };
        Ok(Linear { weight, bias, precision })
    }

    /// `x · weightᵀ + bias` in what the layer is.
    fn product(&self, x: &Rows, layer: &Linear) -> Result<Matrix> {
        if layer.precision == Precision::F32 {
            let bias = layer.bias.as_ref().map(|[wide, _]| wide);
            return Ok(self.device.head(&self.wide(x)?, &layer.weight, bias, None)?);
        }
        let x = self.rounded(x)?;
        let y = self.device.matrix(x.rows(), layer.weight.rows(), self.working())?;
        self.device.linear(&x, &layer.weight, layer.bias.as_ref().map(|[_, same]| same), &y, false)?;
        Ok(y)
    }

    fn distances(
        &self,
        to: &Remembered<'_>,
        query: &Matrix,
        key: &Matrix,
        heads: &Range<usize>,
    ) -> Result<Distances> {
        let device = &self.device;
        let of_distance = |buckets: &Buckets| device.constant(bytemuck::cast_slice(buckets.of_distance()));
        Ok(match (&to.spec.distance, to.by_distance) {
            (Distance::Ignored, _) => Distances::Ignored,
            (Distance::Slopes(slopes), _) => {
                Distances::Slopes(device.constant(bytemuck::cast_slice(slopes))?)
            }
            (Distance::RoundedSlopes(slopes), _) => {
                Distances::RoundedSlopes(device.constant(bytemuck::cast_slice(slopes))?)
            }
            (Distance::Biases(buckets), Some(ByDistance::Biases(table))) => {
                Distances::Biases { of_distance: of_distance(buckets)?, table: table.clone() }
            }
            (Distance::Buckets(buckets), Some(ByDistance::Products { keys, queries })) => {
                let spec = to.spec;
                let products = |x: &Matrix, table: &Option<Matrix>, of: &dyn Fn(usize) -> [usize; 2]| {
                    table.as_ref().map(|table| self.by_head(x, table, heads, spec.head_dim, of)).transpose()
                };
                Distances::Buckets {
                    of_distance: of_distance(buckets)?,
                    buckets: buckets.rows(),
                    of_queries: products(query, keys, &|head| [head, spec.kv_head(head)])?,
                    of_keys: products(key, queries, &|head| [spec.kv_head(head), head])?,
                }
            }
            _ => return Err(OpsError::Unsupported("distances without their layer's parameters")),
        })
    }

    /// Of some heads, the products of a matrix' columns and a table's, which `of` tells for each: `[rows, heads ·
    /// buckets]` in `f32`.
    fn by_head(
        &self,
        x: &Matrix,
        table: &Matrix,
        heads: &Range<usize>,
        head_dim: usize,
        of: &dyn Fn(usize) -> [usize; 2],
    ) -> Result<Matrix> {
        let (device, buckets) = (&self.device, table.rows());
        let y = device.dense(x.rows(), heads.len() * buckets)?;
        // a product reads runs of 16 bytes
        let is_aligned = (head_dim * x.number().bytes()).is_multiple_of(16);
        for (place, head) in heads.clone().enumerate() {
            let [of_x, of_table] = of(head);
            let part = |matrix: &Matrix, head: usize| matrix.columns(head * head_dim..(head + 1) * head_dim);
            let y = y.columns(place * buckets..(place + 1) * buckets);
            let (x, table) = (part(x, of_x), part(table, of_table));
            if is_aligned {
                device.linear(&x, &table, None, &y, false)?;
            } else {
                let wide = |x: &Matrix| device.convert(x, Number::F32);
                device.head_into(&wide(&x)?, &wide(&table)?, None, None, &y)?;
            }
        }
        Ok(y)
    }
}

impl Normed {
    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wide(&self, ops: &Cuda) -> Result<Matrix> {
        let mut made = self.made();
        if made.wide.is_none()
            && let Some(of) = &made.of
        {
            (made.wide, _) = ops.device.norm(of, &self.norm, self.eps, true, None)?;
        }
        Ok(made.wide.clone().expect("made just now"))
    }

    fn rounded(&self, ops: &Cuda) -> Result<Matrix> {
        if ops.working() == Number::F32 {
            return self.wide(ops);
        }
        let mut made = self.made();
        if made.rounded.is_none()
            && let Some(of) = &made.of
        {
            // what nobody else holds any more was the residual stream, and the norm is what it becomes
            let goes_on = made.wide.is_none() && of.number() == Number::F32 && of.is_mine();
            let (wide, rounded) = ops.device.norm(of, &self.norm, self.eps, goes_on, Some(ops.working()))?;
            made.rounded = rounded;
            if goes_on {
                (made.wide, made.of) = (wide, None);
            }
        }
        Ok(made.rounded.clone().expect("made just now"))
    }
}

/// In what a card gets them.
fn stored_in(values: &Values) -> Result<Number> {
    match values {
        Values::F32(_) => Ok(Number::F32),
        Values::F16(_) => Ok(Number::F16),
        Values::Bf16(_) => Ok(Number::Bf16),
        Values::F64(_) | Values::Other(_) => Err(OpsError::Unsupported("weights that a card cannot read")),
    }
}

fn function(activation: Activation) -> Function {
    match activation {
        Activation::GeluErf => Function::GeluErf,
        Activation::GeluTanh => Function::GeluTanh,
        Activation::Silu => Function::Silu,
        Activation::Relu => Function::Relu,
        Activation::ReluSquared => Function::ReluSquared,
        Activation::Tanh => Function::Tanh,
    }
}

/// How many rows a batch of so many is given: few sizes, of which each becomes one launch.
fn padded(rows: usize) -> usize {
    match rows {
        0..=128 => rows.next_multiple_of(16),
        129..=SMALL_BATCH => rows.next_multiple_of(64),
        _ => rows,
    }
}

/// What attention is told of a batch, in integers.
struct Paths {
    /// Of all segments, those of each one after the other.
    runs: Vec<u32>,
    /// Of each segment, where its runs are and how many.
    of_segment: Vec<[u32; 2]>,
}

impl Paths {
    fn of(packed: &PackedBatch) -> Self {
        let (mut runs, mut of_segment) = (Vec::new(), Vec::new());
        for segment in 0..packed.segments().len() {
            let (first, path) = (runs.len() as u32 / 2, packed.path(segment));
            let mut position = 0;
            for rows in &path {
                runs.extend([position as u32, rows.start as u32]);
                position += rows.len();
            }
            of_segment.push([first, path.len() as u32]);
        }
        Self { runs, of_segment }
    }

    /// Of consecutive rows of a segment, whose queries begin at a place.
    fn tile(
        &self,
        packed: &PackedBatch,
        segment: usize,
        place: usize,
        row: usize,
        queries: usize,
    ) -> [u32; 6] {
        let of = &packed.segments()[segment];
        let [first_run, runs] = self.of_segment[segment];
        let numbers = [place, queries, of.position(row)].map(|number| number as u32);
        [numbers[0], numbers[1], numbers[2], first_run, runs, of.end_position() as u32]
    }

    /// Of all rows: those with most to see first, so that none of them is what is waited for in the end.
    fn of_all(&self, packed: &PackedBatch) -> Vec<[u32; 6]> {
        let mut tiles = Vec::new();
        for (index, segment) in packed.segments().iter().enumerate() {
            for row in segment.rows.clone().step_by(TILE) {
                let queries = TILE.min(segment.rows.end - row);
                tiles.push(self.tile(packed, index, row, row, queries));
            }
        }
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2] + tile[1]));
        tiles
    }

    fn of_list(&self, packed: &PackedBatch, rows: &[usize]) -> Vec<[u32; 6]> {
        let of_row =
            |(place, &row): (usize, &usize)| self.tile(packed, packed.segment_of(row), place, row, 1);
        rows.iter().enumerate().map(of_row).collect()
    }
}

impl Batch<'_> {
    fn places(&self, which: &Which) -> Places {
        match which {
            Which::Run(rows) => Places { list: None, start: rows.start },
            Which::Listed { list, places } => {
                Places { list: Some(self.lists[*list].clone()), start: places.start }
            }
        }
    }

    /// How many rows of a matrix they are, with those behind them that nobody reads.
    fn rows(&self, which: &Which) -> usize {
        match which {
            Which::Run(rows) if *rows == (0..self.inputs.packed.num_rows()) => self.rows,
            Which::Listed { list, places } if *places == (0..self.inputs.lists[*list].len()) => {
                self.lists[*list].len()
            }
            which => which.len(),
        }
    }
}

impl Ops for Cuda {
    type Rows = Rows;
    type Linear = Linear;
    type Gated = Linear;
    type Joined = Joined;
    type Vector = Matrix;
    type Table = Matrix;
    type Batch<'a> = Batch<'a>;
    type Remembered<'a> = Remembered<'a>;
    type ByDistance = ByDistance;
    type Moment = Moment;

    fn name(&self) -> String {
        format!("cuda:{} {:?}", self.device.card().index, self.format)
    }

    fn format(&self, precision: Precision) -> Format {
        match precision {
            Precision::Working => self.format,
            Precision::F32 => Format::F32,
        }
    }

    /// The card converts while more is on its way.
    fn takes(&self, stored: Format, format: Format) -> Format {
        match (stored, format) {
            (Format::F64, _) | (_, Format::F64 | Format::F32) => format,
            _ => stored,
        }
    }

    fn load_linear(&self, source: LinearSource<'_>, precision: Precision) -> Result<Linear> {
        self.load(&[source], source.bias.is_some(), precision)
    }

    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Linear> {
        self.load(&[gate, up], gate.bias.is_some(), Precision::Working)
    }

    fn load_joined(&self, sources: &[LinearSource<'_>]) -> Result<Joined> {
        let mut ends = vec![0];
        ends.extend(sources.iter().scan(0, |end, source| {
            *end += source.output;
            Some(*end)
        }));
        // one has a bias: for the others it is zero
        let has_bias = sources.iter().any(|source| source.bias.is_some());
        Ok(Joined { layer: self.load(sources, has_bias, Precision::Working)?, ends })
    }

    fn load_vector(&self, _: &[String], mut values: Vec<f32>, offset: f32) -> Result<Matrix> {
        values.iter_mut().for_each(|value| *value += offset);
        self.vector(values, Number::F32)
    }

    fn constant(&self, values: Vec<f32>) -> Result<Matrix> {
        self.vector(values, Number::F32)
    }

    fn load_table(&self, _: &str, values: Values, rows: usize, width: usize) -> Result<Matrix> {
        self.upload(&values, rows, width, self.working())
    }

    fn reserve(&self, rows: usize, forward: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let device = Arc::new(self.device.rehearsal());
        let ops = Self { rehearses: true, ..Self::new(device.clone(), self.format) };
        forward(&ops)?;
        for OnCard { of, .. } in ops.angles().drain(..).filter(|angles| Arc::strong_count(&angles.of) > 1) {
            self.on_card(&of)?;
        }
        Ok(self.device.reserve(&device.needs(), rows)?)
    }

    fn batch<'a>(&self, inputs: &'a Inputs<'a>) -> Result<Batch<'a>> {
        let uploaded = self.device.upload_batch(self.sections(inputs), inputs.packed.num_rows())?;
        self.batch_of(inputs, uploaded)
    }

    /// The host lays the batch out, and the card fetches it, while the one before is computed.
    fn prepare(&self, inputs: &Inputs<'_>) -> Result<Option<Ahead>> {
        let staged = self.device.stage(self.sections(inputs))?;
        Ok(staged.map(|staged| Box::new(staged) as Ahead))
    }

    fn prepared_batch<'a>(&self, inputs: &'a Inputs<'a>, ahead: Ahead) -> Result<Batch<'a>> {
        match ahead.downcast::<Staged>() {
            Ok(staged) => {
                let uploaded = self.device.unstage_batch(&staged, inputs.packed.num_rows())?;
                self.batch_of(inputs, uploaded)
            }
            Err(_) => self.batch(inputs),
        }
    }

    fn moment(&self) -> Result<Moment> {
        Ok(self.device.moment()?)
    }

    fn between(&self, from: &Moment, to: &Moment) -> Result<Duration> {
        Ok(from.until(to))
    }

    fn rows_beside(&self, width: usize) -> usize {
        BUSY_TILES * 128 * 128 * self.device.card().multiprocessors as usize / width.max(1)
    }

    fn before_branches(&self, x: &Rows) -> Result<()> {
        if let X::Normed(normed) = &x.x {
            normed.rounded(self)?;
            normed.wide(self)?;
        }
        Ok(())
    }

    fn branch<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        self.device.branch(f)?
    }

    fn join(&self) -> Result<bool> {
        Ok(self.device.join()?)
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.device.run(f)
    }

    fn blocks(&self, rows: usize) -> Vec<Range<usize>> {
        std::iter::once(0..rows).collect()
    }

    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>> {
        blocks.into_iter().map(f).collect()
    }

    fn embed(
        &self,
        tables: &[(&Matrix, usize)],
        scale: Option<f64>,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Rows> {
        let tables: Vec<_> = tables.iter().map(|&(table, ids)| (table, &batch.ids[ids])).collect();
        let scale = scale.map(|scale| self.format.round(scale) as f32);
        let x = self.device.embed(&tables, scale, &batch.places(which), batch.rows(which))?;
        Ok(self.here(x, which.len()))
    }

    fn rows_of(&self, table: &Matrix, rows: Range<usize>) -> Result<Rows> {
        let len = rows.len();
        Ok(self.here(self.device.rows_of(table, rows)?, len))
    }

    fn operand<'a>(&self, x: Cow<'a, Rows>) -> Result<Cow<'a, Rows>> {
        Ok(Cow::Owned(self.here(self.rounded(&x)?, x.len)))
    }

    fn linear(&self, x: &Rows, layer: &Linear) -> Result<Rows> {
        Ok(self.here(self.product(x, layer)?, x.len))
    }

    fn joined(&self, x: &Rows, layers: &Joined, which: Range<usize>) -> Result<Vec<Rows>> {
        let Joined { layer, ends } = layers;
        let first = ends[which.start];
        let (x, len) = (self.rounded(x)?, x.len);
        let weight = layer.weight.some_rows(first..ends[which.end]);
        let bias = layer.bias.as_ref().map(|[_, same]| same.columns(first..ends[which.end]));
        let y = self.device.matrix(x.rows(), weight.rows(), self.working())?;
        self.device.linear(&x, &weight, bias.as_ref(), &y, false)?;
        let of = |place: usize| self.here(y.columns(ends[place] - first..ends[place + 1] - first), len);
        Ok(which.map(of).collect())
    }

    fn linear_add(&self, x: &Rows, layer: &Linear, residual: Rows) -> Result<Rows> {
        let len = residual.len;
        let sum = self.owned_wide(residual)?;
        if layer.precision == Precision::F32 {
            self.device.add(&sum, &self.product(x, layer)?)?;
        } else {
            let bias = layer.bias.as_ref().map(|[wide, _]| wide);
            self.device.linear(&self.rounded(x)?, &layer.weight, bias, &sum, true)?;
        }
        Ok(self.here(sum, len))
    }

    fn linear_act(&self, x: &Rows, layer: &Linear, activation: Activation) -> Result<Rows> {
        let y = self.product(x, layer)?;
        self.device.activate(&y, function(activation))?;
        Ok(self.here(y, x.len))
    }

    fn gated(&self, x: &Rows, layer: &Linear, activation: Activation) -> Result<Rows> {
        let gate_up = self.product(x, layer)?;
        Ok(self.here(self.device.gate(&gate_up, function(activation))?, x.len))
    }

    fn add(&self, x: Rows, y: &Rows) -> Result<Rows> {
        let (len, sum) = (x.len, self.owned_wide(x)?);
        self.device.add(&sum, &self.either(y)?)?;
        Ok(self.here(sum, len))
    }

    fn rms_norm(&self, x: &Rows, weight: &Matrix, eps: f64) -> Result<Rows> {
        self.norm(x, NormOf::Rms { weight: weight.clone() }, eps)
    }

    fn layer_norm(&self, x: &Rows, weight: &Matrix, bias: &Matrix, eps: f64) -> Result<Rows> {
        self.norm(x, NormOf::Layer { weight: weight.clone(), bias: bias.clone() }, eps)
    }

    fn scale(&self, x: Rows, factors: &Matrix) -> Result<Rows> {
        let (len, scaled) = (x.len, self.either(&x)?);
        drop(x);
        let scaled = self.mine(scaled)?;
        self.device.scale(&scaled, factors)?;
        Ok(self.here(scaled, len))
    }

    fn rotary(
        &self,
        x: Rows,
        head_dim: usize,
        rope: usize,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Rows> {
        let len = x.len;
        let (rope, places) = (&batch.ropes[rope], batch.places(which));
        if let X::Normed(normed) = &x.x
            && let NormOf::Rms { weight } = &normed.norm
            && weight.width() == head_dim
        {
            let (weight, eps) = (weight.clone(), normed.eps);
            let of = normed.made().of.clone();
            if let Some(of) = of.filter(|of| of.number() == self.working()) {
                drop(x);
                let turned = self.mine(of)?;
                self.device.rotary(&turned, head_dim, rope, &places, Some((&weight, eps)))?;
                return Ok(self.here(turned, len));
            }
        }
        let turned = self.either(&x)?;
        drop(x);
        let turned = self.mine(turned)?;
        self.device.rotary(&turned, head_dim, rope, &places, None)?;
        Ok(self.here(turned, len))
    }

    fn weights_stay(&self) -> bool {
        !self.rehearses
    }

    fn products_by_distance(
        &self,
        keys: Option<Rows>,
        queries: Option<Rows>,
        _: &AttentionSpec,
    ) -> Result<ByDistance> {
        let keep = |table: Option<Rows>| {
            table.map(|table| Ok::<_, OpsError>(self.device.keep(&self.rounded(&table)?)?)).transpose()
        };
        Ok(ByDistance::Products { keys: keep(keys)?, queries: keep(queries)? })
    }

    fn biases_by_distance(&self, table: Rows) -> Result<ByDistance> {
        Ok(ByDistance::Biases(self.device.keep(&self.wide(&table)?)?))
    }

    fn remember<'a>(
        &self,
        keys: Vec<Rows>,
        values: Vec<Rows>,
        by_distance: Option<&'a ByDistance>,
        batch: &'a Batch<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Remembered<'a>> {
        if spec.value_dim != spec.head_dim {
            return Err(OpsError::Unsupported("values that are not as wide as keys, in this form"));
        }
        let (key, value) = (self.rounded(whole(&keys)?)?, self.rounded(whole(&values)?)?);
        Ok(Remembered { key, value, by_distance, batch, spec })
    }

    fn attend(&self, queries: &Rows, which: &Which, to: &Remembered<'_>) -> Result<Rows> {
        let (batch, spec) = (to.batch, to.spec);
        let tiles = match which {
            Which::Run(rows) if *rows == (0..batch.inputs.packed.num_rows()) => &batch.tiles[0],
            Which::Listed { list, places } if *places == (0..batch.inputs.lists[*list].len()) => {
                &batch.tiles[1 + list]
            }
            _ => {
                return Err(OpsError::Unsupported(
                    "attention of some of the rows, of which this form takes all",
                ));
            }
        };
        let query = self.rounded(queries)?;
        let out = self.device.matrix(query.rows(), query.width(), self.working())?;
        let most = match (&spec.distance, to.by_distance) {
            (Distance::Buckets(buckets), Some(_)) => {
                let of_head = to.key.rows().max(query.rows()) * buckets.rows() * 4;
                (MAX_BY_DISTANCE / of_head.max(1)).clamp(1, spec.heads)
            }
            _ => spec.heads,
        };
        // how many there are at once is part of a product's shape: few are possible, and those of fewer rows are
        // reserved for too
        let is_possible = |heads: &usize| spec.heads.is_multiple_of(*heads);
        let at_once = (1..=most).rev().find(is_possible).unwrap_or(1);
        if self.rehearses {
            let (query, key) = (query.some_rows(0..1), to.key.some_rows(0..1));
            for more in (at_once + 1..=spec.heads).filter(is_possible) {
                self.distances(to, &query, &key, &(0..more))?;
            }
        }
        for heads in (0..spec.heads).step_by(at_once).map(|first| first..first + at_once) {
            let attention = calls::Attention {
                group: spec.heads / spec.kv_heads,
                head_dim: spec.head_dim,
                scale: spec.scale as f32,
                causal: spec.causal,
                window: spec.window,
                softcap: spec.softcap.map(|cap| cap as f32),
                distances: self.distances(to, &query, &to.key, &heads)?,
            };
            self.device.attend([&query, &to.key, &to.value], &out, tiles, heads, &attention)?;
        }
        Ok(self.here(out, queries.len))
    }

    fn convolve(
        &self,
        blocks: &[Rows],
        which: &Which,
        layer: &Convolution<Self>,
        batch: &Batch<'_>,
    ) -> Result<Rows> {
        let x = self.rounded(whole(blocks)?)?;
        let columns = x.width() / layer.groups.len();
        let (places, rows) = (batch.places(which), batch.rows(which));
        let out = self.device.matrix(rows, x.width(), self.working())?;
        for (group, linear) in layer.groups.iter().enumerate() {
            let columns = group * columns..(group + 1) * columns;
            let around =
                self.device.neighbours(&x, columns.clone(), layer.kernel, &batch.bounds, &places, rows)?;
            let bias = linear.bias.as_ref().map(|[_, same]| same);
            let made = self.device.matrix(rows, columns.len(), self.working())?;
            self.device.linear(&around, &linear.weight, bias, &made, false)?;
            self.device.activate(&made, function(layer.activation))?;
            self.device.convert_into(&made, &out.columns(columns))?;
        }
        Ok(self.here(out, which.len()))
    }

    fn gather(&self, blocks: &[Rows], list: usize, batch: &Batch<'_>) -> Result<Vec<Rows>> {
        let rows = &batch.lists[list];
        let picked = self.device.gather(&self.either(whole(blocks)?)?, rows, rows.len())?;
        Ok(vec![self.here(picked, batch.inputs.lists[list].len())])
    }

    fn pick(&self, _: &[Rows], _: &[usize]) -> Result<Rows> {
        Err(OpsError::Unsupported("experts on a card"))
    }

    fn combine(&self, _: &[Rows], _: &[Term], _: usize) -> Result<Rows> {
        Err(OpsError::Unsupported("experts on a card"))
    }

    fn mean(&self, blocks: &[Rows], batch: &Batch<'_>) -> Result<Vec<Rows>> {
        let x = self.either(whole(blocks)?)?;
        let means = self.device.mean(&x, &batch.first_run, &batch.runs, batch.sequences)?;
        Ok(vec![self.here(means, batch.inputs.packed.len())])
    }

    fn read(&self, results: &[Vec<Rows>]) -> Result<Vec<Vec<f32>>> {
        self.read_after(results, || ())
    }

    fn read_after(&self, results: &[Vec<Rows>], meanwhile: impl FnOnce()) -> Result<Vec<Vec<f32>>> {
        let read = |blocks: &Vec<Rows>| {
            let x = whole(blocks)?;
            Ok((self.either(x)?, x.len))
        };
        let results = results.iter().map(read).collect::<Result<Vec<_>>>()?;
        let results: Vec<(&Matrix, usize)> = results.iter().map(|(matrix, rows)| (matrix, *rows)).collect();
        Ok(self.device.read_after(&results, meanwhile)?)
    }
}

#[cfg(test)]
mod tests;
