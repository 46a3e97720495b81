//! Puts load on a server, for `rewarm bench server`.
//!
//! Over gRPC one connection, as one trainer has; over HTTP one for each caller, or for each request. All callers live on the thread that asks, so that the load costs the
//! server's machine little; what is due at a time is paced by a thread of its own, since the async clock counts
//! whole milliseconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Code;

use crate::bench::Label;
use crate::bench::load::Outcome;
use crate::bench::load::Pace;
use crate::bench::load::Target;
use crate::client::Connection;
use crate::client::Server;
use crate::client::greet;
use crate::client::http::Http;
use crate::client::in_words;
use crate::client::runtime;
use crate::client::to_proto;
use crate::offline::Stop;
use crate::proto;
use crate::proto::reward_service_client::RewardServiceClient;
use crate::text::Input;

/// How often a run looks whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// What the load goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// One connection for all.
    Grpc,
    /// A connection for each caller.
    Http,
    /// A connection for each request, as some trainers have it.
    HttpNew,
}

/// A server under load.
pub struct LoadClient {
    runtime: Runtime,
    way: Way,
}

/// How a caller asks.
#[derive(Clone)]
enum Way {
    Grpc(RewardServiceClient<Connection>),
    Http(Http),
}

impl LoadClient {
    /// Connects to `server`.
    pub fn connect(server: &Server, over: Over) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let way = match over {
            Over::Grpc => Way::Grpc(RewardServiceClient::new(runtime.block_on(greet(server))?)),
            Over::Http | Over::HttpNew => Way::Http(Http::new(server, over == Over::Http)?),
        };
        Ok(Self { runtime, way })
    }
}

impl Target for LoadClient {
    fn variants(&mut self) -> anyhow::Result<Vec<Label>> {
        let service = match &mut self.way {
            Way::Grpc(service) => service,
            Way::Http(http) => return self.runtime.block_on(labels(http)),
        };
        let info = self.runtime.block_on(service.get_server_info(proto::GetServerInfoRequest {}));
        let label = |variant: proto::VariantInfo| Label {
            name: variant.name,
            mode: variant.mode,
            members: variant.members.into_iter().map(|member| member.path).collect(),
            dtype: variant.dtype,
            device: variant.device,
            architecture: variant.architecture,
            max_tokens: variant.max_tokens as usize,
            fingerprint: variant.fingerprint,
        };
        Ok(info.map_err(in_words)?.into_inner().variants.into_iter().map(label).collect())
    }

    fn load(
        &mut self,
        variant: &str,
        requests: &[Vec<Input>],
        pace: &Pace,
        stop: &Stop,
    ) -> anyhow::Result<Option<Outcome>> {
        let caller = Caller { way: self.way.clone(), variant: variant.into(), requests: requests.into() };
        self.runtime.block_on(async {
            let finished = async {
                match pace {
                    Pace::Closed { callers } => closed(caller, *callers).await,
                    Pace::Open { due } => open(caller, due, stop).await,
                }
            };
            tokio::select! {
                outcome = finished => outcome.map(|outcome| (!stop.is_set()).then_some(outcome)),
                () = stopped(stop) => Ok(None),
            }
        })
    }
}

async fn stopped(stop: &Stop) {
    while !stop.is_set() {
        tokio::time::sleep(STOP_POLL).await;
    }
}

/// Whoever sends requests.
#[derive(Clone)]
struct Caller {
    way: Way,
    variant: Arc<str>,
    requests: Arc<[Vec<Input>]>,
}

impl Caller {
    /// Sends one request, which was due at `due`.
    async fn send(&mut self, index: usize, due: Instant) -> Outcome {
        let inputs = &self.requests[index];
        let answer = match &mut self.way {
            Way::Grpc(service) => ask_grpc(service, &self.variant, inputs).await,
            Way::Http(http) => ask_http(http, &self.variant, inputs).await,
        };
        let latency = due.elapsed();
        let mut outcome = Outcome::default();
        match answer {
            Ok(samples) => {
                outcome.latencies.push(latency);
                for tokens in samples {
                    match tokens {
                        Some(tokens) => {
                            outcome.samples += 1;
                            outcome.tokens += tokens;
                        }
                        None => outcome.failed_samples += 1,
                    }
                }
            }
            Err(code) => outcome.errors = BTreeMap::from([(code, 1)]),
        }
        outcome
    }
}

/// The tokens of each sample that has a reward, or the name of the status.
type Answered = Result<Vec<Option<usize>>, String>;

async fn ask_grpc(
    service: &mut RewardServiceClient<Connection>,
    variant: &str,
    inputs: &[Input],
) -> Answered {
    let sample = |input: &Input| proto::Sample { id: String::new(), input: Some(to_proto(input.clone())) };
    let samples: Vec<proto::Sample> = inputs.iter().map(sample).collect();
    let request = proto::ScoreRequest { samples, variant: variant.to_owned(), ..Default::default() };
    let response = service.score(request).await.map_err(|status| name(status.code()))?;
    let tokens = |result: proto::SampleResult| match result.outcome {
        Some(proto::sample_result::Outcome::Score(score)) => Some(score.tokens as usize),
        Some(proto::sample_result::Outcome::Error(_)) | None => None,
    };
    Ok(response.into_inner().results.into_iter().map(tokens).collect())
}

async fn ask_http(http: &mut Http, variant: &str, inputs: &[Input]) -> Answered {
    #[derive(Deserialize)]
    struct Response {
        results: Vec<Sample>,
    }
    #[derive(Deserialize)]
    struct Sample {
        score: Option<Score>,
    }
    #[derive(Deserialize)]
    struct Score {
        tokens: usize,
    }
    let request = json!({"samples": inputs, "variant": variant}).to_string();
    match http.ask("POST", "/rewarm/v1/score", &request).await {
        Ok((200, body)) => {
            let response: Response = serde_json::from_slice(&body).map_err(|_| "NO_JSON".to_owned())?;
            Ok(response.results.into_iter().map(|sample| Some(sample.score?.tokens)).collect())
        }
        Ok((status, body)) => {
            let code = serde_json::from_slice::<Value>(&body).ok();
            let code = code.as_ref().and_then(|body| body["code"].as_str());
            Err(code.map_or_else(|| status.to_string(), str::to_owned))
        }
        Err(_) => Err("UNAVAILABLE".to_owned()),
    }
}

async fn labels(http: &mut Http) -> anyhow::Result<Vec<Label>> {
    let (status, body) = http.ask("GET", "/rewarm/v1/info", "").await?;
    ensure!(status == 200, "the server answers {status}: {}", String::from_utf8_lossy(&body));
    let info: Value = serde_json::from_slice(&body).context("read what the server tells of itself")?;
    let label = |variant: &Value| {
        let text = |name: &str| variant[name].as_str().unwrap_or_default().to_owned();
        let members = variant["members"].as_array().into_iter().flatten();
        Label {
            name: text("name"),
            mode: text("mode"),
            members: members.map(|it| it["path"].as_str().unwrap_or_default().to_owned()).collect(),
            dtype: text("dtype"),
            device: text("device"),
            architecture: text("architecture"),
            max_tokens: variant["max_tokens"].as_u64().unwrap_or_default() as usize,
            fingerprint: text("fingerprint"),
        }
    };
    Ok(info["variants"].as_array().into_iter().flatten().map(label).collect())
}

/// Each caller takes the next request as soon as it has its answer.
async fn closed(caller: Caller, callers: usize) -> anyhow::Result<Outcome> {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..callers.min(caller.requests.len()) {
        let (mut caller, next) = (caller.clone(), next.clone());
        running.spawn(async move {
            let mut outcome = Outcome::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= caller.requests.len() {
                    return outcome;
                }
                outcome.add(caller.send(index, Instant::now()).await);
            }
        });
    }
    gather(running, start).await
}

/// Each request goes when it is due, whatever became of the others.
async fn open(caller: Caller, due: &[Duration], stop: &Stop) -> anyhow::Result<Outcome> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let start = Instant::now();
    let (due, stop) = (due.to_vec(), stop.clone());
    std::thread::spawn(move || {
        for (index, after) in due.into_iter().enumerate() {
            let due = start + after;
            while let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                std::thread::sleep(wait.min(STOP_POLL));
                if stop.is_set() {
                    return;
                }
            }
            if sender.send((index, due)).is_err() {
                return; // nobody waits for the run any more
            }
        }
    });
    let mut running = JoinSet::new();
    while let Some((index, due)) = receiver.recv().await {
        let mut caller = caller.clone();
        running.spawn(async move { caller.send(index, due).await });
    }
    gather(running, start).await
}

async fn gather(mut running: JoinSet<Outcome>, start: Instant) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    while let Some(done) = running.join_next().await {
        outcome.add(done.context("a caller of the bench")?);
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// As the protocol writes it: RESOURCE_EXHAUSTED.
fn name(code: Code) -> String {
    let mut name = String::new();
    for (index, letter) in format!("{code:?}").chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_name_on_the_wire() {
        assert_eq!(name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
        assert_eq!(name(Code::Ok), "OK");
        assert_eq!(name(Code::Unavailable), "UNAVAILABLE");
    }
}
