//! Spans and metrics for a collector, over OTLP; off unless somebody says where it is.
//!
//! ```text
//! a request has ended ─▶ spans.rs ─▶ bounded queue ─▶ a task: batches, tries again ─▶ collector
//! /metrics' own text  ─▶ series.rs ─────────────────▶ a task: every minute         ─▶ collector
//! ```
//!
//! Serving never waits for it: what finds no room in the queue is dropped, and what fails is counted
//! (`rewarm_exporter_failures_total`) and told once in a while.
//!
//! # Why not the SDK?
//!
//! Its metrics are made by its own instruments only, and ours are counted once, for Prometheus. So the messages of the
//! protocol are made here, for both signals in the same way.

mod series;
mod settings;
mod spans;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Exemplar;
use opentelemetry_proto::tonic::metrics::v1::ResourceMetrics;
use opentelemetry_proto::tonic::metrics::v1::ScopeMetrics;
use opentelemetry_proto::tonic::metrics::v1::exemplar;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::Certificate;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;

use crate::metrics;
use crate::metrics::Exporter;
use crate::metrics::Signal;
use crate::pem;
use crate::service::chance;
use crate::service::ended::Ended;
use crate::service::otlp::series::Labels;
pub use crate::service::otlp::settings::Settings;
use crate::service::otlp::settings::Target;
pub use crate::service::otlp::settings::Variables;
use crate::service::seldom::Seldom;

/// A batch of spans that a collector could not take is sent again so often, with these pauses.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// At the end, for what is left, with all its tries.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// Between two lines about a collector that takes nothing.
const LOG_PAUSE: Duration = Duration::from_secs(60);
const REQUEST_DURATION: &str = "rewarm_request_duration_seconds";

/// Takes what has ended; dropped, nothing comes any more.
pub(super) struct Tracer {
    settings: Settings,
    spans: Option<mpsc::Sender<Vec<Span>>>,
    exemplars: Arc<Exemplars>,
}

/// The last request with spans, by method and variant.
type Exemplars = Mutex<BTreeMap<(&'static str, String), Exemplar>>;

/// The tasks that send.
pub(super) struct Exporting {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Begins to export. Fails if the file with a certificate cannot be read.
pub(super) fn start(settings: Settings, exporter: Exporter) -> io::Result<(Tracer, Exporting)> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let resource = resource(&settings);
    let exemplars = Arc::new(Exemplars::default());
    let mut spans = None;
    if let Some(target) = &settings.traces {
        let (sender, receiver) = mpsc::channel(settings.max_traces);
        spans = Some(sender);
        let sending = Traces {
            collector: Collector::new(target, Signal::Traces)?,
            resource: resource.clone(),
            spans: receiver,
            delay: settings.span_delay,
            max_spans: settings.max_spans,
        };
        tasks.spawn(sending.send_all(stop.clone()));
    }
    if let Some(target) = &settings.metrics {
        let collector = Collector::new(target, Signal::Metrics)?;
        let (exemplars, interval, stop) = (exemplars.clone(), settings.metric_interval, stop.clone());
        tasks.spawn(send_metrics(collector, resource, exporter, exemplars, interval, stop));
    }
    tracing::info!(to = settings.told(), "exporting over OTLP");
    Ok((Tracer { settings, spans, exemplars }, Exporting { stop, tasks }))
}

impl Tracer {
    /// Makes the spans of a request; its trace's id, if it has some.
    pub(super) fn trace(&self, ended: &Ended<'_>) -> Option<String> {
        let spans = self.spans.as_ref()?;
        let made = spans::of(ended, self.settings.sampler)?;
        let root = made.first()?;
        let value = ended.elapsed.as_secs_f64();
        let exemplar = Exemplar {
            time_unix_nano: root.end_time_unix_nano,
            span_id: root.span_id.clone(),
            trace_id: root.trace_id.clone(),
            value: Some(exemplar::Value::AsDouble(value)),
            ..Default::default()
        };
        let key = (ended.method.as_str(), ended.variant.to_owned());
        self.exemplars.lock().unwrap_or_else(PoisonError::into_inner).insert(key, exemplar);
        let trace_id = hex(&root.trace_id);
        if spans.try_send(made).is_err() {
            metrics::export_failed(Signal::Traces);
        }
        Some(trace_id)
    }
}

impl Exporting {
    /// Sends what is left, and ends; within [`FLUSH_LIMIT`].
    pub(super) async fn flush(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FLUSH_LIMIT, ended).await.is_err() {
            tracing::warn!("the collector did not take what was left");
        }
    }
}

/// A collector's service, and how its failures are told.
struct Collector {
    channel: Channel,
    target: Target,
    signal: Signal,
    said: Seldom,
}

impl Collector {
    /// Connects when there is something to send.
    fn new(target: &Target, signal: Signal) -> io::Result<Self> {
        let invalid = |error: tonic::transport::Error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let mut endpoint = Endpoint::from_shared(target.endpoint.clone()).map_err(invalid)?;
        if target.endpoint.starts_with("https:") {
            let tls = match &target.certificate {
                Some(path) => {
                    let text = pem::read(Path::new(path)).and_then(|text| {
                        pem::certificates(&text).map_err(io::Error::other)?;
                        Ok(text)
                    });
                    let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
                    let text = text.map_err(named)?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(text))
                }
                None => ClientTlsConfig::new().with_webpki_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(invalid)?;
        }
        let channel = endpoint.connect_timeout(target.timeout).connect_lazy();
        Ok(Self { channel, target: target.clone(), signal, said: Seldom::new(LOG_PAUSE) })
    }

    fn request<M>(&self, message: M) -> tonic::Request<M> {
        let headers = MetadataMap::from_headers(self.target.headers.clone());
        tonic::Request::from_parts(headers, tonic::Extensions::default(), message)
    }

    /// In time, or not at all.
    async fn within<T>(&self, sent: impl Future<Output = Result<T, Status>>) -> Result<(), Status> {
        let late = || Status::deadline_exceeded(format!("no answer within {:?}", self.target.timeout));
        timeout(self.target.timeout, sent).await.unwrap_or_else(|_| Err(late())).map(drop)
    }

    async fn send_spans(&self, message: ExportTraceServiceRequest) -> Result<(), Status> {
        let mut client = TraceServiceClient::new(self.channel.clone());
        if self.target.is_gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        self.within(client.export(self.request(message))).await
    }

    async fn send_metrics(&self, message: ExportMetricsServiceRequest) -> Result<(), Status> {
        let mut client = MetricsServiceClient::new(self.channel.clone());
        if self.target.is_gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        self.within(client.export(self.request(message))).await
    }

    /// Counts a failure, and tells of it if nobody was told lately.
    fn failed(&mut self, status: &Status) {
        metrics::export_failed(self.signal);
        let Some(failures) = self.said.pass() else { return };
        let (signal, endpoint) = (self.signal.as_str(), &self.target.endpoint);
        // of a connection that failed only the last cause says why
        let cause = std::iter::successors(std::error::Error::source(status), |&error| error.source()).last();
        let problem = cause.map_or_else(|| status.message().to_owned(), ToString::to_string);
        tracing::warn!(signal, endpoint, failures, code = ?status.code(), problem, "export failed");
    }
}

/// Sends spans.
struct Traces {
    collector: Collector,
    resource: Resource,
    spans: mpsc::Receiver<Vec<Span>>,
    delay: Duration,
    max_spans: usize,
}

impl Traces {
    async fn send_all(mut self, stop: CancellationToken) {
        loop {
            let batch = self.batch(&stop).await;
            if !batch.is_empty() {
                self.send(batch, &stop).await;
            } else if stop.is_cancelled() {
                return;
            }
        }
    }

    /// Spans until there are enough, or until the first has waited long enough.
    async fn batch(&mut self, stop: &CancellationToken) -> Vec<Span> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.max_spans {
            let is_late = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(spans) = self.spans.recv() => {
                    batch.extend(spans);
                    until.get_or_insert(Instant::now() + self.delay);
                }
                () = is_late => break,
                () = stop.cancelled() => break,
            }
        }
        batch
    }

    async fn send(&mut self, spans: Vec<Span>, stop: &CancellationToken) {
        let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..Default::default() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, ..Default::default() }];
        let message = ExportTraceServiceRequest { resource_spans };
        for pause in PAUSES.iter().map(Some).chain([None]) {
            let Err(status) = self.collector.send_spans(message.clone()).await else { return };
            self.collector.failed(&status);
            // what else is said will be said again. Source: OTLP specification, "Failures"
            let may_pass = matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Cancelled
                    | Code::Aborted
            );
            let (Some(pause), true, false) = (pause, may_pass, stop.is_cancelled()) else { return };
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

async fn send_metrics(
    mut collector: Collector,
    resource: Resource,
    exporter: Exporter,
    exemplars: Arc<Exemplars>,
    interval: Duration,
    stop: CancellationToken,
) {
    let start = nanoseconds(SystemTime::now());
    let exemplar = |name: &str, labels: &Labels| {
        let (method, variant) = (labels.get("method")?, labels.get("variant")?);
        let exemplars = exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        let found = exemplars.iter().find(|((of, to), _)| of == method && to == variant);
        found.filter(|_| name == REQUEST_DURATION).map(|(_, exemplar)| exemplar.clone())
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled() => {}
        }
        let now = nanoseconds(SystemTime::now());
        let metrics = series::metrics(&exporter.render(), (start, now), exemplar);
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, ..Default::default() }];
        let resource = Some(resource.clone());
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..Default::default() }];
        if let Err(status) = collector.send_metrics(ExportMetricsServiceRequest { resource_metrics }).await {
            // the next one says all that this one did
            collector.failed(&status);
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

/// What the collector is told of this process. An id that no other has tells replicas apart.
fn resource(settings: &Settings) -> Resource {
    let mut attributes = settings.resource.clone();
    attributes.entry("service.instance.id".to_owned()).or_insert_with(|| hex(&random()));
    let attributes = attributes.iter().map(|(name, value)| attribute(name, value.as_str())).collect();
    Resource { attributes, ..Default::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "rewarm".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

/// A fact of a span, a series or a process.
fn attribute(name: &str, value: impl Into<Fact>) -> KeyValue {
    let Fact(value) = value.into();
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

struct Fact(Value);

impl From<&str> for Fact {
    fn from(text: &str) -> Self {
        Self(Value::StringValue(text.to_owned()))
    }
}

impl From<usize> for Fact {
    fn from(number: usize) -> Self {
        Self(Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes that nobody else has; an id may not be zero.
fn random() -> [u8; 8] {
    chance::number().max(1).to_be_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
