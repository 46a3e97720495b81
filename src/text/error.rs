//! What can be wrong with a sample, and with the text files of a checkpoint.
//!
//! A sample's error is whole in its message, which travels to the caller; a file's error has its cause behind
//! it.

use std::io;
use std::path::PathBuf;

use super::template::TemplateError;

/// Why a sample cannot be tokenized, or a tokenizer not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Nothing to score.
    #[error("the sample is empty: it has no tokens")]
    Empty,
    /// Too long, and truncation was not asked for.
    #[error(
        "the sample has {}{tokens} tokens, the limit is {limit}: shorten it or set `truncation`",
        if *is_more { "more than " } else { "" }
    )]
    TooLong {
        /// The sample's length.
        tokens: usize,
        /// There is more, which was not tokenized any more.
        is_more: bool,
        /// The model's limit.
        limit: usize,
    },
    /// Too long even with no content left.
    #[error("the template and the special tokens alone take {scaffold} tokens, the limit is {limit}")]
    ScaffoldTooLong {
        /// How many tokens must stay.
        scaffold: usize,
        /// The model's limit.
        limit: usize,
    },
    /// A token id of the caller that the model does not have.
    #[error(
        "token_ids[{index}] is {id}, the vocabulary has {limit} entries: tokenize with this model's tokenizer"
    )]
    IdOutOfVocabulary {
        /// Its place in the sample.
        index: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        limit: usize,
    },
    /// A token of the tokenizer that the model does not have.
    #[error("token {token:?} has id {id}, the embedding has {limit} rows: the tokenizer is not this model's")]
    TokenOutOfVocabulary {
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        limit: usize,
    },
    /// A token type that the model does not have.
    #[error(
        "token {token:?} has type {type_id}, the model has {limit} token types (`type_vocab_size` of config.json): the \
         tokenizer is not this model's. Take \"token_type_ids\" out of `model_input_names` in tokenizer_config.json, or \
         put the class of the model's tokenizer there, if it was trained without"
    )]
    TypeOutOfVocabulary {
        /// The token's text.
        token: String,
        /// Its type.
        type_id: u32,
        /// Rows of the embedding of token types.
        limit: usize,
    },
    /// A sample that needs a chat template, for a model that has none.
    #[error(
        "the model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): \
         send `formatted` or `token_ids`"
    )]
    NoTemplate,
    /// A prompt and a response, for a model of which nothing says how it was trained on two texts.
    #[error(
        "nothing says how this model joins a prompt and a response: it has no chat template and is no encoder of \
         sentence pairs. Put its chat_template.jinja beside it, or {{\"text_rule\": \"concatenation\"}} (or \
         sentence_pair) into its rewarm.json; or send `formatted` or `token_ids`"
    )]
    NoTextRule,
    /// A conversation that is none, or has more than text in it.
    #[error("{problem}")]
    BadConversation {
        /// What is wrong with which field.
        problem: String,
    },
    /// The template called `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    TemplateRefused {
        /// What it said.
        message: String,
    },
    /// The template made a mistake.
    #[error("the chat template failed: {reason}")]
    TemplateFailed {
        /// What, and in which line of the template.
        reason: String,
    },
    /// The template took more steps, time or memory than a rendering may.
    #[error("the chat template was stopped: {reason}")]
    TemplateExhausted {
        /// Of what, and in which line of the template.
        reason: String,
    },
    /// One word, or one run of alike letters, that is too long to be tokenized.
    #[error("the text has more than {bytes} bytes without white space or punctuation, the limit is {limit}")]
    Unbroken {
        /// What was looked at.
        bytes: usize,
        /// The longest run allowed.
        limit: usize,
    },
    /// More white space in a row than the tokenizer can split correctly.
    #[error("the text has {run} white-space characters in a row, the limit is {limit}")]
    WhiteSpaceRun {
        /// Characters in the run.
        run: usize,
        /// The longest one allowed.
        limit: usize,
    },
    /// The tokenizer gave up.
    #[error("the tokenizer failed: {reason}")]
    TokenizerFailed {
        /// Its account.
        reason: String,
    },
    /// A directory without `tokenizer.json`.
    #[error(
        "{} is missing: make it with AutoTokenizer.from_pretrained({dir:?}).save_pretrained({dir:?})",
        dir.join("tokenizer.json").display()
    )]
    NoTokenizer {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not UTF-8.
    #[error("{} is not UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// A file that is not JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it fails.
        source: serde_json::Error,
    },
    /// A file of the tokenizer that says what cannot be followed.
    #[error("{}: {problem}", path.display())]
    BadTextFile {
        /// The file.
        path: PathBuf,
        /// Names the key and the value.
        problem: String,
    },
    /// A chat template that is not Jinja.
    #[error("the chat template in {} does not compile", path.display())]
    BadTemplate {
        /// The file.
        path: PathBuf,
        /// Where it fails.
        source: TemplateError,
    },
    /// A `chat_template` that is neither a string nor a list with an entry named "default".
    #[error(
        "chat_template in {} is neither a string nor a list of templates with one named \"default\"",
        path.display()
    )]
    NoDefaultTemplate {
        /// The file.
        path: PathBuf,
    },
    /// Texts shall end with a token that the tokenizer does not name.
    #[error(
        "texts shall end with the end-of-sequence token (`text_end` in rewarm.json, or the model's trainer), and {} names \
         no `eos_token`: name it there, or say {{\"text_end\": \"as_is\"}} in rewarm.json",
        dir.join("tokenizer_config.json").display()
    )]
    EndWithoutEos {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// Texts shall end with the token that a model's own code appends, and there is none.
    #[error(
        "rewarm.json says text_end reward_token, and the model in {} has none: only families whose own code appends one do",
        dir.display()
    )]
    NoRewardToken {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// The token that a model's own code appends is none of its vocabulary.
    #[error(
        "texts shall end with token {id} (`reward_token_id` of config.json), the vocabulary has {vocab_size} entries: say in \
         rewarm.json {{\"text_end\": \"as_is\"}} if they shall not"
    )]
    RewardTokenOutside {
        /// The token.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A manifest that asks for a template, in a directory without one.
    #[error(
        "the manifest asks for the chat template, and {} has none (chat_template.jinja, or chat_template in \
         tokenizer_config.json)",
        dir.display()
    )]
    RuleWithoutTemplate {
        /// The checkpoint.
        dir: PathBuf,
    },
}
