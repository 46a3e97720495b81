//! The memory that all callers' requests may hold together, from the first byte of a message to the last byte of
//! its answer.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::service::status::ServiceError;

/// What a request costs apart from its text: tasks, spans, results.
const OVERHEAD_BYTES: usize = 1024;

/// So many bytes, shared.
#[derive(Clone)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    limit: usize,
}

/// A request's share of the budget; given back when it is dropped.
pub(super) struct Room {
    budget: Budget,
    permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self { bytes: Arc::new(Semaphore::new(limit)), limit }
    }

    /// Room for a request of which nothing is known yet.
    pub(super) fn room(&self) -> Result<Room, ServiceError> {
        let permits = OVERHEAD_BYTES.min(self.limit) as u32;
        let permit = self.bytes.clone().try_acquire_many_owned(permits);
        Ok(Room { budget: self.clone(), permit: permit.map_err(|_| self.exhausted())? })
    }

    /// Waits for a [`Self::room`].
    pub(super) async fn room_when_free(&self) -> Room {
        let permits = OVERHEAD_BYTES.min(self.limit) as u32;
        let permit = self.bytes.clone().acquire_many_owned(permits).await;
        Room { budget: self.clone(), permit: permit.expect("nobody closes the budget") }
    }

    fn exhausted(&self) -> ServiceError {
        ServiceError::TooMuchInFlight { limit: self.limit }
    }
}

impl Room {
    /// Takes more, if there is need: so many bytes beside the overhead. One request may take the whole budget,
    /// however large it is, but no more.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let wanted = bytes.saturating_add(OVERHEAD_BYTES).min(self.budget.limit);
        let more = wanted.saturating_sub(self.permit.num_permits());
        if more > 0 {
            let permit = self.budget.bytes.clone().try_acquire_many_owned(more as u32);
            self.permit.merge(permit.map_err(|_| self.budget.exhausted())?);
        }
        Ok(())
    }

    /// Takes so many bytes beside what it has.
    pub(super) fn grow_by(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let had = self.permit.num_permits().saturating_sub(OVERHEAD_BYTES);
        self.grow_to(had.saturating_add(bytes))
    }

    /// Gives back what is above so many bytes and the overhead.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let kept = bytes.saturating_add(OVERHEAD_BYTES);
        drop(self.permit.split(self.permit.num_permits().saturating_sub(kept)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_share_the_budget_and_give_it_back() {
        let budget = Budget::new(10 * OVERHEAD_BYTES);
        let mut large = budget.room().unwrap();
        large.grow_to(8 * OVERHEAD_BYTES).unwrap();
        let mut small = budget.room().unwrap();
        assert!(matches!(small.grow_to(1), Err(ServiceError::TooMuchInFlight { limit: 10_240 })));
        assert!(budget.room().is_err());
        large.shrink_to(2 * OVERHEAD_BYTES);
        small.grow_to(6 * OVERHEAD_BYTES).unwrap();
        assert_eq!(budget.bytes.available_permits(), 0);
        drop((large, small));
        budget.room().unwrap().grow_to(usize::MAX).unwrap();
    }
}
