//! Asks a server: for the health of its models, or for rewards.
//!
//! A room of its own beside [`service`](crate::service): it speaks the contract and knows neither engine nor
//! models, and [`offline`](crate::offline), whose [`Backend`] it is, may not name tonic.

mod admin;
mod credentials;
mod http;
mod load;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use ::http::Uri;
use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub use crate::client::admin::AdminClient;
pub use crate::client::admin::Servers;
pub use crate::client::admin::Set;
pub use crate::client::credentials::CredentialFiles;
pub use crate::client::credentials::Credentials;
pub use crate::client::credentials::Token;
pub use crate::client::credentials::read_ca;
pub use crate::client::load::LoadClient;
pub use crate::client::load::Over;
use crate::model::scorer::Reward;
use crate::offline::info::Lines;
use crate::offline::score::Backend;
use crate::offline::score::Scored;
use crate::proto;
use crate::proto::reward_service_client::RewardServiceClient;
use crate::text::Conversation;
use crate::text::Input;
use crate::text::Message;
use crate::text::Truncation;

/// How long a server may take to say anything at all, unless the user says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// While an answer takes its time the server is asked whether it lives, as often as proxies suffer it.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Samples in one request: enough to fill a batch, few enough that a refusal costs little.
const REQUEST_SAMPLES: usize = 64;
/// Bytes of text in one request, roughly; well below what a server takes.
const REQUEST_BYTES: usize = 4 << 20;
/// Requests on their way at a time.
const CONCURRENT_REQUESTS: usize = 8;
/// A server that is busy, loading or gone for longer is given up.
const PATIENCE: Duration = Duration::from_secs(600);
/// The first and the longest pause before trying again, where the server names none.
const BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// A server, and how it is asked.
#[derive(Clone)]
pub struct Server {
    /// With https:// it speaks TLS.
    pub url: String,
    /// How long it may take to say anything at all.
    pub timeout: Duration,
    /// What it is shown.
    pub credentials: Credentials,
}

/// A connection that shows the credentials.
type Connection = InterceptedService<Channel, Credentials>;

/// Fails unless the server serves: all of it, or one variant.
pub fn check_health(server: &Server, variant: Option<&str>) -> anyhow::Result<()> {
    runtime()?.block_on(async { is_serving(server, connect(server).await?, variant).await })
}

/// As [`check_health`], of a server on this machine, with TLS or without: its certificate is of the name that others know
/// it by, so it is not looked at, as in the probes of whoever starts containers.
pub fn check_health_here(
    address: SocketAddr,
    variant: Option<&str>,
    timeout: Duration,
) -> anyhow::Result<()> {
    let server = Server { url: format!("http://{address}"), timeout, credentials: Credentials::default() };
    runtime()?.block_on(async {
        let without = async { is_serving(&server, connect(&server).await?, variant).await };
        let Err(problem) = without.await else { return Ok(()) };
        match connect_to_any(address, &server).await {
            Ok(channel) => is_serving(&server, channel, variant).await,
            Err(_) => Err(problem), // it has no TLS either
        }
    })
}

async fn is_serving(server: &Server, channel: Connection, variant: Option<&str>) -> anyhow::Result<()> {
    let service = variant.unwrap_or("rewarm.v1.RewardService").to_owned();
    let status = health(server, channel, &service).await?.map_err(in_words)?;
    ensure!(status == ServingStatus::Serving, "{service} is {}", status.as_str_name());
    Ok(())
}

/// Over TLS, whatever certificate the server shows.
async fn connect_to_any(address: SocketAddr, server: &Server) -> anyhow::Result<Connection> {
    let dial = tower::service_fn(move |_: Uri| async move {
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(credentials::trusting_any()));
        std::io::Result::Ok(TokioIo::new(connector.connect(ServerName::from(address.ip()), stream).await?))
    });
    let endpoint = Endpoint::from_shared(server.url.clone())?;
    let connecting = tokio::time::timeout(server.timeout, endpoint.connect_with_connector(dial)).await;
    Ok(InterceptedService::new(connecting??, Credentials::default()))
}

/// Rewards from a server.
pub struct Client {
    runtime: Runtime,
    service: RewardServiceClient<Connection>,
    variant: String,
    truncation: proto::Truncation,
}

impl Client {
    /// Connects to `server`. An empty `variant` leaves the choice to the server's routing.
    pub fn connect(server: &Server, variant: String, truncation: Truncation) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let channel = runtime.block_on(greet(server))?;
        let truncation = match truncation {
            Truncation::Reject => proto::Truncation::Reject,
            Truncation::Left => proto::Truncation::Left,
            Truncation::Right => proto::Truncation::Right,
        };
        Ok(Self { runtime, service: RewardServiceClient::new(channel), variant, truncation })
    }

    fn request(&self, samples: Vec<proto::Sample>) -> proto::ScoreRequest {
        proto::ScoreRequest {
            samples,
            variant: self.variant.clone(),
            truncation: self.truncation.into(),
            priority: proto::Priority::Background.into(),
            return_members: true,
            ..Default::default()
        }
    }
}

impl Backend for Client {
    fn score(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Result<Scored, String>>> {
        let requests: Vec<_> = split(inputs).into_iter().map(|samples| self.request(samples)).collect();
        let mut responses: Vec<Option<Vec<Result<Scored, String>>>> = requests.iter().map(|_| None).collect();
        let slots = Arc::new(Semaphore::new(CONCURRENT_REQUESTS));
        let service = &self.service;
        self.runtime.block_on(async {
            let mut calls = JoinSet::new();
            for (index, request) in requests.into_iter().enumerate() {
                let (service, slots) = (service.clone(), slots.clone());
                calls.spawn(async move {
                    let _slot = slots.acquire_owned().await;
                    (index, patiently(service, request).await)
                });
            }
            while let Some(call) = calls.join_next().await {
                let (index, outcomes) = call?;
                responses[index] = Some(outcomes?);
            }
            anyhow::Ok(())
        })?;
        Ok(responses.into_iter().flatten().flatten().collect())
    }
}

/// Asks until there is an answer, as long as the server says that asking again helps.
async fn patiently(
    mut service: RewardServiceClient<Connection>,
    request: proto::ScoreRequest,
) -> anyhow::Result<Vec<Result<Scored, String>>> {
    let [mut backoff, longest] = BACKOFF;
    let started = Instant::now();
    loop {
        match service.score(request.clone()).await {
            Ok(response) => return outcomes(response.into_inner(), request.samples.len()),
            Err(status) => {
                let is_passing = matches!(status.code(), Code::ResourceExhausted | Code::Unavailable);
                if !is_passing || started.elapsed() > PATIENCE {
                    bail!(in_words(status));
                }
                tokio::time::sleep(pushback(&status).unwrap_or(backoff)).await;
                backoff = (backoff * 2).min(longest);
            }
        }
    }
}

/// When the server wants to be asked again.
fn pushback(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Requests of bounded size, in the order of `inputs`.
fn split(inputs: Vec<Input>) -> Vec<Vec<proto::Sample>> {
    let mut requests: Vec<Vec<proto::Sample>> = Vec::new();
    let mut bytes = 0;
    for input in inputs {
        let sample = proto::Sample { id: String::new(), input: Some(to_proto(input)) };
        bytes += prost::Message::encoded_len(&sample);
        match requests.last_mut() {
            Some(request) if request.len() < REQUEST_SAMPLES && bytes <= REQUEST_BYTES => {
                request.push(sample)
            }
            _ => {
                bytes = prost::Message::encoded_len(&sample);
                requests.push(vec![sample]);
            }
        }
    }
    requests
}

fn to_proto(input: Input) -> proto::sample::Input {
    use proto::sample::Input as Wire;
    match input {
        Input::Text { prompt, response } => Wire::Text(proto::Text { prompt, response }),
        Input::Conversation(Conversation { messages, tools, arguments }) => {
            Wire::Conversation(proto::Conversation {
                messages: messages.into_iter().map(message_to_proto).collect(),
                tools_json: tools.map_or_else(String::new, |tools| json!(tools).to_string()),
                chat_template_kwargs_json: if arguments.is_empty() {
                    String::new()
                } else {
                    json!(arguments).to_string()
                },
            })
        }
        Input::Formatted(text) => Wire::Formatted(text),
        Input::TokenIds(ids) => Wire::TokenIds(proto::TokenIds { ids }),
    }
}

fn message_to_proto(message: Message) -> proto::Message {
    match message.plain() {
        Some((role, content)) => {
            proto::Message { role: role.to_owned(), content: content.to_owned(), json: String::new() }
        }
        None => proto::Message { json: json!(message).to_string(), ..Default::default() },
    }
}

fn outcomes(response: proto::ScoreResponse, samples: usize) -> anyhow::Result<Vec<Result<Scored, String>>> {
    let results = response.results;
    ensure!(results.len() == samples, "the server answered {} of {samples} samples", results.len());
    let outcome = |result: proto::SampleResult| match result.outcome {
        Some(proto::sample_result::Outcome::Score(score)) => Ok(Scored {
            reward: Reward {
                reward: score.reward,
                member_rewards: score.member_rewards,
                reward_std: score.reward_std,
            },
            tokens: score.tokens as usize,
            truncated_tokens: score.truncated_tokens as usize,
        }),
        Some(proto::sample_result::Outcome::Error(error)) => Err(error.message),
        None => Err("the server answered without a reward".to_owned()),
    };
    Ok(results.into_iter().map(outcome).collect())
}

async fn connect(server: &Server) -> anyhow::Result<Connection> {
    let Server { url, timeout, credentials } = server;
    refuse_secrets(url)?;
    let endpoint = Endpoint::from_shared(url.clone()).context(format!("`{url}` is not a URL"))?;
    let scheme = endpoint.uri().scheme_str();
    ensure!(scheme.is_some(), "`{url}` is not a URL: write http://{url}");
    let is_tls = scheme == Some("https");
    warn_of_plain_token(server, is_tls, endpoint.uri().host());
    let endpoint = endpoint
        .connect_timeout(*timeout)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(*timeout)
        .tcp_nodelay(true);
    let endpoint = match is_tls {
        true => endpoint.tls_config(credentials.tls()).context("set up TLS")?,
        false => endpoint,
    };
    let channel = endpoint.connect().await.map_err(|error| {
        anyhow!("connect to {url}: {}", words::of_connection(&error, url, credentials.has_ca()))
    })?;
    Ok(InterceptedService::new(channel, credentials.clone()))
}

/// Fails for a URL with a secret in it, which errors and logs would repeat.
fn refuse_secrets(url: &str) -> anyhow::Result<()> {
    let authority =
        url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    ensure!(
        !authority.contains('@'),
        "a URL with a name or a token in it is not taken here: give the token by REWARM_TOKEN or --token-file"
    );
    Ok(())
}

fn warn_of_plain_token(server: &Server, is_tls: bool, host: Option<&str>) {
    let is_here = host.is_some_and(|host| {
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    });
    if server.credentials.has_token() && !is_tls && !is_here {
        tracing::warn!(server = server.url, "the token goes over the network in plain text: use https://");
    }
}

/// Connects, and makes sure that somebody is there who speaks gRPC: a port may accept and then say nothing.
async fn greet(server: &Server) -> anyhow::Result<Connection> {
    let channel = connect(server).await?;
    // A server that does not serve, or tells no health, is one.
    let _ = health(server, channel.clone(), "").await?;
    Ok(channel)
}

/// What a server serves: of itself, and of each variant, a name and what there is to tell.
pub fn describe(server: &Server) -> anyhow::Result<Vec<(String, Lines)>> {
    let runtime = runtime()?;
    let mut service = RewardServiceClient::new(runtime.block_on(greet(server))?);
    let asked = runtime.block_on(service.get_server_info(proto::GetServerInfoRequest {}));
    let info = asked.map_err(in_words)?.into_inner();
    let weights = info.routing.unwrap_or_default().weights.into_iter().collect::<BTreeMap<_, _>>();
    let weights: Vec<String> = weights.into_iter().map(|(name, weight)| format!("{name} {weight}")).collect();
    let of_server = vec![
        ("version", info.version),
        ("routing", weights.join(", ")),
        (
            "limits",
            format!(
                "{} samples and {} bytes a request, {} tokens waiting",
                info.max_samples_per_request, info.max_message_bytes, info.max_queue_tokens
            ),
        ),
    ];
    let mut told = vec![("server".to_owned(), of_server)];
    for variant in info.variants {
        let mut lines = vec![
            ("mode", variant.mode),
            ("reduction", variant.reduction),
            ("architecture", variant.architecture),
            ("pooling", variant.pooling),
            ("text rule", variant.text_rule),
            ("dtype", format!("{} on {}", variant.dtype, variant.device)),
            ("limit", format!("{} tokens", variant.max_tokens)),
            ("fingerprint", variant.fingerprint),
            ("notes", variant.notes.join("; ")),
        ];
        for member in variant.members {
            let source = if member.source.is_empty() { member.path } else { member.source };
            let calibration = member.calibration.map_or_else(String::new, |calibration| {
                format!(", calibrated by mean {}, std {}", calibration.mean, calibration.std)
            });
            lines.push((
                "member",
                format!("{source} ({}), share {}{calibration}", member.digest, member.coefficient),
            ));
        }
        told.push((variant.name, lines));
    }
    Ok(told)
}

/// What a server says of its health. Fails where no server of gRPC says anything.
async fn health(
    server: &Server,
    channel: Connection,
    service: &str,
) -> anyhow::Result<Result<ServingStatus, Status>> {
    let Server { url, timeout, .. } = server;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = tokio::time::timeout(*timeout, HealthClient::new(channel).check(request)).await;
    let answer = answer.map_err(|_| {
        anyhow!(
            "{url} accepts connections and says nothing for {timeout:?}{} Does it run? (--timeout SECONDS waits longer)",
            suspicion(url)
        )
    })?;
    match answer {
        // What comes from the transport, and not from a server, has a cause.
        Err(status) if std::error::Error::source(&status).is_some() => {
            match words::of_tls_within(&status, server.credentials.has_ca()) {
                Some(problem) => bail!("{url}: {problem}"),
                None => bail!("{url} does not speak gRPC{}", suspicion(url)),
            }
        }
        answer => Ok(answer.map(|response| response.into_inner().status())),
    }
}

/// What may be the matter with a port that does not answer as it should.
fn suspicion(url: &str) -> &'static str {
    match url.starts_with("https:") {
        true => " with TLS: is it the gRPC port of a rewarm server that has [server.tls]?",
        false => " without TLS: is it the gRPC port of a rewarm server, or one with TLS (https://)?",
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the client")
}

fn in_words(status: Status) -> anyhow::Error {
    anyhow!("the server answered {:?}: {}", status.code(), status.message())
}
