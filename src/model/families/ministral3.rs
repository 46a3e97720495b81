//! Ministral-3: Mistral with YaRN, whose queries grow with their positions.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeGrowth;
use crate::text::FamilyTokenizer;
use serde_json::Value;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    model_type: "ministral3",
    class: "Ministral3",
    pad_token_id: Some(11),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    intermediate: 14_336,
    num_layers: 34,
    kv_heads: Some(8),
    head_dim: Some(128),
    max_positions: 262_144,
    norm_eps: ("rms_norm_eps", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    let has_rope = |key: &str| fields.0.get(key).is_some_and(|rope| !rope.is_null());
    if !has_rope("rope_parameters") && !has_rope("rope_scaling") {
        given.insert("rope_parameters".to_owned(), default_rope());
    }
    let given = Fields(&given);
    let config = decoder::read(&given, &DEFAULTS)?;
    let window = decoder::sliding_window(fields, None)?;
    let windows = vec![window; config.num_layers];
    let mut plan = BackbonePlan::from(Blueprint { windows, ..config });
    let of_queries = RopeConfig { growth: Some(RopeGrowth::parse(&given)?), ..plan.ropes[0].clone() };
    plan.ropes.push(of_queries);
    for layer in &mut plan.layers {
        layer.attention.ropes = Some([1, 0]);
    }
    Ok(plan)
}

fn default_rope() -> Value {
    json!({
        "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
    })
}
