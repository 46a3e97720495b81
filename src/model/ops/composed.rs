//! The reference forms: plain candle operations, differentiable, on every device.

use candle_core::D;
use candle_core::DType;
use candle_core::Result;
use candle_core::Tensor;

use super::AttentionSpec;
use super::MaskShape;
use super::Packing;

/// At most this many scores at a time, 64 MiB of `f32`: a sequence of any length fits into memory, and one of
/// usual length is a single block.
const MAX_SCORES: usize = 1 << 24;

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)?.to_dtype(x.dtype())
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centered = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)?
        .to_dtype(x.dtype())
}

pub(super) fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?); // [tokens, 1, head_dim / 2]
    Tensor::cat(
        &[
            (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
            (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
        ],
        D::Minus1,
    )
}

pub(super) fn softmax(scores: &Tensor) -> Result<Tensor> {
    let exps = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)
}

pub(super) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    packing: &Packing<'_>,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(packing.offsets.len());
    for ends in packing.offsets.windows(2) {
        let (start, seq) = (ends[0], ends[1] - ends[0]);
        let heads_first = |x: &Tensor| x.narrow(0, start, seq)?.transpose(0, 1)?.contiguous();
        let (query, key, value) = (heads_first(query)?, heads_first(key)?, heads_first(value)?); // [heads, seq, head_dim]
        outputs.push(attend(&query, &key, &value, packing, spec, MAX_SCORES)?.transpose(0, 1)?);
    }
    Tensor::cat(&outputs, 0)
}

/// Attention of one sequence, in blocks of queries with at most `max_scores` scores (or one query):
/// `[heads, seq, head_dim]`, keys and values with `kv_heads`.
fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    packing: &Packing<'_>,
    spec: &AttentionSpec,
    max_scores: usize,
) -> Result<Tensor> {
    let (heads, seq, head_dim) = query.dims3()?;
    let kv_heads = key.dim(0)?;
    let group = heads / kv_heads;
    let block = (max_scores / (heads * seq)).clamp(1, seq);
    let mut outputs = Vec::with_capacity(seq.div_ceil(block));
    for first_query in (0..seq).step_by(block) {
        let queries = block.min(seq - first_query);
        let first_key = match spec.window {
            Some(window) if spec.causal => (first_query + 1).saturating_sub(window),
            _ => 0,
        };
        let end_key = if spec.causal { first_query + queries } else { seq };
        let keys = end_key - first_key;

        // the query heads that share a key head go into one product, so no key is repeated
        let block_query =
            query.narrow(1, first_query, queries)?.reshape((kv_heads, group * queries, head_dim))?;
        let block_key = key.narrow(1, first_key, keys)?.transpose(1, 2)?;
        let mut scores = (block_query.matmul(&block_key)?.to_dtype(DType::F32)? * spec.scale)?; // [kv_heads, group · queries, keys]
        if let Some(cap) = spec.softcap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if spec.causal && keys > 1 {
            let shape = MaskShape { queries, keys, lead: first_query - first_key, window: spec.window };
            let mask = packing.mask(shape, &scores)?;
            scores = scores.reshape((kv_heads, group, queries, keys))?.broadcast_add(&mask)?;
            scores = scores.reshape((kv_heads, group * queries, keys))?;
        }
        let weights = super::softmax(&scores)?.to_dtype(value.dtype())?;
        let output = weights.matmul(&value.narrow(1, first_key, keys)?.contiguous()?)?; // [kv_heads, group · queries, head_dim]
        outputs.push(output.reshape((heads, queries, head_dim))?);
    }
    if outputs.len() == 1 { Ok(outputs.swap_remove(0)) } else { Tensor::cat(&outputs, 1) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    /// Row-major `[seq, heads, head_dim]`.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let draw = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..count).map(draw).collect()
    }

    /// Attention as the textbook has it, in `f64`, one query at a time: `[seq, heads, head_dim]`.
    fn textbook(
        [query, key, value]: [&[f32]; 3],
        (seq, heads, kv_heads, head_dim): (usize, usize, usize, usize),
        spec: &AttentionSpec,
    ) -> Vec<f32> {
        let at = |x: &[f32], heads: usize, i: usize, head: usize, d: usize| {
            f64::from(x[(i * heads + head) * head_dim + d])
        };
        let mut output = Vec::with_capacity(seq * heads * head_dim);
        for i in 0..seq {
            for head in 0..heads {
                let kv = head * kv_heads / heads;
                let sees =
                    |&j: &usize| !spec.causal || (j <= i && spec.window.is_none_or(|window| i - j < window));
                let keys: Vec<usize> = (0..seq).filter(sees).collect();
                let score = |&j: &usize| {
                    let dot: f64 = (0..head_dim)
                        .map(|d| at(query, heads, i, head, d) * at(key, kv_heads, j, kv, d))
                        .sum();
                    let score = dot * spec.scale;
                    spec.softcap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
                };
                let weights: Vec<f64> = keys.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                output.extend((0..head_dim).map(|d| {
                    let sum: f64 =
                        keys.iter().zip(&weights).map(|(&j, w)| w * at(value, kv_heads, j, kv, d)).sum();
                    (sum / total) as f32
                }));
            }
        }
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_is_the_textbooks_in_blocks_of_any_size(
            seq in 1usize..24, kv_heads in 1usize..3, group in 1usize..4, causal: bool,
            window in prop::option::of(1usize..12), softcap in prop::option::of(0.5f64..4.0),
            max_scores in 1usize..2000, seed: u64,
        ) {
            let (heads, head_dim) = (kv_heads * group, 4);
            let spec = AttentionSpec { causal, window: window.filter(|_| causal), scale: 0.4, softcap };
            let [query, key, value] =
                [(heads, seed), (kv_heads, seed ^ 1), (kv_heads, seed ^ 2)].map(|(n, seed)| numbers(seq * n * head_dim, seed));
            let expected = textbook([&query, &key, &value], (seq, heads, kv_heads, head_dim), &spec);
            let heads_first = |x: &[f32], heads: usize| {
                Tensor::new(x, &Device::Cpu).unwrap().reshape((seq, heads, head_dim)).unwrap()
                    .transpose(0, 1).unwrap().contiguous().unwrap()
            };
            let offsets = [0, seq];
            let packing = Packing::new(&offsets);
            let (q, k, v) = (heads_first(&query, heads), heads_first(&key, kv_heads), heads_first(&value, kv_heads));
            let output = attend(&q, &k, &v, &packing, &spec, max_scores).unwrap();
            let output: Vec<f32> = output.transpose(0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (ours, textbook) in output.iter().zip(&expected) {
                prop_assert!((ours - textbook).abs() < 1e-5, "{} {}", ours, textbook);
            }
        }
    }
}
