//! XLM-RoBERTa: RoBERTa of many languages, with a tokenizer of another kind.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::roberta;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "xlm-roberta",
    class: "XLMRoberta",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("XLMRobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(roberta::read(fields, 30_522)?.into())
}
