//! Attention as the textbook has it, in `f64`, one query at a time; and packed batches to hold every form to it.

pub(super) mod delta;

use std::ops::Range;

use half::bf16;
use proptest::prelude::*;

use super::AttentionSpec;
use super::Buckets;
use super::Distance;
use super::Ops;
use super::Precision;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Sequence;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::ops::source::Source;
use crate::values::Values;

/// Numbers in -2..2, the same for a seed everywhere.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..count).map(draw).collect()
}

pub(super) fn specs() -> impl Strategy<Value = AttentionSpec> {
    let heads = (1usize..3, 1usize..4, prop::sample::select(vec![2usize, 4, 16]), widths(vec![1, 5, 33]));
    let scores = (prop::option::of(1usize..12), distances(), prop::option::of(0.5f64..4.0));
    (heads, any::<bool>(), scores).prop_map(
        |((kv_heads, group, head_dim, value_dim), causal, (window, distance, softcap))| {
            let (heads, value_dim, scale) = (kv_heads * group, value_dim.unwrap_or(head_dim), 0.4);
            let distance = distance.of(heads);
            AttentionSpec { heads, kv_heads, head_dim, value_dim, causal, window, scale, distance, softcap }
        },
    )
}

/// Of values: as wide as keys, or one of these.
fn widths(others: Vec<usize>) -> impl Strategy<Value = Option<usize>> {
    prop::option::of(prop::sample::select(others))
}

/// Kinds of [`Distance`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Ignored,
    Slopes,
    /// Of a slope that bfloat16 has not, and one that it has.
    RoundedSlopes,
    /// Each distance has a row, up to three and then all the same.
    Clipped,
    /// Far distances share rows.
    Shared,
    /// A number for each, up to six and then all the same; of both directions others.
    Biases,
}

fn distances() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Ignored,
        Kind::Slopes,
        Kind::Clipped,
        Kind::Shared,
        Kind::Biases,
        Kind::RoundedSlopes,
    ])
}

impl Kind {
    pub(super) fn of(self, heads: usize) -> Distance {
        match self {
            Self::Ignored => Distance::Ignored,
            Self::Slopes => Distance::Slopes((1..=heads).map(|head| 0.6_f32.powi(head as i32)).collect()),
            Self::RoundedSlopes => {
                Distance::RoundedSlopes((0..heads).map(|head| 0.707 * 0.5_f32.powi(head as i32)).collect())
            }
            Self::Clipped => {
                Distance::Buckets(Buckets::new(6, 3, |distance| (distance + 3).clamp(0, 5) as usize))
            }
            Self::Biases => Distance::Biases(Buckets::new(14, 7, |distance| {
                if distance < 0 { 7 + (-distance).min(6) as usize } else { distance.min(6) as usize }
            })),
            Self::Shared => Distance::Buckets(Buckets::new(150, 1000, |distance| {
                let far = distance.abs();
                let bucket = if far <= 40 { far } else { 40 + (far - 40).isqrt() };
                (75 + bucket * distance.signum()) as usize
            })),
        }
    }
}

/// Tables of keys, `[buckets, kv_heads, head_dim]`, and of queries, `[buckets, heads, head_dim]`; or one of biases,
/// `[buckets, heads]`.
pub(super) type Tables = [Option<Vec<f32>>; 2];

/// Both, or one of them, where distances take rows of tables.
pub(super) fn tables(spec: &AttentionSpec, seed: u64) -> Option<Tables> {
    let buckets = match &spec.distance {
        Distance::Buckets(buckets) => buckets,
        Distance::Biases(buckets) => {
            return Some([Some(numbers(buckets.rows() * spec.heads, seed ^ 7)), None]);
        }
        Distance::Ignored | Distance::Slopes(_) | Distance::RoundedSlopes(_) => return None,
    };
    let table = |heads: usize, which: u64| {
        (seed % 3 != which).then(|| numbers(buckets.rows() * heads * spec.head_dim, seed ^ (4 + which)))
    };
    Some([table(spec.kv_heads, 1), table(spec.heads, 2)])
}

/// In a form.
pub(super) fn by_distance<O: Ops>(
    ops: &O,
    tables: Option<&Tables>,
    spec: &AttentionSpec,
) -> Option<O::ByDistance> {
    if let (Distance::Biases(buckets), Some([Some(table), _])) = (&spec.distance, tables) {
        let table = rows(ops, table, spec.heads, 0..buckets.rows());
        return Some(ops.biases_by_distance(table).unwrap());
    }
    let widths = [spec.kv_heads, spec.heads].map(|heads| heads * spec.head_dim);
    let table = |which: usize, tables: &Tables| {
        tables[which].as_ref().map(|table| rows(ops, table, widths[which], 0..table.len() / widths[which]))
    };
    tables.map(|tables| ops.products_by_distance(table(0, tables), table(1, tables), spec).unwrap())
}

/// Of one sequence. `query` is row-major `[seq, heads, head_dim]`, keys are `[seq, kv_heads, head_dim]` and values `[seq, kv_heads,
/// value_dim]`.
pub(super) fn attention(
    [query, key, value]: [&[f32]; 3],
    tables: Option<&Tables>,
    spec: &AttentionSpec,
) -> Vec<f32> {
    let queries = query.chunks_exact(spec.heads * spec.head_dim).enumerate();
    queries.flat_map(|(i, query)| attention_of(i, [query, key, value], tables, spec)).collect()
}

/// The same of the query at one position: `[heads, value_dim]`.
fn attention_of(
    i: usize,
    [query, key, value]: [&[f32]; 3],
    tables: Option<&Tables>,
    spec: &AttentionSpec,
) -> Vec<f32> {
    let &AttentionSpec { heads, kv_heads, head_dim, value_dim, .. } = spec;
    let seq = key.len() / (kv_heads * head_dim);
    let at = |x: &[f32], j: usize, kv: usize, d: usize| f64::from(x[(j * kv_heads + kv) * head_dim + d]);
    let sees =
        |&j: &usize| (!spec.causal || j <= i) && spec.window.is_none_or(|window| i.abs_diff(j) < window);
    let keys: Vec<usize> = (0..seq).filter(sees).collect();
    let mut output = Vec::with_capacity(heads * value_dim);
    for head in 0..heads {
        let kv = head * kv_heads / heads;
        let query = &query[head * head_dim..][..head_dim];
        let score = |&j: &usize| {
            let mut dot: f64 = (0..head_dim).map(|d| f64::from(query[d]) * at(key, j, kv, d)).sum();
            if let (Distance::Buckets(buckets), Some([keys, queries])) = (&spec.distance, tables) {
                let row = buckets.row(i as isize - j as isize);
                let of_keys = |d: usize| keys.as_ref().map_or(0.0, |table| at(table, row, kv, d));
                let of_query = |d: usize| f64::from(query[d]) * of_keys(d);
                let wide = |table: &Vec<f32>, d: usize| f64::from(table[(row * heads + head) * head_dim + d]);
                let of_queries = |d: usize| queries.as_ref().map_or(0.0, |table| wide(table, d));
                dot += (0..head_dim).map(|d| of_query(d) + at(key, j, kv, d) * of_queries(d)).sum::<f64>();
            }
            if let Distance::RoundedSlopes(slopes) = &spec.distance {
                let of = |position: usize| {
                    let product =
                        bf16::from_f32(slopes[head]).to_f64() * bf16::from_f64(position as f64).to_f64();
                    bf16::from_f64(product).to_f64()
                };
                dot += of(j) - of(i);
            }
            let mut score = dot * spec.scale;
            if let (Distance::Biases(buckets), Some([Some(table), _])) = (&spec.distance, tables) {
                score += f64::from(table[buckets.row(i as isize - j as isize) * heads + head]);
            }
            if let Distance::Slopes(slopes) = &spec.distance {
                score += f64::from(slopes[head]) * (j as f64 - i as f64);
            }
            spec.softcap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        output.extend((0..value_dim).map(|d| {
            let at = |j: usize| f64::from(value[(j * kv_heads + kv) * value_dim + d]);
            let sum: f64 = keys.iter().zip(&weights).map(|(&j, w)| w * at(j)).sum();
            (sum / total) as f32
        }));
    }
    output
}

/// A batch, with common prefixes where a causal model may share them, and the rows that ask.
#[derive(Clone, Debug)]
pub(super) struct Case {
    spec: AttentionSpec,
    sequences: Vec<Sequence>,
    /// All rows, or these modulo their number.
    asking: Option<Vec<usize>>,
    /// Of the rows that ask, one of so many is looked at.
    every: usize,
    seed: u64,
}

fn sequence(token_ids: Vec<u32>) -> Sequence {
    Sequence { type_ids: vec![0; token_ids.len()], token_ids }
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let pieces: [&[u32]; 5] = [&[1], &[2, 2], &[1, 2, 3], &[4; 9], &[5; 20]];
    let sequences = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..6)
        .prop_map(|pieces| sequence(pieces.concat()));
    let asking = prop::option::of(prop::collection::vec(0usize..1000, 1..8));
    (specs(), prop::collection::vec(sequences, 1..8), asking, any::<u64>())
        .prop_map(|(spec, sequences, asking, seed)| Case { spec, sequences, asking, every: 1, seed })
}

/// Sequences of 400 to 1500 tokens with a common beginning, narrow and wide heads, windows of any size.
pub(super) fn long_cases() -> impl Strategy<Value = Case> {
    let head_dim = prop::sample::select(vec![1usize, 3, 16, 33, 48, 80]);
    let heads = (1usize..3, 1usize..4, (head_dim, widths(vec![1, 20, 64, 70])), any::<bool>());
    let window = prop::option::of(prop::sample::select(vec![1usize, 31, 200, 512, 700]));
    let window = (window, distances());
    let lengths = (0usize..1100, prop::collection::vec(1usize..200, 1..4), 300usize..1000);
    (heads, window, prop::option::of(0.5f64..4.0), lengths, any::<u64>()).prop_map(
        |((kv_heads, group, dims, causal), (window, distance), softcap, (common, ends, alone), seed)| {
            let (head_dim, value_dim) = (dims.0, dims.1.unwrap_or(dims.0));
            let ends = ends.iter().zip(1..).map(|(&end, token)| [vec![0; common], vec![token; end]].concat());
            let sequences = ends.chain([vec![9; alone]]).map(sequence).collect();
            let (heads, scale) = (kv_heads * group, 0.4);
            let distance = distance.of(heads);
            let spec = AttentionSpec {
                heads,
                kv_heads,
                head_dim,
                value_dim,
                causal,
                window,
                scale,
                distance,
                softcap,
            };
            Case { spec, sequences, asking: None, every: 331, seed }
        },
    )
}

impl Case {
    /// For forms whose values are as wide as keys.
    pub(super) fn with_equal_widths(self) -> Self {
        Self { spec: AttentionSpec { value_dim: self.spec.head_dim, ..self.spec }, ..self }
    }

    fn batch(&self) -> PackedBatch {
        match self.spec.causal {
            true => PackedBatch::pack_shared(&self.sequences, 1),
            false => PackedBatch::pack(&self.sequences),
        }
    }

    /// Query, key and value of all rows, rounded.
    fn projections(&self, rows: usize, round: fn(f32) -> f32) -> [Vec<f32>; 3] {
        let seeds = [self.seed, self.seed ^ 1, self.seed ^ 2];
        std::array::from_fn(|i| numbers(rows * self.widths()[i], seeds[i]).into_iter().map(round).collect())
    }

    fn tables(&self, round: fn(f32) -> f32) -> Option<Tables> {
        let rounded = |table: Vec<f32>| table.into_iter().map(round).collect();
        tables(&self.spec, self.seed).map(|tables| tables.map(|table| table.map(rounded)))
    }

    fn widths(&self) -> [usize; 3] {
        let AttentionSpec { heads, kv_heads, head_dim, value_dim, .. } = self.spec;
        [heads * head_dim, kv_heads * head_dim, kv_heads * value_dim]
    }

    fn asking(&self, rows: usize) -> Vec<usize> {
        match &self.asking {
            None => (0..rows).collect(),
            Some(asking) => asking.iter().map(|row| row % rows).collect(),
        }
    }

    /// What the textbook says of the rows that are looked at, when projections are rounded first.
    pub(super) fn expected(&self, round: fn(f32) -> f32) -> Vec<Vec<f32>> {
        let batch = self.batch();
        let [q, k, v] = self.projections(batch.num_rows(), round);
        let tables = self.tables(round);
        let [wide, of_keys, of_values] = self.widths();
        let of_row = |&row: &usize| {
            let path: Vec<usize> = batch.path(batch.segment_of(row)).into_iter().flatten().collect();
            let position =
                path.iter().position(|&other| other == row).expect("a path ends with its own rows");
            let along = |x: &[f32], width: usize| -> Vec<f32> {
                path.iter().flat_map(|row| &x[row * width..][..width]).copied().collect()
            };
            let (k, v) = (along(&k, of_keys), along(&v, of_values));
            attention_of(position, [&q[row * wide..][..wide], &k, &v], tables.as_ref(), &self.spec)
        };
        self.asking(batch.num_rows()).iter().step_by(self.every).map(of_row).collect()
    }

    /// How far a row may be off because its scores are large: one of `slope · distance` is rounded by so much as a product, and again
    /// as a sum, and that is a factor on what its key weighs.
    fn rounding(&self) -> f32 {
        let (Distance::Slopes(slopes) | Distance::RoundedSlopes(slopes)) = &self.spec.distance else {
            return 0.0;
        };
        let steepest = slopes.iter().fold(0.0_f32, |most, slope| most.max(slope.abs()));
        let longest = self.sequences.iter().map(|sequence| sequence.token_ids.len()).max().unwrap_or(0);
        f32::EPSILON * steepest * longest as f32
    }

    /// Whether a form's attention is what is expected, within `tolerance`, and what large scores are rounded by.
    pub(super) fn check<O: Ops>(
        &self,
        ops: &O,
        expected: &[Vec<f32>],
        tolerance: f32,
    ) -> Result<(), TestCaseError> {
        let batch = self.batch();
        let (rows, widths) = (batch.num_rows(), self.widths());
        let qkv = self.projections(rows, |x| x);
        let [q, k, v] = std::array::from_fn(|i| blocks(ops, &qkv[i], widths[i]));
        let asking = self.asking(rows);
        let inputs = Inputs { lists: vec![asking.clone()], ..Inputs::of(&batch) };
        let batch = ops.batch(&inputs).unwrap();
        let by_distance = by_distance(ops, self.tables(|x| x).as_ref(), &self.spec);
        let memory = ops.remember(k, v, by_distance.as_ref(), &batch, &self.spec).unwrap();
        let attended = match &self.asking {
            None => attend(ops, &q, &Which::Run(0..rows), &memory),
            Some(_) => attend(ops, &ops.gather(&q, 0, &batch).unwrap(), &inputs.listed(0), &memory),
        };
        let width = self.spec.heads * self.spec.value_dim;
        let attended = read(ops, &attended, width);
        prop_assert_eq!(attended.len(), asking.len() * width);
        prop_assert_eq!(expected.len(), asking.len().div_ceil(self.every));
        for (place, expected) in (0..asking.len()).step_by(self.every).zip(expected) {
            for (ours, expected) in attended[place * width..][..width].iter().zip(expected) {
                let is_close = (ours - expected).abs() < tolerance + self.rounding();
                prop_assert!(is_close, "{}, row {}: {ours}, not {expected}", ops.name(), asking[place]);
            }
        }
        Ok(())
    }
}

/// Attention of all blocks.
pub(super) fn attend<O: Ops>(
    ops: &O,
    queries: &[O::Rows],
    which: &Which,
    memory: &O::Remembered<'_>,
) -> Vec<O::Rows> {
    let blocks = queries.iter().zip(ops.blocks(which.len()));
    blocks.map(|(queries, places)| ops.attend(queries, &which.part(places), memory).unwrap()).collect()
}

/// Values as rows in blocks: those of a table.
fn blocks<O: Ops>(ops: &O, values: &[f32], width: usize) -> Vec<O::Rows> {
    ops.blocks(values.len() / width).into_iter().map(|block| rows(ops, values, width, block)).collect()
}

/// Some of them in one block.
fn rows<O: Ops>(ops: &O, values: &[f32], width: usize, block: Range<usize>) -> O::Rows {
    let table = ops.load_table("table", Values::F32(values.to_vec()), values.len() / width, width).unwrap();
    ops.rows_of(&table, block).unwrap()
}

/// What may be rounded already for the next product: so the identity's product reads it.
fn read<O: Ops>(ops: &O, blocks: &[O::Rows], width: usize) -> Vec<f32> {
    let ones: Vec<f32> = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let weight = Values::rounded(ops.format(Precision::Working), &ones);
    let weight = Source { name: "identity", values: &weight, rows: RowMap::all(width) };
    let source = LinearSource { weight, bias: None, output: width, input: width };
    let identity = ops.load_linear(source, Precision::Working).unwrap();
    let read: Vec<O::Rows> = blocks.iter().map(|block| ops.linear(block, &identity).unwrap()).collect();
    ops.read(&[read]).unwrap().concat()
}
