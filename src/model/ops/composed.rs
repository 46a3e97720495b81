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
        outputs.push(attend(&query, &key, &value, packing, spec)?.transpose(0, 1)?);
    }
    Tensor::cat(&outputs, 0)
}

/// Attention of one sequence, in blocks of queries: `[heads, seq, head_dim]`, keys and values with `kv_heads`.
fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    packing: &Packing<'_>,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    let (heads, seq, head_dim) = query.dims3()?;
    let kv_heads = key.dim(0)?;
    let group = heads / kv_heads;
    let block = (MAX_SCORES / (heads * seq)).clamp(1, seq);
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
