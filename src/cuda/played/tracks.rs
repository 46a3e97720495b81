//! Streams of a played card: what each was asked for and has not done yet, and what makes it do it.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::Kernels;
use super::memory::Memory;
use super::product::Planned;
use crate::driver::Address;
use crate::driver::Argument;
use crate::driver::Launch;
use crate::driver::Stream;

/// One thing that was asked for.
#[derive(Clone)]
pub(super) enum Op {
    Upload { from: Arc<[u8]>, to: Address },
    Copy { from: Address, to: Address, bytes: usize },
    Launch(Arc<Owned>),
    Multiply(Arc<Planned>),
    Record(Arc<Point>),
    Wait(Arc<Point>),
    Replay(Stream, Arc<Tracks>),
    Fault(String),
}

/// A launch that outlives its call.
pub(super) struct Owned {
    kernel: String,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    arguments: Vec<Argument>,
}

impl From<&Launch<'_>> for Owned {
    fn from(launch: &Launch<'_>) -> Self {
        let Launch { kernel, grid, threads, shared, arguments } = launch.clone();
        Self { kernel: kernel.to_owned(), grid, threads, shared, arguments: arguments.to_vec() }
    }
}

/// A point in a stream.
pub(super) struct Point {
    pub(super) stream: Stream,
    /// How much the stream has done when it gets there.
    pub(super) place: usize,
    /// Of which recording it is, if of one.
    pub(super) capture: Option<u64>,
    time: Mutex<Duration>,
}

impl Point {
    pub(super) fn time(&self) -> Duration {
        *self.time.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Several streams, side by side.
#[derive(Clone, Default)]
pub(super) struct Tracks(HashMap<Stream, Track>);

#[derive(Clone, Default)]
struct Track {
    waiting: VecDeque<Op>,
    done: usize,
    clock: Duration,
}

impl Tracks {
    pub(super) fn push(&mut self, stream: Stream, op: Op) {
        self.0.entry(stream).or_default().waiting.push_back(op);
    }

    pub(super) fn record(&mut self, stream: Stream, capture: Option<u64>) -> Arc<Point> {
        let track = self.0.entry(stream).or_default();
        let place = track.done + track.waiting.len() + 1;
        let point = Arc::new(Point { stream, place, capture, time: Mutex::default() });
        track.waiting.push_back(Op::Record(point.clone()));
        point
    }

    /// A stream that others do not wait for at the end of `origin`, if there is one.
    pub(super) fn unjoined(&self, origin: Stream) -> Option<Stream> {
        let mut reached = HashMap::from([(origin, usize::MAX)]);
        let mut open = vec![(origin, usize::MAX)];
        while let Some((stream, until)) = open.pop() {
            for op in self.0.get(&stream).iter().flat_map(|track| track.waiting.iter().take(until)) {
                let Op::Wait(point) = op else { continue };
                let before = reached.entry(point.stream).or_default();
                if *before < point.place {
                    *before = point.place;
                    open.push((point.stream, point.place));
                }
            }
        }
        let joined = |(stream, track): &(&Stream, &Track)| {
            track.waiting.len() <= reached.get(stream).copied().unwrap_or(0)
        };
        self.0.iter().find(|entry| !joined(entry)).map(|(&stream, _)| stream)
    }

    pub(super) fn run_all(
        &mut self,
        stream: Stream,
        kernels: &dyn Kernels,
        memory: &Memory,
    ) -> Result<(), String> {
        self.run(stream, usize::MAX, kernels, memory)
    }

    /// Works off a stream until it has done so much, and of the others only what it waits for.
    pub(super) fn run(
        &mut self,
        stream: Stream,
        until: usize,
        kernels: &dyn Kernels,
        memory: &Memory,
    ) -> Result<(), String> {
        while let Some(op) = self.next(stream, until) {
            let took = match op {
                Op::Upload { from, to } => {
                    memory.write(to, from.as_ptr(), from.len())?;
                    of_bytes(from.len())
                }
                Op::Copy { from, to, bytes } => {
                    let from = memory.read(from, bytes)?.as_ptr();
                    memory.write(to, from, bytes)?;
                    of_bytes(bytes)
                }
                Op::Launch(owned) => {
                    let Owned { kernel, grid, threads, shared, arguments } = &*owned;
                    let (grid, threads, shared) = (*grid, *threads, *shared);
                    kernels.launch(&Launch { kernel, grid, threads, shared, arguments })?;
                    memory.check().map_err(|problem| format!("{kernel}: {problem}"))?;
                    Duration::from_micros(2)
                }
                Op::Multiply(product) => product.run(memory)?,
                Op::Record(point) => {
                    *point.time.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        self.clock(stream);
                    Duration::ZERO
                }
                Op::Wait(point) => {
                    self.run(point.stream, point.place, kernels, memory)?;
                    point.time().saturating_sub(self.clock(stream))
                }
                Op::Replay(origin, tracks) => {
                    let mut tracks = (*tracks).clone();
                    tracks.run_all(origin, kernels, memory)?;
                    tracks.clock(origin)
                }
                Op::Fault(problem) => return Err(problem),
            };
            self.0.entry(stream).or_default().clock += took;
        }
        Ok(())
    }

    fn next(&mut self, stream: Stream, until: usize) -> Option<Op> {
        let track = self.0.get_mut(&stream).filter(|track| track.done < until)?;
        let op = track.waiting.pop_front()?;
        track.done += 1;
        Some(op)
    }

    fn clock(&self, stream: Stream) -> Duration {
        self.0.get(&stream).map(|track| track.clock).unwrap_or_default()
    }
}

fn of_bytes(bytes: usize) -> Duration {
    Duration::from_nanos(500 + bytes as u64 / 1000)
}
