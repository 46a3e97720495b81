//! BERT.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::encoder;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    class: "Bert",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(encoder::read(fields, &encoder::BERT)?.into())
}
