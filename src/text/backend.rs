//! The tokenizer that the files of a checkpoint make together, ready to encode.

use tokenizers::Tokenizer;

use super::TextError;
use super::files::TextFiles;

/// A Hugging Face tokenizer, and what else encoding needs to know of the files.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) tokenizer: Tokenizer,
    /// The BOS token, or CLS where there is none.
    pub(super) bos: Option<u32>,
    pub(super) padding: Option<u32>,
}

impl Backend {
    pub(super) fn load(files: &TextFiles) -> Result<Self, TextError> {
        let bad = |source| TextError::BadTokenizer { path: files.dir.join("tokenizer.json"), source };
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).map_err(bad)?;
        // The file may have both baked in, which would shorten samples in silence.
        tokenizer.with_truncation(None).map_err(bad)?;
        tokenizer.with_padding(None);
        let id = |name: &str| tokenizer.token_to_id(files.special_tokens.get(name)?.as_str()?);
        let (bos, padding) = (id("bos_token").or_else(|| id("cls_token")), id("pad_token"));
        Ok(Self { tokenizer, bos, padding })
    }
}
