//! Lanes: what is asked for in one is done in order, and different lanes are done side by side, where the card has room.
//!
//! ```text
//! lane 0  batch ─▶ what all have in common ┬──────────────────────────────────┬─▶ results
//! lane 1                                   ├─▶ a member ───────────────────────┤
//! lane 2                                   └─▶ another ┬──────────────────────┤
//! lane 3                                               ├─▶ what is its own ────┤
//! lane 1, once more                                    └─▶ what is another's ──┘
//! ```
//!
//! Each has a stream, and an arena of its own: memory that is given back is taken again by the same lane only, whose
//! stream has read it by then. What several lanes read was made by one that others branch off: that one takes nothing
//! more until all are joined.

use std::sync::Arc;

use crate::arena::Arena;
use crate::driver::CudaError;
use crate::driver::Driver;
use crate::driver::Result;
use crate::driver::Stream;
use crate::matrix::Memory;
use crate::queue::STREAM;

/// Branches side by side: of so many was seen what it gains (ENS of 4, 0.6B, on an H200: 1 x 128 takes 2.5 times one,
/// 8 x 512 3.8 times). More take turns.
const MAX_BRANCHES: usize = 4;

/// Bytes of an arena beyond what is reserved.
const MIN_ARENA: usize = 64 << 20;

/// Of one device.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// The first is where forwards begin and end.
    lanes: Vec<Lane>,
    /// What is asked for in now.
    current: usize,
    /// Branches that began since the last join.
    branches: usize,
    /// Nobody's memory: to see how much would be taken.
    is_endless: bool,
}

#[derive(Debug)]
struct Lane {
    stream: Stream,
    /// What was reserved, if anything was.
    reserved: Option<Arc<Arena>>,
    /// Of the forward that runs.
    more: Vec<Arc<Arena>>,
    /// When a branch began here last, counted from the last join; none since then.
    begun: Option<usize>,
    /// Others read what it made.
    is_branched: bool,
}

impl Lane {
    fn new(stream: Stream, is_endless: bool) -> Self {
        let reserved = is_endless.then(|| Arc::new(Arena::endless()));
        Self { stream, reserved, more: Vec::new(), begun: None, is_branched: false }
    }
}

impl Lanes {
    pub(crate) fn new(is_endless: bool) -> Self {
        Self { lanes: vec![Lane::new(STREAM, is_endless)], current: 0, branches: 0, is_endless }
    }

    /// Of the current lane.
    pub(crate) fn stream(&self) -> Stream {
        self.lanes[self.current].stream
    }

    /// Memory for what is asked for in the current lane.
    pub(crate) fn take(&mut self, driver: &Arc<dyn Driver>, bytes: usize) -> Result<Arc<Memory>> {
        let lane = &mut self.lanes[self.current];
        debug_assert!(!lane.is_branched, "others read what it made: it waits for them");
        for arena in lane.reserved.iter().chain(&lane.more) {
            if let Some(at) = arena.take(bytes) {
                return Ok(Arc::new(Memory::of_arena(at, bytes, arena.clone())));
            }
        }
        // a batch that is larger than what was reserved for: a text beyond `max_batch_tokens`, say
        let arena = Arc::new(Arena::of(driver, bytes.max(MIN_ARENA), "the activations of a batch")?);
        lane.more.push(arena.clone());
        let at = arena.take(bytes).expect("an arena of at least this size");
        Ok(Arc::new(Memory::of_arena(at, bytes, arena)))
    }

    /// Goes on in another lane, whose stream is to wait for that of the current one: these two, and where to
    /// [come back](Self::come_back) to.
    pub(crate) fn branch(&mut self, driver: &dyn Driver) -> Result<(Stream, Stream, usize)> {
        let from = self.current;
        self.lanes[from].is_branched = true;
        let free = |lane: &usize| !self.lanes[*lane].is_branched;
        let longest_ago = (1..self.lanes.len()).filter(free).min_by_key(|&lane| self.lanes[lane].begun);
        let to = match longest_ago {
            Some(lane) if self.lanes[lane].begun.is_none() || self.lanes.len() > MAX_BRANCHES => lane,
            _ => self.add(driver)?,
        };
        self.lanes[to].begun = Some(self.branches);
        self.branches += 1;
        self.current = to;
        Ok((self.lanes[from].stream, self.lanes[to].stream, from))
    }

    pub(crate) fn come_back(&mut self, to: usize) {
        self.current = to;
    }

    /// From now on everything is asked for in the first lane, whose stream is to wait for these.
    pub(crate) fn join(&mut self) -> Vec<Stream> {
        let began = self.lanes.iter().filter(|lane| lane.begun.is_some()).map(|lane| lane.stream).collect();
        for lane in &mut self.lanes {
            (lane.begun, lane.is_branched) = (None, false);
        }
        (self.current, self.branches) = (0, 0);
        began
    }

    fn add(&mut self, driver: &dyn Driver) -> Result<usize> {
        self.lanes.push(Lane::new(driver.stream()?, self.is_endless));
        Ok(self.lanes.len() - 1)
    }

    /// How much was taken of each at most.
    pub(crate) fn peaks(&self) -> Vec<usize> {
        self.lanes.iter().map(|lane| lane.reserved.as_ref().map_or(0, |arena| arena.peak())).collect()
    }

    /// Bytes that are reserved.
    pub(crate) fn reserved(&self) -> usize {
        self.sizes().iter().sum()
    }

    /// Of these, those of the first lane.
    pub(crate) fn reserved_first(&self) -> usize {
        self.sizes()[0]
    }

    fn sizes(&self) -> Vec<usize> {
        self.lanes.iter().map(|lane| lane.reserved.as_ref().map_or(0, |arena| arena.capacity())).collect()
    }

    /// Makes sure of so many bytes for each lane. If there are not so many, all is as it was.
    pub(crate) fn reserve(&mut self, driver: &Arc<dyn Driver>, bytes: &[usize]) -> Result<()> {
        while self.lanes.len() < bytes.len() {
            self.add(&**driver)?;
        }
        let before = self.sizes();
        let most = |(&before, lane): (&usize, usize)| before.max(bytes.get(lane).copied().unwrap_or(0));
        let wanted: Vec<usize> = before.iter().zip(0..).map(most).collect();
        if wanted == before {
            return Ok(());
        }
        self.allocate(driver, &wanted).or_else(|error| {
            self.allocate(driver, &before)?; // what was given back just now
            Err(error)
        })
    }

    /// All at once, so that what is refused is told as a whole.
    fn allocate(&mut self, driver: &Arc<dyn Driver>, bytes: &[usize]) -> Result<()> {
        self.lanes.iter_mut().for_each(|lane| lane.reserved = None);
        let total: usize = bytes.iter().sum();
        let free = driver.free()?;
        for (lane, &bytes) in self.lanes.iter_mut().zip(bytes).filter(|(_, bytes)| **bytes > 0) {
            let arena = Arena::of(driver, bytes, "memory for activations").map_err(|error| match error {
                CudaError::OutOfMemory { what, card, .. } => {
                    CudaError::OutOfMemory { what, asked: total as u64, free, card }
                }
                error => error,
            });
            lane.reserved = Some(Arc::new(arena?));
        }
        Ok(())
    }

    /// Gives back what a forward took beyond what is reserved.
    pub(crate) fn shrink(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.more.clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Card;
    use crate::rehearsal::Nothing;

    fn nothing() -> Arc<dyn Driver> {
        Arc::new(Nothing(Card {
            index: 0,
            name: "a card that does nothing".to_owned(),
            compute_capability: (9, 0),
            memory: 1 << 30,
            multiprocessors: 132,
            driver: 13000,
            cublaslt: 130_100,
        }))
    }

    /// The lanes that branches get, each of which comes back before the next begins.
    fn of_branches(lanes: &mut Lanes, count: usize) -> Vec<usize> {
        let driver = nothing();
        let branch = |_| {
            let (_, _, back) = lanes.branch(&*driver).unwrap();
            let lane = lanes.current;
            lanes.come_back(back);
            lane
        };
        (0..count).map(branch).collect()
    }

    #[test]
    fn branches_take_turns_and_what_others_read_is_left_alone() {
        let (mut lanes, driver) = (Lanes::new(true), nothing());
        assert_eq!(of_branches(&mut lanes, 6), [1, 2, 3, 4, 1, 2]);
        assert_eq!(lanes.join().len(), 4);
        assert_eq!(of_branches(&mut lanes, 1), [1], "the same again, for graphs");
        // the second branch has branches of its own: nobody else gets its lane
        lanes.branch(&*driver).unwrap();
        assert_eq!(lanes.current, 2);
        assert_eq!(of_branches(&mut lanes, 5), [3, 4, 1, 3, 4]);
        lanes.come_back(0);
        assert_eq!(of_branches(&mut lanes, 2), [1, 3]);
        assert_eq!((lanes.join().len(), lanes.join().len(), lanes.current), (4, 0, 0));
        // as deep as can be: then there are more lanes
        for lane in 1..=6 {
            lanes.branch(&*driver).unwrap();
            assert_eq!(lanes.current, lane);
        }
    }

    #[test]
    fn lanes_share_no_memory() {
        let (mut lanes, driver) = (Lanes::new(false), nothing());
        lanes.reserve(&driver, &[1024, 512, 512]).unwrap();
        let size = |lanes: &Lanes| (lanes.sizes(), lanes.reserved());
        assert_eq!(size(&lanes), (vec![1024, 512, 512], 2048));
        lanes.reserve(&driver, &[256, 768]).unwrap();
        assert_eq!(size(&lanes), (vec![1024, 768, 512], 2304), "as much as anybody needs");
        let whole = lanes.take(&driver, 1024).unwrap();
        let (_, _, back) = lanes.branch(&*driver).unwrap();
        drop(whole); // which others may still read
        let own = lanes.take(&driver, 768).unwrap();
        assert!(lanes.lanes[1].more.is_empty() && lanes.lanes[0].more.is_empty());
        drop(own);
        lanes.come_back(back);
        lanes.join();
        lanes.take(&driver, 1024).unwrap();
        assert!(lanes.lanes[0].more.is_empty());
        lanes.take(&driver, 1025).unwrap();
        assert_eq!(lanes.lanes[0].more.len(), 1);
        lanes.shrink();
        assert!(lanes.lanes[0].more.is_empty());
    }
}
