//! RoBERTa with norms before attention and MLP.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::roberta;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "roberta-prelayernorm",
    class: "RobertaPreLayerNorm",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("RobertaTokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = roberta::read(fields, 50_265)?;
    Ok(Blueprint {
        norms: Norms::before("attention.LayerNorm", "intermediate.LayerNorm"),
        norms_output: true,
        names: Names { prefixes: &["roberta_prelayernorm.", ""], norm: "LayerNorm", ..config.names },
        ..config
    }
    .into())
}
