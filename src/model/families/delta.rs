//! Gated delta rules in words that their tensors follow from: Qwen3-Next's and Qwen3.5's.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::plan::AttentionPlan;
use crate::model::plan::DeltaPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::model::plan::OutputGatePlan;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::Gate;
use crate::ops::source::RowMap;

/// Gated delta rules in the place of attention.
#[derive(Clone)]
pub(super) struct Delta {
    /// Which layers.
    pub(super) in_layers: Vec<bool>,
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Positions of the convolution.
    kernel: usize,
    tensors: DeltaTensors,
}

/// How what reads a layer's input is kept.
#[derive(Clone, Copy)]
pub(super) enum DeltaTensors {
    /// Queries, keys and values in one tensor, the others in their own (Qwen3.5).
    Apart,
    /// Of each key head its queries, keys, values and gates of the output in one tensor, how much is learned and forgotten in another
    /// (Qwen3-Next).
    ByHead,
}

/// Those that `layer_types` names, or all but each fourth.
fn layers(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<bool>, String> {
    let Some(Value::Array(types)) = fields.0.get("layer_types") else {
        let interval = fields.size("full_attention_interval", 4, at_most::LAYERS)?;
        return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    if types.len() != num_layers {
        return Err(format!("`layer_types` has {} entries for {num_layers} layers", types.len()));
    }
    let is_delta = |kind: &Value| match kind.as_str() {
        Some("linear_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(format!("`layer_types` has {kind}, which is not supported")),
    };
    types.iter().map(is_delta).collect()
}

impl Delta {
    /// For a decoder with so many layers.
    pub(super) fn read(
        fields: &Fields<'_>,
        num_layers: usize,
        tensors: DeltaTensors,
    ) -> Result<Self, String> {
        let size = |key: &str, default, limit| fields.size(key, default, limit);
        let delta = Self {
            in_layers: layers(fields, num_layers)?,
            key_heads: size("linear_num_key_heads", 16, at_most::HEADS)?,
            value_heads: size("linear_num_value_heads", 32, at_most::HEADS)?,
            key_dim: size("linear_key_head_dim", 128, at_most::HEAD_DIM)?,
            value_dim: size("linear_value_head_dim", 128, at_most::HEAD_DIM)?,
            kernel: size("linear_conv_kernel_dim", 4, at_most::POSITIONS_OF_KERNELS)?,
            tensors,
        };
        if !delta.value_heads.is_multiple_of(delta.key_heads) {
            return Err(format!(
                "`linear_num_value_heads` {} is not a multiple of `linear_num_key_heads` {}",
                delta.value_heads, delta.key_heads
            ));
        }
        Ok(delta)
    }

    /// In a layer, with the names that `of` makes of those within it, after an activation, with what its norm adds.
    pub(super) fn plan(
        &self,
        of: &impl Fn(&str) -> String,
        hidden: usize,
        (activation, eps): (Activation, f64),
    ) -> AttentionPlan {
        let &Self { key_heads, value_heads, key_dim, value_dim, kernel, tensors, .. } = self;
        let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
        let linear = |name: &str, rows: RowMap, output: usize| {
            LinearPlan::of_rows(&of(&format!("linear_attn.{name}")), rows, output, hidden, false)
        };
        let [query, key, value, gate, learning, forgetting] = match tensors {
            DeltaTensors::Apart => {
                let from =
                    |first, width| linear("in_proj_qkv", RowMap::from(first, 2 * keys + values), width);
                let own = |name: &str, width| linear(name, RowMap::all(width), width);
                [
                    from(0, keys),
                    from(keys, keys),
                    from(2 * keys, values),
                    own("in_proj_z", values),
                    own("in_proj_b", value_heads),
                    own("in_proj_a", value_heads),
                ]
            }
            DeltaTensors::ByHead => {
                let group = value_heads / key_heads;
                let (of_values, of_head) = (group * value_dim, 2 * key_dim + 2 * group * value_dim);
                let from = |first: usize, width: usize| {
                    let rows = RowMap::from(first, key_heads * of_head).in_runs(width, of_head);
                    linear("in_proj_qkvz", rows, key_heads * width)
                };
                let of_gates = |first: usize| {
                    let rows = RowMap::from(first, 2 * value_heads).in_runs(group, 2 * group);
                    linear("in_proj_ba", rows, value_heads)
                };
                [
                    from(0, key_dim),
                    from(key_dim, key_dim),
                    from(2 * key_dim, of_values),
                    from(2 * key_dim + of_values, of_values),
                    of_gates(0),
                    of_gates(group),
                ]
            }
        };
        let output = LinearPlan::new(&of("linear_attn.out_proj"), hidden, values, false);
        AttentionPlan {
            query,
            key,
            value,
            latent: None,
            delta: Some(DeltaPlan {
                convolution: of("linear_attn.conv1d.weight"),
                kernel,
                activation,
                learning,
                forgetting,
                rates: of("linear_attn.A_log"),
                offsets: of("linear_attn.dt_bias"),
            }),
            gate: Some(OutputGatePlan {
                // without the offset that the others have
                norm: Some(NormPlan::rms(NormKind::Rms, &of("linear_attn.norm"), value_dim, eps)),
                linear: gate,
                function: Gate::Silu,
            }),
            output,
            qk_norms: None,
            norms_turned: false,
            ropes: None,
            growth: None,
            spec: AttentionSpec {
                heads: value_heads,
                kv_heads: key_heads,
                head_dim: key_dim,
                value_dim,
                causal: true,
                window: None,
                scale: (key_dim as f64).powf(-0.5),
                distance: Distance::Ignored,
                softcap: None,
            },
            sinks: None,
            relative: None,
        }
    }
}
