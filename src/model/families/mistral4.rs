//! Mistral-4: latent attention whose queries grow with their positions, and experts that are chosen by their softmax, of a few
//! groups. Experts of a layer are stacked on disk too.

use serde_json::Value;
use serde_json::json;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::deepseek;
use crate::model::families::deepseek::ExpertDefaults;
use crate::model::families::experts;
use crate::model::families::latent_decoder;
use crate::model::families::latent_decoder::LatentDefaults;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::model::rope::RopeGrowth;
use crate::model::rope::RopeScaling;
use crate::model::routing::GroupScore;
use crate::model::routing::Hidden;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral4",
    class: "Mistral4",
    pad_token_id: Some(11),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 131_072, intermediate: 12_288, num_layers: 36, max_positions: 1_048_576, ..LLAMA };

const LATENT: LatentDefaults =
    LatentDefaults { query_rank: 1024, rank: 256, still: 64, turning: 64, value_dim: Some(128) };

const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 128,
    top_k: 4,
    intermediate: 2048,
    shared: 1,
    scale: 1.0,
    groups: 1,
    seen_groups: 1,
    dense_layers: 0,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    let has_rope = |key: &str| fields.0.get(key).is_some_and(|rope| !rope.is_null());
    if !has_rope("rope_parameters") && !has_rope("rope_scaling") {
        given.insert("rope_parameters".to_owned(), default_rope());
    }
    renamed(&Fields(&given), &[Key::Either("num_local_experts", "n_routed_experts")], read)
}

fn read(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = latent_decoder::read(fields, &DEFAULTS, &LATENT)?;
    let (head_dim, turning) = (config.head_dim, config.latent.map_or(0, |latent| latent.turning));
    fields.refuse_unless(
        "head_dim",
        |value| value.is_null() || *value == head_dim,
        "it is the sum of `qk_nope_head_dim` and `qk_rope_head_dim`",
    )?;
    let rope = RopeConfig::parse(
        fields,
        RopeDefaults {
            share: Some(("partial_rotary_factor", turning as f64 / head_dim as f64)),
            ..decoder::rope_defaults(&config, &DEFAULTS)
        },
    )?;
    // of others the class turns columns that are not there
    if !matches!(rope.scaling, RopeScaling::Yarn { .. }) || rope.head_dim != turning {
        return Err(format!(
            "the rope turns {} columns and `qk_rope_head_dim` is {turning}: expected yarn, with a `partial_rotary_factor` that says so",
            rope.head_dim
        ));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!(
            "`qk_nope_head_dim` and `qk_rope_head_dim` are {head_dim}: expected an even number"
        ));
    }
    let growth = RopeConfig {
        head_dim,
        scaling: RopeScaling::Still,
        growth: Some(RopeGrowth::parse(fields)?),
        ..rope.clone()
    };
    let is_normalised = match fields.0.contains_key("norm_topk_prob") {
        true => fields.optional("norm_topk_prob")?.unwrap_or(false),
        false => true,
    };
    let mut experts = deepseek::experts(fields, config.num_layers, &EXPERTS, |top_k| {
        Routing::softmax(top_k, is_normalised)
    })?;
    let groups = deepseek::groups(fields, &experts, &EXPERTS, GroupScore::BestTwo, Hidden::ByZero)?;
    experts.routing.groups = Some(groups);
    experts.names = experts::IN_MEMORY;
    experts.in_memory = None; // the same
    let turns_neighbours = match fields.0.contains_key("rope_interleave") {
        true => fields.optional("rope_interleave")?.unwrap_or(false),
        false => true,
    };
    let config = Blueprint { turns_neighbours, experts: Some(experts), ..config };
    let mut plan = BackbonePlan::from(config.with_rope(rope));
    plan.ropes.push(growth);
    for layer in &mut plan.layers {
        layer.attention.growth = Some(1);
    }
    Ok(plan)
}

fn default_rope() -> Value {
    json!({
        "type": "yarn", "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
    })
}
