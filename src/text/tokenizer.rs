//! Strings → token ids, through the checkpoint's `tokenizer.json`.
//!
//! Beside its id and type, each token gets the [`Part`] it came from, so that truncation knows what to keep.
//! The tokenizer's offsets (byte ranges of its input) tell: a token belongs to a content if it lies within
//! it, so one that straddles the border between a content and the template stays with the template.

use tokenizers::tokenizer::Token;
use tokenizers::{Encoding as Encoded, Tokenizer};

use super::backend::{Backend, guarded};
use super::spans::Span;
use super::steps::{Cutter, Parts, Steps};
use super::truncation::{Part, Sequence};
use super::{TextEnd, TextError, TextOptions, TextRule, Truncation};

/// With less text than this behind the limit, a text that is too long is counted to its end.
const COUNTED_BYTES: usize = 256 << 10;
/// The regular expressions of byte-level tokenizers (`\s+(?!\S)`) run on a backtracking engine that keeps an
/// entry for each letter of a run of white space, and gives up at a million. The tokenizers crate then takes
/// the rest of the text for one word, without an error: the ids are wrong. Half a million is far from that.
const MAX_WHITE_SPACE_RUN: usize = 500_000;

/// A [`Backend`], held to the vocabulary of the model it feeds.
#[derive(Debug)]
pub(super) struct Encoder {
    backend: Backend,
    vocab_size: usize,
    type_vocab_size: Option<usize>,
    cutter: Cutter,
    /// Of a text with the tokenizer's own special tokens.
    single: Vec<Piece>,
    /// Of a text without them.
    bare: Vec<Piece>,
    /// Of a sentence pair, with them.
    pair: Vec<Piece>,
    /// Its special tokens, as they are written.
    special: Vec<String>,
}

/// A sequence as the post-processor makes it.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Special {
        id: u32,
        type_id: u32,
    },
    /// The first text, or the second.
    Text {
        index: usize,
        type_id: u32,
    },
}

/// A sample on its way to tokens, in steps of milliseconds.
#[derive(Debug)]
pub(super) struct Encoding {
    texts: Vec<Steps>,
    /// The first text that is not done, once each had its first step.
    current: usize,
    pieces: Vec<Piece>,
    is_rendered: bool,
}

impl Encoder {
    pub(super) fn new(backend: Backend, options: &TextOptions) -> Result<Self, TextError> {
        let cutter = Cutter::new(&backend.tokenizer);
        let single = pieces(&backend.tokenizer, 1, true)?;
        let bare = pieces(&backend.tokenizer, 1, false)?;
        let pair = pieces(&backend.tokenizer, 2, true)?;
        let added = backend.tokenizer.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special && !token.content.is_empty());
        let special = special.map(|token| token.content).collect();
        let (vocab_size, type_vocab_size) = (options.vocab_size, options.type_vocab_size);
        Ok(Self { backend, vocab_size, type_vocab_size, cutter, single, bare, pair, special })
    }

    /// Fails if every sample of this rule would, for an id or a token type that the model does not have.
    pub(super) fn probe(&self, rule: TextRule, end: TextEnd, eos: &str) -> Result<(), TextError> {
        let mut encoding = match rule {
            TextRule::SentencePair => self.pair("", ""),
            TextRule::ChatTemplate | TextRule::Concatenation => self.concatenation("", "", end, eos),
        }?;
        while self.step(&mut encoding, usize::MAX, Truncation::Reject)?.is_none() {}
        Ok(())
    }

    /// A token id is below it.
    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn type_vocab_size(&self) -> Option<usize> {
        self.type_vocab_size
    }

    pub(super) fn gives_token_types(&self) -> bool {
        self.backend.gives_token_types
    }

    /// As [`super::SampleTokenizer::rendered`].
    pub(super) fn rendered_tokens(&self, token_ids: &[u32]) -> String {
        let decoded = guarded(|| self.backend.tokenizer.decode(token_ids, false));
        decoded.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// As [`super::SampleTokenizer::token`].
    pub(super) fn token(&self, id: u32) -> String {
        self.backend.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// The padding token.
    pub(super) fn pad_token_id(&self) -> Option<u32> {
        self.backend.padding
    }

    /// `prompt + response`, with the tokenizer's own special tokens, up to the end that it is given.
    pub(super) fn concatenation(
        &self,
        prompt: &str,
        response: &str,
        end: TextEnd,
        eos: &str,
    ) -> Result<Encoding, TextError> {
        let mut text = format!("{prompt}{response}");
        let own = end.finish(&mut text, eos);
        refuse_long_runs(&text)?;
        let texts = vec![Steps::new(text, Parts::Joined { prompt: prompt.len(), own })];
        let pieces = if end.adds_special_tokens() { &self.single } else { &self.bare };
        Ok(Encoding { texts, current: 0, pieces: pieces.clone(), is_rendered: false })
    }

    /// A sentence pair with the tokenizer's own special tokens and token types.
    pub(super) fn pair(&self, prompt: &str, response: &str) -> Result<Encoding, TextError> {
        refuse_long_runs(prompt)?;
        refuse_long_runs(response)?;
        let text = |text: &str, part| Steps::new(text.to_owned(), Parts::Only(part));
        let texts = vec![text(prompt, Part::Prompt), text(response, Part::Response)];
        Ok(Encoding { texts, current: 0, pieces: self.pair.clone(), is_rendered: false })
    }

    /// A text as `tokenizer(text)` of transformers takes it: with the tokenizer's own special tokens, whether or not some
    /// stand in it already.
    pub(super) fn plain(&self, text: String) -> Result<Encoding, TextError> {
        refuse_long_runs(&text)?;
        let texts = vec![Steps::new(text, Parts::Only(Part::Prompt))];
        Ok(Encoding { texts, current: 0, pieces: self.single.clone(), is_rendered: false })
    }

    /// Whether a special token stands in a text.
    pub(super) fn has_special_tokens(&self, text: &str) -> bool {
        self.special.iter().any(|token| text.contains(token))
    }

    /// Text that is rendered already: no special tokens are added. What lies in no span is scaffold.
    pub(super) fn rendered(&self, text: String, spans: Vec<Span>) -> Result<Encoding, TextError> {
        refuse_long_runs(&text)?;
        let pieces = vec![Piece::Text { index: 0, type_id: 0 }];
        let texts = vec![Steps::new(text, Parts::Spans(spans))];
        Ok(Encoding { texts, current: 0, pieces, is_rendered: true })
    }

    /// Goes on with a sample: its sequence once there is nothing left to do. A sample that cannot fit in `limit`
    /// and must not be truncated is refused as soon as that is known, if there is much left of it.
    pub(super) fn step(
        &self,
        encoding: &mut Encoding,
        limit: usize,
        truncation: Truncation,
    ) -> Result<Option<Sequence>, TextError> {
        let text = &mut encoding.texts[encoding.current];
        text.step(&self.backend.tokenizer, &self.cutter, self.vocab_size)?;
        encoding.current += usize::from(text.left() == 0);
        let left: usize = encoding.texts.iter().map(Steps::left).sum();
        if encoding.current < encoding.texts.len() {
            let tokens = encoding.tokens();
            return match truncation == Truncation::Reject && tokens > limit && left > COUNTED_BYTES {
                true => Err(TextError::TooLong { tokens, is_more: true, limit }),
                false => Ok(None),
            };
        }
        self.assemble(encoding).map(Some)
    }

    fn assemble(&self, encoding: &mut Encoding) -> Result<Sequence, TextError> {
        let mut sequence = Sequence::with_capacity(encoding.tokens());
        for piece in &encoding.pieces {
            match *piece {
                Piece::Special { id, type_id } => sequence.push(id, type_id, Part::Scaffold),
                Piece::Text { index, type_id } => {
                    let text = &encoding.texts[index];
                    sequence.extend(&text.token_ids, type_id, &text.parts);
                }
            }
        }
        let limit = self.vocab_size;
        if let Some(&id) = sequence.token_ids.iter().find(|id| **id as usize >= limit) {
            let token = self.backend.tokenizer.id_to_token(id).unwrap_or_default();
            return Err(TextError::TokenOutOfVocabulary { token, id, limit });
        }
        match self.type_vocab_size {
            Some(limit) if self.backend.gives_token_types => {
                if let Some(index) = sequence.type_ids.iter().position(|&id| id as usize >= limit) {
                    let token = self.backend.tokenizer.id_to_token(sequence.token_ids[index]);
                    let (token, type_id) = (token.unwrap_or_default(), sequence.type_ids[index]);
                    return Err(TextError::TypeOutOfVocabulary { token, type_id, limit });
                }
            }
            _ => sequence.type_ids.fill(0),
        }
        if encoding.is_rendered {
            self.keep_bos(&mut sequence);
        }
        Ok(sequence)
    }

    /// Token ids as they are.
    pub(super) fn token_ids(&self, ids: &[u32]) -> Result<Sequence, TextError> {
        let limit = self.vocab_size;
        if let Some(index) = ids.iter().position(|&id| id as usize >= limit) {
            return Err(TextError::IdOutOfVocabulary { index, id: ids[index], limit });
        }
        let mut sequence = Sequence {
            token_ids: ids.to_vec(),
            type_ids: vec![0; ids.len()],
            parts: vec![Part::Prompt; ids.len()],
        };
        self.keep_bos(&mut sequence);
        Ok(sequence)
    }

    /// Whether a sequence starts with two BOS tokens.
    pub(super) fn has_double_bos(&self, token_ids: &[u32]) -> bool {
        matches!((token_ids, self.backend.bos), ([first, second, ..], Some(bos)) if *first == bos && *second == bos)
    }

    /// Without a scaffold to tell, a leading BOS is all we know must stay.
    fn keep_bos(&self, sequence: &mut Sequence) {
        if let (Some(first), Some(part)) = (sequence.token_ids.first(), sequence.parts.first_mut())
            && Some(*first) == self.backend.bos
        {
            *part = Part::Scaffold;
        }
    }
}

impl Encoding {
    /// Whether the next step takes more than milliseconds.
    pub(super) fn is_long(&self) -> bool {
        self.texts.get(self.current).is_some_and(Steps::is_long)
    }

    /// How many there are so far.
    fn tokens(&self) -> usize {
        let special = self.pieces.iter().filter(|piece| matches!(piece, Piece::Special { .. })).count();
        special + self.texts.iter().map(|text| text.token_ids.len()).sum::<usize>()
    }
}

/// What the post-processor makes of one text or two, each one token long: its special tokens do not depend on
/// the text.
fn pieces(tokenizer: &Tokenizer, texts: usize, add_special_tokens: bool) -> Result<Vec<Piece>, TextError> {
    let stand_in = |index: usize| u32::MAX - index as u32;
    let text = |index| {
        let token = Token { id: stand_in(index), value: "w".to_owned(), offsets: (0, 1) };
        Encoded::from_tokens(vec![token], index as u32)
    };
    let process = || tokenizer.post_process(text(0), (texts == 2).then(|| text(1)), add_special_tokens);
    let made = guarded(|| process().map_err(|error| error.to_string()))
        .and_then(|made| made)
        .map_err(|reason| TextError::TokenizerFailed { reason })?;
    let tokens = made.get_ids().iter().zip(made.get_type_ids());
    let piece = |(&id, &type_id): (&u32, &u32)| match (0..texts).find(|&index| id == stand_in(index)) {
        Some(index) => Piece::Text { index, type_id },
        None => Piece::Special { id, type_id },
    };
    Ok(tokens.map(piece).collect())
}

/// Fails if a run of white space is longer than [`MAX_WHITE_SPACE_RUN`].
fn refuse_long_runs(text: &str) -> Result<(), TextError> {
    let limit = MAX_WHITE_SPACE_RUN;
    if text.len() <= limit {
        return Ok(());
    }
    let runs = text.split(|c: char| !c.is_whitespace());
    match runs.map(|run| run.chars().count()).find(|&run| run > limit) {
        Some(run) => Err(TextError::WhiteSpaceRun { run, limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_white_space_has_a_limit() {
        let run = |length| " \n".repeat(length / 2) + "word" + &"\u{a0}".repeat(length) + "word";
        assert!(refuse_long_runs(&run(MAX_WHITE_SPACE_RUN)).is_ok());
        let error = refuse_long_runs(&run(MAX_WHITE_SPACE_RUN + 2)).unwrap_err();
        assert!(matches!(error, TextError::WhiteSpaceRun { run: 500_002, limit: 500_000 }), "{error}");
        assert!(refuse_long_runs(&"word ".repeat(MAX_WHITE_SPACE_RUN)).is_ok());
    }
}
