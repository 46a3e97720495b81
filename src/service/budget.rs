//! The memory that all callers' requests may hold together, from the first byte of a message to the last byte of
//! its answer.

use std::sync::Arc;

use http::Extensions;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::service::access::Caller;
use crate::service::access::Share;
use crate::service::status::ServiceError;

/// What a request costs apart from its text: tasks, spans, results.
const OVERHEAD_BYTES: usize = 1024;

/// So many bytes, shared.
#[derive(Clone)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    limit: usize,
    /// Whose requests take from it, where callers are told apart.
    caller: Option<Caller>,
}

/// A request's share of the budget; given back when it is dropped.
pub(super) struct Room {
    budget: Budget,
    permit: OwnedSemaphorePermit,
    /// What the request holds of its token's limits.
    share: Option<Share>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Self { bytes: Arc::new(Semaphore::new(limit)), limit, caller: None }
    }

    /// The same, for the requests of whoever makes this call: see guard.rs.
    pub(super) fn of(&self, call: &Extensions) -> Self {
        Self { caller: call.get().cloned(), ..self.clone() }
    }

    /// Room for a request of which nothing is known yet.
    pub(super) fn room(&self) -> Result<Room, ServiceError> {
        let share = self.caller.as_ref().map(Caller::begin).transpose()?;
        let permits = OVERHEAD_BYTES.min(self.limit) as u32;
        let permit = self.bytes.clone().try_acquire_many_owned(permits);
        Ok(Room { budget: self.clone(), permit: permit.map_err(|_| self.exhausted())?, share })
    }

    /// Waits for a [`Self::room`]. Fails if the caller's token holds no longer.
    pub(super) async fn room_when_free(&self) -> Result<Room, ServiceError> {
        let share = match &self.caller {
            Some(caller) => Some(caller.begin_when_free().await?),
            None => None,
        };
        let permits = OVERHEAD_BYTES.min(self.limit) as u32;
        let permit = self.bytes.clone().acquire_many_owned(permits).await;
        Ok(Room { budget: self.clone(), permit: permit.expect("nobody closes the budget"), share })
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

    /// What its request holds of its token's limits, where callers are told apart.
    pub(super) fn share(&mut self) -> Option<&mut Share> {
        self.share.as_mut()
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
