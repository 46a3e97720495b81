//! How a text ends that a model was trained on: some trainers put the end-of-sequence token there themselves.
//!
//! TRL's `RewardTrainer` (since its rewrite in 0.24) appends it to pairs of strings, not to conversations. OpenRLHF's
//! `RewardDataset` cuts line feeds from the end of what the template rendered, appends a blank and the token unless it
//! is there, and tokenizes without special tokens. Such a model reads its reward at that token, so a text without it gets
//! another reward than in training.

use serde::Deserialize;
use serde::Serialize;

/// What is done to the end of a text before it is tokenized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextEnd {
    /// Nothing.
    #[default]
    AsIs,
    /// The end-of-sequence token follows, unless the text ends with it.
    Eos,
    /// Line feeds at the end are cut, then a blank and the end-of-sequence token follow, unless the text ends with it; the
    /// tokenizer adds no special tokens of its own.
    Openrlhf,
    /// The model's reward token follows the tokens of the text, unless it is the last of them.
    RewardToken,
}

/// How texts end, by the rule that makes them. Sentence pairs, formatted texts and token ids are scored as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextEnds {
    /// Where prompt and response are joined by [`TextRule::Concatenation`](crate::text::TextRule).
    pub joined: TextEnd,
    /// Where the chat template renders them.
    pub rendered: TextEnd,
}

impl TextEnds {
    /// The same for both.
    pub fn both(end: TextEnd) -> Self {
        Self { joined: end, rendered: end }
    }
}

impl TextEnd {
    /// As in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsIs => "as_is",
            Self::Eos => "eos",
            Self::Openrlhf => "openrlhf",
            Self::RewardToken => "reward_token",
        }
    }

    /// Whether the tokenizer adds its special tokens to a joined text.
    pub(super) fn adds_special_tokens(self) -> bool {
        self != Self::Openrlhf
    }

    /// Whether the text itself stays as it is.
    pub(super) fn keeps_text(self) -> bool {
        matches!(self, Self::AsIs | Self::RewardToken)
    }

    /// Gives `text` its end, and says how many of its bytes are its own.
    pub(super) fn finish(self, text: &mut String, eos: &str) -> usize {
        if self == Self::Openrlhf {
            text.truncate(text.trim_end_matches('\n').len());
        }
        let own = text.len();
        if !self.keeps_text() && !text.ends_with(eos) {
            let blank = if self == Self::Openrlhf { " " } else { "" };
            text.push_str(blank);
            text.push_str(eos);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_as_its_trainer_ends_it() {
        for (end, text, expected, own) in [
            (TextEnd::AsIs, "a\n", "a\n", 2),
            (TextEnd::RewardToken, "a\n", "a\n", 2),
            (TextEnd::Eos, "a\n", "a\n</s>", 2),
            (TextEnd::Eos, "a</s>", "a</s>", 5),
            (TextEnd::Eos, "a</s>\n", "a</s>\n</s>", 6),
            (TextEnd::Openrlhf, "a\n\n", "a </s>", 1),
            (TextEnd::Openrlhf, "a</s>\n", "a</s>", 5),
            (TextEnd::Openrlhf, "", " </s>", 0),
        ] {
            let mut finished = text.to_owned();
            assert_eq!(end.finish(&mut finished, "</s>"), own, "{end:?} {text:?}");
            assert_eq!(finished, expected, "{end:?} {text:?}");
        }
    }
}
