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

pub use rewarm_kernels::Segment;

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

    /// Packs `sequences` such that common prefixes of at least `min_shared` tokens are computed once, nested ones
    /// too. A sequence that others continue ends inside their rows. None may be empty; only for causal models.
    ///
    /// Sorted by their tokens, sequences with a common prefix are neighbours; so it takes as long as sorting.
    pub fn pack_shared<'a>(sequences: impl IntoIterator<Item = &'a Sequence>, min_shared: usize) -> Self {
        let sequences: Vec<&Sequence> = sequences.into_iter().collect();
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&index| (&sequences[index].token_ids, &sequences[index].type_ids));

        // what the next one continues ends on the path of that one, and adds nothing
        let mut tree = Tree { longest: Vec::new(), common: Vec::new(), min_shared: min_shared.max(1) };
        let mut continued_by = vec![0; sequences.len()]; // index in `longest`
        for (place, &index) in order.iter().enumerate() {
            continued_by[index] = tree.longest.len();
            let next = order.get(place + 1).map(|&next| sequences[next]);
            let common = next.map_or(0, |next| common_prefix(sequences[index], next));
            if next.is_none() || common < sequences[index].token_ids.len() {
                tree.longest.push(sequences[index]);
                tree.common.push(common);
            }
        }

        let mut batch = Self::default();
        let mut leaves = Vec::with_capacity(tree.longest.len());
        tree.grow(&mut batch, &mut leaves, 0..tree.longest.len(), 0, None);
        batch.ends = sequences
            .iter()
            .zip(continued_by)
            .map(|(sequence, continued_by)| batch.end_of(sequence.token_ids.len(), leaves[continued_by]))
            .collect();
        batch
    }

    /// Where the first `tokens` tokens of the path to `segment` end.
    fn end_of(&self, tokens: usize, mut segment: usize) -> End {
        while let Some(parent) = self.segments[segment].parent
            && tokens <= self.segments[segment].first_position
        {
            segment = parent;
        }
        End { segment, rows: tokens - self.segments[segment].first_position }
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

    /// The rows at `count` positions of which a row's own is the middle one, `None` beyond its sequence: of batches that
    /// share no prefixes.
    pub fn neighbours(&self, row: usize, count: usize) -> impl Iterator<Item = Option<usize>> {
        let Segment { rows, parent, .. } = &self.segments[self.segment_of(row)];
        debug_assert_eq!(*parent, None, "bidirectional models share no prefixes");
        let reach = count / 2;
        (row..row + count).map(move |at| at.checked_sub(reach).filter(|row| rows.contains(row)))
    }

    /// The rows of the last `count` positions of a sequence up to a row's own, in their order; fewer at its beginning.
    pub fn before(&self, row: usize, count: usize) -> Vec<usize> {
        let mut segment = self.segment_of(row);
        let mut rows = vec![row];
        while rows.len() < count {
            let Segment { rows: own, parent, .. } = &self.segments[segment];
            let last = rows[rows.len() - 1];
            if last > own.start {
                rows.push(last - 1);
            } else if let Some(parent) = *parent {
                segment = parent;
                rows.push(self.segments[parent].rows.end - 1);
            } else {
                break;
            }
        }
        rows.reverse();
        rows
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

/// Sequences in the order of their tokens, none of them a prefix of another.
struct Tree<'a> {
    longest: Vec<&'a Sequence>,
    /// How many tokens each has in common with the next.
    common: Vec<usize>,
    min_shared: usize,
}

impl Tree<'_> {
    /// Appends the segments of a group whose sequences have their first `position` tokens in common, which are on
    /// the path of `parent`; and for each sequence of the group its last segment to `leaves`.
    fn grow(
        &self,
        batch: &mut PackedBatch,
        leaves: &mut Vec<usize>,
        group: Range<usize>,
        position: usize,
        parent: Option<usize>,
    ) {
        let mut start = group.start;
        while start < group.end {
            let shares = |&index: &usize| self.common[index] >= position + self.min_shared;
            let pairs = (start..group.end - 1).take_while(shares).count(); // of neighbours
            let common = self.common[start..start + pairs].iter().min();
            let until = common.copied().unwrap_or(self.longest[start].token_ids.len());
            let segment = batch.push(self.longest[start], position..until, parent);
            let end = start + pairs + 1;
            match pairs {
                0 => leaves.push(segment),
                _ => self.grow(batch, leaves, start..end, until, Some(segment)),
            }
            start = end;
        }
    }
}

fn common_prefix(a: &Sequence, b: &Sequence) -> usize {
    let tokens = a.token_ids.iter().zip(&b.token_ids).take_while(|(a, b)| a == b).count();
    let types = a.type_ids.iter().zip(&b.type_ids).take_while(|(a, b)| a == b).count();
    tokens.min(types)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(token_ids: &[u32]) -> Sequence {
        Sequence { token_ids: token_ids.to_vec(), type_ids: vec![0; token_ids.len()] }
    }

    fn pack_shared(sequences: &[&[u32]], min_shared: usize) -> PackedBatch {
        let sequences: Vec<Sequence> = sequences.iter().map(|tokens| sequence(tokens)).collect();
        PackedBatch::pack_shared(&sequences, min_shared)
    }

    #[test]
    fn the_batch_of_the_picture() {
        let (p, q, x, y, z) = (1, 2, 3, 4, 5);
        let batch = pack_shared(&[&[p, p, p, q, q, x], &[p, p, p, q, q, y, y], &[p, p, p, z]], 2);
        assert_eq!(batch.token_ids(), [p, p, p, q, q, x, y, y, z]);
        let segment = |rows, first_position, parent| Segment { rows, first_position, parent };
        let expected = [
            segment(0..3, 0, None),
            segment(3..5, 3, Some(0)),
            segment(5..6, 5, Some(1)),
            segment(6..8, 5, Some(1)),
            segment(8..9, 3, Some(0)),
        ];
        assert_eq!(batch.segments(), expected);
        assert_eq!(batch.shared_tokens(), 5 + 3);
        assert_eq!(batch.runs(1), [0..3, 3..5, 6..8]);
        assert_eq!((batch.row_of(1, 0), batch.row_of(1, 4), batch.row_of(1, 6)), (0, 4, 7));
        assert_eq!(batch.path(4), [0..3, 8..9]);
        assert_eq!(batch.segment_of(7), 3);
    }

    #[test]
    fn short_prefixes_are_computed_again() {
        let batch = pack_shared(&[&[1, 1, 1, 2], &[1, 1, 1, 3]], 4);
        assert_eq!((batch.shared_tokens(), batch.segments().len()), (0, 2));
        assert_eq!(pack_shared(&[&[1, 1, 1, 2], &[1, 1, 1, 3]], 3).shared_tokens(), 3);
    }

    #[test]
    fn duplicates_and_prefixes_of_others_are_free() {
        let batch = pack_shared(&[&[1, 2], &[1, 2, 3], &[1], &[1, 2, 3], &[9]], 100);
        assert_eq!(batch.token_ids(), [1, 2, 3, 9]);
        assert_eq!(batch.segments().len(), 2);
        let rows: Vec<_> = (0..5).map(|index| batch.row_of(index, batch.length(index) - 1)).collect();
        assert_eq!(rows, [1, 2, 0, 2, 3]);
    }

    #[test]
    fn other_token_types_are_no_common_prefix() {
        let sequences = [vec![0, 0, 0], vec![0, 1, 1], vec![0, 0, 0]]
            .map(|type_ids| Sequence { token_ids: vec![7, 7, 7], type_ids });
        let batch = PackedBatch::pack_shared(&sequences, 1);
        assert_eq!(batch.shared_tokens(), 3 + 1);
        assert_eq!(batch.type_ids(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn no_sequences_make_an_empty_batch() {
        assert_eq!(PackedBatch::pack_shared(&[], 1), PackedBatch::pack(&[]));
    }

    /// Built from few pieces, so that prefixes are common, nested, and whole sequences.
    fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
        let pieces: [&[u32]; 5] = [&[1], &[2, 2], &[1, 2, 3], &[4; 9], &[5; 20]];
        let one = prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..6);
        prop::collection::vec(one.prop_map(|pieces| sequence(&pieces.concat())), 0..12)
    }

    proptest! {
        #[test]
        fn every_sequence_is_packed_exactly(sequences in sequences(), min_shared in 0usize..24) {
            for batch in [PackedBatch::pack(&sequences), PackedBatch::pack_shared(&sequences, min_shared)] {
                prop_assert_eq!(batch.len(), sequences.len());
                for (index, (tokens, sequence)) in batch.sequences().zip(&sequences).enumerate() {
                    prop_assert_eq!(&*tokens, &*sequence.token_ids);
                    prop_assert_eq!(batch.length(index), tokens.len());
                    for (position, token) in tokens.iter().enumerate() {
                        prop_assert_eq!(batch.token_ids()[batch.row_of(index, position)], *token);
                    }
                }
                let mut rows = 0;
                for (index, segment) in batch.segments().iter().enumerate() {
                    prop_assert_eq!(segment.rows.start, rows);
                    prop_assert!(!segment.rows.is_empty());
                    rows = segment.rows.end;
                    match segment.parent {
                        None => prop_assert_eq!(segment.first_position, 0),
                        Some(parent) => {
                            prop_assert!(parent < index);
                            let parent = &batch.segments()[parent];
                            prop_assert_eq!(segment.first_position, parent.first_position + parent.rows.len());
                        }
                    }
                }
                prop_assert_eq!(rows, batch.num_rows());
            }
        }

        #[test]
        fn what_is_shared_from_the_first_token_on_is_all_that_can_be(sequences in sequences()) {
            let batch = PackedBatch::pack_shared(&sequences, 1);
            let prefixes: std::collections::HashSet<&[u32]> = sequences
                .iter()
                .flat_map(|sequence| (1..=sequence.token_ids.len()).map(|end| &sequence.token_ids[..end]))
                .collect();
            prop_assert_eq!(batch.num_rows(), prefixes.len());
        }
    }
}
