//! Memory for activations: aligned to cache lines, and used again and again.
//!
//! Fresh memory from the system costs a page fault for every 4 KiB that is touched, which was measured to cost as
//! much as the arithmetic. So buffers come from free lists, and go back there when they are dropped.

use std::mem::take;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytemuck::Pod;
use bytemuck::Zeroable;

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

/// Lines, with whatever they held before.
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

/// Free buffers, by the power of two that their number of lines is.
static FREE: [Mutex<Vec<Vec<Line>>>; 40] = [const { Mutex::new(Vec::new()) }; 40];

fn free_list(lines: usize) -> std::sync::MutexGuard<'static, Vec<Vec<Line>>> {
    FREE[lines.trailing_zeros() as usize].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    /// Room for at least so many numbers.
    pub(crate) fn for_numbers<T: Pod>(count: usize) -> Self {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>()).max(1).next_power_of_two();
        let free = free_list(lines).pop();
        Self { lines: free.unwrap_or_else(|| vec![Line::zeroed(); lines]) }
    }

    /// As numbers.
    pub(crate) fn numbers<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// As numbers.
    pub(crate) fn numbers_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = take(&mut self.lines);
        free_list(lines.len()).push(lines);
    }
}
