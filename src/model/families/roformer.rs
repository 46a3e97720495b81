//! RoFormer: BERT that turns neighbours in pairs in place of positions, and a head of two layers.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeScaling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "roformer",
    class: "RoFormer",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("RoFormerTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    fields.refuse_unless(
        "rotary_value",
        |value| *value == Value::Bool(false),
        "values that turn as queries and keys do are not supported",
    )?;
    let mut given = fields.0.clone();
    given.remove("position_embedding_type"); // not read
    let config =
        encoder::read(&Fields(&given), &Defaults { vocab_size: 50_000, max_positions: 1536, ..BERT })?;
    if !config.head_dim.is_multiple_of(2) {
        return Err(format!("the width of a head is {}: it turns pairs of columns", config.head_dim));
    }
    let rope =
        RopeConfig { head_dim: config.head_dim, theta: 10_000.0, scaling: RopeScaling::None, growth: None };
    let max_tokens = config.max_tokens;
    let config = Blueprint {
        positions: None,
        embedding_width: fields.optional_size("embedding_size", at_most::WIDTH)?.unwrap_or(config.hidden),
        turns_neighbours: true,
        head: head_of_two_layers(
            ["classifier.dense", "classifier.out_proj"],
            config.hidden,
            config.activation,
        ),
        names: Names {
            prefixes: &["roformer.", ""],
            unused: &["encoder.embed_positions.", "pooler."], // the sines of each position
            ..config.names
        },
        ..config
    };
    Ok(Blueprint { max_tokens, ..config.with_rope(rope) }.into())
}
