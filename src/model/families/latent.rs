//! Latent attention in words that its tensors follow from: queries, keys and values by way of narrower rows, a part of each head
//! that turns, and a key whose part is the same for all heads.
//!
//! Checkpoints have that part last in a head; here it is first, of queries and keys alike.

use crate::model::plan::LatentPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::NarrowPlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::ops::source::RowMap;
use crate::ops::source::Turning;

/// Of the norms of narrow rows, whatever the others have.
const EPS: f64 = 1e-6;

/// Latent attention.
#[derive(Clone, Copy)]
pub(super) struct Latent {
    /// Width of what queries are made of; `None`: they read the layer's input.
    pub(super) query_rank: Option<usize>,
    /// Width of what keys and values are made of.
    pub(super) rank: usize,
    /// Columns of a head that turn.
    pub(super) turning: usize,
    /// Width of a head's values.
    pub(super) value_dim: usize,
}

impl Latent {
    /// Queries, keys and values, and what these read, with the names that `of` makes of those within a layer; `bias` is of what
    /// reads the layer's input.
    pub(super) fn plan(
        &self,
        [hidden, heads, head_dim]: [usize; 3],
        bias: bool,
        turns_neighbours: bool,
        of: &impl Fn(&str) -> String,
    ) -> ([LinearPlan; 3], LatentPlan) {
        let &Self { query_rank, rank, turning, value_dim } = self;
        let still = head_dim - turning;
        let narrow = |linear: &str, norm: &str, rows: RowMap, width: usize| NarrowPlan {
            linear: LinearPlan::of_rows(&of(linear), rows, width, hidden, bias),
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
            shared_key: LinearPlan::of_rows(&of(kv), shared, turning, hidden, bias),
        };
        ([query, from_narrow(0, still), from_narrow(still, value_dim)], latent)
    }
}
