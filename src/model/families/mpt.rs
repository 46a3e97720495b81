//! MPT: ALiBi, layer norms without bias, a plain MLP, all three projections in one tensor.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::ops::Distance;
use crate::text::FamilyTokenizer;
use serde_json::Map;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "mpt",
    class: "Mpt",
    pad_token_id: None,
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("GPTNeoXTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_368,
    hidden: 2048,
    num_layers: 24,
    heads: 16,
    norm_eps: ("layer_norm_epsilon", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let empty = Map::new();
    let attention = Fields(match fields.0.get("attn_config") {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(attention)) => attention,
        Some(other) => return Err(format!("`attn_config` is {other}: expected an object")),
    });
    attention.refuse_unless(
        "clip_qkv",
        |clip| clip.is_null() || clip == 0,
        "clipped projections are not supported",
    )?;
    let keys = [
        Key::Either("d_model", "hidden_size"),
        Key::Either("n_heads", "num_attention_heads"),
        Key::Either("n_layers", "num_hidden_layers"),
        Key::Only("max_seq_len", "max_position_embeddings"),
    ];
    let config = renamed(fields, &keys, |fields| {
        let fields = decoder::with_fourfold_mlp(fields, &DEFAULTS)?; // the class reads no other number
        decoder::read_with_plain_heads(&Fields(&fields), &DEFAULTS)
    })?;
    Ok(Blueprint {
        norm: NormStyle { has_bias: false, ..NormStyle::layer(config.norm.eps) },
        norms: Norms::before("norm_1", "norm_2"),
        activation: Activation::GeluErf,
        attention_scale: attention
            .number("softmax_scale", |scale| scale > 0.0)?
            .unwrap_or(config.attention_scale),
        distance: Distance::Slopes(slopes(config.heads).into()),
        names: NAMES,
        ..config
    }
    .into())
}

/// One for each head, of the series for a power of two of them: first every other one from the second on, then the rest,
/// where there are fewer heads.
fn slopes(heads: usize) -> Vec<f32> {
    let all = heads.next_power_of_two();
    let slope = |head: usize| 1.0 / 2_f32.powf(head as f32 * (8.0 / all as f32));
    if all == heads {
        return (1..=all).map(slope).collect();
    }
    (2..=all).step_by(2).chain((1..=all).step_by(2)).take(heads).map(slope).collect()
}

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    words: "wte",
    layers: "blocks",
    qkv: QkvNames::Together("attn.Wqkv"),
    output: "attn.out_proj",
    inside: InsideNames::Plain("ffn.up_proj"),
    down: "ffn.down_proj",
    norm: "norm_f",
    ..LLAMA_NAMES
};
