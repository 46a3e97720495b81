//! Fits a sequence to the limit: says which tokens go.
//!
//! Each token knows its [`Part`]. The scaffold (template text, special tokens) always stays. The prompt gives
//! up its tokens first; only when it has none left does the response lose any, because the response is what
//! gets the reward. What the tokenizer cannot tell apart (text rendered elsewhere, bare token ids) counts as
//! prompt but for a leading BOS.

use super::{TextError, Truncation};

/// Which text a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Template text and special tokens: never dropped.
    Scaffold,
    /// The prompt, or every message but the last: dropped first.
    Prompt,
    /// The response, or the last message: dropped when there is no prompt left.
    Response,
}

/// A tokenized sample before it is fitted: three vectors of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sequence {
    pub(super) token_ids: Vec<u32>,
    pub(super) type_ids: Vec<u32>,
    pub(super) parts: Vec<Part>,
}

impl Sequence {
    pub(super) fn with_capacity(tokens: usize) -> Self {
        let (token_ids, type_ids) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        Self { token_ids, type_ids, parts: Vec::with_capacity(tokens) }
    }

    pub(super) fn push(&mut self, token_id: u32, type_id: u32, part: Part) {
        self.extend(&[token_id], type_id, &[part]);
    }

    /// Appends tokens of one type.
    pub(super) fn extend(&mut self, token_ids: &[u32], type_id: u32, parts: &[Part]) {
        self.token_ids.extend_from_slice(token_ids);
        self.parts.extend_from_slice(parts);
        self.type_ids.resize(self.token_ids.len(), type_id);
    }

    /// Appends a token that is never dropped, unless it is the last already.
    pub(super) fn end_with(&mut self, token_id: u32) {
        match (self.token_ids.last(), self.parts.last_mut()) {
            (Some(last), Some(part)) if *last == token_id => *part = Part::Scaffold,
            _ => self.push(token_id, 0, Part::Scaffold),
        }
    }

    /// Drops what exceeds `limit`, and says how many tokens that was.
    ///
    /// Fails if nothing may be dropped, or if the scaffold alone exceeds the limit.
    pub(super) fn fit(mut self, limit: usize, truncation: Truncation) -> Result<(Self, usize), TextError> {
        let tokens = self.token_ids.len();
        let excess = tokens.saturating_sub(limit);
        if excess == 0 {
            return Ok((self, 0));
        }
        if truncation == Truncation::Reject {
            return Err(TextError::TooLong { tokens, is_more: false, limit });
        }
        let scaffold = self.parts.iter().filter(|&&part| part == Part::Scaffold).count();
        if scaffold > limit {
            return Err(TextError::ScaffoldTooLong { scaffold, limit });
        }

        let mut keep = vec![true; tokens];
        for index in self.droppable(truncation).take(excess) {
            keep[index] = false;
        }
        retain(&mut self.token_ids, &keep);
        retain(&mut self.type_ids, &keep);
        retain(&mut self.parts, &keep);
        debug_assert_eq!(self.token_ids.len(), limit);
        Ok((self, excess))
    }

    /// The indices of tokens that may go, in the order in which they go.
    fn droppable(&self, truncation: Truncation) -> impl Iterator<Item = usize> {
        let tokens = self.parts.len();
        [Part::Prompt, Part::Response].into_iter().flat_map(move |part| {
            let from_the_end = truncation == Truncation::Right;
            let order = (0..tokens).map(move |i| if from_the_end { tokens - 1 - i } else { i });
            order.filter(move |&index| self.parts[index] == part)
        })
    }
}

fn retain<T>(values: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    values.retain(|_| *keep.next().expect("one flag per value"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One token per letter: `p` and `r` are content, everything else is scaffold; ids are positions.
    fn sequence(layout: &str) -> Sequence {
        let parts: Vec<Part> = layout
            .chars()
            .map(|letter| match letter {
                'p' => Part::Prompt,
                'r' => Part::Response,
                _ => Part::Scaffold,
            })
            .collect();
        Sequence { token_ids: (0..parts.len() as u32).collect(), type_ids: vec![0; parts.len()], parts }
    }

    #[test]
    fn the_prompt_goes_first_and_the_scaffold_stays() {
        struct Case {
            layout: &'static str,
            left: &'static [u32],
            right: &'static [u32],
        }
        let cases = [
            Case { layout: "[pprr]", left: &[0, 1, 2, 3, 4, 5], right: &[0, 1, 2, 3, 4, 5] },
            Case { layout: "[pprr]", left: &[0, 2, 3, 4, 5], right: &[0, 1, 3, 4, 5] },
            Case { layout: "[pprr]", left: &[0, 3, 4, 5], right: &[0, 3, 4, 5] },
            Case { layout: "[pprr]", left: &[0, 4, 5], right: &[0, 3, 5] },
            Case { layout: "[pprr]", left: &[0, 5], right: &[0, 5] },
            // several prompts: left begins with the first, right with the end of the last
            Case { layout: "[pp|pp|rr]", left: &[0, 3, 5, 6, 7, 8, 9], right: &[0, 1, 3, 6, 7, 8, 9] },
            // nothing known but the BOS
            Case { layout: "[pppp", left: &[0, 3, 4], right: &[0, 1, 2] },
            // a response without a prompt
            Case { layout: "rrr", left: &[1, 2], right: &[0, 1] },
        ];
        for Case { layout, left, right } in cases {
            for (truncation, kept) in [(Truncation::Left, left), (Truncation::Right, right)] {
                let (fitted, dropped) = sequence(layout).fit(kept.len(), truncation).unwrap();
                assert_eq!(fitted.token_ids, kept, "{layout} {truncation:?}");
                assert_eq!(dropped, layout.len() - kept.len(), "{layout} {truncation:?}");
            }
        }
    }

    #[test]
    fn reject_names_both_lengths() {
        let error = sequence("[pprr]").fit(4, Truncation::Reject).unwrap_err();
        assert!(matches!(error, TextError::TooLong { tokens: 6, is_more: false, limit: 4 }), "{error}");
    }

    #[test]
    fn a_scaffold_that_does_not_fit_is_an_error() {
        for truncation in [Truncation::Left, Truncation::Right] {
            let error = sequence("[p|r]").fit(2, truncation).unwrap_err();
            assert!(matches!(error, TextError::ScaffoldTooLong { scaffold: 3, limit: 2 }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_fitted_sequence_keeps_what_it_must(layout in "[spr]{0,40}", limit in 0_usize..45, left: bool) {
            let truncation = if left { Truncation::Left } else { Truncation::Right };
            let whole = sequence(&layout);
            let count = |sequence: &Sequence, part| sequence.parts.iter().filter(|&&p| p == part).count();
            match whole.clone().fit(limit, truncation) {
                Err(error) => {
                    prop_assert!(matches!(error, TextError::ScaffoldTooLong { .. }), "{error}");
                    prop_assert!(count(&whole, Part::Scaffold) > limit);
                }
                Ok((fitted, dropped)) => {
                    prop_assert_eq!(fitted.token_ids.len(), layout.len().min(limit));
                    prop_assert_eq!(fitted.token_ids.len() + dropped, layout.len());
                    prop_assert_eq!(fitted.type_ids.len(), fitted.token_ids.len());
                    prop_assert!(fitted.token_ids.is_sorted(), "order is kept");
                    prop_assert_eq!(count(&fitted, Part::Scaffold), count(&whole, Part::Scaffold));
                    let response_lost = count(&whole, Part::Response) - count(&fitted, Part::Response);
                    prop_assert_eq!(response_lost, dropped.saturating_sub(count(&whole, Part::Prompt)));
                }
            }
        }
    }
}
