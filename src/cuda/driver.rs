//! What is asked of a card: memory, kernels, products, time. [`Driver`] is answered by a card, or by one that is
//! played on the CPU.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

/// Why a card did not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// A library that is not there, or cannot be opened.
    #[error("{0}")]
    Missing(String),
    /// A card that we do not run on, or an algorithm that does not make a product of so many rows: no fault either.
    #[error("{0}")]
    Unsupported(String),
    /// Not enough memory: no fault, everything goes on.
    #[error("{what} takes {asked} bytes on {card}, which has {free} left")]
    OutOfMemory {
        /// What it is for.
        what: String,
        /// Bytes.
        asked: u64,
        /// Bytes.
        free: u64,
        /// Its name.
        card: String,
    },
    /// A kernel that does not compile, with the compiler's words.
    #[error("kernel {kernel}: {log}")]
    Compile {
        /// Which.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// A fault: nothing in this process brings the card back.
    #[error("{card} failed for good: {problem}")]
    Fault {
        /// Its name.
        card: String,
        /// What the driver said.
        problem: String,
    },
}

/// Of a card.
pub type Result<T> = std::result::Result<T, CudaError>;

/// What a card says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its place among those that the process sees.
    pub index: usize,
    /// For example "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Major and minor: 9.0 of an H100.
    pub compute_capability: (u32, u32),
    /// Bytes.
    pub memory: u64,
    /// How many blocks can be worked on at the same time, at least.
    pub multiprocessors: u32,
    /// Of the driver, 13000 for 13.0.
    pub driver: u32,
    /// Of cublasLt, 130100 for 13.1.0.
    pub cublaslt: u64,
}

/// An address in the card's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub u64);

impl Address {
    /// None.
    pub const NULL: Self = Self(0);

    /// So many bytes behind it.
    pub fn after(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// What numbers are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Number {
    /// 4 bytes.
    F32,
    /// bfloat16
    Bf16,
    /// IEEE's half.
    F16,
}

impl Number {
    /// Of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// In the names of kernels.
    pub const fn letter(self) -> char {
        match self {
            Self::F32 => 'f',
            Self::Bf16 => 'b',
            Self::F16 => 'h',
        }
    }
}

/// What is done one after the other, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

/// A point in a stream. Dropped, it can be used again.
pub type Event = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// Launches, recorded once, to be run again with the same arguments.
pub type Graph = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// Of a kernel, in the order of its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
}

/// How a kernel is launched.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch<'a> {
    /// Its name, which also says what it is compiled from: see `modules`.
    pub kernel: &'a str,
    /// Blocks. No dimension is 0.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// In order.
    pub arguments: &'a [Argument],
}

/// What a product looks like, but for how many rows it has: `y = x · weightᵀ (+ bias) (+ y)`, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Columns of `y`, rows of `weight`.
    pub outputs: usize,
    /// Columns of `x` and of `weight`.
    pub inputs: usize,
    /// From a row of `x` to the next, in numbers.
    pub x_stride: usize,
    /// The same of `weight`.
    pub weight_stride: usize,
    /// The same of `y`.
    pub y_stride: usize,
    /// Of `x` and `weight`; sums are `f32` (never TF32).
    pub number: Number,
    /// Of `y`.
    pub output: Number,
    /// Whether a vector of outputs is added, of the same numbers as `y`.
    pub has_bias: bool,
    /// Whether the product is added to what `y` holds.
    pub accumulates: bool,
}

/// A way to make a product, as the library names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Algorithm(pub Vec<u8>);

/// A product to be made.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// What it looks like.
    pub shape: &'a Shape,
    /// Rows of `x` and `y`; at least one.
    pub rows: usize,
    /// `[rows, inputs]`
    pub x: Address,
    /// `[outputs, inputs]`
    pub weight: Address,
    /// `[outputs]`, if the shape has one.
    pub bias: Address,
    /// `[rows, outputs]`
    pub y: Address,
    /// How.
    pub algorithm: &'a Algorithm,
}

/// A card. Whoever calls it answers for what addresses point to: that is this crate's `device`.
pub trait Driver: Debug + Send + Sync {
    /// What it is.
    fn card(&self) -> &Card;
    /// Bytes that are left of its memory.
    fn free(&self) -> Result<u64>;
    /// Memory of its own, aligned to 256 bytes, with anything in it. `what` is for the error.
    fn allocate(&self, bytes: usize, what: &str) -> Result<Address>;
    /// Gives it back.
    fn release(&self, address: Address);

    /// One more, beside the first, which is `Stream(0)`.
    fn stream(&self) -> Result<Stream>;
    /// Copies there. `from` may be used again when this returns; the copy is in the order of the stream.
    fn upload(&self, stream: Stream, from: &[u8], to: Address) -> Result<()>;
    /// Copies from there, and waits for it.
    fn download(&self, stream: Stream, from: Address, to: &mut [u8]) -> Result<()>;
    /// Copies within the card's memory.
    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: usize) -> Result<()>;
    /// Waits until the stream has done all that it was asked for.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Compiles what is not compiled yet, so that the first launch does not wait.
    fn prepare(&self, kernel: &str) -> Result<()>;
    /// The same for several, side by side where that is possible.
    fn prepare_all(&self, kernels: &[&str]) -> Result<()> {
        kernels.iter().try_for_each(|kernel| self.prepare(kernel))
    }
    /// Launches a kernel.
    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()>;
    /// Ways to make a product of so many rows, none of which splits its sums; the best guess first.
    fn algorithms(&self, shape: &Shape, rows: usize, most: usize) -> Result<Vec<Algorithm>>;
    /// Rows up to which algorithms are tried, when they are chosen; more are made like these.
    fn tried_rows(&self) -> usize {
        usize::MAX
    }
    /// Where what takes time to find out is kept from one start to the next, if anywhere.
    fn keeps(&self) -> Option<PathBuf> {
        None
    }
    /// Whether an algorithm makes a product of so many rows.
    fn accepts(&self, shape: &Shape, rows: usize, algorithm: &Algorithm) -> Result<bool> {
        let _ = (shape, rows, algorithm);
        Ok(true)
    }
    /// Makes one.
    fn multiply(&self, stream: Stream, product: &Product<'_>) -> Result<()>;

    /// The point in a stream after what it was asked for until now.
    fn record(&self, stream: Stream) -> Result<Event>;
    /// What is asked of a stream from now on waits for a point of another.
    fn wait(&self, stream: Stream, event: &Event) -> Result<()>;
    /// The card's time between two points; waits for the second.
    fn elapsed(&self, from: &Event, to: &Event) -> Result<Duration>;

    /// From now on launches and products of a stream, and of those that wait for it, are recorded, not done.
    fn begin_capture(&self, stream: Stream) -> Result<()>;
    /// What was recorded.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;
    /// Does it.
    fn replay(&self, stream: Stream, graph: &Graph) -> Result<()>;
}
