//! The gRPC door: `rewarm.v1.RewardService`.
//!
//! ```text
//! frames ─▶ inbound.rs (scan.rs) ─▶ request.rs ─▶ score.rs, below all doors ─▶ answer.rs ─▶ outbound.rs
//! ```

pub(super) mod inbound;
pub(super) mod info;
pub(super) mod outbound;
pub(super) mod request;
pub(super) mod reward;
pub(super) mod scan;
pub(super) mod unary;

mod answer;
mod stream;
