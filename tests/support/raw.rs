//! A call whose bytes are in the test's own hands.

use std::sync::Arc;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use prost::Message;
use rewarm::proto;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

/// A message as it goes over the wire.
pub(crate) fn framed(message: &[u8], is_compressed: bool) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[u8::from(is_compressed)], &length[..], message].concat()
}

/// A call of `RewardService` that is under way, with gzip allowed.
pub(crate) struct Call {
    frames: Option<mpsc::Sender<Bytes>>,
    answer: tokio::task::JoinHandle<http::Response<Body>>,
    head: Option<HeaderMap>,
    body: Option<Body>,
    received: BytesMut,
    trailers: Option<HeaderMap>,
    _channel: Arc<Channel>,
}

impl Call {
    async fn begin(mut channel: Channel, method: &str, encoding: &str) -> Self {
        let (frames, outbound) = mpsc::channel(1);
        let outbound = ReceiverStream::new(outbound).map(|bytes| Ok::<_, Status>(Frame::data(bytes)));
        let request = http::Request::post(format!("/rewarm.v1.RewardService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-encoding", encoding)
            .body(Body::new(StreamBody::new(outbound)))
            .unwrap();
        std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let answer = channel.call(request);
        Self {
            frames: Some(frames),
            answer: tokio::spawn(async move { answer.await.unwrap() }),
            head: None,
            body: None,
            received: BytesMut::new(),
            trailers: None,
            _channel: Arc::new(channel),
        }
    }

    /// A `Score` of these bytes, which is not told that they are all.
    pub(crate) async fn score(channel: Channel, bytes: Vec<u8>) -> Self {
        let mut call = Self::begin(channel, "Score", "gzip").await;
        call.send(bytes).await;
        call
    }

    pub(crate) async fn stream(channel: Channel) -> Self {
        Self::begin(channel, "ScoreStream", "gzip").await
    }

    pub(crate) async fn compressed_with(channel: Channel, encoding: &str) -> Self {
        Self::begin(channel, "Score", encoding).await
    }

    /// Hands over some bytes; waits while the one before is not taken.
    pub(crate) async fn send(&mut self, bytes: Vec<u8>) {
        // The server may have answered already.
        let _ = self.frames.as_ref().unwrap().send(bytes.into()).await;
    }

    /// There is nothing more to send.
    pub(crate) fn end(&mut self) {
        self.frames = None;
    }

    /// The next message of the answer; none at its end.
    pub(crate) async fn message(&mut self) -> Option<proto::ScoreResponse> {
        if self.body.is_none() {
            let (head, body) = (&mut self.answer).await.unwrap().into_parts();
            (self.head, self.body) = (Some(head.headers), Some(body));
        }
        loop {
            if self.received.len() >= 5 {
                let length = (&self.received[1..5]).get_u32() as usize;
                if self.received.len() >= 5 + length {
                    let message = self.received.split_to(5 + length);
                    return Some(proto::ScoreResponse::decode(&message[5..]).unwrap());
                }
            }
            let frame = self.body.as_mut().unwrap().frame().await?.unwrap();
            match frame.into_data() {
                Ok(data) => self.received.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// How it ended, whatever came before.
    pub(crate) async fn status(mut self) -> Status {
        while self.message().await.is_some() {}
        let headers = self.trailers.as_ref().or(self.head.as_ref()).unwrap();
        Status::from_header_map(headers).unwrap()
    }
}
