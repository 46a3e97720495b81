//! ELECTRA: BERT with embeddings of another width, and a head of two layers.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "electra",
    class: "Electra",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults { hidden: 256, heads: 4, intermediate: 1024, ..BERT };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = encoder::read(fields, &DEFAULTS)?;
    let layers = ["classifier.dense", "classifier.out_proj"];
    Ok(Blueprint {
        embedding_width: fields.size("embedding_size", 128, at_most::WIDTH)?,
        names: Names { prefixes: &["electra.", ""], unused: HEADS, ..config.names },
        head: head_of_two_layers(layers, config.hidden, Activation::GeluErf),
        ..config
    }
    .into())
}

/// Of the generator, and of the discriminator.
const HEADS: &[&str] = &["generator_predictions.", "generator_lm_head.", "discriminator_predictions."];
