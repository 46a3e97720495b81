//! A real server on free ports, with models that do what a test asks of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rewarm::engine;
use rewarm::model::ModelError;
use rewarm::model::device::Placement;
use rewarm::model::pooling::Pooling;
use rewarm::model::scorer::Forward;
use rewarm::model::scorer::Reduction;
use rewarm::model::scorer::Scorer;
use rewarm::model::variant::MemberInfo;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::model::variant::VariantInfo;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::error::OpsError;
use rewarm::proto;
use rewarm::proto::admin_service_client::AdminServiceClient;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::service;
use rewarm::service::LoadError;
use rewarm::service::Loaded;
use rewarm::service::Models;
use rewarm::service::Port;
use rewarm::service::Ports;
use rewarm::service::Running;
use rewarm::service::Source;
use rewarm::text::SampleTokenizer;
use rewarm::text::TextOptions;
use rewarm::text::TextRule;
use rewarm::values::reference::Reference;
use rewarm_cuda::driver::CudaError;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The longest sample of the fake models, in tokens.
pub(crate) const MAX_TOKENS: usize = 4096;

/// Waits at most so long for what should happen soon: a test that hangs should fail.
pub(crate) const SOON: Duration = Duration::from_secs(30);

// ---- models ----

/// The reward is the sum of the token ids, times `scale`. Words are numbers: "7" has token id 7.
#[derive(Default)]
pub(crate) struct Fake {
    scale: f32,
    gate: Gate,
    pub(crate) forwards: AtomicUsize,
    /// Samples that reached the model.
    pub(crate) samples: AtomicUsize,
    /// Answers NaN.
    pub(crate) is_nan: AtomicBool,
    /// Fails.
    pub(crate) is_broken: AtomicBool,
}

/// A sample that holds this token makes the forward fail; see [`Fake`].
pub(crate) const POISON: u32 = 666;
/// A sample that holds this token is the end of the card that it is computed on.
pub(crate) const FAULT: u32 = 667;
/// A sample that holds this token has a NaN reward.
pub(crate) const NAN: u32 = 999;

impl Fake {
    pub(crate) fn new(scale: f32) -> Arc<Self> {
        Arc::new(Self { scale, ..Self::default() })
    }

    /// Forwards wait from now on, until [`Fake::open`].
    pub(crate) fn close(&self) {
        self.gate.set(true);
    }

    pub(crate) fn open(&self) {
        self.gate.set(false);
    }
}

#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, is_closed: bool) {
        *self.is_closed.lock().unwrap() = is_closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.is_closed.lock().unwrap(), |is_closed| *is_closed).unwrap());
    }
}

impl Forward for Fake {
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        self.forwards.fetch_add(1, Ordering::SeqCst);
        self.samples.fetch_add(batch.len(), Ordering::SeqCst);
        self.gate.pass();
        if self.is_broken.load(Ordering::SeqCst) || batch.token_ids().contains(&POISON) {
            return Err(ModelError::Unsupported("told to fail".to_owned()));
        }
        if batch.token_ids().contains(&FAULT) {
            let (card, problem) = ("a card".to_owned(), "error 700".to_owned());
            return Err(OpsError::from(CudaError::Fault { card, problem }).into());
        }
        let is_nan = self.is_nan.load(Ordering::SeqCst);
        let reward = |ids: &[u32]| match is_nan || ids.contains(&NAN) {
            true => f32::NAN,
            false => ids.iter().sum::<u32>() as f32 * self.scale,
        };
        Ok(batch.sequences().map(|ids| reward(&ids)).collect())
    }
}

/// A tokenizer whose words are the numbers below 1000; "?" is any other word.
pub(crate) fn tokenizer() -> Arc<SampleTokenizer> {
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        (0..1000).map(|id| (id.to_string(), id.into())).collect();
    vocab.insert("?".to_owned(), 1000.into());
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "?" },
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let options = TextOptions {
        vocab_size: 1001,
        max_tokens: MAX_TOKENS,
        default_rule: Some(TextRule::Concatenation),
        ..TextOptions::default()
    };
    Arc::new(SampleTokenizer::load(folder.path(), &options).unwrap())
}

/// Names the fake and serves it; nothing is read from disk.
pub(crate) fn variant(name: &str, model: &Arc<Fake>) -> Variant {
    ensemble(name, std::slice::from_ref(model))
}

/// One fake is a merged model; several are an ensemble with the mean.
pub(crate) fn ensemble(name: &str, models: &[Arc<Fake>]) -> Variant {
    let is_ens = models.len() > 1;
    let member = |index: usize| MemberInfo {
        path: format!("fake/{index}"),
        source: None,
        coefficient: 1.0,
        digest: format!("digest-{index}"),
        calibration: None,
    };
    let info = VariantInfo {
        name: name.to_owned(),
        mode: if is_ens { Mode::Ens } else { Mode::Warm },
        members: (0..models.len()).map(member).collect(),
        reduction: is_ens.then_some(Reduction::Mean),
        dtype: rewarm::values::Format::F32,
        placement: Placement::cpu(),
        max_tokens: MAX_TOKENS,
        fingerprint: format!("fingerprint-of-{name}"),
        parts: Default::default(),
        architecture: "Fake".to_owned(),
        text_rule: Some(TextRule::Concatenation),
        pooling: Pooling::Cls,
        notes: Vec::new(),
    };
    let scorer = match models {
        [only] => Scorer::warm(only.clone()),
        _ => Scorer::ens(
            models.iter().map(|model| (model.clone() as Arc<dyn Forward>, None)).collect(),
            Reduction::Mean,
        ),
    };
    let reference = Reference::default();
    Variant { info, scorer, others: Vec::new(), tokenizer: tokenizer(), reference }
}

// ---- the server ----

type Load = Box<dyn Fn(&str) -> Result<Variant, String> + Send + Sync>;

/// Serves what `load` makes of each name.
struct FakeSource {
    load: Load,
    reread: Arc<Mutex<Result<Models, String>>>,
}

impl Source for FakeSource {
    fn reread(&self) -> Result<Models, String> {
        self.reread.lock().unwrap().clone()
    }

    fn load(&self, variants: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError> {
        let load = |config: &VariantConfig| {
            (self.load)(&config.name).map(Loaded::from).map_err(|problem| LoadError::Model {
                variant: config.name.clone(),
                source: ModelError::Unsupported(problem),
            })
        };
        variants.iter().map(load).collect()
    }
}

/// A server under test.
pub(crate) struct TestServer {
    pub(crate) running: Running,
    /// What a reload reads.
    pub(crate) reread: Arc<Mutex<Result<Models, String>>>,
}

/// The models of these names, and their routing weights.
pub(crate) fn models(weights: &[(&str, f64)]) -> Models {
    let config = |name: &str| VariantConfig::new(name, Mode::Warm, vec![PathBuf::from("fake")]);
    let weights: BTreeMap<String, f64> =
        weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    Models { variants: weights.keys().map(|name| config(name)).collect(), weights, shadow: None }
}

/// Free ports on loopback, small limits, no grace.
pub(crate) fn config(models: Models) -> service::Config {
    let any_port = |port: &Port| (*port, Some(([127, 0, 0, 1], 0).into()));
    service::Config {
        tls: None,
        tokens: None,
        ports: Ports::new(Port::ALL.iter().map(any_port)),
        access_log: 0.0,
        otlp: None,
        threads: None,
        limits: service::Limits { max_in_flight_bytes: 64 << 20, ..Default::default() },
        engine: engine::Config { max_batch_tokens: 1024, max_queue_tokens: 8192, ..Default::default() },
        connections: service::Connections { max: 256, ..Default::default() },
        drain_grace: Duration::ZERO,
        drain_limit: Duration::from_secs(10),
        reload: service::Reload::Beside,
        models,
    }
}

/// Starts a server that loads variants with `load`; it may still be loading when this returns.
pub(crate) async fn start_with(
    config: service::Config,
    load: impl Fn(&str) -> Result<Variant, String> + Send + Sync + 'static,
) -> TestServer {
    let reread = Arc::new(Mutex::new(Ok(config.models.clone())));
    let source = FakeSource { load: Box::new(load), reread: reread.clone() };
    TestServer { running: service::start(config, source).await.unwrap(), reread }
}

/// A ready server with the variant `warm`.
pub(crate) async fn start(model: &Arc<Fake>) -> TestServer {
    let model = model.clone();
    let server = start_with(config(models(&[("warm", 1.0)])), move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    server
}

impl TestServer {
    /// Of the reward service.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address(Port::Reward))
    }

    pub(crate) fn address(&self, port: Port) -> SocketAddr {
        self.running.ports.get(port).unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.url()).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> RewardServiceClient<Channel> {
        RewardServiceClient::new(self.channel().await)
    }

    pub(crate) async fn admin(&self) -> AdminServiceClient<Channel> {
        let url = format!("http://{}", self.address(Port::Admin));
        AdminServiceClient::new(Channel::from_shared(url).unwrap().connect().await.unwrap())
    }

    /// The health that `service` has, `None` when it is unknown.
    pub(crate) async fn health(&self, service: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = HealthClient::new(self.channel().await).check(request).await.ok()?;
        Some(response.into_inner().status())
    }

    /// Waits until `service` has this health.
    pub(crate) async fn until_health(&self, service: &str, expected: ServingStatus) {
        eventually(&format!("{service} is {expected:?}"), async || {
            self.health(service).await == Some(expected)
        })
        .await;
    }

    /// Waits until the models serve.
    pub(crate) async fn ready(&self) {
        self.until_health("rewarm.v1.RewardService", ServingStatus::Serving).await;
    }

    /// Status and body of a page on the metrics listener.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        http_get(self.address(Port::Metrics), path).await
    }

    /// The value of one series in /metrics, 0 when it is absent.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (_, page) = self.page("/metrics").await;
        let line =
            page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

/// Asks again and again until `claim` holds; fails after [`SOON`].
pub(crate) async fn eventually(what: &str, claim: impl AsyncFn() -> bool) {
    let wait = async {
        while !claim().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

// ---- requests ----

/// A sample of this text, taken as it is.
pub(crate) fn formatted(text: &str) -> proto::Sample {
    proto::Sample { id: String::new(), input: Some(proto::sample::Input::Formatted(text.to_owned())) }
}

/// A request with one sample for each text.
pub(crate) fn request(texts: &[&str]) -> proto::ScoreRequest {
    proto::ScoreRequest { samples: texts.iter().map(|text| formatted(text)).collect(), ..Default::default() }
}

/// A text of so many tokens.
pub(crate) fn long_text(tokens: usize) -> String {
    vec!["1"; tokens].join(" ")
}

/// The rewards of a response in which every sample has one.
pub(crate) fn rewards(response: &proto::ScoreResponse) -> Vec<f32> {
    response.results.iter().map(|result| score(result).reward).collect()
}

pub(crate) fn score(result: &proto::SampleResult) -> &proto::Score {
    match &result.outcome {
        Some(proto::sample_result::Outcome::Score(score)) => score,
        other => panic!("no score: {other:?}"),
    }
}

pub(crate) fn error(result: &proto::SampleResult) -> &proto::Error {
    match &result.outcome {
        Some(proto::sample_result::Outcome::Error(error)) => error,
        other => panic!("no error: {other:?}"),
    }
}
