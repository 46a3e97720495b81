//! RoBERTa: BERT with positions that count from the padding id on, and a head of two layers.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
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
    Ok(read(fields, 50_265)?.into())
}

/// With this vocabulary where the file names none.
pub(super) fn read(fields: &Fields<'_>, vocab_size: usize) -> Result<Blueprint, String> {
    let config = encoder::read(fields, &Defaults { vocab_size, ..BERT })?;
    let layers = ["classifier.dense", "classifier.out_proj"];
    Ok(Blueprint {
        head: head_of_two_layers(layers, config.hidden, Activation::Tanh),
        names: Names { prefixes: &["roberta.", ""], ..BERT_NAMES },
        ..config
    }
    .counting_after(fields.or_default("pad_token_id", 1)?))
}
