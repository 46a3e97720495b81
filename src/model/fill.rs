//! Batches are filled up to a number of tokens: by the engine, by training, and by every command that scores. One rule for
//! all: in order, while things fit, and one that is longer than the whole goes alone.

use std::ops::Range;

/// A batch, while it is filled.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    max_tokens: usize,
    tokens: usize,
}

impl Fill {
    /// Nothing is in it yet.
    pub fn new(max_tokens: usize) -> Self {
        Self { max_tokens, tokens: 0 }
    }

    /// Takes things of these lengths, in order, while they fit; returns how many. The first of a batch always does.
    pub fn take(&mut self, lengths: impl IntoIterator<Item = usize>) -> usize {
        lengths
            .into_iter()
            .take_while(|&length| {
                let fits = self.tokens == 0 || self.tokens + length <= self.max_tokens;
                if fits {
                    self.tokens += length;
                }
                fits
            })
            .count()
    }

    /// Tokens taken so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Which of the things of these lengths go together: all of them, in order, in batches of at most so many tokens.
pub fn runs(lengths: impl IntoIterator<Item = usize>, max_tokens: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut fill = Fill::new(max_tokens);
    for (index, length) in lengths.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if fill.take([length]) == 1 => run.end += 1,
            _ => {
                fill = Fill::new(max_tokens);
                fill.take([length]);
                runs.push(index..index + 1);
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_the_head_of_what_waits_up_to_its_tokens() {
        struct Case {
            name: &'static str,
            requests: &'static [&'static [usize]],
            taken: &'static [usize],
        }
        let cases = [
            Case { name: "nothing waits", requests: &[], taken: &[] },
            Case { name: "all fit", requests: &[&[1, 2], &[3], &[4]], taken: &[2, 1, 1] },
            Case { name: "exactly full", requests: &[&[5, 5], &[1]], taken: &[2, 0] },
            Case { name: "a request is cut", requests: &[&[4, 4, 4], &[1]], taken: &[2] },
            Case { name: "too long goes alone", requests: &[&[11, 1], &[1]], taken: &[1] },
            Case { name: "too long waits its turn", requests: &[&[1], &[11]], taken: &[1, 0] },
            Case { name: "never past the head", requests: &[&[6], &[6], &[1]], taken: &[1, 0] },
        ];
        for Case { name, requests, taken } in cases {
            let mut fill = Fill::new(10);
            let mut got = Vec::new();
            for request in requests {
                got.push(fill.take(request.iter().copied()));
                if got.last() != Some(&request.len()) {
                    break;
                }
            }
            assert_eq!(got, taken, "{name}");
        }
    }

    #[test]
    fn runs_have_at_most_so_many_tokens_or_one_thing() {
        let runs = |max_tokens: usize| {
            let runs = runs([3, 4, 9, 1, 1, 1], max_tokens);
            runs.into_iter().map(|run| (run.start, run.end)).collect::<Vec<_>>()
        };
        assert_eq!(runs(7), [(0, 2), (2, 3), (3, 6)]);
        assert_eq!(runs(6), [(0, 1), (1, 2), (2, 3), (3, 6)]);
        assert_eq!(runs(100), [(0, 6)]);
        assert_eq!(runs(0).len(), 6);
        assert!(super::runs([], 5).is_empty());
    }
}
