//! Rows that several threads write at once, each its own columns.
//!
//! Where rows are few, or a thread has nothing left to do, a product is cut by its columns and attention by its heads:
//! what each of them makes is the same as uncut, to the last bit.

#![expect(unsafe_code, reason = "columns of a row are no slice of their own")]

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use crate::product::Number;
use crate::rows::Rows;

/// All columns of some rows.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    start: *mut u8,
    number: Number,
    rows: usize,
    stride: usize,
    of: PhantomData<&'a mut Rows>,
}

// SAFETY: numbers behind an exclusive reference, of which whoever writes has columns that nobody else has
unsafe impl Send for Shared<'_> {}
// SAFETY: as above
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(rows: &'a mut Rows) -> Self {
        let (number, len, stride) = (rows.number(), rows.len(), rows.stride());
        let start = match number {
            Number::F32 => rows.values_mut().as_mut_ptr().cast(),
            Number::Bf16 => rows.bf16_mut().as_mut_ptr().cast(),
        };
        Self { start, number, rows: len, stride, of: PhantomData }
    }

    /// What they are kept in.
    #[inline(always)]
    pub(crate) fn number(&self) -> Number {
        self.number
    }

    #[inline(always)]
    fn at(&self, row: usize, columns: &Range<usize>) -> usize {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.stride);
        row * self.stride + columns.start
    }

    /// Some columns of a row of `f32`.
    ///
    /// # Safety
    /// Nobody else may have any of them.
    #[inline(always)]
    pub(crate) unsafe fn f32(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(self.number == Number::F32);
        let at = self.at(row, &columns);
        // SAFETY: within the row, as was checked, of rows that outlive this; and nobody else's, the caller says
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<f32>().add(at), columns.len()) }
    }

    /// Some columns of a row of bfloat16.
    ///
    /// # Safety
    /// Nobody else may have any of them.
    #[inline(always)]
    pub(crate) unsafe fn bf16(&mut self, row: usize, columns: Range<usize>) -> &mut [bf16] {
        assert!(self.number == Number::Bf16);
        let at = self.at(row, &columns);
        // SAFETY: as above
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<bf16>().add(at), columns.len()) }
    }
}

/// Runs `f` on parts of `0..count`, on threads of the pool that this runs in which have nothing else to do; on this one
/// outside of a pool, or where a part has fewer than `least`.
pub(crate) fn in_parts(count: usize, least: usize, f: &(impl Fn(Range<usize>) + Sync)) {
    fn halve(range: Range<usize>, size: usize, f: &(impl Fn(Range<usize>) + Sync)) {
        let parts = range.len() / size;
        if parts < 2 {
            return f(range);
        }
        let middle = range.start + range.len() * (parts / 2) / parts;
        rayon::join(|| halve(range.start..middle, size, f), || halve(middle..range.end, size, f));
    }
    let threads = match rayon::current_thread_index() {
        Some(_) => rayon::current_num_threads(),
        None => 1,
    };
    halve(0..count, (count / threads).max(least).max(1), f);
}
