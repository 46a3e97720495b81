//! UltraBERT: EuroBERT whose layers, but for every third, see within a radius, with a rope for each of the two kinds.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::decoder;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::HeadPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "ultrabert",
    class: "Ultrabert",
    pad_token_id: Some(0),
    eos_token_id: Some(0),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: decoder::Defaults = decoder::Defaults { max_positions: 32_768, ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut fields = fields.0.clone();
    let of_layers = fields.remove("attention_windows").unwrap_or_default();
    if let Value::Array(windows) = &of_layers {
        let windows: Vec<bool> =
            windows.iter().map(|window| window.as_u64().is_some_and(|w| w > 0)).collect();
        if let Some(place) = windows.iter().position(|&slides| slides) {
            fields.insert("sliding_window".to_owned(), of_layers[place].clone());
        }
        if fields.get("layer_types").is_none_or(Value::is_null) {
            let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
            fields.insert("layer_types".to_owned(), json!(windows.iter().map(kind).collect::<Vec<_>>()));
        }
    }
    let config = decoder::read_without_rope(&Fields(&fields), &DEFAULTS)?;
    let reach = Fields(&fields).size("sliding_window", 128, at_most::POSITIONS)?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(3);
    let windows = decoder::windows(&Fields(&fields), config.num_layers, Some(reach + 1), slides)?;
    put_ropes(&mut fields, &windows)?;
    let fields = &Fields(&fields);
    let pooling = match fields.or_default("classifier_pooling", "cls".to_owned())?.as_str() {
        "cls" => Pooling::Cls,
        "mean" => Pooling::Mean,
        other => return Err(format!("`classifier_pooling` is `{other}`: expected cls or mean")),
    };
    let attention_bias = fields.or_default("attention_bias", false)?;
    let rope = decoder::rope_defaults(&config, &DEFAULTS);
    let config = Blueprint {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        is_causal: false,
        windows,
        names: Names {
            prefixes: &["ultrabert.", "model.", ""],
            unused: &["cls.", "head."], // of masked words
            ..LLAMA_NAMES
        },
        head: HeadPlan::linear(HeadKind::Classifier, "classifier", config.hidden, true, pooling),
        ..config
    };
    Ok(config.with_ropes_by_type(fields, false, [rope; 2])?.into())
}

/// Says a rope for each kind of layer where the file says none, or a list of bases as old files do, one for each layer.
fn put_ropes(fields: &mut Map<String, Value>, windows: &[Option<usize>]) -> Result<(), String> {
    const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
    let key = "rope_parameters";
    let kind = |window: &Option<usize>| KINDS[usize::from(window.is_some())];
    let rope = |base: Value| json!({"rope_type": "default", "rope_theta": base});
    if fields
        .get("rope_scaling")
        .is_some_and(|scaling| scaling.as_object().is_none_or(|keys| !keys.is_empty()))
    {
        return Err("`rope_scaling` tells no layer types: expected `rope_parameters`, with a rope for each"
            .to_owned());
    }
    let bases = fields.remove("rope_theta").unwrap_or_default();
    match (fields.get(key), bases) {
        (None | Some(Value::Null), Value::Null) => {
            let ropes = [2_560_000.0, 10_000.0].map(|base| rope(base.into()));
            fields.insert(key.to_owned(), KINDS.map(str::to_owned).into_iter().zip(ropes).collect());
        }
        (None | Some(Value::Null), Value::Array(bases)) => {
            let ropes = windows.iter().zip(bases).map(|(window, base)| (kind(window).to_owned(), rope(base)));
            fields.insert(key.to_owned(), ropes.collect());
        }
        (None | Some(Value::Null), other) => {
            return Err(format!("`rope_theta` is {other}: expected a list, one for each layer"));
        }
        _ => {}
    }
    match windows.iter().map(kind).find(|kind| fields[key].get(kind).is_none_or(Value::is_null)) {
        Some(kind) => Err(format!("`{key}` has no `{kind}`: expected a rope for each kind of layer")),
        None => Ok(()),
    }
}
