//! GTE: BERT with a rope in place of positions, and a gate.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::model::plan::FeedForwardPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::MlpPlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gte",
    class: "Gte",
    pad_token_id: Some(1),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("XLMRobertaTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 250_048, types: 1, types_may_be_none: true, max_positions: 8192, ..BERT };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let config = Blueprint { norms: Norms::of_sums("attn_ln", "mlp_ln"), names: NAMES, ..config };
    let mut plan = BackbonePlan::from(config.turning(fields, 160_000.0)?);
    // of the MLP, the last layer alone has one
    for layer in &mut plan.layers {
        if let FeedForwardPlan::Mlp(MlpPlan { inside: InsidePlan::Gated { gate, up }, .. }) =
            &mut layer.feed_forward
        {
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
