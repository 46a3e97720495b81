//! Decoders whose attention is latent: what their config.json says of it.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::latent::Latent;
use crate::model::rope::RopeConfig;

/// What a class takes for keys that are absent.
pub(super) struct LatentDefaults {
    pub(super) query_rank: usize,
    pub(super) rank: usize,
    /// Columns of a head that do not turn.
    pub(super) still: usize,
    pub(super) turning: usize,
    /// `None`: hidden / heads, for null too.
    pub(super) value_dim: Option<usize>,
}

/// A decoder as Llama is one, but for its attention; without rope.
pub(super) fn read(
    fields: &Fields<'_>,
    defaults: &Defaults,
    of_latent: &LatentDefaults,
) -> Result<Blueprint, String> {
    let config = decoder::read_with_plain_heads(fields, defaults)?;
    let (hidden, heads) = (config.hidden, config.heads);
    let fewer = |value: &Value| value.as_u64().is_some_and(|kv_heads| heads as u64 / kv_heads.max(1) > 1);
    fields.refuse_unless(
        "num_key_value_heads",
        |value| !fewer(value),
        "each head has a key of its own, and transformers would repeat them",
    )?;
    let query_rank = match fields.0.get("q_lora_rank") {
        None => Some(of_latent.query_rank),
        Some(_) => fields.optional_size("q_lora_rank", at_most::WIDTH)?,
    };
    let value_dim = match of_latent.value_dim {
        Some(default) => fields.size("v_head_dim", default, at_most::HEAD_DIM)?,
        None => fields.optional_size("v_head_dim", at_most::HEAD_DIM)?.unwrap_or(hidden / heads),
    };
    let still = fields.size("qk_nope_head_dim", of_latent.still, at_most::HEAD_DIM)?;
    let turning = fields.size("qk_rope_head_dim", of_latent.turning, at_most::HEAD_DIM)?;
    let rank = fields.size("kv_lora_rank", of_latent.rank, at_most::WIDTH)?;
    let head_dim = still + turning;
    let bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        kv_heads: heads,
        head_dim,
        attention_scale: (head_dim as f64).powf(-0.5) * RopeConfig::score_factor(fields)?,
        qkv_bias: bias,
        output_bias: bias,
        latent: Some(Latent { query_rank, rank, turning, value_dim }),
        ..config
    })
}

/// The same with a rope that turns neighbours, or what is half a head apart.
pub(super) fn read_with_rope(
    fields: &Fields<'_>,
    defaults: &Defaults,
    of_latent: &LatentDefaults,
    turns_neighbours: bool,
) -> Result<Blueprint, String> {
    let config = read(fields, defaults, of_latent)?;
    let turning = config.latent.map_or(0, |latent| latent.turning);
    let of_rope = decoder::rope_defaults(&Blueprint { head_dim: turning, ..config.clone() }, defaults);
    let rope = RopeConfig::parse(fields, of_rope)?;
    Ok(Blueprint { turns_neighbours, ..config }.with_rope(rope))
}
