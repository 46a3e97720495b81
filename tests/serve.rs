//! The real server on free ports, asked by a client, as its users meet it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/checkpoints.rs"]
mod checkpoints;
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkpoints::TinyCheckpoint;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::proto;
use rewarm::proto::ScoreRequest;
use rewarm::proto::sample::Input;
use rewarm::service::Port;
use rewarm::service::Ports;
use rewarm::service::ShadowRouting;
use rewarm::values::reference::Reference;
use rewarm::values::reference::Spread;
use support::Fake;
use support::SOON;
use support::TestServer;
use support::config;
use support::error;
use support::eventually;
use support::formatted;
use support::long_text;
use support::models;
use support::request;
use support::rewards;
use support::score;
use support::start;
use support::start_with;
use support::variant;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

const READY: &str = "rewarm.v1.RewardService";

// ---- a request and its answer ----

#[tokio::test]
async fn a_sample_gets_its_reward() {
    let server = start(&Fake::new(0.5)).await;
    let text = proto::Text { prompt: "1 2 ".to_owned(), response: "3".to_owned() };
    let sample = proto::Sample { id: "a".to_owned(), input: Some(Input::Text(text)) };
    let request = ScoreRequest { request_id: "r".to_owned(), samples: vec![sample], ..Default::default() };

    let response = server.client().await.score(request).await.unwrap().into_inner();

    assert_eq!(response.request_id, "r");
    assert_eq!(response.variant, "warm");
    assert_eq!(response.fingerprint, "fingerprint-of-warm");
    assert_eq!(response.results[0].id, "a");
    assert_eq!(score(&response.results[0]), &proto::Score { reward: 3.0, tokens: 3, ..Default::default() });
    assert!(response.timing.unwrap().compute_seconds > 0.0);
}

#[tokio::test]
async fn one_bad_sample_never_fails_its_neighbours() {
    let server = start(&Fake::new(1.0)).await;
    let too_long = long_text(support::MAX_TOKENS + 1);
    let mut request = request(&[
        "1",
        "",
        &too_long,
        "2",
        &support::POISON.to_string(),
        "3",
        &support::NAN.to_string(),
        "4 \0 5",
    ]);
    request.samples.push(proto::Sample {
        id: "ids".to_owned(),
        input: Some(Input::TokenIds(proto::TokenIds { ids: vec![7, 5_000_000] })),
    });

    let results = server.client().await.score(request).await.unwrap().into_inner().results;

    let outcomes: Vec<Result<f32, i32>> = results
        .iter()
        .map(|result| match &result.outcome {
            Some(proto::sample_result::Outcome::Score(score)) => Ok(score.reward),
            Some(proto::sample_result::Outcome::Error(error)) => Err(error.code),
            None => panic!("no outcome"),
        })
        .collect();
    let (invalid, internal) = (Err(Code::InvalidArgument as i32), Err(Code::Internal as i32));
    // NUL is text like any other: an unknown word of this tokenizer.
    assert_eq!(outcomes[..7], [Ok(1.0), invalid, invalid, Ok(2.0), internal, Ok(3.0), internal]);
    assert!(outcomes[7].is_ok());
    assert_eq!(outcomes[8], invalid);
    assert_eq!(results[8].id, "ids");
    assert!(error(&results[2]).message.contains("4097"), "{:?}", results[2]);
}

#[tokio::test]
async fn a_call_whose_samples_all_fail_is_ok() {
    let server = start(&Fake::new(1.0)).await;
    let response = server.client().await.score(request(&["", ""])).await.unwrap().into_inner();
    assert_eq!(response.results.len(), 2);
    assert!(response.results.iter().all(|result| error(result).code == Code::InvalidArgument as i32));
}

#[tokio::test]
async fn truncation_is_asked_for_and_told() {
    let server = start(&Fake::new(1.0)).await;
    let text = format!("{} 7", long_text(support::MAX_TOKENS));
    let request = ScoreRequest { truncation: proto::Truncation::Left.into(), ..request(&[&text]) };
    let response = server.client().await.score(request).await.unwrap().into_inner();
    let score = score(&response.results[0]);
    assert_eq!((score.tokens, score.truncated_tokens), (4096, 1));
    assert_eq!(score.reward, 4095.0 + 7.0);
}

#[tokio::test]
async fn an_ensemble_tells_its_members_rewards_when_asked() {
    let (one, two) = (Fake::new(1.0), Fake::new(3.0));
    let load = move |name: &str| Ok(support::ensemble(name, &[one.clone(), two.clone()]));
    let server = start_with(config(models(&[("ens", 1.0)])), load).await;
    server.ready().await;
    let mut client = server.client().await;

    let plain = client.score(request(&["2"])).await.unwrap().into_inner();
    let asked = ScoreRequest { return_members: true, ..request(&["2"]) };
    let asked = client.score(asked).await.unwrap().into_inner();

    let expected = proto::Score { reward: 4.0, reward_std: Some(2.0), tokens: 1, ..Default::default() };
    assert_eq!(score(&plain.results[0]), &expected);
    assert_eq!(score(&asked.results[0]), &proto::Score { member_rewards: vec![2.0, 6.0], ..expected });

    let info = client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.max_samples_per_request, 1024);
    assert_eq!((info.max_message_bytes, info.max_in_flight_bytes), (32 << 20, 64 << 20));
    assert_eq!(info.max_queue_tokens, 8192);
    assert_eq!(info.routing.unwrap().weights["ens"], 1.0);
    assert_eq!((info.variants[0].mode.as_str(), info.variants[0].members.len()), ("ens", 2));
}

#[tokio::test]
async fn thousands_of_samples_of_several_callers_come_back_in_order() {
    let server = start(&Fake::new(1.0)).await;
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let url = server.url();
            tokio::spawn(async move {
                let mut client =
                    proto::reward_service_client::RewardServiceClient::connect(url).await.unwrap();
                for round in 0..5 {
                    let numbers: Vec<u32> =
                        (0..500).map(|index| (index * 7 + caller * 13 + round) % 600).collect();
                    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let response = client.score(request(&texts)).await.unwrap().into_inner();
                    let expected: Vec<f32> = numbers.iter().map(|number| *number as f32).collect();
                    assert_eq!(rewards(&response), expected);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

// ---- what cannot be served as a whole ----

/// As GRPO sends them: many responses to one prompt.
#[tokio::test]
async fn a_prompt_that_responses_share_is_computed_once_and_no_reward_changes() {
    let prompt = (0..40).map(|word| format!("w{word} ")).collect::<String>();
    let group: Vec<_> = (0..6).map(|response| formatted(&format!("{prompt}w{response} w7"))).collect();
    let mut answers = Vec::new();
    for (name, mode, share_prefixes, shared) in [
        ("warm-apart", Mode::Warm, false, 0.0),
        ("warm-shared", Mode::Warm, true, 5.0 * 40.0),
        ("ens-apart", Mode::Ens, false, 0.0),
        ("ens-shared", Mode::Ens, true, 5.0 * 40.0),
    ] {
        let mut config = config(models(&[(name, 1.0)]));
        config.engine.share_prefixes = share_prefixes;
        let server = start_with(config, move |name| {
            let folder = tempfile::tempdir().unwrap();
            let members = [1, 2].map(|member| {
                let path = folder.path().join(member.to_string());
                TinyCheckpoint::llama(5).perturbed(member, 0.1, "").write(&path);
                path
            });
            let config = VariantConfig::new(name, mode, members.to_vec());
            Loader::default().load(&config, &mut |_, _| ()).map_err(|error| error.to_string())
        })
        .await;
        server.ready().await;
        let series = format!("rewarm_shared_prefix_tokens_total{{variant=\"{name}\"}}");
        let (_, page) = server.page("/metrics").await;
        assert!(page.lines().any(|line| line == format!("{series} 0")), "{page}");

        let request = ScoreRequest { samples: group.clone(), ..Default::default() };
        let response = server.client().await.score(request).await.unwrap().into_inner();
        assert_eq!(server.metric(&series).await, shared, "{name}");
        answers.push(rewards(&response));
    }
    for (apart, shared) in [(&answers[0], &answers[1]), (&answers[2], &answers[3])] {
        assert_eq!(apart.len(), group.len());
        for (apart, shared) in apart.iter().zip(shared) {
            assert!((apart - shared).abs() <= 1e-5 * apart.abs().max(1.0), "{apart} and {shared}");
        }
    }
}

#[tokio::test]
async fn a_malformed_request_is_invalid_and_names_its_fields() {
    struct Case {
        name: &'static str,
        request: ScoreRequest,
        fields: &'static [&'static str],
    }
    let server = start(&Fake::new(1.0)).await;
    let good = request(&["1"]);
    let no_input = proto::Sample { id: "x".repeat(257), input: None };
    let cases = [
        Case { name: "no samples", request: ScoreRequest::default(), fields: &["samples"] },
        Case { name: "too many", request: request(&vec!["1"; 1025]), fields: &["samples"] },
        Case {
            name: "no input and a long id",
            request: ScoreRequest { samples: vec![formatted("1"), no_input], ..good.clone() },
            fields: &["samples[1].id", "samples[1].input"],
        },
        Case {
            name: "long ids",
            request: ScoreRequest {
                request_id: "x".repeat(257),
                routing_key: "x".repeat(257),
                ..good.clone()
            },
            fields: &["request_id", "routing_key"],
        },
        Case {
            name: "unknown enums",
            request: ScoreRequest { priority: 9, truncation: -1, ..good.clone() },
            fields: &["priority", "truncation"],
        },
        Case {
            name: "unknown variant",
            request: ScoreRequest { variant: "cold".to_owned(), ..good.clone() },
            fields: &["variant"],
        },
        Case {
            name: "more tokens than the queue holds",
            request: request(&[long_text(4000).as_str(); 3]),
            fields: &["samples"],
        },
    ];
    let mut client = server.client().await;
    let mut failures = Vec::new();
    for Case { name, request, fields } in cases {
        let status = client.score(request).await.unwrap_err();
        let violations =
            status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
        let named: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        if status.code() != Code::InvalidArgument || named != fields {
            failures.push(format!("{name}: {status:?} {named:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn a_pinned_fingerprint_must_match() {
    let server = start(&Fake::new(1.0)).await;
    let mut client = server.client().await;
    let pinned =
        |fingerprint: &str| ScoreRequest { expected_fingerprint: fingerprint.to_owned(), ..request(&["1"]) };
    assert!(client.score(pinned("fingerprint-of-warm")).await.is_ok());
    let status = client.score(pinned("another")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("fingerprint-of-warm"), "{status:?}");
}

#[tokio::test]
async fn a_large_message_is_taken_and_a_larger_one_refused() {
    let server = start(&Fake::new(1.0)).await;
    let mut client = server.client().await;
    // Past tonic's default of 4 MiB.
    let big = client.score(request(&["9 ".repeat(5 << 19).as_str()])).await.unwrap().into_inner();
    assert_eq!(error(&big.results[0]).code, Code::InvalidArgument as i32, "too many tokens for the model");
    let status = client.score(request(&["9 ".repeat(17 << 20).as_str()])).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

#[tokio::test]
async fn a_compressed_request_is_understood() {
    let server = start(&Fake::new(1.0)).await;
    let client = server.client().await;
    let mut client = client
        .send_compressed(tonic::codec::CompressionEncoding::Gzip)
        .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
    assert_eq!(rewards(&client.score(request(&["1", "2"])).await.unwrap().into_inner()), [1.0, 2.0]);
}

// ---- overload, deadlines, vanished callers ----

/// A server whose device is busy with one sample and will stay so until the model is opened. `name` must be
/// unique among the tests: metrics belong to the process.
async fn busy_server(
    name: &'static str,
    model: &std::sync::Arc<Fake>,
) -> (TestServer, tokio::task::JoinHandle<()>) {
    let loaded = model.clone();
    let server = start_with(config(models(&[(name, 1.0)])), move |name| Ok(variant(name, &loaded))).await;
    server.ready().await;
    model.close();
    let forwards = model.forwards.load(Ordering::SeqCst);
    let mut client = server.client().await;
    let first = tokio::spawn(async move {
        client.score(request(&["1"])).await.unwrap();
    });
    eventually("the device is busy", async || model.forwards.load(Ordering::SeqCst) > forwards).await;
    (server, first)
}

#[tokio::test]
async fn a_full_queue_answers_resource_exhausted_and_says_when_to_retry() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("full", &model).await;
    let mut waiting = server.client().await;
    let waiting =
        tokio::spawn(async move { waiting.score(request(&[&long_text(4000), &long_text(4000)])).await });
    eventually("the queue is full", async || {
        server.metric("rewarm_queue_tokens{variant=\"full\"}").await >= 8000.0
    })
    .await;

    let status = server.client().await.score(request(&[&long_text(4000)])).await.unwrap_err();

    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    model.open();
    first.await.unwrap();
    assert_eq!(rewards(&waiting.await.unwrap().unwrap().into_inner()), [4000.0, 4000.0]);
}

#[tokio::test]
async fn requests_in_flight_share_one_budget_of_bytes() {
    let model = Fake::new(1.0);
    let loaded = model.clone();
    let mut config = config(models(&[("budget", 1.0)]));
    config.limits.max_in_flight_bytes = 10_000;
    let server = start_with(config, move |name| Ok(variant(name, &loaded))).await;
    server.ready().await;
    model.close();
    let forwards = model.forwards.load(Ordering::SeqCst);
    let mut holding = server.client().await;
    let holding = tokio::spawn(async move { holding.score(request(&["1 ".repeat(4000).as_str()])).await });
    eventually("it is in flight", async || model.forwards.load(Ordering::SeqCst) > forwards).await;

    let status = server.client().await.score(request(&["1 ".repeat(4000).as_str()])).await.unwrap_err();

    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    model.open();
    assert!(holding.await.unwrap().is_ok());
    assert!(server.client().await.score(request(&["1 ".repeat(4000).as_str()])).await.is_ok());
}

#[tokio::test]
async fn ten_times_overload_gives_right_rewards_and_honest_refusals() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("overload", &model).await;
    // 80 requests of 1000 tokens for a queue of 8192.
    let calls: Vec<_> = (0..80_u32)
        .map(|number| {
            let url = server.url();
            tokio::spawn(async move {
                let mut client =
                    proto::reward_service_client::RewardServiceClient::connect(url).await.unwrap();
                let text = format!("{} {number}", long_text(999));
                (number, client.score(request(&[&text])).await)
            })
        })
        .collect();
    eventually("most are refused", async || {
        server
            .metric(
                "rewarm_requests_total{method=\"Score\",code=\"RESOURCE_EXHAUSTED\",variant=\"overload\"}",
            )
            .await
            >= 72.0
    })
    .await;
    model.open();
    let mut scored = 0;
    for call in calls {
        match call.await.unwrap() {
            (number, Ok(response)) => {
                assert_eq!(rewards(&response.into_inner()), [999.0 + number as f32]);
                scored += 1;
            }
            (_, Err(status)) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    }
    assert_eq!(scored, 8, "the queue holds eight");
    first.await.unwrap();
    assert!(server.client().await.score(request(&["1"])).await.is_ok(), "the server lives on");
}

#[tokio::test]
async fn a_deadline_that_passes_while_waiting_is_deadline_exceeded() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("deadline", &model).await;
    let mut late = tonic::Request::new(request(&["1"]));
    late.set_timeout(Duration::from_millis(300));

    let status = server.client().await.score(late).await.unwrap_err();

    // The client's own timer may be first, and says CANCELLED; what the server said is in its metrics.
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
    let exceeded = "rewarm_requests_total{method=\"Score\",code=\"DEADLINE_EXCEEDED\",variant=\"deadline\"}";
    eventually("the server counts it", async || server.metric(exceeded).await == 1.0).await;
    let samples = model.samples.load(Ordering::SeqCst);
    model.open();
    first.await.unwrap();
    assert_eq!(model.samples.load(Ordering::SeqCst), samples, "what is late never reaches the model");
}

#[tokio::test]
async fn a_deadline_that_cannot_be_read_is_invalid() {
    let server = start(&Fake::new(1.0)).await;
    let mut odd = tonic::Request::new(request(&["1"]));
    odd.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = server.client().await.score(odd).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "grpc-timeout");
}

#[tokio::test]
async fn the_queued_work_of_a_caller_who_left_never_reaches_the_model() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("vanished", &model).await;
    let mut client = server.client().await;
    let leaving = tokio::spawn(async move { client.score(request(&["1", "2", "3"])).await });
    let queued = "rewarm_queue_samples{variant=\"vanished\"}";
    eventually("its samples wait", async || server.metric(queued).await == 3.0).await;

    leaving.abort();

    eventually("they are withdrawn", async || server.metric(queued).await == 0.0).await;
    let samples = model.samples.load(Ordering::SeqCst);
    model.open();
    first.await.unwrap();
    assert_eq!(model.samples.load(Ordering::SeqCst), samples);
    let cancelled = "rewarm_requests_total{method=\"Score\",code=\"CANCELLED\",variant=\"vanished\"}";
    assert_eq!(server.metric(cancelled).await, 1.0);
}

// ---- streams ----

/// Opens a stream: what is sent goes in, what is received comes out.
async fn open_stream(
    server: &TestServer,
) -> (mpsc::Sender<ScoreRequest>, tonic::Streaming<proto::ScoreResponse>) {
    let (requests, outbound) = mpsc::channel(1);
    let responses =
        server.client().await.score_stream(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    (requests, responses)
}

fn numbered(id: usize) -> ScoreRequest {
    ScoreRequest { request_id: id.to_string(), ..request(&[&id.to_string()]) }
}

#[tokio::test]
async fn a_stream_answers_each_request_once_also_after_the_end_of_input() {
    let server = start(&Fake::new(1.0)).await;
    let (requests, mut responses) = open_stream(&server).await;
    let sender = tokio::spawn(async move {
        for id in 0..500 {
            requests.send(numbered(id)).await.unwrap();
        }
    });
    let mut answered = BTreeSet::new();
    while let Some(response) = timeout(SOON, responses.message()).await.unwrap().unwrap() {
        let id: usize = response.request_id.parse().unwrap();
        assert_eq!(rewards(&response), [id as f32]);
        assert!(answered.insert(id), "{id} was answered twice");
    }
    sender.await.unwrap();
    assert_eq!(answered, (0..500).collect());
}

#[tokio::test]
async fn a_bad_request_does_not_end_the_stream() {
    let server = start(&Fake::new(1.0)).await;
    let (requests, mut responses) = open_stream(&server).await;
    let mut answer = async |request| {
        requests.send(request).await.unwrap();
        timeout(SOON, responses.message()).await.unwrap().unwrap().unwrap()
    };
    let bad = answer(ScoreRequest { request_id: "bad".to_owned(), ..Default::default() }).await;
    let nameless = answer(request(&["1"])).await;
    let good = answer(numbered(7)).await;

    assert_eq!(bad.request_id, "bad");
    assert_eq!(bad.error.as_ref().map(|error| error.code), Some(Code::InvalidArgument as i32));
    assert!(bad.results.is_empty());
    assert!(nameless.error.unwrap().message.contains("request_id"));
    assert_eq!(rewards(&good), [7.0]);
}

#[tokio::test]
async fn a_slow_reader_slows_only_its_own_stream() {
    let model = Fake::new(1.0);
    let mut config = config(models(&[("slow", 1.0)]));
    // Room for all that one stream may have in flight: this is not about the queue.
    config.engine.max_queue_tokens = 1 << 20;
    let server = start_with(config, move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    // The responses are large, so that the transport does not hide that nobody reads.
    let (requests, responses) = open_stream(&server).await;
    let sender = tokio::spawn(async move {
        for id in 0..1000 {
            let request = ScoreRequest { request_id: id.to_string(), ..request(&["1"; 1024]) };
            requests.send(request).await.unwrap();
        }
    });
    let scored = "rewarm_requests_total{method=\"ScoreStream\",code=\"OK\",variant=\"slow\"}";
    eventually("some are scored", async || server.metric(scored).await >= 64.0).await;

    let mut client = server.client().await;
    for _ in 0..10 {
        let response = timeout(SOON, client.score(request(&["5"]))).await.unwrap().unwrap();
        assert_eq!(rewards(&response.into_inner()), [5.0]);
    }
    // What was scored fits the slots and the transport's buffers; the rest is held back at the sender.
    assert!(!sender.is_finished());
    assert!(server.metric(scored).await < 500.0);
    sender.abort();
    drop(responses);
}

#[tokio::test]
async fn the_work_of_an_abandoned_stream_is_withdrawn() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("abandoned", &model).await;
    let (requests, responses) = open_stream(&server).await;
    for id in 0..10 {
        requests.send(numbered(id)).await.unwrap();
    }
    let queued = "rewarm_queue_samples{variant=\"abandoned\"}";
    eventually("its samples wait", async || server.metric(queued).await == 10.0).await;
    drop((requests, responses));
    eventually("they are withdrawn", async || server.metric(queued).await == 0.0).await;
    model.open();
    first.await.unwrap();
}

#[tokio::test]
async fn a_streams_deadline_ends_it_after_the_last_answer() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("stream-deadline", &model).await;
    let (requests, outbound) = mpsc::channel(4);
    let mut call = tonic::Request::new(ReceiverStream::new(outbound));
    call.set_timeout(Duration::from_millis(300));
    let mut responses = server.client().await.score_stream(call).await.unwrap().into_inner();
    requests.send(numbered(1)).await.unwrap();
    let response = timeout(SOON, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.error.unwrap().code, Code::DeadlineExceeded as i32);
    let end = timeout(SOON, responses.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::DeadlineExceeded);
    model.open();
    first.await.unwrap();
}

// ---- the life of the server ----

#[tokio::test]
async fn while_loading_calls_are_unavailable_and_the_process_lives() {
    let model = Fake::new(1.0);
    model.close();
    let loaded = model.clone();
    // Loading itself is instant; the warm-up waits at the gate.
    let server = start_with(config(models(&[("warm", 1.0)])), move |name| Ok(variant(name, &loaded))).await;
    let mut client = server.client().await;

    let status = client.score(request(&["1"])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
    assert_eq!(server.health(READY).await, Some(ServingStatus::NotServing));
    assert_eq!(server.page("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(server.page("/readyz").await, (503, "not ready\n".to_owned()));
    assert_eq!(
        server.admin().await.reload(proto::ReloadRequest {}).await.unwrap_err().code(),
        Code::Unavailable
    );

    model.open();
    server.ready().await;
    assert_eq!(server.health("warm").await, Some(ServingStatus::Serving));
    assert_eq!(server.page("/readyz").await, (200, "ready\n".to_owned()));
    assert!(client.score(request(&["1"])).await.is_ok());
}

#[tokio::test]
async fn models_that_cannot_be_loaded_end_the_server_with_the_reason() {
    let mut server = start_with(config(models(&[("warm", 1.0)])), |_| Err("no such file".to_owned())).await;
    let error = timeout(SOON, server.running.stopped()).await.unwrap().unwrap_err();
    let chain = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(chain, "load variant `warm`: no such file");
}

#[tokio::test]
async fn a_model_whose_first_reward_is_nan_never_serves() {
    let model = Fake::new(1.0);
    model.is_nan.store(true, Ordering::SeqCst);
    let mut server =
        start_with(config(models(&[("warm", 1.0)])), move |name| Ok(variant(name, &model))).await;
    let error = timeout(SOON, server.running.stopped()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named_before_anything_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(models(&[("warm", 1.0)]));
    config.ports = Ports::new([(Port::Admin, taken.local_addr().ok())]);
    let source = NeverLoads;
    let error = rewarm::service::start(config, source).await.err().unwrap();
    assert!(error.to_string().ends_with("for the admin service"), "{error}");
}

struct NeverLoads;

impl rewarm::service::Source for NeverLoads {
    fn reread(&self) -> Result<rewarm::service::Models, String> {
        panic!("nothing is read again")
    }

    fn load(
        &self,
        _variants: &[rewarm::model::variant::VariantConfig],
    ) -> Result<Vec<rewarm::service::Loaded>, rewarm::service::LoadError> {
        panic!("nothing is loaded")
    }
}

#[tokio::test]
async fn draining_finishes_what_was_admitted_and_refuses_the_rest() {
    let model = Fake::new(1.0);
    let (mut server, first) = busy_server("drain", &model).await;
    let mut client = server.client().await;
    let mut admitted = client.clone();
    let admitted = tokio::spawn(async move { admitted.score(request(&["1", "2"])).await });
    let queued = "rewarm_queue_samples{variant=\"drain\"}";
    eventually("they wait", async || server.metric(queued).await == 2.0).await;
    let (requests, mut responses) = open_stream(&server).await;
    requests.send(numbered(3)).await.unwrap();
    eventually("the stream's sample waits too", async || server.metric(queued).await == 3.0).await;

    server.admin().await.drain(proto::DrainRequest {}).await.unwrap();

    server.until_health(READY, ServingStatus::NotServing).await;
    // A request without samples is never admitted: invalid before the door closes, unavailable after.
    let refused = async {
        loop {
            let status = client.score(ScoreRequest::default()).await.unwrap_err();
            if status.code() != Code::InvalidArgument {
                return status;
            }
        }
    };
    let refused = timeout(SOON, refused).await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));

    model.open();
    first.await.unwrap();
    assert_eq!(rewards(&admitted.await.unwrap().unwrap().into_inner()), [1.0, 2.0]);
    let last = timeout(SOON, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(rewards(&last), [3.0]);
    let end: Status = timeout(SOON, responses.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    timeout(SOON, server.running.stopped()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_that_does_not_end_is_cut_at_the_limit() {
    let model = Fake::new(1.0);
    let loaded = model.clone();
    let mut config = config(models(&[("stuck", 1.0)]));
    config.drain_limit = Duration::from_millis(200);
    let mut server = start_with(config, move |name| Ok(variant(name, &loaded))).await;
    server.ready().await;
    model.close();
    let mut client = server.client().await;
    let forwards = model.forwards.load(Ordering::SeqCst);
    let stuck = tokio::spawn(async move { client.score(request(&["1"])).await });
    eventually("it runs", async || model.forwards.load(Ordering::SeqCst) > forwards).await;
    let cut = || -> f64 {
        let page = rewarm::metrics::install().render();
        let series = "rewarm_connections_closed_total{port=\"reward\",reason=\"drain_limit\"} ";
        page.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse().unwrap()
    };
    let before = cut();
    server.running.drain();
    timeout(SOON, server.running.stopped()).await.unwrap().unwrap();
    assert!(cut() > before, "who is cut is counted");
    assert!(stuck.await.unwrap().is_err());
    model.open();
}

#[tokio::test]
async fn a_health_watch_sees_the_end_and_does_not_delay_it() {
    use tonic_health::pb::health_client::HealthClient;
    let mut server = start(&Fake::new(1.0)).await;
    let request = tonic_health::pb::HealthCheckRequest { service: READY.to_owned() };
    let mut watch = HealthClient::new(server.channel().await).watch(request).await.unwrap().into_inner();
    let mut next =
        async || timeout(SOON, watch.message()).await.unwrap().unwrap().map(|health| health.status());
    assert_eq!(next().await, Some(ServingStatus::Serving));
    server.running.drain();
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    // Well below the drain limit of 10 s.
    timeout(Duration::from_secs(5), server.running.stopped()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_variant_that_keeps_failing_is_not_serving_until_it_works_again() {
    let (good, bad) = (Fake::new(1.0), Fake::new(1.0));
    let broken = bad.clone();
    let load = move |name: &str| Ok(variant(name, if name == "bad" { &bad } else { &good }));
    let server = start_with(config(models(&[("bad", 1.0), ("good", 1.0)])), load).await;
    server.ready().await;
    let mut client = server.client().await;
    let ask = ScoreRequest { variant: "bad".to_owned(), ..request(&["1"]) };

    broken.is_broken.store(true, Ordering::SeqCst);
    eventually("bad is not serving", async || {
        let response = client.clone().score(ask.clone()).await.unwrap().into_inner();
        assert_eq!(error(&response.results[0]).code, Code::Internal as i32);
        server.health("bad").await == Some(ServingStatus::NotServing)
    })
    .await;
    assert_eq!(server.health("good").await, Some(ServingStatus::Serving));
    assert_eq!(server.health(READY).await, Some(ServingStatus::Serving));

    broken.is_broken.store(false, Ordering::SeqCst);
    assert_eq!(rewards(&client.score(ask).await.unwrap().into_inner()), [1.0]);
    server.until_health("bad", ServingStatus::Serving).await;
}

// ---- reload and routing ----

#[tokio::test]
async fn a_reload_swaps_the_models_and_a_failed_one_changes_nothing() {
    let load = |name: &str| match name {
        "missing" => Err("no such file".to_owned()),
        "nan" => {
            let model = Fake::new(1.0);
            model.is_nan.store(true, Ordering::SeqCst);
            Ok(variant(name, &model))
        }
        _ => Ok(variant(name, &Fake::new(if name == "old" { 1.0 } else { 2.0 }))),
    };
    let server = start_with(config(models(&[("old", 1.0)])), load).await;
    server.ready().await;
    let (mut client, mut admin) = (server.client().await, server.admin().await);
    let mut reload = async |reread| {
        *server.reread.lock().unwrap() = reread;
        admin.reload(proto::ReloadRequest {}).await
    };

    let failures = [
        (Err("rewarm.toml:3: unknown key `colour`".to_owned()), "unknown key `colour`"),
        (Ok(models(&[("missing", 1.0)])), "load variant `missing`: no such file"),
        (Ok(models(&[("nan", 1.0)])), "warm up variant `nan`: the reward is not finite"),
    ];
    for (reread, problem) in failures {
        let status = reload(reread).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(problem), "{status:?}");
        assert_eq!(rewards(&client.score(request(&["3"])).await.unwrap().into_inner()), [3.0]);
    }

    let response = reload(Ok(models(&[("new", 1.0)]))).await.unwrap().into_inner();
    assert_eq!(response.variants[0].name, "new");
    let answer = client.score(request(&["3"])).await.unwrap().into_inner();
    assert_eq!((answer.variant.as_str(), rewards(&answer)), ("new", vec![6.0]));
    server.until_health("new", ServingStatus::Serving).await;
    eventually("the old name is forgotten", async || server.health("old").await.is_none()).await;
}

#[tokio::test]
async fn a_reload_fails_no_request_and_a_second_one_is_told_to_wait() {
    let model = Fake::new(1.0);
    let (server, first) = busy_server("swap", &model).await;
    // The new models' warm-up waits behind the forward that the gate holds: the reload is under way.
    let mut admin = server.admin().await;
    let reload = || {
        let mut admin = admin.clone();
        tokio::spawn(async move { admin.reload(proto::ReloadRequest {}).await })
    };
    let (mut one, mut other) = (reload(), reload());
    let (told, reload) = tokio::select! {
        told = &mut one => (told, other),
        told = &mut other => (told, one),
    };
    assert_eq!(told.unwrap().unwrap_err().code(), Code::Aborted);
    let weights = [("swap".to_owned(), 1.0)].into();
    let status =
        admin.set_routing(proto::SetRoutingRequest { weights, ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    model.open();
    first.await.unwrap();
    reload.await.unwrap().unwrap();
    assert!(server.client().await.score(request(&["1"])).await.is_ok());
}

#[tokio::test]
async fn a_reload_that_is_asked_for_while_models_load_follows_them_once() {
    let (model, loads) = (Fake::new(1.0), Arc::new(AtomicUsize::new(0)));
    let (of_load, counted) = (model.clone(), loads.clone());
    let load = move |name: &str| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(variant(name, &of_load))
    };
    model.close();
    let server = start_with(config(models(&[("first", 1.0)])), load).await;
    // while the first models load, and while those of a reload do
    for (name, expected_loads) in [("second", 2), ("third", 4)] {
        eventually("the warm-up is at the gate", async || {
            model.forwards.load(Ordering::SeqCst) == expected_loads - 1
        })
        .await;
        *server.reread.lock().unwrap() = Ok(models(&[(name, 1.0)]));
        for _ in 0..3 {
            server.running.reload();
        }
        model.open();
        server.until_health(name, ServingStatus::Serving).await;
        assert_eq!(loads.load(Ordering::SeqCst), expected_loads);
        model.close();
        server.running.reload();
    }
    eventually("the last one loads", async || loads.load(Ordering::SeqCst) == 5).await;
    let told = server.admin().await.reload(proto::ReloadRequest {}).await.unwrap_err();
    assert_eq!(told.code(), Code::Aborted, "an operator who waits for the answer is told at once");
    model.open();
}

#[tokio::test]
async fn routing_is_sticky_by_key_or_by_prompt_and_can_be_changed() {
    let load = |name: &str| Ok(variant(name, &Fake::new(1.0)));
    let server = start_with(config(models(&[("a", 1.0), ("b", 1.0)])), load).await;
    server.ready().await;
    let (client, mut admin) = (server.client().await, server.admin().await);
    let variant_of =
        async |request: ScoreRequest| client.clone().score(request).await.unwrap().into_inner().variant;
    let keyed =
        |key: usize, text: &str| ScoreRequest { routing_key: format!("key {key}"), ..request(&[text]) };
    let prompted = |prompt: usize, response: &str| {
        let text = proto::Text { prompt: format!("{prompt} "), response: response.to_owned() };
        ScoreRequest {
            samples: vec![proto::Sample { id: String::new(), input: Some(Input::Text(text)) }],
            ..Default::default()
        }
    };

    let mut seen = BTreeSet::new();
    for index in 0..30 {
        assert_eq!(variant_of(keyed(index, "1")).await, variant_of(keyed(index, "2")).await);
        let variant = variant_of(prompted(index, "1")).await;
        assert_eq!(variant, variant_of(prompted(index, "2")).await);
        seen.insert(variant);
    }
    assert_eq!(seen.len(), 2, "both variants get some");

    let weights = |pairs: &[(&str, f64)]| proto::SetRoutingRequest {
        weights: pairs.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect(),
        expected: vec![],
    };
    let changed = admin.set_routing(weights(&[("b", 3.0)])).await.unwrap().into_inner();
    assert_eq!(changed.routing.unwrap().weights, [("b".to_owned(), 1.0)].into());
    for index in 0..10 {
        assert_eq!(variant_of(keyed(index, "1")).await, "b");
    }
    for bad in [
        weights(&[]),
        weights(&[("c", 1.0)]),
        weights(&[("a", -1.0), ("b", 1.0)]),
        weights(&[("a", f64::NAN)]),
    ] {
        let status = admin.set_routing(bad).await.unwrap_err();
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "weights");
    }
    let named = ScoreRequest { variant: "a".to_owned(), ..request(&["1"]) };
    assert_eq!(variant_of(named).await, "a", "a name wins over routing");
}

// ---- reflection and pages ----

#[tokio::test]
async fn reflection_lists_the_services_of_each_port() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let server = start(&Fake::new(1.0)).await;
    let list = async |address: std::net::SocketAddr| {
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap();
        let mut client = ServerReflectionClient::new(channel.connect().await.unwrap());
        let mut answers =
            client.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect::<BTreeSet<String>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let main = list(server.address(Port::Reward)).await;
    assert!(main.contains("rewarm.v1.RewardService") && main.contains("grpc.health.v1.Health"), "{main:?}");
    assert!(!main.contains("rewarm.v1.AdminService"), "{main:?}");
    let admin = list(server.address(Port::Admin)).await;
    assert!(admin.contains("rewarm.v1.AdminService"), "{admin:?}");
}

#[tokio::test]
async fn metrics_show_a_variant_at_zero_before_its_first_request() {
    let model = Fake::new(1.0);
    let server = start_with(config(models(&[("quiet", 1.0)])), move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    let (status, page) = server.page("/metrics").await;
    assert_eq!(status, 200);
    let zero = "rewarm_requests_total{method=\"Score\",code=\"OK\",variant=\"quiet\"} 0";
    assert!(page.lines().any(|line| line == zero), "{page}");
    // its value is that of whichever server of this process changed its routing last
    assert!(page.contains("\nrewarm_route_weight{variant=\"quiet\"} "), "{page}");
    assert_eq!(server.page("/nothing").await.0, 404);
}

// ---- shadow and drift ----

/// Ready, with a model of scale 1 that answers and one that may shadow it, by their names.
async fn shadowed_server(names: [&'static str; 2], fraction: f64) -> (TestServer, [Arc<Fake>; 2]) {
    let fakes = [Fake::new(1.0), Fake::new(-2.0)];
    let loaded = fakes.clone();
    let mut served = models(&[(names[0], 1.0), (names[1], 0.0)]);
    served.shadow = Some(ShadowRouting { variant: names[1].to_owned(), fraction });
    let load = move |name: &str| Ok(variant(name, &loaded[names.iter().position(|of| *of == name).unwrap()]));
    let server = start_with(config(served), load).await;
    server.ready().await;
    (server, fakes)
}

#[tokio::test]
async fn a_shadow_scores_the_same_tokens_and_only_metrics_tell() {
    let names = ["shadowed", "its-shadow"];
    let (mut server, [_, shadow]) = shadowed_server(names, 1.0).await;
    let mut client = server.client().await;
    let of_both = |metric: &str, more: &str| {
        format!("rewarm_shadow_{metric}{{variant=\"shadowed\",shadow=\"its-shadow\"{more}}}")
    };
    let scored = of_both("samples_total", ",outcome=\"scored\"");
    let (_, page) = server.page("/metrics").await;
    assert!(page.lines().any(|line| line == format!("{scored} 0")), "at zero from the start");
    let before = shadow.samples.load(Ordering::SeqCst);

    // a bad one has nothing to compare; a request that names its variant has a shadow too
    let answer = client.score(request(&["3", "1", "", "2 2"])).await.unwrap().into_inner();
    assert_eq!((answer.variant.as_str(), answer.results.len()), ("shadowed", 4));
    assert_eq!(score(&answer.results[0]).reward, 3.0);
    let named = ScoreRequest { variant: "shadowed".to_owned(), ..request(&["5"]) };
    client.score(named).await.unwrap();
    eventually("the shadow has scored", async || server.metric(&scored).await == 4.0).await;

    assert_eq!(shadow.samples.load(Ordering::SeqCst) - before, 4);
    assert_eq!(server.metric(&of_both("pairs_total", ",agree=\"false\"")).await, 3.0);
    assert_eq!(server.metric(&of_both("pairs_total", ",agree=\"true\"")).await, 0.0);
    assert_eq!(server.metric(&of_both("abs_difference_sum", "")).await, 3.0 * (3.0 + 1.0 + 4.0 + 5.0));
    assert_eq!(server.metric(&of_both("window_samples", "")).await, 4.0);
    assert!((server.metric(&of_both("correlation", "")).await + 1.0).abs() < 1e-9);
    // apart from what was asked for
    for series in [
        "rewarm_samples_total{variant=\"its-shadow\",outcome=\"scored\"}",
        "rewarm_reward_count{variant=\"its-shadow\"}",
    ] {
        assert_eq!(server.metric(series).await, 0.0, "{series}");
    }
    assert_eq!(server.metric("rewarm_samples_total{variant=\"shadowed\",outcome=\"scored\"}").await, 4.0);
    assert!(server.metric("rewarm_device_seconds_total{variant=\"its-shadow\",member=\"0\"}").await > 0.0);

    // whom it shadows is told; who shadows has no shadow, and a shadow that fails is nobody's error
    let info = client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner();
    let told = proto::Shadow { variant: "its-shadow".to_owned(), fraction: 1.0 };
    assert_eq!(info.routing.unwrap().shadow, Some(told.clone()));
    shadow.is_broken.store(true, Ordering::SeqCst);
    let answer = client.score(request(&["7"])).await.unwrap().into_inner();
    assert_eq!(rewards(&answer), [7.0]);
    let failed = of_both("samples_total", ",outcome=\"failed\"");
    eventually("the shadow has failed", async || server.metric(&failed).await == 1.0).await;
    shadow.is_broken.store(false, Ordering::SeqCst);

    // new weights leave it, and a reload brings another fraction or none
    let weights = [(names[0].to_owned(), 2.0)].into();
    let routing = server
        .admin()
        .await
        .set_routing(proto::SetRoutingRequest { weights, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(routing.into_inner().routing.unwrap().shadow, Some(told));
    *server.reread.lock().unwrap() = Ok(models(&[(names[0], 1.0), (names[1], 0.0)]));
    server.admin().await.reload(proto::ReloadRequest {}).await.unwrap();
    let before = shadow.samples.load(Ordering::SeqCst);
    let info = client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.routing.unwrap().shadow, None);
    client.score(request(&["1"])).await.unwrap();
    server.admin().await.drain(proto::DrainRequest {}).await.unwrap();
    server.running.stopped().await.unwrap();
    assert_eq!(shadow.samples.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_group_is_shadowed_whole_or_not_at_all() {
    let names = ["grouped", "shadow-of-groups"];
    let (server, _) = shadowed_server(names, 0.5).await;
    let mut client = server.client().await;
    for key in 0..8 {
        for _ in 0..7 {
            let asked = ScoreRequest { routing_key: format!("group {key}"), ..request(&["1"]) };
            client.score(asked).await.unwrap();
        }
    }
    // shadows are scored in their order: what comes last, and is in any sample, comes after them
    let mut all = models(&[(names[0], 1.0), (names[1], 0.0)]);
    all.shadow = Some(ShadowRouting { variant: names[1].to_owned(), fraction: 1.0 });
    *server.reread.lock().unwrap() = Ok(all);
    server.admin().await.reload(proto::ReloadRequest {}).await.unwrap();
    let of = |outcome: &str| {
        format!(
            "rewarm_shadow_samples_total{{variant=\"grouped\",shadow=\"shadow-of-groups\",outcome=\"{outcome}\"}}"
        )
    };
    let (scored, dropped) = (of("scored"), of("dropped"));
    let in_sample = async || server.metric(&scored).await + server.metric(&dropped).await;
    eventually("all of each group is told", async || in_sample().await % 7.0 == 0.0).await;
    let before = in_sample().await;
    client.score(request(&["1"])).await.unwrap();
    eventually("the last one is told", async || in_sample().await == before + 1.0).await;
    assert!((7.0..=49.0).contains(&before), "some groups of seven, and not all: {before}");
}

#[tokio::test]
async fn a_window_tells_how_far_answers_are_from_the_references() {
    let spread = |mean: f64, std: f64| Some(Spread { mean, std });
    let reference = Reference {
        reward: spread(50.0, 10.0),
        tokens: spread(2.0, 0.5),
        length_correlation: Some(0.0),
        disagreement: spread(10.0, 5.0),
        too_long: Some((0.0, 100)),
    };
    let fakes = [Fake::new(1.0), Fake::new(3.0)];
    let load = move |name: &str| Ok(Variant { reference, ..support::ensemble(name, &fakes) });
    let server = start_with(config(models(&[("drifting", 1.0)])), load).await;
    server.ready().await;
    let mut client = server.client().await;
    let of_window =
        |name: &str, more: &str| format!("rewarm_{name}{{variant=\"drifting\",token=\"\"{more}}}");
    let drift = |statistic: &str| of_window("drift", &format!(",statistic=\"{statistic}\""));

    // rewards of 2 · sum: 20 and 60, in one and three tokens; members are apart by half of it
    let texts: Vec<&str> = (0..33).flat_map(|_| ["10", "10 10 10", "10"]).collect();
    client.score(request(&texts)).await.unwrap();
    let (_, page) = server.page("/metrics").await;
    assert!(page.lines().any(|line| line == format!("{} 99", of_window("window_samples", ""))), "{page}");
    let is_shown = |page: &str| page.contains("rewarm_drift{variant=\"drifting\"");
    assert!(!is_shown(&page), "fewer than a hundred say nothing");
    client.score(request(&["10", "10 10 10", "10"])).await.unwrap();

    let (_, page) = server.page("/metrics").await;
    assert!(is_shown(&page), "{page}");
    for (series, expected) in [
        (of_window("window_reward_mean", ""), 100.0 / 3.0),
        (of_window("window_tokens_mean", ""), 5.0 / 3.0),
        (of_window("window_length_correlation", ""), 1.0),
        (of_window("window_truncated_ratio", ""), 0.0),
        (of_window("window_disagreement_mean", ""), 50.0 / 3.0),
        ("rewarm_reference_reward_mean{variant=\"drifting\"}".to_owned(), 50.0),
        ("rewarm_reference_disagreement_mean{variant=\"drifting\"}".to_owned(), 10.0),
        (drift("reward"), (100.0 / 3.0 - 50.0) / 10.0),
        (drift("length"), (5.0 / 3.0 - 2.0) / 0.5),
        (drift("truncation"), 0.0),
        (drift("length_correlation"), 0.999_999_f64.atanh()),
        (drift("disagreement"), (50.0 / 3.0 - 10.0) / 5.0),
    ] {
        let found = server.metric(&series).await;
        assert!((found - expected).abs() < 1e-3, "{series}: {found}, expected {expected}");
    }
}
