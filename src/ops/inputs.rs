//! What models read of a batch: all that a form is told of it, [once](crate::ops::Ops::batch).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::ops::batch::PackedBatch;

/// A batch, and what models make of it before anything is computed: a device gets it in one go, and operations name what
/// they read by its place.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Which rows there are, and what each of them sees.
    pub packed: &'a PackedBatch,
    /// For each table of an embedding the row that each token takes, `[tables][rows]`.
    pub ids: Vec<Cow<'a, [u32]>>,
    /// Rotary position embeddings.
    pub ropes: Vec<Angles>,
    /// Rows that are asked for by themselves, in this order: what heads read.
    pub lists: Vec<Vec<usize>>,
}

/// Angles of one rotary position embedding for every row of a batch: which row of a table they are.
///
/// A table of positions is the same for all batches, so a device keeps it: a row of a batch is then four bytes, where its
/// angles are half a kilobyte.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Angles {
    /// Which there are.
    pub table: Arc<AngleTable>,
    /// Of each row of the batch, its row of the table.
    pub of_rows: Vec<u32>,
    /// Whether other batches have the same table.
    pub stays: bool,
}

/// Cosines and sines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AngleTable {
    /// Row-major `[positions, pairs]`
    pub cos: Vec<f32>,
    /// The same.
    pub sin: Vec<f32>,
    /// How many pairs of each head turn: half a head, or fewer, and the columns behind stay as they are.
    pub pairs: usize,
}

impl Angles {
    /// From a table of this batch alone, with a row for each of its rows.
    pub fn of_batch(table: AngleTable) -> Self {
        let rows = (table.cos.len() / table.pairs.max(1)) as u32;
        Self { table: Arc::new(table), of_rows: (0..rows).collect(), stays: false }
    }

    /// Cosines and sines of a row of the batch.
    pub fn of_row(&self, row: usize) -> (&[f32], &[f32]) {
        let AngleTable { cos, sin, pairs } = &*self.table;
        let start = self.of_rows[row] as usize * pairs;
        (&cos[start..][..*pairs], &sin[start..][..*pairs])
    }
}

/// Rows of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// One after the other.
    Run(Range<usize>),
    /// Those at some places of one of the [lists](Inputs::lists).
    Listed {
        /// Index of the list.
        list: usize,
        /// In it.
        places: Range<usize>,
    },
}

impl Which {
    /// Those at some of the places.
    pub fn part(&self, of: Range<usize>) -> Self {
        let part = |range: &Range<usize>| range.start + of.start..range.start + of.end;
        match self {
            Self::Run(rows) => Self::Run(part(rows)),
            Self::Listed { list, places } => Self::Listed { list: *list, places: part(places) },
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        let (Self::Run(range) | Self::Listed { places: range, .. }) = self;
        range.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Inputs<'a> {
    /// Of a batch whose positions and tokens nobody reads.
    pub fn of(packed: &'a PackedBatch) -> Self {
        Self { packed, ids: Vec::new(), ropes: Vec::new(), lists: Vec::new() }
    }

    /// All rows that a list has.
    pub fn listed(&self, list: usize) -> Which {
        Which::Listed { list, places: 0..self.lists[list].len() }
    }

    /// The row of the batch that is at this place of some.
    pub fn row(&self, which: &Which, place: usize) -> usize {
        match which {
            Which::Run(rows) => rows.start + place,
            Which::Listed { list, places } => self.lists[*list][places.start + place],
        }
    }

    /// The same of all of them, in order.
    pub fn rows<'w>(&'w self, which: &'w Which) -> impl Iterator<Item = usize> + 'w {
        (0..which.len()).map(|place| self.row(which, place))
    }
}
