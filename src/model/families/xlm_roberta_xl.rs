//! XLM-RoBERTa XL: RoBERTa with norms before attention and MLP, and none of the embeddings.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Norms;
use crate::model::families::roberta;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "xlm-roberta-xl",
    class: "XLMRobertaXL",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = roberta::read(fields, 250_880)?;
    Ok(Blueprint {
        norms_embedding: false,
        norms: Norms::before("attention.self_attn_layer_norm", "LayerNorm"),
        norms_output: true,
        ..config
    }
    .into())
}
