//! GLM-4: GLM with norms on both sides of attention and MLP.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Norms;
use crate::model::families::glm;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "glm4",
    class: "Glm4",
    pad_token_id: Some(151_329),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let norms = Norms {
        after_attention: Some("post_self_attn_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
        ..Norms::BEFORE
    };
    Ok(Blueprint { norms, ..glm::read(fields)? }.into())
}
