//! The body of a request: whole, inflated, and bounded.
//!
//! ```text
//! Content-Length too large? ─▶ frames ─▶ counted ─┬─▶ bytes, and the room they hold
//!                        gzip, deflate? inflated ─┘   32 KiB at a time, each counted
//! ```
//!
//! Bytes are taken from the budget of all callers as they arrive and as they are inflated, and all of them must have come
//! within [`Limits::message_time`](crate::service::Limits). Nothing is parsed here: see json.rs.
//!
//! Who is refused before all was read is listened to a little longer: a client that still writes when its connection is
//! closed sees a reset, and not why.

use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use flate2::bufread::MultiGzDecoder;
use flate2::bufread::ZlibDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http::header::CONTENT_LENGTH;
use http::header::CONTENT_TYPE;
use http::header::EXPECT;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::service::budget::Room;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::service::status::brief;

/// Inflated between two looks at the limits; other calls take their turns in between.
const INFLATE_BYTES: usize = 32 << 10;
/// Who is refused may write for so long.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// All bytes of a body, with the room that they hold.
pub(in crate::service) async fn read(
    state: &State,
    head: &Parts,
    mut body: Body,
) -> Result<(Vec<u8>, Room), ServiceError> {
    let limit = state.limits.message_time;
    let whole = timeout(limit, whole(state, head, &mut body)).await;
    let whole = whole.unwrap_or(Err(ServiceError::Stalled { limit }));
    if whole.is_err() && !matches!(whole, Err(ServiceError::CallerLeft | ServiceError::Stalled { .. })) {
        discard(state, &head.headers, body).await;
    }
    whole
}

/// As [`read`], for a request whose head was `checked`: who is refused for that is not listened to.
pub(in crate::service) async fn read_if<T>(
    checked: Result<T, ServiceError>,
    state: &State,
    head: &Parts,
    body: Body,
) -> Result<(T, Vec<u8>, Room), ServiceError> {
    match checked {
        Ok(checked) => {
            let (bytes, room) = read(state, head, body).await?;
            Ok((checked, bytes, room))
        }
        Err(error) => {
            discard(state, &head.headers, body).await;
            Err(error)
        }
    }
}

/// Reads what a client still writes that is refused, and keeps nothing of it.
pub(in crate::service) async fn discard(state: &State, headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(EXPECT) {
        return; // it waits for an answer before it writes
    }
    let mut left = state.limits.max_message_bytes;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, |data| data.len())) else { return };
            left = rest;
        }
    };
    // Whether all of it came or not, it is refused.
    let _ = timeout(DISCARD_TIME, discard).await;
}

/// Fails unless the content is said to be `essence`, or nothing is said: tritonclient says nothing.
pub(in crate::service) fn check_type(
    headers: &HeaderMap,
    expected: &'static str,
    is_expected: impl Fn(&str) -> bool,
) -> Result<(), ServiceError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match is_expected(&essence) {
        true => Ok(()),
        false => Err(ServiceError::UnknownContentType { content_type: brief(&text).into_owned(), expected }),
    }
}

async fn whole(state: &State, head: &Parts, body: &mut Body) -> Result<(Vec<u8>, Room), ServiceError> {
    let limit = state.limits.max_message_bytes;
    let headers = &head.headers;
    let coding = coding(headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(ServiceError::TooLarge { limit });
    }
    let mut room = state.budget.of(&head.extensions).room()?;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ServiceError::CallerLeft)?.into_data() else { break };
        if bytes.len() + data.len() > limit {
            return Err(ServiceError::TooLarge { limit });
        }
        room.grow_to(bytes.len() + data.len())?;
        bytes.extend_from_slice(&data);
    }
    match coding {
        Coding::Identity => Ok((bytes, room)),
        Coding::Gzip => inflate(MultiGzDecoder::new(&bytes[..]), "gzip", bytes.len(), room, limit).await,
        Coding::Deflate => inflate(ZlibDecoder::new(&bytes[..]), "deflate", bytes.len(), room, limit).await,
    }
}

/// How a body is compressed.
enum Coding {
    Identity,
    Gzip,
    /// With zlib's header: RFC 9110, section 8.4.1.2.
    Deflate,
}

fn coding(headers: &HeaderMap) -> Result<Coding, ServiceError> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(Coding::Identity) };
    match value.as_bytes().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(Coding::Identity),
        b"gzip" | b"x-gzip" => Ok(Coding::Gzip),
        b"deflate" => Ok(Coding::Deflate),
        other => {
            let encoding = brief(&String::from_utf8_lossy(other)).into_owned();
            Err(ServiceError::UnknownEncoding { encoding })
        }
    }
}

async fn inflate(
    mut decoder: impl Read,
    name: &str,
    compressed: usize,
    mut room: Room,
    limit: usize,
) -> Result<(Vec<u8>, Room), ServiceError> {
    let mut piece = vec![0; INFLATE_BYTES];
    let mut bytes = Vec::new();
    loop {
        let count = decoder.read(&mut piece).map_err(|_| {
            ServiceError::field("body", format!("is not {name}, as its Content-Encoding says"))
        })?;
        if count == 0 {
            return Ok((bytes, room));
        }
        if bytes.len() + count > limit {
            return Err(ServiceError::TooLarge { limit });
        }
        room.grow_to(compressed + bytes.len() + count)?;
        bytes.extend_from_slice(&piece[..count]);
        tokio::task::yield_now().await;
    }
}
