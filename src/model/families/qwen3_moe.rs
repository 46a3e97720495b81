//! Qwen3-MoE: Qwen3 with experts in the place of the MLP. Its window, if it uses one, is of all layers.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::qwen2;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    class: "Qwen3Moe",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("Qwen2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    hidden: 2048,
    intermediate: 6144,
    num_layers: 24,
    kv_heads: Some(4),
    kv_heads_may_be_null: false,
    ..qwen2::DEFAULTS
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    renamed(fields, &[Key::Either("num_local_experts", "num_experts")], |fields| {
        let config = decoder::read(fields, &DEFAULTS)?;
        let attention_bias = fields.or_default("attention_bias", false)?;
        let uses_window = fields.or_default("use_sliding_window", false)?;
        let window = decoder::sliding_window(fields, Some(4096))?.filter(|_| uses_window);
        let [count, top_k] =
            experts::sizes(fields, config.num_layers, ("num_experts", 128), ("num_experts_per_tok", 8))?;
        let inside = fields.size("moe_intermediate_size", 768, at_most::WIDTH)?;
        let routing = Routing::softmax(top_k, fields.or_default("norm_topk_prob", false)?);
        let experts = Experts {
            in_layers: experts::sparse_layers(fields, config.num_layers)?,
            ..Experts::new(config.num_layers, [count, inside], routing)
        };
        Ok(Blueprint {
            qk_norm: Some(QkNorm::HEADS),
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            windows: vec![window; config.num_layers],
            experts: Some(experts),
            ..config
        }
        .into())
    })
}
