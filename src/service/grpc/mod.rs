//! The gRPC door: `rewarm.v1.RewardService`.
//!
//! ```text
//! frames ─▶ inbound.rs (scan.rs) ─▶ request.rs ─▶ score.rs, below all doors ─▶ answer.rs ─▶ outbound.rs
//! ```

pub(super) mod info;
pub(super) mod reward;

mod answer;
mod inbound;
mod outbound;
mod request;
mod scan;
mod stream;
