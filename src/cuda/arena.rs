//! Memory for activations: taken once, handed out and given back without asking the driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::driver::Address;
use crate::driver::Driver;
use crate::driver::Result;

/// Every piece begins at a multiple of it.
const ALIGNMENT: usize = 256;

/// A run of the card's memory. Pieces are taken at the lowest place where they fit, so the same sequence of takes and
/// returns has the same addresses each time: what a [graph](crate::driver::Graph) was recorded with holds again.
#[derive(Debug)]
pub(crate) struct Arena {
    base: Address,
    capacity: usize,
    /// Whose memory it is: it goes back when the last piece was given back.
    driver: Option<Arc<dyn Driver>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Offset → bytes, of what is free: no two of them touch.
    free: BTreeMap<usize, usize>,
    /// Bytes from the beginning to the end of the last piece that was ever taken.
    peak: usize,
}

impl Arena {
    /// So much memory of a driver.
    pub(crate) fn of(driver: &Arc<dyn Driver>, bytes: usize, what: &str) -> Result<Self> {
        let bytes = rounded(bytes);
        let base = driver.allocate(bytes, what)?;
        let mut arena = Self::at(base, bytes);
        arena.driver = Some(driver.clone());
        Ok(arena)
    }

    /// Nobody's memory, to see how much would be taken.
    pub(crate) fn endless() -> Self {
        Self::at(Address(1 << 40), 1 << 60)
    }

    fn at(base: Address, capacity: usize) -> Self {
        let state = State { free: BTreeMap::from([(0, capacity)]), ..State::default() };
        Self { base, capacity, driver: None, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece, if there is room for it.
    pub(crate) fn take(&self, bytes: usize) -> Option<Address> {
        let bytes = rounded(bytes);
        let mut state = self.state();
        let (&at, &length) = state.free.iter().find(|(_, length)| **length >= bytes)?;
        state.free.remove(&at);
        if length > bytes {
            state.free.insert(at + bytes, length - bytes);
        }
        state.peak = state.peak.max(at + bytes);
        Some(self.base.after(at))
    }

    /// Takes a piece back.
    pub(crate) fn give_back(&self, address: Address, bytes: usize) {
        let mut bytes = rounded(bytes);
        let mut state = self.state();
        let mut at = (address.0 - self.base.0) as usize;
        if let Some((&before, &length)) = state.free.range(..at).next_back()
            && before + length == at
        {
            state.free.remove(&before);
            (at, bytes) = (before, bytes + length);
        }
        if let Some(length) = state.free.remove(&(at + bytes)) {
            bytes += length;
        }
        state.free.insert(at, bytes);
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.capacity - self.state().free.values().sum::<usize>()
    }

    /// How large it must be for all that was ever taken.
    pub(crate) fn peak(&self) -> usize {
        self.state().peak
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.release(self.base);
        }
    }
}

fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_overlap_and_come_back_whole() {
        let arena = Arena::at(Address(1 << 20), 4096);
        let pieces: Vec<(Address, usize)> =
            [1, 256, 257, 1000].into_iter().map(|bytes| (arena.take(bytes).unwrap(), bytes)).collect();
        let ends: Vec<u64> = pieces.iter().map(|(at, bytes)| at.0 + rounded(*bytes) as u64).collect();
        assert_eq!(pieces[0].0, Address(1 << 20));
        for (end, next) in ends.iter().zip(&pieces[1..]) {
            assert_eq!(*end, next.0.0);
        }
        assert_eq!(arena.peak(), 256 + 256 + 512 + 1024);
        assert_eq!(arena.take(4096), None);
        // in any order, what is free is one run again
        for index in [2, 0, 3, 1] {
            let (at, bytes) = pieces[index];
            arena.give_back(at, bytes);
        }
        assert_eq!(arena.taken(), 0);
        assert_eq!(arena.take(4096), Some(Address(1 << 20)));
    }

    #[test]
    fn the_same_sequence_has_the_same_addresses() {
        let arena = Arena::at(Address(256), 1 << 16);
        let run = || {
            let (a, b) = (arena.take(3000).unwrap(), arena.take(500).unwrap());
            arena.give_back(a, 3000);
            let c = arena.take(2000).unwrap();
            let d = arena.take(5000).unwrap();
            for (at, bytes) in [(b, 500), (c, 2000), (d, 5000)] {
                arena.give_back(at, bytes);
            }
            [a, b, c, d]
        };
        assert_eq!(run(), run());
    }
}
