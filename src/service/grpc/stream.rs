//! `ScoreStream`: a response for each request, in the order of completion.
//!
//! ```text
//! inbound ─ a free slot? ─▶ one task per request ─▶ outbox ─▶ the transport, as fast as the caller reads
//!              ▲                                      │
//!              └────────── the slot returns ──────────┘
//! ```
//!
//! A request holds one of the stream's slots, and its share of the budget of all callers, until its response is
//! handed to the transport. A caller that does not read therefore stops being read, with [`MAX_IN_FLIGHT`]
//! requests at most in the server; their tasks finish and give back everything else that is shared, so nobody
//! waits for that caller.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;
use tracing::Instrument;

use crate::metrics::Method;
use crate::proto;
use crate::service::budget::Room;
use crate::service::grpc::answer::answer;
use crate::service::grpc::inbound::Admitted;
use crate::service::grpc::inbound::Inbound;
use crate::service::grpc::inbound::Incoming;
use crate::service::grpc::outbound::Held;
use crate::service::origin::Origin;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// Requests of one stream that are in the server at a time; the proto states it.
const MAX_IN_FLIGHT: usize = 64;

type Slot = OwnedSemaphorePermit;
type Response = Result<(proto::ScoreResponse, Held<Slot>), Status>;

/// The responses of one stream.
pub(super) struct Outbox {
    responses: mpsc::UnboundedReceiver<Response>,
}

impl Stream for Outbox {
    type Item = Response;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Response>> {
        self.responses.poll_recv(context)
    }
}

/// Serves one stream on a task of its own, which ends with the stream, or when the caller has gone.
pub(super) fn serve(
    state: Arc<State>,
    inbound: Inbound<proto::ScoreRequest>,
    deadline: Option<Instant>,
    origin: Origin,
) -> Outbox {
    // Unbounded, and yet never more than one response for each slot.
    let (outbox, responses) = mpsc::unbounded_channel();
    let calls = state.calls.clone();
    calls.spawn(
        async move {
            let mut requests = JoinSet::new();
            let end = tokio::select! {
                end = read(&state, inbound, (deadline, &origin), &mut requests, &outbox) => end,
                // Dropping `requests` withdraws them.
                () = outbox.closed() => return,
            };
            tokio::select! {
                () = async { while requests.join_next().await.is_some() {} } => {}
                () = outbox.closed() => return,
            }
            if let Err(error) = end {
                tracing::debug!(%error, "stream ended");
                let _ = outbox.send(Err(error.into()));
            }
        }
        .in_current_span(),
    );
    Outbox { responses }
}

/// Starts a task for each request until the stream ends. The error, if any, ends the stream for the caller too,
/// once all that was read is answered.
async fn read(
    state: &Arc<State>,
    mut inbound: Inbound<proto::ScoreRequest>,
    (deadline, origin): (Option<Instant>, &Origin),
    requests: &mut JoinSet<()>,
    outbox: &mpsc::UnboundedSender<Response>,
) -> Result<(), ServiceError> {
    let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut expiry = std::pin::pin!(async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    });
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.expect("nobody closes the slots");
            inbound.next().await.map(|message| message.map(|incoming| (incoming, slot)))
        };
        let (incoming, slot) = tokio::select! {
            biased;
            () = state.draining.cancelled() => return Err(ServiceError::Draining),
            () = &mut expiry => return Err(ServiceError::DeadlineExceeded),
            next = next => match next? {
                Some(next) => next,
                None => return Ok(()),
            },
        };
        // Reap what has finished, or a long stream would collect it all.
        while requests.try_join_next().is_some() {}
        let (state, outbox, origin) = (state.clone(), outbox.clone(), origin.again());
        let request = async move {
            let Incoming { request_id, request } = incoming;
            let is_named = !request_id.is_empty();
            let (response, room) = match guarded(state, is_named, request, (deadline, origin)).await {
                Ok((response, room)) => (response, Some(room)),
                Err(error) => {
                    let error = Some(error.into());
                    (proto::ScoreResponse { request_id, error, ..Default::default() }, None)
                }
            };
            // The caller may have gone.
            let _ = outbox.send(Ok((response, (room, slot))));
        };
        requests.spawn(request.in_current_span());
    }
}

async fn guarded(
    state: Arc<State>,
    is_named: bool,
    request: Result<Admitted<proto::ScoreRequest>, ServiceError>,
    (deadline, origin): (Option<Instant>, Origin),
) -> Result<(proto::ScoreResponse, Room), ServiceError> {
    let request = match is_named {
        true => request,
        false => Err(ServiceError::field("request_id", "is empty: responses come in any order")),
    };
    state
        .run(|state| async move { answer(&state, Method::ScoreStream, request, deadline, origin).await })
        .await
}
