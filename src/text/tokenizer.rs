//! Strings → token ids, through the checkpoint's `tokenizer.json`.
//!
//! Beside its id and type, each token gets the [`Part`] it came from, so that truncation knows what to keep.
//! The tokenizer's offsets (byte ranges of its input) tell: a token belongs to a content if it lies within
//! it, so one that straddles the border between a content and the template stays with the template.

use tokenizers::{EncodeInput, Encoding};

use super::backend::{Backend, guarded};
use super::spans::Span;
use super::truncation::{Part, Sequence};
use super::{TextEnd, TextError, TextOptions, TextRule};

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
}

impl Encoder {
    pub(super) fn new(backend: Backend, options: &TextOptions) -> Self {
        Self { backend, vocab_size: options.vocab_size, type_vocab_size: options.type_vocab_size }
    }

    /// Fails if every sample of this rule would, for an id or a token type that the model does not have.
    pub(super) fn probe(&self, rule: TextRule, end: TextEnd, eos: &str) -> Result<(), TextError> {
        match rule {
            TextRule::SentencePair => self.pair("", ""),
            TextRule::ChatTemplate | TextRule::Concatenation => self.concatenation("", "", end, eos),
        }
        .map(drop)
    }

    /// A token id is below it.
    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
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
    ) -> Result<Sequence, TextError> {
        let mut text = format!("{prompt}{response}");
        let own = end.finish(&mut text, eos);
        refuse_long_runs(&text)?;
        let encoding = self.encode(text, end.adds_special_tokens())?;
        let tokens = encoding.get_sequence_ids().into_iter().zip(encoding.get_offsets());
        let parts = tokens.map(|(sequence_id, &(start, end))| match sequence_id {
            None => Part::Scaffold,
            Some(_) if start >= own && end > own => Part::Scaffold,
            Some(_) if end <= prompt.len() => Part::Prompt,
            Some(_) => Part::Response, // or both, where they merge
        });
        self.sequence(&encoding, parts.collect())
    }

    /// A sentence pair with the tokenizer's own special tokens and token types.
    pub(super) fn pair(&self, prompt: &str, response: &str) -> Result<Sequence, TextError> {
        refuse_long_runs(prompt)?;
        refuse_long_runs(response)?;
        let encoding = self.encode((prompt, response), true)?;
        let parts = encoding.get_sequence_ids().into_iter().map(|id| match id {
            None => Part::Scaffold,
            Some(0) => Part::Prompt,
            Some(_) => Part::Response,
        });
        self.sequence(&encoding, parts.collect())
    }

    /// Text that is rendered already: no special tokens are added. What lies in no span is scaffold.
    pub(super) fn rendered(&self, text: &str, spans: &[Span]) -> Result<Sequence, TextError> {
        refuse_long_runs(text)?;
        let encoding = self.encode(text, false)?;
        let parts = encoding.get_offsets().iter().map(|&(start, end)| {
            let candidate = spans.partition_point(|span| span.bytes.end < end);
            match spans.get(candidate) {
                // `end` too, for an empty range is white space that a post-processor trimmed from its start
                Some(span) if span.bytes.start <= start && span.bytes.start < end => span.part,
                _ => Part::Scaffold,
            }
        });
        let mut sequence = self.sequence(&encoding, parts.collect())?;
        sequence.type_ids.fill(0);
        self.keep_bos(&mut sequence);
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

    fn encode<'a>(
        &self,
        input: impl Into<EncodeInput<'a>>,
        add_special_tokens: bool,
    ) -> Result<Encoding, TextError> {
        guarded(|| {
            self.backend.tokenizer.encode(input, add_special_tokens).map_err(|error| error.to_string())
        })
        .and_then(|encoded| encoded)
        .map_err(|reason| TextError::TokenizerFailed { reason })
    }

    fn sequence(&self, encoding: &Encoding, parts: Vec<Part>) -> Result<Sequence, TextError> {
        let token_ids = encoding.get_ids().to_vec();
        let limit = self.vocab_size;
        if let Some(index) = token_ids.iter().position(|&id| id as usize >= limit) {
            let token = encoding.get_tokens()[index].clone();
            return Err(TextError::TokenOutOfVocabulary { token, id: token_ids[index], limit });
        }
        let mut type_ids = vec![0; token_ids.len()];
        if let (true, Some(limit)) = (self.backend.gives_token_types, self.type_vocab_size) {
            type_ids.copy_from_slice(encoding.get_type_ids());
            if let Some(index) = type_ids.iter().position(|&id| id as usize >= limit) {
                let token = encoding.get_tokens()[index].clone();
                return Err(TextError::TypeOutOfVocabulary { token, type_id: type_ids[index], limit });
            }
        }
        Ok(Sequence { token_ids, type_ids, parts })
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
