//! Codes and scales → values, some rows at a time.
//!
//! ```text
//! value = (code - zero) · scale [· then]       in f32, rounded once to what the tensor is read as
//! ```
//!
//! That is all that schemes have in common, and all that is done here: they differ in how codes lie in their bytes, how
//! many rows and columns share a scale, and in how scales come about ([`Scaling`]).

use std::fmt::Debug;
use std::ops::Range;

use rayon::prelude::*;

use crate::values::CHUNK;
use crate::values::Format;
use crate::values::Values;
use crate::values::round::Kept;

/// Codes that are read, then decoded while they are in the cache.
const SLAB: usize = 4 << 20;
/// Values that one thread decodes at a time.
const SHARE: usize = 8 * CHUNK;
/// Columns that are turned into rows together: a cache line of them.
const TURNED: usize = 16;

/// How codes lie in their bytes.
#[derive(Clone, Debug)]
pub(super) enum Codes {
    /// One in each.
    Bytes(Box<[f32; 256]>),
    /// Two in each, row after row.
    Nibbles { table: [f32; 16], high_first: bool },
    /// Each row a stream of so many bits per code, lowest first, in whole words of 32; `offset` is taken off.
    Along { bits: u32, offset: i32 },
    /// Each column a stream, in words `[rows · bits / 32, columns]`.
    Down { bits: u32 },
    /// A row's codes in fours: eight columns to a word, the nibble of each column here.
    Mixed { nibbles: [u32; 8] },
}

/// What values of codes are multiplied with.
#[derive(Debug)]
pub(in crate::checkpoint) struct Scales {
    /// `[groups of rows, groups of columns]` of each matrix.
    pub(super) scale: Vec<f32>,
    /// As many, or none.
    pub(super) zero: Vec<f32>,
    /// How many groups of columns there are.
    pub(super) across: usize,
    /// Which rows are a group.
    pub(super) rows: Groups,
    /// Which columns are.
    pub(super) columns: Groups,
    /// A second factor, after the first product was rounded to `f32`.
    pub(super) then: Option<f32>,
}

/// What has one scale.
#[derive(Debug)]
pub(super) enum Groups {
    /// So many that follow each other.
    Of(usize),
    /// The group of each.
    Each(Vec<usize>),
}

impl Scales {
    /// One for each `rows` by `columns`, `across` of them beside each other.
    pub(super) fn blocks(rows: usize, columns: usize, across: usize, scale: Vec<f32>) -> Self {
        let (rows, columns) = (Groups::Of(rows), Groups::Of(columns));
        Self { scale, zero: Vec::new(), across, rows, columns, then: None }
    }
}

impl Groups {
    /// Whether each of so many belongs to one of these groups, of which none is left over where they follow each other.
    fn fit(&self, count: usize, groups: usize) -> bool {
        match self {
            Self::Of(size) => *size > 0 && count.div_ceil(*size) == groups,
            Self::Each(of) => of.len() == count && of.iter().all(|of| *of < groups),
        }
    }
}

/// A part that is no code, as it is stored.
#[derive(Debug)]
pub(in crate::checkpoint) struct Part {
    pub(in crate::checkpoint) name: String,
    pub(in crate::checkpoint) dtype: safetensors::Dtype,
    pub(in crate::checkpoint) values: Values,
}

/// How a scheme makes scales of the parts beside the codes. What it says of itself is in digests.
pub(super) trait Scaling: Debug + Send + Sync {
    /// Of all parts but the codes, in the order in which they were named. Fails in words that name the part.
    fn scales(&self, parts: &[Part]) -> Result<Scales, String>;
}

/// How a tensor is made of its parts.
#[derive(Debug)]
pub(in crate::checkpoint) struct Recipe {
    pub(super) codes: Codes,
    /// As the codes lie.
    pub(super) matrices: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Whether rows become columns.
    pub(super) is_turned: bool,
    pub(super) scaling: Box<dyn Scaling>,
    /// What values are rounded to.
    pub(super) format: Format,
}

impl Codes {
    /// Of one code per byte.
    pub(super) fn bytes(value: impl Fn(u8) -> f32) -> Self {
        let mut table = Box::new([0.0; 256]);
        (0..=255).for_each(|code: u8| table[usize::from(code)] = value(code));
        Self::Bytes(table)
    }

    /// Two's complement.
    pub(super) fn int8() -> Self {
        Self::bytes(|code| f32::from(code as i8))
    }

    /// Where the bytes of these values are. They begin where a slab does.
    fn place(&self, values: Range<usize>, columns: usize) -> Range<usize> {
        let rows = values.start / columns.max(1)..values.end / columns.max(1);
        match self {
            Self::Bytes(_) => values,
            Self::Nibbles { .. } => values.start / 2..values.end.div_ceil(2),
            Self::Along { bits, .. } => {
                let row = words(columns, *bits) * 4;
                rows.start * row..rows.end * row
            }
            Self::Down { bits } => {
                let row = columns * 4;
                let words = |rows: usize| (rows * *bits as usize).div_ceil(32);
                words(rows.start) * row..words(rows.end) * row
            }
            Self::Mixed { .. } => rows.start * columns / 2..rows.end * columns / 2,
        }
    }

    /// So many values, or a multiple, can be read alone.
    fn unit(&self, columns: usize) -> usize {
        match self {
            Self::Bytes(_) => 1,
            Self::Nibbles { .. } => 2,
            Self::Along { .. } | Self::Mixed { .. } => columns,
            Self::Down { .. } => 32 * columns,
        }
    }

    /// The values of codes of one row, from the `at`-th on of those that `bytes` begins with.
    fn widen(&self, bytes: &[u8], at: usize, columns: usize, to: &mut [f32]) {
        let word = |at: usize| {
            u32::from_le_bytes(*bytes[at * 4..].first_chunk().expect("as many words as codes need"))
        };
        let (row, column) = (at / columns, at % columns);
        match self {
            Self::Bytes(table) => {
                let codes = &bytes[at..at + to.len()];
                to.iter_mut().zip(codes).for_each(|(to, &code)| *to = table[usize::from(code)]);
            }
            Self::Nibbles { table, high_first } => {
                for (at, to) in (at..).zip(to) {
                    let is_high = (at % 2 == 1) != *high_first;
                    *to = table[usize::from(bytes[at / 2] >> (4 * u32::from(is_high)) & 15)];
                }
            }
            Self::Along { bits, offset } => {
                let start = row * words(columns, *bits);
                for (column, to) in (column..).zip(to) {
                    let bit = column * *bits as usize;
                    let (at, shift) = (start + bit / 32, (bit % 32) as u32);
                    let mut code = word(at) >> shift;
                    if shift + bits > 32 {
                        code |= word(at + 1) << (32 - shift);
                    }
                    *to = ((code & mask(*bits)) as i32 - offset) as f32;
                }
            }
            Self::Down { bits } => {
                let bit = row * *bits as usize;
                let (start, shift) = (bit / 32 * columns, (bit % 32) as u32);
                for (column, to) in (column..).zip(to) {
                    let mut code = word(start + column) >> shift;
                    if shift + bits > 32 {
                        code |= word(start + columns + column) << (32 - shift);
                    }
                    *to = (code & mask(*bits)) as f32;
                }
            }
            Self::Mixed { nibbles } => {
                let start = row * columns / 8;
                for (column, to) in (column..).zip(to) {
                    *to = (word(start + column / 8) >> (4 * nibbles[column % 8]) & 15) as f32;
                }
            }
        }
    }
}

/// Of a row's stream of bits, how many words there are.
pub(super) fn words(codes: usize, bits: u32) -> usize {
    (codes * bits as usize).div_ceil(32)
}

/// Codes of streams down the columns of `[words, columns]`: `[rows, columns]`.
pub(super) fn down(packed: &[u32], bits: u32, rows: usize, columns: usize) -> Vec<u32> {
    let code = |row: usize, column: usize| {
        let bit = row * bits as usize;
        let (at, shift) = (bit / 32 * columns + column, (bit % 32) as u32);
        let above = if shift + bits > 32 { packed[at + columns] << (32 - shift) } else { 0 };
        (packed[at] >> shift | above) & mask(bits)
    };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| code(row, column))
        .collect()
}

/// The same of streams along rows of whole words.
pub(super) fn along(packed: &[u32], bits: u32, rows: usize, columns: usize) -> Vec<u32> {
    let wide = words(columns, bits);
    (0..rows).flat_map(|row| down(&packed[row * wide..][..wide], bits, columns, 1)).collect()
}

fn mask(bits: u32) -> u32 {
    u32::MAX >> (32 - bits)
}

impl Recipe {
    /// How many bytes of codes there must be; `None` where there would be more than any file has.
    pub(super) fn code_bytes(&self) -> Option<usize> {
        let values = self.matrices.checked_mul(self.rows)?.checked_mul(self.columns)?;
        values.checked_mul(64)?; // no code has more than a word, and no row of them a word to spare
        Some(self.codes.place(0..values, self.columns).end)
    }

    /// Makes the values: reads codes in their order, by `read` (where they begin, and room for them, in `bytes`), until all are there.
    pub(in crate::checkpoint) fn fill<E>(
        &self,
        scales: &Scales,
        values: &mut Values,
        bytes: &mut Vec<u8>,
        read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.fill_by((SLAB, bytes), scales, values, read)
    }

    fn fill_by<E>(
        &self,
        slab: (usize, &mut Vec<u8>),
        scales: &Scales,
        values: &mut Values,
        read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match values {
            Values::F32(values) => self.fill_all(slab, scales, values, read),
            Values::F16(values) => self.fill_all(slab, scales, values, read),
            Values::Bf16(values) => self.fill_all(slab, scales, values, read),
            Values::F64(_) | Values::Other(_) => unreachable!("dequantized to 32 or 16 bits"),
        }
    }

    /// What values are rounded to.
    pub(in crate::checkpoint) fn format(&self) -> Format {
        self.format
    }

    /// The scales, of the parts beside the codes.
    pub(in crate::checkpoint) fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let scales = self.scaling.scales(parts)?;
        let Scales { scale, zero, across, rows, columns, .. } = &scales;
        let down = scale.len() / across.max(&1) / self.matrices.max(1);
        let fit = scale.len() == self.matrices * down * across
            && (zero.is_empty() || zero.len() == scale.len())
            && rows.fit(self.rows, down)
            && columns.fit(self.columns, *across);
        fit.then_some(scales).ok_or_else(|| "its scales are not as many as its groups".to_owned())
    }

    fn fill_all<T: Kept + Default, E>(
        &self,
        (slab, bytes): (usize, &mut Vec<u8>),
        scales: &Scales,
        values: &mut [T],
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { rows, columns, .. } = *self;
        if values.is_empty() {
            return Ok(());
        }
        // what is turned goes matrix by matrix, in whole rows
        let (unit, end) = match self.is_turned {
            false => (self.codes.unit(columns), values.len()),
            true => (self.codes.unit(columns).next_multiple_of(columns), rows * columns),
        };
        let step = (slab / unit).max(1) * unit;
        let mut as_stored = Vec::new();
        for matrix in (0..values.len()).step_by(end) {
            for start in (0..end).step_by(step) {
                let range = start..end.min(start + step);
                let place = self.codes.place(matrix + range.start..matrix + range.end, columns);
                bytes.resize(place.len(), 0);
                read(place.start, bytes)?;
                let first = matrix + start;
                if !self.is_turned {
                    self.decode(scales, bytes, first, &mut values[range]);
                    continue;
                }
                as_stored.resize(range.len(), T::default());
                self.decode(scales, bytes, first, &mut as_stored);
                turn(&as_stored, columns, start / columns, rows, &mut values[matrix..matrix + end]);
            }
        }
        Ok(())
    }

    /// The values from `first` on, of which `bytes` are the codes.
    fn decode<T: Kept>(&self, scales: &Scales, bytes: &[u8], first: usize, to: &mut [T]) {
        let columns = self.columns;
        to.par_chunks_mut(SHARE).enumerate().for_each(|(share, mut to)| {
            let mut wide = [0.0; CHUNK];
            let mut at = share * SHARE;
            while !to.is_empty() {
                let (row, column) = ((first + at) / columns, (first + at) % columns);
                let count = to.len().min(columns - column).min(CHUNK);
                let wide = &mut wide[..count];
                self.codes.widen(bytes, at, columns, wide);
                self.scale(scales, row, column, wide);
                let (done, rest) = to.split_at_mut(count);
                T::from_f32s(wide, done);
                (to, at) = (rest, at + count);
            }
        });
    }

    /// Multiplies values of a row, from this column on, by their scales.
    fn scale(&self, scales: &Scales, row: usize, column: usize, values: &mut [f32]) {
        let Scales { scale, zero, across, .. } = scales;
        let (matrix, row) = (row / self.rows, row % self.rows);
        let group = match &scales.rows {
            Groups::Of(rows) => matrix * self.rows.div_ceil(*rows) + row / rows,
            Groups::Each(of) => of[row],
        };
        let of_row = group * across..(group + 1) * across;
        let scale = &scale[of_row.clone()];
        let zero = zero.get(of_row);
        let one = |value: &mut f32, group: usize| {
            *value = (*value - zero.map_or(0.0, |zero| zero[group])) * scale[group];
        };
        match &scales.columns {
            Groups::Each(of) => values.iter_mut().zip(&of[column..]).for_each(|(value, &of)| one(value, of)),
            Groups::Of(1) => values.iter_mut().zip(column..).for_each(|(value, of)| one(value, of)),
            Groups::Of(columns) => {
                let (mut rest, mut column) = (&mut *values, column);
                while !rest.is_empty() {
                    let group = column / columns;
                    let count = rest.len().min((group + 1) * columns - column);
                    let (run, after) = rest.split_at_mut(count);
                    let (scale, zero) = (scale[group], zero.map(|zero| zero[group]));
                    match zero {
                        None => run.iter_mut().for_each(|value| *value *= scale),
                        Some(zero) => run.iter_mut().for_each(|value| *value = (*value - zero) * scale),
                    }
                    (rest, column) = (after, column + count);
                }
            }
        }
        if let Some(then) = scales.then {
            values.iter_mut().for_each(|value| *value *= then);
        }
    }
}

/// Puts some rows of a matrix, from `first` on, into its columns.
fn turn<T: Kept>(from: &[T], columns: usize, first: usize, rows: usize, to: &mut [T]) {
    to.par_chunks_mut(rows * TURNED).enumerate().for_each(|(chunk, to)| {
        for (row, from) in (first..).zip(from.chunks_exact(columns)) {
            for (to, from) in to.chunks_exact_mut(rows).zip(&from[chunk * TURNED..]) {
                to[row] = *from;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One for each group of 3 rows and of 5 columns, and a zero.
    #[derive(Debug)]
    struct Fives {
        rows: usize,
        across: usize,
    }

    impl Scaling for Fives {
        fn scales(&self, _: &[Part]) -> Result<Scales, String> {
            let count = self.rows * self.across;
            let scale = (0..count).map(|at| 0.5 + at as f32 / 64.0).collect();
            let zero = (0..count).map(|at| (at % 7) as f32).collect();
            Ok(Scales { zero, ..Scales::blocks(3, 5, self.across, scale) })
        }
    }

    /// A byte of codes that does not repeat.
    fn byte(at: usize) -> u8 {
        ((at as u32).wrapping_mul(2_654_435_761) >> 13) as u8
    }

    /// What is read in pieces, and decoded by several threads, is what code by code is said of the format.
    #[test]
    fn slabs_end_wherever_they_may() {
        let table = std::array::from_fn(|code| code as f32);
        const COLUMNS: usize = 232;
        let (rows, columns) = (96, COLUMNS);
        /// Of bytes, at a row and a column.
        type Code = fn(&[u8], usize, usize) -> u32;
        fn bits(bytes: &[u8], starts: impl Iterator<Item = usize>) -> u32 {
            starts.enumerate().map(|(order, at)| u32::from(bytes[at / 8] >> (at % 8) & 1) << order).sum()
        }
        let down3: Code = |bytes, row, column| {
            bits(bytes, (row * 3..row * 3 + 3).map(|bit| (bit / 32 * COLUMNS + column) * 32 + bit % 32))
        };
        let kinds: [(Codes, Code); 6] = [
            (Codes::bytes(f32::from), |bytes, row, column| bytes[row * COLUMNS + column].into()),
            (Codes::Nibbles { table, high_first: false }, |bytes, row, column| {
                let at = row * COLUMNS + column;
                bits(bytes, at * 4..at * 4 + 4)
            }),
            (Codes::Nibbles { table, high_first: true }, |bytes, row, column| {
                let at = row * COLUMNS + column;
                let at = at / 2 * 2 + 1 - at % 2;
                bits(bytes, at * 4..at * 4 + 4)
            }),
            (Codes::Along { bits: 5, offset: 0 }, |bytes, row, column| {
                let at = row * words(COLUMNS, 5) * 32 + column * 5;
                bits(bytes, at..at + 5)
            }),
            (Codes::Down { bits: 3 }, down3),
            (Codes::Mixed { nibbles: [0, 4, 1, 5, 2, 6, 3, 7] }, |bytes, row, column| {
                let at = row * COLUMNS / 8 * 32 + column / 8 * 32 + [0, 16, 4, 20, 8, 24, 12, 28][column % 8];
                bits(bytes, at..at + 4)
            }),
        ];
        for (codes, code) in kinds {
            for (matrices, is_turned) in [(1, false), (1, true), (3, true)] {
                let scaling = Box::new(Fives { rows: matrices * rows / 3, across: columns.div_ceil(5) });
                let format = Format::F32;
                let recipe =
                    Recipe { codes: codes.clone(), matrices, rows, columns, is_turned, scaling, format };
                let stored: Vec<u8> = (0..recipe.code_bytes().unwrap()).map(byte).collect();
                let scales = recipe.scales(&[]).unwrap();
                let of_matrix = stored.len() / matrices;
                let mut expected = vec![0.0; matrices * rows * columns];
                for matrix in 0..matrices {
                    for (row, column) in
                        (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)))
                    {
                        let code = code(&stored[matrix * of_matrix..], row, column) as f32;
                        let group = (matrix * rows / 3 + row / 3) * scales.across + column / 5;
                        let at = if is_turned { column * rows + row } else { row * columns + column };
                        expected[matrix * rows * columns + at] =
                            (code - scales.zero[group]) * scales.scale[group];
                    }
                }
                for slab in [1, 37, 1000, 4096, SLAB] {
                    let mut values = Values::F32(vec![f32::NAN; expected.len()]);
                    let mut next = 0;
                    let read = |at: usize, bytes: &mut [u8]| {
                        assert_eq!(at, next, "in order, for who digests them");
                        next += bytes.len();
                        bytes.copy_from_slice(&stored[at..next]);
                        Ok::<_, ()>(())
                    };
                    recipe.fill_by((slab, &mut Vec::new()), &scales, &mut values, read).unwrap();
                    assert_eq!(next, stored.len());
                    assert!(
                        values == Values::F32(expected.clone()),
                        "{codes:?}: {matrices}, {is_turned}, {slab}"
                    );
                }
            }
        }
    }
}
