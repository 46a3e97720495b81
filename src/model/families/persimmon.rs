//! Persimmon: layer norms, of queries and keys too, all three of a head in one tensor, a plain MLP with squared ReLU, half of each
//! head turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "persimmon",
    class: "Persimmon",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_144,
    intermediate: 16_384,
    num_layers: 36,
    heads: 64,
    max_positions: 16_384,
    norm_eps: ("layer_norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 0.5)),
    activation: ("hidden_act", "relu2"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let names = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
    let norms_qk = fields.or_default("qk_layernorm", true)?;
    Ok(Blueprint {
        kv_heads: config.heads, // the class reads no other number
        norm: NormStyle::layer(config.norm.eps),
        qk_norm: norms_qk.then_some(QkNorm { names, ..QkNorm::HEADS }),
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        names: Names {
            qkv: QkvNames::ByHead("self_attn.query_key_value"),
            output: "self_attn.dense",
            inside: InsideNames::Plain("mlp.dense_h_to_4h"),
            down: "mlp.dense_4h_to_h",
            norm: "final_layernorm",
            ..LLAMA_NAMES
        },
        ..config
    }
    .into())
}
