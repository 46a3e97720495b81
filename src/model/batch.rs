//! Packs sequences: one run of rows, never padded.
//!
//! A row is a token that a model computes. Rows lie in *segments*: each sequence in one of its own, or, packed
//! with sharing, along a path of segments that it has in common with others:
//!
//! ```text
//! sequences   a: P P P Q Q x        segments  0: P P P  (no parent)
//!             b: P P P Q Q y y                1: Q Q    (parent 0)
//!             c: P P P z                      2: x      (parent 1)     a ends here
//!                                             3: y y    (parent 1)     b
//!                                             4: z      (parent 0)     c
//! ```
//!
//! What a causal model computes of a token depends on the tokens before it and on nothing else; so a common prefix
//! is computed once, and the rows after it attend to its keys and values. Bidirectional models never share.

use std::borrow::Cow;
use std::ops::Range;

/// Shorter common prefixes are computed again: each one is an attention call more, and saves next to nothing. Most
/// chat templates are longer.
pub const MIN_SHARED_PREFIX: usize = 16;

/// One sequence of token ids for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// `[tokens]`, never empty.
    pub token_ids: Vec<u32>,
    /// `[tokens]`: token types (segments); zeros for models without.
    pub type_ids: Vec<u32>,
}

/// A run of rows that continues its parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its tokens are in the batch; never empty.
    pub rows: Range<usize>,
    /// Position of its first token in every sequence it is part of.
    pub first_position: usize,
    /// The segment before it; itself earlier in the batch.
    pub parent: Option<usize>,
}

/// Where a sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    segment: usize,
    /// Of that segment, so many rows; at least one.
    rows: usize,
}

/// Several sequences, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    token_ids: Vec<u32>,
    type_ids: Vec<u32>,
    segments: Vec<Segment>,
    ends: Vec<End>,
}

impl PackedBatch {
    /// Packs `sequences` in their order, each on its own. None may be empty.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            debug_assert!(!sequence.token_ids.is_empty(), "an empty sequence has no reward");
            let segment = batch.push(sequence, 0..sequence.token_ids.len(), None);
            batch.ends.push(End { segment, rows: sequence.token_ids.len() });
        }
        batch
    }

    /// Appends the tokens at these positions of a sequence as a segment.
    fn push(&mut self, sequence: &Sequence, positions: Range<usize>, parent: Option<usize>) -> usize {
        debug_assert_eq!(sequence.token_ids.len(), sequence.type_ids.len());
        let start = self.token_ids.len();
        let first_position = positions.start;
        self.token_ids.extend_from_slice(&sequence.token_ids[positions.clone()]);
        self.type_ids.extend_from_slice(&sequence.type_ids[positions]);
        self.segments.push(Segment { rows: start..self.token_ids.len(), first_position, parent });
        self.segments.len() - 1
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many tokens a model computes.
    pub fn num_rows(&self) -> usize {
        self.token_ids.len()
    }

    /// The token ids of all rows.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// The token types of all rows.
    pub fn type_ids(&self) -> &[u32] {
        &self.type_ids
    }

    /// All segments: their rows follow each other, and parents come before their children.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that a row is in.
    pub fn segment_of(&self, row: usize) -> usize {
        self.segments.partition_point(|segment| segment.rows.end <= row)
    }

    /// The rows of a segment's ancestors, in the order of their positions, and its own at the end.
    pub fn path(&self, segment: usize) -> Vec<Range<usize>> {
        let ancestors = std::iter::successors(Some(segment), |&segment| self.segments[segment].parent);
        let mut path: Vec<_> = ancestors.map(|segment| self.segments[segment].rows.clone()).collect();
        path.reverse();
        path
    }

    /// How many tokens a sequence has.
    pub fn length(&self, sequence: usize) -> usize {
        let End { segment, rows } = self.ends[sequence];
        self.segments[segment].first_position + rows
    }

    /// The rows of a sequence, as runs in the order of their positions.
    pub fn runs(&self, sequence: usize) -> Vec<Range<usize>> {
        let End { segment, rows } = self.ends[sequence];
        let mut runs = self.path(segment);
        let last = runs.last_mut().expect("a path ends with the segment itself");
        last.end = last.start + rows;
        runs
    }

    /// The row of the token at this position of a sequence.
    pub fn row_of(&self, sequence: usize, position: usize) -> usize {
        debug_assert!(position < self.length(sequence), "position {position} of a shorter sequence");
        let mut segment = &self.segments[self.ends[sequence].segment];
        while position < segment.first_position {
            let parent = segment.parent.expect("a segment without parent starts at position 0");
            segment = &self.segments[parent];
        }
        segment.rows.start + position - segment.first_position
    }

    /// The token ids of each sequence, in order.
    pub fn sequences(&self) -> impl Iterator<Item = Cow<'_, [u32]>> {
        (0..self.len()).map(|sequence| match self.runs(sequence).as_slice() {
            [run] => Cow::Borrowed(&self.token_ids[run.clone()]),
            runs => runs.iter().flat_map(|run| &self.token_ids[run.clone()]).copied().collect(),
        })
    }

    /// How many tokens are not computed, since they are shared.
    pub fn shared_tokens(&self) -> usize {
        (0..self.len()).map(|sequence| self.length(sequence)).sum::<usize>() - self.num_rows()
    }
}
