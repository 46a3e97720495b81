//! OLMo: Llama with layer norms that have no weights.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::text::FamilyTokenizer;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "olmo",
    class: "Olmo",
    pad_token_id: Some(1),
    eos_token_id: Some(50_279),
    tokenizer: FamilyTokenizer::Unless("GPTNeoXTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults { vocab_size: 50_304, head_dim_may_be_null: false, ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless("clip_qkv", Value::is_null, "clipped queries, keys and values are not supported")?;
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        norm: NormStyle { kind: NormKind::Layer, has_weight: false, has_bias: false, eps: 1e-5 },
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        ..config
    }
    .into())
}
