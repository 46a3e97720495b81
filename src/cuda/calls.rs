//! One function for each kernel, with its shapes checked: what may not be asked for ends the thread here, not the card.

use std::ops::Range;

use crate::device::Device;
use crate::driver::Address;
use crate::driver::Argument;
use crate::driver::Argument::F32;
use crate::driver::Argument::U32;
use crate::driver::Number;
use crate::driver::Result;
use crate::driver::Shape;
use crate::matrix::Integers;
use crate::matrix::Matrix;
use crate::modules::ATTEND_THREADS;
use crate::modules::THREADS;
use crate::modules::WARP_RUN;

/// Queries of a tile of attention.
pub const TILE: usize = 64;
/// Integers of a tile's description.
pub const TILE_FIELDS: usize = 6;

/// The name of a kernel for a number.
macro_rules! named {
    ($name:literal, $number:expr) => {
        match $number {
            Number::F32 => concat!($name, "_f"),
            Number::Bf16 => concat!($name, "_b"),
            Number::F16 => concat!($name, "_h"),
        }
    };
}

/// The same from one number to another. Of two kinds of halves only conversion has one.
macro_rules! named_from {
    ($name:literal, $from:expr, $to:expr) => {
        match ($from, $to) {
            (Number::F32, Number::F32) => concat!($name, "_ff"),
            (Number::F32, Number::Bf16) => concat!($name, "_fb"),
            (Number::F32, Number::F16) => concat!($name, "_fh"),
            (Number::Bf16, Number::Bf16) => concat!($name, "_bb"),
            (Number::F16, Number::F16) => concat!($name, "_hh"),
            (Number::Bf16, Number::F32) => concat!($name, "_bf"),
            (Number::F16, Number::F32) => concat!($name, "_hf"),
            (from, to) => panic!("nobody makes {to:?} of {from:?}"),
        }
    };
}

/// Functions after a layer, in their kernels' numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Function {
    /// With the error function.
    GeluErf = 0,
    /// With tanh.
    GeluTanh = 1,
    /// `x · sigmoid(x)`
    Silu = 2,
    /// `max(x, 0)`
    Relu = 3,
    /// `max(x, 0)²`
    ReluSquared = 4,
    /// Hyperbolic tangent.
    Tanh = 5,
}

/// What norms do beside dividing.
#[derive(Clone, Debug)]
pub enum NormOf {
    /// `x / rms(x) · weight`
    Rms {
        /// `f32`, as wide as a run.
        weight: Matrix,
    },
    /// `(x - mean) / std · weight + bias`
    Layer {
        /// The same.
        weight: Matrix,
        /// The same.
        bias: Matrix,
    },
}

impl NormOf {
    /// Columns of a run.
    pub fn run(&self) -> usize {
        let (Self::Rms { weight } | Self::Layer { weight, .. }) = self;
        weight.width()
    }
}

/// Which rows of a batch the rows of a matrix are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Those of a list; else one after the other.
    pub list: Option<Integers>,
    /// The first, or the first one's place in the list.
    pub start: usize,
}

/// Cosines and sines of a rotary position embedding, `[positions, pairs]`, and which of them rows have.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `f32`
    pub cos: Integers,
    /// `f32`
    pub sin: Integers,
    /// Of each row of the batch, its row of both.
    pub of_rows: Integers,
    /// Of a head.
    pub pairs: usize,
}

/// What scores have for distances.
#[derive(Clone, Debug)]
pub enum Distances {
    /// Nothing.
    Ignored,
    /// Products with rows of tables: of the queries `[places, heads, buckets]`, of the keys `[rows, heads, buckets]`.
    Buckets {
        /// Row of the tables for each distance from `-reach` on.
        of_distance: Matrix,
        /// Rows of the tables.
        buckets: usize,
        /// `f32`, if there is a table for queries.
        of_queries: Option<Matrix>,
        /// `f32`, if there is one for keys.
        of_keys: Option<Matrix>,
    },
    /// See the kernel.
    RoundedSlopes(Matrix),
    /// A table `[buckets, heads]`.
    Biases {
        /// As above.
        of_distance: Matrix,
        /// `f32`
        table: Matrix,
    },
    /// One for each head.
    Slopes(Matrix),
}

/// What attention does.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads of each key head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on scores.
    pub scale: f32,
    /// Only what is before a query, and itself.
    pub causal: bool,
    /// Only what is fewer than so many positions away.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)`
    pub softcap: Option<f32>,
    /// Beside products.
    pub distances: Distances,
}

/// Where queries and keys are.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// [`TILE_FIELDS`] each: place, queries, position, first run, runs, end.
    pub tiles: Integers,
    /// Two each: position, row.
    pub runs: Integers,
}

fn at(matrix: Option<&Matrix>) -> Argument {
    Argument::Address(matrix.map_or(Address::NULL, Matrix::at))
}

fn list(integers: Option<&Integers>) -> Argument {
    Argument::Address(integers.map_or(Address::NULL, |integers| integers.at))
}

fn number(count: usize) -> Argument {
    U32(u32::try_from(count).expect("less than 2^32"))
}

impl Device {
    /// Sums of rows of tables, one of each, that the ids beside it name; times `scale`: `f32`, `rows` rows.
    pub fn embed(
        &self,
        tables: &[(&Matrix, &Integers)],
        scale: Option<f32>,
        places: &Places,
        rows: usize,
    ) -> Result<Matrix> {
        assert!(matches!(tables.len(), 1..=4), "one to four tables");
        let (first, _) = tables[0];
        let x = self.matrix(rows, first.width(), Number::F32)?;
        let alike = |table: &Matrix| (table.width(), table.stride(), table.number());
        assert!(tables.iter().all(|(table, _)| alike(table) == alike(first)), "tables of one kind");
        let mut arguments = vec![at(Some(&x)), number(x.stride()), number(x.width())];
        arguments.extend((0..4).map(|index| at(tables.get(index).map(|(table, _)| *table))));
        arguments.push(number(first.stride()));
        arguments.extend((0..4).map(|index| list(tables.get(index).map(|(_, ids)| *ids))));
        arguments.extend([list(places.list.as_ref()), number(places.start)]);
        arguments.extend([F32(scale.unwrap_or(1.0)), U32(u32::from(scale.is_some()))]);
        self.launch(named!("embed", first.number()), [rows, 1, 1], THREADS, &arguments)?;
        Ok(x)
    }

    /// Some rows of a table in `f32`.
    pub fn rows_of(&self, table: &Matrix, rows: Range<usize>) -> Result<Matrix> {
        assert!(rows.end <= table.rows());
        let x = self.matrix(rows.len(), table.width(), Number::F32)?;
        let arguments = [
            at(Some(&x)),
            number(x.stride()),
            number(x.width()),
            at(Some(table)),
            number(table.stride()),
            number(rows.start),
        ];
        self.launch(named!("rows_of", table.number()), [rows.len(), 1, 1], THREADS, &arguments)?;
        Ok(x)
    }

    /// Norms each run of columns: in `f32` if `wide`, and rounded to `rounded`.
    pub fn norm(
        &self,
        x: &Matrix,
        norm: &NormOf,
        eps: f32,
        wide: bool,
        rounded: Option<Number>,
    ) -> Result<(Option<Matrix>, Option<Matrix>)> {
        let (rows, width, run) = (x.rows(), x.width(), norm.run());
        assert_eq!(width % run, 0, "runs of {run} columns in {width}");
        let runs = width / run;
        let to = |number: Number| self.matrix(rows, width, number);
        let wide = wide.then(|| to(Number::F32)).transpose()?;
        let rounded = rounded.map(to).transpose()?;
        let out = rounded.as_ref().map_or(x.number(), Matrix::number);
        let mut arguments = vec![at(Some(x)), number(x.stride()), number(rows), number(runs), number(run)];
        let (kernel, weights) = match norm {
            NormOf::Rms { weight } => (named_from!("rms_norm", x.number(), out), vec![at(Some(weight))]),
            NormOf::Layer { weight, bias } => {
                (named_from!("layer_norm", x.number(), out), vec![at(Some(weight)), at(Some(bias))])
            }
        };
        arguments.extend(weights);
        arguments.extend([
            F32(eps),
            at(wide.as_ref()),
            number(wide.as_ref().map_or(0, Matrix::stride)),
            at(rounded.as_ref()),
            number(rounded.as_ref().map_or(0, Matrix::stride)),
        ]);
        let blocks = if run <= WARP_RUN { (rows * runs).div_ceil(8) } else { rows * runs };
        self.launch(kernel, [blocks, 1, 1], THREADS, &arguments)?;
        Ok((wide, rounded))
    }

    /// Turns pairs of each head in place, after an RMS norm of each head if there is one.
    pub fn rotary(
        &self,
        x: &Matrix,
        head_dim: usize,
        rope: &Rope,
        places: &Places,
        norm: Option<(&Matrix, f32)>,
    ) -> Result<()> {
        let (rows, heads) = (x.rows(), x.width() / head_dim);
        assert!(2 * rope.pairs <= head_dim && heads * head_dim == x.width());
        let mut arguments = vec![
            at(Some(x)),
            number(x.stride()),
            number(rows),
            number(heads),
            number(head_dim),
            list(Some(&rope.cos)),
            list(Some(&rope.sin)),
            number(rope.pairs),
            list(Some(&rope.of_rows)),
            list(places.list.as_ref()),
            number(places.start),
        ];
        let kernel = match norm {
            Some((weight, eps)) => {
                assert_eq!(weight.width(), head_dim);
                arguments.extend([at(Some(weight)), F32(eps)]);
                named!("norm_rotary", x.number())
            }
            None => named!("rotary", x.number()),
        };
        // A thread has eight pairs; with a norm 8 or 16 threads have a head.
        let threads = match (norm.is_some(), rope.pairs.div_ceil(8)) {
            (false, eights) => eights,
            (true, ..=8) => 8,
            (true, _) => 16,
        };
        let blocks = (rows * heads * threads).div_ceil(THREADS as usize);
        self.launch(kernel, [blocks, 1, 1], THREADS, &arguments)
    }

    /// A function of each number, in place.
    pub fn activate(&self, x: &Matrix, function: Function) -> Result<()> {
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            at(Some(x)),
            number(x.stride()),
            number(x.rows()),
            number(x.width()),
            U32(function as u32),
        ];
        self.launch(named!("activate", x.number()), row_blocks(x.rows(), x.width()), THREADS, &arguments)
    }

    /// `function(gate) · up` of rows that are a gate and an up one after the other.
    pub fn gate(&self, x: &Matrix, function: Function) -> Result<Matrix> {
        let (rows, width) = (x.rows(), x.width() / 2);
        let out = self.matrix(rows, width, x.number())?;
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            at(Some(&out)),
            number(out.stride()),
            number(rows),
            number(width),
            U32(function as u32),
        ];
        self.launch(named!("gate", x.number()), row_blocks(rows, width), THREADS, &arguments)?;
        Ok(out)
    }

    /// Adds `y` to `x`, which is `f32`.
    pub fn add(&self, x: &Matrix, y: &Matrix) -> Result<()> {
        assert_eq!((x.rows(), x.width(), x.number()), (y.rows(), y.width(), Number::F32));
        let (rows, width) = (x.rows(), x.width());
        let arguments =
            [at(Some(x)), number(x.stride()), at(Some(y)), number(y.stride()), number(rows), number(width)];
        self.launch(named!("add", y.number()), row_blocks(rows, width), THREADS, &arguments)
    }

    /// Multiplies each column with its factor, in place.
    pub fn scale(&self, x: &Matrix, factors: &Matrix) -> Result<()> {
        assert_eq!(x.width(), factors.width());
        let (rows, width) = (x.rows(), x.width());
        let arguments = [at(Some(x)), number(x.stride()), at(Some(factors)), number(rows), number(width)];
        self.launch(named!("scale", x.number()), row_blocks(rows, width), THREADS, &arguments)
    }

    /// The same numbers in another format, or elsewhere.
    pub fn convert(&self, x: &Matrix, to: Number) -> Result<Matrix> {
        let out = self.matrix(x.rows(), x.width(), to)?;
        self.convert_into(x, &out)?;
        Ok(out)
    }

    /// The same, to a matrix that is there.
    pub fn convert_into(&self, x: &Matrix, out: &Matrix) -> Result<()> {
        assert_eq!((x.rows(), x.width()), (out.rows(), out.width()));
        let (kernel, grid, arguments) = conversion(x, out);
        self.launch(kernel, grid, THREADS, &arguments)
    }

    /// The first rows of a matrix, one after the other at a place of a row of `f32`.
    pub(crate) fn convert_at(&self, x: &Matrix, rows: usize, out: &Matrix, place: usize) -> Result<()> {
        let width = x.width();
        assert!(rows <= x.rows() && place + rows * width <= out.width());
        let to = Argument::Address(out.at().after(4 * place));
        let arguments = [at(Some(x)), number(x.stride()), to, number(width), number(rows), number(width)];
        let kernel = named_from!("convert", x.number(), Number::F32);
        self.launch(kernel, row_blocks(rows, width), THREADS, &arguments)
    }

    /// Rows of a list.
    pub fn gather(&self, x: &Matrix, rows: &Integers, count: usize) -> Result<Matrix> {
        assert!(count <= rows.len());
        let out = self.matrix(count, x.width(), x.number())?;
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            list(Some(rows)),
            at(Some(&out)),
            number(out.stride()),
            number(count),
            number(x.width()),
        ];
        self.launch(named!("gather", x.number()), row_blocks(count, x.width()), THREADS, &arguments)?;
        Ok(out)
    }

    /// Means of runs of rows in `f32`: of each sequence those from `first_run` to the next one's.
    pub fn mean(
        &self,
        x: &Matrix,
        first_run: &Integers,
        runs: &Integers,
        sequences: usize,
    ) -> Result<Matrix> {
        assert!(sequences < first_run.len());
        let out = self.matrix(sequences, x.width(), Number::F32)?;
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            list(Some(first_run)),
            list(Some(runs)),
            at(Some(&out)),
            number(out.stride()),
            number(sequences),
            number(x.width()),
        ];
        let grid = [sequences, x.width().div_ceil(THREADS as usize), 1];
        self.launch(named!("mean", x.number()), grid, THREADS, &arguments)?;
        Ok(out)
    }

    /// Of some columns, for each row their numbers at `kernel` rows around it, in its own segment: `[rows, columns ·
    /// kernel]`. `bounds` has the first row and the end of each row's segment.
    pub fn neighbours(
        &self,
        x: &Matrix,
        columns: Range<usize>,
        kernel: usize,
        bounds: &Integers,
        places: &Places,
        rows: usize,
    ) -> Result<Matrix> {
        assert!(columns.end <= x.width());
        let out = self.matrix(rows, columns.len() * kernel, x.number())?;
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            number(columns.start),
            number(columns.len()),
            number(kernel),
            list(Some(bounds)),
            list(places.list.as_ref()),
            number(places.start),
            at(Some(&out)),
            number(out.stride()),
            number(rows),
        ];
        self.launch(named!("neighbours", x.number()), [rows, 1, 1], THREADS, &arguments)?;
        Ok(out)
    }

    /// `function(x · weightᵀ + bias)` in true `f32`, for few outputs: heads.
    pub fn head(
        &self,
        x: &Matrix,
        weight: &Matrix,
        bias: Option<&Matrix>,
        function: Option<Function>,
    ) -> Result<Matrix> {
        let y = self.matrix(x.rows(), weight.rows(), Number::F32)?;
        self.head_into(x, weight, bias, function, &y)?;
        Ok(y)
    }

    /// The same, to a matrix that is there.
    pub fn head_into(
        &self,
        x: &Matrix,
        weight: &Matrix,
        bias: Option<&Matrix>,
        function: Option<Function>,
        y: &Matrix,
    ) -> Result<()> {
        assert_eq!((x.width(), x.number(), weight.number()), (weight.width(), Number::F32, Number::F32));
        assert_eq!((y.rows(), y.width(), y.number()), (x.rows(), weight.rows(), Number::F32));
        let (rows, outputs) = (x.rows(), weight.rows());
        let arguments = [
            at(Some(x)),
            number(x.stride()),
            at(Some(weight)),
            number(weight.stride()),
            at(bias),
            at(Some(y)),
            number(y.stride()),
            number(rows),
            number(x.width()),
            number(outputs),
            U32(function.map_or(255, |function| function as u32)),
        ];
        // A warp has one output of four rows.
        let blocks = (rows.div_ceil(4) * outputs).div_ceil(8);
        self.launch("product_f", [blocks, 1, 1], THREADS, &arguments)
    }

    /// `x · weightᵀ + bias`, to `y` or added to what it holds; a bias has `y`'s numbers.
    pub fn linear(
        &self,
        x: &Matrix,
        weight: &Matrix,
        bias: Option<&Matrix>,
        y: &Matrix,
        accumulates: bool,
    ) -> Result<()> {
        assert_eq!((x.width(), x.number()), (weight.width(), weight.number()));
        assert_eq!((y.rows(), y.width()), (x.rows(), weight.rows()));
        assert!(bias.is_none_or(|bias| bias.width() == y.width() && bias.number() == y.number()));
        let shape = Shape {
            outputs: weight.rows(),
            inputs: x.width(),
            x_stride: x.stride(),
            weight_stride: weight.stride(),
            y_stride: y.stride(),
            number: x.number(),
            output: y.number(),
            has_bias: bias.is_some(),
            accumulates,
        };
        let bias = bias.map_or(Address::NULL, Matrix::at);
        self.multiply(shape, x.rows(), [x.at(), weight.at(), bias, y.at()])
    }

    /// Attention of the queries of all tiles to keys and values, for some of the heads: those columns of `out`.
    pub fn attend(
        &self,
        [query, key, value]: [&Matrix; 3],
        out: &Matrix,
        tiles: &Tiles,
        heads: Range<usize>,
        attention: &Attention,
    ) -> Result<()> {
        let Attention { group, head_dim, scale, causal, window, softcap, distances } = attention;
        let numbers = [query, key, value, out].map(Matrix::number);
        assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
        assert!(heads.end * head_dim <= query.width() && query.width() == out.width());
        assert_eq!(key.width() * group, query.width());
        assert_eq!(value.width(), key.width());
        let count = tiles.tiles.len() / TILE_FIELDS;
        let is_plain = matches!(distances, Distances::Ignored) && softcap.is_none();
        let kernel = attention_kernel(query.number(), *head_dim, is_plain);
        let none = || (at(None), at(None), 0, 0, at(None), at(None), at(None));
        let reach = |of_distance: &Matrix| of_distance.width() / 2;
        let (mode, (slopes, of_distance, reach, buckets, biases, of_queries, of_keys)) = match distances {
            Distances::Ignored => (0, none()),
            Distances::Buckets { of_distance, buckets, of_queries, of_keys } => {
                let tables = (at(of_queries.as_ref()), at(of_keys.as_ref()));
                (
                    1,
                    (
                        at(None),
                        at(Some(of_distance)),
                        reach(of_distance),
                        *buckets,
                        at(None),
                        tables.0,
                        tables.1,
                    ),
                )
            }
            Distances::RoundedSlopes(slopes) => {
                (2, (at(Some(slopes)), at(None), 0, 0, at(None), at(None), at(None)))
            }
            Distances::Biases { of_distance, table } => {
                let biases = at(Some(table));
                (
                    3,
                    (
                        at(None),
                        at(Some(of_distance)),
                        reach(of_distance),
                        table.stride(),
                        biases,
                        at(None),
                        at(None),
                    ),
                )
            }
            Distances::Slopes(slopes) => {
                (4, (at(Some(slopes)), at(None), 0, 0, at(None), at(None), at(None)))
            }
        };
        let arguments = [
            at(Some(query)),
            number(query.stride()),
            at(Some(key)),
            number(key.stride()),
            at(Some(value)),
            number(value.stride()),
            at(Some(out)),
            number(out.stride()),
            list(Some(&tiles.tiles)),
            list(Some(&tiles.runs)),
            number(*group),
            number(*head_dim),
            F32(*scale),
            U32(u32::from(*causal)),
            number(window.unwrap_or(0)),
            F32(softcap.unwrap_or(0.0)),
            number(heads.start),
            U32(mode),
            slopes,
            of_distance,
            number(reach),
            number(buckets),
            biases,
            of_queries,
            of_keys,
        ];
        self.launch(kernel, [count, heads.len(), 1], ATTEND_THREADS, &arguments)
    }
}

/// The kernel, with its grid and arguments, that makes of one matrix another of that size.
pub(crate) fn conversion(x: &Matrix, out: &Matrix) -> (&'static str, [usize; 3], [Argument; 6]) {
    let (rows, width) = (x.rows(), x.width());
    let arguments =
        [at(Some(x)), number(x.stride()), at(Some(out)), number(out.stride()), number(rows), number(width)];
    let kernel = match (x.number(), out.number()) {
        (Number::Bf16, Number::F16) => "convert_bh",
        (Number::F16, Number::Bf16) => "convert_hb",
        (from, to) => named_from!("convert", from, to),
    };
    (kernel, row_blocks(rows, width), arguments)
}

/// Blocks for work on the numbers of rows, of which a thread has eight.
fn row_blocks(rows: usize, width: usize) -> [usize; 3] {
    [(rows * width.div_ceil(8)).div_ceil(THREADS as usize), 1, 1]
}

fn attention_kernel(number: Number, head_dim: usize, is_plain: bool) -> &'static str {
    /// By number and head size, plain and with extras.
    macro_rules! sized {
        ($($size:literal)*) => {
            match (number, head_dim, is_plain) {
                $(
                    (Number::Bf16, ..=$size, true) => concat!("attend_b_", $size),
                    (Number::Bf16, ..=$size, false) => concat!("attend_b_", $size, "x"),
                    (Number::F16, ..=$size, true) => concat!("attend_h_", $size),
                    (Number::F16, ..=$size, false) => concat!("attend_h_", $size, "x"),
                )*
                _ => named!("attend", number),
            }
        };
    }
    if !head_dim.is_multiple_of(8) || number == Number::F32 {
        return named!("attend", number);
    }
    sized!(32 64 96 128 160 192 256)
}
