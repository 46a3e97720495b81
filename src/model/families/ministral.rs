//! Ministral: Mistral by another name.

use crate::checkpoint::fields::Fields;
use crate::model::backbone::BackboneConfig;
use crate::model::families::Family;
use crate::model::families::mistral;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "ministral",
    class: "Ministral",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackboneConfig, String> {
    (mistral::FAMILY.parse)(fields)
}
