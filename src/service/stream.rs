//! `ScoreStream`: a response for each request, in the order of completion.
//!
//! ```text
//! inbound ─ a free slot? ─▶ one task per request ─▶ outbox ─▶ the transport, as fast as the caller reads
//!              ▲                                      │
//!              └────────── the slot returns ──────────┘
//! ```
//!
//! A request holds one of the stream's slots until its response is handed to the transport. A caller that
//! does not read therefore stops being read, with [`MAX_IN_FLIGHT`] requests at most in the server; their
//! tasks finish and give back everything that is shared, so nobody else waits for that caller.

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
use tonic::Streaming;
use tracing::Instrument;

use crate::metrics::Method;
use crate::proto;
use crate::service::score::answer;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// Requests of one stream that are in the server at a time; the proto states it.
const MAX_IN_FLIGHT: usize = 64;

type Response = Result<proto::ScoreResponse, Status>;

/// The responses of one stream.
pub(super) struct Outbox {
    responses: mpsc::UnboundedReceiver<(Response, Option<OwnedSemaphorePermit>)>,
}

impl Stream for Outbox {
    type Item = Response;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Response>> {
        // The slot is dropped here: the next request may be read.
        self.responses.poll_recv(context).map(|next| next.map(|(response, _slot)| response))
    }
}

/// Serves one stream on a task of its own, which ends with the stream, or when the caller has gone.
pub(super) fn serve(
    state: Arc<State>,
    inbound: Streaming<proto::ScoreRequest>,
    deadline: Option<Instant>,
) -> Outbox {
    // Unbounded, and yet never more than one response for each slot.
    let (outbox, responses) = mpsc::unbounded_channel();
    let calls = state.calls.clone();
    calls.spawn(
        async move {
            let mut requests = JoinSet::new();
            let end = tokio::select! {
                end = read(&state, inbound, deadline, &mut requests, &outbox) => end,
                // Dropping `requests` withdraws them.
                () = outbox.closed() => return,
            };
            tokio::select! {
                () = async { while requests.join_next().await.is_some() {} } => {}
                () = outbox.closed() => return,
            }
            if let Err(status) = end {
                let _ = outbox.send((Err(status), None));
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
    mut inbound: Streaming<proto::ScoreRequest>,
    deadline: Option<Instant>,
    requests: &mut JoinSet<()>,
    outbox: &mpsc::UnboundedSender<(Response, Option<OwnedSemaphorePermit>)>,
) -> Result<(), Status> {
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
            inbound.message().await.map(|message| message.map(|request| (request, slot)))
        };
        let (request, slot) = tokio::select! {
            biased;
            () = state.draining.cancelled() => return Err(ServiceError::Draining.into()),
            () = &mut expiry => return Err(ServiceError::DeadlineExceeded.into()),
            next = next => match next? {
                Some(next) => next,
                None => return Ok(()),
            },
        };
        // Reap what has finished, or a long stream would collect it all.
        while requests.try_join_next().is_some() {}
        let (state, outbox) = (state.clone(), outbox.clone());
        let request = async move {
            let request_id = request.request_id.clone();
            let response = guarded(state, request, deadline).await.unwrap_or_else(|error| {
                proto::ScoreResponse { request_id, error: Some(error.into()), ..Default::default() }
            });
            // The caller may have gone.
            let _ = outbox.send((Ok(response), Some(slot)));
        };
        requests.spawn(request.in_current_span());
    }
}

async fn guarded(
    state: Arc<State>,
    request: proto::ScoreRequest,
    deadline: Option<Instant>,
) -> Result<proto::ScoreResponse, ServiceError> {
    if request.request_id.is_empty() {
        return Err(ServiceError::field("request_id", "is empty: responses come in any order"));
    }
    state.run(|state| async move { answer(&state, Method::ScoreStream, request, deadline).await }).await
}
