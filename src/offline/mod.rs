//! Commands that need no server.

pub mod bench;
pub mod calibrate;
mod forward;
pub mod score;
