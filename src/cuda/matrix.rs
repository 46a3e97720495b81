//! What lies in a card's memory: matrices, and lists of integers. Memory goes back when the last that reads it is gone.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;

use crate::arena::Arena;
use crate::driver::Address;
use crate::driver::Driver;
use crate::driver::Number;

/// Memory of a card.
pub(crate) struct Memory {
    pub(crate) at: Address,
    pub(crate) bytes: usize,
    owner: Owner,
}

enum Owner {
    Weights(Arc<Retired>),
    Arena(Arc<Arena>),
}

/// Weights that nobody holds any more: they go back when nothing that was listed can read them.
#[derive(Debug)]
pub(crate) struct Retired {
    driver: Arc<dyn Driver>,
    /// Held while launches are recorded: meanwhile no memory is taken or given back.
    pub(crate) recording: RwLock<()>,
    /// While a forward is under way.
    waiting: Mutex<Option<Vec<Address>>>,
}

impl Retired {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, recording: RwLock::new(()), waiting: Mutex::new(None) }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Address>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no launches are recorded, and keeps others from it.
    pub(crate) fn nobody_records(&self) -> RwLockReadGuard<'_, ()> {
        self.recording.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A forward begins.
    pub(crate) fn hold(&self) {
        self.waiting().get_or_insert_default();
    }

    /// It has ended.
    pub(crate) fn release(&self) {
        for address in self.waiting().take().unwrap_or_default() {
            self.driver.release(address);
        }
    }

    fn take(&self, address: Address) {
        match &mut *self.waiting() {
            Some(waiting) => waiting.push(address),
            None => {
                let _nobody_records = self.nobody_records();
                self.driver.release(address);
            }
        }
    }
}

impl Memory {
    pub(crate) fn of_weights(at: Address, bytes: usize, retired: Arc<Retired>) -> Self {
        Self { at, bytes, owner: Owner::Weights(retired) }
    }

    pub(crate) fn of_arena(at: Address, bytes: usize, arena: Arc<Arena>) -> Self {
        Self { at, bytes, owner: Owner::Arena(arena) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Weights(retired) => retired.take(self.at),
            Owner::Arena(arena) => arena.give_back(self.at, self.bytes),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.at.0)
    }
}

/// From a row to the next, in numbers, where nothing else is asked for: each row begins at 16 bytes at least.
pub fn stride_of(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// Numbers `[rows, width]` in a card's memory, row-major. Clones are the same matrix, read by somebody else as well.
#[derive(Clone, Debug)]
pub struct Matrix(Arc<View>);

#[derive(Clone, Debug)]
struct View {
    /// Goes back when nobody reads it.
    _memory: Arc<Memory>,
    at: Address,
    rows: usize,
    width: usize,
    stride: usize,
    number: Number,
}

impl Matrix {
    pub(crate) fn new(memory: Arc<Memory>, rows: usize, width: usize, stride: usize, number: Number) -> Self {
        let at = memory.at;
        Self(Arc::new(View { _memory: memory, at, rows, width, stride, number }))
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.0.width
    }

    /// From a row to the next, in numbers.
    pub fn stride(&self) -> usize {
        self.0.stride
    }

    /// What they are kept in.
    pub fn number(&self) -> Number {
        self.0.number
    }

    pub(crate) fn at(&self) -> Address {
        self.0.at
    }

    /// Whether nobody else reads these numbers: they may be changed in place.
    pub fn is_mine(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Some of its columns: nobody else may read these while they are changed.
    pub fn columns(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width(), "columns {columns:?} of {}", self.width());
        let at = self.at().after(columns.start * self.number().bytes());
        Self(Arc::new(View { at, width: columns.len(), ..(*self.0).clone() }))
    }

    /// Some of its rows.
    pub fn some_rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        let at = self.at().after(rows.start * self.stride() * self.number().bytes());
        Self(Arc::new(View { at, rows: rows.len(), ..(*self.0).clone() }))
    }
}

/// Integers in a card's memory.
#[derive(Clone, Debug)]
pub struct Integers {
    /// Goes back when nobody reads it.
    pub(crate) _memory: Arc<Memory>,
    pub(crate) at: Address,
    pub(crate) count: usize,
}

impl Integers {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
