//! ModernBERT's decoder: causal, with three projections in tensors of their own, and local layers that see half as far.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::modernbert;
use crate::model::plan::BackbonePlan;
use crate::model::pooling::Pooling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "modernbert-decoder",
    class: "ModernBertDecoder",
    pad_token_id: Some(50_283),
    eos_token_id: Some(50_282),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    // itself and what is before it
    let config = modernbert::read(fields, modernbert::reach(fields)?)?;
    let has_bias = fields.or_default("classifier_bias", false)?;
    let head = modernbert::head(fields, &config, Pooling::LastNonPad, has_bias)?;
    Ok(Blueprint { head, ..config }.into())
}
