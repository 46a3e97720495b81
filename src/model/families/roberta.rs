//! RoBERTa: BERT with positions that count from the padding id on, and a head of two layers.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::encoder;
use crate::model::families::encoder::Encoder;
use crate::model::families::encoder::Head;
use crate::model::plan::BackbonePlan;
use crate::model::plan::PositionRule;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "roberta",
    class: "Roberta",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("RobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    parse_with(fields, 50_265)
}

/// With this vocabulary where the file names none.
pub(super) fn parse_with(fields: &Fields<'_>, vocab_size: usize) -> Result<BackbonePlan, String> {
    Ok(Encoder {
        prefixes: &["roberta.", ""],
        head: Head::TwoLayers,
        position_rule: PositionRule::AfterPadding(fields.or_default("pad_token_id", 1)?),
        ..encoder::read(fields, vocab_size)?
    }
    .into())
}
