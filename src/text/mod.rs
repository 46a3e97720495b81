//! Strings → token ids. Knows no tensors.
//!
//! ```text
//! Input → chat template, concatenation or sentence pair → tokenizer → limit → TokenizedSample
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a caller wants scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Rendered through the chat template as a user and an assistant turn, or by the [`TextRule`].
    Text {
        /// What was asked.
        prompt: String,
        /// What was written.
        response: String,
    },
    /// Rendered through the chat template, without a generation prompt.
    Conversation(Vec<Message>),
    /// Already rendered: tokenized without adding special tokens.
    Formatted(String),
    /// Scored as they are.
    TokenIds(Vec<u32>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant", or what else the template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

/// What to do with a sample that is longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// An error.
    #[default]
    Reject,
    /// Drop tokens from the start; of a prompt with a response, from the prompt's start first.
    Left,
    /// Drop tokens from the end; of a prompt with a response, from the prompt's end first.
    Right,
}

/// How a [`Input::Text`] becomes one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextRule {
    /// One user turn and one assistant turn through the chat template.
    ChatTemplate,
    /// `prompt + response`, with the tokenizer's own special tokens.
    Concatenation,
    /// A sentence pair with the tokenizer's own special tokens and token types.
    SentencePair,
}

/// A sample, ready for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizedSample {
    /// `[tokens]`, never empty.
    pub token_ids: Vec<u32>,
    /// `[tokens]`: the token types (segments) of a sentence pair, else zeros.
    pub type_ids: Vec<u32>,
    /// How many tokens were dropped to fit the limit.
    pub truncated_tokens: usize,
    /// Whether the sequence starts with two beginning-of-sequence tokens.
    pub double_bos: bool,
}

/// What the tokenizer must know of the model it feeds.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Rows of the embedding: a token id must be below.
    pub vocab_size: usize,
    /// The longest sequence the model takes; the tokenizer's own `model_max_length` lowers it.
    pub max_tokens: usize,
    /// Given by the manifest, or else by the family: see `default_rule`.
    pub rule: Option<TextRule>,
    /// The rule of a model that has neither a chat template nor a manifest.
    pub default_rule: TextRule,
}

/// Why a sample cannot be tokenized, or a tokenizer not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Nothing to score.
    #[error("the sample is empty: it has no tokens")]
    Empty,
    /// Too long, and truncation was not asked for.
    #[error("the sample has {tokens} tokens, the limit is {limit}: shorten it or set `truncation`")]
    TooLong {
        /// The sample's length.
        tokens: usize,
        /// The model's limit.
        limit: usize,
    },
    /// Placeholder of the skeleton.
    #[error("{0}")]
    Other(String),
}

/// Renders and tokenizes samples for one model (or several with equal text files).
#[derive(Debug)]
pub struct SampleTokenizer {}

impl SampleTokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.{jinja,json}` and so on from a checkpoint directory.
    pub fn load(_dir: &Path, _options: &TextOptions) -> Result<Self, TextError> {
        Err(TextError::Empty)
    }

    /// Renders, tokenizes and fits one sample.
    pub fn tokenize(&self, _input: &Input, _truncation: Truncation) -> Result<TokenizedSample, TextError> {
        Err(TextError::Empty)
    }

    /// The longest sequence that [`Self::tokenize`] returns.
    pub fn max_tokens(&self) -> usize {
        0
    }

    /// A digest of everything here that determines token ids: files, template, rule, limit.
    pub fn digest(&self) -> [u8; 32] {
        [0; 32]
    }
}
