//! DistilBERT: BERT without token types, under other names, and a head with ReLU.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::HeadPlan;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "distilbert",
    class: "DistilBert",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("BertTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let keys = [
        Key::Either("dim", "hidden_size"),
        Key::Either("n_heads", "num_attention_heads"),
        Key::Either("n_layers", "num_hidden_layers"),
        Key::Only("hidden_dim", "intermediate_size"),
        Key::Only("activation", "hidden_act"),
    ];
    let config = renamed(fields, &keys, |fields| {
        let mut fields = fields.0.clone();
        fields.insert("layer_norm_eps".to_owned(), 1e-12.into()); // whatever the file says
        encoder::read(&Fields(&fields), &Defaults { num_layers: 6, ..BERT })
    })?;
    let head = head_of_two_layers(["pre_classifier", "classifier"], config.hidden, Activation::Relu);
    let dense = head.dense.map(|dense| DensePlan { drops_input: false, ..dense });
    Ok(Blueprint {
        type_vocab_size: None,
        norms: Norms::of_sums("sa_layer_norm", "output_layer_norm"),
        names: NAMES,
        head: HeadPlan { dense, ..head },
        ..config
    }
    .into())
}

const NAMES: Names = Names {
    prefixes: &["distilbert.", ""],
    unused: &["vocab_transform.", "vocab_layer_norm.", "vocab_projector."], // of masked words
    layers: "transformer.layer",
    qkv: QkvNames::Apart(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    output: "attention.out_lin",
    inside: InsideNames::Plain("ffn.lin1"),
    down: "ffn.lin2",
    ..BERT_NAMES
};
