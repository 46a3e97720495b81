//! Connections that say nothing, say it wrong, leave, or stay: none of them harms another.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/frames.rs"]
mod frames;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use frames::ACK;
use frames::DATA;
use frames::END_HEADERS;
use frames::END_STREAM;
use frames::GOAWAY;
use frames::HEADERS;
use frames::PING;
use frames::PREFACE;
use frames::Peer;
use frames::RST_STREAM;
use frames::frame;
use frames::headers;
use rewarm::proto;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::service::Connections;
use rewarm::service::Port;
use support::Fake;
use support::SOON;
use support::TestServer;
use support::config;
use support::eventually;
use support::models;
use support::request;
use support::rewards;
use support::start_with;
use support::variant;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const SCORE: &str = "/rewarm.v1.RewardService/Score";
/// Long enough to tell it from nothing, short enough for a test.
const SHORT: Duration = Duration::from_millis(150);

async fn start(model: &Arc<Fake>, connections: Connections) -> TestServer {
    let model = model.clone();
    let mut config = config(models(&[("warm", 1.0)]));
    config.connections = connections;
    config.drain_limit = Duration::from_secs(60);
    let server = start_with(config, move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    server
}

impl TestServer {
    fn ports(&self) -> Vec<(&'static str, SocketAddr)> {
        self.running.ports.iter().map(|(port, address)| (port.as_str(), address)).collect()
    }

    /// The process counts for all servers of this file: what a test adds is found by waiting.
    async fn closed(&self, port: &str, reason: &str) -> f64 {
        let series = format!("rewarm_connections_closed_total{{port=\"{port}\",reason=\"{reason}\"}}");
        self.metric(&series).await
    }
}

async fn connect(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Reads to the end, which comes soon, as an end or as a reset.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn call(client: &RewardServiceClient<tonic::transport::Channel>, text: &str) -> Vec<f32> {
    let response = timeout(SOON, client.clone().score(request(&[text]))).await.unwrap();
    rewards(&response.unwrap().into_inner())
}

// ---- silence ----

#[tokio::test]
async fn who_does_not_begin_is_closed_on_every_port() {
    let server = start(&Fake::new(1.0), Connections { first_bytes: SHORT, ..Connections::default() }).await;
    for (port, address) in server.ports() {
        let before = server.closed(port, "silent").await;
        let begun: &[u8] = if ["metrics", "http"].contains(&port) {
            b"GET /metrics HTTP/1.1\r\nHost:"
        } else {
            &PREFACE[..20]
        };
        for bytes in [b"", begun] {
            assert_eq!(rest(&mut connect(address, bytes).await).await, "", "{port}");
        }
        eventually("both are counted", async || server.closed(port, "silent").await >= before + 2.0).await;
    }
    assert_eq!(call(&server.client().await, "3").await, [3.0]);
}

#[tokio::test]
async fn who_answers_pings_stays_and_who_does_not_is_closed() {
    let connections =
        Connections { keepalive: SHORT, keepalive_timeout: SHORT, first_bytes: SHORT, ..Default::default() };
    let server = start(&Fake::new(1.0), connections).await;
    let address = server.address(Port::Reward);
    let before = server.closed("reward", "keepalive").await;
    let mut deaf = Peer::connect(address).await;
    let mut waits = Peer::connect(address).await;

    let (is_closed, mut pings) = (deaf.ends_within(SOON), 0);
    let waiting = async {
        while pings < 5 {
            let ping = waits.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await.unwrap();
            waits.send(&frame(PING, ACK, 0, &ping.payload)).await;
            pings += 1;
        }
    };
    let (is_closed, ()) = tokio::join!(is_closed, waiting);

    assert!(is_closed);
    eventually("it is counted", async || server.closed("reward", "keepalive").await > before).await;
    waits.send(&frames::call(1, SCORE, &request(&["7"]))).await;
    let answer: proto::ScoreResponse = waits.answer(1).await.unwrap();
    assert_eq!(rewards(&answer), [7.0]);
}

#[tokio::test]
async fn an_idle_page_reader_is_closed_and_may_ask_again_before() {
    let server = start(&Fake::new(1.0), Connections { idle: SHORT, ..Default::default() }).await;
    let address = server.address(Port::Metrics);
    let before = server.closed("metrics", "idle").await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut stream = connect(address, ask).await;
    let mut page = [0; 512];
    assert!(stream.read(&mut page).await.unwrap() > 0);
    stream.write_all(ask).await.unwrap();
    let pages = rest(&mut stream).await;
    assert!(pages.starts_with("HTTP/1.1 200") && pages.ends_with("ok\n"), "{pages}");
    eventually("it is counted", async || server.closed("metrics", "idle").await > before).await;
}

/// Answers to pings need no permission, so they could pile up for a peer that does not read them.
#[tokio::test]
async fn who_does_not_read_is_not_read_either_and_then_closed() {
    let connections = Connections { keepalive: SHORT, keepalive_timeout: SHORT, ..Default::default() };
    let server = start(&Fake::new(1.0), connections).await;
    let mut peer = Peer::connect(server.address(Port::Reward)).await;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(4096);
    let mut sent = 0;
    let flood = async {
        while peer.stream.write_all(&pings).await.is_ok() {
            sent += pings.len();
        }
    };
    timeout(SOON, flood).await.expect("it is closed while it writes");
    // What the sockets of both sides take, and not what a server with much memory would.
    assert!(sent < 64 << 20, "{sent} bytes were read");
}

// ---- bounds ----

#[tokio::test]
async fn the_silent_make_room_and_callers_keep_theirs() {
    let server = start(&Fake::new(1.0), Connections { max: 4, ..Default::default() }).await;
    let address = server.address(Port::Reward);
    let [displaced, full] =
        [server.closed("reward", "displaced").await, server.closed("reward", "full").await];
    let mut silent = Vec::new();
    for bytes in [b"", PREFACE] {
        for _ in 0..4 {
            silent.push(connect(address, bytes).await);
        }
    }
    let mut callers = Vec::new();
    for _ in 0..4 {
        let client = server.client().await;
        assert_eq!(call(&client, "1").await, [1.0]);
        callers.push(client);
    }
    eventually("all silent ones have gone", async || {
        server.closed("reward", "displaced").await >= displaced + 8.0
    })
    .await;

    let mut refused = connect(address, PREFACE).await;
    assert_eq!(rest(&mut refused).await, "");
    eventually("it is counted", async || server.closed("reward", "full").await > full).await;
    for client in &callers {
        assert_eq!(call(client, "2").await, [2.0]);
    }
    assert_eq!(server.page("/healthz").await.0, 200);

    drop(callers);
    eventually("there is room again", async || {
        let client = RewardServiceClient::connect(server.url()).await;
        match client {
            Ok(mut client) => client.score(request(&["1"])).await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

/// More than the metrics port takes; each has asked, and keeps its connection for the next time.
#[tokio::test]
async fn page_readers_who_stay_keep_nobody_out() {
    let server = start(&Fake::new(1.0), Connections::default()).await;
    let before = server.closed("metrics", "displaced").await;
    let mut readers = Vec::new();
    for _ in 0..80 {
        let address = server.address(Port::Metrics);
        let mut reader = connect(address, b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await;
        let mut page = [0; 512];
        let count = timeout(SOON, reader.read(&mut page)).await.unwrap().unwrap();
        assert!(page[..count].starts_with(b"HTTP/1.1 200 "));
        readers.push(reader);
    }
    assert_eq!(server.page("/readyz").await.0, 200);
    eventually("the first made room", async || server.closed("metrics", "displaced").await >= before + 16.0)
        .await;
}

#[tokio::test]
async fn a_peer_has_a_bound_when_it_is_given_one() {
    let server = start(&Fake::new(1.0), Connections { max_per_peer: Some(3), ..Default::default() }).await;
    let address = server.address(Port::Reward);
    // The client that waited for the server may still be there.
    let before = server.closed("reward", "peer_full").await;
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(connect(address, b"").await);
    }
    assert_eq!(rest(&mut peers[3]).await, "");
    eventually("it is counted", async || server.closed("reward", "peer_full").await > before).await;
    peers.clear();
    eventually("it may come again", async || {
        let mut peer = Peer::connect(address).await;
        peer.next().await.is_some()
    })
    .await;
}

// ---- another protocol ----

#[tokio::test]
async fn http1_on_a_grpc_port_is_told_what_this_is() {
    let server = start(&Fake::new(1.0), Connections::default()).await;
    let metrics = server.address(Port::Metrics);
    let post =
        format!("POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n{}", "x".repeat(50_000));
    for port in [Port::Reward, Port::Admin] {
        let address = server.address(port);
        for ask in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nXX\r\n", &post] {
            let answer = rest(&mut connect(address, ask.as_bytes()).await).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 505 "), "{port:?}: {head}");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
            assert!(body.contains("gRPC port of rewarm") && body.contains(&metrics.to_string()), "{body}");
        }
    }
}

#[tokio::test]
async fn tls_and_garbage_are_closed_at_once() {
    // The timeouts that would close them are an hour away.
    let hour = Duration::from_secs(3600);
    let connections = Connections { first_bytes: hour, idle: hour, ..Default::default() };
    let server = start(&Fake::new(1.0), connections).await;
    let count = async |reason: &str| server.closed("reward", reason).await;
    let (before, tls_before) = (count("other_protocol").await, count("tls").await);
    let metrics_before = server.closed("metrics", "tls").await;
    let client_hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
    let garbage: [&[u8]; 4] = [&client_hello, b"\0\0\0\0\0\0", b"hello\n", &[b'A'; 100]];
    for bytes in garbage {
        for port in [Port::Reward, Port::Admin] {
            assert_eq!(rest(&mut connect(server.address(port), bytes).await).await, "", "{port:?}");
        }
    }
    // An HTTP/1 server says that it did not understand.
    let told = rest(&mut connect(server.address(Port::Metrics), &client_hello).await).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 400 "), "{told}");
    eventually("they are counted", async || {
        count("other_protocol").await >= before + 3.0
            && count("tls").await >= tls_before + 1.0
            && server.closed("metrics", "tls").await >= metrics_before + 1.0
    })
    .await;
}

// ---- resets ----

/// Calls that are given up before the server took notice: a thousand at once are not an attack.
#[tokio::test]
async fn calls_that_are_reset_end_nobody_elses() {
    let model = Fake::new(1.0);
    let server = start(&model, Connections::default()).await;
    let mut peer = Peer::connect(server.address(Port::Reward)).await;
    model.close();
    let forwards = model.forwards.load(Ordering::SeqCst);
    peer.send(&frames::call(1, SCORE, &request(&["5"]))).await;
    eventually("it is in flight", async || model.forwards.load(Ordering::SeqCst) > forwards).await;

    let mut pairs = Vec::new();
    for stream in (3..20_003).step_by(2) {
        pairs.extend(frame(HEADERS, END_HEADERS, stream, &headers(SCORE, &[])));
        pairs.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    peer.send(&pairs).await;
    peer.send(&frames::call(20_003, SCORE, &request(&["6"]))).await;
    model.open();

    let answer = |frame: &frames::Frame| frame.kind == DATA || frame.kind == GOAWAY;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let frame = timeout(SOON, peer.until(answer)).await.unwrap().expect("the connection lives");
        assert_eq!(frame.kind, DATA, "{frame:?}");
        answers.push(frame.stream);
    }
    answers.sort_unstable();
    assert_eq!(answers, [1, 20_003]);
}

/// A call that is answered early, say since its message is too large, leaves frames on their way.
#[tokio::test]
async fn frames_that_come_too_late_end_nobody_elses_call() {
    let server = start(&Fake::new(1.0), Connections::default()).await;
    let mut peer = Peer::connect(server.address(Port::Reward)).await;
    peer.send(&frames::call(1, SCORE, &request(&["5"]))).await;
    assert!(peer.until(|frame| frame.kind == HEADERS && frame.flags & END_STREAM != 0).await.is_some());
    // 1024 of these in the life of a connection used to end it.
    peer.send(&frame(DATA, 0, 1, &[0; 4]).repeat(3000)).await;
    peer.send(&frames::call(3, SCORE, &request(&["6"]))).await;
    let answer = peer.until(|frame| frame.kind == GOAWAY || (frame.kind, frame.stream) == (DATA, 3));
    let frame = timeout(SOON, answer).await.unwrap().expect("the connection lives");
    assert_eq!(frame.kind, DATA, "{frame:?}");
}

#[tokio::test]
async fn who_breaks_the_protocol_is_closed_and_counted() {
    let server = start(&Fake::new(1.0), Connections::default()).await;
    let before = server.closed("reward", "protocol_error").await;
    let mut peer = Peer::connect(server.address(Port::Reward)).await;
    // A frame that opens a call may not have an even number.
    peer.send(&frame(HEADERS, END_HEADERS, 2, &headers(SCORE, &[]))).await;
    assert!(peer.until(|frame| frame.kind == GOAWAY).await.is_some());
    assert!(peer.ends_within(SOON).await);
    eventually("it is counted", async || server.closed("reward", "protocol_error").await > before).await;
}

// ---- deadlines ----

/// The status and the message of a call with this timeout, which the client leaves to the server.
async fn status_of(
    server: &TestServer,
    timeout_value: &str,
    body: Option<&proto::ScoreRequest>,
) -> (i32, String) {
    let stream = TcpStream::connect(server.address(Port::Reward)).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let call = hyper::Request::post(format!("{}{SCORE}", server.url()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout_value)
        .body(())
        .unwrap();
    let (response, mut sender) = client.send_request(call, false).unwrap();
    if let Some(body) = body {
        let message = prost::Message::encode_to_vec(body);
        let bytes = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        sender.send_data(bytes.into(), true).unwrap();
    }
    let response = timeout(SOON, response).await.unwrap().unwrap();
    let mut headers = response.headers().clone();
    let mut body = response.into_body();
    while body.data().await.is_some() {}
    headers.extend(body.trailers().await.unwrap().unwrap_or_default());
    connection.abort();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    (text("grpc-status").unwrap().parse().unwrap(), text("grpc-message").unwrap_or_default())
}

const OK: i32 = 0;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;

#[tokio::test]
async fn a_deadline_that_passes_in_the_server_has_one_status() {
    let model = Fake::new(1.0);
    let server = start(&model, Connections::default()).await;
    model.close();
    for value in ["0m", "0n", "1n", "1m", "2m", "20m", "50000u", "00000001m"] {
        for body in [Some(&request(&["1"])), None] {
            let (status, message) = status_of(&server, value, body).await;
            assert_eq!(status, DEADLINE_EXCEEDED, "{value}: {message}");
        }
    }
    model.open();
    for value in ["", "1", "m", "1x", "-1S", "+1S", "1.5S", "123456789S", "1 S", &"9".repeat(4000)] {
        let (status, message) = status_of(&server, value, Some(&request(&["1"]))).await;
        assert_eq!(status, INVALID_ARGUMENT, "{value}: {message}");
        assert!(message.contains("grpc-timeout") && message.len() < 200, "{message}");
    }
    for value in ["99999999H", "99999999M", "60S", "99999999n"] {
        let (status, message) = status_of(&server, value, Some(&request(&["1"]))).await;
        assert_eq!(status, OK, "{value}: {message}");
    }
    assert_eq!(
        server.metric("rewarm_requests_total{method=\"Score\",code=\"CANCELLED\",variant=\"warm\"}").await,
        0.0
    );
}

// ---- age ----

/// A peer whose connection is as old as it may become makes its next calls on another; what it has asked is answered.
#[tokio::test]
async fn an_old_connection_answers_its_calls_and_ends() {
    let model = Fake::new(1.0);
    let server = start(&model, Connections { max_age: Some(SHORT), ..Connections::default() }).await;
    let aged = server.closed("reward", "aged").await;
    let mut peer = Peer::connect(server.address(Port::Reward)).await;
    model.close();
    peer.send(&frames::call(1, SCORE, &request(&["5"]))).await;
    let goaway = timeout(SOON, peer.until(|frame| frame.kind == GOAWAY)).await.unwrap().unwrap();
    assert_eq!(goaway.payload[4..8], [0; 4], "in good order");
    // made before it could know: it counts
    peer.send(&frames::call(3, SCORE, &request(&["6"]))).await;
    let forwards = model.forwards.load(Ordering::SeqCst);
    model.open();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let data =
            timeout(SOON, peer.until(|frame| frame.kind == DATA)).await.unwrap().expect("both are answered");
        let answer: proto::ScoreResponse = prost::Message::decode(&data.payload[5..]).unwrap();
        answers.push((data.stream, rewards(&answer)));
    }
    answers.sort_by_key(|(stream, _)| *stream);
    assert_eq!(answers, [(1, vec![5.0]), (3, vec![6.0])]);
    assert!(model.forwards.load(Ordering::SeqCst) <= forwards + 2, "each once");
    timeout(SOON, peer.until(|_| false)).await.expect("it ends");
    eventually("it is counted", async || server.closed("reward", "aged").await > aged).await;
}

/// Of many connections, each of a few calls; a client of tonic is told of a call that it had not begun to send when its
/// connection ended, and makes it again, as others do by themselves.
#[tokio::test]
async fn callers_of_connections_that_age_get_every_answer() {
    let model = Fake::new(1.0);
    let server = start(&model, Connections { max_age: Some(SHORT), ..Connections::default() }).await;
    let aged = server.closed("reward", "aged").await;
    let samples = model.samples.load(Ordering::SeqCst);
    let mut client = server.client().await;
    let (begun, mut answered) = (Instant::now(), 0);
    while begun.elapsed() < 5 * SHORT {
        match timeout(SOON, client.score(request(&["2"]))).await.unwrap() {
            Ok(response) => {
                assert_eq!(rewards(&response.into_inner()), [2.0]);
                answered += 1;
            }
            Err(status) => {
                assert!(format!("{status:?}").contains("connection closed"), "{status:?}");
            }
        }
    }
    eventually("some have aged", async || server.closed("reward", "aged").await >= aged + 2.0).await;
    assert_eq!(
        model.samples.load(Ordering::SeqCst) - samples,
        answered,
        "what was not answered was not begun"
    );
}

#[tokio::test]
async fn an_old_connection_of_http1_says_with_an_answer_that_it_is_the_last() {
    let server = start(&Fake::new(1.0), Connections { max_age: Some(SHORT), ..Default::default() }).await;
    let address = server.address(Port::Metrics);
    let aged = server.closed("metrics", "aged").await;
    let mut stream = connect(address, b"").await;
    let (begun, mut young) = (Instant::now(), 0);
    let last = loop {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
        let mut page = [0; 512];
        let count = timeout(SOON, stream.read(&mut page)).await.unwrap().unwrap();
        let page = String::from_utf8_lossy(&page[..count]).into_owned();
        assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("ok\n"), "{page}");
        if page.contains("connection: close") {
            break begun.elapsed();
        }
        young += 1;
    };
    assert!(young > 0 && last > SHORT.mul_f64(0.85), "{young} {last:?}");
    assert_eq!(rest(&mut stream).await, "");
    eventually("it is counted", async || server.closed("metrics", "aged").await > aged).await;
}

// ---- the end ----

#[tokio::test]
async fn a_drain_ends_when_the_work_has_whoever_stays_connected() {
    let model = Fake::new(1.0);
    let mut server = start(&model, Connections::default()).await;
    let reward = server.address(Port::Reward);
    let drained = server.closed("reward", "drained").await;
    let mut stay = Vec::new();
    for (_, address) in server.ports() {
        stay.push(connect(address, b"").await);
        stay.push(connect(address, b"P").await);
    }
    let mut ignores_goaway = Peer::connect(reward).await;
    ignores_goaway.send(&frames::call(1, SCORE, &request(&["1"]))).await;
    let _: proto::ScoreResponse = ignores_goaway.answer(1).await.unwrap();
    // Its answer is larger than the window that it gives, and stays so.
    let mut never_reads = Peer::connect(reward).await;
    never_reads.send(&frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    never_reads.send(&frames::call(1, SCORE, &request(&["1"]))).await;
    assert!(never_reads.until(|frame| frame.kind == HEADERS).await.is_some());
    model.close();
    let client = server.client().await;
    let forwards = model.forwards.load(Ordering::SeqCst);
    let in_flight = tokio::spawn(async move { call(&client, "4").await });
    eventually("it is in flight", async || model.forwards.load(Ordering::SeqCst) > forwards).await;

    server.running.drain();
    assert!(timeout(SHORT, server.running.stopped()).await.is_err(), "there is work");
    let pages = server.page("/healthz").await;
    model.open();
    let begun = Instant::now();
    assert_eq!(in_flight.await.unwrap(), [4.0]);
    timeout(SOON, server.running.stopped()).await.unwrap().unwrap();
    // The limit is a minute.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(pages.0, 200);
    let exporter = rewarm::metrics::install();
    let page = exporter.render();
    let line = page.lines().find_map(|line| {
        line.strip_prefix("rewarm_connections_closed_total{port=\"reward\",reason=\"drained\"} ")
    });
    assert!(line.unwrap().parse::<f64>().unwrap() >= drained + 4.0, "{line:?}");
}

// ---- health ----

#[tokio::test]
async fn a_watch_of_a_name_that_nobody_has_waits_until_somebody_has() {
    let load = |name: &str| Ok(variant(name, &Fake::new(1.0)));
    let server = start_with(config(models(&[("old", 1.0)])), load).await;
    server.ready().await;
    let mut client = HealthClient::new(server.channel().await);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut watch = client.watch(of("new")).await.unwrap().into_inner();
    let mut old = client.watch(of("old")).await.unwrap().into_inner();
    let next = async |watch: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>| {
        timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap().status()
    };
    assert_eq!(next(&mut watch).await, ServingStatus::ServiceUnknown);
    assert_eq!(next(&mut old).await, ServingStatus::Serving);
    assert!(timeout(SHORT, watch.message()).await.is_err(), "it stays open");
    assert_eq!(client.check(of("new")).await.unwrap_err().code(), tonic::Code::NotFound);

    *server.reread.lock().unwrap() = Ok(models(&[("new", 1.0)]));
    server.admin().await.reload(proto::ReloadRequest {}).await.unwrap();
    assert_eq!(next(&mut watch).await, ServingStatus::Serving);
    assert_eq!(next(&mut old).await, ServingStatus::ServiceUnknown);

    let long = client.watch(of(&"x".repeat(5000))).await.unwrap_err();
    assert_eq!(long.code(), tonic::Code::OutOfRange);
}

// ---- the program ----

fn served(args: &[&str], limit: Option<u32>) -> program::Server {
    match limit {
        None => program::Server::start(args),
        Some(limit) => program::Server::start_limited(limit, args),
    }
}

#[tokio::test]
async fn silent_connections_do_not_shut_out_anybody_where_files_are_few() {
    let server = served(&[], Some(64));
    let told = server.log.iter().find(|line| line["message"] == "connections at a time").unwrap();
    assert_eq!(told["file_descriptors"], 64);
    let mut silent = Vec::new();
    for _ in 0..80 {
        for address in [&server.listen, &server.admin, &server.metrics] {
            // The last of them may find the door shut.
            silent.extend(TcpStream::connect(address).await);
        }
    }
    let scored = tokio::task::spawn_blocking(move || {
        let health = program::run(&["health", "--server", &server.url()]);
        assert!(health.status.success(), "{}", program::text(&health.stderr));
        let sample = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
        let scored = program::score(&["--server", &server.url(), "--variant", "warm"], sample);
        assert_eq!(program::get(&server.metrics, "/healthz").0, "HTTP/1.1 200 OK");
        let metrics = program::get(&server.metrics, "/metrics").1;
        let displaced = "rewarm_connections_closed_total{port=\"reward\",reason=\"displaced\"} ";
        let displaced = metrics.lines().find_map(|line| line.strip_prefix(displaced)).unwrap();
        assert!(displaced.parse::<f64>().unwrap() > 40.0, "{displaced}");
        scored
    });
    let scored = scored.await.unwrap();
    assert!(scored.status.success(), "{}", program::text(&scored.stderr));
}

#[tokio::test]
async fn a_signal_stops_the_program_though_somebody_stays_connected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rewarm.toml");
    let member = program::root().join("deploy/demo/member-0");
    let text = format!(
        "[server]\ndrain_grace_seconds = 0\ndrain_seconds = 60\n[variants.warm]\nmode = 'warm'\nmodel = '{}'\n",
        member.display()
    );
    std::fs::write(&path, text).unwrap();
    let server = served(&["--config", path.to_str().unwrap()], None);
    let address: SocketAddr = server.listen.parse().unwrap();
    // its first lines say what it is and how it is set, by the names of the manual
    let message = |message: &str| server.log.iter().find(|line| line["message"] == message).unwrap();
    assert_eq!(server.log[0]["message"], "starting");
    assert_eq!(server.log[0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(message("settings: server")["drain_seconds"], 60.0);
    assert_eq!(message("settings: batching")["max_batch_tokens"], 16_384);
    assert_eq!(message("settings: variant")["members"], member.display().to_string());
    let page = program::get(&server.metrics, "/metrics").1;
    let names: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 20 && names.is_sorted(), "{names:?}");

    let silent = connect(address, b"").await;
    let peer = Peer::connect(address).await;
    // of a client that takes the port for one with TLS
    let tls = connect(address, &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).await;
    let tls_peer = tls.local_addr().unwrap().to_string();
    let begun = Instant::now();
    server.signal("-TERM");
    let (status, log) = tokio::task::spawn_blocking(|| server.wait_with_log()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    let of_tls = log.iter().find(|line| line["reason"] == "tls").unwrap();
    assert_eq!(of_tls["peer"], tls_peer.as_str());
    assert!(of_tls["message"].as_str().unwrap().contains("https://"), "{of_tls}");
    drop(tls);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((silent, peer));
}

/// Accepts, and says nothing.
fn mute() -> (String, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[test]
fn commands_give_up_on_a_server_that_says_nothing() {
    let (url, _listener) = mute();
    let commands: [&[&str]; 3] = [
        &["health", "--server", &url, "--timeout", "1"],
        &["bench", "server", "--server", &url, "--variant", "warm", "--timeout", "1"],
        &["score", "--server", &url, "--timeout", "1", "--input", "Cargo.toml"],
    ];
    for command in commands {
        let begun = Instant::now();
        let output = program::run(command);
        let message = program::text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {message}");
        assert!(message.contains("says nothing for 1s"), "{command:?}: {message}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{command:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_command_that_asks_the_wrong_port_is_told_so() {
    let server = start(&Fake::new(1.0), Connections::default()).await;
    let url = format!("http://{}", server.address(Port::Metrics));
    let output = tokio::task::spawn_blocking(move || program::score(&["--server", &url], "")).await.unwrap();
    let message = program::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("does not speak gRPC"), "{message}");
}
