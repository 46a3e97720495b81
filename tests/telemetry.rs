//! What an operator sees of single requests: spans and metrics at a collector that speaks OTLP, and the access log.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod certificates;
#[path = "support/http.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod http;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use std::time::Instant;

use certificates::Authority;
use certificates::Signed;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsService;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::trace::v1::Span;
use rewarm::service::OtlpSettings;
use rewarm::service::Port;
use support::Fake;
use support::TestServer;
use support::config;
use support::eventually;
use support::models;
use support::request;
use support::rewards;
use support::start_with;
use support::variant;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::transport::Identity;
use tonic::transport::Server;
use tonic::transport::ServerTlsConfig;
use tonic::transport::server::TcpIncoming;

/// What a collector was sent.
#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    metrics: Vec<Metric>,
    headers: Vec<String>,
}

/// A collector; one that is `slow` takes everything and answers nothing.
#[derive(Clone, Default)]
struct Collector {
    seen: Arc<Mutex<Seen>>,
    is_slow: bool,
}

impl Collector {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    async fn wait(&self) {
        if self.is_slow {
            std::future::pending().await
        }
    }

    /// Listens at this address until it is dropped.
    async fn start(&self, address: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        self.start_with(address, Server::builder()).await
    }

    async fn start_with(
        &self,
        address: SocketAddr,
        mut server: Server,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = server
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        (address, tokio::spawn(async move { served.await.unwrap() }))
    }

    /// Waits for the spans of so many requests; the whole of each, and its parts.
    async fn traces(&self, count: usize) -> Vec<(Span, Vec<Span>)> {
        let is_whole = |span: &Span| span.kind == 2;
        eventually("the spans have come", async || {
            self.seen().spans.iter().filter(|span| is_whole(span)).count() >= count
        })
        .await;
        let seen = self.seen();
        let parts = |whole: &Span| {
            let own = seen.spans.iter().filter(|span| span.parent_span_id == whole.span_id);
            own.cloned().collect()
        };
        seen.spans.iter().filter(|span| is_whole(span)).map(|span| (span.clone(), parts(span))).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.wait().await;
        let header = request.metadata().get("api-key").map(|value| value.to_str().unwrap().to_owned());
        let mut seen = self.seen();
        seen.headers.extend(header);
        for spans in request.into_inner().resource_spans {
            seen.resource = spans.resource.unwrap().attributes;
            seen.spans.extend(spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.wait().await;
        let metrics = request.into_inner().resource_metrics.into_iter();
        self.seen().metrics =
            metrics.flat_map(|it| it.scope_metrics).flat_map(|scope| scope.metrics).collect();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn free() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server that exports to this address, with these of OpenTelemetry's variables.
async fn server(model: &Arc<Fake>, collector: SocketAddr, variables: &[(&str, &str)]) -> TestServer {
    let model = model.clone();
    let mut config = config(models(&[("warm", 1.0)]));
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let variables: std::collections::BTreeMap<_, _> = variables.iter().map(owned).collect();
    let scheme = if variables.contains_key("OTEL_EXPORTER_OTLP_CERTIFICATE") { "https" } else { "http" };
    let endpoint = format!("{scheme}://localhost:{}", collector.port());
    config.otlp = OtlpSettings::read(Some(&endpoint), None, &variables).unwrap();
    let server = start_with(config, move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    server
}

/// Everything at once.
const SOON: [(&str, &str); 2] = [("OTEL_BSP_SCHEDULE_DELAY", "20"), ("OTEL_METRIC_EXPORT_INTERVAL", "50")];
/// Only at the end.
const LATE: [(&str, &str); 2] =
    [("OTEL_BSP_SCHEDULE_DELAY", "600000"), ("OTEL_METRIC_EXPORT_INTERVAL", "600000")];

fn fact(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_spans_that_continue_its_callers() {
    let collector = Collector::default();
    let (address, _collecting) = collector.start(free()).await;
    let more = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20key"),
        ("OTEL_SERVICE_NAME", "rewards"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let server = server(&Fake::new(1.0), address, &[&SOON[..], &more].concat()).await;
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut call = Request::new(request(&["1 2", "7"]));
    call.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
    call.metadata_mut().insert("tracestate", "vendor=1".parse().unwrap());
    let answer = server.client().await.score(call).await.unwrap().into_inner();
    assert_eq!(rewards(&answer), [3.0, 7.0]);

    let traces = collector.traces(1).await;
    let (whole, parts) = &traces[0];
    assert_eq!((hex(&whole.trace_id), hex(&whole.parent_span_id)), (TRACE.into(), "00f067aa0ba902b7".into()));
    assert_eq!((whole.name.as_str(), whole.trace_state.as_str()), ("Score", "vendor=1"));
    assert!(whole.status.is_none());
    for (name, value) in [
        ("rewarm.variant", "warm"),
        ("rewarm.fingerprint", "fingerprint-of-warm"),
        ("rewarm.samples", "2"),
        ("rewarm.tokens", "3"),
        ("rpc.grpc.status_code", "0"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(fact(&whole.attributes, name), value, "{name}");
    }
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["read", "tokenize", "queue", "compute"]);
    assert_eq!(fact(&parts[3].attributes, "rewarm.batch_samples"), "2");
    let mut before = whole.start_time_unix_nano;
    for part in parts {
        assert!(part.trace_id == whole.trace_id && part.start_time_unix_nano >= before, "{part:?}");
        before = part.end_time_unix_nano;
    }
    assert!(before <= whole.end_time_unix_nano);
    {
        let seen = collector.seen();
        assert_eq!(seen.headers[0], "a key");
        assert_eq!(fact(&seen.resource, "service.name"), "rewards");
        assert_eq!(fact(&seen.resource, "deployment.environment.name"), "test");
        assert_eq!(fact(&seen.resource, "service.instance.id").len(), 16);
    }

    // over HTTP, of a caller without a trace: one of its own; and of one whose sample has no reward
    let http = server.address(Port::Http);
    let ask = |body: &'static [u8]| {
        tokio::task::spawn_blocking(move || http::post(http, "/get_reward", &[], body).status)
    };
    assert_eq!(ask(br#"{"query": ["1"]}"#).await.unwrap(), 200);
    assert_eq!(ask(br#"{"query": ["999"]}"#).await.unwrap(), 500);
    let traces = collector.traces(3).await;
    let of_http: Vec<&Span> =
        traces.iter().map(|(whole, _)| whole).filter(|whole| whole.name == "/get_reward").collect();
    assert_eq!(of_http.len(), 2);
    assert!(of_http.iter().all(|whole| whole.parent_span_id.is_empty()));
    assert_ne!(of_http[0].trace_id, of_http[1].trace_id);
    assert_eq!(of_http[1].status.as_ref().unwrap().message, "INTERNAL");

    // a caller that does not sample its own is not sampled here
    let mut call = Request::new(request(&["1"]));
    call.metadata_mut()
        .insert("traceparent", format!("00-{}-00f067aa0ba902b7-00", "7".repeat(32)).parse().unwrap());
    server.client().await.score(call).await.unwrap();
    server.client().await.score(request(&["1"])).await.unwrap();
    let traces = collector.traces(4).await;
    assert!(traces.iter().all(|(whole, _)| hex(&whole.trace_id) != "7".repeat(32)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_those_that_prometheus_reads() {
    let collector = Collector::default();
    let (address, _collecting) = collector.start(free()).await;
    let server = server(&Fake::new(1.0), address, &SOON).await;
    server.client().await.score(request(&["1", "2"])).await.unwrap();
    let [(whole, _)] = &collector.traces(1).await[..] else { panic!("one request") };
    eventually("an exemplar has come", async || {
        let seen = collector.seen();
        let found = seen.metrics.iter().find(|metric| metric.name == "rewarm_request_duration_seconds");
        let Some(Data::Histogram(histogram)) = found.and_then(|found| found.data.as_ref()) else {
            return false;
        };
        let exemplars = histogram.data_points.iter().flat_map(|point| &point.exemplars);
        exemplars.clone().any(|exemplar| exemplar.trace_id == whole.trace_id)
    })
    .await;

    let page = server.page("/metrics").await.1;
    let seen = collector.seen();
    let mut names = Vec::new();
    for line in page.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        names.push(name);
        let found = seen.metrics.iter().find(|metric| metric.name == name);
        match (kind, found.and_then(|found| found.data.as_ref())) {
            ("counter", Some(Data::Sum(sum))) => assert!(sum.is_monotonic, "{name}"),
            ("gauge", Some(Data::Gauge(_))) => {}
            ("histogram", Some(Data::Histogram(histogram))) => {
                let of_page = page.lines().filter(|line| line.starts_with(&format!("{name}_bucket")));
                let mut bounds: Vec<f64> = of_page
                    .filter_map(|line| line.split_once("le=\"")?.1.split_once('"')?.0.parse().ok())
                    .filter(|bound: &f64| bound.is_finite())
                    .collect();
                bounds.sort_by(f64::total_cmp);
                bounds.dedup();
                let point = &histogram.data_points[0];
                assert_eq!(point.explicit_bounds, bounds, "{name}");
                assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(names.len() > 30 && names.len() == seen.metrics.len(), "{} {}", names.len(), seen.metrics.len());
    let Some(Data::Sum(samples)) =
        seen.metrics.iter().find(|metric| metric.name == "rewarm_samples_total").unwrap().data.as_ref()
    else {
        panic!("a sum");
    };
    let scored = samples.data_points.iter().find(|point| {
        fact(&point.attributes, "variant") == "warm" && fact(&point.attributes, "outcome") == "scored"
    });
    let Some(number_data_point::Value::AsDouble(scored)) = scored.unwrap().value else { panic!("a number") };
    assert!(scored >= 2.0, "{scored}");
}

/// Down, back again, and one that never answers: callers notice nothing, and it is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_in_trouble_hurts_nobody() {
    let place = TcpListener::bind(free()).await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let server = server(&Fake::new(1.0), address, &SOON).await;
    let failures = r#"rewarm_exporter_failures_total{signal="traces"}"#;
    let before = server.metric(failures).await;
    let mut client = server.client().await;
    assert_eq!(rewards(&client.score(request(&["4"])).await.unwrap().into_inner()), [4.0]);
    eventually("it is counted", async || server.metric(failures).await > before).await;
    let collector = Collector::default();
    let (_, _collecting) = collector.start(address).await;
    let [(whole, _)] = &collector.traces(1).await[..] else { panic!("the request before it came back") };
    assert_eq!(fact(&whole.attributes, "rewarm.tokens"), "1");

    let slow = Collector { is_slow: true, ..Collector::default() };
    let (address, _collecting) = slow.start(free()).await;
    let small = [("OTEL_BSP_MAX_QUEUE_SIZE", "2"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")];
    let mut server = self::server(&Fake::new(1.0), address, &[&SOON[..], &small].concat()).await;
    let before = server.metric(failures).await;
    let mut client = server.client().await;
    let begun = Instant::now();
    for _ in 0..50 {
        client.score(request(&["1"])).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(server.metric(failures).await >= before + 40.0, "what finds no room is dropped and counted");
    drop(client);
    server.running.drain();
    let begun = Instant::now();
    tokio::time::timeout(support::SOON, server.running.stopped()).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_sent_at_the_end() {
    let collector = Collector::default();
    let (address, _collecting) = collector.start(free()).await;
    let mut server = server(&Fake::new(1.0), address, &LATE).await;
    server.client().await.score(request(&["1"])).await.unwrap();
    assert!(collector.seen().spans.is_empty() && collector.seen().metrics.is_empty());
    server.running.drain();
    tokio::time::timeout(support::SOON, server.running.stopped()).await.unwrap().unwrap();
    let seen = collector.seen();
    assert_eq!(seen.spans.iter().filter(|span| span.name == "Score").count(), 1);
    assert!(seen.metrics.iter().any(|metric| metric.name == "rewarm_requests_total"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_with_tls_is_trusted_by_its_authority_and_others_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let ca = |name: &str, authority: &Authority| {
        let path = folder.path().join(name);
        std::fs::write(&path, &authority.pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (authority, other) = (Authority::new("of the house"), Authority::new("another"));
    let Signed { certificate, key } = authority.server(&["localhost"]);
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    let collector = Collector::default();
    let (address, _collecting) =
        collector.start_with(free(), Server::builder().tls_config(tls).unwrap()).await;

    let (trusted, not) = (ca("ca.crt", &authority), ca("other.crt", &other));
    let with = |path| [&SOON[..], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", path)]].concat();
    let distrusting = server(&Fake::new(1.0), address, &with(&*not)).await;
    let failures = "rewarm_exporter_failures_total{signal=\"traces\"}";
    let before = distrusting.metric(failures).await;
    distrusting.client().await.score(request(&["1"])).await.unwrap();
    eventually("what cannot be sent is counted", async || distrusting.metric(failures).await > before).await;
    assert!(collector.seen().spans.is_empty());
    drop(distrusting);

    let trusting = server(&Fake::new(1.0), address, &with(&*trusted)).await;
    trusting.client().await.score(request(&["1"])).await.unwrap();
    assert_eq!(collector.traces(1).await[0].0.name, "Score");
}

/// By the program: a line for each request, and of those that fail where others have few; never a text.
#[test]
fn the_access_log_has_a_line_for_each_request_and_no_text() {
    let lines = |fraction: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rewarm.toml");
        let member = program::root().join("deploy/demo/member-0");
        let text = format!(
            "[server]\ndrain_grace_seconds = 0\nhttp = '127.0.0.1:0'\n[server.access_log]\nfraction = {fraction}\n\
             [variants.warm]\nmode = 'warm'\nmodel = '{}'\n",
            member.display()
        );
        std::fs::write(&path, text).unwrap();
        let server = program::Server::start(&["--config", path.to_str().unwrap()]);
        let http = server.http();
        let traced = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let good = br#"{"query": ["What happened? I won the lottery."]}"#;
        assert_eq!(http::post(http, "/get_reward?variant=warm", &[traced], good).status, 200);
        assert_eq!(http::post(http, "/get_reward?variant=lottery", &[], good).status, 400);
        server.signal("-TERM");
        let (_, log) = server.wait_with_log();
        log.into_iter().filter(|line| line["target"] == "rewarm::access").collect::<Vec<_>>()
    };
    let all = lines("1");
    let [good, bad] = &all[..] else { panic!("{all:?}") };
    for (line, method, code, variant, samples) in
        [(good, "/get_reward", "OK", "warm", 1), (bad, "/get_reward", "INVALID_ARGUMENT", "", 0)]
    {
        assert_eq!((&line["method"], &line["code"]), (&method.into(), &code.into()), "{line}");
        assert_eq!((&line["variant"], &line["samples"]), (&variant.into(), &samples.into()), "{line}");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["seconds"].as_f64().unwrap() > 0.0 && !line.to_string().contains("lottery"), "{line}");
    }
    assert_eq!(good["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(good["fingerprint"].as_str().unwrap().len(), 12);
    assert!(
        good["tokens"].as_u64().unwrap() > 5 && good["compute_seconds"].as_f64().unwrap() > 0.0,
        "{good}"
    );
    let sampled = lines("0.000001");
    assert!(
        sampled.iter().all(|line| line["code"] == "INVALID_ARGUMENT") && sampled.len() == 1,
        "{sampled:?}"
    );
    assert!(lines("0").is_empty());
}

/// By the program: pages have lines, and calls that were not let in, by their reason.
#[test]
fn the_access_log_has_pages_and_who_was_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    const TOKEN: &str = "token-of-prometheus-and-all";
    const WRONG: &str = "a-secret-of-somebody-else";
    let text = format!(
        "[tokens.watcher]\ntoken = '{TOKEN}'\nallow = ['metrics']\n[tokens.trainer]\ntoken = '{TOKEN}-2'\n"
    );
    std::fs::write(&tokens, text).unwrap();
    let server = program::Server::start(&[
        "--access-log",
        "1",
        "--http",
        "127.0.0.1:0",
        "--tokens",
        tokens.to_str().unwrap(),
    ]);
    let (metrics, door): (SocketAddr, _) = (server.metrics.parse().unwrap(), server.http());
    let get = |address, path: &str, token: Option<&str>| {
        let header = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let mut connection = http::Connection::open(address);
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").as_bytes());
        connection.answer_to("GET").status
    };
    assert_eq!(get(metrics, "/metrics", Some(TOKEN)), 200);
    assert_eq!(get(metrics, "/healthz", None), 200);
    assert_eq!(get(door, "/openapi.json", Some(&format!("{TOKEN}-2"))), 200);
    assert_eq!(get(door, "/health", None), 200);
    assert_eq!(get(door, "/nowhere?token=hidden", Some(&format!("{TOKEN}-2"))), 404);
    assert_eq!(get(door, "/openapi.json", None), 401);
    assert_eq!(get(door, "/openapi.json", Some(WRONG)), 401);
    assert_eq!(get(door, "/openapi.json", Some(TOKEN)), 403);
    server.signal("-TERM");
    server.signal("-TERM");
    let (_, log) = server.wait_with_log();
    for secret in [TOKEN, WRONG, "hidden"] {
        assert!(log.iter().all(|line| !line.to_string().contains(secret)), "{secret}");
    }
    let lines: Vec<_> = log.iter().filter(|line| line["target"] == "rewarm::access").collect();
    let told = |line: &&serde_json::Value| {
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        ["method", "code", "port", "page", "reason", "token"].map(text).join(" ")
    };
    let expected = [
        "page OK metrics /metrics - watcher",
        "page OK metrics /healthz - ",
        "page OK http /openapi.json - trainer",
        "page OK http /health - ",
        "page NOT_FOUND http - - trainer",
        "refused UNAUTHENTICATED http - missing ",
        "refused UNAUTHENTICATED http - unknown ",
        "refused PERMISSION_DENIED http - forbidden watcher",
    ];
    assert_eq!(lines.iter().map(told).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| line["peer"].as_str().unwrap().starts_with("127.0.0.1:")));
}

/// By the program: who asked for a reload, be it a signal, is in the log.
#[test]
fn a_reload_by_signal_is_in_the_audit_log() {
    let server = program::Server::start(&[]);
    let reloads = || {
        let (_, page) = program::get(&server.metrics, "/metrics");
        page.contains("rewarm_admin_actions_total{action=\"reload\",result=\"success\"} 1")
    };
    assert!(!reloads());
    server.signal("-HUP");
    let begun = Instant::now();
    while !reloads() {
        assert!(begun.elapsed() < support::SOON, "the reload is counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.signal("-TERM");
    server.signal("-TERM");
    let (_, log) = server.wait_with_log();
    let audit: Vec<_> = log.iter().filter(|line| line["target"] == "rewarm::audit").collect();
    let [line] = &audit[..] else { panic!("{audit:?}") };
    assert_eq!(
        (&line["action"], &line["signal"], &line["message"]),
        (&"reload".into(), &"SIGHUP".into(), &"done".into())
    );
    for facts in [&line["before"], &line["after"]] {
        assert!(facts.as_str().unwrap().contains("warm 100.0% "), "{line}");
    }
}

/// By the program: a shadow is scored the same tokens, so it has the same tokenizer.
#[test]
fn a_shadow_with_another_tokenizer_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("rewarm.toml");
    let model = |name: &str| program::root().join("tests/data/models").join(name).display().to_string();
    let variant =
        |name: &str, model: String| format!("[variants.{name}]\nmode = 'warm'\nmodel = '{model}'\n");
    let routing = "[routing]\nweights = { a = 1 }\nshadow = { variant = 'b', fraction = 0.5 }\n";
    let text = variant("a", model("llama")) + &variant("b", model("bert")) + routing;
    std::fs::write(&config, text).unwrap();
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let refused = program::run(&[&["serve", "--config", config.to_str().unwrap()][..], &free].concat());
    let problem = program::text(&refused.stderr);
    assert!(refused.status.code() == Some(1), "{problem}");
    assert!(
        problem.contains("a shadow scores the same tokens, and `b` has another tokenizer than `a`"),
        "{problem}"
    );
}

/// At the lowest level too: `tokenizers` alone has some lines for each text, and quotes it.
#[test]
fn other_crates_are_not_heard_at_trace() {
    let server = program::Server::start(&["--log-level", "trace", "--http", "127.0.0.1:0"]);
    let body = br#"{"query": ["I won the lottery."]}"#;
    assert_eq!(http::post(server.http(), "/get_reward?variant=warm", &[], body).status, 200);
    server.signal("-TERM");
    server.signal("-TERM");
    let (_, log) = server.wait_with_log();
    let targets: BTreeSet<_> = log.iter().map(|line| line["target"].as_str().unwrap()).collect();
    assert!(targets.iter().all(|target| target.starts_with("rewarm::")), "{targets:?}");
    assert!(targets.contains("rewarm::service::score"), "{targets:?}");
}

/// As Ray and Kubernetes tell a server what it may use.
#[test]
fn a_server_has_as_many_threads_as_it_is_told() {
    let server = program::Server::start_as(&[], |command| {
        command.env("REWARM_THREADS", "3");
    });
    let count = |name: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|found| found.starts_with(name)).count()
    };
    assert_eq!((count("compute-"), count("tokenize-")), (3, 3));
    let warned = program::run(&["serve", "--threads", "0", "--check"]);
    assert_eq!(warned.status.code(), Some(2), "{}", program::text(&warned.stderr));
}
