//! A card that is played on the CPU, for tests: its memory is host memory, its products are plain loops, its kernels
//! are whatever [`Kernels`] does with host addresses.
//!
//! It is as unhelpful as a card may be. Fresh memory is full of NaN. Nothing is done when it is asked for: a stream is
//! worked off when somebody waits for it, and no sooner, so that a forgotten [`Driver::wait`] reads NaN. Whatever
//! touches memory outside of an allocation is a fault, and after a fault everything fails. What it cannot show is
//! what happens between the threads of a kernel, and real time: its clock counts made-up nanoseconds.

mod memory;
mod product;
mod tracks;

use std::collections::HashMap;
use std::fmt;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

pub use self::product::Way;
pub use self::product::ways;

use self::memory::Memory;
use self::tracks::Op;
use self::tracks::Owned;
use self::tracks::Point;
use self::tracks::Tracks;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Card;
use crate::driver::CudaError;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::Graph;
use crate::driver::Launch;
use crate::driver::Product;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;

/// Runs kernels on host addresses.
pub trait Kernels: Send + Sync {
    /// Makes it ready, or says why it cannot be.
    fn prepare(&self, kernel: &str) -> Result<()>;
    /// Runs all its blocks. Whatever it says is a fault.
    fn launch(&self, launch: &Launch<'_>) -> std::result::Result<(), String>;
}

/// What is played.
#[derive(Clone)]
pub struct Play {
    /// What the card says of itself; its memory is all that there is to allocate.
    pub card: Card,
    /// How it makes products.
    pub ways: Vec<Way>,
    /// How it runs kernels.
    pub kernels: Arc<dyn Kernels>,
    /// See [`Driver::tried_rows`]: plain loops take their time.
    pub tried_rows: usize,
}

impl Play {
    /// A card with a GiB of memory, all [`ways`] and these kernels.
    pub fn new(kernels: Arc<dyn Kernels>) -> Self {
        Self {
            card: Card {
                index: 0,
                name: "a played card".to_owned(),
                compute_capability: (9, 0),
                memory: 1 << 30,
                multiprocessors: 4,
                driver: 13000,
                cublaslt: 130_100,
            },
            ways: ways(),
            kernels,
            tried_rows: 128,
        }
    }
}

/// What can be told to fail, and is counted. What is recorded for a graph counts once, when it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// [`Driver::allocate`]
    Allocate,
    /// [`Driver::upload`]
    Upload,
    /// [`Driver::download`]
    Download,
    /// [`Driver::copy`]
    Copy,
    /// [`Driver::launch`]
    Launch,
    /// [`Driver::multiply`]
    Multiply,
    /// [`Driver::synchronize`]
    Synchronize,
    /// [`Driver::wait`]
    Wait,
    /// [`Driver::replay`]
    Replay,
    /// [`Driver::prepare`]
    Prepare,
}

/// When a fault shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// In the call that is at fault.
    AtOnce,
    /// When somebody waits for its stream, as the fault of a kernel does. What returns no sooner than it is done,
    /// fails at once.
    Later,
}

/// A card that is played: see the module.
pub struct Played {
    card: Card,
    ways: Vec<Way>,
    kernels: Arc<dyn Kernels>,
    tried_rows: usize,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    live: Tracks,
    streams: usize,
    captures: Vec<Capture>,
    begun: u64,
    counts: HashMap<Work, usize>,
    faults: Vec<(Work, usize, Shows)>,
    problem: Option<String>,
}

/// What is being recorded.
struct Capture {
    id: u64,
    origin: Stream,
    tracks: Tracks,
    joined: Vec<Stream>,
}

struct Recorded {
    origin: Stream,
    tracks: Tracks,
}

impl Debug for Played {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Played").field("card", &self.card).finish_non_exhaustive()
    }
}

impl Played {
    /// One.
    pub fn new(play: Play) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                memory: Memory::new(play.card.memory),
                live: Tracks::default(),
                streams: 1,
                captures: Vec::new(),
                begun: 0,
                counts: HashMap::new(),
                faults: Vec::new(),
                problem: None,
            }),
            card: play.card,
            ways: play.ways,
            kernels: play.kernels,
            tried_rows: play.tried_rows,
        })
    }

    /// From now on, the `number`th of this work (from 0, counted from now) is a fault.
    pub fn fail(&self, work: Work, number: usize, shows: Shows) {
        let mut state = self.state();
        let from = state.counts.get(&work).copied().unwrap_or(0);
        state.faults.push((work, from + number, shows));
    }

    /// How often that was asked for.
    pub fn count(&self, work: Work) -> usize {
        self.state().counts.get(&work).copied().unwrap_or(0)
    }

    /// Bytes that are allocated.
    pub fn used(&self) -> u64 {
        self.state().memory.used()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn fault(&self, problem: &str) -> CudaError {
        CudaError::Fault { card: self.card.name.clone(), problem: problem.to_owned() }
    }

    /// Does something with a card that is well, and keeps what went wrong.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> std::result::Result<T, String>) -> Result<T> {
        let mut state = self.state();
        if let Some(problem) = &state.problem {
            return Err(self.fault(problem));
        }
        act(&mut state).map_err(|problem| {
            let error = self.fault(&problem);
            state.problem = Some(problem);
            error
        })
    }

    /// Adds work to a stream.
    fn ask(&self, work: Work, stream: Stream, op: Op) -> Result<()> {
        self.with(|state| {
            match state.count(work) {
                Some(Shows::AtOnce) => return Err(planned(work)),
                Some(Shows::Later) => state.track(stream)?.push(stream, Op::Fault(planned(work))),
                None => {}
            }
            state.track(stream)?.push(stream, op);
            Ok(())
        })
    }

    fn run(&self, state: &mut State, stream: Stream) -> std::result::Result<(), String> {
        if state.capture_of(stream).is_some() {
            return Err(format!("{stream:?} is being recorded: it cannot be waited for"));
        }
        state.live.run_all(stream, &*self.kernels, &state.memory)?;
        state.memory.check()
    }
}

fn planned(work: Work) -> String {
    format!("an illegal memory access was encountered (this {work:?} was told to fail)")
}

impl State {
    /// Counts it, and says whether it is to fail.
    fn count(&mut self, work: Work) -> Option<Shows> {
        let number = self.counts.entry(work).or_default();
        let fault = self.faults.iter().find(|(of, at, _)| (*of, *at) == (work, *number));
        *number += 1;
        fault.map(|&(_, _, shows)| shows)
    }

    /// The same for work that is done when its call returns.
    fn count_now(&mut self, work: Work) -> std::result::Result<(), String> {
        match self.count(work) {
            Some(_) => Err(planned(work)),
            None => Ok(()),
        }
    }

    fn capture_of(&mut self, stream: Stream) -> Option<&mut Capture> {
        self.captures.iter_mut().find(|capture| capture.joined.contains(&stream))
    }

    fn track(&mut self, stream: Stream) -> std::result::Result<&mut Tracks, String> {
        if stream.0 >= self.streams {
            return Err(format!("{stream:?} is none of its streams"));
        }
        let at = self.captures.iter().position(|capture| capture.joined.contains(&stream));
        Ok(match at {
            Some(at) => &mut self.captures[at].tracks,
            None => &mut self.live,
        })
    }
}

impl Driver for Played {
    fn card(&self) -> &Card {
        &self.card
    }

    fn free(&self) -> Result<u64> {
        self.with(|state| Ok(state.memory.free()))
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<Address> {
        let made = self.with(|state| {
            state.count_now(Work::Allocate)?;
            if let Some(capture) = state.captures.first() {
                return Err(format!("memory is allocated while {:?} is being recorded", capture.origin));
            }
            Ok(state.memory.allocate(bytes).ok_or_else(|| state.memory.free()))
        })?;
        made.map_err(|free| CudaError::OutOfMemory {
            what: what.to_owned(),
            asked: bytes as u64,
            free,
            card: self.card.name.clone(),
        })
    }

    fn release(&self, address: Address) {
        // As on a card: what is under way is done first. A problem shows in the next call.
        let _ = self.with(|state| {
            for stream in 0..state.streams {
                if state.capture_of(Stream(stream)).is_none() {
                    self.run(state, Stream(stream))?;
                }
            }
            state.memory.release(address)
        });
    }

    fn stream(&self) -> Result<Stream> {
        self.with(|state| {
            state.streams += 1;
            Ok(Stream(state.streams - 1))
        })
    }

    fn upload(&self, stream: Stream, from: &[u8], to: Address) -> Result<()> {
        self.with(|state| match state.capture_of(stream) {
            Some(_) => {
                Err("an upload cannot be recorded: its bytes are gone when it is done again".to_owned())
            }
            None => Ok(()),
        })?;
        self.ask(Work::Upload, stream, Op::Upload { from: from.into(), to })
    }

    fn download(&self, stream: Stream, from: Address, to: &mut [u8]) -> Result<()> {
        self.with(|state| {
            state.count_now(Work::Download)?;
            self.run(state, stream)?;
            to.copy_from_slice(state.memory.read(from, to.len())?);
            Ok(())
        })
    }

    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.ask(Work::Copy, stream, Op::Copy { from, to, bytes })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.with(|state| {
            state.count_now(Work::Synchronize)?;
            self.run(state, stream)
        })
    }

    fn prepare(&self, kernel: &str) -> Result<()> {
        self.with(|state| state.count_now(Work::Prepare))?;
        self.kernels.prepare(kernel)
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        self.kernels.prepare(launch.kernel)?;
        let [x, y, z] = launch.grid;
        let fits = x > 0 && x < 1 << 31 && [y, z].iter().all(|&n| n > 0 && n <= 65_535);
        if !fits || !(1..=1024).contains(&launch.threads) || launch.shared > 227 << 10 {
            return self.with(|_| Err(format!("invalid argument: {launch:?}")));
        }
        self.ask(Work::Launch, stream, Op::Launch(Arc::new(Owned::from(launch))))
    }

    fn algorithms(&self, shape: &Shape, rows: usize, most: usize) -> Result<Vec<Algorithm>> {
        self.with(|_| {
            let ways = self.ways.iter().filter(|way| (way.is_offered)(shape, rows));
            Ok(ways.take(most).map(Way::algorithm).collect())
        })
    }

    fn tried_rows(&self) -> usize {
        self.tried_rows
    }

    fn accepts(&self, shape: &Shape, rows: usize, algorithm: &Algorithm) -> Result<bool> {
        let way = self.ways.iter().find(|way| way.algorithm() == *algorithm);
        self.with(|_| Ok(way.is_some_and(|way| (way.runs)(shape, rows))))
    }

    fn multiply(&self, stream: Stream, product: &Product<'_>) -> Result<()> {
        let found = self.ways.iter().find(|way| way.algorithm() == *product.algorithm);
        let Some(way) = found.filter(|way| (way.runs)(product.shape, product.rows)) else {
            // No fault: the library says so before anything is done.
            return Err(CudaError::Unsupported(format!(
                "{:?} does not make {} rows of {:?}",
                product.algorithm, product.rows, product.shape
            )));
        };
        self.ask(Work::Multiply, stream, Op::Multiply(Arc::new(product::Planned::new(way, product))))
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        self.with(|state| {
            let capture = state.capture_of(stream).map(|capture| capture.id);
            Ok(state.track(stream)?.record(stream, capture) as Event)
        })
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        self.with(|state| {
            state.count_now(Work::Wait)?;
            let point = point(event)?;
            let own = state.capture_of(stream).map(|capture| capture.id);
            if own != point.capture {
                // A stream that waits for one that is being recorded is recorded too.
                let other = state.captures.iter_mut().find(|capture| Some(capture.id) == point.capture);
                match other {
                    Some(capture) if own.is_none() => capture.joined.push(stream),
                    _ => {
                        return Err(format!("{stream:?} waits for a point of another recording, or of none"));
                    }
                }
            }
            state.track(stream)?.push(stream, Op::Wait(point));
            Ok(())
        })
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Duration> {
        self.with(|state| {
            let (from, to) = (point(from)?, point(to)?);
            for point in [&from, &to] {
                if point.capture.is_some() {
                    return Err("a point that was recorded for a graph has no time".to_owned());
                }
                state.live.run(point.stream, point.place, &*self.kernels, &state.memory)?;
            }
            Ok(to.time().saturating_sub(from.time()))
        })
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.with(|state| {
            if state.capture_of(stream).is_some() {
                return Err(format!("{stream:?} is being recorded already"));
            }
            state.begun += 1;
            let capture =
                Capture { id: state.begun, origin: stream, tracks: Tracks::default(), joined: vec![stream] };
            state.captures.push(capture);
            Ok(())
        })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.with(|state| {
            let at = state.captures.iter().position(|capture| capture.origin == stream);
            let at = at.ok_or_else(|| format!("{stream:?} does not record"))?;
            let Capture { origin, tracks, .. } = state.captures.swap_remove(at);
            match tracks.unjoined(origin) {
                Some(lost) => {
                    Err(format!("{lost:?} was recorded, but {origin:?} does not wait for it at the end"))
                }
                None => Ok(Arc::new(Recorded { origin, tracks }) as Graph),
            }
        })
    }

    fn replay(&self, stream: Stream, graph: &Graph) -> Result<()> {
        let Ok(recorded) = graph.clone().downcast::<Recorded>() else {
            return self.with(|_| Err("a graph of another card".to_owned()));
        };
        self.ask(Work::Replay, stream, Op::Replay(recorded.origin, Arc::new(recorded.tracks.clone())))
    }
}

fn point(event: &Event) -> std::result::Result<Arc<Point>, String> {
    event.clone().downcast::<Point>().map_err(|_| "an event of another card".to_owned())
}

#[cfg(test)]
mod tests;
