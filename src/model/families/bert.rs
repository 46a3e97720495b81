//! BERT.

use crate::checkpoint::fields::Fields;
use crate::model::backbone::BackboneConfig;
use crate::model::families::Family;
use crate::model::families::encoder;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    class: "Bert",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackboneConfig, String> {
    Ok(encoder::read(fields, 30_522)?.into())
}
