//! Independent pieces of work on several threads, their results in order.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use rayon::ThreadPool;
use rayon::ThreadPoolBuilder;

use crate::model::ModelError;

/// Pools of one thread each: what candle would spread over a pool stays on the thread that asks.
#[derive(Debug)]
pub(super) struct Threads(Vec<ThreadPool>);

impl Threads {
    /// As many as rayon has where this is called.
    pub(super) fn new() -> Result<Self, ModelError> {
        let pool = |index: usize| {
            let name = move |_| format!("train-{index}");
            ThreadPoolBuilder::new().num_threads(1).thread_name(name).build()
        };
        let pools = (0..rayon::current_num_threads()).map(pool).collect::<Result<_, _>>();
        pools.map(Self).map_err(|error| ModelError::Unsupported(format!("cannot start threads: {error}")))
    }

    /// How many pieces of work are done at a time.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Calls `run` with each index below `count`, and `take` with the results in the order of the indices, as soon as
    /// that can be. Stops at the first error in that order.
    pub(super) fn in_order<T: Send>(
        &self,
        count: usize,
        run: impl Fn(usize) -> Result<T, ModelError> + Sync,
        mut take: impl FnMut(T) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for pool in self.0.iter().take(count) {
                let (sender, next, run) = (sender.clone(), &next, &run);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || sender.send((index, pool.install(|| run(index)))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let (mut early, mut due) = (BTreeMap::new(), 0);
            for (index, result) in receiver {
                early.insert(index, result);
                while let Some(result) = early.remove(&due) {
                    take(result?)?;
                    due += 1;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_error_ends_it() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let threads = pool.install(Threads::new).unwrap();
        assert_eq!(threads.0.len(), 3);
        let run = |index: usize| {
            thread::sleep(Duration::from_millis((index * 7 % 5) as u64));
            match index {
                17 | 18 => Err(ModelError::Unsupported(index.to_string())),
                _ => Ok(index),
            }
        };
        let mut taken = Vec::new();
        let error = threads.in_order(40, run, |index| {
            taken.push(index);
            Ok(())
        });
        assert_eq!(taken, (0..17).collect::<Vec<_>>());
        assert_eq!(error.unwrap_err().to_string(), "17");
        threads.in_order(0, run, |_| panic!("nothing to take")).unwrap();
    }
}
