//! A connection of HTTP/1 under load, as light as it can be: what is measured is the server.

use std::sync::Arc;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A caller of one server.
pub(super) struct Http {
    /// Host and port.
    authority: Arc<str>,
    /// Whether a connection is used again.
    is_kept: bool,
    connection: Option<TcpStream>,
}

/// Connections are not shared.
impl Clone for Http {
    fn clone(&self) -> Self {
        Self { authority: self.authority.clone(), is_kept: self.is_kept, connection: None }
    }
}

impl Http {
    pub(super) fn new(url: &str, is_kept: bool) -> anyhow::Result<Self> {
        let Some(authority) = url.strip_prefix("http://") else { bail!("{url} does not begin with http://") };
        Ok(Self { authority: authority.trim_end_matches('/').into(), is_kept, connection: None })
    }

    /// Asks, and reads the answer: its status and its body.
    pub(super) async fn ask(&mut self, verb: &str, path: &str, body: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(&*self.authority).await;
                let connection = connection.with_context(|| format!("connect to {}", self.authority))?;
                connection.set_nodelay(true)?;
                connection
            }
        };
        let (authority, length) = (&self.authority, body.len());
        let request = format!(
            "{verb} {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(4096);
        let end = loop {
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended before an answer");
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let length =
            lines.find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let (Some(status), Some(length)) = (status, length) else { bail!("this is no answer of HTTP/1") };
        while answer.len() < end + length {
            ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended within an answer");
        }
        if self.is_kept && !head.contains("\r\nconnection: close") {
            self.connection = Some(connection);
        }
        Ok((status, answer.split_off(end)))
    }
}
