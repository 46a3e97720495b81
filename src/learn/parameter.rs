//! What the optimizer changes.

use candle_core::Var;

/// A tensor that training changes.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// In the checkpoint that is written.
    pub name: String,
    /// Its values.
    pub var: Var,
    /// Whether weight decay makes it smaller: matrices, but no biases and no norms.
    pub decays: bool,
}
