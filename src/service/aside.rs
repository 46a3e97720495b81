//! Work that takes milliseconds, on a thread of its own: the async ones serve everybody.

use crate::service::status::ServiceError;

/// What is smaller is done at once.
const ASIDE_BYTES: usize = 256 << 10;

/// Does `work`, which reads or makes so many bytes.
pub(super) async fn aside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    match bytes > ASIDE_BYTES {
        true => tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Panicked)?,
        false => work(),
    }
}
