//! gRPC in, gRPC out, nothing else.
//!
//! ```text
//! listen    RewardService (reward.rs: inbound.rs, score.rs, stream.rs, outbound.rs), health, reflection
//! admin     AdminService (admin.rs)                                │
//! metrics   /metrics, /healthz, /readyz (http.rs)                  ▼
//!                      State (state.rs): the phase, the limits, and what serves now (models.rs)
//! ```
//!
//! The life of a server:
//!
//! 1. All ports are bound, or the start fails. From here on every call is answered: with UNAVAILABLE at first.
//! 2. The models are loaded, each answers a first forward, and gives its golden rewards if it has some
//!    (self_test.rs): ready. If that fails, the server ends with the error.
//! 3. A reload puts other models in their place, in one step.
//! 4. Asked to stop: health says so, and for `drain_grace` all goes on, while load balancers look elsewhere.
//! 5. New work is refused; what was admitted is finished, streams end, GOAWAY closes the connections. What
//!    is not done after `drain_limit` is left behind.

mod admin;
mod budget;
mod call;
mod health;
mod http;
mod inbound;
mod models;
mod outbound;
mod request;
mod reward;
mod routing;
mod scan;
mod score;
mod self_test;
mod state;
mod status;
mod stream;
mod tokenize;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::server::NamedService;
use tonic::service::Interceptor;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::engine;
use crate::engine::Engine;
use crate::metrics;
use crate::metrics::Exporter;
use crate::proto;
use crate::proto::admin_service_server::AdminServiceServer;
use crate::service::admin::Admin;
pub use crate::service::models::LoadError;
pub use crate::service::models::Models;
pub use crate::service::models::Source;
use crate::service::reward::Reward;
pub use crate::service::routing::weight_problems;
pub use crate::service::state::Limits;
use crate::service::state::State;

/// How long a silent peer has to answer a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of one connection: a trainer that opens one stream per sample waits its turn instead of failing.
const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
/// HTTP/2's own 64 KiB would make a large request wait for a round trip every 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// What the service must know; `config.rs` has checked it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the reward service listens.
    pub listen: SocketAddr,
    /// Where the admin service listens.
    pub admin: SocketAddr,
    /// Where /metrics, /healthz and /readyz are.
    pub metrics: SocketAddr,
    /// Limits that hold for all callers together.
    pub limits: Limits,
    /// Limits of the engine.
    pub engine: engine::Config,
    /// A connection that is silent for so long is asked whether it lives, and closed when it does not answer.
    pub keepalive: Duration,
    /// How long the server goes on after it has said that it stops.
    pub drain_grace: Duration,
    /// How long admitted work may take to finish after that.
    pub drain_limit: Duration,
    /// What to serve at first.
    pub models: Models,
}

/// Where a server listens, with the ports that were found for port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of the reward service.
    pub listen: SocketAddr,
    /// Of the admin service.
    pub admin: SocketAddr,
    /// Of /metrics, /healthz and /readyz.
    pub metrics: SocketAddr,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be had.
    #[error("listen on {address} for {purpose}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// Whose port it is.
        purpose: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine gives no threads.
    #[error("start the tokenizer threads")]
    Threads(#[source] io::Error),
}

/// A server that was started. It stops when this is dropped, at once; [`Running::drain`] is the orderly way.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    state: Arc<State>,
    life: JoinHandle<Result<(), LoadError>>,
}

impl Running {
    /// Begins an orderly stop. Returns at once.
    pub fn drain(&self) {
        self.state.leaving.cancel();
    }

    /// Loads the configured models anew, as the admin service does. The outcome is in the log.
    pub fn reload(&self) {
        let state = self.state.clone();
        tokio::spawn(async move { state.reload().await });
    }

    /// Returns once the server has stopped: in good order, or because its first models could not be loaded.
    pub async fn stopped(&mut self) -> Result<(), LoadError> {
        (&mut self.life).await.unwrap_or(Err(LoadError::Panicked))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.life.abort();
    }
}

/// Binds all ports and returns; the models are loaded while the server already answers.
pub async fn start(config: Config, source: impl Source) -> Result<Running, StartError> {
    let listen = bind(config.listen, "the reward service").await?;
    let admin = bind(config.admin, "the admin service").await?;
    let http = bind(config.metrics, "metrics and health").await?;
    let address_of = |listener: &TcpListener, configured| listener.local_addr().unwrap_or(configured);
    let addresses = Addresses {
        listen: address_of(&listen, config.listen),
        admin: address_of(&admin, config.admin),
        metrics: address_of(&http, config.metrics),
    };

    let exporter = metrics::install();
    let engine = Engine::start(config.engine);
    let state = Arc::new(State::new(config.limits, engine, Arc::new(source)).map_err(StartError::Threads)?);
    let (reporter, health) = tonic_health::server::health_reporter();

    let mut servers = JoinSet::new();
    let reward = reward_service(&state);
    let names = [name_of(&reward), name_of(&health)];
    servers.spawn(serve(listen, Routes::new(reward).add_service(health), &names, &state, config.keepalive));
    let admin_service = AdminServiceServer::new(Admin(state.clone()));
    let names = [name_of(&admin_service)];
    servers.spawn(serve(admin, Routes::new(admin_service), &names, &state, config.keepalive));

    let mut background = JoinSet::new();
    background.spawn(health::report(state.clone(), reporter));
    background.spawn(fold_histograms(exporter.clone()));
    let http = axum::serve(http, http::router(state.clone(), exporter));
    background
        .spawn(async move { http.await.unwrap_or_else(|error| tracing::error!(%error, "metrics ended")) });

    tracing::info!(listen = %addresses.listen, admin = %addresses.admin, metrics = %addresses.metrics, "listening");
    let life = tokio::spawn(live(config, state.clone(), servers, background));
    Ok(Running { addresses, state, life })
}

/// From the first model to the last answer. `background` ends with it.
async fn live(
    config: Config,
    state: Arc<State>,
    mut servers: JoinSet<()>,
    background: JoinSet<()>,
) -> Result<(), LoadError> {
    tokio::select! {
        loaded = state.load(config.models) => {
            loaded?;
            state.leaving.cancelled().await;
            tracing::info!(grace_seconds = config.drain_grace.as_secs_f64(), "stopping");
            tokio::time::sleep(config.drain_grace).await;
        }
        // Nobody waits for models that were never there.
        () = state.leaving.cancelled() => {}
    }

    tracing::info!(calls = state.calls.len(), "draining");
    state.draining.cancel();
    state.calls.close();
    let orderly = async {
        state.calls.wait().await;
        state.engine.drain().await;
        state.closing.cancel();
        while servers.join_next().await.is_some() {}
    };
    match tokio::time::timeout(config.drain_limit, orderly).await {
        Ok(()) => tracing::info!("stopped"),
        Err(_) => tracing::warn!(
            unfinished_calls = state.calls.len(),
            "stopped at the limit, with calls unfinished or connections open"
        ),
    }
    drop(background);
    Ok(())
}

async fn bind(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, purpose, source })
}

fn reward_service(state: &Arc<State>) -> InterceptedService<Reward, impl Interceptor + Clone + use<>> {
    InterceptedService::new(Reward(state.clone()), call::note_deadline)
}

/// Serves until the state says that the server is closing, then sends GOAWAY and waits for the connections.
fn serve(
    listener: TcpListener,
    routes: Routes,
    names: &[&str],
    state: &State,
    keepalive: Duration,
) -> impl Future<Output = ()> + use<> {
    let routes = with_reflection(routes, names);
    let closing = state.closing.clone();
    async move {
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(keepalive))
            .then(|accepted| async {
                if let Err(error) = &accepted {
                    // Out of file descriptors, usually: trying again at once would burn a core in silence.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                accepted
            });
        let served = Server::builder()
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, closing.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "listener ended");
        }
    }
}

/// Adds reflection, v1 and v1alpha (grpcurl and older clients ask for the latter), that lists `names`.
fn with_reflection(routes: Routes, names: &[&str]) -> Routes {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let v1 = builder().build_v1().expect("descriptors of our own build are valid");
    let v1alpha = builder().build_v1alpha().expect("descriptors of our own build are valid");
    routes.add_service(v1).add_service(v1alpha)
}

fn name_of<S: NamedService>(_service: &S) -> &'static str {
    S::NAME
}

/// Histograms collect observations until somebody folds them; a server that nobody scrapes must not grow.
async fn fold_histograms(exporter: Exporter) {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    loop {
        interval.tick().await;
        exporter.run_upkeep();
    }
}
