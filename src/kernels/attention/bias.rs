//! What scores have for where a key is, whatever the query and the key are: numbers that are the same for a batch.

use super::ByDistance;
use crate::AttentionSpec;
use crate::Distance;
use crate::spec::rounded_slope;

/// Columns go in vectors of at most so many lanes.
const MAX_LANES: usize = 16;

/// For each head a number for each distance that there is in a batch, in the order of the keys; or for each position.
pub(super) struct Biases {
    /// `[heads, distances or positions]`
    of_heads: Vec<f32>,
    of_head: usize,
    /// How far before its query the first of a head's keys is; `None`: numbers are of positions.
    before: Option<usize>,
}

impl Biases {
    /// For sequences of at most so many tokens; `None` where scores have nothing of the kind.
    pub(super) fn new(spec: &AttentionSpec, parameters: Option<&ByDistance>, longest: usize) -> Option<Self> {
        let before = longest.saturating_sub(1);
        let ahead = if spec.causal { MAX_LANES } else { longest.next_multiple_of(MAX_LANES) };
        let distances = before + ahead;
        let after = move |at: usize| at as isize - before as isize; // of the key, after the query
        let of_heads = match (&spec.distance, parameters) {
            (Distance::Slopes(slopes), _) => {
                let of_head = |slope: &f32| {
                    let slope = *slope;
                    (0..distances).map(move |at| slope * after(at) as f32)
                };
                slopes.iter().flat_map(of_head).collect()
            }
            (Distance::Biases(buckets), Some(ByDistance::Biases(table))) => {
                let rows: Vec<usize> = (0..distances).map(|at| buckets.row(-after(at))).collect();
                let of_head = |head: usize| rows.iter().map(move |&row| table.row(row)[head]);
                (0..spec.heads).flat_map(of_head).collect()
            }
            (Distance::RoundedSlopes(slopes), _) => {
                let of_head = longest.next_multiple_of(MAX_LANES);
                let numbers = |&slope: &f32| (0..of_head).map(move |position| rounded_slope(slope, position));
                let of_heads = slopes.iter().flat_map(numbers).collect();
                return Some(Self { of_heads, of_head, before: None });
            }
            (Distance::Biases(_), _) => panic!("a layer with biases has a table"),
            (Distance::Ignored | Distance::Buckets(_), _) => return None,
        };
        Some(Self { of_heads, of_head: distances, before: Some(before) })
    }

    /// For queries from one position on, and keys from another on.
    pub(super) fn of(&self, head: usize, first_query: usize, first_key: usize) -> OfHead<'_> {
        let of_head = &self.of_heads[head * self.of_head..][..self.of_head];
        OfHead { of_head, before: self.before, first_key, first_query }
    }
}

/// Those of a head.
#[derive(Clone, Copy)]
pub(super) struct OfHead<'a> {
    of_head: &'a [f32],
    before: Option<usize>,
    first_key: usize,
    first_query: usize,
}

impl<'a> OfHead<'a> {
    /// Of one of the queries, from a column on; and, where they are of positions, the query's own, which comes off
    /// before they are scaled with the scores.
    #[inline(always)]
    pub(super) fn from(&self, query: usize, column: usize) -> (&'a [f32], Option<f32>) {
        let (key, query) = (self.first_key + column, self.first_query + query);
        match self.before {
            Some(before) => (&self.of_head[before + key - query..], None),
            None => (&self.of_head[key..], Some(self.of_head[query])),
        }
    }
}
