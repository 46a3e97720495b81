//! RemBERT: BERT with embeddings of another width.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "rembert",
    class: "RemBert",
    pad_token_id: Some(0),
    eos_token_id: Some(313),
    tokenizer: FamilyTokenizer::Unless("RemBertTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 250_300, hidden: 1152, heads: 18, num_layers: 32, intermediate: 4608, ..BERT };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let plan = BackbonePlan::from(Blueprint {
        embedding_width: fields.size("input_embedding_size", 256, at_most::WIDTH)?,
        names: Names { prefixes: &["rembert.", ""], ..config.names },
        ..config
    });
    Ok(encoder::with_mapping_in(plan))
}
