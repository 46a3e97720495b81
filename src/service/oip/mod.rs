//! The Open Inference Protocol (KServe's v2, spoken by Triton's clients): over gRPC on the port of `RewardService`, and
//! over HTTP below `/v2`.
//!
//! ```text
//! gRPC   grpc.rs ─▶ ┐                                                        ┌─▶ raw tensors
//!                   ├─ tensors.rs ─▶ samples.rs ─▶ score.rs, below all doors ┤      (infer.rs)
//! HTTP   rest.rs ─▶ ┘  parameters.rs                                         └─▶ JSON or raw
//! ```
//!
//! A model is a variant, and [`ROUTED`] is the one that routing finds. Its one version is "1".
//!
//! | input | datatype, shape | |
//! |---|---|---|
//! | `text` | BYTES `[B]` or `[B, 1]` | scored as `formatted`: it is rendered already |
//! | `prompt`, `response` | BYTES `[B]` or `[B, 1]` | scored as `text`: through the chat template, or the model's rule |
//! | `input_ids` (or `tokens`) | INT64, INT32 `[B, T]` | scored as they are |
//! | `attention_mask` | integers or BOOL `[B, T]` | with ids: padding on the left or the right is cut off; holes are refused |
//! | `sequence_lengths` (or `sequence_length`, `lengths`) | integers `[B]` or `[B, 1]` | with ids: what is behind is cut off |
//!
//! | output | shape, FP32 | |
//! |---|---|---|
//! | `rewards` | `[B, 1]` | the default |
//! | `member_rewards` | `[B, members]` | where it is asked for, or the parameter `return_members` is |
//! | `reward_std` | `[B, 1]` | where it is asked for; of an ensemble |
//!
//! Parameters of a request, others are not looked at: `timeout` (microseconds), `priority` (as Triton's: 1 before 2
//! before 3; 1 is INTERACTIVE, 2 and 0 NORMAL, 3 and above BACKGROUND), `request_id` (where there is no `id`),
//! `routing_key`, `expected_fingerprint`, `truncation` ("reject", "left", "right"), `return_members`. Those of an answer:
//! `variant`, `fingerprint`, and `truncated_samples` where there are some. A tensor has no place for an error: one
//! sample without a reward fails the call, which names it.
//!
//! # Why no `ModelStreamInfer`?
//!
//! A request has one answer here, and calls on one connection are served at the same time, as those of a stream are.

mod about;
pub(super) mod grpc;
mod infer;
mod json;
mod parameters;
pub(super) mod rest;
mod samples;
mod tensors;

/// The model that requests are routed by, as those without a variant are; a variant of this name hides it.
const ROUTED: &str = "rewarm";
/// Of every model.
const VERSION: &str = "1";
