//! A minute in the life of a server: callers who leave, deadlines that pass, reloads, both variants, and every
//! reward compared with what the sample got when it was alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use program::Server;
use rewarm::proto;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::proto::sample::Input;
use rewarm::proto::sample_result::Outcome;
use tonic::Code;
use tonic::Request;
use tonic::transport::Channel;

/// Room for another order of summation in `f32`, and nothing else.
const F32_ATOL: f32 = 1e-5;
const MINUTE: Duration = Duration::from_secs(60);
const TEXTS: usize = 200;

fn sample(text: usize) -> proto::Sample {
    let words = ["I", "walked", "my", "dog", "and", "lost", "found", "a", "friend", "in", "the", "rain"];
    let response: Vec<&str> =
        (0..1 + text * 7 % 60).map(|i| words[(text * 31 + i * i) % words.len()]).collect();
    let text_input = proto::Text { prompt: "What happened?".to_owned(), response: response.join(" ") };
    proto::Sample { id: text.to_string(), input: Some(Input::Text(text_input)) }
}

fn request(variant: &str, texts: impl IntoIterator<Item = usize>) -> proto::ScoreRequest {
    let samples = texts.into_iter().map(sample).collect();
    proto::ScoreRequest { variant: variant.to_owned(), samples, ..Default::default() }
}

fn reward(result: &proto::SampleResult) -> f32 {
    match &result.outcome {
        Some(Outcome::Score(score)) => score.reward,
        other => panic!("{other:?}"),
    }
}

async fn connect(server: &Server) -> RewardServiceClient<Channel> {
    RewardServiceClient::connect(server.url()).await.unwrap()
}

#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    refused: AtomicUsize,
    expired: AtomicUsize,
    left: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a minute of load"]
async fn a_minute_of_mixed_load_and_reloads_never_gives_a_wrong_or_missing_reward() {
    let server = Server::start(&[]);
    let mut client = connect(&server).await;
    let mut expected = HashMap::new();
    for variant in ["warm", "ens"] {
        for text in 0..TEXTS {
            let response = client.score(request(variant, [text])).await.unwrap().into_inner();
            expected.insert((variant, text), reward(&response.results[0]));
        }
    }
    let (expected, tally) = (Arc::new(expected), Arc::new(Tally::default()));
    let end = Instant::now() + MINUTE;
    let callers: Vec<_> = (0..12usize)
        .map(|caller| {
            let (url, expected, tally) = (server.url(), expected.clone(), tally.clone());
            tokio::spawn(async move {
                let mut client = RewardServiceClient::connect(url).await.unwrap();
                let variant = ["warm", "ens"][caller % 2];
                for turn in 0usize.. {
                    if Instant::now() > end {
                        break;
                    }
                    let texts: Vec<usize> = (0..1 + (turn * 13 + caller) % 64)
                        .map(|i| (turn * 7 + i * (caller + 1)) % TEXTS)
                        .collect();
                    let mut call = Request::new(request(variant, texts.iter().copied()));
                    if turn % 5 == 1 {
                        call.set_timeout(Duration::from_millis(1 + turn as u64 % 40));
                    }
                    let answer = client.score(call);
                    let answer = if turn % 5 == 2 {
                        match tokio::time::timeout(Duration::from_millis(turn as u64 % 30), answer).await {
                            Ok(answer) => answer,
                            Err(_) => {
                                tally.left.fetch_add(1, Ordering::Relaxed);
                                continue;
                            }
                        }
                    } else {
                        answer.await
                    };
                    match answer {
                        Ok(response) => {
                            let results = response.into_inner().results;
                            assert_eq!(results.len(), texts.len());
                            for (result, text) in results.iter().zip(&texts) {
                                assert_eq!(result.id, text.to_string());
                                let (reward, alone) = (reward(result), expected[&(variant, *text)]);
                                assert!(
                                    (reward - alone).abs() <= F32_ATOL * alone.abs().max(1.0),
                                    "{reward} {alone}"
                                );
                            }
                            tally.answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(status) => {
                            // tonic's client says CANCELLED when its own timer was first
                            let has_expired =
                                matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
                            let count = match status.code() {
                                Code::ResourceExhausted => &tally.refused,
                                _ if has_expired && turn % 5 == 1 => &tally.expired,
                                _ => panic!("{status:?}"),
                            };
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.signal("-HUP");
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let [answered, refused, expired, left] = [&tally.answered, &tally.refused, &tally.expired, &tally.left]
        .map(|count| count.load(Ordering::Relaxed));
    println!("{answered} answered, {refused} refused, {expired} expired, {left} left");
    assert!(answered > 20 && expired > 0 && left > 0);

    // nothing of those who left or expired is kept
    let metrics = program::get(&server.metrics, "/metrics").1;
    for line in metrics.lines().filter(|line| line.starts_with("rewarm_queue_")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
    server.signal("-TERM");
    assert_eq!(tokio::task::spawn_blocking(|| server.wait()).await.unwrap().code(), Some(0));
}
