//! UltraBERT: EuroBERT whose layers, but for every third, see within a radius, with a rope for each of the two kinds.

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
use crate::model::rope::RopeDefaults;
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
    // of old files a list, one for each layer
    let bases = fields.remove("rope_theta").unwrap_or_default();
    if fields.get("rope_parameters").is_none_or(Value::is_null)
        && let Value::Array(bases) = bases
    {
        let kind = |window: &Option<usize>| {
            if window.is_some() { "sliding_attention" } else { "full_attention" }
        };
        let ropes = windows.iter().zip(bases);
        let ropes = ropes.map(|(window, base)| {
            (kind(window).to_owned(), json!({"rope_type": "default", "rope_theta": base}))
        });
        fields.insert("rope_parameters".to_owned(), Value::Object(ropes.collect()));
    }
    let fields = &Fields(&fields);
    let pooling = match fields.or_default("classifier_pooling", "cls".to_owned())?.as_str() {
        "cls" => Pooling::Cls,
        "mean" => Pooling::Mean,
        other => return Err(format!("`classifier_pooling` is `{other}`: expected cls or mean")),
    };
    let attention_bias = fields.or_default("attention_bias", false)?;
    let defaults = decoder::rope_defaults(&config, &DEFAULTS);
    let ropes =
        [2_560_000.0, 10_000.0].map(|theta| RopeDefaults { theta: ("rope_theta", theta), ..defaults });
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
    Ok(config.with_ropes_by_type(fields, true, ropes)?.into())
}
