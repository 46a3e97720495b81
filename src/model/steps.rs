//! A forward in steps, between which the device serves others.
//!
//! ```text
//! layer 0            layer 1            layer 2
//! ▓▓▓▓ ▓▓▓▓ ▓▓▓▓ │ ▓▓▓▓ ▓▓▓▓ ▓▓▓▓ │ ▓▓▓▓ ▓▓▓▓ ▓▓▓▓      ▓: a block of rows; a gap: a pause
//! ```
//!
//! From one attention to the next a block of rows is on its own (see [`transformer`](crate::model::transformer)), so
//! between two of them a forward can stand still: nothing is computed otherwise than without pauses, in another
//! order of sums, or twice. At each pause the forward asks its caller whether to go on, and the caller may serve
//! somebody else before it answers, on this thread and with the same models, which have no state.
//!
//! # Why not by chunks of positions?
//!
//! A causal model could also take one chunk of the positions through all its layers, then the next, and keep the
//! keys and values of all layers from one to the other. That is memory that the forward of a whole batch never
//! needs (30 GB for 131,000 tokens of a model of Qwen3-0.6B's shape, where one layer's are 1 GB), it reads all
//! weights once for each chunk, and encoders, and models whose angles depend on the length, would still need another way. Layer
//! by layer, a long sample needs what it always did, whatever the family, pooling, window or shared prefix.
//!
//! # How long is a step?
//!
//! As much work as `max_tokens` tokens are in all layers, without attention; but at least one block for each thread.
//! The blocks are smaller the more attention weighs, down to 16 rows.

use std::ops::ControlFlow;
use std::time::Duration;
use std::time::Instant;

use crate::ops::Ahead;
use crate::ops::error::OpsError;
use crate::ops::error::Result;

/// Asked at every pause: whether to go on.
pub type Pause<'a> = dyn FnMut() -> ControlFlow<()> + Send + 'a;

/// Called when all of a forward is asked for, of a form that computes elsewhere: this machine would wait.
pub type Meanwhile<'a> = dyn FnMut() + Send + 'a;

/// How a forward is cut, and the time that its pauses took; or what goes on beside one that is not cut.
pub struct Steps<'a> {
    max_tokens: usize,
    pause: Option<&'a mut Pause<'a>>,
    paused: Duration,
    ahead: Option<Ahead>,
    meanwhile: Option<&'a mut Meanwhile<'a>>,
}

impl<'a> Steps<'a> {
    /// One step: no pause.
    pub fn whole() -> Self {
        Self { max_tokens: usize::MAX, pause: None, paused: Duration::ZERO, ahead: None, meanwhile: None }
    }

    /// One step, of a batch of which the form may have got something ahead.
    pub(super) fn beside(ahead: Option<Ahead>, meanwhile: &'a mut Meanwhile<'a>) -> Self {
        Self { ahead, meanwhile: Some(meanwhile), ..Self::whole() }
    }

    /// Steps of the work of so many tokens. `usize::MAX`: a step for each layer, which costs nothing,
    /// since all rows must have their keys before any can attend.
    pub fn new(max_tokens: usize, pause: &'a mut Pause<'a>) -> Self {
        Self { max_tokens, pause: Some(pause), ..Self::whole() }
    }

    /// The work of a step in tokens, if there is more than one step.
    pub fn max_tokens(&self) -> Option<usize> {
        self.pause.is_some().then_some(self.max_tokens)
    }

    /// Lets others run. Fails if the forward is not to go on.
    pub fn pause(&mut self) -> Result<()> {
        let Some(pause) = &mut self.pause else { return Ok(()) };
        let begun = Instant::now();
        let answer = pause();
        self.paused += begun.elapsed();
        match answer {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(OpsError::GivenUp),
        }
    }

    /// What the form got ahead, for whoever hands the batch to it.
    pub fn take_ahead(&mut self) -> Option<Ahead> {
        self.ahead.take()
    }

    /// All is asked for, and the results are waited for next.
    pub fn meanwhile(&mut self) {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile();
        }
    }

    /// What all pauses until now took.
    pub fn paused(&self) -> Duration {
        self.paused
    }
}
