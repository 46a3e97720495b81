//! Qwen3.5 with its vision tower, as it is published: the text model inside it.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::qwen3_5_text;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_5",
    class: "Qwen3_5",
    tokenizer: FamilyTokenizer::Always("Qwen3_5Tokenizer"),
    nested: Some("text_config"),
    parse,
    ..qwen3_5_text::FAMILY
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(BackbonePlan {
        prefixes: &["model.language_model."],
        // of images, and what predicts several tokens at a time
        unused: &["model.visual.", "mtp."],
        ..qwen3_5_text::parse(fields)?
    })
}
