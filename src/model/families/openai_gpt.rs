//! The first GPT: GPT-2 with norms of the sums, and none at the end.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::gpt2;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "openai-gpt",
    class: "OpenAIGPT",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("OpenAIGPTTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults { vocab_size: 40_478, max_positions: 512, ..gpt2::DEFAULTS };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    // its table has other functions under these names than most
    let activation = match fields.or_default("afn", "gelu".to_owned())?.as_str() {
        "gelu" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        other => return Err(format!("`afn` is `{other}`: expected gelu, silu, swish or relu")),
    };
    let mut own = fields.0.clone();
    for key in ["activation_function", "n_inner"] {
        own.remove(key); // not read
    }
    let width = renamed(fields, &[Key::Either("n_embd", "hidden_size")], |fields| {
        decoder::with_fourfold_mlp(fields, &DEFAULTS)
    })?;
    own.insert("n_inner".to_owned(), width["intermediate_size"].clone());
    let config = gpt2::read(&Fields(&own), &DEFAULTS)?;
    Ok(Blueprint {
        norms: Norms::of_sums("ln_1", "ln_2"),
        norms_output: false,
        activation,
        names: Names {
            words: "tokens_embed",
            positions: "positions_embed",
            qkv: QkvNames::Together("attn.c_attn"),
            are_transposed: true,
            ..config.names
        },
        ..config
    }
    .into())
}
