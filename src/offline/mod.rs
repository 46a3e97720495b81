//! Commands that need no server.

pub mod bench;
mod forward;
pub mod merge;
pub mod score;
