//! Nomic's BERT: BERT with a rope in place of positions, a gate, and no biases.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::check_head_dim;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "nomic_bert",
    class: "NomicBert",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    given.entry("hidden_act").or_insert("silu".into());
    given.entry("max_position_embeddings").or_insert(2048.into());
    let config = encoder::read(&Fields(&given), 30_528)?;
    check_head_dim(fields, config.head_dim)?;
    let defaults = RopeDefaults {
        head_dim: config.head_dim,
        max_positions: config.max_tokens,
        theta: ("rope_theta", 1000.0),
        share: None,
    };
    let rope = RopeConfig::parse(fields, defaults)?;
    let config = Blueprint {
        positions: None,
        norms: Norms::of_sums("norm1", "norm2"),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        names: NAMES,
        ..config
    };
    Ok(config.with_rope(rope).into())
}

const NAMES: Names = Names {
    prefixes: &["nomic_bert.", ""],
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    qkv: QkvNames::Together("attn.Wqkv"),
    output: "attn.out_proj",
    inside: InsideNames::Gated { gate: "mlp.fc12", up: "mlp.fc11" },
    down: "mlp.fc2",
    ..BERT_NAMES
};
