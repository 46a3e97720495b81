//! Asks a server: for the health of its models, or for rewards.
//!
//! A room of its own beside [`service`](crate::service): it speaks the contract and knows neither engine nor
//! models, and [`offline`](crate::offline), whose [`Backend`] it is, may not name tonic.

mod http;
mod load;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub use crate::client::load::LoadClient;
pub use crate::client::load::Over;
use crate::model::scorer::Reward;
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

/// Fails unless the server serves: all of it, or one variant.
pub fn check_health(server: &str, variant: Option<&str>, timeout: Duration) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let channel = connect(server, timeout).await?;
        let service = variant.unwrap_or("rewarm.v1.RewardService").to_owned();
        let status = health(server, channel, &service, timeout).await?.map_err(in_words)?;
        ensure!(status == ServingStatus::Serving, "{service} is {}", status.as_str_name());
        Ok(())
    })
}

/// Rewards from a server.
pub struct Client {
    runtime: Runtime,
    service: RewardServiceClient<Channel>,
    variant: String,
    truncation: proto::Truncation,
}

impl Client {
    /// Connects to `server`. An empty `variant` leaves the choice to the server's routing.
    pub fn connect(
        server: &str,
        variant: String,
        truncation: Truncation,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let channel = runtime.block_on(greet(server, timeout))?;
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
    mut service: RewardServiceClient<Channel>,
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

async fn connect(server: &str, timeout: Duration) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(server.to_owned()).context(format!("`{server}` is not a URL"))?;
    ensure!(endpoint.uri().scheme().is_some(), "`{server}` is not a URL: write http://{server}");
    let endpoint = endpoint
        .connect_timeout(timeout)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(timeout)
        .tcp_nodelay(true);
    endpoint.connect().await.context(format!("connect to {server}"))
}

/// Connects, and makes sure that somebody is there who speaks gRPC: a port may accept and then say nothing.
async fn greet(server: &str, timeout: Duration) -> anyhow::Result<Channel> {
    let channel = connect(server, timeout).await?;
    match health(server, channel.clone(), "", timeout).await? {
        // What comes from the transport, and not from a server, has a cause.
        Err(status) if std::error::Error::source(&status).is_some() => Err(in_words(status))
            .context(format!("{server} does not speak gRPC without TLS: is it the port of a rewarm server?")),
        // A server that does not serve, or tells no health, is one.
        _ => Ok(channel),
    }
}

async fn health(
    server: &str,
    channel: Channel,
    service: &str,
    timeout: Duration,
) -> anyhow::Result<Result<ServingStatus, Status>> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = tokio::time::timeout(timeout, HealthClient::new(channel).check(request)).await;
    let answer = answer.map_err(|_| {
        anyhow!(
            "{server} accepts connections and says nothing for {timeout:?}: is it the gRPC port of a rewarm \
             server, without TLS, and does it run? (--timeout SECONDS waits longer)"
        )
    })?;
    Ok(answer.map(|response| response.into_inner().status()))
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the client")
}

fn in_words(status: Status) -> anyhow::Error {
    anyhow!("the server answered {:?}: {}", status.code(), status.message())
}
