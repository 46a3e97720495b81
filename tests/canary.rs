//! `rewarm canary` as an operator runs it: the real program, two real servers, and a Prometheus that says what a test wants.
//! (`tests/deploy` runs it with the real one.)

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod certificates;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;

use certificates::Authority;
use certificates::Signed;
use rewarm::proto::GetServerInfoRequest;
use rewarm::proto::Sample;
use rewarm::proto::ScoreRequest;
use rewarm::proto::SetRoutingRequest;
use rewarm::proto::sample::Input;
use rewarm::service::Port;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use support::Fake;
use support::TestServer;
use support::config;
use support::models;
use support::start_with;
use support::variant;
use tonic::Code;

async fn server() -> TestServer {
    let (warm, ens) = (Fake::new(1.0), Fake::new(2.0));
    let config = config(models(&[("warm", 1.0), ("ens", 0.0)]));
    let load = move |name: &str| Ok(variant(name, if name == "warm" { &warm } else { &ens }));
    let server = start_with(config, load).await;
    server.ready().await;
    server
}

/// A Prometheus that knows two servers, `warm` with all the traffic, and a p99 of the canary.
fn prometheus(p99: f64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            answer(stream, p99);
        }
    });
    url
}

/// The same over TLS.
fn prometheus_with_tls(signed: &Signed) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let chain = vec![CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            answer(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream), 0.1);
        }
    });
    url
}

fn answer(mut stream: impl Read + Write, p99: f64) {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend_from_slice(&piece[..count]),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    assert!(path.starts_with("/api/v1/query?query="), "{path}");
    let sample = |labels: &str, value: f64| format!(r#"{{"metric": {{{labels}}}, "value": [1, "{value}"]}}"#);
    let samples = match path {
        _ if path.contains("rewarm_route_weight") => {
            let of = |instance: &str| {
                let of = |variant: &str, weight| {
                    sample(&format!(r#""instance": "{instance}", "variant": "{variant}""#), weight)
                };
                [of("warm", 1.0), of("ens", 0.0)].join(",")
            };
            [of("a"), of("b")].join(",")
        }
        _ if path.contains("quantile") && path.replace("%21", "!").contains("!%3D%22ens") => sample("", 0.1),
        _ if path.contains("quantile") => sample("", p99),
        _ if path.contains("increase") => sample("", 1000.0),
        _ if path.contains("shadow") => String::new(),
        _ => sample("", 0.0), // no failures
    };
    let body =
        format!(r#"{{"status": "success", "data": {{"resultType": "vector", "result": [{samples}]}}}}"#);
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
}

async fn canary(servers: &[&TestServer], p99: f64, more: &[&str]) -> Output {
    let args = args(servers, p99, more);
    tokio::task::spawn_blocking(move || program::run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

/// As [`canary`], with what it says going to pipes.
fn begin(servers: &[&TestServer], p99: f64, more: &[&str]) -> Child {
    let args = args(servers, p99, more);
    let mut command = program::rewarm(&args.iter().map(String::as_str).collect::<Vec<_>>());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn args(servers: &[&TestServer], p99: f64, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["canary", "ens", "--poll", "1"].map(str::to_owned).into();
    for (flag, value) in [("--steps", "10,100"), ("--pause", "1")] {
        if !more.contains(&flag) {
            args.extend([flag, value].map(str::to_owned));
        }
    }
    if !more.contains(&"--prometheus") {
        args.extend(["--prometheus".to_owned(), prometheus(p99)]);
    }
    for server in servers {
        args.extend(["--admin".to_owned(), format!("http://{}", server.address(Port::Admin))]);
    }
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    args
}

/// Sets weights as an operator does by hand.
async fn set(server: &TestServer, ens: f64) {
    let weights = [("warm", 1.0 - ens), ("ens", ens)].map(|(name, weight)| (name.to_owned(), weight));
    server
        .admin()
        .await
        .set_routing(SetRoutingRequest { weights: weights.into(), expected: vec![] })
        .await
        .unwrap();
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

async fn share_of_ens(server: &TestServer) -> f64 {
    let info = server.client().await.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    info.routing.unwrap().weights["ens"]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_move_alike_and_back_when_a_guard_breaks() {
    let (one, other) = (server().await, server().await);
    let done = canary(&[&one, &other], 0.12, &[]).await;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{done:?}");
    assert!(said.contains("10.0% for 1s") && said.contains("p99 120 ms, others 100 ms"), "{said}");
    assert_eq!((share_of_ens(&one).await, share_of_ens(&other).await), (1.0, 1.0));

    set(&one, 0.0).await;
    set(&other, 0.0).await;
    let back = canary(&[&one, &other], 0.2, &[]).await;
    let problem = String::from_utf8_lossy(&back.stderr).into_owned();
    assert_eq!(back.status.code(), Some(1));
    assert!(
        problem.contains("all is as before: p99 200 ms, others 100 ms: more than 1.5 times"),
        "{problem}"
    );
    assert_eq!((share_of_ens(&one).await, share_of_ens(&other).await), (0.0, 0.0));
    // an ensemble is allowed to take longer
    assert!(canary(&[&one, &other], 0.2, &["--max-slowdown", "4"]).await.status.success());
    assert_eq!(share_of_ens(&one).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_unless_all_servers_are_told_and_something_can_be_known() {
    let (one, other) = (server().await, server().await);
    for (servers, more, expected) in [
        (vec![&one], vec![], "Prometheus sees 2 servers and --admin reaches 1"),
        (vec![&one, &other], vec!["--steps", "5,1"], "--steps must rise"),
        (
            vec![&one, &other],
            vec!["--alert", "rewarm_route_weight == 0"],
            "nothing was changed: rewarm_route_weight == 0 finds {",
        ),
        (
            vec![&one, &other],
            vec!["--max-disagreement", "10", "--patience", "1"],
            "no shadow has scored pairs",
        ),
    ] {
        let output = canary(&servers, 0.1, &more).await;
        let problem = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && problem.contains(expected), "{problem}");
        assert_eq!(share_of_ens(&one).await, 0.0, "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_somebody_else_sets_meanwhile_stay_and_end_it() {
    let (one, other) = (server().await, server().await);
    let canary = begin(&[&one, &other], 0.1, &["--pause", "60"]);
    support::eventually("both have the share", async || {
        share_of_ens(&one).await == 0.1 && share_of_ens(&other).await == 0.1
    })
    .await;
    set(&one, 0.3).await;
    let output = tokio::task::spawn_blocking(move || canary.wait_with_output().unwrap()).await.unwrap();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    let left = format!(
        "{}: somebody else has set the weights meanwhile, which stay: ens 30.0%",
        one.address(Port::Admin)
    );
    assert!(problem.contains(&left), "{problem}");
    assert_eq!((share_of_ens(&one).await, share_of_ens(&other).await), (0.3, 0.0));
    // and who begins by what Prometheus saw before that does not begin
    let output = self::canary(&[&one, &other], 0.1, &[]).await;
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(problem.contains("Prometheus saw other weights than are set"), "{problem}");
    assert_eq!((share_of_ens(&one).await, share_of_ens(&other).await), (0.3, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_says_which_servers_may_not_be_as_before() {
    let (one, other) = (server().await, server().await);
    let address = other.address(Port::Admin);
    let mut canary = begin(&[&one, &other], 0.1, &["--pause", "60"]);
    support::eventually("both have the share", async || {
        share_of_ens(&one).await == 0.1 && share_of_ens(&other).await == 0.1
    })
    .await;
    drop(other); // it does not answer any more
    interrupt(&canary);
    support::eventually("one is as before", async || share_of_ens(&one).await == 0.0).await;
    // it has heard both the servers' answers once it says whose is missing
    let mut said = BufReader::new(canary.stdout.take().unwrap()).lines().map_while(Result::ok);
    said.find(|line| line.contains("goes back"));
    said.find(|line| line.contains(&address.to_string())).unwrap();
    interrupt(&canary);
    let output = tokio::task::spawn_blocking(move || canary.wait_with_output().unwrap()).await.unwrap();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{problem}");
    assert!(problem.trim_end().ends_with(&format!("a reload (SIGHUP) mends: {address}")), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_of_a_private_authority_is_trusted_where_it_is_named() {
    let (one, other) = (server().await, server().await);
    let authority = Authority::new("of the house");
    let url = prometheus_with_tls(&authority.server(&["localhost"]));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, &authority.pem).unwrap();
    let output = canary(&[&one, &other], 0.1, &["--prometheus", &url]).await;
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(problem.contains("--prometheus-ca") && problem.contains(&url), "{problem}");
    let named = ["--prometheus", &url, "--prometheus-ca", ca.to_str().unwrap()];
    let done = canary(&[&one, &other], 0.1, &named).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(share_of_ens(&one).await, 1.0);
    std::fs::write(&ca, "nothing").unwrap();
    let output = canary(&[&one, &other], 0.1, &named).await;
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(problem.contains("ca.crt: it has no certificate in PEM"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_pinned_a_fingerprint_stays_where_it_is() {
    let server = server().await;
    let mut admin = server.admin().await;
    admin
        .set_routing(SetRoutingRequest { weights: [("ens".to_owned(), 1.0)].into(), expected: vec![] })
        .await
        .unwrap();
    let score = async |expected_fingerprint: &str| {
        let sample = Sample { id: String::new(), input: Some(Input::Formatted("7".to_owned())) };
        let request = ScoreRequest {
            samples: vec![sample],
            expected_fingerprint: expected_fingerprint.to_owned(),
            ..Default::default()
        };
        server.client().await.score(request).await.map(|answer| answer.into_inner().variant)
    };
    assert_eq!(score("").await.unwrap(), "ens");
    assert_eq!(score("fingerprint-of-warm").await.unwrap(), "warm");
    assert_eq!(score("fingerprint-of-ens").await.unwrap(), "ens");
    assert_eq!(score("another").await.unwrap_err().code(), Code::FailedPrecondition);
}
