//! Ministral: Mistral with layers of both kinds.

use crate::model::families::Family;
use crate::model::families::mistral;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "ministral",
    class: "Ministral",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse: mistral::parse_ministral,
};
