//! The doors, and what is below all of them.
//!
//! ```text
//! listen    RewardService (grpc/), the Open Inference
//!           Protocol (oip/), health, reflection       ─┐
//! http      the same for trainers that speak JSON     ─┤ a request (request.rs)
//!           (http/)                                    ▼
//! admin     AdminService (admin.rs)                  score.rs: route, tokenize, queue, forward
//! metrics   /metrics, /healthz, /readyz (pages.rs)     │
//! ui        the page for people, with http below (ui/)  │
//!    ▲                                                 ▼
//!    │                 State (state.rs): the phase, the limits, and what serves now (models.rs)
//!    └─ listener/: the connections of all ports (ports.rs), with TLS (tls.rs); guard.rs lets calls in (access/)
//! ```
//!
//! A door reads its dialect within bounds, makes a request of it, and writes the outcome in its dialect; it has no rule
//! of its own about queues, deadlines and drains.
//!
//! The life of a server:
//!
//! 1. All ports are bound, or the start fails. From here on every call is answered: with UNAVAILABLE at first.
//! 2. The models are loaded, each answers a first forward, and gives its golden rewards if it has some
//!    (self_test.rs): ready. If that fails, the server ends with the error.
//! 3. A reload puts other models in their place, in one step.
//! 4. Asked to stop: health says so, and for `drain_grace` all goes on, while load balancers look elsewhere.
//! 5. New work is refused; what was admitted is finished, streams end, and connections are closed, those too that
//!    do not go by themselves. What is not done after `drain_limit` is cut, counted and told.
//! 6. If a device is lost, what waits is answered with UNAVAILABLE, what runs elsewhere is finished, and the server ends
//!    with an error that its process tells by a code of its own.

mod access;
mod admin;
mod aside;
mod budget;
mod call;
mod chance;
mod ended;
mod grpc;
mod guard;
mod health;
mod http;
mod listener;
mod models;
mod oip;
mod origin;
mod otlp;
mod pages;
mod ports;
mod request;
mod routing;
mod score;
mod seldom;
mod self_test;
mod shadow;
mod state;
mod status;
mod tls;
mod tokenize;
mod ui;
mod watch;
mod witness;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::health_server::HealthServer;

use crate::engine;
use crate::engine::Engine;
use crate::metrics;
use crate::metrics::Exporter;
pub use crate::metrics::Port;
use crate::metrics::Renewed;
use crate::proto;
use crate::proto::admin_service_server;
use crate::proto::admin_service_server::AdminServiceServer;
use crate::proto::reward_service_server::SERVICE_NAME;
use crate::service::access::Tokens;
pub use crate::service::access::TokensError;
use crate::service::admin::Admin;
use crate::service::grpc::reward::Reward;
use crate::service::guard::Guard;
use crate::service::listener::Bounds;
pub use crate::service::listener::Connections;
use crate::service::listener::Ending;
use crate::service::listener::Listener;
use crate::service::listener::Protocol;
pub use crate::service::listener::TooFew;
pub use crate::service::models::LoadError;
pub use crate::service::models::Loaded;
pub use crate::service::models::Models;
pub use crate::service::models::Source;
use crate::service::oip::grpc::Inference;
use crate::service::otlp::Exporting;
pub use crate::service::otlp::Settings as OtlpSettings;
pub use crate::service::otlp::Variables as OtlpVariables;
pub use crate::service::ports::Ports;
pub use crate::service::routing::ShadowRouting;
pub use crate::service::routing::shadow_problems;
pub use crate::service::routing::weight_problems;
pub use crate::service::state::Limits;
pub use crate::service::state::Reload;
use crate::service::state::State;
use crate::service::tls::Tls;
pub use crate::service::tls::TlsConfig;
pub use crate::service::tls::TlsError;
use crate::service::tokenize::TokenizerThreads;
use crate::service::watch::Stamp;
use crate::service::watch::Watched;
use crate::service::witness::Witness;

/// For connections that are cut at the limit of a drain, to be closed and counted.
const CUT_TIME: Duration = Duration::from_secs(1);

/// For answers to be sent when a device is lost: what runs on others ends within a batch or two.
const LOST_LIMIT: Duration = Duration::from_secs(5);

/// What the service must know; `config.rs` has checked it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it listens.
    pub ports: Ports,
    /// TLS of the ports.
    pub tls: Option<TlsConfig>,
    /// The file of the tokens that callers need.
    pub tokens: Option<PathBuf>,
    /// Of the requests that have an answer, which have a line in the access log; with any, those that failed all have one.
    pub access_log: f64,
    /// Where spans and metrics go.
    pub otlp: Option<OtlpSettings>,
    /// That tokenize; else one for each core.
    pub threads: Option<usize>,
    /// Limits that hold for all callers together.
    pub limits: Limits,
    /// Limits of the engine.
    pub engine: engine::Config,
    /// How connections are bounded, watched and ended.
    pub connections: Connections,
    /// How long the server goes on after it has said that it stops.
    pub drain_grace: Duration,
    /// How long admitted work may take to finish after that.
    pub drain_limit: Duration,
    /// How a reload makes room.
    pub reload: Reload,
    /// What to serve at first.
    pub models: Models,
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
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process may not open enough files.
    #[error(transparent)]
    TooFewDescriptors(#[from] TooFew),
    /// Certificate and key cannot be used.
    #[error("set up TLS")]
    Tls(#[source] TlsError),
    /// The file of tokens cannot be used.
    #[error("read the tokens")]
    Tokens(#[source] TokensError),
    /// The certificate authority of the collector cannot be used.
    #[error("set up the export over OTLP")]
    Otlp(#[source] io::Error),
    /// The machine gives no threads.
    #[error("start the tokenizer threads")]
    Threads(#[source] io::Error),
}

/// A server that was started. It stops when this is dropped, at once; [`Running::drain`] is the orderly way.
pub struct Running {
    /// Where it listens, with the numbers that were found for port 0.
    pub ports: Ports,
    state: Arc<State>,
    life: JoinHandle<Result<(), LoadError>>,
}

impl Running {
    /// Begins an orderly stop. Returns at once.
    pub fn drain(&self) {
        self.state.leaving.cancel();
    }

    /// Loads the configured models anew, as the admin service does, but after what is loading already: once,
    /// however often it is called meanwhile. The outcome is in the log.
    pub fn reload(&self) {
        self.state.reload_wanted.notify_one();
    }

    /// Returns once the server has stopped: in good order, or because its first models could not be loaded, or because it
    /// has lost a device.
    pub async fn stopped(&mut self) -> Result<(), LoadError> {
        (&mut self.life).await.unwrap_or(Err(LoadError::Panicked))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.life.abort();
    }
}

impl Config {
    /// Reads what callers must have, and says what an operator may not know: certificates that are about to end, and ports
    /// that are open to more than this machine.
    pub fn check_access(&self) -> Result<Vec<String>, StartError> {
        let doubt = self.tls.as_ref().map(TlsConfig::check).transpose().map_err(StartError::Tls)?.flatten();
        if let Some(path) = &self.tokens {
            Tokens::read(path.clone()).map_err(StartError::Tokens)?;
        }
        Ok(doubt.into_iter().chain(self.open_ports()).collect())
    }

    /// A line about each port that others than this machine may call without proof of who they are, or can listen to.
    pub fn open_ports(&self) -> Vec<String> {
        let about = |(port, address): (Port, SocketAddr)| {
            if address.ip().to_canonical().is_loopback() {
                return None;
            }
            let tls = self.tls.as_ref().filter(|tls| tls.covers(port));
            let lacks = match (tls, &self.tokens) {
                (None, None) => {
                    "without TLS and without tokens: whoever reaches it may call it, and read along"
                }
                (None, Some(_)) => "without TLS: whoever is on the way may read along, tokens included",
                (Some(tls), None) if tls.client_ca.is_none() => {
                    "without tokens and without client certificates: whoever reaches it may call it"
                }
                _ => return None,
            };
            Some(format!("{} {address} ({}) is open {lacks}", port.key(), port.purpose()))
        };
        self.ports.iter().filter_map(about).collect()
    }
}

/// Binds all ports and returns; the models are loaded while the server already answers.
pub async fn start(config: Config, source: impl Source) -> Result<Running, StartError> {
    for open in config.open_ports() {
        tracing::warn!("{open}");
    }
    let exporter = metrics::install();
    let access = Access::read(&config)?;
    let mut bound = Vec::new();
    for (port, address) in config.ports.iter() {
        let listener = TcpListener::bind(address).await;
        let purpose = port.purpose();
        bound.push((port, listener.map_err(|source| StartError::Bind { address, purpose, source })?));
    }
    let ports = Ports::new(bound.iter().map(|(port, listener)| (*port, listener.local_addr().ok())));

    let bounds = Bounds::find(config.connections.max, &ports)?;
    let engine = Engine::start(config.engine);
    let tokenizers = TokenizerThreads::start(config.threads).map_err(StartError::Threads)?;
    let (tracer, exporting) = match &config.otlp {
        Some(settings) => {
            otlp::start(settings.clone(), exporter.clone()).map(|(tracer, tasks)| (Some(tracer), Some(tasks)))
        }
        None => Ok((None, None)),
    }
    .map_err(StartError::Otlp)?;
    let witness = Witness::new(config.access_log, tracer);
    let state = State::new(config.limits, config.reload, engine, tokenizers, Arc::new(source), witness);
    let state = Arc::new(state);
    let (reporter, health) = health::service();
    let mut background = JoinSet::new();
    background.spawn(health::report(state.clone(), reporter));
    background.spawn(fold_histograms(exporter.clone()));
    for (watched, begun) in access.watched {
        background.spawn(watch::watch(watched, begun));
    }

    let ending = Ending { closing: state.closing.clone(), ..Ending::default() };
    let mut servers = JoinSet::new();
    for (port, listener) in bound {
        let tls = access.tls.clone().filter(|tls| tls.config().covers(port));
        let grpc = |service: &str| Protocol::Grpc { notice: notice(service, &ports, access.tls.as_deref()) };
        let http1 = || Protocol::Http1 { notice: http_notice(&ports) };
        let (protocol, router) = match port {
            Port::Reward => (grpc(SERVICE_NAME), reward_routes(&state, health.clone())),
            Port::Http => (
                http1(),
                http::router(state.clone(), oip::rest::described()).merge(oip::rest::routes(&state)),
            ),
            Port::Admin => (grpc(admin_service_server::SERVICE_NAME), admin_routes(&state)),
            Port::Metrics => (http1(), pages::router(state.clone(), exporter.clone())),
            Port::Ui => (http1(), ui::router(http::router(state.clone(), Vec::new()))),
        };
        // Whoever watches the server may do so until its end: that port never closes, it is dropped.
        let ending = if port == Port::Metrics { Ending::default() } else { ending.clone() };
        let needs_certificate = tls.as_ref().is_some_and(|tls| tls.config().client_ca.is_some());
        let guard = Guard::new(port, access.tokens.clone(), needs_certificate, state.clone());
        let router = guard.before(router);
        let server = Listener::new(port, protocol, tls, router, &config.connections, bounds.of(port), ending);
        if port == Port::Metrics {
            background.spawn(async move {
                server.serve(listener).await;
            });
        } else {
            servers.spawn(server.serve(listener));
        }
    }

    let told = |port| ports.get(port).map(tracing::field::display);
    tracing::info!(
        listen = told(Port::Reward),
        http = told(Port::Http),
        admin = told(Port::Admin),
        metrics = told(Port::Metrics),
        ui = told(Port::Ui),
        "listening"
    );
    let life = tokio::spawn(live(config, state.clone(), servers, ending.cutting, background, exporting));
    Ok(Running { ports, state, life })
}

/// What callers must have, as the files said it at the start.
struct Access {
    tls: Option<Arc<Tls>>,
    tokens: Option<Arc<Tokens>>,
    /// The files of both, and what they were when they were read.
    watched: Vec<(Watched, Vec<Option<Stamp>>)>,
}

impl Access {
    fn read(config: &Config) -> Result<Self, StartError> {
        let mut watched = Vec::new();
        let mut tls = None;
        if let Some(config) = &config.tls {
            let (files, begun) = (config.files(), watch::stamps(&config.files()));
            let read = Arc::new(Tls::read(config.clone()).map_err(StartError::Tls)?);
            tls = Some(read.clone());
            let reread = Box::new(move || Ok(read.reread()?));
            watched.push((Watched { what: Renewed::Tls, files, reread }, begun));
        }
        let mut tokens = None;
        if let Some(path) = &config.tokens {
            let files = vec![path.clone()];
            let begun = watch::stamps(&files);
            let read = Arc::new(Tokens::read(path.clone()).map_err(StartError::Tokens)?);
            tokens = Some(read.clone());
            let reread = Box::new(move || Ok(read.reread()?));
            watched.push((Watched { what: Renewed::Tokens, files, reread }, begun));
        }
        Ok(Self { tls, tokens, watched })
    }
}

/// From the first model to the last answer, or to the loss of a device. `background` ends with it.
async fn live(
    config: Config,
    state: Arc<State>,
    mut servers: JoinSet<usize>,
    cutting: CancellationToken,
    mut background: JoinSet<()>,
    mut exporting: Option<Exporting>,
) -> Result<(), LoadError> {
    let mut lost = state.engine.lost();
    let is_lost = async move {
        let fault = lost.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
        match fault {
            Some(fault) => fault,
            None => std::future::pending().await, // nothing can be lost any more
        }
    };
    let in_order = live_in_order(config, &state, &mut servers, cutting, &mut background, &mut exporting);
    let fault = tokio::select! {
        ended = in_order => return ended,
        fault = is_lost => fault,
    };
    // what waited is answered already; what runs elsewhere is finished, and all answers are sent
    state.leaving.cancel();
    state.draining.cancel();
    state.calls.close();
    let last_answers = async {
        state.calls.wait().await;
        state.closing.cancel();
        while servers.join_next().await.is_some() {}
        flush(&mut exporting).await;
    };
    let outcome = tokio::time::timeout(LOST_LIMIT, last_answers).await;
    tracing::error!(fault, all_answered = outcome.is_ok(), "a device is lost: the process ends");
    drop(background);
    Err(LoadError::DeviceLost(fault))
}

/// From the first model to the last answer.
async fn live_in_order(
    config: Config,
    state: &Arc<State>,
    servers: &mut JoinSet<usize>,
    cutting: CancellationToken,
    background: &mut JoinSet<()>,
    exporting: &mut Option<Exporting>,
) -> Result<(), LoadError> {
    tokio::select! {
        loaded = state.load(config.models) => {
            loaded?;
            background.spawn(admin::reload_when_wanted(state.clone()));
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
        flush(exporting).await;
    };
    let outcome = tokio::time::timeout(config.drain_limit, orderly).await;
    match outcome {
        Ok(()) => tracing::info!("stopped"),
        Err(_) => {
            let unfinished_calls = state.calls.len();
            cutting.cancel();
            let mut cut_connections = 0;
            let cut = async {
                while let Some(num_cut) = servers.join_next().await {
                    cut_connections += num_cut.unwrap_or(0);
                }
            };
            // each only has to be told: who cannot be is left behind
            let _ = tokio::time::timeout(CUT_TIME, cut).await;
            tracing::warn!(unfinished_calls, cut_connections, "stopped at the limit");
        }
    }
    Ok(())
}

/// What the collector was not told yet.
async fn flush(exporting: &mut Option<Exporting>) {
    if let Some(exporting) = exporting {
        exporting.flush().await;
    }
}

fn reward_routes<H: Health>(state: &Arc<State>, health: HealthServer<H>) -> Router {
    let inference = Inference(state.clone());
    let names = [SERVICE_NAME, name_of(&health), name_of(&inference)];
    let routes = Routes::new(Reward(state.clone())).add_service(health).add_service(inference);
    with_reflection(routes, &names).prepare().into_axum_router()
}

fn admin_routes(state: &Arc<State>) -> Router {
    let routes = Routes::new(AdminServiceServer::new(Admin(state.clone())));
    with_reflection(routes, &[admin_service_server::SERVICE_NAME]).prepare().into_axum_router()
}

/// What HTTP/1 is told on a gRPC port.
fn notice(service: &str, ports: &Ports, tls: Option<&Tls>) -> String {
    let scheme = |port| if tls.is_some_and(|tls| tls.config().covers(port)) { "https" } else { "http" };
    let without = if scheme(Port::Reward) == "http" { " without TLS" } else { "" };
    let place = |port| match ports.get(port) {
        Some(address) if address.ip().is_unspecified() => {
            format!("port {} of this machine", address.port())
        }
        Some(address) => format!("{}://{address}", scheme(port)),
        None => "server.http, once it is set".to_owned(),
    };
    format!(
        "this is a gRPC port of rewarm ({service}): it speaks HTTP/2{without}, to gRPC clients\n\
         for HTTP/1 there are /metrics, /healthz and /readyz at {}, and rewards at {}\n",
        place(Port::Metrics),
        place(Port::Http)
    )
}

/// What HTTP/2 is told on a port of HTTP/1; gRPC's clients repeat the status, and some of them this.
fn http_notice(ports: &Ports) -> String {
    let grpc = ports.get(Port::Reward).map_or(0, |address| address.port());
    format!("this port of rewarm speaks HTTP/1.1, and gRPC is on port {grpc}\n")
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
