//! The demo family that ships, through the real program: what a newcomer runs first, and hostile input to it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use program::Server;
use program::get;
use program::root;
use program::score;
use program::text;
use rewarm::proto;
use rewarm::proto::admin_service_client::AdminServiceClient;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::proto::sample::Input;
use rewarm::proto::sample_result::Outcome;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

/// Room for another order of summation in `f32`, and nothing else.
const F32_ATOL: f64 = 1e-5;

const PROMPT: &str =
    "Describe a personal experience. The more pleasant the experience is for the person, the better.";

/// Made by `tests/reference/demo_golden.py` with transformers.
#[derive(Deserialize)]
struct Golden {
    samples: Vec<GoldenSample>,
}

#[derive(Deserialize)]
struct GoldenSample {
    prompt: String,
    response: String,
    token_ids: Vec<u32>,
    member_rewards: Vec<f64>,
    ens: f64,
    warm: f64,
}

fn golden() -> Vec<GoldenSample> {
    let path = root().join("tests/data/demo_golden.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(golden.samples.len() >= 20);
    golden.samples
}

fn assert_close(what: &str, ours: f64, theirs: f64) {
    assert!(
        (ours - theirs).abs() <= F32_ATOL * theirs.abs().max(1.0),
        "{what}: {ours}, transformers {theirs}"
    );
}

fn json_lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sample(response: &str) -> proto::Sample {
    let text = proto::Text { prompt: PROMPT.to_owned(), response: response.to_owned() };
    proto::Sample { id: response.chars().take(8).collect(), input: Some(Input::Text(text)) }
}

fn request(variant: &str, samples: Vec<proto::Sample>) -> proto::ScoreRequest {
    proto::ScoreRequest { variant: variant.to_owned(), samples, return_members: true, ..Default::default() }
}

fn outcome(response: proto::ScoreResponse) -> Vec<Outcome> {
    response.results.into_iter().map(|result| result.outcome.unwrap()).collect()
}

fn reward(outcome: &Outcome) -> f32 {
    match outcome {
        Outcome::Score(score) => score.reward,
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

#[test]
fn members_score_as_in_transformers_merged_and_as_an_ensemble() {
    let golden = golden();
    let lines: String = golden
        .iter()
        .map(|sample| json!({"prompt": sample.prompt, "response": sample.response}).to_string() + "\n")
        .collect();
    let members = (0..4).map(|i| format!("deploy/demo/member-{i}")).collect::<Vec<_>>().join(",");
    let warm = score(&["--members", &members, "--mode", "warm"], &lines);
    let ens = score(&["--members", &members, "--mode", "ens"], &lines);
    assert!(warm.status.success() && ens.status.success(), "{warm:?} {ens:?}");
    let (warm, ens) = (json_lines(&warm.stdout), json_lines(&ens.stdout));
    assert_eq!((warm.len(), ens.len()), (golden.len(), golden.len()));
    for (index, sample) in golden.iter().enumerate() {
        let what = &sample.response;
        assert_eq!(warm[index]["id"], json!(index + 1));
        assert_eq!(warm[index]["tokens"], json!(sample.token_ids.len()), "{what}");
        // the reference rounds the merge to f16, as it would be stored; ours is merged at load, in f32
        let (ours, theirs) = (warm[index]["reward"].as_f64().unwrap(), sample.warm);
        assert!(
            (ours - theirs).abs() < 0.01 * theirs.abs().max(1.0),
            "{what}: {ours}, transformers {theirs}"
        );
        assert_close(what, ens[index]["reward"].as_f64().unwrap(), sample.ens);
        for (member, &theirs) in sample.member_rewards.iter().enumerate() {
            assert_close(what, ens[index]["member_rewards"][member].as_f64().unwrap(), theirs);
        }
    }
}

#[tokio::test]
async fn the_first_command_serves_both_variants_and_prefers_the_pleasant() {
    let server = Server::start(&[]);
    let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
    let info = client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner();
    let modes: HashSet<_> =
        info.variants.iter().map(|v| (v.name.as_str(), v.mode.as_str(), v.members.len())).collect();
    assert_eq!(modes, HashSet::from([("warm", "warm", 4), ("ens", "ens", 4)]));

    let pairs = [
        ("I won the lottery.", "I lost my job."),
        ("I ate my favorite cake with my friends.", "I ate a cake and found a hair in it."),
        ("My daughter hugged me after school.", "My daughter was hit by a car after school."),
    ];
    for variant in ["warm", "ens"] {
        for (pleasant, not) in pairs {
            let response = client.score(request(variant, vec![sample(pleasant), sample(not)])).await.unwrap();
            let outcomes = outcome(response.into_inner());
            assert!(reward(&outcomes[0]) > reward(&outcomes[1]), "{variant}: {pleasant} {outcomes:?}");
        }
    }

    assert_eq!(get(&server.metrics, "/healthz").0, "HTTP/1.1 200 OK");
    assert_eq!(get(&server.metrics, "/readyz").0, "HTTP/1.1 200 OK");
    let (_, metrics) = get(&server.metrics, "/metrics");
    for series in [
        "rewarm_samples_total{variant=\"warm\",outcome=\"scored\"}",
        "rewarm_stage_duration_seconds_bucket{stage=\"compute\",variant=\"ens\",le=\"0.001\"}",
        "rewarm_device_seconds_total{variant=\"ens\",member=\"3\"}",
    ] {
        let labels: Vec<&str> = series.split(['{', '}', ',']).filter(|part| !part.is_empty()).collect();
        let found = metrics.lines().any(|line| labels.iter().all(|label| line.contains(label)));
        assert!(found, "{series} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn what_a_server_asks_itself_at_a_start_or_a_reload_is_no_traffic() {
    let server = Server::start(&[]);
    assert!(server.log.iter().any(|line| line["message"] == "self-test: golden rewards agree"));
    // series of variants that are not zero, apart from what says how they are served
    let counted = || -> BTreeSet<String> {
        let (_, page) = get(&server.metrics, "/metrics");
        let of_variants = page.lines().filter(|line| line.contains("{") && line.contains("variant="));
        let settings = ["rewarm_model_info", "rewarm_route_weight"];
        of_variants
            .filter(|line| !settings.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(counted(), BTreeSet::new());
    assert!(get(&server.metrics, "/metrics").1.contains("rewarm_reward_count{variant=\"ens\"} 0"));

    let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
    client.score(request("ens", vec![sample("I won the lottery.")])).await.unwrap();
    let after_one = counted();
    for series in [
        "rewarm_samples_total{variant=\"ens\",outcome=\"scored\"} 1",
        "rewarm_reward_count{variant=\"ens\"} 1",
        "rewarm_batch_samples_count{variant=\"ens\"} 1",
        "rewarm_stage_duration_seconds_count{stage=\"queue\",variant=\"ens\"} 1",
    ] {
        assert!(after_one.contains(series), "{series}: {after_one:#?}");
    }
    assert!(after_one.iter().any(|line| line.starts_with("rewarm_device_seconds_total{variant=\"ens\"")));

    let mut admin = AdminServiceClient::connect(format!("http://{}", server.admin)).await.unwrap();
    admin.reload(proto::ReloadRequest {}).await.unwrap();
    assert_eq!(counted(), after_one);
}

#[tokio::test]
async fn a_program_alone_in_an_empty_folder_serves_the_family_that_it_carries() {
    let folder = tempfile::tempdir().unwrap();
    let golden = &golden()[..4];
    let samples = golden.iter().map(|golden| {
        let text = proto::Text { prompt: golden.prompt.clone(), response: golden.response.clone() };
        proto::Sample { id: String::new(), input: Some(Input::Text(text)) }
    });
    let request = request("ens", samples.collect());
    let weights =
        format!(".cache/rewarm/demo-{}/deploy/demo/member-3/model.safetensors", env!("CARGO_PKG_VERSION"));
    let weights = folder.path().join(weights);
    for _ in 0..2 {
        let server = Server::start_in(folder.path());
        let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
        let response = client.score(request.clone()).await.unwrap().into_inner();
        for (ours, golden) in outcome(response).iter().zip(golden) {
            assert_close(&golden.response, f64::from(reward(ours)), golden.ens);
        }
        // one that was cut is written again
        std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(1000).unwrap();
    }
}

#[tokio::test]
async fn a_reload_tells_whose_fingerprint_changed_and_in_what() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rewarm.toml");
    let demo = root().join("deploy/demo");
    let write = |of_ens: &str| {
        let members: Vec<String> =
            (0..2).map(|index| format!("'{}/member-{index}'", demo.display())).collect();
        let members = members.join(", ");
        let variant = |name: &str, more: &str| format!("[variants.{name}]\nmembers = [{members}]\n{more}\n");
        let text = variant("warm", "mode = 'warm'")
            + &variant("ens", of_ens)
            + "[routing]\nweights = { warm = 1 }\n";
        std::fs::write(&path, text).unwrap();
    };
    write("mode = 'ens'");
    let server = Server::start(&["--config", path.to_str().unwrap()]);
    let mut admin = AdminServiceClient::connect(format!("http://{}", server.admin)).await.unwrap();
    let mut reload = async || admin.reload(proto::ReloadRequest {}).await.unwrap().into_inner().changes;
    assert_eq!(reload().await, []);
    write("mode = 'ens'\nreduction = 'min'\ndtype = 'bf16'");
    let [proto::VariantChange { variant, before, after, parts }] = &reload().await[..] else { panic!() };
    assert_eq!((variant.as_str(), &parts[..]), ("ens", &["dtype".to_owned(), "reduction".to_owned()][..]));
    assert!(before.len() == 64 && after.len() == 64 && before != after);
}

#[tokio::test]
async fn hostile_samples_get_an_honest_answer_and_harm_nobody() {
    let server = Server::start(&[]);
    let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
    let neighbour = "I walked along the beach with my sister.";
    let alone = client.score(request("ens", vec![sample(neighbour)])).await.unwrap().into_inner();
    let expected = reward(&outcome(alone)[0]);

    let long = "happy ".repeat(100_000);
    let ids = |ids: Vec<u32>| proto::Sample {
        id: "ids".to_owned(),
        input: Some(Input::TokenIds(proto::TokenIds { ids })),
    };
    struct Case {
        name: &'static str,
        sample: proto::Sample,
        /// Part of the error; `None`: a finite reward.
        error: Option<&'static str>,
    }
    let cases = [
        Case { name: "empty response", sample: sample(""), error: None },
        Case { name: "NUL", sample: sample("I \0 won"), error: None },
        Case {
            name: "emoji", sample: sample("🎉🦀👩‍👩‍👧‍👦 ﷽ e\u{301}\u{202e}"), error: None
        },
        Case { name: "100,000 words", sample: sample(&long), error: Some("the limit is 512") },
        Case {
            name: "no tokens",
            sample: proto::Sample { id: String::new(), input: Some(Input::Formatted(String::new())) },
            error: Some("empty"),
        },
        Case { name: "an id beyond the vocabulary", sample: ids(vec![2, 4000]), error: Some("4000") },
        Case { name: "100,000 ids", sample: ids(vec![7; 100_000]), error: Some("100000") },
        Case { name: "no ids", sample: ids(vec![]), error: Some("empty") },
        Case {
            name: "a conversation without a template",
            sample: proto::Sample {
                id: String::new(),
                input: Some(Input::Conversation(proto::Conversation::default())),
            },
            error: Some("chat template"),
        },
    ];
    let mut samples = Vec::new();
    for case in &cases {
        samples.extend([sample(neighbour), case.sample.clone()]);
    }
    let response = client.score(request("ens", samples)).await.unwrap().into_inner();
    let outcomes = outcome(response);
    assert_eq!(outcomes.len(), 2 * cases.len());
    for (case, pair) in cases.iter().zip(outcomes.chunks(2)) {
        let Outcome::Score(neighbour) = &pair[0] else { panic!("{}: {:?}", case.name, pair[0]) };
        assert!((neighbour.reward - expected).abs() < 1e-5, "{}: the neighbour's reward changed", case.name);
        match (&pair[1], case.error) {
            (Outcome::Score(score), None) => assert!(score.reward.is_finite(), "{}", case.name),
            (Outcome::Error(error), Some(part)) => {
                assert!(error.message.contains(part), "{}: {error:?}", case.name);
                assert_eq!(error.code, tonic::Code::InvalidArgument as i32, "{}", case.name);
            }
            (other, _) => panic!("{}: {other:?}", case.name),
        }
    }

    // the same long text, with truncation: the prompt goes first, then the response's end
    let mut truncated = request("ens", vec![sample(&long)]);
    truncated.truncation = proto::Truncation::Right as i32;
    let response = client.score(truncated).await.unwrap().into_inner();
    let [Outcome::Score(score)] = &outcome(response)[..] else { panic!() };
    assert_eq!(score.tokens, 512);
    assert!(score.truncated_tokens > 99_000, "{}", score.truncated_tokens);
}

#[test]
fn hostile_lines_get_an_error_line_each_and_the_run_goes_on() {
    let mut lines = br#"{"id": "good", "response": "I won.", "prompt": "What happened?"}"#.to_vec();
    lines.extend(b"\n{\"prompt\": \"invalid UTF-8 \xff\xfe\", \"response\": \"\"}\n");
    lines.extend(b"{\"prompt\": \"no response\"}\n{\"token_ids\": [-1]}\n[1, 2]\nnot JSON\n\n");
    lines.extend(
        b"{\"token_ids\": [2, 7, 3], \"formatted\": \"both\"}\n{\"formatted\": \"\\u0000\\ud83e\\udd80\"}\n",
    );
    let output = score(&["--model", "deploy/demo/member-0"], lines);
    assert_eq!(output.status.code(), Some(1));
    let answers = json_lines(&output.stdout);
    let ids: Vec<Value> = answers.iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(json!(ids), json!(["good", 2, 3, 4, 5, 6, 8, 9]));
    let failed: Vec<bool> = answers.iter().map(|answer| answer.get("error").is_some()).collect();
    assert_eq!(failed, [false, true, true, true, true, true, true, false], "{answers:?}");
    assert!(text(&output.stderr).contains("6 of 8 lines have no reward"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn sigterm_under_load_answers_all_that_was_admitted_and_exits_0() {
    let server = Server::start(&[]);
    let client = RewardServiceClient::connect(server.url()).await.unwrap();
    let expected = {
        let response = client.clone().score(request("warm", vec![sample("I won.")])).await.unwrap();
        reward(&outcome(response.into_inner())[0])
    };
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (mut client, answered) = (client.clone(), answered.clone());
            tokio::spawn(async move {
                loop {
                    match client.score(request("warm", vec![sample("I won."); 32])).await {
                        Ok(response) => {
                            let outcomes = outcome(response.into_inner());
                            assert_eq!(outcomes.len(), 32);
                            assert!(outcomes.iter().all(|o| (reward(o) - expected).abs() < 1e-5));
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(status) => return status,
                    }
                }
            })
        })
        .collect();
    while answered.load(Ordering::Relaxed) < 32 {
        tokio::task::yield_now().await;
    }
    server.signal("-TERM");
    for caller in callers {
        let status = caller.await.unwrap();
        // hyper's word for a request that it had not begun to send when the drained connection was closed
        let was_never_sent = format!("{status:?}").contains("hyper::Error(Canceled, \"connection closed\")");
        assert!(status.code() == tonic::Code::Unavailable || was_never_sent, "{status:?}");
    }
    let status = tokio::task::spawn_blocking(|| server.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}
