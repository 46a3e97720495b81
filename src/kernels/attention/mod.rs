//! Attention of packed sequences.
//!
//! ```text
//! keys, values of a segment and a head → packed in panels of positions           (once)
//! a tile of queries, a head, a block of 512 positions:
//!     scores [queries, positions] = q · kᵀ → scale, cap, hide → online softmax → += weights · v
//! ```
//!
//! Panels and blocks are cut by a token's *position* in its sequence, never by where it lies in the batch. So a
//! query adds up the same numbers in the same order whatever is beside it, and whether its prefix is its own or
//! shared: a panel that a shared prefix does not fill is packed again for each continuation.

#![expect(unsafe_code, reason = "threads that share attention write columns of the same rows")]

mod bias;
mod cache;
mod relative;
mod softmax;
mod tile;

use self::bias::Biases;
use self::cache::Cache;
use self::relative::Columns;
pub use self::relative::Relative;
use self::tile::MAX_QUERIES;
use self::tile::Tile;
use self::tile::Work;
use crate::AttentionSpec;
use crate::Distance;
use crate::Segment;
use crate::isa::Isa;
use crate::product::Number;
use crate::rows::Rows;
use crate::shared::Shared;
use crate::shared::in_parts;

/// Multiplications with keys that are worth handing to another thread.
const LEAST_WORK: usize = 1 << 18;

/// Rows of a batch in blocks.
pub struct Blocks<'a> {
    blocks: &'a [Rows],
    /// The first row of each, and how many there are.
    starts: Vec<usize>,
}

impl<'a> Blocks<'a> {
    /// All rows of a batch, in order.
    pub fn new(blocks: &'a [Rows]) -> Self {
        let mut starts = vec![0];
        starts.extend(blocks.iter().scan(0, |rows, block| {
            *rows += block.len();
            Some(*rows)
        }));
        Self { blocks, starts }
    }

    /// A row of the batch.
    pub fn row(&self, row: usize) -> &'a [f32] {
        // blocks are of like size
        let mut block = row * self.blocks.len() / self.starts[self.blocks.len()];
        while row < self.starts[block] {
            block -= 1;
        }
        while row >= self.starts[block + 1] {
            block += 1;
        }
        self.blocks[block].row(row - self.starts[block])
    }
}

/// What the parameters of a layer have for distances, laid out once.
pub enum ByDistance {
    /// What queries and keys are multiplied with, for [`Distance::Buckets`].
    Products(Relative),
    /// What scores have of each query head, `[rows, heads]`, for [`Distance::Biases`].
    Biases(Rows),
}

impl std::fmt::Debug for ByDistance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Products(relative) => relative.fmt(f),
            Self::Biases(table) => write!(f, "Biases({} rows)", table.len()),
        }
    }
}

/// One call of attention: first all keys and values are [remembered](Attention::remember), then blocks of queries
/// [attend](Remembered::attend) to them.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// What computes.
    pub isa: Isa,
    /// What queries, keys, values and softmax weights are multiplied in, and the result is kept in. Bfloat16 only
    /// where the instruction set multiplies it.
    pub number: Number,
    /// All of the batch: parents before their children.
    pub segments: &'a [Segment],
    /// What to compute.
    pub spec: &'a AttentionSpec,
}

/// Keys and values of all rows of a batch, laid out for the products.
pub struct Remembered<'a> {
    attention: Attention<'a>,
    cache: Cache,
    distances: Option<(&'a Relative, Columns)>,
    biases: Option<Biases>,
    sinks: Option<&'a [f32]>,
}

impl<'a> Attention<'a> {
    /// Lays out the keys and values of all rows of the batch, `[rows, kv_heads · head_dim]` and `[rows, kv_heads · value_dim]`;
    /// `in_parallel` if
    /// that is worth several threads, those of the pool that this runs in. `parameters` where [`Distance`] asks for
    /// them.
    pub fn remember(
        self,
        keys: Blocks<'_>,
        values: Blocks<'_>,
        parameters: Option<&'a ByDistance>,
        in_parallel: bool,
    ) -> Remembered<'a> {
        let cache = self.lay_out([&keys, &values], in_parallel);
        let longest = self.segments.iter().map(Segment::end_position).max().unwrap_or(0);
        let distances = match (&self.spec.distance, parameters) {
            (Distance::Buckets(buckets), Some(ByDistance::Products(relative))) => {
                Some((relative, Columns::new(buckets, longest, self.isa.panel_width())))
            }
            (Distance::Buckets(_), _) => panic!("a layer with buckets has tables"),
            _ => None,
        };
        let biases = Biases::new(self.spec, parameters, longest);
        Remembered { attention: self, cache, distances, biases, sinks: None }
    }
}

impl<'a> Remembered<'a> {
    /// With one score more for each query head: what it weighs in the softmax goes to nobody.
    pub fn with_sinks(self, sinks: &'a [f32]) -> Self {
        assert_eq!(sinks.len(), self.attention.spec.heads);
        Self { sinks: Some(sinks), ..self }
    }
}

impl Remembered<'_> {
    /// Attention of a block of queries, `[rows, heads · head_dim]`; `place(query)` is the segment and the position
    /// of a query. Returns `[rows, heads · value_dim]`.
    pub fn attend(&self, queries: &Rows, place: &(dyn Fn(usize) -> (usize, usize) + Sync)) -> Rows {
        let Self { attention, cache, distances, biases, sinks } = self;
        let Attention { number, segments, spec, .. } = *attention;
        let mut tiles = Vec::with_capacity(queries.len().div_ceil(MAX_QUERIES));
        let (mut first, mut of_head) = (0, 0);
        while first < queries.len() {
            let (segment, first_position) = place(first);
            let follows = |&query: &usize| place(query) == (segment, first_position + query - first);
            let last = queries.len().min(first + MAX_QUERIES);
            let end = (first + 1..last).take_while(follows).last().unwrap_or(first) + 1;
            let end_position = segments[segment].end_position();
            let path = attention.path(segment);
            tiles.push(Tile { queries, rows: first..end, first_position, end_position, path });
            of_head += (end - first) * spec.seen(first_position, end_position).len() * spec.head_dim;
            first = end;
        }
        let mut output = Rows::new(number, queries.len(), spec.heads * spec.value_dim);
        let shared = Shared::new(&mut output);
        in_parts(spec.heads, LEAST_WORK.div_ceil(of_head.max(1)), &|heads| {
            let mut work = Work::new(attention, distances.as_ref());
            for tile in &tiles {
                for head in heads.clone() {
                    work.attend(attention, cache, biases.as_ref(), tile, head);
                    // SAFETY: nobody else has this head
                    unsafe { work.write(attention, sinks.map(|sinks| sinks[head]), shared, tile, head) };
                }
            }
        });
        output
    }
}
