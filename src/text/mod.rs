//! Strings → token ids. Knows no tensors.
//!
//! ```text
//! Input → chat template, concatenation or sentence pair → tokenizer → limit → TokenizedSample
//! ```
//!
//! `files` reads what a checkpoint says about text, [`template`] renders conversations as Python's jinja2
//! would, `backend` makes of the files the tokenizer that transformers would, `tokenizer` turns strings into ids and knows which token came from prompt, response or scaffold
//! (`spans` finds that out for rendered text), and `truncation` makes the sequence fit. Ids and rendered text
//! equal those of `transformers` (`tests/text.rs` holds us to that); only truncation is our own.
//!
//! Where the files of a checkpoint contradict each other, the rule of `files` holds.

mod backend;
mod class;
pub mod compare;
pub mod conversation;
pub mod dataset;
mod ending;
mod error;
mod files;
pub mod lines;
mod rebuild;
mod settings;
mod spans;
pub mod special;
mod steps;
pub mod template;
mod tokenizer;
mod truncation;
mod whitespace;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::backend::Backend;
pub use self::class::FamilyTokenizer;
pub use self::conversation::{Conversation, Message};
pub use self::ending::{TextEnd, TextEnds};
pub use self::error::TextError;
use self::files::{TemplateSource, TextFiles};
use self::spans::Span;
use self::template::ChatTemplate;
use self::tokenizer::{Encoder, Encoding};
use self::truncation::Sequence;
use crate::disk;

/// What a caller wants scored. In files as in the proto: `{"text": {"prompt": "Hi", "response": "Hello!"}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Rendered through the chat template as a user and an assistant turn, or by the [`TextRule`].
    Text {
        /// What was asked.
        prompt: String,
        /// What was written.
        response: String,
    },
    /// Rendered through the chat template, without a generation prompt.
    Conversation(Conversation),
    /// Already rendered: tokenized without adding special tokens.
    Formatted(String),
    /// Scored as they are.
    TokenIds(Vec<u32>),
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

impl TextRule {
    /// As in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChatTemplate => "chat_template",
            Self::Concatenation => "concatenation",
            Self::SentencePair => "sentence_pair",
        }
    }

    /// The same, or "none".
    pub fn name_of(rule: Option<Self>) -> &'static str {
        rule.map_or("none", Self::name)
    }
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
    /// Rows of the embedding of token types; `None`: the model has none, and token types mean nothing to it.
    pub type_vocab_size: Option<usize>,
    /// The longest sequence the model takes; the tokenizer's own `model_max_length` lowers it.
    pub max_tokens: usize,
    /// The limit that somebody asked for: counts in place of both.
    pub asked_max_tokens: Option<usize>,
    /// Given by the manifest, or else by the family: see `default_rule`.
    pub rule: Option<TextRule>,
    /// The rule of a model that has neither a chat template nor a manifest; `None`: there is none to go by, and
    /// [`Input::Text`] is refused.
    pub default_rule: Option<TextRule>,
    /// Of the model's family.
    pub family: FamilyTokenizer,
    /// Of the model's `config.json`: decides the tokenizer's class where `tokenizer_config.json` names none.
    pub tokenizer_class: Option<String>,
    /// Given by the manifest, or else as the model's trainer did.
    pub ends: TextEnds,
    /// The token that [`TextEnd::RewardToken`] means.
    pub reward_token: Option<u32>,
}

impl Default for TextOptions {
    /// No limit, and nothing known of the model.
    fn default() -> Self {
        Self {
            vocab_size: usize::MAX,
            type_vocab_size: None,
            max_tokens: usize::MAX,
            asked_max_tokens: None,
            rule: None,
            default_rule: None,
            family: FamilyTokenizer::default(),
            tokenizer_class: None,
            ends: TextEnds::default(),
            reward_token: None,
        }
    }
}

/// Renders and tokenizes samples for one model, or for several with equal text files.
///
/// Any number of threads may use it at once.
#[derive(Debug)]
pub struct SampleTokenizer {
    /// Where its files are.
    dir: PathBuf,
    template: Option<ChatTemplate>,
    /// Of conversations with tools, where the model has one for them.
    tool_template: Option<ChatTemplate>,
    encoder: Encoder,
    /// `None`: how this model was trained on two texts is not known, and a guess would be a wrong reward.
    rule: Option<TextRule>,
    end: TextEnd,
    /// The end-of-sequence token; empty where no text ends with it.
    eos: String,
    /// What follows the tokens of texts.
    reward_token: Option<u32>,
    max_tokens: usize,
    digest: [u8; 32],
    identity: Value,
}

impl SampleTokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.{jinja,json}` and so on from a
    /// checkpoint directory.
    ///
    /// Fails if a file is missing or broken, or if the manifest's rule needs a template that is not there.
    pub fn load(dir: &Path, options: &TextOptions) -> Result<Self, TextError> {
        let files = TextFiles::read(dir)?;
        let rule = match (options.rule, &files.template) {
            (Some(TextRule::ChatTemplate), None) => {
                return Err(TextError::RuleWithoutTemplate { dir: dir.to_path_buf() });
            }
            (Some(rule), _) => Some(rule),
            (None, Some(_)) => Some(TextRule::ChatTemplate),
            (None, None) => options.default_rule,
        };
        let own = files.model_max_length.unwrap_or(usize::MAX);
        let max_tokens = options.asked_max_tokens.unwrap_or_else(|| own.min(options.max_tokens));
        if max_tokens > own {
            tracing::info!(
                max_tokens,
                model_max_length = own,
                "the limit is above that of tokenizer_config.json"
            );
        }
        disk::step("making the tokenizer", dir);
        let backend = Backend::load(&files, options.family, options.tokenizer_class.as_deref())?;
        let (end, eos) = end(dir, &backend, rule, options.ends)?;
        let reward_token = (end == TextEnd::RewardToken).then_some(options.reward_token).flatten();
        match options.reward_token {
            None if end == TextEnd::RewardToken => {
                return Err(TextError::NoRewardToken { dir: dir.to_path_buf() });
            }
            Some(id) if reward_token.is_some() && id as usize >= options.vocab_size => {
                return Err(TextError::RewardTokenOutside { id, vocab_size: options.vocab_size });
            }
            _ => {}
        }
        let digest = digest(&files, &backend, rule, (end, reward_token), max_tokens);
        disk::step("compiling the chat template", dir);
        let compile = |template: Option<TemplateSource>| {
            let compiled = template.map(|TemplateSource { path, source }| {
                ChatTemplate::new(&source, &backend.special_tokens)
                    .map_err(|source| TextError::BadTemplate { path, source })
            });
            compiled.transpose()
        };
        let (template, tool_template) = (compile(files.template)?, compile(files.tool_template)?);
        let identity = backend.identity.clone();
        let encoder = Encoder::new(backend, options)?;
        if let Some(rule) = rule.filter(|&rule| rule != TextRule::ChatTemplate) {
            encoder.probe(rule, end, &eos)?;
        }
        let dir = dir.to_owned();
        Ok(Self {
            dir,
            template,
            tool_template,
            encoder,
            rule,
            end,
            eos,
            reward_token,
            max_tokens,
            digest,
            identity,
        })
    }

    /// Renders, tokenizes and fits one sample.
    ///
    /// Fails if nothing is left to score, if it is too long, or if the template or the model cannot take it.
    pub fn tokenize(&self, input: &Input, truncation: Truncation) -> Result<TokenizedSample, TextError> {
        let mut progress = self.begin(input, truncation)?;
        loop {
            if let Some(sample) = self.step(&mut progress)? {
                return Ok(sample);
            }
        }
    }

    /// Renders a sample, to be tokenized by [`Self::step`]: as [`Self::tokenize`], for threads that have others
    /// to care for.
    pub fn begin(&self, input: &Input, truncation: Truncation) -> Result<Progress, TextError> {
        // what is rendered elsewhere has its end
        let appended = self.reward_token.filter(|_| !matches!(input, Input::Formatted(_)));
        let encoding = match input {
            Input::Text { prompt, response } => match self.rule {
                None => Err(TextError::NoTextRule),
                Some(TextRule::ChatTemplate) => {
                    let turns = vec![Message::new("user", prompt), Message::new("assistant", response)];
                    self.conversation(&turns.into(), truncation)
                }
                Some(TextRule::Concatenation) => {
                    self.encoder.concatenation(prompt, response, self.end, &self.eos)
                }
                Some(TextRule::SentencePair) => self.encoder.pair(prompt, response),
            },
            Input::Conversation(conversation) => self.conversation(conversation, truncation),
            Input::Formatted(text) => self.encoder.rendered(text.clone(), vec![Span::whole(text)]),
            Input::TokenIds(ids) => {
                let sequence = self.encoder.token_ids(ids)?;
                return Ok(Progress::new(truncation, None, ProgressState::Sequence(sequence)));
            }
        }?;
        Ok(Progress::new(truncation, appended, ProgressState::Encoding(encoding)))
    }

    /// As [`Self::begin`], of a text that the tokenizer adds its own special tokens to, as `tokenizer(text)` of
    /// transformers does; those that stand in it already are kept.
    pub fn begin_plain(&self, text: &str, truncation: Truncation) -> Result<Progress, TextError> {
        let encoding = self.encoder.plain(text.to_owned())?;
        Ok(Progress::new(truncation, None, ProgressState::Encoding(encoding)))
    }

    /// Whether a special token of the tokenizer stands in a text: what a chat template rendered has some.
    pub fn has_special_tokens(&self, text: &str) -> bool {
        self.encoder.has_special_tokens(text)
    }

    /// Goes on with a sample for some milliseconds; the sample, once it is done. Fails as [`Self::tokenize`].
    pub fn step(&self, progress: &mut Progress) -> Result<Option<TokenizedSample>, TextError> {
        let limit = self.max_tokens.min(progress.at_most);
        let sequence = match &mut progress.state {
            ProgressState::Sequence(sequence) => std::mem::take(sequence),
            ProgressState::Encoding(encoding) => {
                match self.encoder.step(encoding, limit, progress.truncation)? {
                    Some(sequence) => sequence,
                    None => return Ok(None),
                }
            }
        };
        self.fit(sequence, limit, progress.truncation, progress.appended).map(Some)
    }

    fn fit(
        &self,
        mut sequence: Sequence,
        limit: usize,
        truncation: Truncation,
        appended: Option<u32>,
    ) -> Result<TokenizedSample, TextError> {
        if let Some(token_id) = appended.filter(|_| !sequence.token_ids.is_empty()) {
            sequence.end_with(token_id);
        }
        let (sequence, truncated_tokens) = sequence.fit(limit, truncation)?;
        if sequence.token_ids.is_empty() {
            return Err(TextError::Empty);
        }
        Ok(TokenizedSample {
            double_bos: self.encoder.has_double_bos(&sequence.token_ids),
            token_ids: sequence.token_ids,
            type_ids: sequence.type_ids,
            truncated_tokens,
        })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How a prompt and a response become one sequence; `None`: they do not.
    pub fn rule(&self) -> Option<TextRule> {
        self.rule
    }

    /// The longest sequence that [`Self::tokenize`] returns.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The model's: a token id is below it.
    pub fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    /// Token types are below this; `None`: the model has none.
    pub fn type_vocab_size(&self) -> Option<usize> {
        self.encoder.type_vocab_size()
    }

    /// Whether transformers gives the model token types beside the ids of a text.
    pub fn gives_token_types(&self) -> bool {
        self.encoder.gives_token_types()
    }

    /// The text of tokens, special ones included, as transformers' `decode` has it: what a model reads, for a person.
    pub fn rendered(&self, token_ids: &[u32]) -> String {
        self.encoder.rendered_tokens(token_ids)
    }

    /// A token as the vocabulary has it; empty where it has none.
    pub fn token(&self, id: u32) -> String {
        self.encoder.token(id)
    }

    /// The tokenizer's padding token, if it names one. Nothing here pads.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.encoder.pad_token_id()
    }

    /// What is done to the end of texts.
    pub fn end(&self) -> TextEnd {
        self.end
    }

    /// What the files beside `tokenizer.json` make of it, as JSON: its class and parts, the tokens that were added, and how
    /// special ones are named and found.
    pub fn identity(&self) -> &Value {
        &self.identity
    }

    /// A digest of everything here that determines token ids: files, template, rule, end, limit.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn conversation(
        &self,
        conversation: &Conversation,
        truncation: Truncation,
    ) -> Result<Encoding, TextError> {
        let for_tools = self.tool_template.as_ref().filter(|_| conversation.tools.is_some());
        let template = for_tools.or(self.template.as_ref()).ok_or(TextError::NoTemplate)?;
        let mut text = template.render(conversation, false)?;
        let spans = match truncation {
            Truncation::Reject => Vec::new(), // nothing will be dropped
            Truncation::Left | Truncation::Right => {
                let (marked, texts) = spans::marked(conversation);
                let scaffold = marked.and_then(|marked| template.render(&marked, false).ok());
                spans::spans(&text, scaffold.as_deref(), &texts)
            }
        };
        self.end.finish(&mut text, &self.eos);
        self.encoder.rendered(text, spans)
    }
}

/// A sample between [`SampleTokenizer::begin`] and its tokens.
#[derive(Debug)]
pub struct Progress {
    truncation: Truncation,
    /// Tokens; below the model's own limit it counts.
    at_most: usize,
    /// What is to follow the tokens of the text.
    appended: Option<u32>,
    state: ProgressState,
}

#[derive(Debug)]
enum ProgressState {
    Encoding(Encoding),
    Sequence(Sequence),
}

impl Progress {
    fn new(truncation: Truncation, appended: Option<u32>, state: ProgressState) -> Self {
        Self { truncation, at_most: usize::MAX, appended, state }
    }

    /// With a limit of its own, which counts where it is below the model's.
    pub fn at_most(self, tokens: usize) -> Self {
        Self { at_most: tokens, ..self }
    }

    /// Whether the next step takes longer than milliseconds: the text has no place to cut it.
    pub fn is_long(&self) -> bool {
        matches!(&self.state, ProgressState::Encoding(encoding) if encoding.is_long())
    }
}

/// How texts end under this rule, and the token that they need for it.
fn end(
    dir: &Path,
    backend: &Backend,
    rule: Option<TextRule>,
    ends: TextEnds,
) -> Result<(TextEnd, String), TextError> {
    let end = match rule {
        Some(TextRule::ChatTemplate) => ends.rendered,
        Some(TextRule::Concatenation) => ends.joined,
        Some(TextRule::SentencePair) | None => TextEnd::AsIs,
    };
    match backend.special_tokens.get("eos_token").and_then(|token| token.as_str()) {
        _ if end.keeps_text() => Ok((end, String::new())),
        Some(eos) => Ok((end, eos.to_owned())),
        None => Err(TextError::EndWithoutEos { dir: dir.to_path_buf() }),
    }
}

/// The first part behind its length, the others JSON: no two different inputs are the same bytes.
fn digest(
    files: &TextFiles,
    backend: &Backend,
    rule: Option<TextRule>,
    (end, reward_token): (TextEnd, Option<u32>),
    max_tokens: usize,
) -> [u8; 32] {
    let template = files.template.as_ref().map(|template| &template.source);
    let rest = serde_json::to_vec(&(template, &backend.identity, rule, end, max_tokens))
        .expect("strings and numbers are JSON");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(files.tokenizer_json.len() as u64).to_le_bytes());
    hasher.update(&files.tokenizer_json);
    hasher.update(&rest);
    if let Some(template) = &files.tool_template {
        // few models have one, and the digests of the others stay what they were
        hasher.update(&serde_json::to_vec(&template.source).expect("a string is JSON"));
    }
    if let Some(id) = reward_token {
        hasher.update(&id.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use proptest::prelude::*;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_is_rendered_is_decoded_as_the_tokenizers_file_says() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama");
        let options = TextOptions { vocab_size: 1 << 20, max_tokens: 512, ..TextOptions::default() };
        let tokenizer = SampleTokenizer::load(&model, &options).unwrap();
        let text = "What happened\n\ntoday?";
        let sample = tokenizer.tokenize(&Input::Formatted(text.to_owned()), Truncation::Reject).unwrap();
        assert_eq!(tokenizer.rendered(&sample.token_ids), text);
    }

    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
        {% if message.role == 'user' %}<u>{{ message.content }}</u>\
        {% else %}<a>{{ message.content }}</a>{% endif %}{% endfor %}";
    const SPECIAL: [&str; 6] = ["<s>", "</s>", "<u>", "</u>", "<a>", "</a>"];
    const BOS: u32 = 256;
    const VOCAB_SIZE: usize = 256 + SPECIAL.len();

    /// Byte-level BPE without merges: a token is a byte and its id, so every letter beyond ASCII is several
    /// tokens with the same offsets. Truncation and padding are baked in, as some files have them.
    fn tokenizer_json() -> Value {
        // The GPT-2 alphabet: printable bytes stand for themselves, the others are moved up behind 255.
        let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let moved = (0..256).filter(|&byte| !is_printable(byte)).zip(256..);
        let letters = (0..256).filter(|&byte| is_printable(byte)).map(|byte| (byte, byte)).chain(moved);
        let vocab: serde_json::Map<String, Value> = letters
            .map(|(byte, letter)| (char::from_u32(letter).unwrap().to_string(), byte.into()))
            .collect();
        let special = |(id, content): (u32, &str)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        };
        let piece =
            |content: &str, type_id: u32| json!({"SpecialToken": {"id": content, "type_id": type_id}});
        let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
            "added_tokens": (256..).zip(SPECIAL).map(special).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [piece("<s>", 0), text("A", 0), piece("</s>", 0)],
                "pair": [piece("<s>", 0), text("A", 0), piece("</s>", 0), text("B", 1), piece("</s>", 1)],
                "special_tokens": {
                    "<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]},
                    "</s>": {"id": "</s>", "ids": [257], "tokens": ["</s>"]},
                },
            },
            "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        })
    }

    /// What the ids say; `?` for a letter that truncation cut.
    fn decode(sample: &TokenizedSample) -> String {
        let bytes = sample.token_ids.iter().flat_map(|&id| match u8::try_from(id) {
            Ok(byte) => vec![byte],
            Err(_) => SPECIAL[id as usize - 256].as_bytes().to_vec(),
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).replace('\u{fffd}', "?")
    }

    fn checkpoint(template: Option<&str>) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": "<s>"}"#).unwrap();
        if let Some(template) = template {
            fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        }
        dir
    }

    fn options(rule: Option<TextRule>, max_tokens: usize) -> TextOptions {
        let default_rule = Some(TextRule::Concatenation);
        TextOptions { vocab_size: VOCAB_SIZE, max_tokens, rule, default_rule, ..TextOptions::default() }
    }

    fn load(template: Option<&str>, rule: Option<TextRule>, max_tokens: usize) -> SampleTokenizer {
        SampleTokenizer::load(checkpoint(template).path(), &options(rule, max_tokens)).unwrap()
    }

    fn text(prompt: &str, response: &str) -> Input {
        Input::Text { prompt: prompt.to_owned(), response: response.to_owned() }
    }

    #[test]
    fn the_rule_is_the_manifests_or_the_templates_or_the_default() {
        let chat = "<s><u>ab</u><a>c</a>";
        struct Case {
            template: Option<&'static str>,
            rule: Option<TextRule>,
            expected: &'static str,
        }
        for Case { template, rule, expected } in [
            Case { template: None, rule: None, expected: "<s>abc</s>" },
            Case { template: None, rule: Some(TextRule::SentencePair), expected: "<s>ab</s>c</s>" },
            Case { template: Some(TEMPLATE), rule: None, expected: chat },
            Case { template: Some(TEMPLATE), rule: Some(TextRule::ChatTemplate), expected: chat },
            Case { template: Some(TEMPLATE), rule: Some(TextRule::Concatenation), expected: "<s>abc</s>" },
        ] {
            let sample = load(template, rule, 99).tokenize(&text("ab", "c"), Truncation::Reject).unwrap();
            assert_eq!(decode(&sample), expected, "{template:?} {rule:?}");
        }
        // a model is given the types only where the files say so
        let options = TextOptions { type_vocab_size: Some(2), ..options(Some(TextRule::SentencePair), 99) };
        for (names, expected) in
            [(json!(["input_ids"]), [0; 6]), (json!(["token_type_ids"]), [0, 0, 0, 0, 1, 1])]
        {
            let dir = checkpoint(None);
            let config = json!({"bos_token": "<s>", "model_input_names": names});
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            let pair = SampleTokenizer::load(dir.path(), &options).unwrap();
            let sample = pair.tokenize(&text("ab", "c"), Truncation::Reject).unwrap();
            assert_eq!(sample.type_ids, expected);
        }
    }

    #[test]
    fn a_missing_template_is_an_error_where_one_is_needed() {
        let dir = checkpoint(None);
        let error =
            SampleTokenizer::load(dir.path(), &options(Some(TextRule::ChatTemplate), 99)).unwrap_err();
        assert!(matches!(error, TextError::RuleWithoutTemplate { .. }), "{error}");

        let tokenizer =
            SampleTokenizer::load(dir.path(), &TextOptions { default_rule: None, ..options(None, 99) })
                .unwrap();
        let conversation = Input::Conversation(vec![Message::new("user", "a")].into());
        let error = tokenizer.tokenize(&conversation, Truncation::Reject).unwrap_err();
        assert!(matches!(error, TextError::NoTemplate), "{error}");
        let error = tokenizer.tokenize(&text("a", "b"), Truncation::Reject).unwrap_err();
        assert!(matches!(error, TextError::NoTextRule), "{error}");
        for way_out in ["chat_template.jinja", r#""text_rule""#, "rewarm.json", "formatted", "token_ids"] {
            assert!(error.to_string().contains(way_out), "{error}");
        }
        let formatted = Input::Formatted("ab".to_owned());
        assert!(tokenizer.tokenize(&formatted, Truncation::Reject).is_ok());
        let error =
            SampleTokenizer::load(checkpoint(Some("{% if %}")).path(), &options(None, 99)).unwrap_err();
        assert!(matches!(error, TextError::BadTemplate { .. }), "{error}");
    }

    #[test]
    fn every_kind_of_input_is_truncated_and_says_so() {
        let conversation = Input::Conversation(
            vec![Message::new("user", "ab"), Message::new("assistant", "cd"), Message::new("user", "ef")]
                .into(),
        );
        let formatted = |text: &str| Input::Formatted(text.to_owned());
        let (chat, pair, joined) =
            (Some(TextRule::ChatTemplate), Some(TextRule::SentencePair), Some(TextRule::Concatenation));
        struct Case {
            rule: Option<TextRule>,
            input: Input,
            limit: usize,
            left: &'static str,
            right: &'static str,
        }
        let case = |rule, input, limit, left, right| Case { rule, input, limit, left, right };
        for Case { rule, input, limit, left, right } in [
            case(chat, text("abc", "de"), 10, "<s><u>abc</u><a>de</a>", "<s><u>abc</u><a>de</a>"),
            case(chat, text("abc", "de"), 8, "<s><u>c</u><a>de</a>", "<s><u>a</u><a>de</a>"),
            case(chat, text("abc", "de"), 6, "<s><u></u><a>e</a>", "<s><u></u><a>d</a>"),
            case(chat, text("aé", "é"), 9, "<s><u>é</u><a>é</a>", "<s><u>a?</u><a>é</a>"),
            case(chat, text(" a ", "u"), 7, "<s><u> </u><a>u</a>", "<s><u> </u><a>u</a>"),
            case(
                chat,
                conversation.clone(),
                10,
                "<s><u></u><a>d</a><u>ef</u>",
                "<s><u>a</u><a></a><u>ef</u>",
            ),
            case(chat, conversation, 8, "<s><u></u><a></a><u>f</u>", "<s><u></u><a></a><u>e</u>"),
            case(joined, text("abc", "de"), 5, "<s>cde</s>", "<s>ade</s>"),
            case(joined, text("abc", "de"), 3, "<s>e</s>", "<s>d</s>"),
            case(pair, text("abc", "de"), 6, "<s>c</s>de</s>", "<s>a</s>de</s>"),
            case(pair, text("abc", "de"), 4, "<s></s>e</s>", "<s></s>d</s>"),
            case(chat, formatted("<s>abc"), 3, "<s>bc", "<s>ab"),
            case(chat, formatted("abc"), 2, "bc", "ab"),
            case(chat, Input::TokenIds(vec![BOS, 97, 98, 99]), 2, "<s>c", "<s>a"),
        ] {
            let tokenizer = load(Some(TEMPLATE), rule, limit);
            let whole = load(Some(TEMPLATE), rule, 99).tokenize(&input, Truncation::Reject).unwrap();
            for (truncation, expected) in [(Truncation::Left, left), (Truncation::Right, right)] {
                let fitted = tokenizer.tokenize(&input, truncation).unwrap();
                assert_eq!(decode(&fitted), expected, "{input:?} to {limit} {truncation:?}");
                let (tokens, dropped) = (fitted.token_ids.len(), fitted.truncated_tokens);
                assert_eq!(tokens + dropped, whole.token_ids.len(), "{input:?} to {limit} {truncation:?}");
                assert_eq!(fitted.type_ids.len(), tokens, "{input:?} to {limit} {truncation:?}");
            }
            let rejected = tokenizer.tokenize(&input, Truncation::Reject);
            assert_eq!(rejected.is_ok(), whole.token_ids.len() <= limit, "{input:?} to {limit}");
        }
    }

    proptest! {
        /// Contents that look like the template's own words, or are rewritten by it, are the hard ones.
        #[test]
        fn truncation_takes_what_it_must(
            prompt in "[user assistant:\n😀é]{0,12}",
            response in "[user assistant:\n😀é]{0,12}",
            limit in 0_usize..60,
            left: bool,
        ) {
            let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
            let (head, middle, tail) = ("user: ", "\nassistant: ", "\n");
            let scaffold = head.len() + middle.len() + tail.len();
            let truncation = if left { Truncation::Left } else { Truncation::Right };
            let result = load(Some(template), None, limit).tokenize(&text(&prompt, &response), truncation);
            if scaffold > limit {
                prop_assert!(matches!(result, Err(TextError::ScaffoldTooLong { .. })), "{result:?}");
                return Ok(());
            }
            let excess = (scaffold + prompt.len() + response.len()).saturating_sub(limit);
            let cut = |text: &str, count: usize| {
                let (start, end) = if left { (count, text.len()) } else { (0, text.len() - count) };
                text.as_bytes()[start..end].to_vec()
            };
            let from_prompt = excess.min(prompt.len());
            let expected = [
                head.into(),
                cut(&prompt, from_prompt),
                middle.into(),
                cut(&response, excess - from_prompt),
                tail.into(),
            ]
            .concat();
            let sample = result.unwrap();
            prop_assert_eq!(sample.token_ids, expected.into_iter().map(u32::from).collect::<Vec<_>>());
            prop_assert_eq!(sample.truncated_tokens, excess);
        }
    }

    #[test]
    fn a_doubled_bos_is_seen_in_every_kind_of_input() {
        let tokenizer = load(Some(TEMPLATE), None, 99);
        let concatenation = load(None, None, 99);
        let double_bos = |tokenizer: &SampleTokenizer, input| {
            tokenizer.tokenize(&input, Truncation::Reject).unwrap().double_bos
        };
        assert!(!double_bos(&tokenizer, text("a", "b")));
        assert!(double_bos(&load(Some("<s>{{ bos_token }}"), None, 99), text("a", "b")));
        assert!(!double_bos(&concatenation, text("a", "<s><s>")));
        assert!(double_bos(&concatenation, text("<s>a", "b")));
        assert!(double_bos(&tokenizer, Input::Formatted("<s><s>a".to_owned())));
        assert!(!double_bos(&tokenizer, Input::Formatted("<s>a<s>".to_owned())));
        assert!(double_bos(&tokenizer, Input::TokenIds(vec![BOS, BOS])));
        assert!(!double_bos(&tokenizer, Input::TokenIds(vec![BOS])));
    }

    fn plain(tokenizer: &SampleTokenizer, text: &str, truncation: Truncation) -> TokenizedSample {
        let mut progress = tokenizer.begin_plain(text, truncation).unwrap();
        loop {
            if let Some(sample) = tokenizer.step(&mut progress).unwrap() {
                return sample;
            }
        }
    }

    /// `tests/reference/plain.py` made the expected ids, with transformers 5.23.0.
    #[test]
    fn a_plain_text_has_the_tokenizers_own_special_tokens() {
        for (model, text, expected, double_bos) in [
            ("tests/data/models/llama", "a b", &[0, 70, 283][..], false),
            ("tests/data/models/llama", "<|begin_of_text|>a b", &[0, 0, 70, 283], true),
            ("tests/data/models/llama", "", &[0], false),
            ("deploy/demo/member-0", "It is warm.", &[2, 151, 204, 937, 86, 3], false),
            ("deploy/demo/member-0", "[CLS] It is warm. [SEP]", &[2, 2, 151, 204, 937, 86, 3, 3], true),
            ("deploy/demo/member-0", "", &[2, 3], false),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
            let tokenizer = SampleTokenizer::load(&path, &TextOptions::default()).unwrap();
            let sample = plain(&tokenizer, text, Truncation::Reject);
            assert_eq!((&*sample.token_ids, sample.double_bos), (expected, double_bos), "{model} {text:?}");
        }
        let short = load(Some(TEMPLATE), None, 4);
        assert_eq!(decode(&plain(&short, "abcd", Truncation::Left)), "<s>cd</s>");
        assert_eq!(decode(&plain(&short, "abcd", Truncation::Right)), "<s>ab</s>");
        assert!(short.has_special_tokens("a<u>b") && !short.has_special_tokens("a<b>c"));
    }

    #[test]
    fn ids_the_model_does_not_have_are_refused_by_name() {
        let tokenizer = load(Some(TEMPLATE), None, 99);
        let beyond = Input::TokenIds(vec![0, VOCAB_SIZE as u32, u32::MAX]);
        let error = tokenizer.tokenize(&beyond, Truncation::Left).unwrap_err();
        assert!(matches!(error, TextError::IdOutOfVocabulary { index: 1, id: 262, limit: 262 }), "{error}");

        let small = TextOptions { vocab_size: 258, ..options(None, 99) };
        let tokenizer = SampleTokenizer::load(checkpoint(None).path(), &small).unwrap();
        assert!(tokenizer.tokenize(&text("a", "b"), Truncation::Reject).is_ok());
        match tokenizer.tokenize(&text("a<u>", "b"), Truncation::Reject) {
            Err(TextError::TokenOutOfVocabulary { token, id: 258, limit: 258 }) => assert_eq!(token, "<u>"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sample_without_tokens_is_an_error() {
        let tokenizer = load(Some(TEMPLATE), None, 99);
        for input in [Input::Formatted(String::new()), Input::TokenIds(Vec::new())] {
            let error = tokenizer.tokenize(&input, Truncation::Left).unwrap_err();
            assert!(matches!(error, TextError::Empty), "{error}");
        }
        let scaffold = tokenizer.tokenize(&text("", ""), Truncation::Reject).unwrap();
        assert_eq!(decode(&scaffold), "<s><u></u><a></a>");
    }

    /// `named` of `tests/reference/messages.py` made the expected strings, with `apply_chat_template` of transformers
    /// 5.23.0.
    #[test]
    fn a_conversation_with_tools_is_rendered_by_the_template_for_tools() {
        const DEFAULT: &str = "{{ bos_token }}<u>{{ messages[0].content }}</u>{{ tools is none }}";
        const TOOL_USE: &str = "<a>{{ messages[0].content }}</a>{{ tools | length }}";
        let named = json!([{"name": "default", "template": DEFAULT}, {"name": "rag", "template": "no"},
            {"name": "tool_use", "template": TOOL_USE}]);
        let with_config = |template: Value| {
            let dir = checkpoint(None);
            let config = json!({"bos_token": "<s>", "chat_template": template});
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            dir
        };
        let with_files = checkpoint(Some(DEFAULT));
        fs::create_dir(with_files.path().join(crate::disk::ADDITIONAL_TEMPLATES)).unwrap();
        fs::write(with_files.path().join(crate::disk::ADDITIONAL_TEMPLATES).join("tool_use.jinja"), TOOL_USE)
            .unwrap();
        let mut digests = Vec::new();
        for (dir, expected) in [
            (with_config(named), ["<s><u>hi</u>True", "<a>hi</a>0", "<a>hi</a>1"]),
            (with_files, ["<s><u>hi</u>True", "<a>hi</a>0", "<a>hi</a>1"]),
            (with_config(json!(DEFAULT)), ["<s><u>hi</u>True", "<s><u>hi</u>False", "<s><u>hi</u>False"]),
        ] {
            let tokenizer = SampleTokenizer::load(dir.path(), &options(None, 99)).unwrap();
            digests.push(tokenizer.digest());
            for (tools, expected) in
                [None, Some(json!([])), Some(json!([{"name": "f"}]))].into_iter().zip(expected)
            {
                let conversation =
                    Conversation::new(vec![Message::new("user", "hi")], tools.clone(), None).unwrap();
                for truncation in [Truncation::Reject, Truncation::Left] {
                    let sample =
                        tokenizer.tokenize(&Input::Conversation(conversation.clone()), truncation).unwrap();
                    assert_eq!(decode(&sample), expected, "{tools:?}");
                }
            }
        }
        assert_eq!(digests[0], digests[1], "wherever they stand");
        assert_ne!(digests[0], digests[2]);
    }

    #[test]
    fn the_lower_limit_holds() {
        let dir = checkpoint(None);
        let config = dir.path().join("tokenizer_config.json");
        for (model_max_length, expected) in [("8", 8), ("1000", 99), ("1000000000000000019884624838656", 99)]
        {
            fs::write(&config, format!(r#"{{"model_max_length": {model_max_length}}}"#)).unwrap();
            let tokenizer = SampleTokenizer::load(dir.path(), &options(None, 99)).unwrap();
            assert_eq!(tokenizer.max_tokens(), expected, "{model_max_length}");
        }
    }

    #[test]
    fn the_digest_knows_everything_that_determines_ids() {
        let other_tokens = checkpoint(None);
        fs::write(other_tokens.path().join("tokenizer_config.json"), "{}").unwrap();
        let other_json = checkpoint(None);
        fs::write(other_json.path().join("tokenizer.json"), tokenizer_json().to_string() + " ").unwrap();
        let digests = [
            load(None, None, 99),
            load(None, None, 98),
            load(None, Some(TextRule::SentencePair), 99),
            load(Some(""), Some(TextRule::Concatenation), 99),
            load(Some(TEMPLATE), None, 99),
            load(Some(TEMPLATE), Some(TextRule::Concatenation), 99),
            SampleTokenizer::load(other_tokens.path(), &options(None, 99)).unwrap(),
            SampleTokenizer::load(other_json.path(), &options(None, 99)).unwrap(),
        ]
        .map(|tokenizer| tokenizer.digest());
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest), "{index}");
        }
        assert_eq!(load(None, None, 99).digest(), digests[0]);
    }

    #[test]
    fn nasty_text_is_tokenized_from_many_threads() {
        let nasty = [
            "\0".to_owned(),
            "\u{202e}שלום\u{200d}👩‍👩‍👧\u{fffd}\u{f8ff}".to_owned(),
            "\n".repeat(100_000),
            "{{ raise_exception('no') }}{% for %}".to_owned(),
            "<s></u><a>".repeat(1000),
        ];
        let tokenizer = load(Some(TEMPLATE), None, 1000);
        thread::scope(|scope| {
            for (prompt, response) in nasty.iter().zip(nasty.iter().cycle().skip(1)) {
                for truncation in [Truncation::Left, Truncation::Right] {
                    let tokenizer = &tokenizer;
                    scope.spawn(move || {
                        let sample = tokenizer.tokenize(&text(prompt, response), truncation).unwrap();
                        assert!(sample.token_ids.len() <= 1000);
                    });
                }
            }
        });
    }
}
