//! GPT-BigCode (StarCoder, SantaCoder): GPT-2 with one key and value head.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder::Defaults;
use crate::model::families::gpt2;
use crate::model::families::gpt2::DEFAULTS;
use crate::model::families::is_no;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_bigcode",
    class: "GPTBigCode",
    pad_token_id: None,
    eos_token_id: Some(50_256),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let activation = Defaults { activation: ("hidden_act", "gelu_pytorch_tanh"), ..DEFAULTS };
    let config = gpt2::read(fields, &activation)?;
    let is_multi_query = fields.or_default("multi_query", true)?;
    let attention_scale = gpt2::attention_scale(fields, &config)?;
    Ok(Blueprint {
        kv_heads: if is_multi_query { 1 } else { config.heads },
        attention_scale,
        names: Names { qkv: QkvNames::ByHead("attn.c_attn"), ..config.names },
        ..config
    }
    .into())
}
