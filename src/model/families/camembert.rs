//! CamemBERT: RoBERTa by another name.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::roberta;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "camembert",
    class: "Camembert",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("CamembertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(roberta::read(fields, 30_522)?.into())
}
