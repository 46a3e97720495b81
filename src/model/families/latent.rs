//! Latent attention in words that its tensors follow from: queries, keys and values by way of narrower rows, a part of each head
//! that turns, and a key whose part is the same for all heads.
//!
//! Checkpoints have that part last in a head; here it is first, of queries and keys alike.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::plan::LatentPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::NarrowPlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::model::rope::RopeConfig;
use crate::ops::source::RowMap;
use crate::ops::source::Turning;

/// Of the norms of narrow rows, whatever the others have.
const EPS: f64 = 1e-6;

/// Latent attention.
#[derive(Clone, Copy)]
pub(super) struct Latent {
    /// Width of what queries are made of; `None`: they read the layer's input.
    query_rank: Option<usize>,
    /// Width of what keys and values are made of.
    rank: usize,
    /// Columns of a head that turn.
    turning: usize,
    /// Width of a head's values.
    pub(super) value_dim: usize,
}

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

impl Latent {
    /// Columns of a head that turn.
    pub(super) fn turning(&self) -> usize {
        self.turning
    }

    /// Queries, keys and values, and what these read, with the names that `of` makes of those within a layer.
    pub(super) fn plan(
        &self,
        blueprint: &Blueprint,
        of: &impl Fn(&str) -> String,
    ) -> ([LinearPlan; 3], LatentPlan) {
        let &Blueprint { hidden, heads, head_dim, qkv_bias, turns_neighbours, .. } = blueprint;
        let &Self { query_rank, rank, turning, value_dim } = self;
        let still = head_dim - turning;
        let narrow = |linear: &str, norm: &str, rows: RowMap, width: usize| NarrowPlan {
            linear: LinearPlan::of_rows(&of(linear), rows, width, hidden, qkv_bias),
            norm: NormPlan::rms(NormKind::Rms, &of(norm), width, EPS),
        };
        let (name, input) = match query_rank {
            Some(rank) => ("self_attn.q_b_proj", rank),
            None => ("self_attn.q_proj", hidden),
        };
        let of_head =
            Turning { head_dim, first: still, pairs: turning / 2, are_neighbours: turns_neighbours };
        let rows = RowMap::all(heads * head_dim).with_turning(of_head);
        let query = LinearPlan::of_rows(&of(name), rows, heads * head_dim, input, false);
        let (together, of_heads) = (rank + turning, heads * (still + value_dim));
        let from_narrow = |first: usize, width: usize| {
            let rows = RowMap::from(first, of_heads).in_runs(width, still + value_dim);
            LinearPlan::of_rows(&of("self_attn.kv_b_proj"), rows, heads * width, rank, false)
        };
        let shared = RowMap::from(rank, together);
        let shared = if turns_neighbours { shared.with_neighbours(turning, turning / 2) } else { shared };
        let kv = "self_attn.kv_a_proj_with_mqa";
        let latent = LatentPlan {
            query: query_rank
                .map(|rank| narrow("self_attn.q_a_proj", "self_attn.q_a_layernorm", RowMap::all(rank), rank)),
            key_value: narrow(kv, "self_attn.kv_a_layernorm", RowMap::from(0, together), rank),
            shared_key: LinearPlan::of_rows(&of(kv), shared, turning, hidden, qkv_bias),
        };
        ([query, from_narrow(0, still), from_narrow(still, value_dim)], latent)
    }
}
