//! Gemma-3 with its vision tower, as it is published: the text model inside it.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::gemma3_text;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3",
    class: "Gemma3",
    pad_token_id: Some(0),
    eos_token_id: Some(1),
    tokenizer: FamilyTokenizer::Unless("GemmaTokenizer"),
    nested: Some("text_config"),
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    Ok(BackbonePlan {
        // as transformers writes it, as it keeps it, and before it was nested
        prefixes: &["language_model.model.", "model.language_model.", "model.language_model.model."],
        // of images
        unused: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
        ..gemma3_text::parse(fields)?
    })
}
