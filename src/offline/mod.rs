//! Commands that need no server.

pub mod bench;
pub mod evaluate;
mod forward;
pub mod score;
