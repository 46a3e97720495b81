//! A request that has ended, and what is known of it then.

use std::time::Duration;

use tonic::Code;

use crate::metrics::Method;
use crate::service::origin::Origin;

/// A request that has ended, whatever became of it.
pub(super) struct Ended<'a> {
    pub(super) origin: &'a Origin,
    pub(super) method: Method,
    /// Empty where none was chosen.
    pub(super) variant: &'a str,
    pub(super) fingerprint: &'a str,
    /// The name of its caller's; empty where callers have none.
    pub(super) token: &'a str,
    pub(super) code: Code,
    pub(super) facts: &'a Facts,
    /// From its first byte.
    pub(super) elapsed: Duration,
}

/// What is known of a request by and by.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) samples: usize,
    /// Of those that could be tokenized.
    pub(super) tokens: usize,
    /// Of the largest batch that held one of them.
    pub(super) batch_samples: usize,
    pub(super) read: Option<Duration>,
    pub(super) tokenize: Option<Duration>,
    pub(super) queue: Option<Duration>,
    pub(super) compute: Option<Duration>,
}

impl Ended<'_> {
    /// Where the time went, one after the other; none where it did not get that far.
    pub(super) fn parts(&self) -> [(&'static str, Option<Duration>); 4] {
        let Facts { read, tokenize, queue, compute, .. } = *self.facts;
        [("read", read), ("tokenize", tokenize), ("queue", queue), ("compute", compute)]
    }
}
