//! Which of transformers' tokenizer classes a checkpoint gets, and what that class makes of `tokenizer.json`.
//!
//! `AutoTokenizer` of transformers 5.23 picks a class by the model's type and by the class that the files name. The class
//! `TokenizersBackend` (also called `PreTrainedTokenizerFast`) takes `tokenizer.json` as it is. The others **rebuild** it:
//! they keep the vocabulary, the merges and the post-processor, and make normalizer, pre-tokenizer and the model's
//! switches anew, from what they were written for and from keys of `tokenizer_config.json`. So under
//! `GPT2Tokenizer` a `Digits` pre-tokenizer that `tokenizer.json` asks for is gone, `do_lower_case` of a `BertTokenizer`
//! counts and the normalizer of the file does not, and every Qwen2 model has the regular expression of Qwen2.

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::settings::{Settings, Token};

/// A class whose tokenizers we build as transformers does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`, `PreTrainedTokenizerFast`: `tokenizer.json` as it is.
    Whole,
    Bert,
    DistilBert,
    Roberta,
    Gpt2,
    GptNeoX,
    Llama,
    Qwen2,
    Gemma,
    XlmRoberta,
    Deberta,
    DebertaV2,
    Camembert,
    Albert,
    RemBert,
    MpNet,
    CodeGen,
    Herbert,
    OpenAiGpt,
    Cohere,
}

/// What `AutoTokenizer` takes for a family, by transformers' tables (`TOKENIZER_MAPPING_NAMES` and
/// `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilyTokenizer {
    /// What the files name.
    #[default]
    AsFilesSay,
    /// This class, unless the files name another.
    Unless(&'static str),
    /// This class, whatever the files name.
    Always(&'static str),
}

/// What `AutoTokenizer` looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints<'a> {
    /// `tokenizer_class` of `tokenizer_config.json`
    pub(super) tokenizer_class: Option<&'a str>,
    /// Whether `tokenizer_config.json` has an `auto_map` for it.
    pub(super) auto_map: bool,
    /// Of the model's family.
    pub(super) family: FamilyTokenizer,
    /// `tokenizer_class` of `config.json`
    pub(super) model_class: Option<&'a str>,
    /// Whether `tokenizer.json` speaks of `ByteLevel` anywhere.
    pub(super) byte_level: bool,
}

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

/// The other tokenizer classes of transformers 5.23. Each rebuilds in a way of its own, or is no tokenizer of the
/// `tokenizers` library at all.
const OTHERS: [&str; 73] = [
    "BarthezTokenizer",
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertweetTokenizer",
    "BigBirdTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "BlenderbotTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CTRLTokenizer",
    "CanineTokenizer",
    "ClvpTokenizer",
    "CodeLlamaTokenizer",
    "ConvBertTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DiaTokenizer",
    "EsmTokenizer",
    "EsmcTokenizer",
    "FNetTokenizer",
    "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer",
    "FlaubertTokenizer",
    "FunnelTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LukeTokenizer",
    "M2M100Tokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MarianTokenizer",
    "MarkupLMTokenizer",
    "MgpstrTokenizer",
    "MyT5Tokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "PLBartTokenizer",
    "ParakeetTokenizer",
    "PegasusTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "ProphetNetTokenizer",
    "Qwen3_5Tokenizer",
    "ReformerTokenizer",
    "RoCBertTokenizer",
    "RoFormerTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "SpeechT5Tokenizer",
    "SplinterTokenizer",
    "T5Tokenizer",
    "TapasTokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "VitsTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLMTokenizer",
    "XLNetTokenizer",
    "Wav2Vec2CTCTokenizer",
];

impl Class {
    /// What `AutoTokenizer.from_pretrained` picks. Fails for a class that we do not know how to build.
    pub(super) fn pick(hints: &Hints<'_>) -> Result<Self, String> {
        let bare = |name: &str| name.strip_suffix("Fast").unwrap_or(name).to_owned();
        let (registered, whatever) = match hints.family {
            FamilyTokenizer::AsFilesSay => (None, false),
            FamilyTokenizer::Unless(class) => (Some(class), false),
            FamilyTokenizer::Always(class) => (Some(class), true),
        };
        let named = hints.tokenizer_class.or(hints.model_class);
        if let (false, Some(named)) = (hints.auto_map, named) {
            // the hub's Llama 3 and its like call themselves so, and are byte-level
            let is_mistaken = bare(named) == "LlamaTokenizer" && hints.byte_level;
            if is_mistaken && !whatever {
                return Ok(Self::Whole);
            }
            if let Some(registered) = registered
                && registered != bare(named)
            {
                let class = if whatever { registered } else { &bare(named) };
                return Self::by_name(class).map(|class| class.unwrap_or(Self::Whole));
            }
        }
        match (hints.tokenizer_class, hints.model_class) {
            (Some(name), _) => match Self::by_name(&bare(name))? {
                Some(class) => Ok(class),
                None if hints.auto_map => Err(format!(
                    "`auto_map` names code of the checkpoint's own for the tokenizer, and `tokenizer_class` {name} is not \
                     known: such code is not run. Save the tokenizer as a PreTrainedTokenizerFast"
                )),
                None => Ok(Self::Whole),
            },
            (None, Some(name)) => Self::by_name(&bare(name))?.ok_or_else(|| {
                format!("`tokenizer_class` of config.json is {name}: transformers has no such class")
            }),
            (None, None) => Self::by_name(registered.unwrap_or("TokenizersBackend"))
                .map(|class| class.unwrap_or(Self::Whole)),
        }
    }

    /// `None`: transformers has no such class. Fails for one that it has and that we do not know.
    fn by_name(name: &str) -> Result<Option<Self>, String> {
        Ok(Some(match name {
            "TokenizersBackend" | "PreTrainedTokenizer" | "BloomTokenizer" => Self::Whole,
            "BertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Self::Bert,
            "DistilBertTokenizer" => Self::DistilBert,
            "RobertaTokenizer"
            | "BartTokenizer"
            | "LEDTokenizer"
            | "LongformerTokenizer"
            | "MvpTokenizer" => Self::Roberta,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "LlamaTokenizer" | "Phi3Tokenizer" => Self::Llama,
            "Qwen2Tokenizer" => Self::Qwen2,
            "GemmaTokenizer" => Self::Gemma,
            "XLMRobertaTokenizer" => Self::XlmRoberta,
            "DebertaTokenizer" => Self::Deberta,
            "DebertaV2Tokenizer" => Self::DebertaV2,
            "CamembertTokenizer" => Self::Camembert,
            "AlbertTokenizer" => Self::Albert,
            "RemBertTokenizer" => Self::RemBert,
            "MPNetTokenizer" => Self::MpNet,
            "CodeGenTokenizer" => Self::CodeGen,
            "HerbertTokenizer" => Self::Herbert,
            "OpenAIGPTTokenizer" => Self::OpenAiGpt,
            "CohereTokenizer" => Self::Cohere,
            other if OTHERS.contains(&other) => {
                return Err(format!(
                    "the tokenizer's class is {other}, which transformers builds from tokenizer.json in a way that is not \
                     known here: if tokenizer.json holds all of it, say \"tokenizer_class\": \"PreTrainedTokenizerFast\" \
                     in tokenizer_config.json"
                ));
            }
            _ => return Ok(None),
        }))
    }

    /// As transformers calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Whole => "TokenizersBackend",
            Self::Bert => "BertTokenizer",
            Self::DistilBert => "DistilBertTokenizer",
            Self::Roberta => "RobertaTokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::GptNeoX => "GPTNeoXTokenizer",
            Self::Llama => "LlamaTokenizer",
            Self::Qwen2 => "Qwen2Tokenizer",
            Self::Gemma => "GemmaTokenizer",
            Self::XlmRoberta => "XLMRobertaTokenizer",
            Self::Deberta => "DebertaTokenizer",
            Self::DebertaV2 => "DebertaV2Tokenizer",
            Self::Camembert => "CamembertTokenizer",
            Self::Albert => "AlbertTokenizer",
            Self::RemBert => "RemBertTokenizer",
            Self::MpNet => "MPNetTokenizer",
            Self::CodeGen => "CodeGenTokenizer",
            Self::Herbert => "HerbertTokenizer",
            Self::OpenAiGpt => "OpenAIGPTTokenizer",
            Self::Cohere => "CohereTokenizer",
        }
    }

    /// Whether the model is given token types where `model_input_names` does not say.
    pub(super) fn gives_token_types(self) -> bool {
        matches!(self, Self::Bert | Self::Deberta | Self::DebertaV2)
    }

    /// Whether the class adds its special tokens a second time, as special ones.
    pub(super) fn adds_tokens_again(self) -> bool {
        matches!(self, Self::Qwen2 | Self::RemBert | Self::Cohere)
    }

    /// What the class makes of a special token that is a text alone: a mask takes the space before it.
    pub(super) fn token(self, name: &str, text: String) -> Token {
        match self {
            Self::Camembert | Self::MpNet if name == "mask_token" => {
                Token::Added(AddedToken::from(text, true).lstrip(true))
            }
            _ => Token::Text(text),
        }
    }

    /// Special tokens without a name, where no file has a list of them.
    pub(super) fn extra_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Camembert => &["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
            _ => &[],
        }
    }

    /// The special token that stands for a name of which no file says anything.
    pub(super) fn default_token(self, name: &str) -> Option<&'static str> {
        let tokens: &[(&str, &str)] = match self {
            Self::Whole => &[],
            Self::Bert | Self::DistilBert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Roberta | Self::XlmRoberta | Self::Camembert => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::MpNet => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "[UNK]"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Albert | Self::RemBert => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "<unk>"),
                ("sep_token", "[SEP]"),
                ("pad_token", "<pad>"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Herbert => &[
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Self::OpenAiGpt => &[("unk_token", "<unk>")],
            Self::Cohere => &[
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
                ("unk_token", "<UNK>"),
                ("sep_token", "<SEP>"),
                ("pad_token", "<PAD>"),
                ("cls_token", "<CLS>"),
                ("mask_token", "<MASK_TOKEN>"),
            ],
            Self::Gpt2 | Self::CodeGen => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
            ],
            Self::GptNeoX => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|padding|>"),
            ],
            Self::Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            Self::Qwen2 => &[
                ("unk_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
            Self::Gemma => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Deberta | Self::DebertaV2 => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
        };
        tokens.iter().find(|(key, _)| *key == name).map(|(_, text)| *text)
    }

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
            Self::Qwen2 => Plan {
                model: plain_bpe,
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": false},
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
