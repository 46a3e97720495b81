//! TLS, client certificates and tokens: who is let in on which port, what one caller may hold, and what holds when files
//! change under a running server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/certificates.rs"]
mod certificates;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certificates::Authority;
use certificates::Signed;
use rewarm::client;
use rewarm::proto;
use rewarm::proto::admin_service_client::AdminServiceClient;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::service;
use rewarm::service::Port;
use rewarm::service::TlsConfig;
use support::Fake;
use support::SOON;
use support::TestServer;
use support::config;
use support::eventually;
use support::models;
use support::start_with;
use support::variant;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::Request;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Certificate;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Identity;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const TRAINER: &str = "token-of-the-trainer";
const OTHER: &str = "token-of-another-trainer";
const OPERATOR: &str = "token-of-the-operator";
const PROMETHEUS: &str = "token-of-prometheus";

fn tokens() -> String {
    format!(
        "[tokens.trainer]\ntoken = '{TRAINER}'\n[tokens.other]\ntoken = '{OTHER}'\n\
         [tokens.operator]\ntoken = '{OPERATOR}'\nallow = ['admin']\n\
         [tokens.prometheus]\ntoken = '{PROMETHEUS}'\nallow = ['metrics']\n"
    )
}

/// A server, its model, and the folder of its files.
struct Guarded {
    server: TestServer,
    model: Arc<Fake>,
    folder: tempfile::TempDir,
}

impl Guarded {
    async fn start(set: impl FnOnce(&Path, &mut service::Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(models(&[("warm", 1.0)]));
        set(folder.path(), &mut config);
        let model = Fake::new(1.0);
        let served = model.clone();
        let server = start_with(config, move |name| Ok(variant(name, &served))).await;
        Self { server, model, folder }
    }

    async fn with_tokens(text: &str) -> Self {
        let this = Self::start(|folder, config| {
            let path = folder.join("tokens.toml");
            std::fs::write(&path, text).unwrap();
            config.tokens = Some(path);
        })
        .await;
        this.server.ready().await; // health is for everybody
        this
    }

    fn rewrite(&self, name: &str, text: &str) {
        // as whoever renews secrets does it: all at once
        let path = self.folder.path().join(name);
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn address(&self, port: Port) -> SocketAddr {
        self.server.address(port)
    }
}

type Client = RewardServiceClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        Ok(request)
    }
}

async fn with_token(server: &TestServer, token: Option<&str>) -> Client {
    RewardServiceClient::with_interceptor(server.channel().await, Bearer(token.map(str::to_owned)))
}

fn request(texts: &[&str]) -> proto::ScoreRequest {
    let sample = |text: &&str| proto::Sample {
        id: String::new(),
        input: Some(proto::sample::Input::Formatted((*text).to_owned())),
    };
    proto::ScoreRequest {
        request_id: "1".to_owned(),
        samples: texts.iter().map(sample).collect(),
        ..Default::default()
    }
}

fn reward(response: &proto::ScoreResponse) -> f32 {
    match response.results[0].outcome.clone().unwrap() {
        proto::sample_result::Outcome::Score(score) => score.reward,
        proto::sample_result::Outcome::Error(error) => panic!("{error:?}"),
    }
}

/// Status and head of an answer of HTTP/1.
fn http(
    address: SocketAddr,
    verb: &str,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let authorization = authorization.map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
    write!(
        stream,
        "{verb} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{authorization}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

async fn over_http(
    address: SocketAddr,
    verb: &'static str,
    path: &'static str,
    authorization: Option<String>,
    body: &'static str,
) -> (u16, String) {
    tokio::task::spawn_blocking(move || http(address, verb, path, authorization.as_deref(), body))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_asks_for_a_token_with_its_permission_and_health_for_none() {
    let guarded = Guarded::with_tokens(&tokens()).await;
    let server = &guarded.server;

    let mut codes = Vec::new();
    for token in [None, Some("no such token"), Some(OPERATOR), Some(TRAINER)] {
        let mut client = with_token(server, token).await;
        let scored = client.score(request(&["7"])).await;
        let info = client.get_server_info(proto::GetServerInfoRequest {}).await;
        let code = |error: Option<Status>| error.map_or(Code::Ok, |status| status.code());
        codes.push((code(scored.err()), code(info.err())));
    }
    use Code::Ok as Good;
    use Code::PermissionDenied as Denied;
    use Code::Unauthenticated as Unknown;
    assert_eq!(codes, [(Unknown, Unknown), (Unknown, Unknown), (Denied, Denied), (Good, Good)]);

    let page = async || {
        let token = Some(format!("Bearer {PROMETHEUS}"));
        over_http(guarded.address(Port::Metrics), "GET", "/metrics", token, "").await.1
    };
    let denied = r#"rewarm_token_requests_total{token="operator",code="PERMISSION_DENIED"} "#;
    let counted =
        async || page().await.lines().find_map(|line| line.strip_prefix(denied)?.parse::<u64>().ok());
    assert!(counted().await >= Some(2), "a token that is not for this has it counted as its own");

    for (token, expected) in [(None, Unknown), (Some(TRAINER), Denied), (Some(OPERATOR), Good)] {
        let url = format!("http://{}", guarded.address(Port::Admin));
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        let mut admin = AdminServiceClient::with_interceptor(channel, Bearer(token.map(str::to_owned)));
        let result = admin.reload(proto::ReloadRequest {}).await;
        assert_eq!(result.err().map_or(Good, |status| status.code()), expected, "{token:?}");
    }

    let (metrics, door) = (guarded.address(Port::Metrics), guarded.address(Port::Http));
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    const SCORE: &str = r#"{"samples": [{"formatted": "7"}]}"#;
    for (address, verb, path, authorization, body, expected) in [
        (metrics, "GET", "/healthz", None, "", 200),
        (metrics, "GET", "/readyz", None, "", 200),
        (metrics, "GET", "/metrics", None, "", 401),
        (metrics, "GET", "/metrics", bearer(TRAINER), "", 403),
        (metrics, "GET", "/metrics", bearer(PROMETHEUS), "", 200),
        (guarded.address(Port::Ui), "GET", "/", None, "", 401),
        (guarded.address(Port::Ui), "GET", "/", bearer(PROMETHEUS), "", 403),
        (guarded.address(Port::Ui), "GET", "/", bearer(TRAINER), "", 200),
        (guarded.address(Port::Ui), "POST", "/rewarm/v1/score", None, SCORE, 401),
        (guarded.address(Port::Ui), "POST", "/rewarm/v1/score", bearer(TRAINER), SCORE, 200),
        (door, "GET", "/health", None, "", 200),
        (door, "GET", "/v2/health/ready", None, "", 200),
        (door, "GET", "/v1/models", None, "", 401),
        (door, "POST", "/rewarm/v1/score", None, SCORE, 401),
        (door, "POST", "/rewarm/v1/score", bearer(PROMETHEUS), SCORE, 403),
        (door, "POST", "/rewarm/v1/score", bearer(TRAINER), SCORE, 200),
        // any:TRAINER and TRAINER:, as clients make them from a URL
        (door, "POST", "/rewarm/v1/score", Some(basic(&format!("any:{TRAINER}"))), SCORE, 200),
        (door, "POST", "/rewarm/v1/score", Some(basic(&format!("{TRAINER}:"))), SCORE, 200),
        (door, "POST", "/rewarm/v1/score", Some(basic("any:thing")), SCORE, 401),
    ] {
        let told = format!("{verb} {path} {authorization:?}");
        let (status, answer) = over_http(address, verb, path, authorization, body).await;
        assert_eq!(status, expected, "{told}: {answer}");
        // each in a header of its own, or a browser that knows the second scheme alone does not ask
        for scheme in ["www-authenticate: bearer", "www-authenticate: basic"] {
            assert_eq!(answer.to_lowercase().contains(scheme), expected == 401, "{answer}");
        }
        assert!(!answer.contains("token-of"), "{answer}");
    }
}

fn basic(pair: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_cannot_starve_another() {
    let text = tokens().replace("[tokens.other]", "max_requests = 2\nmax_tokens = 5\n[tokens.other]");
    let text =
        text.replace("[tokens.trainer]", "[tokens.greedy]").replace("[tokens.other]", "[tokens.modest]");
    let guarded = Guarded::with_tokens(&text).await;
    let (server, model) = (&guarded.server, &guarded.model);
    model.close();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = with_token(server, Some(TRAINER)).await;
        waiting.push(tokio::spawn(async move { client.score(request(&["1 2"])).await }));
    }
    let metrics = guarded.address(Port::Metrics);
    let page =
        async || over_http(metrics, "GET", "/metrics", Some(format!("Bearer {PROMETHEUS}")), "").await.1;
    const BOTH: &str = r#"rewarm_token_requests_in_flight{token="greedy"} 2"#;
    eventually("both are in", async || page().await.lines().any(|line| line == BOTH)).await;
    let mut client = with_token(server, Some(TRAINER)).await;
    let over = client.score(request(&["1"])).await.unwrap_err();
    assert_eq!(over.code(), Code::ResourceExhausted, "{over:?}");
    assert!(over.message().contains("token `greedy` has 2 requests in flight, its limit"), "{over:?}");
    assert!(over.metadata().contains_key("grpc-retry-pushback-ms"));
    const BODY: &str = r#"{"query": ["1"]}"#;
    let door = guarded.address(Port::Http);
    let (status, answer) =
        over_http(door, "POST", "/get_reward", Some(format!("Bearer {TRAINER}")), BODY).await;
    assert!(status == 503 && answer.to_lowercase().contains("retry-after"), "{answer}");

    // another's requests are served all the same, once the model goes on
    let mut other = with_token(server, Some(OTHER)).await;
    let others = tokio::spawn(async move { other.score(request(&["3 4"])).await });
    model.open();
    assert_eq!(reward(others.await.unwrap().unwrap().get_ref()), 7.0);
    for waiting in waiting {
        assert_eq!(reward(waiting.await.unwrap().unwrap().get_ref()), 3.0);
    }
    let large = client.score(request(&["1 2 3", "4 5 6"])).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    assert!(large.message().contains("has 6 tokens, and token `greedy` may have 5 in flight"), "{large:?}");
    client.score(request(&["1 2 3", "4 5"])).await.unwrap();

    // what a token was refused is counted as its own
    let page = page().await;
    let counted = |token: &str, code: &str| {
        let series = format!("rewarm_token_requests_total{{token=\"{token}\",code=\"{code}\"}} ");
        let value =
            page.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or_else(|| panic!("{series}"));
        value.parse::<u64>().unwrap()
    };
    assert_eq!(counted("greedy", "RESOURCE_EXHAUSTED"), 2, "over gRPC and over HTTP");
    assert_eq!(counted("greedy", "INVALID_ARGUMENT"), 1);
    assert_eq!((counted("modest", "RESOURCE_EXHAUSTED"), counted("modest", "OK")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_struck_from_the_file_ends_in_the_midst_of_a_stream() {
    let guarded = Guarded::with_tokens(&tokens()).await;
    let mut client = with_token(&guarded.server, Some(TRAINER)).await;
    let (ask, asked) = tokio::sync::mpsc::channel(4);
    let stream = tokio_stream::wrappers::ReceiverStream::new(asked);
    ask.send(request(&["7"])).await.unwrap();
    let mut answers = client.score_stream(stream).await.unwrap().into_inner();
    assert_eq!(reward(&answers.message().await.unwrap().unwrap()), 7.0);

    guarded.rewrite("tokens.toml", &tokens().replace(TRAINER, "token-of-the-trainer-renewed"));
    let end = async {
        loop {
            ask.send(request(&["8"])).await.unwrap();
            match answers.next().await.unwrap() {
                Ok(answer) => assert_eq!(reward(&answer), 8.0),
                Err(status) => return status,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let end = tokio::time::timeout(SOON, end).await.unwrap();
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    let mut renewed = with_token(&guarded.server, Some("token-of-the-trainer-renewed")).await;
    renewed.score(request(&["7"])).await.unwrap();

    // what cannot be used changes nothing, and is told
    let series = r#"rewarm_renewals_total{what="tokens",result="failure"}"#;
    let failures = async || {
        let address = guarded.address(Port::Metrics);
        let (_, page) = over_http(address, "GET", "/metrics", Some(format!("Bearer {PROMETHEUS}")), "").await;
        let value = page.lines().find_map(|line| line.strip_prefix(series));
        value.map_or(0, |value| value.trim().parse::<u32>().unwrap())
    };
    let before = failures().await;
    guarded.rewrite("tokens.toml", "[tokens.");
    eventually("a bad file is told", async || failures().await > before).await;
    renewed.score(request(&["7"])).await.unwrap();
}

// ---- TLS ----

async fn with_tls(authority: &Authority, is_mutual: bool) -> Guarded {
    with_tls_of(authority, &authority.server(&["localhost", "127.0.0.1"]), is_mutual).await
}

async fn with_tls_of(authority: &Authority, signed: &Signed, is_mutual: bool) -> Guarded {
    Guarded::start(|folder, config| {
        let (certificate, key) = signed.write(folder, "server");
        let client_ca = folder.join("ca.crt");
        std::fs::write(&client_ca, &authority.pem).unwrap();
        config.tls = Some(TlsConfig {
            certificate,
            key,
            client_ca: is_mutual.then_some(client_ca),
            plain: Vec::new(),
        });
    })
    .await
}

async fn secure(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<&Signed>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("localhost");
    if let Some(Signed { certificate, key }) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect().await
}

async fn ready(channel: Channel) {
    let serves = async || {
        let request = HealthCheckRequest { service: "rewarm.v1.RewardService".to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status == 1)
    };
    eventually("it serves", serves).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ports_speak_tls_and_who_speaks_without_is_told() {
    let authority = Authority::new("ca");
    let guarded = with_tls(&authority, false).await;
    let channel = secure(guarded.address(Port::Reward), &authority, None).await.unwrap();
    ready(channel.clone()).await;
    let mut client = RewardServiceClient::new(channel);
    assert_eq!(reward(client.score(request(&["7"])).await.unwrap().get_ref()), 7.0);
    secure(guarded.address(Port::Admin), &authority, None).await.unwrap();

    for port in Port::ALL.iter().copied() {
        let address = guarded.address(port);
        let (status, answer) = over_http(address, "GET", "/healthz", None, "").await;
        assert!(status == 426 && answer.contains("speaks TLS"), "{answer}");
        let plain = Channel::from_shared(format!("http://{address}")).unwrap().connect().await;
        if let Ok(plain) = plain {
            let answer = RewardServiceClient::new(plain).score(request(&["7"])).await;
            let error = answer.unwrap_err();
            assert!(
                [Code::Internal, Code::Unavailable, Code::Cancelled].contains(&error.code()),
                "{error:?}"
            );
        }
    }

    // the program's own clients
    let url = format!("https://localhost:{}", guarded.address(Port::Reward).port());
    let ca = guarded.folder.path().join("ca.crt");
    let files = client::CredentialFiles { ca: Some(ca), ..Default::default() };
    let asked = move |files: client::CredentialFiles, url: String| {
        let server =
            client::Server { url, timeout: Duration::from_secs(5), credentials: files.read().unwrap() };
        client::check_health(&server, None)
    };
    let (good, bad, here) = tokio::task::spawn_blocking({
        let (url, address) = (url.clone(), guarded.address(Port::Reward));
        move || {
            let here = client::check_health_here(address, None, Duration::from_secs(5));
            (asked(files, url.clone()), asked(client::CredentialFiles::default(), url), here)
        }
    })
    .await
    .unwrap();
    good.unwrap();
    here.unwrap();
    let bad = format!("{:#}", bad.unwrap_err());
    assert!(
        bad.contains(&format!(
            "connect to {url}: its certificate is signed by nobody whom this machine knows"
        )),
        "{bad}"
    );
    assert!(bad.ends_with("name who signs it with --ca"), "{bad}");
}

/// What the program's clients say where TLS, or what is spoken, does not fit: once, and with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_says_in_plain_words_why_it_cannot_be_served() {
    let authority = Authority::new("ca");
    let with = with_tls(&authority, false).await;
    let without = Guarded::start(|_, _| {}).await;
    without.server.ready().await;
    let expired = Authority::new("old");
    let stale = with_tls_of(&expired, &expired.expired_server(&["localhost"]), false).await;
    let of_authority = Authority::new("self");
    let shown = Signed { certificate: of_authority.pem.clone(), key: of_authority.key() };
    let self_signed = with_tls_of(&of_authority, &shown, false).await;

    let ca = |guarded: &Guarded| Some(guarded.folder.path().join("ca.crt"));
    let ask = |url: String, ca: Option<std::path::PathBuf>, name: Option<&str>| {
        let server_name = name.map(str::to_owned);
        let credentials = client::CredentialFiles { ca, server_name, ..Default::default() }.read().unwrap();
        let server = client::Server { url, timeout: Duration::from_secs(5), credentials };
        tokio::task::spawn_blocking(move || format!("{:#}", client::check_health(&server, None).unwrap_err()))
    };
    let url = |scheme: &str, guarded: &Guarded, port| {
        format!("{scheme}://localhost:{}", guarded.address(port).port())
    };
    for (said, part) in [
        (
            ask(url("https", &with, Port::Reward), ca(&stale), None),
            "signed by somebody who is not in the file of --ca",
        ),
        (ask(url("https", &with, Port::Reward), ca(&with), Some("another")), "is not of another, but of"),
        (ask(url("https", &with, Port::Http), ca(&with), None), "but no gRPC: is this the port of HTTP"),
        (ask(url("https", &stale, Port::Reward), ca(&stale), None), "its certificate has expired"),
        (
            ask(url("https", &self_signed, Port::Reward), ca(&self_signed), None),
            "that of an authority (CA:TRUE)",
        ),
        (ask(url("https", &without, Port::Reward), ca(&with), None), "http://"),
        (ask(url("https", &without, Port::Http), ca(&with), None), "http://"),
        (ask(url("http", &without, Port::Http), None, None), "does not speak gRPC without TLS: is it"),
        (ask(url("http", &without, Port::Metrics), None, None), "does not speak gRPC without TLS: is it"),
        (ask(url("http", &with, Port::Reward), None, None), "one with TLS (https://)"),
    ] {
        let said = said.await.unwrap();
        assert!(said.contains(part) && said.matches(part).count() == 1, "{part}: {said}");
        for jargon in ["transport error", "UnknownIssuer", "CaUsedAsEndEntity", "h2"] {
            assert!(!said.contains(jargon), "{jargon}: {said}");
        }
    }
    // and who comes with HTTP/2 to a port of HTTP/1 is told by the server, too
    use std::io::Write as _;
    let port = without.address(Port::Http);
    let told = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(port).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let told = told.await.unwrap();
    let reward = without.address(Port::Reward).port();
    assert!(
        told.starts_with("HTTP/1.1 505 ") && told.contains(&format!("gRPC is on port {reward}")),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_asked_for_by_every_call_but_health() {
    let authority = Authority::new("ca");
    let guarded = with_tls(&authority, true).await;
    let address = guarded.address(Port::Reward);
    let without = secure(address, &authority, None).await.unwrap();
    ready(without.clone()).await;
    let refused = RewardServiceClient::new(without).score(request(&["7"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("no client certificate"), "{refused:?}");

    let score = async |identity: &Signed| {
        // a handshake of TLS 1.3 ends before the server has judged the client
        let channel = secure(address, &authority, Some(identity)).await.map_err(|error| error.to_string())?;
        let answer = RewardServiceClient::new(channel).score(request(&["7"])).await;
        answer.map(|answer| reward(answer.get_ref())).map_err(|status| status.to_string())
    };
    assert_eq!(score(&authority.client("trainer")).await.unwrap(), 7.0);
    score(&authority.expired_client("trainer")).await.unwrap_err();
    score(&Authority::new("ca").client("trainer")).await.unwrap_err();
    score(&authority.server(&["localhost"])).await.unwrap_err(); // not for clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_without_a_restart_and_a_bad_one_changes_nothing() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let guarded = with_tls(&old, false).await;
    let address = guarded.address(Port::Reward);
    let before = secure(address, &old, None).await.unwrap();
    ready(before.clone()).await;
    secure(address, &new, None).await.unwrap_err();

    // the key without its certificate: as one file is renewed before the other
    let renewed = new.server(&["localhost"]);
    guarded.rewrite("server.key", &renewed.key);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    secure(address, &old, None).await.unwrap();
    guarded.rewrite("server.crt", &renewed.certificate);
    eventually("the new certificate holds", async || secure(address, &new, None).await.is_ok()).await;
    secure(address, &old, None).await.unwrap_err();
    // what was connected goes on
    RewardServiceClient::new(before).score(request(&["7"])).await.unwrap();
}

#[test]
fn what_is_open_and_what_is_about_to_end_is_told_before_it_starts() {
    let authority = Authority::new("ca");
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(models(&[("warm", 1.0)]));
    assert_eq!(config.check_access().unwrap(), Vec::<String>::new(), "all are on loopback");
    let anywhere = |port: &Port| (*port, Some(([0, 0, 0, 0], 0).into()));
    config.ports = service::Ports::new(Port::ALL.iter().map(anywhere));
    let open = config.check_access().unwrap();
    assert!(
        open.len() == Port::ALL.len()
            && open.iter().all(|line| line.contains("without TLS and without tokens")),
        "{open:?}"
    );

    let tokens_file = folder.path().join("tokens.toml");
    std::fs::write(&tokens_file, tokens()).unwrap();
    config.tokens = Some(tokens_file);
    assert!(config.check_access().unwrap().iter().all(|line| line.contains("tokens included")));

    let (certificate, key) = authority.server(&["localhost"]).write(folder.path(), "server");
    let plain = vec![Port::Metrics];
    config.tls =
        Some(TlsConfig { certificate: certificate.clone(), key: key.clone(), client_ca: None, plain });
    let [open] = &config.check_access().unwrap()[..] else { panic!("only one is left") };
    assert!(open.starts_with("metrics 0.0.0.0:0"), "{open}");

    authority.expired_server(&["localhost"]).write(folder.path(), "server");
    assert!(config.check_access().unwrap()[0].contains("has expired"));
    authority.server(&["localhost"]).write(folder.path(), "other");
    std::fs::copy(folder.path().join("other.key"), &key).unwrap();
    let error = config.check_access().unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("server.key"), "{error:?}");
    std::fs::write(&key, "no key").unwrap();
    let error = config.check_access().unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("has no private key in PEM"));

    // keys that openssl makes and rustls does not take: `openssl req -x509 -nodes -newkey rsa:1024`, and `-newkey ec -pkeyopt
    // ec_paramgen_curve:secp521r1`
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let mut with = |certificate: &Path, key: &Path| {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        config.tls = Some(TlsConfig { certificate, key, client_ca: None, plain: Vec::new() });
        let error = config.check_access();
        error.map_err(|error| std::error::Error::source(&error).unwrap().to_string())
    };
    for (name, kind) in [("rsa-1024", "RSA with 1024 bits"), ("ecdsa-p521", "ECDSA with P-521")] {
        let problem = with(&data.join(name).with_extension("crt"), &data.join(name).with_extension("key"));
        let problem = problem.unwrap_err();
        assert!(
            problem.contains(&format!("the key ({kind}) cannot be used here: take ECDSA with P-256")),
            "{problem}"
        );
        let files = client::CredentialFiles {
            certificate: Some(data.join(name).with_extension("crt")),
            key: Some(data.join(name).with_extension("key")),
            ..Default::default()
        };
        let problem = format!("{:#}", files.read().err().unwrap());
        assert!(problem.contains(&format!("the key ({kind}) cannot be used here")), "{problem}");
    }
    // an editor's mark, before which nobody sees a certificate
    let (certificate, key) = authority.server(&["localhost"]).write(folder.path(), "marked");
    assert!(with(&certificate, &key).is_ok());
    for path in [&certificate, &key] {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, format!("\u{feff}{text}")).unwrap();
        let problem = with(&certificate, &key).unwrap_err();
        assert!(problem.starts_with(&format!("read {}", path.display())), "{problem}");
        std::fs::write(path, text).unwrap();
    }
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, format!("\u{feff}{}", authority.pem)).unwrap();
    let files = client::CredentialFiles { ca: Some(ca), ..Default::default() };
    assert!(format!("{:#}", files.read().err().unwrap()).contains("byte order mark (BOM)"));
    // that of an authority works with some clients only
    let own = Authority::new("self");
    let (certificate, key) =
        Signed { certificate: own.pem.clone(), key: own.key() }.write(folder.path(), "own");
    assert!(with(&certificate, &key).unwrap().iter().any(|line| line.contains("CA:TRUE")));
}
