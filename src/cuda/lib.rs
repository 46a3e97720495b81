//! A GPU: its kernels, and all of the `unsafe` code that runs them.
//!
//! ```text
//! kernels/   CUDA C++ without any header, compiled for the card by NVRTC when they are first asked for
//! play/      a header that plays a block of threads on the CPU, so that the same text runs without a card
//! compile    from that text to what a card runs, kept on disk
//! driver     what is asked of a card, whoever answers: memory, launches, products, time
//! real       a card, by CUDA's driver, NVRTC and cublasLt
//! played     a card that is played on the CPU, for tests (feature `play`)
//! ```

mod arena;
pub mod calls;
pub mod compile;
pub mod device;
pub mod driver;
pub mod matrix;
#[cfg(feature = "play")]
pub mod played;
mod queue;
pub mod real;
mod rehearsal;

pub use queue::Moment;
mod modules {
    #[derive(Clone)]
    pub(crate) struct Module {
        pub(crate) name: String,
        pub(crate) source: String,
        pub(crate) defines: Vec<String>,
        pub(crate) kernels: Vec<String>,
    }
    pub(crate) fn module_of(kernel: &str) -> Module {
        panic!("{kernel}")
    }
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Module> {
        Vec::new()
    }
    pub(crate) fn shared_bytes(_: &str) -> u32 {
        0
    }
}
