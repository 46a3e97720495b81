//! What can go wrong while a model is computed.

use rewarm_cuda::driver::CudaError;

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// Of the tensor library: a device without memory, say.
    #[error(transparent)]
    Tensor(Box<candle_core::Error>),
    /// Of a card.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A forward that was told not to go on.
    #[error("the forward was given up at a pause")]
    GivenUp,
    /// A parameter that a model names and nobody brought.
    #[error("no parameter is named `{0}`")]
    NoParameter(String),
    /// A batch that a form does not take.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Of operations.
pub type Result<T> = std::result::Result<T, OpsError>;

impl From<candle_core::Error> for OpsError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(Box::new(error))
    }
}
