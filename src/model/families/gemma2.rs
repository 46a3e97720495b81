//! Gemma-2: Gemma with norms on both sides, capped scores, and a window in every other layer.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::gemma;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    class: "Gemma2",
    pad_token_id: Some(0),
    eos_token_id: Some(1),
    tokenizer: FamilyTokenizer::Unless("GemmaTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    hidden: 2304,
    intermediate: 9216,
    num_layers: 26,
    heads: 8,
    kv_heads: Some(4),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    ..gemma::DEFAULTS
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    let window = decoder::sliding_window_of_some(fields, 4096)?;
    Ok(Blueprint {
        norm: NormStyle { kind: NormKind::RmsUnitOffset, ..config.norm },
        norms: Norms::AROUND,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows: decoder::windows(fields, config.num_layers, window, |layer| layer % 2 == 0)?,
        attention_scale: (fields.size("query_pre_attn_scalar", 256, at_most::WIDTH)? as f64).powf(-0.5),
        attention_softcap: match fields.0.get("attn_logit_softcapping") {
            None => Some(50.0),
            Some(_) => fields.number("attn_logit_softcapping", |cap| cap != 0.0)?, // null means none
        },
        embedding_scale: Some((config.hidden as f64).sqrt()),
        ..config
    }
    .into())
}
