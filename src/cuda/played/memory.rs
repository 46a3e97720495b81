//! Memory of a played card: allocations of the host, each between two guards that nobody may write to.

#![expect(unsafe_code, reason = "memory of a card is addresses")]

use std::alloc::Layout;
use std::collections::BTreeMap;

use crate::driver::Address;

/// What a card aligns to; also the size of a guard, so that what lies between two is aligned.
const ALIGN: usize = 256;

/// In fresh memory and guards: NaN as `f32`, bf16 and f16.
const FRESH: u8 = 0xff;

/// All of it.
pub(super) struct Memory {
    capacity: u64,
    used: u64,
    blocks: BTreeMap<u64, Block>,
}

struct Block {
    /// What was asked for.
    bytes: usize,
    /// The guards and what is between.
    start: *mut u8,
    layout: Layout,
}

// SAFETY: a block is memory of the heap that only its `Memory` knows; whoever owns that, owns it.
unsafe impl Send for Block {}

impl Memory {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, blocks: BTreeMap::new() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn free(&self) -> u64 {
        self.capacity - self.used
    }

    /// None if there is not enough left.
    pub(super) fn allocate(&mut self, bytes: usize) -> Option<Address> {
        let taken = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        if taken as u64 > self.free() {
            return None;
        }
        let layout = Layout::from_size_align(taken.checked_add(2 * ALIGN)?, ALIGN).ok()?;
        // SAFETY: the layout is not empty; what is written lies within it.
        let start = unsafe {
            let start = std::alloc::alloc(layout);
            if start.is_null() {
                return None;
            }
            start.write_bytes(FRESH, layout.size());
            start
        };
        self.used += taken as u64;
        let address = Address(start as u64).after(ALIGN);
        self.blocks.insert(address.0, Block { bytes, start, layout });
        Some(address)
    }

    pub(super) fn release(&mut self, address: Address) -> Result<(), String> {
        let block = self.blocks.remove(&address.0);
        let block = block.ok_or_else(|| format!("{address:?} is released, but was not allocated"))?;
        self.used -= (block.layout.size() - 2 * ALIGN) as u64;
        // SAFETY: allocated above with this layout, and no longer known.
        unsafe { std::alloc::dealloc(block.start, block.layout) };
        Ok(())
    }

    /// Whether these bytes lie within one allocation.
    fn holds(&self, address: Address, bytes: usize) -> Result<(), String> {
        let before = self.blocks.range(..=address.0).next_back();
        let end = address.0.checked_add(bytes as u64);
        match (before, end) {
            (Some((&start, block)), Some(end)) if end <= start + block.bytes as u64 => Ok(()),
            _ => Err(format!("an illegal memory access was encountered: {bytes} bytes at {:#x}", address.0)),
        }
    }

    /// What is there.
    pub(super) fn read(&self, address: Address, bytes: usize) -> Result<&[u8], String> {
        self.holds(address, bytes)?;
        // SAFETY: within an allocation that lives as long as `self` is borrowed; all bytes were written when fresh.
        // Writers hold the same lock as readers: see `Played::state`.
        Ok(unsafe { std::slice::from_raw_parts(address.0 as *const u8, bytes) })
    }

    /// Writes there, also from there.
    pub(super) fn write(&self, address: Address, from: *const u8, bytes: usize) -> Result<(), String> {
        self.holds(address, bytes)?;
        // SAFETY: the caller has checked or owns `from`; the rest is within an allocation. `copy` allows overlap.
        unsafe { std::ptr::copy(from, address.0 as *mut u8, bytes) };
        Ok(())
    }

    /// Whether a kernel wrote outside of what was allocated.
    pub(super) fn check(&self) -> Result<(), String> {
        for (&address, block) in &self.blocks {
            // SAFETY: the whole block, as allocated.
            let all = unsafe { std::slice::from_raw_parts(block.start, block.layout.size()) };
            let before = all[..ALIGN].iter().rposition(|&byte| byte != FRESH);
            let after = all[ALIGN + block.bytes..].iter().position(|&byte| byte != FRESH);
            if let Some(at) = before {
                return Err(format!("{} bytes before {address:#x} were written to", ALIGN - at));
            }
            if let Some(at) = after {
                return Err(format!("byte {at} behind the {} at {address:#x} was written to", block.bytes));
            }
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for address in self.blocks.keys().copied().collect::<Vec<_>>() {
            self.release(Address(address)).expect("it is in the list");
        }
    }
}
