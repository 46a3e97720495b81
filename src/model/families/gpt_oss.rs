//! GPT-OSS: experts whose gates are clamped, chosen by logits; attention with a sink for each head; a window in every second layer.
//!
//! Weights are those of bf16 files. What its publisher shares is packed in MXFP4, under other names, which are refused.

use serde_json::Value;
use serde_json::json;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::experts;
use crate::model::families::experts::ExpertTensors;
use crate::model::families::experts::Experts;
use crate::model::families::experts::ExpertsNames;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::routing::Routing;
use crate::model::routing::Scores;
use crate::ops::Clamp;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_oss",
    class: "GptOss",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 201_088,
    hidden: 2880,
    intermediate: 2880,
    num_layers: 36,
    heads: 64,
    kv_heads: Some(8),
    head_dim: Some(64),
    max_positions: 131_072,
    norm_eps: ("rms_norm_eps", 1e-5),
    rope_theta: 150_000.0,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut fields = fields.0.clone();
    let is_absent = |key: &str| matches!(fields.get(key), None | Some(Value::Null));
    if is_absent("rope_parameters") && is_absent("rope_scaling") {
        let rope = json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096});
        fields.insert("rope_parameters".to_owned(), rope);
    }
    renamed(&Fields(&fields), &[Key::Either("num_experts", "num_local_experts")], read)
}

fn read(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let window = decoder::sliding_window(fields, Some(128))?;
    let [count, top_k] =
        experts::sizes(fields, config.num_layers, ("num_local_experts", 128), ("num_experts_per_tok", 4))?;
    let clamp = Clamp {
        alpha: fields.number_or("swiglu_alpha", 1.702, |alpha| alpha > 0.0)? as f32,
        limit: fields.number_or("swiglu_limit", 7.0, |limit| limit > 0.0)? as f32,
    };
    let routing = Routing { scores: Scores::Logits, ..Routing::softmax(top_k, false) };
    let experts = Experts {
        names: NAMES,
        in_memory: None, // the same
        clamp: Some(clamp),
        ..Experts::new(config.num_layers, [count, config.intermediate], routing)
    };
    let attention_bias = fields.or_default("attention_bias", true)?;
    Ok(Blueprint {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows: decoder::windows(fields, config.num_layers, window, |layer| layer.is_multiple_of(2))?,
        sinks: Some("self_attn.sinks"),
        experts: Some(experts),
        ..config
    }
    .into())
}

const NAMES: ExpertsNames = ExpertsNames {
    router: "mlp.router",
    router_bias: true,
    tensors: ExpertTensors::InTurn { gate_up: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" },
};
