//! What a forward asks of a card, as a list, until somebody waits for its results.
//!
//! A small batch is hundreds of launches that each take the card less time than the host to ask for. So they are listed
//! first; a list that was done before to the last argument, addresses too, is a [graph](crate::driver::Graph) and one
//! launch. [Addresses repeat](crate::arena), and batches are padded to few sizes, so after a few batches of a size every
//! one is. A large batch is asked for while its list is made: the card has enough to do.
//!
//! Each entry has its stream. One stream waits for what another was [asked for](Command::After) until then; recorded, that
//! is what makes branches of a graph.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Argument;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::Graph;
use crate::driver::Launch;
use crate::driver::Product;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;

/// Where all of a device's forwards are asked for, but for their [branches](crate::lanes).
pub(crate) const STREAM: Stream = Stream(0);
/// Graphs that are kept: of the sizes that batches have.
const MAX_GRAPHS: usize = 64;
/// A list that is longer than this is asked for while it is made, if nobody wants it as a graph.
const MAX_LISTED: usize = 32;

/// One thing to ask for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    Launch {
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: Vec<Argument>,
    },
    Multiply {
        shape: Arc<Shape>,
        rows: usize,
        x: Address,
        weight: Address,
        bias: Address,
        y: Address,
        algorithm: Arc<Algorithm>,
    },
    /// A moment of the forward's [times](Times).
    Mark,
    /// What comes is done after what another stream was asked for until now.
    After(Stream),
}

impl Hash for Command {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Launch { kernel, grid, arguments, .. } => {
                (kernel, grid).hash(state);
                for argument in arguments {
                    match *argument {
                        Argument::Address(Address(at)) => at.hash(state),
                        Argument::U32(number) => number.hash(state),
                        Argument::F32(number) => number.to_bits().hash(state),
                    }
                }
            }
            Self::Multiply { rows, x, weight, y, .. } => (rows, x, weight, y).hash(state),
            Self::Mark => {}
            Self::After(stream) => stream.hash(state),
        }
    }
}

/// When the moments of a forward were, from its first one on, once it is done.
#[derive(Debug, Default)]
pub(crate) struct Times(OnceLock<Vec<Duration>>);

/// A moment of a forward.
#[derive(Clone, Debug)]
pub struct Moment {
    times: Arc<Times>,
    index: usize,
}

impl Moment {
    /// From one to another of the same forward; none if that was not done.
    pub fn until(&self, later: &Self) -> Duration {
        let at = |moment: &Self| moment.times.0.get().and_then(|times| times.get(moment.index)).copied();
        match (at(self), at(later)) {
            (Some(from), Some(to)) if Arc::ptr_eq(&self.times, &later.times) => to.saturating_sub(from),
            _ => Duration::ZERO,
        }
    }
}

/// What was listed, and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    commands: Vec<(Stream, Command)>,
    /// Whether the list may become a graph: nothing of it was asked for yet, and the batch is small.
    is_small: bool,
    /// Of marks that were asked for.
    events: Vec<Event>,
    marks: usize,
    times: Arc<Times>,
    /// What the card does as a graph, and its marks' share of the whole.
    replayed: Option<(Event, Event, Arc<Vec<f64>>)>,
    /// Whose shares are to be taken when the forward is done.
    to_measure: Option<u64>,
    lists: HashMap<u64, Known>,
    turn: u64,
}

/// A list that was done before.
#[derive(Debug)]
struct Known {
    commands: Vec<(Stream, Command)>,
    shares: Option<Arc<Vec<f64>>>,
    graph: Option<Graph>,
    last_used: u64,
}

impl Queue {
    /// Begins a forward; what is left of one that failed is forgotten.
    pub(crate) fn begin(&mut self) {
        self.commands.clear();
        self.events.clear();
        (self.marks, self.replayed, self.to_measure) = (0, None, None);
        self.times = Arc::default();
        self.is_small = false;
    }

    /// Says that a batch begins, and whether it is small.
    pub(crate) fn batch(&mut self, driver: &dyn Driver, is_small: bool) -> Result<()> {
        // what was asked for of another batch comes before what is uploaded for this one
        let is_first =
            self.commands.iter().all(|(_, command)| *command == Command::Mark) && self.events.is_empty();
        if !is_first {
            self.ask(driver)?;
        }
        self.is_small = is_small && is_first;
        Ok(())
    }

    pub(crate) fn push(&mut self, driver: &dyn Driver, stream: Stream, command: Command) -> Result<()> {
        self.commands.push((stream, command));
        if !self.is_small && self.commands.len() > MAX_LISTED { self.ask(driver) } else { Ok(()) }
    }

    pub(crate) fn mark(&mut self, driver: &dyn Driver, stream: Stream) -> Result<Moment> {
        let moment = Moment { times: self.times.clone(), index: self.marks };
        self.marks += 1;
        self.push(driver, stream, Command::Mark)?;
        Ok(moment)
    }

    /// Asks for all that is listed.
    ///
    /// `recording` is held while a graph is made.
    pub(crate) fn flush(&mut self, driver: &dyn Driver, recording: &RwLock<()>) -> Result<()> {
        if !self.is_small {
            return self.ask(driver);
        }
        self.is_small = false;
        self.turn += 1;
        let mut hasher = DefaultHasher::new();
        self.commands.hash(&mut hasher);
        let key = hasher.finish();
        match self.lists.get_mut(&key) {
            Some(known) if known.commands == self.commands => {
                known.last_used = self.turn;
                let Some(shares) = known.shares.clone() else { return self.ask(driver) };
                let graph = match &known.graph {
                    Some(graph) => graph.clone(),
                    None => {
                        let _alone = recording.write().unwrap_or_else(PoisonError::into_inner);
                        let graph = capture(driver, &known.commands)?;
                        known.graph = Some(graph.clone());
                        graph
                    }
                };
                let from = driver.record(STREAM)?;
                driver.replay(STREAM, &graph)?;
                self.replayed = Some((from, driver.record(STREAM)?, shares));
                self.commands.clear();
                Ok(())
            }
            _ => {
                if self.lists.len() >= MAX_GRAPHS
                    && let Some(oldest) =
                        self.lists.iter().min_by_key(|(_, known)| known.last_used).map(|(&key, _)| key)
                {
                    self.lists.remove(&oldest);
                }
                let commands = self.commands.clone();
                let known = Known { commands, shares: None, graph: None, last_used: self.turn };
                self.lists.insert(key, known);
                self.to_measure = Some(key);
                self.ask(driver)
            }
        }
    }

    /// The same, one after the other, whatever the batch.
    pub(crate) fn ask(&mut self, driver: &dyn Driver) -> Result<()> {
        self.is_small = false;
        for (stream, command) in std::mem::take(&mut self.commands) {
            match command {
                Command::Mark => self.events.push(driver.record(stream)?),
                command => issue(driver, stream, &command)?,
            }
        }
        Ok(())
    }

    /// Once the card is done with all that was asked for: when its moments were.
    pub(crate) fn done(&mut self, driver: &dyn Driver) -> Result<()> {
        let times: Vec<Duration> = match self.replayed.take() {
            Some((from, to, shares)) => {
                let whole = driver.elapsed(&from, &to)?;
                shares.iter().map(|&share| whole.mul_f64(share)).collect()
            }
            None => match self.events.first().cloned() {
                Some(first) => {
                    let since = self.events.iter().map(|event| driver.elapsed(&first, event));
                    since.collect::<Result<_>>()?
                }
                None => Vec::new(),
            },
        };
        if let Some(known) = self.to_measure.take().and_then(|key| self.lists.get_mut(&key)) {
            let whole = times.last().map_or(0.0, Duration::as_secs_f64).max(1e-9);
            let share = |at: &Duration| (at.as_secs_f64() / whole).min(1.0);
            known.shares = Some(Arc::new(times.iter().map(share).collect()));
        }
        let _ = self.times.0.set(times);
        Ok(())
    }

    /// How many lists are a graph.
    pub(crate) fn graphs(&self) -> usize {
        self.lists.values().filter(|known| known.graph.is_some()).count()
    }
}

fn capture(driver: &dyn Driver, commands: &[(Stream, Command)]) -> Result<Graph> {
    driver.begin_capture(STREAM)?;
    let issued = commands.iter().try_for_each(|(stream, command)| issue(driver, *stream, command));
    let graph = driver.end_capture(STREAM);
    issued.and(graph)
}

fn issue(driver: &dyn Driver, stream: Stream, command: &Command) -> Result<()> {
    match command {
        Command::Launch { kernel, grid, threads, shared, arguments } => {
            let (grid, threads, shared) = (*grid, *threads, *shared);
            driver.launch(stream, &Launch { kernel, grid, threads, shared, arguments })
        }
        Command::Multiply { shape, rows, x, weight, bias, y, algorithm } => {
            let (rows, x, weight, bias, y) = (*rows, *x, *weight, *bias, *y);
            driver.multiply(stream, &Product { shape, rows, x, weight, bias, y, algorithm })
        }
        Command::Mark => Ok(()),
        Command::After(other) => driver.wait(stream, &driver.record(*other)?),
    }
}
