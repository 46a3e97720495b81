//! Puts load on a server, for `rewarm bench server`.
//!
//! One connection, as one trainer has. All callers live on the thread that asks, so that the load costs the
//! server's machine little; what is due at a time is paced by a thread of its own, since the async clock counts
//! whole milliseconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::bench::Label;
use crate::bench::load::Outcome;
use crate::bench::load::Pace;
use crate::bench::load::Target;
use crate::client::greet;
use crate::client::in_words;
use crate::client::runtime;
use crate::client::to_proto;
use crate::offline::Stop;
use crate::proto;
use crate::proto::reward_service_client::RewardServiceClient;
use crate::text::Input;

/// How often a run looks whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// A connection to a server under load.
pub struct LoadClient {
    runtime: Runtime,
    service: RewardServiceClient<Channel>,
}

impl LoadClient {
    /// Connects to `server`, which may take so long to say anything.
    pub fn connect(server: &str, timeout: Duration) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let channel = runtime.block_on(greet(server, timeout))?;
        Ok(Self { runtime, service: RewardServiceClient::new(channel) })
    }
}

impl Target for LoadClient {
    fn variants(&mut self) -> anyhow::Result<Vec<Label>> {
        let info = self.runtime.block_on(self.service.get_server_info(proto::GetServerInfoRequest {}));
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
        let caller =
            Caller { service: self.service.clone(), variant: variant.into(), requests: requests.into() };
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
    service: RewardServiceClient<Channel>,
    variant: Arc<str>,
    requests: Arc<[Vec<Input>]>,
}

impl Caller {
    /// Sends one request, which was due at `due`.
    async fn send(&mut self, index: usize, due: Instant) -> Outcome {
        let sample =
            |input: &Input| proto::Sample { id: String::new(), input: Some(to_proto(input.clone())) };
        let samples: Vec<proto::Sample> = self.requests[index].iter().map(sample).collect();
        let request =
            proto::ScoreRequest { samples, variant: self.variant.to_string(), ..Default::default() };
        let response = self.service.score(request).await;
        let latency = due.elapsed();
        let mut outcome = Outcome::default();
        match response {
            Ok(response) => {
                outcome.latencies.push(latency);
                for result in response.into_inner().results {
                    match result.outcome {
                        Some(proto::sample_result::Outcome::Score(score)) => {
                            outcome.samples += 1;
                            outcome.tokens += score.tokens as usize;
                        }
                        Some(proto::sample_result::Outcome::Error(_)) | None => outcome.failed_samples += 1,
                    }
                }
            }
            Err(status) => outcome.errors = BTreeMap::from([(name(status.code()), 1)]),
        }
        outcome
    }
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
