//! Nemotron: Llama with layer norms that multiply by 1 + weight, a plain MLP with squared ReLU, and half of each head turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "nemotron",
    class: "Nemotron",
    pad_token_id: None,
    eos_token_id: Some(3),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden: 6144,
    intermediate: 24_576,
    heads: 48,
    max_positions: 4096,
    norm_eps: ("norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 0.5)),
    activation: ("hidden_act", "relu2"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    Ok(Blueprint {
        norm: NormStyle { kind: NormKind::LayerUnitOffset, has_bias: true, ..config.norm },
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        names: Names { inside: InsideNames::Plain("mlp.up_proj"), ..LLAMA_NAMES },
        ..config
    }
    .into())
}
