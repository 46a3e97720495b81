//! What `rewarm bench` needs of the machine: a server in this process, and a switch for Ctrl-C.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::cli::bench::variants::Chosen;
use crate::client;
use crate::model::variant::Loader;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::service;
use crate::service::LoadError;
use crate::service::Loaded;
use crate::service::Models;
use crate::service::Port;
use crate::service::Ports;
use crate::service::Running;
use crate::service::Source;

/// Between two questions whether the server is ready.
const READY_POLL: Duration = Duration::from_millis(20);

/// A server in this process; it stops when this is dropped.
pub(super) struct LocalServer {
    running: Running,
    runtime: Option<Runtime>,
    _folder: Option<TempDir>,
}

impl LocalServer {
    /// Loads the variants for bare forwards, and serves the same; what can be shared is in memory once.
    pub(super) fn start(mut chosen: Chosen) -> anyhow::Result<(Vec<Variant>, Self)> {
        let anywhere = Some(([127, 0, 0, 1], 0).into());
        chosen.service.ports = Ports::new(Port::ALL.iter().map(|port| (*port, anywhere)));
        // nobody else comes, and what is measured is the models
        (chosen.service.tls, chosen.service.tokens) = (None, None);
        let mut loader = Loader::default();
        let variants = chosen.load_with(&mut loader)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("start the async threads")?;
        let source = Again { loader: Mutex::new(loader) };
        let mut running = runtime.block_on(service::start(chosen.service, source))?;
        let url = url(&running, Port::Reward);
        let server = client::Server { url, timeout: client::TIMEOUT, credentials: Default::default() };
        while client::check_health(&server, None).is_err() {
            let ended = async { tokio::time::timeout(READY_POLL, running.stopped()).await };
            match runtime.block_on(ended) {
                Err(_) => {} // still loading
                Ok(Ok(())) => bail!("the server stopped before it was ready"),
                Ok(Err(error)) => return Err(error.into()),
            }
        }
        Ok((variants, Self { running, runtime: Some(runtime), _folder: chosen.folder }))
    }

    /// Of the reward service over gRPC or HTTP.
    pub(super) fn url(&self, port: Port) -> String {
        url(&self.running, port)
    }
}

fn url(running: &Running, port: Port) -> String {
    let address = running.ports.get(port).expect("it was asked for");
    format!("http://{address}")
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        // A forward that still runs is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Loads with a loader that has read these checkpoints before.
struct Again {
    loader: Mutex<Loader>,
}

impl Source for Again {
    fn reread(&self) -> Result<Models, String> {
        Err("a bench does not reload".to_owned())
    }

    fn load(&self, variants: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError> {
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |config: &VariantConfig| {
            loader
                .load(config, &mut |_, _| ())
                .map(Loaded::from)
                .map_err(|source| LoadError::Model { variant: config.name.clone(), source })
        };
        variants.iter().map(load).collect()
    }
}
