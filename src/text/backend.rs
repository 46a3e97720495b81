//! The tokenizer that transformers would make of a checkpoint's files, ready to encode.
//!
//! ```text
//! tokenizer.json → vocabulary, merges ┐
//! class → normalizer, pre-tokenizer   ├→ Backend
//! settings → added tokens, switches   ┘
//! ```
//!
//! Every token that some file names and that the tokenizer lacks is added to it, as `TokenizersBackend.__init__` does
//! it: those of `added_tokens_decoder` (or of the older files) by their ids, then the named ones, then the others. The
//! ids that they get are the next free ones, whatever the files say.
//!
//! # One sample, one sequence
//!
//! `dropout` of a BPE model makes merges fail at random, for training: transformers and the `tokenizers` library go on
//! with it when they score. Here it is off.
//!
//! # Panics
//!
//! The library trusts the parts of `tokenizer.json`: a template that uses a special token which it does not define ends in
//! a panic at the first text. [`guarded`] turns those into errors, here and where texts are encoded.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer,
};

use super::TextError;
use super::class::{Class, FamilyTokenizer, Hints};
use super::files::{SpecialTokens, TextFiles};
use super::rebuild::{ModelPlan, Plan, PostPlan};
use super::settings::{Settings, Sources, StoredToken, TOKEN_NAMES, Token};

/// A Hugging Face tokenizer, and what else encoding needs to know of the files.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) tokenizer: Tokenizer,
    /// What a chat template is given.
    pub(super) special_tokens: SpecialTokens,
    /// The BOS token, or CLS where there is none.
    pub(super) bos: Option<u32>,
    pub(super) padding: Option<u32>,
    /// Whether the model is given the token types, or zeros.
    pub(super) gives_token_types: bool,
    /// Everything that decides how a text becomes ids, apart from the bytes of `tokenizer.json`.
    pub(super) identity: Value,
}

/// Of a string that begins a list, as the pieces of a Unigram do: the library keeps a node per byte, each inside of the
/// one before, and to drop some thousands of them ends a thread's stack. Real pieces have some dozen bytes.
const MAX_PIECE_BYTES: usize = 1000;

/// The bytes of the longest JSON string that is the first of a list.
fn longest_in_lists(json: &[u8]) -> usize {
    let (mut longest, mut before) = (0, 0);
    let mut rest = json.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'"' {
            let (mut length, mut is_escaped) = (0, false);
            for &byte in rest.by_ref() {
                match byte {
                    b'"' if !is_escaped => break,
                    _ => is_escaped = byte == b'\\' && !is_escaped,
                }
                length += 1;
            }
            if before == b'[' {
                longest = longest.max(length);
            }
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    longest
}

/// `tokenizer.json`, but for what is set per call: truncation and padding.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    padding: Option<PaddingParams>,
    #[serde(default)]
    added_tokens: Option<Vec<StoredToken>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    post_processor: Option<PostProcessorWrapper>,
    /// Makes text of ids, which nothing here does.
    #[serde(default)]
    decoder: Value,
    model: ModelWrapper,
}

/// What is wrong, in words.
type Problem = String;

impl Backend {
    /// `model_class` is `tokenizer_class` of `config.json`.
    pub(super) fn load(
        files: &TextFiles,
        family: FamilyTokenizer,
        model_class: Option<&str>,
    ) -> Result<Self, TextError> {
        let in_file = |file: &str, problem| TextError::BadTextFile { path: files.dir.join(file), problem };
        let hints = Hints {
            tokenizer_class: files
                .tokenizer_class()
                .map_err(|problem| in_file("tokenizer_config.json", problem))?,
            auto_map: files.has_auto_map(),
            family,
            model_class,
            byte_level: std::str::from_utf8(&files.tokenizer_json)
                .is_ok_and(|json| json.contains("\"ByteLevel\"")),
        };
        let class = Class::pick(&hints).map_err(|problem| in_file("tokenizer_config.json", problem))?;
        let longest = longest_in_lists(&files.tokenizer_json);
        if longest > MAX_PIECE_BYTES {
            let problem =
                format!("a piece of its vocabulary has {longest} bytes, the limit is {MAX_PIECE_BYTES}");
            return Err(in_file("tokenizer.json", problem));
        }
        let parts = guarded(|| serde_json::from_slice::<Parts>(&files.tokenizer_json))
            .and_then(|parsed| parsed.map_err(|error| readable(&error.to_string())))
            .map_err(|problem| in_file("tokenizer.json", problem))?;
        let settings = Settings::read(&Sources {
            config: files.config.as_ref(),
            special_tokens_map: files.special_tokens_map.as_ref(),
            added_tokens: files.added_tokens.as_ref(),
            stored: parts.added_tokens.as_deref(),
        })
        .map_err(|(file, problem)| in_file(file, problem))?;
        guarded(|| Self::build(parts, class, &settings))
            .and_then(|built| built)
            .map_err(|problem| in_file("tokenizer.json", problem))
    }

    fn build(parts: Parts, class: Class, settings: &Settings) -> Result<Self, Problem> {
        if let Some(version) = parts.version.filter(|version| version != "1.0") {
            return Err(format!("`version` is {version}: expected 1.0"));
        }
        if settings.get("fix_mistral_regex") == &Value::Bool(true) {
            return Err(
                "tokenizer_config.json asks to `fix_mistral_regex`: save the tokenizer after the fix"
                    .to_owned(),
            );
        }
        let plan = class.plan(settings, &parts.normalizer)?;
        let dropout = match &parts.model {
            ModelWrapper::BPE(BPE { dropout: Some(dropout), .. }) if *dropout > 0.0 => Some(*dropout),
            _ => None,
        };
        if let Some(dropout) = dropout {
            tracing::info!(
                dropout,
                "tokenizer.json has BPE dropout: it is off, so that a sample has one reward"
            );
        }
        let added_tokens =
            parts.added_tokens.unwrap_or_default().into_iter().map(|stored| stored.token).collect();
        let decoder = serde_json::from_value::<Option<DecoderWrapper>>(parts.decoder);
        let decoder = decoder.map_err(|error| format!("`decoder`: {error}"));
        let (mut tokenizer, post_plan) = match plan {
            None => {
                // the library reads the whole file or nothing of it
                if let Err(problem) = &decoder {
                    return Err(problem.clone());
                }
                (whole(parts.model, &parts.normalizer, parts.pre_tokenizer, added_tokens)?, PostPlan::Own)
            }
            Some(plan) => {
                note_what_is_replaced(class, &plan, &parts.normalizer, parts.pre_tokenizer.as_ref());
                (rebuilt(class, &plan, parts.model)?, plan.post_processor)
            }
        };
        // nothing is scored by it: it shows what a model reads
        tokenizer.with_decoder(decoder.unwrap_or_default());
        let mut post_processor = parts.post_processor;
        if let Some(post_processor) = &post_processor {
            check_post_processor(post_processor)?;
        }
        let split_special_tokens = settings.switch("split_special_tokens", false)?;
        tokenizer.set_encode_special_tokens(split_special_tokens);

        // the others have a default of their own, were it none
        let padding = parts.padding.as_ref().filter(|_| matches!(class, Class::Whole | Class::Llama));
        let default = |name: &str| {
            let padding = padding.filter(|_| name == "pad_token").map(|padding| padding.pad_token.as_str());
            class.default_token(name).or(padding)
        };
        let named = TOKEN_NAMES.iter().filter_map(|&name| {
            Some((
                name,
                match settings.named(name, default(name))? {
                    Token::Text(text) => class.token(name, text),
                    added => added,
                },
            ))
        });
        let own = settings.own.iter().map(|(name, token)| (name.as_str(), token.clone()));
        let named: Vec<(&str, Token)> = named.chain(own).collect();
        let extra: Vec<Token> = match settings.has_extra() {
            true => settings.extra.clone(),
            false => class.extra_tokens().iter().map(|&text| Token::Text(text.to_owned())).collect(),
        };
        let in_vocabulary = |name: &str| {
            let (_, token) = named.iter().find(|(key, _)| *key == name)?;
            tokenizer.token_to_id(token.content())
        };
        let edges_in_vocabulary = [in_vocabulary("cls_token"), in_vocabulary("sep_token")];
        let added = tokens_to_add(&tokenizer, settings, &named, &extra);
        tokenizer.add_tokens(added.clone()).map_err(|error| error.to_string())?;
        if class.adds_tokens_again() {
            let again = |token: &Token| match token {
                Token::Added(token) if class != Class::Qwen2 => AddedToken { special: true, ..token.clone() },
                token => AddedToken::from(token.content(), true),
            };
            let tokens = named.iter().map(|(_, token)| token).chain(&extra);
            let tokens: Vec<AddedToken> = tokens.map(again).collect();
            tokenizer.add_tokens(tokens).map_err(|error| error.to_string())?;
        }

        let id = |name: &str| {
            let (_, token) = named.iter().find(|(key, _)| *key == name)?;
            Some((token.content().to_owned(), tokenizer.token_to_id(token.content())?))
        };
        // said by `special_tokens_map.json`, or else taken away
        let adds = ["add_bos_token", "add_eos_token"].map(|key| settings.get(key) == &Value::Bool(true));
        let bert = |[cls, sep]: [(String, u32); 2]| {
            let single = format!("{}:0 $A:0 {}:0", cls.0, sep.0);
            let pair = format!("{single} $B:1 {}:1", sep.0);
            template(single.as_str(), pair.as_str(), vec![cls, sep]).map(Some)
        };
        let of = |name: &str, default: u32| id(name).unwrap_or_else(|| ("None".to_owned(), default));
        if post_plan == PostPlan::OwnOrBert && edges_in_vocabulary.contains(&None) {
            return Err(format!("{} needs a `cls_token` and a `sep_token` of its vocabulary", class.name()));
        }
        match post_plan {
            PostPlan::Own | PostPlan::Nothing | PostPlan::OwnOrBert | PostPlan::BertInsteadOfOwn
                if adds != [false, false] =>
            {
                let [bos, eos] = [("bos_token", adds[0]), ("eos_token", adds[1])]
                    .map(|(name, is_added)| id(name).filter(|_| is_added));
                post_processor = Some(edges(bos.as_ref(), eos.as_ref())?);
            }
            PostPlan::Own => {}
            PostPlan::Nothing => post_processor = None,
            PostPlan::Bert { cls_id, sep_id } => {
                post_processor = bert([of("cls_token", cls_id), of("sep_token", sep_id)])?;
            }
            PostPlan::BertOfIds { cls_id, sep_id } => {
                post_processor = bert([("[CLS]".to_owned(), cls_id), ("[SEP]".to_owned(), sep_id)])?;
            }
            PostPlan::OwnOrBert => {
                if let (None, [Some(cls), Some(sep)]) = (&post_processor, edges_in_vocabulary) {
                    post_processor = bert([("[CLS]".to_owned(), cls), ("[SEP]".to_owned(), sep)])?;
                }
            }
            PostPlan::BertInsteadOfOwn => {
                if post_processor.is_some() {
                    // a token that is none is unknown
                    let unknown = id("unk_token").map_or(0, |(_, id)| id);
                    post_processor = bert([of("cls_token", unknown), of("sep_token", unknown)])?;
                }
            }
            PostPlan::Roberta { trim_offsets, add_prefix_space } => {
                let (Some(sep), Some(cls)) = (id("sep_token"), id("cls_token")) else {
                    return Err(format!("{} needs a `sep_token` and a `cls_token`", class.name()));
                };
                let processor = RobertaProcessing::new(sep, cls);
                let processor = processor.trim_offsets(trim_offsets).add_prefix_space(add_prefix_space);
                post_processor = Some(processor.into());
            }
            PostPlan::Doubled { first, last } => {
                let (Some(first), Some(last)) = (id(first), id(last)) else {
                    return Err(format!("{} needs `{first}` and `{last}`", class.name()));
                };
                let single = vec![first.0.clone(), "$A".to_owned(), last.0.clone()];
                let second = vec![last.0.clone(), "$B".to_owned(), last.0.clone()];
                let pair = [single.clone(), second].concat();
                post_processor = Some(template(single, pair, vec![first, last])?);
            }
        }
        let bos = id("bos_token").or_else(|| id("cls_token")).map(|(_, id)| id);
        let padding = id("pad_token").map(|(_, id)| id);
        let gives_token_types = match settings.get("model_input_names") {
            Value::Null if !settings.says("model_input_names") => class.gives_token_types(),
            Value::Array(names) => names.iter().any(|name| name == "token_type_ids"),
            other => return Err(format!("`model_input_names` is {other}: expected a list")),
        };
        let special_tokens: SpecialTokens =
            named.iter().map(|(name, token)| ((*name).to_owned(), token.content().into())).collect();
        let identity = json!({
            "class": class.name(),
            "normalizer": tokenizer.get_normalizer(),
            "pre_tokenizer": tokenizer.get_pre_tokenizer(),
            "post_processor": post_processor,
            "added_tokens": added,
            "split_special_tokens": split_special_tokens,
            "gives_token_types": gives_token_types,
            "special_tokens": special_tokens,
        });
        tokenizer.with_post_processor(post_processor);
        Ok(Self { tokenizer, special_tokens, bos, padding, gives_token_types, identity })
    }
}

/// The value, or what a panic in there said.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Problem> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("the tokenizers library panics: {said}")
    })
}

/// The library joins the two sides of a merge by bytes, and may cut a character when the second is no continuation: the
/// text of its error need not be UTF-8 then, whatever its type says.
fn readable(error: &str) -> Problem {
    String::from_utf8_lossy(error.as_bytes()).into_owned()
}

/// What the library does with a whole `tokenizer.json`.
fn whole(
    mut model: ModelWrapper,
    normalizer: &Value,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    added_tokens: Vec<AddedToken>,
) -> Result<Tokenizer, Problem> {
    if let ModelWrapper::BPE(bpe) = &mut model {
        bpe.dropout = None;
    }
    let mut tokenizer = Tokenizer::new(model);
    set_normalizer(&mut tokenizer, normalizer)?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer.add_tokens(added_tokens).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

fn rebuilt(class: Class, plan: &Plan, model: ModelWrapper) -> Result<Tokenizer, Problem> {
    let model: ModelWrapper = match (&plan.model, model) {
        (
            ModelPlan::Bpe { unk_token, fuse_unk, byte_fallback, end_of_word_suffix },
            ModelWrapper::BPE(mut bpe),
        ) => {
            if let Some(prefix) = bpe.continuing_subword_prefix.filter(|prefix| !prefix.is_empty()) {
                return Err(format!(
                    "`continuing_subword_prefix` is {prefix:?}, the tokenizer's class is {}, which has none",
                    class.name()
                ));
            }
            bpe.continuing_subword_prefix = None;
            bpe.end_of_word_suffix = end_of_word_suffix.map(str::to_owned);
            bpe.dropout = None;
            bpe.ignore_merges = false;
            bpe.unk_token.clone_from(unk_token);
            (bpe.fuse_unk, bpe.byte_fallback) = (*fuse_unk, *byte_fallback);
            bpe.into()
        }
        (ModelPlan::WordPiece { unk_token }, ModelWrapper::WordPiece(mut words)) => {
            words.unk_token.clone_from(unk_token);
            "##".clone_into(&mut words.continuing_subword_prefix);
            words.max_input_chars_per_word = 100;
            words.into()
        }
        (ModelPlan::Unigram { unk_text, unk_score, unk_id }, ModelWrapper::Unigram(pieces)) => {
            let pieces: Vec<(String, f64)> = pieces.iter().cloned().collect();
            let is_unk = |(text, score): &(String, f64)| {
                Some(text) == unk_text.as_ref() && unk_score.is_none_or(|wanted| *score == wanted)
            };
            let unk_id = pieces.iter().position(is_unk).unwrap_or(*unk_id);
            Unigram::from(pieces, Some(unk_id), false).map_err(|error| error.to_string())?.into()
        }
        (plan, model) => {
            let wanted = match plan {
                ModelPlan::Bpe { .. } => "BPE",
                ModelPlan::WordPiece { .. } => "WordPiece",
                ModelPlan::Unigram { .. } => "Unigram",
            };
            let found = match model {
                ModelWrapper::BPE(_) => "BPE",
                ModelWrapper::WordPiece(_) => "WordPiece",
                ModelWrapper::WordLevel(_) => "WordLevel",
                ModelWrapper::Unigram(_) => "Unigram",
            };
            let way_out = match class {
                Class::Qwen2 => "models of type qwen2 have no other: the tokenizer is not this model's",
                _ => {
                    "to take tokenizer.json as it is, say \"tokenizer_class\": \"PreTrainedTokenizerFast\" in \
                     tokenizer_config.json"
                }
            };
            return Err(format!(
                "`model.type` is {found}, and the tokenizer's class (by tokenizer_config.json, or else by the model's \
                 type) is {}, which is {wanted}: {way_out}",
                class.name()
            ));
        }
    };
    let mut tokenizer = Tokenizer::new(model);
    set_normalizer(&mut tokenizer, &plan.normalizer)?;
    let pre_tokenizer: PreTokenizerWrapper =
        serde_json::from_value(plan.pre_tokenizer.clone()).map_err(|error| error.to_string())?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    Ok(tokenizer)
}

fn set_normalizer(tokenizer: &mut Tokenizer, normalizer: &Value) -> Result<(), Problem> {
    let normalizer: Option<NormalizerWrapper> =
        serde_json::from_value(normalizer.clone()).map_err(|error| format!("`normalizer`: {error}"))?;
    tokenizer.with_normalizer(normalizer).map_err(|error| error.to_string())?;
    Ok(())
}

/// Says where a class overrules `tokenizer.json`: its ids are those of transformers 5, maybe not of an older version.
fn note_what_is_replaced(
    class: Class,
    plan: &Plan,
    normalizer: &Value,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) {
    // through the library's types, which fill in what an old file leaves out
    let normal =
        |value: &Value| json!(serde_json::from_value::<Option<NormalizerWrapper>>(value.clone()).ok());
    let planned = serde_json::from_value::<PreTokenizerWrapper>(plan.pre_tokenizer.clone()).ok();
    let replaced = [
        ("normalizer", normal(normalizer) != normal(&plan.normalizer)),
        ("pre_tokenizer", json!(pre_tokenizer) != json!(planned)),
    ];
    for (part, _) in replaced.iter().filter(|(_, differs)| *differs) {
        tracing::info!(
            class = class.name(),
            part,
            "transformers 5 rebuilds this part of tokenizer.json by the tokenizer's class, and so do we"
        );
    }
}

/// The tokens that the files name, in the order in which transformers adds them.
fn tokens_to_add(
    tokenizer: &Tokenizer,
    settings: &Settings,
    named: &[(&str, Token)],
    extra: &[Token],
) -> Vec<AddedToken> {
    let mut tokens: Vec<Token> = settings.added.values().cloned().map(Token::Added).collect();
    let known: Vec<String> = tokens.iter().map(|token| token.content().to_owned()).collect();
    let added = tokenizer.get_added_vocabulary().get_vocab();
    for token in named.iter().map(|(_, token)| token).chain(extra) {
        let text = token.content();
        if !added.contains_key(text) && !known.iter().any(|known| known == text) && !tokens.contains(token) {
            tokens.push(token.clone());
        }
    }
    let is_named = |token: &AddedToken| named.iter().any(|(_, named)| named.content() == token.content);
    let tokens = tokens.into_iter().map(|token| match token {
        Token::Text(text) => AddedToken::from(text, true),
        Token::Added(mut token) => {
            token.special |= is_named(&token);
            token
        }
    });
    tokens.collect()
}

/// A post-processor that only adds these, at a text's edges.
fn edges(bos: Option<&(String, u32)>, eos: Option<&(String, u32)>) -> Result<PostProcessorWrapper, Problem> {
    let around = |sequence: &str, type_id: u32| {
        let token = |token: Option<&(String, u32)>| token.map(|(text, _)| format!("{text}:{type_id}"));
        let pieces = [token(bos), Some(format!("{sequence}:{type_id}")), token(eos)];
        pieces.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    let single = around("$A", 0);
    let pair = format!("{single} {}", around("$B", 1));
    template(single.as_str(), pair.as_str(), bos.into_iter().chain(eos).cloned().collect())
}

fn template<T>(single: T, pair: T, tokens: Vec<(String, u32)>) -> Result<PostProcessorWrapper, Problem>
where
    T: TryInto<tokenizers::processors::template::Template, Error = String>,
{
    let mut builder = TemplateProcessing::builder();
    builder.try_single(single)?.try_pair(pair)?.special_tokens(tokens);
    Ok(builder.build().map_err(|error| error.to_string())?.into())
}

/// The library trusts a template of a file to define the tokens that it uses.
fn check_post_processor(post_processor: &PostProcessorWrapper) -> Result<(), Problem> {
    let value = json!(post_processor);
    let processors = match value["type"] == "Sequence" {
        true => value["processors"].as_array().cloned().unwrap_or_default(),
        false => vec![value],
    };
    for processor in processors.iter().filter(|processor| processor["type"] == "TemplateProcessing") {
        for template in ["single", "pair"] {
            for piece in processor[template].as_array().into_iter().flatten() {
                let Some(id) = piece["SpecialToken"]["id"].as_str() else { continue };
                if processor["special_tokens"][id].is_null() {
                    return Err(format!(
                        "`post_processor.{template}` uses the token {id:?}, which `special_tokens` does not define"
                    ));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_string_that_begins_a_list_is_measured() {
        let measure = |json: &str| longest_in_lists(json.as_bytes());
        assert_eq!(
            measure(r#"{"charsmap": "aaaaaaaa", "vocab": [["abc", -1.5], [ "a\"]b\\", "cccccccc"]]}"#),
            7
        );
        assert_eq!(measure("[]"), 0);
        assert_eq!(measure("[\"never closed"), 12);
    }
}
