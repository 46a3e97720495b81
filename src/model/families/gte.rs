//! GTE: BERT with a rope in place of positions, and a gate.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::check_head_dim;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::InsidePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "gte",
    class: "Gte",
    pad_token_id: Some(1),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("XLMRobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    given.entry("max_position_embeddings").or_insert(8192.into());
    let types = fields.0.get("type_vocab_size").map_or(Some(1), Value::as_u64);
    if types == Some(0) {
        given.remove("type_vocab_size");
    } else if types == Some(1) {
        given.entry("type_vocab_size").or_insert(1.into());
    }
    let config = encoder::read(&Fields(&given), 250_048)?;
    check_head_dim(fields, config.head_dim)?;
    let defaults = RopeDefaults {
        head_dim: config.head_dim,
        max_positions: config.max_tokens,
        theta: ("rope_theta", 160_000.0),
        share: None,
    };
    let rope = RopeConfig::parse(fields, defaults)?;
    let config = Blueprint {
        type_vocab_size: config.type_vocab_size.filter(|_| types != Some(0)),
        positions: None,
        norms: Norms::of_sums("attn_ln", "mlp_ln"),
        names: NAMES,
        ..config
    };
    let mut plan = BackbonePlan::from(config.with_rope(rope));
    // of the MLP, the last layer alone has one
    for layer in &mut plan.layers {
        if let InsidePlan::Gated { gate, up } = &mut layer.mlp.inside {
            (gate.bias, up.bias) = (None, None);
        }
    }
    Ok(plan)
}

const NAMES: Names = Names {
    prefixes: &["gte.", "new.", ""],
    qkv: QkvNames::Together("attention.qkv_proj"),
    output: "attention.o_proj",
    inside: InsideNames::UpGate("mlp.up_gate_proj"),
    down: "mlp.down_proj",
    ..BERT_NAMES
};
