//! Commands that need no server.

pub mod score;
