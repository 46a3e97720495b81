//! A connection of HTTP/1 under load, as light as it can be: what is measured is the server.

use std::sync::Arc;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use http::Uri;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::client::Server;
use crate::client::refuse_secrets;
use crate::client::words;

/// A caller of one server.
pub(super) struct Http {
    /// Host and port.
    authority: Arc<str>,
    /// With TLS: whose certificate the server has to show.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Whether somebody has named who signs the server's certificate.
    has_ca: bool,
    /// A header line, or empty.
    authorization: Arc<str>,
    /// Whether a connection is used again.
    is_kept: bool,
    connection: Option<Stream>,
}

type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connections are not shared.
impl Clone for Http {
    fn clone(&self) -> Self {
        let Self { authority, tls, has_ca, authorization, is_kept, connection: _ } = self;
        Self {
            authority: authority.clone(),
            tls: tls.clone(),
            has_ca: *has_ca,
            authorization: authorization.clone(),
            is_kept: *is_kept,
            connection: None,
        }
    }
}

impl Http {
    pub(super) fn new(server: &Server, is_kept: bool) -> anyhow::Result<Self> {
        let Server { url, credentials, .. } = server;
        refuse_secrets(url)?;
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let (scheme, host) = (uri.scheme_str(), uri.host().unwrap_or_default().trim_matches(['[', ']']));
        let tls = match scheme {
            Some("http") => None,
            Some("https") => {
                let name = credentials.server_name().unwrap_or(host).to_owned();
                let name =
                    ServerName::try_from(name).context("a certificate is of a DNS name or an IP address")?;
                Some((TlsConnector::from(Arc::new(credentials.client_config()?)), name))
            }
            _ => bail!("{url} begins with neither http:// nor https://"),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let authorization = credentials.header_line().into();
        Ok(Self {
            authority: authority.into(),
            tls,
            has_ca: credentials.has_ca(),
            authorization,
            is_kept,
            connection: None,
        })
    }

    /// Asks, and reads the answer: its status and its body.
    pub(super) async fn ask(&mut self, verb: &str, path: &str, body: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(&*self.authority).await;
                let connection = connection.with_context(|| format!("connect to {}", self.authority))?;
                connection.set_nodelay(true)?;
                match &self.tls {
                    None => Stream::Left(connection),
                    Some((connector, name)) => {
                        let shaken = connector.connect(name.clone(), connection).await.map_err(|error| {
                            let problem = words::of_connection(&error, "https:", self.has_ca);
                            anyhow!("connect to https://{}: {problem}", self.authority)
                        });
                        Stream::Right(Box::new(shaken?))
                    }
                }
            }
        };
        let (authority, authorization, length) = (&self.authority, &self.authorization, body.len());
        let request = format!(
            "{verb} {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n\
             {authorization}Content-Length: {length}\r\n\r\n{body}"
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
