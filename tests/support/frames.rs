//! HTTP/2 by hand: a peer that does what no library would.
//!
//! Source: RFC 9113 (frames), RFC 7541 (header fields; only literals and the static table are written, and
//! nothing is decoded).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header fields of a call.
pub(crate) fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // :method POST, :scheme http, and :path and :authority by their names' index
    let mut block = vec![0x83, 0x86, 0x04];
    block.extend(text(path));
    block.push(0x01);
    block.extend(text("test"));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(more) {
        block.push(0);
        block.extend(text(name));
        block.extend(text(value));
    }
    block
}

/// The two frames of a call with one message.
pub(crate) fn call(stream: u32, path: &str, message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let head = frame(HEADERS, END_HEADERS, stream, &headers(path, &[]));
    [head, frame(DATA, END_STREAM, stream, &body)].concat()
}

/// A connection that has said hello.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
}

impl Peer {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        Self { stream }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; none once the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.ok()
    }

    async fn try_next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Answers pings and settings until a frame comes for which `wanted` holds, or the end.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let next = self.next().await?;
            if wanted(&next) {
                return Some(next);
            }
            if next.kind == PING && next.flags & ACK == 0 {
                self.send(&frame(PING, ACK, 0, &next.payload)).await;
            } else if next.kind == SETTINGS && next.flags & ACK == 0 {
                self.send(&frame(SETTINGS, ACK, 0, &[])).await;
            }
        }
    }

    /// The message of an answer, or the end.
    pub(crate) async fn answer<M: Message + Default>(&mut self, stream: u32) -> Option<M> {
        let data = self.until(|frame| frame.kind == DATA && frame.stream == stream).await?;
        Some(M::decode(&data.payload[5..]).unwrap())
    }

    /// Reads for so long, answers nothing, and says whether the connection has ended by then.
    pub(crate) async fn ends_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, async { while self.next().await.is_some() {} }).await.is_ok()
    }
}
