//! DeepSeek's experts, which others have taken over: in layers from some on, in groups of which a row sees a few, beside an MLP that
//! all rows go through.

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::experts::Shared;
use crate::model::routing::GroupScore;
use crate::model::routing::Groups;
use crate::model::routing::Hidden;
use crate::model::routing::Routing;

/// What a class takes for keys that are absent.
#[derive(Clone, Copy)]
pub(super) struct ExpertDefaults {
    pub(super) count: usize,
    pub(super) top_k: usize,
    pub(super) intermediate: usize,
    /// Experts that are as wide together as the MLP that all rows go through.
    pub(super) shared: usize,
    pub(super) scale: f64,
    pub(super) groups: usize,
    pub(super) seen_groups: usize,
    /// Layers before the first that has experts.
    pub(super) dense_layers: usize,
}

/// Experts of layers from `first_k_dense_replace` on, without groups.
pub(super) fn experts(
    fields: &Fields<'_>,
    num_layers: usize,
    defaults: &ExpertDefaults,
    routing: impl FnOnce(usize) -> Routing,
) -> Result<Experts, String> {
    let [count, top_k] = experts::sizes(
        fields,
        num_layers,
        ("n_routed_experts", defaults.count),
        ("num_experts_per_tok", defaults.top_k),
    )?;
    let intermediate = fields.size("moe_intermediate_size", defaults.intermediate, at_most::WIDTH)?;
    let shared = fields.size("n_shared_experts", defaults.shared, at_most::EXPERTS)?;
    if intermediate * shared > at_most::WIDTH {
        return Err(format!(
            "`n_shared_experts` is {shared}: the limit of their width is {}",
            at_most::WIDTH
        ));
    }
    let dense = fields.or_default("first_k_dense_replace", defaults.dense_layers)?;
    let scale = fields.number_or("routed_scaling_factor", defaults.scale, |_| true)?;
    Ok(Experts {
        in_layers: (0..num_layers).map(|layer| layer >= dense).collect(),
        shared: Some(Shared {
            name: "mlp.shared_experts",
            intermediate: intermediate * shared,
            gate: None,
            has_bias: false,
        }),
        ..Experts::new(num_layers, [count, intermediate], Routing { scale, ..routing(top_k) })
    })
}

/// Groups of which `topk_group` are seen.
pub(super) fn groups(
    fields: &Fields<'_>,
    experts: &Experts,
    defaults: &ExpertDefaults,
    by: GroupScore,
    hidden: Hidden,
) -> Result<Groups, String> {
    let count = fields.size("n_group", defaults.groups, at_most::EXPERTS)?;
    let seen = fields.size("topk_group", defaults.seen_groups, at_most::EXPERTS)?;
    let size = experts.count / count;
    if !experts.count.is_multiple_of(count) || seen > count {
        return Err(format!(
            "`n_group` {count} and `topk_group` {seen} do not fit `n_routed_experts` {}",
            experts.count
        ));
    }
    if by == GroupScore::BestTwo && size < 2 {
        return Err(format!("`n_group` is {count}: a group has one expert, and two are asked for"));
    }
    let top_k = experts.routing.top_k;
    // whose weights are zero may be anybody
    if hidden != Hidden::AreZero && top_k > seen * size {
        return Err(format!(
            "`num_experts_per_tok` is {top_k}, and `topk_group` lets a row see {} experts: the others would be anybody",
            seen * size
        ));
    }
    Ok(Groups { count, seen, by, hidden })
}
