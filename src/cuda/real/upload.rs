//! From the host to a card and back, through memory that the card can read by itself ("pinned").
//!
//! What is small goes through a ring: its bytes are copied there, and the caller goes on while the card fetches them.
//! What is large is cut, and several threads each copy parts into two buffers of their own and send them on a stream of
//! their own: one thread reads 5 GB/s from the page cache, eight bring 24 (H100), and a mapping that is copied directly
//! 6.8. Pinned memory takes half a second for a GiB to make: so there is little of it.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use cudarc::driver::result as cuda;

use super::CudaEvent;
use super::CudaStream;
use super::Handle;
use super::context::Context;
use super::locked;
use crate::driver::Address;
use crate::driver::Result;

/// From here on an upload is worth several threads.
pub(super) const LARGE: usize = 4 << 20;
/// Of the ring.
const SLOTS: usize = 16;
const SLOT: usize = 1 << 20;
/// Threads that upload together.
const LANES: usize = 8;
/// Of each of a lane's two buffers: a part of a sixth of a millisecond. (Seen was 24 GB/s with 32 MiB, which take a
/// quarter of a second to make.)
const BUFFER: usize = 8 << 20;
/// The least that a thread is worth.
const PART: usize = 1 << 20;

/// Memory that the card can read while it is filled, or not: then it is waited for.
struct Buffer {
    at: Handle<u8>,
    bytes: usize,
    /// When the card has read it.
    read: CudaEvent,
}

impl Buffer {
    fn new(context: &Context, bytes: usize) -> Result<Self> {
        // SAFETY: nobody reads it before it is filled.
        let made = unsafe { cuda::malloc_host(bytes, 0) };
        let at = context.check("pin memory of the host", made)?;
        Ok(Self { at: Handle(at.cast()), bytes, read: context.event(false)? })
    }

    /// Sends bytes, as soon as the buffer is free.
    fn send(&self, context: &Context, stream: CudaStream, from: &[u8], to: Address) -> Result<()> {
        assert!(from.len() <= self.bytes);
        // SAFETY: what the card still reads is waited for (an event that was never recorded is done); the slice is of
        // the buffer, and stays until the card has read it; the caller answers for the address.
        unsafe {
            context.check("wait for an upload", cuda::event::synchronize(self.read.0))?;
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.at.0, from.len());
            let filled = std::slice::from_raw_parts(self.at.0, from.len());
            context.check("upload", cuda::memcpy_htod_async(to.0, filled, stream.0))?;
            context.check("record an event", cuda::event::record(self.read.0, stream.0))
        }
    }

    /// What it is made of is gone afterwards.
    fn free(&self) {
        // SAFETY: ours, and nobody uses it any more. A fault shows in the next call.
        unsafe {
            let _ = cuda::event::synchronize(self.read.0);
            let _ = cuda::event::destroy(self.read.0);
            let _ = cuda::free_host(self.at.0.cast());
        }
    }
}

/// Buffers, one after the other; of one caller.
pub(super) struct Ring {
    slots: Vec<Buffer>,
    next: usize,
    /// For downloads.
    back: Buffer,
}

impl Ring {
    pub(super) fn new(context: &Context) -> Result<Self> {
        let slots = (0..SLOTS).map(|_| Buffer::new(context, SLOT)).collect::<Result<_>>()?;
        Ok(Self { slots, next: 0, back: Buffer::new(context, SLOT)? })
    }

    pub(super) fn upload(
        &mut self,
        context: &Context,
        stream: CudaStream,
        from: &[u8],
        to: Address,
    ) -> Result<()> {
        for (index, part) in from.chunks(SLOT).enumerate() {
            self.slots[self.next].send(context, stream, part, to.after(index * SLOT))?;
            self.next = (self.next + 1) % SLOTS;
        }
        Ok(())
    }

    /// Copies and waits.
    pub(super) fn download(
        &self,
        context: &Context,
        stream: CudaStream,
        from: Address,
        to: &mut [u8],
    ) -> Result<()> {
        for (index, part) in to.chunks_mut(SLOT).enumerate() {
            // SAFETY: the part fits the buffer, which is read after the card has written it; the caller answers for
            // the address.
            unsafe {
                let back = std::slice::from_raw_parts_mut(self.back.at.0, part.len());
                let from = from.after(index * SLOT);
                context.check("download", cuda::memcpy_dtoh_async(back, from.0, stream.0))?;
                context.check("wait for a stream", cuda::stream::synchronize(stream.0))?;
                part.copy_from_slice(back);
            }
        }
        Ok(())
    }

    pub(super) fn free(&mut self, context: &Context) {
        if context.bind().is_ok() {
            self.slots.iter().chain([&self.back]).for_each(Buffer::free);
            self.slots.clear();
        }
    }
}

/// What one of several threads uploads with.
pub(super) struct Lane {
    stream: CudaStream,
    buffers: [Buffer; 2],
    /// When all that it sent has arrived.
    arrived: CudaEvent,
}

impl Lane {
    fn new(context: &Context, bytes: usize) -> Result<Self> {
        let stream = cuda::stream::create(cuda::stream::StreamKind::NonBlocking);
        Ok(Self {
            stream: Handle(context.check("make a stream", stream)?),
            buffers: [Buffer::new(context, bytes)?, Buffer::new(context, bytes)?],
            arrived: context.event(false)?,
        })
    }
}

impl Context {
    /// Uploads by several threads, in the order of `stream`. Returns when all bytes were read.
    pub(super) fn upload_large(&self, stream: CudaStream, from: &[u8], to: Address) -> Result<()> {
        let mut lanes = locked(&self.lanes);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(LANES);
        while lanes.len() < threads {
            lanes.push(Lane::new(self, BUFFER)?);
        }
        let begins = self.event(false)?;
        // SAFETY: both are ours; destroyed once it is waited for, which the driver allows.
        unsafe {
            self.check("record an event", cuda::event::record(begins.0, stream.0))?;
            for lane in &*lanes {
                self.wait(lane.stream, begins)?;
            }
            self.check("destroy an event", cuda::event::destroy(begins.0))?;
        }
        let part = from.len().div_ceil(lanes.len()).clamp(PART, BUFFER);
        let parts: Vec<&[u8]> = from.chunks(part).collect();
        let next = AtomicUsize::new(0);
        let send = |lane: &Lane| {
            self.bind()?;
            for turn in 0.. {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(bytes) = parts.get(index) else { break };
                lane.buffers[turn % 2].send(self, lane.stream, bytes, to.after(index * part))?;
            }
            // SAFETY: both are ours.
            self.check("record an event", unsafe { cuda::event::record(lane.arrived.0, lane.stream.0) })
        };
        std::thread::scope(|scope| {
            let send = &send;
            let threads: Vec<_> = lanes.iter().map(|lane| scope.spawn(move || send(lane))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it answers with an error"))
        })?;
        lanes.iter().try_for_each(|lane| self.wait(stream, lane.arrived))
    }
}
