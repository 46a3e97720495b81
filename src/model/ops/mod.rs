//! The operations that models are made of, behind one interface.
//!
//! Each has a *composed* form in plain candle operations ([`composed`]): it runs on every device, is
//! differentiable, and is the reference. Where candle has a fused kernel, inference uses that instead.
//! The choice is made here, in one place: a tensor that carries a gradient takes the composed form, since
//! candle's fused kernels (`layer_norm`, `rms_norm`, `softmax_last_dim`, `rope_thd`) have none and drop it
//! in silence. A faster form for a device is one more arm here; the models do not change.
//!
//! Sequences are packed: activations are `[tokens, ..]`, and only [`attention`] knows where they end.

pub mod composed;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::DType;
use candle_core::Result;
use candle_core::Tensor;
use serde::Serialize;

/// A linear layer, laid out for the product.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[in, out]` and contiguous: candle's products with a transposed weight are 3 to 5 times slower at few rows.
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

/// The function between the layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// With the error function.
    GeluErf,
    /// Its approximation with tanh.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
}

/// What a query sees, and how scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Only itself and what is before it.
    pub causal: bool,
    /// Of those, only this many, itself included. Causal only.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
    /// `cap · tanh(score / cap)`
    pub softcap: Option<f64>,
}

/// Where packed sequences end, and what the attention of all layers can share.
#[derive(Debug)]
pub struct Packing<'a> {
    offsets: &'a [usize],
    masks: RefCell<HashMap<MaskShape, Tensor>>,
}

/// Rows are queries `first_query..first_query + queries`, columns are keys `first_key..first_key + keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MaskShape {
    queries: usize,
    keys: usize,
    /// `first_query - first_key`
    lead: usize,
    window: Option<usize>,
}

impl<'a> Packing<'a> {
    /// Sequences that start at `offsets[i]` and end at `offsets[i + 1]`.
    pub fn new(offsets: &'a [usize]) -> Self {
        Self { offsets, masks: RefCell::default() }
    }

    /// `[queries, keys]` in `f32`: zero where a query sees a key, else minus infinity.
    fn mask(&self, shape: MaskShape, like: &Tensor) -> Result<Tensor> {
        if let Some(mask) = self.masks.borrow().get(&shape) {
            return Ok(mask.clone());
        }
        let MaskShape { queries, keys, lead, window } = shape;
        let mut mask = vec![f32::NEG_INFINITY; queries * keys];
        for query in 0..queries {
            let end = (lead + query + 1).min(keys);
            let start = window.map_or(0, |window| (lead + query + 1).saturating_sub(window));
            mask[query * keys + start..query * keys + end].fill(0.0);
        }
        let mask = Tensor::from_vec(mask, (queries, keys), like.device())?;
        self.masks.borrow_mut().insert(shape, mask.clone());
        Ok(mask)
    }
}

/// `x · weight + bias`: `[tokens, in]` → `[tokens, out]`.
pub fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let product = x.matmul(&layer.weight)?;
    match &layer.bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// The activation, elementwise.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
    }
}

/// `x / rms(x) · weight` over the last dimension; statistics in `f32`, `weight` is `f32`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.track_op() || weight.track_op() {
        return composed::rms_norm(x, weight, eps);
    }
    candle_nn::ops::rms_norm(&x.to_dtype(DType::F32)?.contiguous()?, weight, eps as f32)?.to_dtype(x.dtype())
}

/// `(x - mean) / std · weight + bias` over the last dimension; statistics in `f32`, as `weight` and `bias` are.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.track_op() || weight.track_op() {
        return composed::layer_norm(x, weight, bias, eps);
    }
    candle_nn::ops::layer_norm(&x.to_dtype(DType::F32)?.contiguous()?, weight, bias, eps as f32)?
        .to_dtype(x.dtype())
}

/// Turns each pair (`i`, `i + head_dim / 2`) of each head: `[tokens, heads, head_dim]`, with `cos` and `sin`
/// `[tokens, head_dim / 2]`.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        return composed::rotary(x, cos, sin);
    }
    candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?.contiguous()?, cos, sin)?.squeeze(0)
}

/// Attention of each packed sequence to itself.
///
/// `query` is `[tokens, heads, head_dim]`, `key` and `value` are `[tokens, kv_heads, head_dim]`; the result is
/// `[tokens, heads, head_dim]`. Never more scores at a time than a block of one sequence has.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    packing: &Packing<'_>,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    composed::attention(query, key, value, packing, spec)
}

/// Softmax over the last dimension, of `f32` scores.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    if scores.track_op() {
        return composed::softmax(scores);
    }
    candle_nn::ops::softmax_last_dim(scores)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::Var;

    use super::*;

    fn wave(shape: &[usize], step: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * step).sin() * 3.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn the_fused_forms_equal_the_composed_ones() {
        for (tokens, heads, width) in [(1, 1, 2), (3, 2, 6), (17, 5, 34), (64, 4, 128)] {
            let x = wave(&[tokens, heads, width], 0.37);
            let (weight, bias) = (wave(&[width], 0.7), wave(&[width], 1.1));
            let (cos, sin) = (wave(&[tokens, width / 2], 0.2), wave(&[tokens, width / 2], 0.3));
            let (eps, scores) = (1e-6, wave(&[tokens, heads, width], 2.3));
            for (name, fused, composed) in [
                ("rms_norm", rms_norm(&x, &weight, eps), composed::rms_norm(&x, &weight, eps)),
                (
                    "layer_norm",
                    layer_norm(&x, &weight, &bias, eps),
                    composed::layer_norm(&x, &weight, &bias, eps),
                ),
                ("rotary", rotary(&x, &cos, &sin), composed::rotary(&x, &cos, &sin)),
                ("softmax", softmax(&scores), composed::softmax(&scores)),
            ] {
                let difference = largest_difference(&fused.unwrap(), &composed.unwrap());
                assert!(difference < 2e-5, "{name} {tokens}x{heads}x{width}: {difference}");
            }
        }
    }

    /// candle's fused kernels drop gradients in silence: whoever trains must get the composed forms.
    #[test]
    fn every_operation_passes_a_gradient_to_every_input() {
        let var = |shape: &[usize], step: f32| Var::from_tensor(&wave(shape, step)).unwrap();
        let (query, key, value) = (var(&[5, 4, 8], 0.3), var(&[5, 2, 8], 0.5), var(&[5, 2, 8], 0.7));
        let (weight, bias) = (var(&[8], 0.9), var(&[8], 1.1));
        let (cos, sin) = (wave(&[5, 4], 0.2), wave(&[5, 4], 0.3));
        let spec = AttentionSpec { causal: true, window: Some(3), scale: 0.5, softcap: Some(2.0) };
        let projection = Linear {
            weight: var(&[8, 6], 0.13).as_tensor().clone(),
            bias: Some(var(&[6], 0.17).as_tensor().clone()),
        };
        let normed_query = rms_norm(&query, &weight, 1e-6).unwrap();
        let normed_key = layer_norm(&key, &weight, &bias, 1e-6).unwrap();
        let (turned_query, turned_key) =
            (rotary(&normed_query, &cos, &sin).unwrap(), rotary(&normed_key, &cos, &sin).unwrap());
        let offsets = [0, 2, 5];
        let attended = attention(&turned_query, &turned_key, &value, &Packing::new(&offsets), &spec).unwrap();
        let flat = attended.reshape((20, 8)).unwrap();
        let mut output = linear(&flat, &projection).unwrap();
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu, Activation::Relu] {
            output = activate(&output, activation).unwrap();
        }
        let gradients = output.sum_all().unwrap().backward().unwrap();
        let inputs = [
            ("query", query.as_tensor()),
            ("key", key.as_tensor()),
            ("value", value.as_tensor()),
            ("norm weight", weight.as_tensor()),
            ("norm bias", bias.as_tensor()),
            ("projection", &projection.weight),
            ("projection bias", projection.bias.as_ref().unwrap()),
        ];
        for (name, input) in inputs {
            let gradient = gradients.get(input).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size: f32 = gradient.abs().unwrap().sum_all().unwrap().to_scalar().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
        }
    }
}
