//! HunYuan, the dense models: Llama with norms of queries and keys after they are turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "hunyuan_v1_dense",
    class: "HunYuanDenseV1",
    pad_token_id: Some(0),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

/// HunYuan-MoE's too.
pub(super) const DEFAULTS: Defaults =
    Defaults { vocab_size: 290_943, norm_eps: ("rms_norm_eps", 1e-5), ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let names = ["self_attn.query_layernorm", "self_attn.key_layernorm"];
    let attention_bias = fields.or_default("attention_bias", false)?;
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    let rope = RopeConfig::parse(fields, decoder::rope_defaults(&config, &DEFAULTS))?.with_alpha(fields)?;
    Ok(Blueprint {
        qk_norm: Some(QkNorm { names, is_turned: true, ..QkNorm::HEADS }),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        ..config.with_rope(rope)
    }
    .into())
}
