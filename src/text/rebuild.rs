//! How a tokenizer class rebuilds a tokenizer from `tokenizer.json`: what it makes of each part, by the sources of
//! transformers 5.23 (`tokenization_*.py`), held to its ids by `tests/rules.rs`.

use serde_json::{Value, json};

use super::class::Class;
use super::settings::{Settings, Token};

/// A rebuilt tokenizer, but for its vocabulary.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) model: ModelPlan,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: PostPlan,
}

/// The model of a rebuilt tokenizer, and its switches.
#[derive(Debug)]
pub(super) enum ModelPlan {
    Bpe {
        unk_token: Option<String>,
        fuse_unk: bool,
        byte_fallback: bool,
        end_of_word_suffix: Option<&'static str>,
    },
    WordPiece {
        unk_token: String,
    },
    /// `unk_text`: its place in the vocabulary, where it stands there with this score, or with any, is used before
    /// `unk_id`.
    Unigram {
        unk_text: Option<String>,
        unk_score: Option<f64>,
        unk_id: usize,
    },
}

/// The post-processor of a rebuilt tokenizer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PostPlan {
    /// That of `tokenizer.json`.
    Own,
    /// None.
    Nothing,
    /// `[CLS] A [SEP] B [SEP]`, with token types; the ids are for tokens that are none.
    Bert { cls_id: u32, sep_id: u32 },
    /// The same with these ids, whatever the tokens are (HerBERT).
    BertOfIds { cls_id: u32, sep_id: u32 },
    /// That of `tokenizer.json`, or else the same, of tokens of the vocabulary (ALBERT).
    OwnOrBert,
    /// The same instead of that of `tokenizer.json`, and none where that has none (RemBERT).
    BertInsteadOfOwn,
    /// `<s> A </s></s> B </s>`, of cls and sep.
    Roberta { trim_offsets: bool, add_prefix_space: bool },
    /// The same, of the tokens of these names, and nothing else.
    Doubled { first: &'static str, last: &'static str },
}

/// Qwen2's, from `tokenization_qwen2.py`.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen3.5's, from `tokenization_qwen3_5.py`: marks go with letters.
const QWEN3_5_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Class {
    /// How the class rebuilds a tokenizer; `None`: not at all. `normalizer` is that of `tokenizer.json`.
    pub(super) fn plan(self, settings: &Settings, normalizer: &Value) -> Result<Option<Plan>, String> {
        // Python's `str(unk_token)`, of none too
        let text = |name: &str| match settings.named(name, self.default_token(name)) {
            Some(Token::Text(text)) => text,
            Some(Token::Added(token)) => token.content,
            None => "None".to_owned(),
        };
        let byte_level = |add_prefix_space: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex});
        let metaspace = |prepend_scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": split});
        let bpe = |unk_token: Option<String>, fuse_unk: bool, byte_fallback: bool| ModelPlan::Bpe {
            unk_token,
            fuse_unk,
            byte_fallback,
            end_of_word_suffix: None,
        };
        let plain_bpe = bpe(None, false, false);
        let words_bpe = || ModelPlan::Bpe {
            unk_token: Some(text("unk_token")),
            fuse_unk: false,
            byte_fallback: false,
            end_of_word_suffix: Some("</w>"),
        };
        let unigram = |unk_id: usize| ModelPlan::Unigram { unk_text: None, unk_score: None, unk_id };
        let bert_normalizer = |chinese: bool, strip_accents: Option<bool>, lowercase: bool| {
            json!({
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": chinese,
                "strip_accents": strip_accents,
                "lowercase": lowercase,
            })
        };
        let bert_normalizer_as_said = || {
            let chinese = settings.switch("tokenize_chinese_chars", true)?;
            let strip_accents = settings.optional_switch("strip_accents")?;
            Ok::<_, String>(bert_normalizer(chinese, strip_accents, settings.switch("do_lower_case", true)?))
        };
        let prefix =
            |key: &str| Ok::<_, String>(if settings.switch(key, true)? { "always" } else { "never" });
        let words_then = |metaspace: Value| json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]});
        // ALBERT's and RemBERT's, with their defaults
        let sentence_piece = |keeps_accents: bool, lowercases: bool, spaces: Option<Value>| {
            let quotes = ["``", "''"]
                .map(|quotes| json!({"type": "Replace", "pattern": {"String": quotes}, "content": "\""}));
            let mut normalizers: Vec<Value> = quotes.into_iter().chain(spaces).collect();
            if !settings.switch("keep_accents", keeps_accents)? {
                normalizers.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
            }
            if settings.switch("do_lower_case", lowercases)? {
                normalizers.push(json!({"type": "Lowercase"}));
            }
            normalizers.extend(Some(precompiled(normalizer)).filter(|found| !found.is_null()));
            Ok::<_, String>(json!({"type": "Sequence", "normalizers": normalizers}))
        };
        Ok(Some(match self {
            Self::Whole => return Ok(None),
            Self::Bert | Self::DistilBert => Plan {
                model: ModelPlan::WordPiece { unk_token: text("unk_token") },
                normalizer: bert_normalizer_as_said()?,
                pre_tokenizer: json!({"type": "BertPreTokenizer"}),
                post_processor: PostPlan::Bert { cls_id: 2, sep_id: 3 },
            },
            Self::Roberta => {
                let add_prefix_space = settings.switch("add_prefix_space", false)?;
                let trim_offsets = settings.switch("trim_offsets", true)?;
                Plan {
                    model: plain_bpe,
                    normalizer: Value::Null,
                    pre_tokenizer: byte_level(add_prefix_space, true),
                    post_processor: PostPlan::Roberta { trim_offsets, add_prefix_space },
                }
            }
            Self::MpNet => Plan {
                model: ModelPlan::WordPiece { unk_token: text("unk_token") },
                normalizer: bert_normalizer_as_said()?,
                pre_tokenizer: json!({"type": "BertPreTokenizer"}),
                post_processor: PostPlan::Roberta { trim_offsets: true, add_prefix_space: false },
            },
            Self::Herbert => Plan {
                model: words_bpe(),
                normalizer: bert_normalizer(true, Some(false), false),
                pre_tokenizer: json!({"type": "BertPreTokenizer"}),
                post_processor: PostPlan::BertOfIds { cls_id: 0, sep_id: 2 },
            },
            Self::OpenAiGpt => Plan {
                model: words_bpe(),
                normalizer: bert_normalizer(true, None, true),
                pre_tokenizer: json!({"type": "BertPreTokenizer"}),
                post_processor: PostPlan::Own,
            },
            Self::Cohere => Plan {
                model: plain_bpe,
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Digits", "individual_digits": true},
                    byte_level(settings.switch("add_prefix_space", false)?, true),
                ]}),
                post_processor: PostPlan::Own,
            },
            Self::Camembert => Plan {
                model: ModelPlan::Unigram { unk_text: Some(text("unk_token")), unk_score: None, unk_id: 0 },
                normalizer: precompiled(normalizer),
                pre_tokenizer: words_then(metaspace(prefix("add_prefix_space")?, true)),
                post_processor: PostPlan::Doubled { first: "bos_token", last: "eos_token" },
            },
            Self::Albert => Plan {
                model: unigram(1),
                normalizer: sentence_piece(false, true, None)?,
                pre_tokenizer: words_then(metaspace(prefix("add_prefix_space")?, true)),
                post_processor: PostPlan::OwnOrBert,
            },
            Self::RemBert => Plan {
                model: unigram(2),
                normalizer: sentence_piece(
                    true,
                    false,
                    Some(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})),
                )?,
                pre_tokenizer: metaspace(prefix("add_prefix_space")?, true),
                post_processor: PostPlan::BertInsteadOfOwn,
            },
            Self::Gpt2 | Self::CodeGen => Plan {
                model: plain_bpe,
                normalizer: Value::Null,
                pre_tokenizer: byte_level(settings.switch("add_prefix_space", false)?, true),
                post_processor: PostPlan::Own,
            },
            Self::Deberta => Plan {
                model: plain_bpe,
                normalizer: Value::Null,
                pre_tokenizer: byte_level(settings.switch("add_prefix_space", false)?, true),
                post_processor: PostPlan::Doubled { first: "cls_token", last: "sep_token" },
            },
            Self::GptNeoX => Plan {
                model: plain_bpe,
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: byte_level(settings.switch("add_prefix_space", false)?, true),
                post_processor: PostPlan::Nothing,
            },
            Self::Llama => {
                let is_legacy = !matches!(settings.get("legacy"), Value::Null | Value::Bool(false));
                let scheme = match settings.optional_switch("add_prefix_space")?.unwrap_or(true) {
                    false => "never",
                    true if is_legacy => "always",
                    true => "first",
                };
                Plan {
                    model: bpe(None, true, true),
                    normalizer: Value::Null,
                    pre_tokenizer: metaspace(scheme, false),
                    post_processor: PostPlan::Own,
                }
            }
            Self::Qwen2 | Self::Qwen3_5 => Plan {
                model: plain_bpe,
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": if self == Self::Qwen2 { QWEN2_PATTERN } else { QWEN3_5_PATTERN }}, "behavior": "Isolated", "invert": false},
                    byte_level(settings.optional_switch("add_prefix_space")?.unwrap_or(false), false),
                ]}),
                post_processor: PostPlan::Own,
            },
            Self::Gemma => Plan {
                model: bpe(Some(text("unk_token")), true, true),
                normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                pre_tokenizer: json!({"type": "Split", "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious", "invert": false}),
                post_processor: PostPlan::Own,
            },
            Self::XlmRoberta => Plan {
                model: unigram(3),
                normalizer: precompiled(normalizer),
                pre_tokenizer: words_then(metaspace(prefix("add_prefix_space")?, true)),
                post_processor: PostPlan::Doubled { first: "bos_token", last: "eos_token" },
            },
            Self::DebertaV2 => {
                let lowercase =
                    settings.switch("do_lower_case", false)?.then(|| json!({"type": "Lowercase"}));
                let punctuation = json!({"type": "Punctuation", "behavior": "Isolated"});
                let punctuation = settings.switch("split_by_punct", false)?.then_some(punctuation);
                let scheme = if settings.switch("add_prefix_space", true)? { "always" } else { "first" };
                let normalizers = [
                    json!({"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}),
                    json!({"type": "NFC"}),
                    json!({"type": "Strip", "strip_left": false, "strip_right": true}),
                ];
                let normalizers: Vec<Value> = lowercase.into_iter().chain(normalizers).collect();
                let pretokenizers: Vec<Value> =
                    punctuation.into_iter().chain([metaspace(scheme, true)]).collect();
                let unk_id = match settings.get("unk_id") {
                    Value::Null => 1,
                    value => {
                        value.as_u64().ok_or_else(|| format!("`unk_id` is {value}: expected an id"))? as usize
                    }
                };
                Plan {
                    model: ModelPlan::Unigram {
                        unk_text: Some(text("unk_token")),
                        unk_score: Some(0.0),
                        unk_id,
                    },
                    normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
                    pre_tokenizer: json!({"type": "Sequence", "pretokenizers": pretokenizers}),
                    post_processor: PostPlan::Bert { cls_id: 0, sep_id: 0 },
                }
            }
        }))
    }
}

/// The first `Precompiled` of a normalizer, or null.
fn precompiled(normalizer: &Value) -> Value {
    let one = std::slice::from_ref(normalizer);
    let all = match normalizer["type"] == "Sequence" {
        true => normalizer["normalizers"].as_array().map_or(one, Vec::as_slice),
        false => one,
    };
    all.iter().find(|normalizer| normalizer["type"] == "Precompiled").cloned().unwrap_or(Value::Null)
}
