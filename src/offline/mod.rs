//! Commands that need no server.

pub mod bench;
pub mod calibrate;
pub mod evaluate;
mod forward;
pub mod merge;
mod random;
pub mod score;
mod stop;
mod svg;
pub mod table;
pub mod train;

pub use crate::offline::stop::Stop;
