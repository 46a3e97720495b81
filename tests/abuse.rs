//! Requests that are small and ask for much, messages that never become whole, answers that nobody reads: what
//! each costs is its caller's, and nobody else's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[path = "support/raw.rs"]
mod raw;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use raw::Call;
use raw::framed;
use rewarm::proto;
use rewarm::proto::ScoreRequest;
use rewarm::proto::reward_service_client::RewardServiceClient;
use support::Fake;
use support::SOON;
use support::TestServer;
use support::config;
use support::eventually;
use support::formatted;
use support::models;
use support::request;
use support::rewards;
use support::start;
use support::start_with;
use support::variant;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A request of this id and so many samples without anything in them: two bytes each.
fn empty_samples(request_id: &str, count: usize) -> Vec<u8> {
    let mut bytes = ScoreRequest { request_id: request_id.to_owned(), ..Default::default() }.encode_to_vec();
    bytes.extend([0x12, 0x00].repeat(count));
    bytes
}

fn named(request_id: &str) -> Vec<u8> {
    ScoreRequest { request_id: request_id.to_owned(), ..request(&["7"]) }.encode_to_vec()
}

/// A server with this budget, in which a message may take this long.
async fn server(name: &'static str, max_in_flight_bytes: usize, message_time: Duration) -> TestServer {
    let mut config = config(models(&[(name, 1.0)]));
    config.limits.max_in_flight_bytes = max_in_flight_bytes;
    config.limits.max_message_bytes = config.limits.max_message_bytes.min(max_in_flight_bytes);
    config.limits.message_time = message_time;
    let model = Fake::new(1.0);
    let server = start_with(config, move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    server
}

#[tokio::test]
async fn samples_are_counted_before_they_are_decoded() {
    let server = start(&Fake::new(1.0)).await;
    let bomb = gzip(&empty_samples("bomb", 16_000_000));
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());

    let started = Instant::now();
    let status = Call::score(server.channel().await, framed(&bomb, true)).await.status().await;

    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.message(), "samples: has more than 1024, the limit");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "samples");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());

    let turns = proto::Conversation { messages: vec![Default::default(); 200_000], ..Default::default() };
    let sample =
        proto::Sample { input: Some(proto::sample::Input::Conversation(turns)), ..Default::default() };
    let status = server
        .client()
        .await
        .score(ScoreRequest { samples: vec![sample], ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("turns and other parts"), "{status:?}");
}

#[tokio::test]
async fn a_stream_goes_on_behind_messages_that_are_refused() {
    let server = start(&Fake::new(1.0)).await;
    let mut call = Call::stream(server.channel().await).await;
    let large = ScoreRequest { request_id: "large".to_owned(), ..request(&["9 ".repeat(17 << 20).as_str()]) };
    let large = large.encode_to_vec();
    let good = named("good");
    let cases = [
        ("bomb", framed(&gzip(&empty_samples("bomb", 16_000_000)), true), Some(Code::InvalidArgument)),
        ("many", framed(&empty_samples("many", 2000), false), Some(Code::InvalidArgument)),
        ("packed", framed(&gzip(&[&named("packed")[..], &vec![0x42; 40 << 20]].concat()), true), None),
        ("large", framed(&large, false), Some(Code::OutOfRange)),
        ("large", framed(&gzip(&large), true), Some(Code::OutOfRange)),
        ("good", framed(&good, false), Some(Code::Ok)),
        ("good", framed(&gzip(&good), true), Some(Code::Ok)),
    ];
    for (id, frames, code) in cases {
        call.send(frames).await;
        let response = timeout(SOON, call.message()).await.unwrap().unwrap();
        assert_eq!(response.request_id, id);
        let error = response.error.as_ref().map_or(Code::Ok, |error| Code::from(error.code));
        // what follows the good start of "packed" is no field at all, or too much: one or the other is told
        let expected =
            code.map_or(error == Code::InvalidArgument || error == Code::OutOfRange, |c| c == error);
        assert!(expected, "{response:?}");
    }
    call.end();
    assert_eq!(call.status().await.code(), Code::Ok);
}

#[tokio::test]
async fn names_have_a_length_and_a_long_one_is_not_echoed() {
    let server = start(&Fake::new(1.0)).await;
    let long = "é\n".repeat(1 << 20);
    let mut call = Call::stream(server.channel().await).await;
    call.send(framed(&named(&long), false)).await;
    let response = timeout(SOON, call.message()).await.unwrap().unwrap();
    assert!(response.request_id.len() <= 256 && long.starts_with(&response.request_id));
    let error = response.error.unwrap();
    assert_eq!(error.message, "request_id: has 3145728 bytes, the limit is 256");

    let mut client = server.client().await;
    let good = request(&["1"]);
    let mut unnamed = formatted("1");
    unnamed.id = long.clone();
    for (field, request) in [
        ("request_id", ScoreRequest { request_id: long.clone(), ..good.clone() }),
        ("routing_key", ScoreRequest { routing_key: long.clone(), ..good.clone() }),
        ("variant", ScoreRequest { variant: long.clone(), ..good.clone() }),
        ("expected_fingerprint", ScoreRequest { expected_fingerprint: long.clone(), ..good.clone() }),
        ("samples[0].id", ScoreRequest { samples: vec![unnamed], ..good.clone() }),
    ] {
        let status = client.score(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert_eq!(status.message(), format!("{field}: has 3145728 bytes, the limit is 256"));
    }
}

#[tokio::test]
async fn a_message_counts_from_its_first_frame_and_must_become_whole() {
    let server = server("whole", 64 << 10, Duration::from_millis(500)).await;
    let message = framed(&request(&["1 ".repeat(30 << 10).as_str()]).encode_to_vec(), false);
    let begun = message[..message.len() - 1].to_vec();
    let mut halves = Vec::new();
    halves.push(Call::score(server.channel().await, begun.clone()).await);
    eventually("it is counted", async || {
        let status = server.client().await.score(request(&["1 ".repeat(3 << 10).as_str()])).await;
        status.is_err_and(|status| status.code() == Code::ResourceExhausted)
    })
    .await;
    let status = timeout(SOON, halves.pop().unwrap().status()).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("not whole 500ms"), "{status:?}");
    // the same in a stream, which may be silent between messages but not within one
    let mut call = Call::stream(server.channel().await).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    call.send(framed(&named("after a while"), false)).await;
    assert_eq!(rewards(&timeout(SOON, call.message()).await.unwrap().unwrap()), [7.0]);
    call.send(begun).await;
    assert_eq!(timeout(SOON, call.status()).await.unwrap().code(), Code::DeadlineExceeded);
    // nothing is kept
    assert!(server.client().await.score(request(&["1 ".repeat(25 << 10).as_str()])).await.is_ok());
}

#[tokio::test]
async fn answers_that_nobody_reads_count_until_they_are_read() {
    // Room for the answers of three requests or so.
    let server = server("unread", 1 << 20, SOON).await;
    let samples = |id: usize| ScoreRequest { request_id: id.to_string(), ..request(&["1"; 1000]) };
    let mut call = Call::stream(server.channel().await).await;
    // the client's window takes some, and is full
    for id in 0..200 {
        let message = framed(&samples(id).encode_to_vec(), false);
        if timeout(Duration::from_millis(300), call.send(message)).await.is_err() {
            break;
        }
    }
    let mut answered = 0;
    call.end();
    while let Some(response) = timeout(SOON, call.message()).await.unwrap() {
        answered += 1;
        match response.error {
            None => assert_eq!(response.results.len(), 1000),
            Some(error) => assert_eq!(error.code, Code::ResourceExhausted as i32),
        }
    }
    assert!(answered > 3, "{answered}");
    let again = server.client().await.score(samples(0)).await;
    assert!(again.is_ok(), "what was read is given back: {again:?}");
}

#[tokio::test]
async fn the_protocol_is_held_to() {
    let server = start(&Fake::new(1.0)).await;
    let good = named("good");
    let twice = [framed(&good, false), framed(&good, false)].concat();
    for (what, frames, code) in [
        ("a field that is cut", framed(&good[..good.len() - 1], false), Code::InvalidArgument),
        ("not UTF-8", framed(&[0x0a, 1, 0xff], false), Code::InvalidArgument),
        ("no message", Vec::new(), Code::InvalidArgument),
        ("two messages", twice, Code::InvalidArgument),
        ("no such flag", [&[7], &framed(&good, false)[1..]].concat(), Code::InvalidArgument),
        ("not gzip", framed(&good, true), Code::InvalidArgument),
        ("half a header", vec![0, 0], Code::InvalidArgument),
    ] {
        let mut call = Call::score(server.channel().await, frames).await;
        call.end();
        let status = timeout(SOON, call.status()).await.unwrap();
        assert_eq!(status.code(), code, "{what}: {status:?}");
    }
    let status = Call::compressed_with(server.channel().await, "zstd").await.status().await;
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "gzip,identity");
}

#[tokio::test]
async fn what_is_refused_while_it_arrives_is_counted() {
    let model = Fake::new(1.0);
    let server = start_with(config(models(&[("tally", 1.0)])), move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    let series = "rewarm_requests_total{method=\"Score\",code=\"OUT_OF_RANGE\",variant=\"\"}";
    let before = server.metric(series).await;
    let message = request(&["9 ".repeat(17 << 20).as_str()]);
    assert_eq!(server.client().await.score(message).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(server.metric(series).await, before + 1.0);
}

// ---- at length, with the real program ----

const DEMO_TEXT: &str =
    "I walked my dog in the rain and we found a friend. What a day, she said: we laughed! ";

fn prose(bytes: usize) -> String {
    DEMO_TEXT.repeat(bytes / DEMO_TEXT.len() + 1)
}

fn text_request(text: String) -> ScoreRequest {
    let text = proto::Text { prompt: "What happened?".to_owned(), response: text };
    let sample = proto::Sample { input: Some(proto::sample::Input::Text(text)), ..Default::default() };
    ScoreRequest { samples: vec![sample], variant: "warm".to_owned(), ..Default::default() }
}

async fn connect(server: &program::Server) -> Channel {
    Channel::from_shared(server.url()).unwrap().connect().await.unwrap()
}

/// What its callers were answered.
#[derive(Default)]
struct Tally {
    sent: AtomicUsize,
    answered: AtomicUsize,
    refused: AtomicUsize,
}

impl Tally {
    fn count(&self, status: Option<Code>, allowed: &[Code]) {
        match status {
            None => self.answered.fetch_add(1, Ordering::Relaxed),
            Some(code) if allowed.contains(&code) => self.refused.fetch_add(1, Ordering::Relaxed),
            Some(code) => panic!("{code:?} is none of {allowed:?}"),
        };
    }
}

/// Calls again and again until `end`, from so many callers at once.
fn flood<F>(
    callers: usize,
    end: Instant,
    channel: &Channel,
    call: impl Fn(Channel) -> F + Clone + Send + 'static,
) -> JoinSet<()>
where
    F: Future<Output = ()> + Send,
{
    let mut flood = JoinSet::new();
    for _ in 0..callers {
        let (channel, call) = (channel.clone(), call.clone());
        flood.spawn(async move {
            while Instant::now() < end {
                call(channel.clone()).await;
            }
        });
    }
    flood
}

/// Those who measure take turns: beside each other they would measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// What else the machine does makes a figure worse, never better: measured again, it is over.
const ATTEMPTS: usize = 3;

/// The time that 99 of 100 short requests of a lonely neighbour stay below.
async fn neighbours_p99(server: &program::Server, end: Instant) -> Duration {
    let mut client = RewardServiceClient::new(connect(server).await);
    let mut times = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        let response = client.score(text_request(DEMO_TEXT.to_owned())).await.unwrap().into_inner();
        assert!(response.results[0].outcome.is_some());
        support::score(&response.results[0]);
        times.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort();
    times[(times.len() - 1) * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: twenty seconds of load"]
async fn giant_texts_cost_a_neighbour_no_more_than_honest_requests_do() {
    let _turn = TURN.lock().await;
    let server = program::Server::start(&[]);
    let channel = connect(&server).await;
    let phase = Duration::from_secs(6);
    let mut is_within = false;
    for _ in 0..ATTEMPTS {
        let end = Instant::now() + phase;
        let honest = flood(8, end, &channel, async |channel: Channel| {
            let samples = vec![text_request(prose(500)).samples[0].clone(); 32];
            let request = ScoreRequest { samples, variant: "warm".to_owned(), ..Default::default() };
            RewardServiceClient::new(channel).score(request).await.unwrap();
        });
        let beside_honest = neighbours_p99(&server, end).await;
        honest.join_all().await;

        let tally = Arc::new(Tally::default());
        let end = Instant::now() + phase;
        let mut attackers = Vec::new();
        let shapes = [prose(8 << 20), "a".repeat(8 << 20), "ab".repeat(200 << 10), "東京".repeat(1 << 20)];
        for (text, truncation) in shapes.into_iter().zip([0, 1, 2, 3]) {
            let (tally, request) = (tally.clone(), ScoreRequest { truncation, ..text_request(text) });
            attackers.push(flood(1, end, &channel, move |channel: Channel| {
                let (tally, request) = (tally.clone(), request.clone());
                async move {
                    tally.sent.fetch_add(1, Ordering::Relaxed);
                    let answer = RewardServiceClient::new(channel)
                        .max_encoding_message_size(64 << 20)
                        .score(request)
                        .await;
                    tally.count(answer.err().map(|status| status.code()), &[Code::ResourceExhausted]);
                }
            }));
        }
        let under_attack = neighbours_p99(&server, end).await;
        for attacker in attackers {
            attacker.join_all().await;
        }
        let [sent, answered, refused] =
            [&tally.sent, &tally.answered, &tally.refused].map(|count| count.load(Ordering::Relaxed));
        println!(
            "p99 {beside_honest:?} beside honest ones, {under_attack:?} under attack; {sent} giants sent"
        );
        assert_eq!(sent, answered + refused);
        // twenty milliseconds are the noise of a machine that has other things to do
        is_within = under_attack <= 2 * beside_honest + Duration::from_millis(20);
        if is_within {
            break;
        }
    }
    assert!(is_within, "a neighbour waits longer in each attempt");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: twenty seconds of load"]
async fn small_requests_that_ask_for_much_are_refused_and_memory_comes_back() {
    let _turn = TURN.lock().await;
    let server = program::Server::start(&[]);
    let channel = connect(&server).await;
    neighbours_p99(&server, Instant::now() + Duration::from_secs(2)).await;
    let before = server.memory();

    let end = Instant::now() + Duration::from_secs(8);
    let tally = Arc::new(Tally::default());
    let refusals = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted];
    let conversation = {
        // a sample's conversation, and in it fifteen million turns of two bytes
        let turns = [0x0a, 0x00].repeat(15 << 20);
        let sample = [&[0x1a][..], &varint(turns.len()), &turns].concat();
        [&[0x12][..], &varint(sample.len()), &sample].concat()
    };
    let bombs = [
        framed(&gzip(&empty_samples("bomb", 16_000_000)), true),
        framed(&gzip(&conversation), true),
        framed(&gzip(&text_request(prose(31 << 20)).encode_to_vec()), true),
        framed(&gzip(&text_request(prose(40 << 20)).encode_to_vec()), true),
        framed(&gzip(&named(&"long id".repeat(4 << 20))), true),
        framed(&gzip(&vec![0; 33 << 20]), true),
    ];
    let mut attackers = Vec::new();
    for bomb in bombs {
        let tally = tally.clone();
        attackers.push(flood(2, end, &channel, move |channel: Channel| {
            let (tally, bomb) = (tally.clone(), bomb.clone());
            async move {
                tally.sent.fetch_add(1, Ordering::Relaxed);
                let mut call = Call::score(channel, bomb).await;
                call.end();
                let code = call.status().await.code();
                tally.count((code != Code::Ok).then_some(code), &refusals);
            }
        }));
    }
    // messages that stop one byte short: together much more than the budget
    let whole = framed(&text_request(prose(30 << 20)).encode_to_vec(), false);
    let mut halves = Vec::new();
    for _ in 0..40 {
        let channel = connect(&server).await;
        let begun = whole[..whole.len() - 1].to_vec();
        halves.push(tokio::spawn(async move { Call::score(channel, begun).await }));
    }
    let mut peak = before;
    while Instant::now() < end {
        peak = peak.max(server.memory());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for attacker in attackers {
        attacker.join_all().await;
    }
    halves.iter().for_each(tokio::task::JoinHandle::abort);
    drop(halves);
    drop(channel);
    let [sent, answered, refused] =
        [&tally.sent, &tally.answered, &tally.refused].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(sent, answered + refused);
    assert!(refused > 10, "{refused}");

    // others are served, and beside them what was taken is given back: mimalloc's threads look for memory to give
    // back while they work
    let mut is_back = false;
    for _ in 0..20 {
        neighbours_p99(&server, Instant::now() + Duration::from_secs(1)).await;
        is_back = server.memory() < before + (128 << 20);
        if is_back {
            break;
        }
    }
    let mib = |bytes: usize| bytes >> 20;
    println!(
        "{sent} sent, {answered} answered, {refused} refused; memory {} MiB before, {} MiB at most, {} MiB after",
        mib(before),
        mib(peak),
        mib(server.memory())
    );
    // the budget, and as much again for copies on their way through
    assert!(peak < before + (1 << 30), "{} MiB", mib(peak));
    assert!(is_back, "{} MiB", mib(server.memory()));
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
