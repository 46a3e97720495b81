//! Megatron's BERT: BERT with norms before attention and MLP, and none of the embeddings.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "megatron-bert",
    class: "MegatronBert",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &Defaults { vocab_size: 29_056, ..BERT })?;
    Ok(Blueprint {
        norms_embedding: false,
        norms: Norms::before("attention.ln", "ln"),
        norms_output: true,
        names: Names { norm: "encoder.ln", ..config.names },
        ..config
    }
    .into())
}
