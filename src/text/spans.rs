//! Which bytes of a rendered text came from which message.
//!
//! A template says nothing about that, so we render it a second time with a mark in place of each content:
//! what stands between the marks is the scaffold, and if the scaffold and the contents add up to the rendered
//! text, every span is known for certain, however short or misleading a content is ("user", "assistant").
//!
//! Some templates do more than print a content (they drop old reasoning, for example). Then each content is
//! searched for instead, and what cannot be found counts as prompt up to the next content that can.

use std::ops::Range;

use super::truncation::Part;
use super::whitespace::is_whitespace;

/// Bytes of the rendered text that may be dropped; ordered, and apart from each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    pub(super) part: Part,
}

/// Stands for a content while the scaffold is rendered: a private-use character, which nothing trims.
pub(super) const MARK: &str = "\u{f8ff}";

impl Span {
    /// All of a text of which nothing is known.
    pub(super) fn whole(text: &str) -> Self {
        Self { bytes: 0..text.len(), part: Part::Prompt }
    }
}

/// The spans of `contents`, the response last. `scaffold` is the text rendered with [`MARK`]s, where that
/// could be done.
pub(super) fn spans(rendered: &str, scaffold: Option<&str>, contents: &[&str]) -> Vec<Span> {
    scaffold
        .and_then(|scaffold| measured(rendered, scaffold, contents))
        .unwrap_or_else(|| searched(rendered, contents))
}

/// Takes the scaffold and the contents off the rendered text in turn. `None` if they are not all of it.
fn measured(rendered: &str, scaffold: &str, contents: &[&str]) -> Option<Vec<Span>> {
    let mut pieces = scaffold.split(MARK);
    let mut rest = rendered.strip_prefix(pieces.next()?)?;
    let mut spans = Vec::with_capacity(contents.len());
    for content in contents {
        let piece = pieces.next()?;
        let start = rendered.len() - rest.len();
        let take = |printed: &str| {
            let after = rest.strip_prefix(printed)?.strip_prefix(piece)?;
            Some((start..start + printed.len(), after))
        };
        let (bytes, after) = take(content).or_else(|| take(content.trim_matches(is_whitespace)))?;
        rest = after;
        spans.push(Span { bytes, part: Part::Prompt });
    }
    spans.last_mut()?.part = Part::Response;
    (rest.is_empty() && pieces.next().is_none()).then_some(spans)
}

/// Looks for the contents from the last to the first, each before the one after it.
fn searched(rendered: &str, contents: &[&str]) -> Vec<Span> {
    let mut spans = Vec::with_capacity(contents.len());
    let mut end = rendered.len();
    let mut part = Part::Response;
    for content in contents.iter().rev() {
        let Some(bytes) = last_occurrence(&rendered[..end], content) else {
            spans.push(Span { bytes: 0..end, part: Part::Prompt });
            break;
        };
        end = bytes.start;
        spans.push(Span { bytes, part });
        part = Part::Prompt;
    }
    spans.reverse();
    spans
}

/// A content may be printed as it is, or trimmed.
fn last_occurrence(text: &str, content: &str) -> Option<Range<usize>> {
    let find = |printed: &str| text.rfind(printed).map(|start| start..start + printed.len());
    find(content).or_else(|| find(content.trim_matches(is_whitespace)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans_as_text<'a>(
        rendered: &'a str,
        scaffold: Option<&str>,
        contents: &[&str],
    ) -> Vec<(&'a str, Part)> {
        let spans = spans(rendered, scaffold, contents);
        assert!(spans.windows(2).all(|pair| pair[0].bytes.end <= pair[1].bytes.start), "{spans:?}");
        spans.into_iter().map(|span| (&rendered[span.bytes], span.part)).collect()
    }

    #[test]
    fn contents_are_found_however_misleading() {
        let rendered = "<user>user</user><assistant>assistant</assistant>";
        let scaffold = "<user>\u{f8ff}</user><assistant>\u{f8ff}</assistant>";
        let found = spans(rendered, Some(scaffold), &["user", "assistant"]);
        assert_eq!(found[0], Span { bytes: 6..10, part: Part::Prompt });
        assert_eq!(found[1], Span { bytes: 28..37, part: Part::Response });
    }

    #[test]
    fn contents_are_found_whole_or_trimmed() {
        let expected = [("é", Part::Prompt), (" x ", Part::Response)];
        assert_eq!(spans_as_text("[é][ x ]", Some("[\u{f8ff}][\u{f8ff}]"), &["\n é ", " x "]), expected);
        assert_eq!(spans_as_text("[é][ x ]", None, &["\n é ", " x "]), expected);
    }

    #[test]
    fn an_empty_content_is_an_empty_span() {
        let expected = [("", Part::Prompt), ("x", Part::Response)];
        assert_eq!(spans_as_text("[][x]", Some("[\u{f8ff}][\u{f8ff}]"), &["", "x"]), expected);
    }

    #[test]
    fn what_a_template_rewrote_counts_as_prompt() {
        let contents = ["ask", "<think>dropped</think>said", "ask again", "answer"];
        let scaffold = Some("[\u{f8ff}][\u{f8ff}][\u{f8ff}][\u{f8ff}]");
        let expected =
            [("[ask][said][", Part::Prompt), ("ask again", Part::Prompt), ("answer", Part::Response)];
        assert_eq!(spans_as_text("[ask][said][ask again][answer]", scaffold, &contents), expected);
        // nothing is known if even the response was rewritten
        assert_eq!(
            spans_as_text("[ask][ANSWER]", scaffold, &["ask", "answer"]),
            [("[ask][ANSWER]", Part::Prompt)]
        );
    }
}
