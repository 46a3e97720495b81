//! A.X-K1: DeepSeek-V3 with a norm of what experts add.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::deepseek::ExpertDefaults;
use crate::model::families::deepseek_v3;
use crate::model::families::experts::Correction;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::plan::FeedForwardPlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "axk1",
    class: "AXK1",
    pad_token_id: None,
    eos_token_id: Some(163_691),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 163_840,
    hidden: 7168,
    intermediate: 18_432,
    num_layers: 61,
    heads: 64,
    max_positions: 32_768,
    ..LLAMA
};

const EXPERTS: ExpertDefaults = ExpertDefaults { count: 192, ..deepseek_v3::EXPERTS };

const NORM: &str = "post_mlp_layernorm";

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    renamed(fields, &[Key::Either("num_local_experts", "n_routed_experts")], read)
}

fn read(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    // which the class does not take without
    fields.refuse_unless("q_lora_rank", |rank| !rank.is_null(), "expected a number")?;
    let config = deepseek_v3::read(fields, &DEFAULTS)?;
    let mut experts = deepseek_v3::experts(fields, config.num_layers, &EXPERTS)?;
    experts.in_layers = sparse_layers(fields, config.num_layers)?;
    experts.correction = experts.correction.map(|of| Correction { may_lack: true, ..of });
    let mut plan = BackbonePlan::from(Blueprint {
        norms: Norms { after_mlp: Some(NORM), ..Norms::BEFORE },
        // the published files have it in the other layers too, where nobody reads it
        names: Names { unused: &[".post_mlp_layernorm.weight"], ..LLAMA_NAMES },
        experts: Some(experts),
        ..config
    });
    for layer in &mut plan.layers {
        if let FeedForwardPlan::Mlp(_) = layer.feed_forward {
            layer.norms.mlp_output = None;
        }
    }
    Ok(plan)
}

/// Those that `mlp_layer_types` names, or from some on each of so many.
fn sparse_layers(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<bool>, String> {
    let Some(types) = fields.optional::<Vec<String>>("mlp_layer_types")? else {
        let first = fields.or_default("first_k_dense_replace", 1)?;
        let step = fields.size("moe_layer_freq", 1, at_most::LAYERS)?;
        return Ok((0..num_layers).map(|layer| layer >= first && layer.is_multiple_of(step)).collect());
    };
    if types.len() != num_layers {
        return Err(format!("`mlp_layer_types` has {} entries for {num_layers} layers", types.len()));
    }
    Ok(types.iter().map(|kind| kind == "sparse").collect())
}
