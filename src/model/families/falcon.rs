//! Falcon: layer norms, a plain MLP, usually beside attention, all three projections in one tensor, few key and value heads;
//! rotary positions, or ALiBi as transformers computes it by default (its eager attention adds it twice).

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::bloom;
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
use crate::ops::Distance;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "falcon",
    class: "Falcon",
    pad_token_id: None,
    eos_token_id: Some(11),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 65_024,
    hidden: 4544,
    heads: 71,
    norm_eps: ("layer_norm_epsilon", 1e-5),
    activation: ("hidden_act", "gelu"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let has_slopes = fields.optional::<bool>("alibi")?.unwrap_or(false);
    let keys = [
        Key::Either("n_embed", "hidden_size"),
        Key::Only("num_kv_heads", "num_key_value_heads"),
        Key::Only("ffn_hidden_size", "intermediate_size"),
        Key::Only("activation", "hidden_act"),
    ];
    let config = renamed(fields, &keys, |fields| {
        let fields = decoder::with_mlp_or_fourfold(fields, &DEFAULTS)?;
        match has_slopes {
            true => decoder::read_without_rope(&Fields(&fields), &DEFAULTS),
            false => decoder::read(&Fields(&fields), &DEFAULTS),
        }
    })?;
    let [is_new, is_multi_query, is_parallel, has_bias] = [
        ("new_decoder_architecture", false),
        ("multi_query", true),
        ("parallel_attn", true),
        ("bias", false),
    ]
    .map(|(key, default)| fields.or_default(key, default));
    let (is_new, is_parallel, has_bias) = (is_new?, is_parallel?, has_bias?);
    let num_norms = fields.optional::<usize>("num_ln_in_parallel_attn")?;
    let norms = match (is_new, is_parallel, num_norms.unwrap_or(if is_new { 2 } else { 1 })) {
        (false, false, _) => Norms::BEFORE,
        (true, true, 2) => Norms::before("ln_attn", "ln_mlp"),
        (_, true, 1) => Norms::shared("input_layernorm"),
        (_, _, norms) => {
            return Err(format!(
                "`num_ln_in_parallel_attn` {norms} with `new_decoder_architecture` {is_new} and `parallel_attn` \
                 {is_parallel}: transformers computes no such layer"
            ));
        }
    };
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    Ok(Blueprint {
        kv_heads: match (is_new, is_multi_query?) {
            (true, _) => kv_heads,
            (false, true) => 1,
            (false, false) if kv_heads == heads => heads,
            (false, false) => {
                return Err(format!(
                    "`num_kv_heads` is {kv_heads} and `num_attention_heads` {heads}: without `multi_query` or \
                     `new_decoder_architecture` transformers computes as many only"
                ));
            }
        },
        norm: NormStyle::layer(config.norm.eps),
        norms,
        qkv_bias: has_bias,
        output_bias: has_bias,
        mlp_bias: has_bias,
        is_parallel,
        distance: match has_slopes {
            true => Distance::RoundedSlopes(bloom::slopes(heads).into()),
            false => Distance::Ignored,
        },
        names: NAMES,
        ..config
    }
    .into())
}

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    unused: &[".self_attention.rotary.inv_freq"],
    words: "word_embeddings",
    layers: "h",
    qkv: QkvNames::ByHead("self_attention.query_key_value"),
    output: "self_attention.dense",
    inside: InsideNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    norm: "ln_f",
    ..LLAMA_NAMES
};
