//! Minutes of attacks on the connections of the real program: every call is counted, neighbours are timed, and
//! memory is compared. Each attack is set beside honest peers that send as much.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/frames.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod frames;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use frames::END_HEADERS;
use frames::GOAWAY;
use frames::HEADERS;
use frames::PREFACE;
use frames::Peer;
use frames::RST_STREAM;
use frames::frame;
use frames::headers;
use program::Server;
use rewarm::proto;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::proto::sample::Input;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::Code;
use tonic::Request;

const ROUND: Duration = Duration::from_secs(10);
const SCORE: &str = "/rewarm.v1.RewardService/Score";

fn request(samples: usize) -> proto::ScoreRequest {
    let text = proto::Text { prompt: "What happened?".to_owned(), response: "I walked my dog.".repeat(6) };
    let sample = |id: usize| proto::Sample { id: id.to_string(), input: Some(Input::Text(text.clone())) };
    proto::ScoreRequest {
        variant: "warm".to_owned(),
        samples: (0..samples).map(sample).collect(),
        ..Default::default()
    }
}

/// Runs until it is dropped.
struct Attack {
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Attack {
    /// `peers` tasks, each of which calls `once` again and again.
    fn start<F>(peers: usize, once: impl Fn() -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (is_over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..peers).map(|_| {
            let (is_over, done, once) = (is_over.clone(), done.clone(), once.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    once().await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { is_over, done, tasks }
    }

    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

type Client = RewardServiceClient<tonic::transport::Channel>;

/// A neighbour whose first call was answered. A connection without one is like those of a flood, and may be ended for
/// theirs: its client would try again.
async fn connected(url: String) -> Client {
    let mut client = RewardServiceClient::connect(url).await.unwrap();
    client.score(request(1)).await.unwrap();
    client
}

/// The 99th percentile of a neighbour's calls, one after the other, none of which may fail.
async fn neighbour(mut client: Client) -> Duration {
    let end = Instant::now() + ROUND;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        let response = client.score(request(1)).await.unwrap().into_inner();
        assert_eq!(response.results.len(), 1);
        latencies.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    latencies.sort();
    latencies[latencies.len() * 99 / 100]
}

fn resident_mib(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}

fn metric(server: &Server, series: &str) -> f64 {
    let page = program::get(&server.metrics, "/metrics").1;
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).unwrap().parse().unwrap()
}

/// What the connections of the reward port became.
fn ends(server: &Server) -> BTreeMap<String, f64> {
    let page = program::get(&server.metrics, "/metrics").1;
    let prefix = "rewarm_connections_closed_total{port=\"reward\",reason=\"";
    let ends = page.lines().filter_map(|line| line.strip_prefix(prefix)?.split_once("\"} "));
    ends.map(|(reason, count)| (reason.to_owned(), count.parse().unwrap())).collect()
}

/// Those who measure take turns: beside each other they would measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// What else the machine does makes a figure worse, never better: measured again, it is over.
const ATTEMPTS: usize = 3;

/// A neighbour on a thread of its own: among the tasks of an attack it would wait for those, not for the server. Returns once
/// it is connected.
async fn beside(server: &Server) -> tokio::task::JoinHandle<Duration> {
    let (url, (is_connected, connects)) = (server.url(), tokio::sync::oneshot::channel());
    let measured = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = connected(url).await;
            is_connected.send(()).unwrap();
            neighbour(client).await
        })
    });
    connects.await.unwrap();
    measured
}

async fn measure(server: &Server, what: &str, attack: impl FnOnce() -> Attack) -> Duration {
    let measured = beside(server).await;
    let attack = attack();
    let p99 = measured.await.unwrap();
    let done = attack.end().await;
    println!("{what}: {done} times, neighbour's p99 {p99:?}, {} MiB", resident_mib(server));
    p99
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: half a minute of connections"]
async fn a_flood_of_silent_connections_is_no_worse_than_one_of_honest_ones() {
    let _turn = TURN.lock().await;
    let server = Server::start_limited(256, &[]);
    let address: SocketAddr = server.listen.parse().unwrap();
    let alone = beside(&server).await.await.unwrap();
    let before = resident_mib(&server);
    let mut is_within = false;
    for _ in 0..ATTEMPTS {
        // An honest peer connects, makes a call and leaves; a silent one connects and stays as long as it may.
        let url = server.url();
        let honest = || {
            Attack::start(32, move || {
                let url = url.clone();
                async move {
                    if let Ok(mut client) = RewardServiceClient::connect(url).await {
                        let _ = client.get_server_info(proto::GetServerInfoRequest {}).await;
                    }
                }
            })
        };
        let honest = measure(&server, "honest", honest).await;
        // The last of them may still be on its way out.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let opened = Arc::new(AtomicUsize::new(0));
        let ended: f64 = ends(&server).values().sum();
        let counted = opened.clone();
        let silent = || {
            Attack::start(512, move || {
                let counted = counted.clone();
                async move {
                    if let Ok(mut stream) = TcpStream::connect(address).await {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.write_all(&PREFACE[..counted.load(Ordering::Relaxed) % 24]).await;
                        let _ = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0; 64])).await;
                    }
                }
            })
        };
        let attacked = measure(&server, "silent", silent).await;
        println!("neighbour's p99: alone {alone:?}, beside honest {honest:?}, under attack {attacked:?}");
        let opened = 1.0 + opened.load(Ordering::Relaxed) as f64;

        // Every connection has one end: the neighbour's too, and what is still open.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now: f64 = ends(&server).values().sum();
        let open = metric(&server, "rewarm_connections{port=\"reward\"}");
        println!("{opened} opened, {} ended, {open} open, {:?}", now - ended, ends(&server));
        assert_eq!(now - ended + open, opened);
        is_within = attacked <= 2 * honest.max(alone);
        if is_within {
            break;
        }
    }
    assert!(is_within, "a neighbour waits longer in each attempt");
    let after = resident_mib(&server);
    assert!(after < before + 64, "{before} MiB before, {after} after");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: half a minute of resets"]
async fn a_flood_of_resets_is_no_worse_than_one_of_calls() {
    let _turn = TURN.lock().await;
    let server = Server::start(&[]);
    let address: SocketAddr = server.listen.parse().unwrap();
    let alone = beside(&server).await.await.unwrap();
    let before = resident_mib(&server);
    let calls = Arc::new(AtomicUsize::new(0));
    // Both send a thousand HEADERS at a time, as fast as they are taken: one resets each, the other ends each
    // without a message, and reads the thousand refusals.
    let flood = |resets: bool| {
        let calls = calls.clone();
        Attack::start(2, move || {
            let calls = calls.clone();
            async move {
                let mut peer = Peer::connect(address).await;
                for round in 0..20u32 {
                    let mut bytes = Vec::new();
                    for index in 0..1000 {
                        let stream = 1 + 2 * (round * 1000 + index);
                        let flags = if resets { END_HEADERS } else { END_HEADERS | frames::END_STREAM };
                        bytes.extend(frame(HEADERS, flags, stream, &headers(SCORE, &[])));
                        if resets {
                            bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                        }
                    }
                    peer.send(&bytes).await;
                    let ping = frame(frames::PING, 0, 0, &round.to_be_bytes().repeat(2));
                    peer.send(&ping).await;
                    let mut answered = 0;
                    let is_done = |answered: u32| resets || answered == 1000;
                    let mut has_pong = false;
                    while !has_pong || !is_done(answered) {
                        let frame = peer.next().await.expect("the connection lives");
                        assert_ne!(frame.kind, GOAWAY, "{frame:?}");
                        has_pong |= frame.kind == frames::PING && frame.flags == frames::ACK;
                        answered += u32::from(frame.kind == HEADERS && frame.flags & frames::END_STREAM != 0);
                    }
                    calls.fetch_add(1000, Ordering::Relaxed);
                }
            }
        })
    };
    let mut is_within = false;
    for _ in 0..ATTEMPTS {
        let honest = measure(&server, "20,000 calls", || flood(false)).await;
        let of_honest = calls.swap(0, Ordering::Relaxed);
        let attacked = measure(&server, "20,000 resets", || flood(true)).await;
        let of_attack = calls.swap(0, Ordering::Relaxed);
        println!("{of_honest} honest calls, {of_attack} reset ones");
        println!("neighbour's p99: alone {alone:?}, beside honest {honest:?}, under attack {attacked:?}");
        is_within = attacked <= 2 * honest.max(alone);
        if is_within {
            break;
        }
    }
    assert!(is_within, "a neighbour waits longer in each attempt");
    let after = resident_mib(&server);
    assert!(after < before + 64, "{before} MiB before, {after} after");
    assert_eq!(ends(&server)["protocol_error"], 0.0);
}

/// What a trainer does with a deadline that is too short: everybody else on its channel is answered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: half a minute of deadlines"]
async fn deadlines_that_pass_by_the_thousand_lose_no_other_call() {
    let _turn = TURN.lock().await;
    let server = Server::start(&[]);
    let mut codes = BTreeMap::new();
    let mut sent = 0;
    let end = Instant::now() + 2 * ROUND;
    for turn in 0u64.. {
        if Instant::now() >= end {
            break;
        }
        // A channel for each turn: tonic's own client ends one when 1024 answers in its life came too late.
        let client = RewardServiceClient::connect(server.url()).await.unwrap();
        let mut patient = client.clone();
        let in_flight = tokio::spawn(async move { patient.score(request(100)).await });
        let hasty: Vec<_> = (0..[64, 256, 1000][turn as usize % 3])
            .map(|_| {
                let mut client = client.clone();
                let mut call = Request::new(request(16));
                call.set_timeout(Duration::from_millis(2 + turn % 7));
                tokio::spawn(async move { client.score(call).await })
            })
            .collect();
        for call in hasty {
            sent += 1;
            let code = call.await.unwrap().map_or_else(|status| status.code(), |_| Code::Ok);
            *codes.entry(format!("{code:?}")).or_insert(0) += 1;
        }
        let answer = in_flight.await.unwrap().expect("a patient call is answered");
        assert_eq!(answer.into_inner().results.len(), 100);
    }
    println!("{sent} hasty calls: {codes:?}, ends {:?}", ends(&server));
    // tonic's client says CANCELLED where its own timer was first
    let known = ["Ok", "DeadlineExceeded", "ResourceExhausted", "Cancelled"];
    assert!(codes.keys().all(|code| known.contains(&code.as_str())), "{codes:?}");
    assert_eq!(codes.values().sum::<usize>(), sent);
    assert!(ends(&server).iter().all(|(reason, count)| reason == "peer" || *count == 0.0));
    for (variant, queue) in [("warm", "samples"), ("warm", "tokens")] {
        assert_eq!(metric(&server, &format!("rewarm_queue_{queue}{{variant=\"{variant}\"}}")), 0.0);
    }
}
