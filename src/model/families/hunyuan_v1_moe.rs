//! HunYuan-MoE: HunYuan's dense models with experts beside an MLP that all rows go through, all equally wide.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::experts::ExpertsNames;
use crate::model::families::experts::Shared;
use crate::model::families::hunyuan_v1_dense;
use crate::model::families::hunyuan_v1_dense::DEFAULTS;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::routing::Routing;

pub(super) const FAMILY: Family =
    Family { model_type: "hunyuan_v1_moe", class: "HunYuanMoEV1", parse, ..hunyuan_v1_dense::FAMILY };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let keys =
        [Key::Either("num_local_experts", "num_experts"), Key::Either("num_experts_per_tok", "moe_topk")];
    renamed(fields, &keys, read)
}

fn read(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut fields = fields.0.clone();
    // one number for all layers, or one for each
    if let Some(Value::Array(of_layers)) = fields.get("moe_topk") {
        let first = of_layers.first().cloned().unwrap_or(Value::Null);
        if of_layers.iter().any(|of_layer| *of_layer != first) {
            return Err("`moe_topk` is not the same in all layers, which is not supported".to_owned());
        }
        fields.insert("moe_topk".to_owned(), first);
    }
    let fields = Fields(&fields);
    let config = decoder::read_without_rope(&fields, &DEFAULTS)?;
    let rope = RopeConfig::parse(&fields, decoder::rope_defaults(&config, &DEFAULTS))?.with_alpha(&fields)?;
    let [count, top_k] = experts::sizes(&fields, config.num_layers, ("num_experts", 1), ("moe_topk", 1))?;
    let names = |names: ExpertsNames| ExpertsNames { router: "mlp.gate.wg", ..names };
    let experts = Experts {
        names: names(experts::NAMES),
        in_memory: Some(names(experts::IN_MEMORY)),
        shared: Some(Shared {
            name: "mlp.shared_mlp",
            intermediate: config.intermediate,
            gate: None,
            has_bias: false,
        }),
        ..Experts::new(config.num_layers, [count, config.intermediate], Routing::softmax(top_k, true))
    };
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        qk_norm: Some(QkNorm {
            names: ["self_attn.query_layernorm", "self_attn.key_layernorm"],
            is_turned: true,
            ..QkNorm::HEADS
        }),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        experts: Some(experts),
        ..config.with_rope(rope)
    }
    .into())
}
