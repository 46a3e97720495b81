//! Phi: attention and MLP beside each other, both of one layer norm, biases everywhere, half of each head turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkNorm;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "phi",
    class: "Phi",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 51_200,
    hidden: 2048,
    intermediate: 8192,
    num_layers: 24,
    norm_eps: ("layer_norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 0.5)),
    activation: ("hidden_act", "gelu_new"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let names = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
    let norms_qk = fields.or_default("qk_layernorm", false)?;
    Ok(Blueprint {
        norm: NormStyle::layer(config.norm.eps),
        norms: Norms::shared("input_layernorm"),
        qk_norm: norms_qk.then_some(QkNorm { names, ..QkNorm::HEADS }),
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        is_parallel: true,
        names: Names {
            output: "self_attn.dense",
            inside: InsideNames::Plain("mlp.fc1"),
            down: "mlp.fc2",
            norm: "final_layernorm",
            ..LLAMA_NAMES
        },
        ..config
    }
    .into())
}
