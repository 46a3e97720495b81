//! The body of an answer: messages, then the status.
//!
//! A message is handed to the transport in pieces, and what it holds is given back with its last one: a caller
//! that does not read keeps its own share of the budget taken, and no more than a piece of it lies where we do
//! not count.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::BufMut;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use prost::Message;
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;

use crate::service::budget::Room;

/// As HTTP/2's frames are unless both sides agree otherwise.
const PIECE_BYTES: usize = 16 << 10;

/// What an answer keeps taken until the transport has it.
pub(in crate::service) type Held<S> = (Option<Room>, S);

/// An answer that is under way.
struct Outbound<M, S> {
    messages: M,
    /// Of the current message.
    left: Bytes,
    held: Option<Held<S>>,
    is_ended: bool,
}

/// The HTTP response whose body is `messages`; an error among them is the last.
pub(in crate::service) fn response<M, T, S>(messages: M) -> http::Response<Body>
where
    M: Stream<Item = Result<(T, Held<S>), Status>> + Send + Unpin + 'static,
    T: Message,
    S: Send + Unpin + 'static,
{
    let body = Outbound { messages, left: Bytes::new(), held: None, is_ended: false };
    let mut response = http::Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl<M, T, S> http_body::Body for Outbound<M, S>
where
    M: Stream<Item = Result<(T, Held<S>), Status>> + Unpin,
    T: Message,
    S: Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if self.left.is_empty() {
            let status = match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok((message, held))) => {
                    self.left = framed(&message);
                    self.held = Some(held);
                    None
                }
                Some(Err(status)) => Some(status),
                None => Some(Status::ok("")),
            };
            if let Some(status) = status {
                self.is_ended = true;
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        let length = self.left.len().min(PIECE_BYTES);
        let piece = self.left.split_to(length);
        if self.left.is_empty() {
            self.held = None;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

/// Source: gRPC over HTTP/2, "Length-Prefixed-Message".
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a response is far below 4 GiB"));
    message.encode(&mut bytes).expect("a vector grows");
    bytes.into()
}
