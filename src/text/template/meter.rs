//! What a rendering may cost, and the errors that end one.
//!
//! A template comes from whoever made the model and may be broken or hostile, so each rendering has a budget:
//! steps (a step is the evaluation of one expression, or 64 bytes that were copied), bytes that its values
//! hold at one time, and a deadline. Values are counted where they are made and where they are dropped, by
//! thread, since a rendering begins and ends on one.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Steps: 32 MiB of messages, or a hundred thousand of them, take a tenth of it.
const STEPS: u64 = 20_000_000;

/// A backstop for a slow machine: the steps take less than 2 s in the tests (x86-64, 2 cores).
const TIME: Duration = Duration::from_secs(5);

/// What values may hold beside eight times what the conversation does.
const BYTES: usize = 128 << 20;

/// Why a rendering stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// The template called `raise_exception`.
    Refused(String),
    /// It did what it cannot do. The words are ours and the template's, never those of a message.
    Failed { reason: Cow<'static, str>, line: Option<u32> },
    /// It took more than a rendering may.
    Exhausted { reason: String, line: Option<u32> },
}

pub(super) type Result<T, E = Box<Fault>> = std::result::Result<T, E>;

/// A [`Fault::Failed`] whose line is not yet known.
pub(super) fn failed<T>(reason: impl Into<Cow<'static, str>>) -> Result<T> {
    Err(fault(reason))
}

pub(super) fn fault(reason: impl Into<Cow<'static, str>>) -> Box<Fault> {
    Box::new(Fault::Failed { reason: reason.into(), line: None })
}

/// A [`Fault::Exhausted`] whose line is not yet known.
fn exhausted<T>(reason: String) -> Result<T> {
    Err(Box::new(Fault::Exhausted { reason, line: None }))
}

impl Fault {
    /// Notes the line, unless an inner one is known.
    pub(super) fn at(mut self: Box<Self>, here: u32) -> Box<Self> {
        if let Self::Failed { line: line @ None, .. } | Self::Exhausted { line: line @ None, .. } = &mut *self
        {
            *line = Some(here);
        }
        self
    }
}

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST_LIVE: Cell<isize> = const { Cell::new(isize::MAX) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    static NEXT_LOOK: Cell<u64> = const { Cell::new(0) };
}

/// Starts the budget of a rendering on this thread; `input_bytes` is what the conversation holds.
pub(super) fn start(input_bytes: usize) {
    STEPS_LEFT.set(STEPS);
    MOST_LIVE.set(LIVE.get().saturating_add_unsigned(input_bytes.saturating_mul(8).saturating_add(BYTES)));
    DEADLINE.set(Some(Instant::now() + TIME));
    NEXT_LOOK.set(STEPS);
}

/// Takes steps from the budget.
pub(super) fn spend(steps: u64) -> Result<()> {
    let left = STEPS_LEFT.get().saturating_sub(steps);
    STEPS_LEFT.set(left);
    if left == 0 {
        return exhausted(format!("it takes more than {STEPS} steps"));
    }
    // looking at the clock and at the memory costs more than a step
    if left <= NEXT_LOOK.get() {
        NEXT_LOOK.set(left.saturating_sub(2000));
        if DEADLINE.get().is_some_and(|deadline| Instant::now() > deadline) {
            return exhausted(format!("it takes more than {} s", TIME.as_secs()));
        }
        return check_memory(0);
    }
    Ok(())
}

/// Asks for `bytes` before they are written.
pub(super) fn reserve(bytes: usize) -> Result<()> {
    if bytes > 4096 {
        check_memory(bytes)?;
    }
    spend(bytes as u64 / 64)
}

fn check_memory(more: usize) -> Result<()> {
    if LIVE.get().saturating_add_unsigned(more) > MOST_LIVE.get() {
        return exhausted(format!("it takes more than {} MiB beside 8 times its messages", BYTES >> 20));
    }
    Ok(())
}

/// What the values of this thread hold.
#[cfg(test)]
pub(super) fn live_bytes() -> isize {
    LIVE.get()
}

/// Bytes that a value holds: counted while it lives.
#[derive(Debug)]
pub(super) struct Held(usize);

impl Held {
    pub(super) fn new(bytes: usize) -> Self {
        LIVE.set(LIVE.get().wrapping_add_unsigned(bytes));
        Self(bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // a thread that ends drops its own count first; nothing is rendered there any more
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub_unsigned(self.0)));
    }
}
