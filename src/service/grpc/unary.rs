//! A call with one message and one answer, of whichever contract.

use std::sync::Arc;

use http::Request;
use http::Response;
use prost::Message;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tracing::Instrument;

use crate::metrics::Method;
use crate::service::budget::Room;
use crate::service::call;
use crate::service::grpc::inbound::Admitted;
use crate::service::grpc::inbound::Inbound;
use crate::service::grpc::inbound::Shape;
use crate::service::grpc::inbound::Wire;
use crate::service::grpc::outbound;
use crate::service::origin::Origin;
use crate::service::score;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// A message that was read, or could not be, until when its answer is of use, and where it comes from.
pub(in crate::service) type Asked<M> = (Result<Admitted<M>, ServiceError>, Option<Instant>, Origin);

/// Reads the message within bounds and in time, and has it answered on a task of its own; the answer keeps its room until
/// the transport has it.
pub(in crate::service) async fn unary<M: Wire, A: Message + 'static, F>(
    state: Arc<State>,
    method: Method,
    request: Request<Body>,
    answer: impl FnOnce(Arc<State>, Asked<M>) -> F,
) -> Response<Body>
where
    F: Future<Output = Result<(A, Room), ServiceError>> + Send + 'static,
{
    let (head, body) = request.into_parts();
    let span = call::span(method.as_str(), &head.headers);
    let origin = Origin::new(&head.headers, &head.extensions);
    let deadline = call::deadline_of(&head.extensions);
    let read = async {
        // Who cannot be served need not be listened to.
        state.serving()?;
        let (limits, budget) = (state.limits, state.budget.of(&head.extensions));
        Inbound::new(Shape::Unary, &head.headers, body, limits, budget)?.only().await
    };
    let asked = (score::before(deadline, read).await, deadline, origin);
    match state.run(|state| answer(state, asked)).instrument(span).await {
        Ok((response, room)) => {
            let held: outbound::Held<()> = (Some(room), ());
            outbound::response(tokio_stream::once(Ok((response, held))))
        }
        Err(error) => Status::from(error).into_http(),
    }
}
