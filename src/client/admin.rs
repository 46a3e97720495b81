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
use tonic::Request;

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

    /// The addresses, each once.
    pub fn servers(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let found = self.runtime.block_on(self.found())?;
        Ok(found.into_keys().collect())
    }

    /// Each address, and the URL that led there.
    async fn found(&self) -> anyhow::Result<BTreeMap<SocketAddr, &Uri>> {
        let mut found = BTreeMap::new();
        for uri in &self.urls {
            let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_default());
            let host = host.trim_matches(['[', ']']);
            let addresses = tokio::net::lookup_host((host, port)).await;
            let addresses = addresses.with_context(|| format!("look up {host}"))?;
            found.extend(addresses.map(|address| (address, uri)));
        }
        Ok(found)
    }

    /// Sets the weights on every server, at a time. The error names all that failed.
    pub fn set_routing(&self, weights: &BTreeMap<String, f64>) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut calls = JoinSet::new();
            for (address, uri) in self.found().await? {
                let scheme = uri.scheme_str().unwrap_or("http");
                let server = Server {
                    url: format!("{scheme}://{address}"),
                    timeout: self.timeout,
                    // the certificate is of the name, not of the address
                    credentials: self.credentials.clone().for_host(uri.host().unwrap_or_default()),
                };
                let weights = weights.clone().into_iter().collect();
                calls.spawn(async move {
                    let told = timeout(server.timeout, tell(&server, weights)).await;
                    told.unwrap_or_else(|_| bail!("no answer within {:?}", server.timeout))
                        .with_context(|| server.url.clone())
                });
            }
            let mut failures = Vec::new();
            while let Some(call) = calls.join_next().await {
                if let Err(error) = call? {
                    failures.push(format!("{error:#}"));
                }
            }
            ensure!(failures.is_empty(), "{}", failures.join("; "));
            Ok(())
        })
    }
}

async fn tell(server: &Server, weights: std::collections::HashMap<String, f64>) -> anyhow::Result<()> {
    let mut admin = AdminServiceClient::new(connect(server).await?);
    let request = Request::new(proto::SetRoutingRequest { weights });
    admin.set_routing(request).await.map_err(in_words)?;
    Ok(())
}
