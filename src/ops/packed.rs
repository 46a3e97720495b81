//! Weights as they lie in memory, so that a file can hold them: what has to be known of them, and their bytes.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

pub use rewarm_kernels::Mapped;
pub use rewarm_kernels::Region;
use serde::Deserialize;
use serde::Serialize;

use crate::values::Format;

/// What is loaded and used as one, whatever it is.
pub type Weights = Arc<dyn Any + Send + Sync>;

/// Of some weights that were laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One layer.
    Linear,
    /// Several that read the same.
    Joined,
    /// An embedding.
    Table,
}

/// A run of bytes, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Panels of a layer.
    Panels {
        /// Whether the weights were rounded to bfloat16.
        is_bf16: bool,
        /// Width of the input, of the output, and columns of all panels.
        widths: [usize; 3],
        /// Whether it is two, gate and up.
        is_gated: bool,
    },
    /// Of the layer before it.
    Bias,
    /// Rows of so many numbers.
    Rows {
        /// In what they are.
        format: Format,
        /// How many in each.
        width: usize,
    },
}

/// Weights, laid out.
pub struct Packed<'w> {
    /// What they are together.
    pub kind: Kind,
    /// Their parts, in order.
    pub pieces: Vec<(Shape, Cow<'w, [u8]>)>,
}
