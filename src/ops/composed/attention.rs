//! Attention over packed segments, with what its layers can share.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use candle_core::DType;
use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;

use super::ByDistance;
use super::Remembered;
use super::softmax;
use crate::ops::AttentionSpec;
use crate::ops::Buckets;
use crate::ops::Distance;
use crate::ops::batch::PackedBatch;
use crate::ops::inputs::Angles;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::rounded_slope;

/// At most this many scores at a time, 64 MiB of `f32`: a sequence of any length fits into memory, and one of
/// usual length is a single block.
const MAX_SCORES: usize = 1 << 24;

/// A batch on its device, and the masks that its layers can share.
#[derive(Debug)]
pub struct Batch<'a> {
    inputs: &'a Inputs<'a>,
    /// For each table of an embedding, `[rows]`.
    ids: Vec<Tensor>,
    /// Cosines and sines of each rope, `[rows, pairs]`.
    ropes: Vec<(Tensor, Tensor)>,
    /// Of rows.
    lists: Vec<Tensor>,
    masks: Mutex<HashMap<MaskShape, Tensor>>,
}

/// Rows are queries, columns are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MaskShape {
    queries: usize,
    keys: usize,
    /// The key that is the first query's own.
    lead: usize,
    causal: bool,
    window: Option<usize>,
}

impl<'a> Batch<'a> {
    /// Ropes are of `dtype`.
    pub(super) fn new(inputs: &'a Inputs<'a>, device: &Device, dtype: DType) -> Result<Self> {
        let rope = |angles: &Angles| {
            let (rows, pairs) = (inputs.packed.num_rows(), angles.table.pairs);
            let (mut cos, mut sin) = (Vec::with_capacity(rows * pairs), Vec::with_capacity(rows * pairs));
            for (of_cos, of_sin) in (0..rows).map(|row| angles.of_row(row)) {
                cos.extend_from_slice(of_cos);
                sin.extend_from_slice(of_sin);
            }
            let tensor = |values| Tensor::from_vec(values, (rows, pairs), device)?.to_dtype(dtype);
            Ok((tensor(cos)?, tensor(sin)?))
        };
        let list =
            |rows: &Vec<usize>| Tensor::new(rows.iter().map(|&row| row as u32).collect::<Vec<_>>(), device);
        Ok(Self {
            inputs,
            ids: inputs.ids.iter().map(|ids| Tensor::new(&**ids, device)).collect::<Result<_>>()?,
            ropes: inputs.ropes.iter().map(rope).collect::<Result<_>>()?,
            lists: inputs.lists.iter().map(list).collect::<Result<_>>()?,
            masks: Mutex::default(),
        })
    }

    /// What it was made of.
    pub fn inputs(&self) -> &'a Inputs<'a> {
        self.inputs
    }

    /// The rows of a list.
    pub(super) fn list(&self, list: usize) -> &Tensor {
        &self.lists[list]
    }

    /// The ids that these rows have in one of the tables.
    pub(super) fn ids(&self, table: usize, which: &Which) -> Result<Tensor> {
        self.of_rows(&self.ids[table], which)
    }

    /// Cosines and sines of these rows in one of the ropes.
    pub(in crate::ops) fn angles(&self, rope: usize, which: &Which) -> Result<(Tensor, Tensor)> {
        let (cos, sin) = &self.ropes[rope];
        Ok((self.of_rows(cos, which)?, self.of_rows(sin, which)?))
    }

    fn of_rows(&self, x: &Tensor, which: &Which) -> Result<Tensor> {
        match which {
            Which::Run(rows) => x.narrow(0, rows.start, rows.len()),
            Which::Listed { list, places } => {
                x.index_select(&self.lists[*list].narrow(0, places.start, places.len())?, 0)
            }
        }
    }

    /// `[queries, keys]` in `f32`: zero where a query sees a key, else minus infinity.
    fn mask(&self, shape: MaskShape, spec: &AttentionSpec, like: &Tensor) -> Result<Tensor> {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = masks.get(&shape) {
            return Ok(mask.clone());
        }
        let MaskShape { queries, keys, lead, .. } = shape;
        let mut mask = vec![f32::NEG_INFINITY; queries * keys];
        for (query, mask) in mask.chunks_exact_mut(keys).enumerate() {
            mask[spec.seen(lead + query, keys)].fill(0.0);
        }
        let mask = Tensor::from_vec(mask, (queries, keys), like.device())?;
        masks.insert(shape, mask.clone());
        Ok(mask)
    }
}

/// `query` is `[queries, heads, head_dim]`, of the rows that `which` says. Returns `[queries, heads, value_dim]`.
pub(super) fn attention(query: &Tensor, which: &Which, to: &Remembered<'_>) -> Result<Tensor> {
    let batch = to.batch.inputs.packed;
    // (segment, its first query's place in `query`, in the segment, how many)
    let runs: Vec<(usize, usize, usize, usize)> = match which {
        Which::Run(rows) if *rows == (0..batch.num_rows()) => {
            let segments = batch.segments().iter().enumerate();
            segments.map(|(index, segment)| (index, segment.rows.start, 0, segment.rows.len())).collect()
        }
        which => {
            let rows = to.batch.inputs.rows(which).enumerate();
            rows.map(|(place, row)| one(batch, place, row)).collect()
        }
    };
    let mut outputs = Vec::with_capacity(runs.len());
    for (segment, place, first, queries) in runs {
        let heads_first = |x: &Tensor| x.transpose(0, 1)?.contiguous(); // [heads, rows, head_dim]
        let query = heads_first(&query.narrow(0, place, queries)?)?;
        let [key, value] = [&to.key, &to.value].map(|x| heads_first(&along(x, batch, segment)?));
        let lead = batch.segments()[segment].first_position + first;
        outputs.push(attend([&query, &key?, &value?], lead, to, MAX_SCORES)?.transpose(0, 1)?);
    }
    Tensor::cat(&outputs, 0)
}

fn one(batch: &PackedBatch, place: usize, row: usize) -> (usize, usize, usize, usize) {
    let segment = batch.segment_of(row);
    (segment, place, row - batch.segments()[segment].rows.start, 1)
}

/// The rows of a segment, after those of its ancestors.
fn along(x: &Tensor, batch: &PackedBatch, segment: usize) -> Result<Tensor> {
    let runs = batch.path(segment);
    let runs: Vec<Tensor> =
        runs.iter().map(|rows| x.narrow(0, rows.start, rows.len())).collect::<Result<_>>()?;
    if let [alone] = runs.as_slice() { Ok(alone.clone()) } else { Tensor::cat(&runs, 0) }
}

/// Attention of one segment, in blocks of queries with at most `max_scores` scores (or one query):
/// `[heads, queries, value_dim]`; keys and values have `kv_heads`. `lead` is the key that is the first query's own.
fn attend(
    [query, key, value]: [&Tensor; 3],
    lead: usize,
    to: &Remembered<'_>,
    max_scores: usize,
) -> Result<Tensor> {
    let (batch, spec) = (to.batch, to.spec);
    let (heads, all_queries, head_dim) = query.dims3()?;
    let (kv_heads, all_keys, _) = key.dims3()?;
    let group = heads / kv_heads;
    let block = (max_scores / (heads * all_keys)).clamp(1, all_queries);
    let mut outputs = Vec::with_capacity(all_queries.div_ceil(block));
    for first in (0..all_queries).step_by(block) {
        let queries = block.min(all_queries - first);
        let own_key = lead + first;
        let first_key = spec.seen(own_key, all_keys).start;
        let keys = spec.seen(own_key + queries - 1, all_keys).end - first_key;
        let own_key = own_key - first_key;

        // the query heads that share a key head go into one product, so no key is repeated
        let block_query = query.narrow(1, first, queries)?.reshape((kv_heads, group * queries, head_dim))?;
        let block_key = key.narrow(1, first_key, keys)?.transpose(1, 2)?;
        let mut scores = block_query.matmul(&block_key)?.to_dtype(DType::F32)?; // [kv_heads, group · queries, keys]
        if let (
            Distance::Buckets(buckets),
            Some(ByDistance::Products { keys: of_keys, queries: of_queries }),
        ) = (&spec.distance, to.by_distance)
        {
            let rows = rows_of_tables(buckets, own_key, [queries, keys], &scores)?;
            let tables = [of_keys.as_ref(), of_queries.as_ref()];
            scores = (scores + products_by_distance(tables, &block_query, &block_key, &rows)?)?;
        }
        if let Distance::RoundedSlopes(slopes) = &spec.distance {
            let bias = rounded_slopes(slopes, first_key, own_key, [queries, keys], &scores)?;
            scores = (scores + bias.reshape((kv_heads, group * queries, keys))?)?;
        }
        scores = (scores * spec.scale)?;
        if let (Distance::Biases(buckets), Some(ByDistance::Biases(table))) = (&spec.distance, to.by_distance)
        {
            let rows = rows_of_tables(buckets, own_key, [queries, keys], &scores)?;
            let bias = table.index_select(&rows.flatten_all()?, 0)?.to_dtype(DType::F32)?; // [queries · keys, heads]
            scores = (scores + bias.t()?.reshape((kv_heads, group * queries, keys))?)?;
        }
        if let Distance::Slopes(slopes) = &spec.distance {
            let bias = slopes_times_distance(slopes, own_key, [queries, keys], &scores)?;
            scores = (scores + bias.reshape((kv_heads, group * queries, keys))?)?;
        }
        if let Some(cap) = spec.softcap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if (spec.causal || spec.window.is_some()) && queries > 1 {
            let AttentionSpec { causal, window, .. } = *spec;
            let mask =
                batch.mask(MaskShape { queries, keys, lead: own_key, causal, window }, spec, &scores)?;
            scores = scores.reshape((kv_heads, group, queries, keys))?.broadcast_add(&mask)?;
            scores = scores.reshape((kv_heads, group * queries, keys))?;
        }
        if let Some(sinks) = to.sinks {
            let sinks = sinks.reshape((kv_heads, group, 1, 1))?;
            let sinks = sinks.broadcast_as((kv_heads, group, queries, 1))?.to_dtype(DType::F32)?;
            scores = Tensor::cat(&[scores, sinks.reshape((kv_heads, group * queries, 1))?], 2)?;
        }
        let weights = softmax(&scores)?.narrow(2, 0, keys)?.contiguous()?.to_dtype(value.dtype())?;
        let output = weights.matmul(&value.narrow(1, first_key, keys)?.contiguous()?)?; // [kv_heads, group · queries, value_dim]
        outputs.push(output.reshape((heads, queries, spec.value_dim))?);
    }
    if outputs.len() == 1 { Ok(outputs.swap_remove(0)) } else { Tensor::cat(&outputs, 1) }
}

/// `[queries, keys]`; `own_key` is the first query's own.
fn rows_of_tables(
    buckets: &Buckets,
    own_key: usize,
    [queries, keys]: [usize; 2],
    like: &Tensor,
) -> Result<Tensor> {
    let row = |query: usize, key: usize| buckets.row((own_key + query) as isize - key as isize) as u32;
    let rows: Vec<u32> = (0..queries).flat_map(|query| (0..keys).map(move |key| row(query, key))).collect();
    Tensor::from_vec(rows, (queries, keys), like.device())
}

/// What the scores have for distances: `[kv_heads, group · queries, keys]`, of tables of keys and of queries, queries
/// `[kv_heads, group · queries, head_dim]` and keys `[kv_heads, head_dim, keys]`, and the row for each pair of them.
fn products_by_distance(
    [of_keys, of_queries]: [Option<&Tensor>; 2],
    query: &Tensor,
    key: &Tensor,
    rows: &Tensor,
) -> Result<Tensor> {
    let (kv_heads, all, _) = query.dims3()?;
    let (queries, keys) = rows.dims2()?;
    let group = all / queries;
    let rows = rows.unsqueeze(0)?;
    let mut scores = Vec::with_capacity(2);
    if let Some(table) = of_keys {
        let products = query.matmul(&table.permute((1, 2, 0))?.contiguous()?)?; // [kv_heads, group · queries, buckets]
        let rows = rows.repeat((kv_heads, group, 1))?;
        scores.push(products.gather(&rows, 2)?);
    }
    if let Some(table) = of_queries {
        let (buckets, heads, head_dim) = table.dims3()?;
        let by_head = table.transpose(0, 1)?.reshape((kv_heads, group * buckets, head_dim))?;
        let products = by_head.matmul(&key.contiguous()?)?.reshape((heads, buckets, keys))?;
        let taken = products.gather(&rows.repeat((heads, 1, 1))?, 1)?; // [heads, queries, keys]
        scores.push(taken.reshape((kv_heads, all, keys))?);
    }
    Tensor::stack(&scores, 0)?.to_dtype(DType::F32)?.sum(0)
}

/// `[heads, queries, keys]`; `own_key` is the first query's own.
fn slopes_times_distance(
    slopes: &[f32],
    own_key: usize,
    [queries, keys]: [usize; 2],
    like: &Tensor,
) -> Result<Tensor> {
    let of_query = |query: usize| (0..keys).map(move |key| key as f32 - (own_key + query) as f32);
    let distances: Vec<f32> = (0..queries).flat_map(of_query).collect();
    let distances = Tensor::from_vec(distances, (1, queries, keys), like.device())?;
    Tensor::new(slopes, like.device())?.reshape((slopes.len(), 1, 1))?.broadcast_mul(&distances)
}

/// The same of [`Distance::RoundedSlopes`], where the first key is at position `first_key`.
fn rounded_slopes(
    slopes: &[f32],
    first_key: usize,
    own_key: usize,
    [queries, keys]: [usize; 2],
    like: &Tensor,
) -> Result<Tensor> {
    let of_head = |&slope: &f32| (first_key..first_key + keys).map(move |key| rounded_slope(slope, key));
    let of_keys: Vec<f32> = slopes.iter().flat_map(of_head).collect();
    let of_keys = Tensor::from_vec(of_keys, (slopes.len(), 1, keys), like.device())?;
    let of_queries = of_keys.narrow(2, own_key, queries)?.reshape((slopes.len(), queries, 1))?;
    of_keys.broadcast_sub(&of_queries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::composed::Composed;
    use crate::ops::textbook;
    use crate::ops::textbook::numbers;
    use crate::values::Format;

    const OPS: Composed = Composed { device: Device::Cpu, format: Format::F32 };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_is_the_textbooks_in_blocks_of_any_size(
            seq in 1usize..24, spec in textbook::specs(), max_scores in 1usize..2000, seed: u64,
        ) {
            let AttentionSpec { heads, kv_heads, head_dim, value_dim, .. } = spec;
            let [query, key, value] = [(heads * head_dim, seed), (kv_heads * head_dim, seed ^ 1), (kv_heads * value_dim, seed ^ 2)]
                .map(|(width, seed)| numbers(seq * width, seed));
            let tables = textbook::tables(&spec, seed);
            let expected = textbook::attention([&query, &key, &value], tables.as_ref(), &spec);
            let heads_first = |x: &[f32], heads: usize| {
                Tensor::new(x, &Device::Cpu).unwrap().reshape((seq, heads, ())).unwrap()
                    .transpose(0, 1).unwrap().contiguous().unwrap()
            };
            let batch = PackedBatch::pack(&[]);
            let inputs = Inputs::of(&batch);
            let batch = Batch::new(&inputs, &Device::Cpu, DType::F32).unwrap();
            let (q, k, v) = (heads_first(&query, heads), heads_first(&key, kv_heads), heads_first(&value, kv_heads));
            let by_distance = textbook::by_distance(&OPS, tables.as_ref(), &spec);
            let memory = Remembered {
                key: k.clone(), value: v.clone(), sinks: None,
                by_distance: by_distance.as_ref(), batch: &batch, spec: &spec,
            };
            let output = attend([&q, &k, &v], 0, &memory, max_scores).unwrap();
            let output: Vec<f32> = output.transpose(0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (ours, textbook) in output.iter().zip(&expected) {
                prop_assert!((ours - textbook).abs() < 1e-5, "{} {}", ours, textbook);
            }
        }

        #[test]
        fn packed_attention_is_the_textbooks(case in textbook::cases()) {
            case.check(&OPS, &case.expected(|x| x), 1e-5)?;
        }
    }
}
