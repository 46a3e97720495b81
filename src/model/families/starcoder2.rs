//! StarCoder2: Llama with layer norms, a plain MLP and biases everywhere.

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
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "starcoder2",
    class: "Starcoder2",
    pad_token_id: None,
    eos_token_id: Some(50_256),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 49_152,
    hidden: 3072,
    intermediate: 12_288,
    num_layers: 30,
    heads: 24,
    kv_heads: Some(2),
    kv_heads_may_be_null: false,
    max_positions: 4096,
    norm_eps: ("norm_epsilon", 1e-5),
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let use_bias = fields.or_default("use_bias", true)?;
    let window = decoder::sliding_window(fields, None)?;
    Ok(Blueprint {
        norm: NormStyle::layer(config.norm.eps),
        qkv_bias: use_bias,
        output_bias: use_bias,
        mlp_bias: use_bias,
        windows: vec![window; config.num_layers],
        names: Names { inside: InsideNames::Plain("mlp.c_fc"), down: "mlp.c_proj", ..LLAMA_NAMES },
        ..config
    }
    .into())
}
