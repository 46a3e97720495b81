//! A GPU: its kernels, and all of the `unsafe` code that runs them.
//!
//! ```text
//! kernels/   CUDA C++ without any header, compiled for the card by NVRTC when they are first asked for
//! modules    which text a kernel is compiled from
//! compile    from that text to what a card runs, kept on disk
//! play       the same text on the CPU, behind a header that plays a block of threads
//! driver     what is asked of a card, whoever answers: memory, launches, products, time
//! real       a card, by CUDA's driver, NVRTC and cublasLt
//! algorithms which ways to make a product give the same bits, and are fast
//! lanes      streams side by side, each with memory for activations
//! queue      what a forward asks for, as a list that may become a graph
//! played     a card that is played on the CPU, for tests (feature `play`)
//! ```

pub mod algorithms;
mod arena;
pub mod calls;
pub mod compile;
pub mod device;
pub mod driver;
mod lanes;
pub mod matrix;
pub mod modules;
#[cfg(feature = "play")]
pub mod play;
#[cfg(feature = "play")]
pub mod played;
mod queue;
pub mod real;
mod rehearsal;
mod sections;

pub use queue::Moment;
pub use sections::Sections;
