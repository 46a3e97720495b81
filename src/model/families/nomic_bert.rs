//! Nomic's BERT: BERT with a rope in place of positions, a gate, and no biases.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
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

const DEFAULTS: Defaults = Defaults { vocab_size: 30_528, max_positions: 2048, activation: "silu", ..BERT };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let config = Blueprint {
        norms: Norms::of_sums("norm1", "norm2"),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        names: NAMES,
        ..config
    };
    Ok(config.turning(fields, 1000.0)?.into())
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
