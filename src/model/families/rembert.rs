//! RemBERT: BERT with embeddings of another width.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::encoder;
use crate::model::plan::BackbonePlan;
use crate::model::plan::LinearPlan;
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

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let mut given = fields.0.clone();
    let sizes = [
        ("hidden_size", 1152),
        ("num_attention_heads", 18),
        ("num_hidden_layers", 32),
        ("intermediate_size", 4608),
    ];
    for (key, default) in sizes {
        given.entry(key).or_insert(default.into());
    }
    let config = encoder::read(&Fields(&given), 250_300)?;
    let mut plan = BackbonePlan::from(Blueprint {
        embedding_width: fields.size("input_embedding_size", 256, at_most::WIDTH)?,
        names: Names { prefixes: &["rembert.", ""], ..config.names },
        ..config
    });
    // there whatever the widths
    let (hidden, width) = (plan.hidden(), plan.embedding.words.width);
    plan.embedding.projection =
        Some(LinearPlan::new("encoder.embedding_hidden_mapping_in", hidden, width, true));
    Ok(plan)
}
