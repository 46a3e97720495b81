//! Which of transformers' tokenizer classes a checkpoint gets, and that class's tokens; what it makes of `tokenizer.json` is
//! in [`rebuild`](super::rebuild).
//!
//! `AutoTokenizer` of transformers 5.23 picks a class by the model's type and by the class that the files name. The class
//! `TokenizersBackend` (also called `PreTrainedTokenizerFast`) takes `tokenizer.json` as it is. The others **rebuild** it:
//! they keep the vocabulary, the merges and the post-processor, and make normalizer, pre-tokenizer and the model's
//! switches anew, from what they were written for and from keys of `tokenizer_config.json`. So under
//! `GPT2Tokenizer` a `Digits` pre-tokenizer that `tokenizer.json` asks for is gone, `do_lower_case` of a `BertTokenizer`
//! counts and the normalizer of the file does not, and every Qwen2 model has the regular expression of Qwen2.

use tokenizers::AddedToken;

use super::settings::Token;

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
    Qwen3_5,
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

/// The other tokenizer classes of transformers 5.23. Each rebuilds in a way of its own, or is no tokenizer of the
/// `tokenizers` library at all.
const OTHERS: [&str; 72] = [
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
            "Qwen3_5Tokenizer" => Self::Qwen3_5,
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
            Self::Qwen3_5 => "Qwen3_5Tokenizer",
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
            Self::Qwen2 | Self::Qwen3_5 => &[
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
}
