//! A gRPC reward-scoring server for RL trainers, and the offline commands that make the models it serves.
//!
//! A *variant* is one way to turn a (prompt, response) sample into a scalar reward: in mode `warm` one
//! model, whose weights may be the average of N members; in mode `ens` N members whose rewards are
//! reduced to one. Several variants live in one process, share a device, and compare in one query.
//!
//! ```text
//!                 main · cli · config · telemetry
//!               ┌──────────┬─────┴───────────┐
//!            service   canary ─▶ client ─▶ bench ─▶ offline  proto: the contract, for service and client
//!               │                              │              metrics, disk, pem: any room may use them
//!            engine                          learn
//!               └──────────┬─────────────────┘
//!                        model
//!          ┌───────────┬───┴─────────┐
//!         ops        merge         text
//!          │           │
//!       kernels    checkpoint                                 kernels: a crate of its own, with all unsafe code
//!          └───────────┴── values                             hub: a model's id becomes a directory, before all else
//! ```
//!
//! A use points down, and no files use each other in a circle (`tests/layering.rs` holds us to that). One request:
//!
//! 1. [`service`] decodes and checks it, and routes it to a variant;
//! 2. [`text`] renders each sample through the chat template and tokenizes it, on its own threads;
//! 3. [`engine`] admits the samples to the variant's bounded queue, or refuses them;
//! 4. its batcher decides which samples go together, up to a budget of tokens;
//! 5. its one device thread packs them (`[tokens]` and offsets, never padded) and asks the [`model`] for one
//!    reward per sample and member, and for their reduction;
//! 6. each caller is answered; [`service`] puts the results in the order of the samples.
//!
//! And how members come about, without a server: [`offline::train`] fine-tunes a family on preference pairs,
//! [`offline::merge`] averages its weights, [`offline::calibrate`] makes its rewards comparable, and
//! [`offline::evaluate`] tells what that is worth. What is trained is the same [`model`] that is served.

pub mod bench;
pub mod canary;
pub mod checkpoint;
pub mod cli;
pub mod client;
pub mod config;
pub mod disk;
pub mod engine;
pub mod hub;
pub mod learn;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod offline;
pub mod ops;
pub mod pem;
pub mod proto;
pub mod service;
pub mod telemetry;
pub mod text;
pub mod values;
