//! From rewards back to weights: gradients of the model that is served, and the optimizer that follows them.
//!
//! ```text
//! checkpoint → trainable (the model, in ops::training) → loss → gradients → adamw → checkpoint
//! ```

pub mod adamw;
pub mod loss;
mod memory;
pub mod parameter;
pub mod trainable;
