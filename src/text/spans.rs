//! Which bytes of a rendered text came from which message.
//!
//! A template says nothing about that, so we render it a second time with a mark of its own in place of each text
//! (content or reasoning): what stands between the marks is the scaffold, and if the scaffold and the texts add up to the
//! rendered text, every span is known for certain, however short or misleading a text is ("user", "assistant"), in
//! whatever order they are printed, and whether all of them are. Tool calls and the list of tools are scaffold: half a
//! call is none.
//!
//! Some templates do more than print a content (they drop old reasoning within it, for example). Then each content is
//! searched for instead, and what cannot be found counts as prompt up to the next content that can.

use std::ops::Range;

use super::conversation::{Conversation, TextOf};
use super::truncation::Part;
use super::whitespace::is_whitespace;

/// Bytes of the rendered text that may be dropped; ordered, and apart from each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    pub(super) part: Part,
}

/// A text that a template may print.
pub(super) struct Text {
    pub(super) text: String,
    of: TextOf,
    part: Part,
}

/// The first of the private-use characters that stand for texts while the scaffold is rendered: nothing trims those.
const FIRST_MARK: u32 = 0xf_0000;
/// As many are there.
const MAX_MARKS: usize = 0xfffe;

fn mark(index: usize) -> String {
    let mark =
        char::from_u32(FIRST_MARK + index as u32).expect("there are more private-use characters than texts");
    mark.to_string()
}

/// The conversation with a mark in place of each text, and the texts, those of the last message being the response.
/// `None` in place of the first if there are too many.
pub(super) fn marked(conversation: &Conversation) -> (Option<Conversation>, Vec<Text>) {
    let mut texts = Vec::new();
    let last = conversation.messages.len().saturating_sub(1);
    let messages = conversation.messages.iter().enumerate().map(|(index, message)| {
        let part = if index == last { Part::Response } else { Part::Prompt };
        message.with_texts(&mut |of, text| {
            texts.push(Text { text: text.to_owned(), of, part });
            mark((texts.len() - 1).min(MAX_MARKS - 1))
        })
    });
    let messages = messages.collect();
    let Conversation { tools, arguments, .. } = conversation;
    let marked = Conversation { messages, tools: tools.clone(), arguments: arguments.clone() };
    ((texts.len() <= MAX_MARKS).then_some(marked), texts)
}

impl Span {
    /// All of a text of which nothing is known.
    pub(super) fn whole(text: &str) -> Self {
        Self { bytes: 0..text.len(), part: Part::Prompt }
    }
}

/// The spans of `texts`. `scaffold` is what [`marked`] rendered to, where that could be done.
pub(super) fn spans(rendered: &str, scaffold: Option<&str>, texts: &[Text]) -> Vec<Span> {
    scaffold
        .and_then(|scaffold| measured(rendered, scaffold, texts))
        .unwrap_or_else(|| searched(rendered, texts))
}

/// Takes the scaffold and the texts off the rendered text in turn. `None` if they are not all of it.
fn measured(rendered: &str, scaffold: &str, texts: &[Text]) -> Option<Vec<Span>> {
    let text_of = |letter: char| texts.get((letter as u32).checked_sub(FIRST_MARK)? as usize);
    let marks: Vec<(usize, char, &Text)> =
        scaffold.char_indices().filter_map(|(at, letter)| Some((at, letter, text_of(letter)?))).collect();
    let end_of_piece = |next: usize| marks.get(next).map_or(scaffold.len(), |(at, _, _)| *at);
    let mut rest = rendered.strip_prefix(&scaffold[..end_of_piece(0)])?;
    let mut spans = Vec::with_capacity(marks.len());
    for (index, (at, letter, Text { text, part, .. })) in marks.iter().enumerate() {
        let piece = &scaffold[at + letter.len_utf8()..end_of_piece(index + 1)];
        let start = rendered.len() - rest.len();
        let take = |printed: &str| {
            let after = rest.strip_prefix(printed)?.strip_prefix(piece)?;
            let is_the_end = index + 1 == marks.len();
            (!is_the_end || after.is_empty()).then_some((start..start + printed.len(), after))
        };
        let (bytes, after) = forms(text).into_iter().find_map(take)?;
        rest = after;
        spans.push(Span { bytes, part: *part });
    }
    rest.is_empty().then_some(spans)
}

/// How templates print a text: as it is, or trimmed in one of these ways.
fn forms(text: &str) -> [&str; 5] {
    [
        text,
        text.trim_matches(is_whitespace),
        text.trim_matches('\n'),
        text.trim_start_matches(is_whitespace),
        text.trim_end_matches(is_whitespace),
    ]
}

/// Looks for the texts from the last to the first, each before the one after it.
fn searched(rendered: &str, texts: &[Text]) -> Vec<Span> {
    let mut spans = Vec::with_capacity(texts.len());
    let mut end = rendered.len();
    for Text { text, of, part } in texts.iter().rev() {
        let last_occurrence =
            |printed: &str| rendered[..end].rfind(printed).map(|start| start..start + printed.len());
        match (forms(text).into_iter().find_map(last_occurrence), of) {
            (Some(bytes), _) => {
                end = bytes.start;
                spans.push(Span { bytes, part: *part });
            }
            (None, TextOf::Reasoning) => {} // it was left out
            (None, TextOf::Content) => {
                spans.push(Span { bytes: 0..end, part: Part::Prompt });
                break;
            }
        }
    }
    spans.reverse();
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contents, the response last.
    fn texts(contents: &[&str]) -> Vec<Text> {
        let part = |index| if index + 1 == contents.len() { Part::Response } else { Part::Prompt };
        let text = |(index, text): (usize, &&str)| Text {
            text: (*text).to_owned(),
            of: TextOf::Content,
            part: part(index),
        };
        contents.iter().enumerate().map(text).collect()
    }

    /// Marks in place of `#0`, `#1`, ..
    fn with_marks(scaffold: &str) -> String {
        (0..10)
            .fold(scaffold.to_owned(), |scaffold, index| scaffold.replace(&format!("#{index}"), &mark(index)))
    }

    fn spans_as_text<'a>(
        rendered: &'a str,
        scaffold: Option<&str>,
        contents: &[&str],
    ) -> Vec<(&'a str, Part)> {
        let scaffold = scaffold.map(with_marks);
        let spans = spans(rendered, scaffold.as_deref(), &texts(contents));
        assert!(spans.windows(2).all(|pair| pair[0].bytes.end <= pair[1].bytes.start), "{spans:?}");
        spans.into_iter().map(|span| (&rendered[span.bytes], span.part)).collect()
    }

    #[test]
    fn contents_are_found_however_misleading() {
        let rendered = "<user>user</user><assistant>assistant</assistant>";
        let scaffold = with_marks("<user>#0</user><assistant>#1</assistant>");
        let found = spans(rendered, Some(&scaffold), &texts(&["user", "assistant"]));
        assert_eq!(found[0], Span { bytes: 6..10, part: Part::Prompt });
        assert_eq!(found[1], Span { bytes: 28..37, part: Part::Response });
    }

    #[test]
    fn contents_are_found_whole_or_trimmed() {
        let expected = [("é", Part::Prompt), (" x ", Part::Response)];
        assert_eq!(spans_as_text("[é][ x ]", Some("[#0][#1]"), &["\n é ", " x "]), expected);
        assert_eq!(spans_as_text("[é][ x ]", None, &["\n é ", " x "]), expected);
    }

    #[test]
    fn an_empty_content_is_an_empty_span() {
        let expected = [("", Part::Prompt), ("x", Part::Response)];
        assert_eq!(spans_as_text("[][x]", Some("[#0][#1]"), &["", "x"]), expected);
    }

    #[test]
    fn what_a_template_rewrote_counts_as_prompt() {
        let contents = ["ask", "<think>dropped</think>said", "ask again", "answer"];
        let scaffold = Some("[#0][#1][#2][#3]");
        let expected =
            [("[ask][said][", Part::Prompt), ("ask again", Part::Prompt), ("answer", Part::Response)];
        assert_eq!(spans_as_text("[ask][said][ask again][answer]", scaffold, &contents), expected);
        // nothing is known if even the response was rewritten
        assert_eq!(
            spans_as_text("[ask][ANSWER]", scaffold, &["ask", "answer"]),
            [("[ask][ANSWER]", Part::Prompt)]
        );
    }

    #[test]
    fn texts_may_be_left_out_or_printed_in_another_order_or_twice() {
        let expected = [("c", Part::Response), ("a", Part::Prompt), ("a", Part::Prompt)];
        assert_eq!(spans_as_text("c|a|a", Some("#2|#0|#0"), &["a", "b", "c"]), expected);
        let expected = [(" a", Part::Prompt), ("b ", Part::Response)];
        assert_eq!(spans_as_text("< a>b ", Some("<#0>#1"), &["\n a\n", "\n b "]), expected);
    }
}
