//! The messages of a call, from the frames of its body to decoded requests.
//!
//! ```text
//! frames ─▶ counted ─▶ walked (scan.rs) ─▶ decoded
//!              └─ gzip? counted ─▶ inflated, 32 KiB at a time, each counted and walked ─┘
//! ```
//!
//! Everything here is in the hands of the caller, so all of it is bounded: bytes are taken from the budget as
//! they arrive and as they are inflated, what the decoded request will hold is known before it is decoded, and
//! a message has [`Limits::message_time`](crate::service::Limits) to become whole. A stream goes on behind a
//! message that is refused, as long as the request's id was found in it: the caller gets that request's error.
//!
//! # Why not tonic's `Streaming`?
//!
//! It keeps what has arrived of a message uncounted, inflates on an async thread in one go, and decodes
//! whatever the bytes make.

use std::io::Read;
use std::marker::PhantomData;
use std::sync::LazyLock;

use bytes::Buf;
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use tokio::time::timeout;
use tonic::body::Body;

use crate::proto;
use crate::service::aside::aside;
use crate::service::budget::Budget;
use crate::service::budget::Room;
use crate::service::grpc::scan::Bounds;
use crate::service::grpc::scan::Refusal;
use crate::service::grpc::scan::Scanner;
use crate::service::grpc::scan::Schema;
use crate::service::state::Limits;
use crate::service::status::ServiceError;
use crate::service::status::brief;

/// A flag and a length. Source: gRPC over HTTP/2, "Length-Prefixed-Message".
const HEADER_BYTES: usize = 5;
/// Inflated between two looks at the limits; other calls take their turns in between.
const INFLATE_BYTES: usize = 32 << 10;
/// Of all samples together, for each that a request may have: turns of conversations, tools and so on.
const PARTS_PER_SAMPLE: usize = 128;

/// A request of some contract.
pub(in crate::service) trait Wire: Message + Default + 'static {
    /// What errors call the list whose elements and parts are bounded.
    const LIST: &'static str;

    /// What is counted before it is decoded.
    fn schema() -> &'static Schema;
}

impl Wire for proto::ScoreRequest {
    const LIST: &'static str = "samples";

    fn schema() -> &'static Schema {
        static SCHEMA: LazyLock<Schema> =
            LazyLock::new(|| Schema::of(".rewarm.v1.ScoreRequest", Some("samples"), "request_id"));
        &SCHEMA
    }
}

/// How the messages of a call come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Shape {
    /// One message.
    Unary,
    /// Any number.
    Stream,
}

/// The messages of one call.
pub(in crate::service) struct Inbound<M> {
    shape: Shape,
    limits: Limits,
    budget: Budget,
    is_gzip: bool,
    body: Body,
    /// What is left of a frame.
    pending: Bytes,
    message: PhantomData<fn() -> M>,
}

/// A decoded request, with the room that it holds.
pub(in crate::service) type Admitted<M> = (M, Room);

/// One message.
pub(in crate::service) struct Incoming<M> {
    /// As it may be echoed: empty if there is none, cut if it is too long.
    pub(in crate::service) request_id: String,
    pub(in crate::service) request: Result<Admitted<M>, ServiceError>,
}

impl<M: Wire> Inbound<M> {
    /// Fails if the messages are compressed in a way we do not know.
    pub(in crate::service) fn new(
        shape: Shape,
        headers: &HeaderMap,
        body: Body,
        limits: Limits,
        budget: Budget,
    ) -> Result<Self, ServiceError> {
        let is_gzip = match headers.get("grpc-encoding").map(|encoding| encoding.as_bytes()) {
            None | Some(b"identity") => false,
            Some(b"gzip") => true,
            Some(other) => {
                let encoding = brief(&String::from_utf8_lossy(other)).into_owned();
                return Err(ServiceError::UnknownEncoding { encoding });
            }
        };
        Ok(Self { shape, limits, budget, is_gzip, body, pending: Bytes::new(), message: PhantomData })
    }

    /// The one request of a unary call, once the caller has sent all there is.
    pub(in crate::service) async fn only(mut self) -> Result<Admitted<M>, ServiceError> {
        let limit = self.limits.message_time;
        let only = async {
            let message = self.next().await?;
            let admitted = message.ok_or(ServiceError::Malformed("the call has no message"))?.request?;
            match self.has_more().await? {
                false => Ok(admitted),
                true => Err(ServiceError::Malformed("the call has more than one message")),
            }
        };
        timeout(limit, only).await.unwrap_or(Err(ServiceError::Stalled { limit }))
    }

    /// The next message; none at the end. Between two messages a caller may take any time. An error ends the
    /// call.
    pub(in crate::service) async fn next(&mut self) -> Result<Option<Incoming<M>>, ServiceError> {
        if !self.has_more().await? {
            return Ok(None);
        }
        let room = match self.shape {
            Shape::Unary => self.budget.room()?,
            // Nothing is held by who waits here: whoever holds something goes on.
            Shape::Stream => self.budget.room_when_free().await?,
        };
        let limit = self.limits.message_time;
        let message = timeout(limit, self.read(room)).await;
        message.unwrap_or(Err(ServiceError::Stalled { limit })).map(Some)
    }

    async fn read(&mut self, room: Room) -> Result<Incoming<M>, ServiceError> {
        let (is_compressed, length) = self.header().await?;
        let mut message = Arriving::new(room, self.limits);
        if length > self.limits.max_message_bytes {
            message.refuse(ServiceError::TooLarge { limit: self.limits.max_message_bytes });
        }
        let mut left = length;
        while left > 0 && !self.is_done_with(&message) {
            let piece = self.piece(left).await?;
            left -= piece.len();
            message.push(&piece, !is_compressed);
        }
        if is_compressed && left == 0 {
            message.inflate().await;
        }
        message.finish().await
    }

    /// A refused message of a stream is read to its end, which is where the next one begins.
    fn is_done_with(&self, message: &Arriving<M>) -> bool {
        message.refused.is_some() && self.shape == Shape::Unary
    }

    /// Whether the next message is compressed, and its length.
    async fn header(&mut self) -> Result<(bool, usize), ServiceError> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        while header.len() < HEADER_BYTES {
            header.extend_from_slice(&self.piece(HEADER_BYTES - header.len()).await?);
        }
        let mut header = &header[..];
        let is_compressed = match header.get_u8() {
            0 => false,
            1 if self.is_gzip => true,
            1 => return Err(ServiceError::Malformed("it is compressed, and no grpc-encoding says how")),
            _ => return Err(ServiceError::Malformed("its compression flag is neither 0 nor 1")),
        };
        Ok((is_compressed, header.get_u32() as usize))
    }

    /// Some bytes, at most so many.
    async fn piece(&mut self, at_most: usize) -> Result<Bytes, ServiceError> {
        if !self.has_more().await? {
            return Err(ServiceError::Malformed("the call ends within a message"));
        }
        Ok(self.pending.split_to(at_most.min(self.pending.len())))
    }

    /// Waits for some bytes, or for the end.
    async fn has_more(&mut self) -> Result<bool, ServiceError> {
        while self.pending.is_empty() {
            match self.body.frame().await {
                None => return Ok(false),
                Some(Err(_)) => return Err(ServiceError::CallerLeft),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pending = data,
                    // trailers, which only end the call
                    Err(_) => return Ok(false),
                },
            }
        }
        Ok(true)
    }
}

/// A message that is on its way.
struct Arriving<M> {
    /// In bytes.
    limit: usize,
    room: Room,
    bounds: Bounds,
    scanner: Scanner,
    /// None any more once it is refused.
    bytes: Vec<u8>,
    refused: Option<ServiceError>,
    /// The walk is over: the rest is not the wire format.
    is_lost: bool,
    message: PhantomData<fn() -> M>,
}

impl<M: Wire> Arriving<M> {
    fn new(room: Room, limits: Limits) -> Self {
        let samples = limits.max_samples_per_request;
        let bounds = Bounds { samples, parts: samples.saturating_mul(PARTS_PER_SAMPLE) };
        let scanner = Scanner::new(M::schema(), bounds);
        Self {
            limit: limits.max_message_bytes,
            room,
            bounds,
            scanner,
            bytes: Vec::new(),
            refused: None,
            is_lost: false,
            message: PhantomData,
        }
    }

    /// Takes some bytes; `is_plain` if they are the message's own and not gzip.
    fn push(&mut self, piece: &[u8], is_plain: bool) {
        if self.refused.is_none() {
            match self.room.grow_to(self.bytes.len() + piece.len()) {
                Ok(()) => self.bytes.extend_from_slice(piece),
                Err(error) => self.refuse(error),
            }
        }
        if is_plain
            && !self.is_settled()
            && let Err(refusal) = self.scanner.push(piece)
        {
            self.is_lost = matches!(refusal, Refusal::Malformed(_));
            self.refuse(refused::<M>(refusal, self.bounds));
        }
    }

    /// Replaces what has arrived by what it holds.
    async fn inflate(&mut self) {
        let compressed = std::mem::take(&mut self.bytes);
        let mut decoder = GzDecoder::new(&compressed[..]);
        let mut inflated = vec![0; INFLATE_BYTES];
        while !self.is_settled() {
            match decoder.read(&mut inflated) {
                Ok(0) => break,
                Ok(count) => self.push(&inflated[..count], true),
                Err(_) => self.refuse(ServiceError::Malformed("it is not gzip, as its header says")),
            }
            if self.bytes.len() > self.limit {
                self.refuse(ServiceError::TooLarge { limit: self.limit });
            }
            if self.bytes.len() >= INFLATE_BYTES {
                tokio::task::yield_now().await;
            }
        }
    }

    fn refuse(&mut self, error: ServiceError) {
        self.bytes = Vec::new();
        self.room.shrink_to(0);
        self.refused.get_or_insert(error);
    }

    /// Whether nothing that comes can change the answer: it is refused, and who asked is known or never will be.
    fn is_settled(&self) -> bool {
        self.refused.is_some() && (self.is_lost || self.scanner.request_id().is_some())
    }

    async fn finish(mut self) -> Result<Incoming<M>, ServiceError> {
        if self.refused.is_none()
            && let Err(refusal) = self.scanner.finish()
        {
            self.refuse(refused::<M>(refusal, self.bounds));
        }
        if self.refused.is_none()
            && let Err(error) = self.room.grow_to(self.scanner.decoded_bytes())
        {
            self.refuse(error);
        }
        let request_id = self.scanner.request_id();
        let request = match (self.refused, &request_id) {
            // whose answer would it be?
            (Some(error), None) => return Err(error),
            (Some(error), Some(_)) => Err(error),
            (None, _) => decode(self.bytes).await.map(|request| (request, self.room)),
        };
        Ok(Incoming { request_id: request_id.unwrap_or_default(), request })
    }
}

async fn decode<M: Wire>(bytes: Vec<u8>) -> Result<M, ServiceError> {
    aside(bytes.len(), move || {
        M::decode(Bytes::from(bytes)).map_err(|error| ServiceError::Undecodable { reason: error.to_string() })
    })
    .await
}

fn refused<M: Wire>(refusal: Refusal, bounds: Bounds) -> ServiceError {
    match refusal {
        Refusal::Samples => {
            ServiceError::field(M::LIST, format!("has more than {}, the limit", bounds.samples))
        }
        Refusal::Parts => ServiceError::field(
            M::LIST,
            format!("hold more than {} turns and other parts together, the limit", bounds.parts),
        ),
        Refusal::Malformed(reason) => ServiceError::Malformed(reason),
    }
}
