//! A GPU: its kernels, and all of the `unsafe` code that runs them.
//!
//! ```text
//! kernels/   CUDA C++ without any header, compiled for the card by NVRTC when they are first asked for
//! play/      a header that plays a block of threads on the CPU, so that the same text runs without a card
//! driver     what is asked of a card, whoever answers: memory, launches, products, time
//! played     a card that is played on the CPU, for tests (feature `play`)
//! ```

mod arena;
pub mod calls;
pub mod device;
pub mod driver;
pub mod matrix;
#[cfg(feature = "play")]
pub mod played;
mod queue;
mod rehearsal;

pub use queue::Moment;
mod modules {
    pub(crate) fn shared_bytes(_: &str) -> u32 {
        0
    }
}
