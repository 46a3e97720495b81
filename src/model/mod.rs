//! Token ids → rewards. No async, no channels, no gRPC.

pub mod batch;
pub mod scorer;
pub mod variant;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Placeholder of the skeleton.
    #[error("{0}")]
    Other(String),
}
