//! Phi: attention and MLP beside each other, both of one layer norm, biases everywhere, half of each head turned.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::decoder;
use crate::model::families::decoder::Decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::InsideNames;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::Names;
use crate::model::families::decoder::NormStyle;
use crate::model::families::decoder::Norms;
use crate::model::families::decoder::QkNorm;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
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
    Ok(Decoder {
        norm: NormStyle { kind: NormKind::Layer, has_bias: true, ..config.norm },
        norms: Norms { before_mlp: Norms::BEFORE.before_attention, ..Norms::BEFORE },
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
            ..Names::LLAMA
        },
        ..config
    }
    .into())
}
