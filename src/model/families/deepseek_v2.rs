//! DeepSeek-V2: latent attention, and experts that are chosen by their softmax, of all or of a few groups.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::deepseek;
use crate::model::families::deepseek::ExpertDefaults;
use crate::model::families::deepseek_v3;
use crate::model::families::latent_decoder;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::routing::GroupScore;
use crate::model::routing::Hidden;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "deepseek_v2",
    class: "DeepseekV2",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults { vocab_size: 102_400, ..LLAMA };

/// The class has no number of groups, and of experts for a row, of its own.
const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 64,
    top_k: 0,
    intermediate: 1407,
    shared: 2,
    scale: 1.0,
    groups: 0,
    seen_groups: 0,
    dense_layers: 0,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    renamed(fields, &[Key::Either("num_experts", "n_routed_experts")], read)
}

fn read(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = latent_decoder::read_with_rope(fields, &DEFAULTS, &deepseek_v3::LATENT, true)?;
    let is_there = |key: &str| match fields.optional_size(key, at_most::EXPERTS)? {
        Some(_) => Ok(()),
        None => Err(format!("`{key}` is missing, and its class has no default")),
    };
    is_there("num_experts_per_tok")?;
    // of which the class reads no `norm_topk_prob`
    let mut experts =
        deepseek::experts(fields, config.num_layers, &EXPERTS, |top_k| Routing::softmax(top_k, false))?;
    match fields.or_default("topk_method", "greedy".to_owned())?.as_str() {
        "greedy" => {}
        "group_limited_greedy" => {
            is_there("n_group")?;
            is_there("topk_group")?;
            let groups = deepseek::groups(fields, &experts, &EXPERTS, GroupScore::Best, Hidden::AreZero)?;
            experts.routing.groups = Some(groups);
        }
        other => {
            return Err(format!(
                "`topk_method` is `{other}`: the class computes greedy and group_limited_greedy"
            ));
        }
    }
    let mlp_bias = fields.or_default("mlp_bias", false)?;
    experts.shared.iter_mut().for_each(|shared| shared.has_bias = mlp_bias);
    Ok(Blueprint { mlp_bias, experts: Some(experts), ..config }.into())
}
