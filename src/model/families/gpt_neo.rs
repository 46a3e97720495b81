//! GPT-Neo: GPT-2 with a window in every other layer, and scores that are not scaled.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder::Defaults;
use crate::model::families::gpt2;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neo",
    class: "GPTNeo",
    pad_token_id: None,
    eos_token_id: Some(50_256),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let keys = [
        Key::Only("intermediate_size", "n_inner"),
        Key::Either("num_heads", "n_head"),
        Key::Either("num_layers", "n_layer"),
        Key::Either("hidden_size", "n_embd"),
        Key::Either("max_position_embeddings", "n_positions"),
    ];
    let config = renamed(fields, &keys, |fields| gpt2::read(fields, &DEFAULTS))?;
    let window = fields.size("window_size", 256, at_most::POSITIONS)?;
    Ok(Blueprint {
        qkv_bias: false,
        windows: windows(fields, config.num_layers, window)?,
        attention_scale: 1.0,
        names: Names {
            unused: &[".attn.attention.bias", ".attn.attention.masked_bias"], // masks of causality
            qkv: QkvNames::Apart(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
            output: "attn.attention.out_proj",
            ..config.names
        },
        ..config
    }
    .into())
}

/// By `attention_layers`, a kind for each, or by `attention_types`: [[kinds of some layers, how often], ...].
fn windows(fields: &Fields<'_>, num_layers: usize, window: usize) -> Result<Vec<Option<usize>>, String> {
    type Repeated = (Vec<String>, usize);
    let default = || vec![(vec!["global".to_owned(), "local".to_owned()], 12)];
    let (key, types): (_, Vec<Repeated>) = match fields.0.contains_key("attention_layers") {
        true => ("attention_layers", vec![(fields.required("attention_layers")?, 1)]),
        false => ("attention_types", fields.optional("attention_types")?.unwrap_or_else(default)),
    };
    let mut windows = Vec::new();
    for (kinds, times) in types {
        for _ in 0..times.min(num_layers) {
            for kind in &kinds {
                windows.push(match kind.as_str() {
                    "global" => None,
                    "local" => Some(window),
                    other => {
                        return Err(format!("`{key}` has `{other}`: expected global or local"));
                    }
                });
            }
        }
    }
    if windows.len() != num_layers {
        return Err(format!("`{key}` is for {} layers, the model has {num_layers}", windows.len()));
    }
    Ok(windows)
}

const DEFAULTS: Defaults =
    Defaults { hidden: 2048, num_layers: 24, heads: 16, max_positions: 2048, ..gpt2::DEFAULTS };
