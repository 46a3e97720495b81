//! What encoders have alike: BERT's keys.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::backbone::EncoderConfig;
use crate::model::backbone::EncoderHead;
use crate::model::families::at_most;
use crate::model::families::parse_activation;

/// An encoder as BERT is one, with BERT's sizes where keys are absent, but for the vocabulary.
pub(super) fn read(fields: &Fields<'_>, vocab_size: usize) -> Result<EncoderConfig, String> {
    let is_no = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    fields.refuse_unless(
        "position_embedding_type",
        |value| value.is_null() || value == "absolute",
        "only absolute position embeddings are supported",
    )?;
    fields.refuse_unless("is_decoder", is_no, "a BERT that is a decoder is not supported")?;
    fields.refuse_unless("is_causal", is_no, "an encoder that is causal is not supported")?;
    fields.refuse_unless("add_cross_attention", is_no, "cross attention is not supported")?;
    let hidden = fields.size("hidden_size", 768, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", 12, at_most::HEADS)?;
    if !hidden.is_multiple_of(heads) {
        return Err(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}"));
    }
    let activation: String = fields.or_default("hidden_act", "gelu".to_owned())?;
    Ok(EncoderConfig {
        prefix: "bert.",
        head: EncoderHead::Pooler,
        vocab_size: fields.size("vocab_size", vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: fields.size("type_vocab_size", 2, at_most::TOKEN_TYPES)?,
        hidden,
        intermediate: fields.size("intermediate_size", 3072, at_most::WIDTH)?,
        num_layers: fields.size("num_hidden_layers", 12, at_most::LAYERS)?,
        heads,
        max_positions: fields.size("max_position_embeddings", 512, at_most::POSITIONS)?,
        position_padding_id: None,
        norm_eps: fields.number_or("layer_norm_eps", 1e-12, |eps| (0.0..1.0).contains(&eps))?,
        activation: parse_activation("hidden_act", &activation)?,
    })
}
