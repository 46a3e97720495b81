//! OLMo-2: norms after attention and MLP instead of before, and of all query heads together, and of all key heads.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    class: "Olmo2",
    pad_token_id: Some(1),
    eos_token_id: Some(50_279),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 50_304, head_dim_may_be_null: false, norm_eps: ("rms_norm_eps", 1e-5), ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        norms: Norms::AFTER,
        qk_norm: Some(QkNorm::WHOLE),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        ..decoder::read(fields, &DEFAULTS)?
    }
    .into())
}
