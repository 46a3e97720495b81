//! Data2Vec for text: RoBERTa under another prefix.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::roberta;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "data2vec-text",
    class: "Data2VecText",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("RobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = roberta::read(fields, 30_522)?;
    let names = Names { prefixes: &["data2vec_text.", ""], ..config.names };
    Ok(Blueprint { names, ..config }.into())
}
