//! Qwen3: Qwen2 with norms of queries and keys, and biases only where the file asks for them.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::qwen2;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("Qwen2Tokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &Defaults { head_dim: Some(128), ..qwen2::DEFAULTS })?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        qk_norm: Some(QkNorm::HEADS),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows: qwen2::windows(fields, config.num_layers)?,
        ..config
    }
    .into())
}
