//! Qwen2-MoE: Qwen2 with experts in the place of the MLP, beside one that all rows go through, as far as a gate lets them. Its
//! windows are not Qwen2's: of the layers *before* some layer every second one has one.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::experts::Shared;
use crate::model::families::qwen2;
use crate::model::plan::BackbonePlan;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2_moe",
    class: "Qwen2Moe",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("Qwen2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    hidden: 2048,
    intermediate: 5632,
    num_layers: 24,
    heads: 16,
    kv_heads: Some(16),
    kv_heads_may_be_null: false,
    ..qwen2::DEFAULTS
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let [count, top_k] =
        experts::sizes(fields, config.num_layers, ("num_experts", 60), ("num_experts_per_tok", 4))?;
    let inside = fields.size("moe_intermediate_size", 1408, at_most::WIDTH)?;
    let routing = Routing::softmax(top_k, fields.or_default("norm_topk_prob", false)?);
    let shared = Shared {
        name: "mlp.shared_expert",
        intermediate: fields.size("shared_expert_intermediate_size", 5632, at_most::WIDTH)?,
        gate: Some("mlp.shared_expert_gate"),
        has_bias: false,
    };
    let experts = Experts {
        in_layers: experts::sparse_layers(fields, config.num_layers)?,
        shared: Some(shared),
        ..Experts::new(config.num_layers, [count, inside], routing)
    };
    Ok(Blueprint {
        qkv_bias: fields.or_default("qkv_bias", true)?,
        windows: windows(fields, config.num_layers)?,
        experts: Some(experts),
        ..config
    }
    .into())
}

fn windows(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<Option<usize>>, String> {
    let uses_windows = fields.or_default("use_sliding_window", false)?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    let before = fields.or_default("max_window_layers", 28_usize)?;
    if !uses_windows {
        let slides =
            |types: &Value| types.as_array().is_some_and(|types| types.contains(&"sliding_attention".into()));
        fields.refuse_unless(
            "layer_types",
            |types| !slides(types),
            "with `use_sliding_window` false the window of transformers is 0, and a token sees none",
        )?;
    }
    decoder::windows(fields, num_layers, window, |layer| {
        uses_windows && layer < before && layer.is_multiple_of(2)
    })
}
