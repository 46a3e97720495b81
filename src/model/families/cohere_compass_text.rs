//! The text model of Cohere's Compass: attention and MLP beside each other, both of one layer norm without bias, and for each
//! kind of layer a rope or none.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::check_head_dim;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::plan::HeadPlan;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::text::FamilyTokenizer;
use serde_json::Value;

pub(super) const FAMILY: Family = Family {
    model_type: "cohere_compass_text",
    class: "CohereCompassText",
    pad_token_id: Some(0),
    eos_token_id: Some(255_001),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden: 8192,
    intermediate: 22_528,
    num_layers: 40,
    heads: 64,
    max_positions: 8192,
    norm_eps: ("layer_norm_eps", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    check_head_dim(fields, config.hidden / config.heads)?;
    let pooling = match fields.optional::<String>("pooling")?.as_deref() {
        None | Some("eos") => Pooling::LastNonPad,
        Some("bos") => Pooling::Cls,
        Some("mean") => Pooling::Mean,
        Some(other) => return Err(format!("`pooling` is `{other}`: expected eos, bos or mean")),
    };
    let attention_bias = fields.or_default("attention_bias", false)?;
    let window = decoder::sliding_window(fields, Some(4096))?;
    let windows = decoder::windows(fields, config.num_layers, window, |_| false)?;
    // both kinds may be there, with a rope or null for none
    let mut ropes = Vec::new();
    let mut rope_of = [None; 2];
    for (kind, slides) in [("full_attention", false), ("sliding_attention", true)] {
        if windows.iter().all(|window| window.is_some() != slides) {
            continue;
        }
        match fields.0.get("rope_parameters").and_then(|ropes| ropes.get(kind)) {
            Some(Value::Null) => {}
            Some(rope) if rope.get("rope_theta").is_none_or(Value::is_null) => {
                return Err(format!(
                    "`rope_parameters.{kind}` has no `rope_theta`, for which the class has no default"
                ));
            }
            Some(_) => {
                rope_of[usize::from(slides)] = Some(ropes.len());
                let defaults = decoder::rope_defaults(&config, &DEFAULTS);
                ropes.push(RopeConfig::parse_of(kind, false, fields, defaults)?);
            }
            None => {
                return Err(format!("`rope_parameters` has no `{kind}`: expected a rope, or null for none"));
            }
        }
    }
    Ok(Blueprint {
        norm: NormStyle { has_bias: false, ..NormStyle::layer(config.norm.eps) },
        norms: Norms::shared("input_layernorm"),
        is_parallel: true,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        rope_of: windows.iter().map(|window| rope_of[usize::from(window.is_some())]).collect(),
        ropes,
        windows,
        head: HeadPlan { pooling, ..decoder::score(config.hidden) },
        ..config
    }
    .into())
}
