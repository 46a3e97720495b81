//! ERNIE: BERT, with an embedding of tasks where it says so.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::encoder;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "ernie",
    class: "Ernie",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &encoder::BERT)?;
    let has_tasks = fields.or_default("use_task_id", false)?;
    let tasks = fields.size("task_type_vocab_size", 3, at_most::TOKEN_TYPES)?;
    let names = Names { prefixes: &["ernie.", ""], ..config.names };
    Ok(Blueprint { task_vocab_size: has_tasks.then_some(tasks), names, ..config }.into())
}
