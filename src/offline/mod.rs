//! Commands that need no server, most of them on the way to what one serves.
//!
//! ```text
//! preference pairs → train → members ─┬─▶ merge ─────▶ one model          (mode warm)
//!                                     ├─▶ calibrate ─▶ rewards that compare (mode ens)
//!                                     └─▶ evaluate ──▶ which of the two, on which data
//! texts → score → rewards                 checkpoints → info → what they are
//! ```
//!
//! What several of them need is here too: `random` draws by a seed, `svg` draws plots,
//! [`table`] lines up columns, and [`Stop`] ends a command early.

pub mod calibrate;
pub mod evaluate;
pub mod info;
pub mod merge;
mod random;
pub mod score;
mod stop;
mod svg;
pub mod table;
pub mod train;

pub use crate::offline::stop::Stop;
