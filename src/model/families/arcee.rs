//! Arcee: Llama with a plain MLP and squared ReLU.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "arcee",
    class: "Arcee",
    pad_token_id: None,
    eos_token_id: Some(128_001),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    hidden: 2560,
    intermediate: 18_432,
    max_positions: 4096,
    norm_eps: ("rms_norm_eps", 1e-5),
    activation: ("hidden_act", "relu2"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        names: Names { inside: InsideNames::Plain("mlp.up_proj"), ..LLAMA_NAMES },
        ..decoder::read(fields, &DEFAULTS)?
    }
    .into())
}
