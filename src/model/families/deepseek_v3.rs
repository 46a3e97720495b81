//! DeepSeek-V3: latent attention, and experts that are chosen by sigmoids with a correction, of a few groups.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::deepseek;
use crate::model::families::deepseek::ExpertDefaults;
use crate::model::families::experts::Correction;
use crate::model::families::experts::Experts;
use crate::model::families::latent_decoder;
use crate::model::families::latent_decoder::LatentDefaults;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::routing::GroupScore;
use crate::model::routing::Hidden;
use crate::model::routing::Routing;
use crate::model::routing::Scores;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "deepseek_v3",
    class: "DeepseekV3",
    pad_token_id: None,
    eos_token_id: Some(1),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 129_280,
    hidden: 7168,
    intermediate: 18_432,
    num_layers: 61,
    heads: 128,
    max_positions: 4096,
    ..LLAMA
};

pub(super) const LATENT: LatentDefaults =
    LatentDefaults { query_rank: 1536, rank: 512, still: 128, turning: 64, value_dim: Some(128) };

pub(super) const EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 256,
    top_k: 8,
    intermediate: 2048,
    shared: 1,
    scale: 2.5,
    groups: 8,
    seen_groups: 4,
    dense_layers: 3,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    renamed(fields, &[Key::Either("num_local_experts", "n_routed_experts")], |fields| {
        let config = read(fields, &DEFAULTS)?;
        let names = Names { unused: &["layers.61."], ..LLAMA_NAMES }; // what predicts several tokens at a time
        let experts = experts(fields, config.num_layers, &EXPERTS)?;
        Ok(Blueprint { experts: Some(experts), names, ..config }.into())
    })
}

/// A.X-K1's too.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
    let turns_neighbours = fields.optional("rope_interleave")?;
    let is_default = !fields.0.contains_key("rope_interleave");
    let config =
        latent_decoder::read_with_rope(fields, defaults, &LATENT, turns_neighbours.unwrap_or(is_default))?;
    let turning = config.ropes[0].head_dim;
    fields.refuse_unless(
        "head_dim",
        |value| value.is_null() || *value == turning,
        "it is the number of columns that turn, which `qk_rope_head_dim` says otherwise",
    )?;
    Ok(config)
}

/// The same.
pub(super) fn experts(
    fields: &Fields<'_>,
    num_layers: usize,
    defaults: &ExpertDefaults,
) -> Result<Experts, String> {
    // null is no
    let is_normalised = match fields.0.contains_key("norm_topk_prob") {
        true => fields.optional("norm_topk_prob")?.unwrap_or(false),
        false => true,
    };
    let routing = |top_k| Routing { scores: Scores::Sigmoid, ..Routing::softmax(top_k, is_normalised) };
    let mut experts = deepseek::experts(fields, num_layers, defaults, routing)?;
    let groups = deepseek::groups(fields, &experts, defaults, GroupScore::BestTwo, Hidden::Never)?;
    experts.routing.groups = Some(groups);
    experts.correction = Some(Correction { name: "mlp.gate.e_score_correction_bias", may_lack: false });
    Ok(experts)
}
