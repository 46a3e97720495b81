//! The admin services of several servers, told the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::Uri;
use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::client::Credentials;
use crate::client::Server;
use crate::client::connect;
use crate::client::in_words;
use crate::client::refuse_secrets;
use crate::client::runtime;
use crate::proto;
use crate::proto::admin_service_client::AdminServiceClient;

/// Servers by the URLs of their admin services; a name stands for all its addresses, looked up anew for each call.
pub struct AdminClient {
    runtime: Runtime,
    urls: Vec<Uri>,
    timeout: Duration,
    credentials: Credentials,
}

/// Relative weights by variant.
type Weights = BTreeMap<String, f64>;

/// Who is told: each address, and the URL that led there.
#[derive(Clone, Debug, Default)]
pub struct Servers(BTreeMap<SocketAddr, Uri>);

impl Servers {
    /// Where they are, each once.
    pub fn addresses(&self) -> impl ExactSizeIterator<Item = SocketAddr> {
        self.0.keys().copied()
    }
}

/// What became of weights on one server; in words, with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// It routes by them.
    Done,
    /// Somebody else has set others, which stay.
    Taken(String),
    /// It did not answer, or refused; it may have them nevertheless.
    Failed(String),
}

impl AdminClient {
    /// Nothing is connected yet.
    pub fn new(urls: &[String], timeout: Duration, credentials: Credentials) -> anyhow::Result<Self> {
        let parse = |url: &String| -> anyhow::Result<Uri> {
            refuse_secrets(url)?;
            let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
            ensure!(uri.scheme().is_some(), "`{url}` is not a URL: write http://{url}");
            ensure!(
                uri.port().is_some(),
                "`{url}` has no port: the admin service's is 50052 unless configured"
            );
            Ok(uri)
        };
        let urls = urls.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { runtime: runtime()?, urls, timeout, credentials })
    }

    /// Each address, and the URL that led there.
    pub fn servers(&self) -> anyhow::Result<Servers> {
        self.runtime.block_on(async {
            let mut found = BTreeMap::new();
            for uri in &self.urls {
                let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_default());
                let host = host.trim_matches(['[', ']']);
                let addresses = tokio::net::lookup_host((host, port)).await;
                let addresses = addresses.with_context(|| format!("look up {host}"))?;
                found.extend(addresses.map(|address| (address, uri.clone())));
            }
            Ok(Servers(found))
        })
    }

    /// Sets the weights on all servers at a time, each only if its weights are one of `expected` before, and tells what
    /// became of it.
    pub fn set_routing(
        &self,
        servers: &Servers,
        weights: &Weights,
        expected: &[Weights],
    ) -> BTreeMap<SocketAddr, Set> {
        let message = |weights: &Weights| weights.clone().into_iter().collect();
        let expected = expected.iter().map(|one| proto::ExpectedWeights { weights: message(one) });
        let request = proto::SetRoutingRequest { weights: message(weights), expected: expected.collect() };
        self.runtime.block_on(async {
            let mut calls = JoinSet::new();
            for (&address, uri) in &servers.0 {
                let scheme = uri.scheme_str().unwrap_or("http");
                let server = Server {
                    url: format!("{scheme}://{address}"),
                    timeout: self.timeout,
                    // the certificate is of the name, not of the address
                    credentials: self.credentials.clone().for_host(uri.host().unwrap_or_default()),
                };
                let request = request.clone();
                calls.spawn(async move {
                    let told = timeout(server.timeout, tell(&server, request)).await;
                    let told = told.unwrap_or_else(|_| bail!("no answer within {:?}", server.timeout));
                    let url = server.url;
                    (address, told.unwrap_or_else(|error| Set::Failed(format!("{url}: {error:#}"))))
                });
            }
            calls.join_all().await.into_iter().collect()
        })
    }
}

async fn tell(server: &Server, request: proto::SetRoutingRequest) -> anyhow::Result<Set> {
    let mut admin = AdminServiceClient::new(connect(server).await?);
    match admin.set_routing(request).await {
        Ok(_) => Ok(Set::Done),
        Err(status) if status.code() == Code::FailedPrecondition => {
            Ok(Set::Taken(format!("{}: {}", server.url, status.message())))
        }
        Err(status) => Err(in_words(status)),
    }
}
