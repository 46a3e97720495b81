//! HTTP as trainers speak it, each dialect against one real server; and what is no dialect at all.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/http.rs"]
mod http;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Answer;
use http::Connection;
use http::get;
use http::post;
use program::Server;
use program::root;
use rewarm::engine;
use rewarm::model::variant::Variant;
use rewarm::service::Limits;
use rewarm::service::Port;
use rewarm::text::SampleTokenizer;
use rewarm::text::TextOptions;
use rewarm::text::TextRule;
use serde_json::Value;
use serde_json::json;
use support::Fake;
use support::TestServer;
use support::config;
use support::ensemble;
use support::eventually;
use support::models;
use support::start_with;
use support::variant;
use tokio::runtime::Runtime;

const BOS: f64 = 1001.0;
const EOS: f64 = 1002.0;

/// Words are numbers as in `support`, with special tokens that a tokenizer adds: `<s> 1 </s>`.
fn tokenizer(template: Option<&str>, rule: Option<TextRule>) -> Arc<SampleTokenizer> {
    let mut vocab: serde_json::Map<String, Value> = (0..1000).map(|id| (id.to_string(), id.into())).collect();
    vocab.insert("?".to_owned(), 1000.into());
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let piece = |content: &str| json!({"SpecialToken": {"id": content, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(1001, "<s>"), special(1002, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("<s>"), text("A"), piece("</s>")],
            "pair": [piece("<s>"), text("A"), piece("</s>"), text("B"), piece("</s>")],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1001], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [1002], "tokens": ["</s>"]},
            },
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"bos_token": "<s>", "eos_token": "</s>"}"#,
    )
    .unwrap();
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    let options =
        TextOptions { vocab_size: 1003, max_tokens: 64, rule, default_rule: None, ..TextOptions::default() };
    Arc::new(SampleTokenizer::load(folder.path(), &options).unwrap())
}

/// `warm` has a chat template, `pair` is an encoder, `none` says nothing of two texts, `ens` doubles all rewards.
fn load(name: &str) -> Result<Variant, String> {
    const TEMPLATE: &str = "<s>{% for message in messages %}{{ message.content }} {% endfor %}";
    let one = Fake::new(1.0);
    let (variant, tokenizer) = match name {
        "pair" => (variant(name, &one), tokenizer(None, Some(TextRule::SentencePair))),
        "none" => (variant(name, &one), tokenizer(None, None)),
        "ens" => (ensemble(name, &[one, Fake::new(3.0)]), tokenizer(Some(TEMPLATE), None)),
        _ => (variant(name, &one), tokenizer(Some(TEMPLATE), None)),
    };
    Ok(Variant { tokenizer, ..variant })
}

/// The server that most tests share, which outlives them all.
struct Shared {
    _runtime: Runtime,
    server: TestServer,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut config = config(models(&[("warm", 1.0), ("pair", 0.0), ("none", 0.0), ("ens", 0.0)]));
    config.limits = Limits {
        max_message_bytes: 1 << 20,
        max_samples_per_request: 64,
        message_time: Duration::from_millis(400),
        ..config.limits
    };
    let server = runtime.block_on(async {
        let server = start_with(config, load).await;
        server.ready().await;
        server
    });
    Shared { _runtime: runtime, server }
});

fn address() -> SocketAddr {
    SHARED.server.running.ports.get(Port::Http).unwrap()
}

fn ask(path: &str, body: &Value) -> Answer {
    post(address(), path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

// ---- dialects ----

#[test]
fn every_dialect_gets_its_rewards_in_its_shape() {
    let in_all = |reward: f64| BOS + reward + EOS;
    let chat = |reward: f64| BOS + reward;
    let pair = |one: f64, other: f64| BOS + one + EOS + other + EOS;
    let mut failures = Vec::new();
    for (path, body, pointer, expected) in [
        // texts as they are
        (
            "/get_reward",
            json!({"query": ["<s> 1 2"], "prompts": ["1"], "labels": [null]}),
            "/rewards",
            json!([chat(3.0)]),
        ),
        ("/get_reward", json!({"query": ["1 2", "4"]}), "/rewards", json!([3.0, 4.0])),
        ("/get_reward", json!({"query": "1 2"}), "/rewards", json!([3.0])),
        ("/get_reward?variant=ens", json!({"query": ["4"]}), "/rewards", json!([8.0])),
        (
            "/v1/score/evaluation",
            json!({"model": "model", "messages": ["1 2", "<s> 4"]}),
            "/scores",
            json!([3.0, chat(4.0)]),
        ),
        // texts with special tokens
        (
            "/classify",
            json!({"model": "m", "input": "1 2", "use_activation": false}),
            "/data/0/probs",
            json!([in_all(3.0)]),
        ),
        ("/v1/classify", json!({"input": ["1", "<s> 2"]}), "/data/1/probs/0", json!(BOS + in_all(2.0))),
        ("/classify/", json!({"input": ["1"], "add_special_tokens": false}), "/data/0/probs/0", json!(1.0)),
        ("/classify", json!({"input": [1, 2]}), "/data/0/probs/0", json!(3.0)),
        ("/classify", json!({"input": [[1, 2], [4]]}), "/data/1/probs/0", json!(4.0)),
        ("/classify", json!({"input": "1", "model": "ens"}), "/data/0/probs/0", json!(2.0 * in_all(1.0))),
        ("/classify", json!({"input": "1", "model": "ens"}), "/model", json!("ens")),
        ("/classify", json!({"input": "1", "request_id": "r"}), "/id", json!("classify-r")),
        (
            "/classify",
            json!({"messages": [{"role": "user", "content": "5"}, {"role": "assistant", "content": "6"}]}),
            "/data/0/probs/0",
            json!(chat(11.0)),
        ),
        ("/classify", json!({"text": ["1", "2"]}), "/1/embedding", json!([in_all(2.0)])),
        ("/classify", json!({"text": "1"}), "/embedding", json!([in_all(1.0)])),
        ("/classify", json!({"input_ids": [7, 8]}), "/embedding/0", json!(15.0)),
        ("/pooling", json!({"input": ["1 2"], "task": "classify"}), "/data/0/data", json!([in_all(3.0)])),
        ("/v1/embeddings", json!({"model": "m", "input": "1 2"}), "/data/0/embedding", json!([in_all(3.0)])),
        (
            "/v1/embeddings",
            json!({"input": "1 2", "encoding_format": "base64"}),
            "/data/0/embedding",
            json!("AMD6RA=="),
        ),
        ("/predict", json!({"inputs": "1 2"}), "", json!([{"label": "LABEL_0", "score": in_all(3.0)}])),
        (
            "/",
            json!({"inputs": "1 2", "parameters": {}}),
            "",
            json!([[{"label": "LABEL_0", "score": in_all(3.0)}]]),
        ),
        (
            "/predict?variant=pair",
            json!({"inputs": [["1"], ["1", "2"]]}),
            "/1/0/score",
            json!(pair(1.0, 2.0)),
        ),
        ("/predict?variant=pair", json!({"inputs": ["1", "2"]}), "/0/score", json!(pair(1.0, 2.0))),
        // prompts that may be rendered
        ("/rm", json!({"prompt": "1", "response": "2", "label": 3}), "", json!(chat(3.0))),
        ("/rm", json!({"prompt": "<s> 1 </s>", "response": "2"}), "", json!(chat(3.0) + EOS)),
        ("/rm?rendered=true", json!({"prompt": "1 ", "response": "2"}), "", json!(3.0)),
        ("/rm?rendered=false", json!({"prompt": "<s> 1", "response": "2"}), "", json!(BOS + chat(3.0))),
        ("/rm", json!({"prompt": [{"role": "user", "content": "1"}], "response": "2"}), "", json!(chat(3.0))),
        // pairs
        (
            "/score?variant=pair",
            json!({"text_1": "1", "text_2": ["2", "3"]}),
            "/data/1/score",
            json!(pair(1.0, 3.0)),
        ),
        (
            "/v1/score?variant=pair",
            json!({"data_1": ["1", "5"], "data_2": ["2", "3"]}),
            "/data/1/score",
            json!(pair(5.0, 3.0)),
        ),
        ("/score", json!({"queries": "1", "items": ["2"]}), "/data/0/score", json!(chat(3.0))),
        (
            "/rerank",
            json!({"query": "1", "documents": ["2", "3"]}),
            "/results/0",
            json!({"index": 1, "document": {"text": "3"}, "relevance_score": chat(4.0)}),
        ),
        (
            "/v2/rerank",
            json!({"query": "1", "documents": [{"text": "2"}, "2"], "top_n": 1, "return_documents": false}),
            "/results",
            json!([{"index": 0, "relevance_score": chat(3.0)}]),
        ),
        (
            "/rerank",
            json!({"query": "1", "texts": ["2", "3"], "return_text": true}),
            "",
            json!([{"index": 1, "text": "3", "score": chat(4.0)}, {"index": 0, "text": "2", "score": chat(3.0)}]),
        ),
        // the contract
        (
            "/rewarm/v1/score",
            json!({"samples": [{"tokenIds": [7]}], "returnMembers": true, "variant": "ens"}),
            "/results/0/score/member_rewards",
            json!([7.0, 21.0]),
        ),
        (
            "/rewarm/v1/score?variant=ens",
            json!({"samples": [{"token_ids": {"ids": [7]}}]}),
            "/results/0/score",
            json!({"reward": 14.0, "reward_std": 7.0, "tokens": 1, "truncated_tokens": 0}),
        ),
        (
            "/rewarm/v1/score",
            json!({"samples": [{"id": "a", "formatted": "1"}, {"id": "b", "token_ids": [5000]}]}),
            "/results/0",
            json!({"id": "a", "score": {"reward": 1.0, "tokens": 1, "truncated_tokens": 0}}),
        ),
        (
            "/rewarm/v1/score",
            json!({"samples": [{"id": "b", "token_ids": [5000]}]}),
            "/results/0/error/code",
            json!(3),
        ),
        (
            "/rewarm/v1/score",
            json!({"requestId": "r", "samples": [{"conversation": {"messages": [{"role": "user", "content": "5"}, {"role": "assistant", "content": "6", "name": "n"}]}}], "priority": "background"}),
            "/results/0/score/reward",
            json!(chat(11.0)),
        ),
        // an activation, where it is asked for by name
        ("/classify", json!({"input": [[0]], "use_activation": true}), "/data/0/probs/0", json!(0.5)),
        ("/score", json!({"text_1": "0", "text_2": "0", "activation": false}), "/data/0/score", json!(BOS)),
        ("/predict", json!({"inputs": "1", "raw_scores": false}), "/0/score", json!(1.0)),
        (
            "/predict",
            json!({"inputs": "1", "parameters": {"function_to_apply": "none"}}),
            "/0/0/score",
            json!(in_all(1.0)),
        ),
        // nothing asked, nothing answered
        ("/get_reward", json!({"query": []}), "", json!({"rewards": []})),
        ("/classify", json!({"input": []}), "/data", json!([])),
        ("/classify", json!({"text": []}), "", json!([])),
        ("/v1/embeddings", json!({"input": []}), "/data", json!([])),
        ("/score", json!({"text_1": "1", "text_2": []}), "/data", json!([])),
        ("/rerank", json!({"query": "1", "documents": []}), "/results", json!([])),
        ("/rerank", json!({"query": "1", "texts": []}), "", json!([])),
        ("/v1/score/evaluation", json!({"messages": []}), "/scores", json!([])),
        ("/predict", json!({"inputs": []}), "", json!([])),
        ("/rewarm/v1/score", json!({"samples": []}), "/results", json!([])),
        // cut to fewer tokens than the model takes
        (
            "/classify",
            json!({"input": ["1 2 4 8", "16"], "truncate_prompt_tokens": 4}),
            "/data/0/probs/0",
            json!(in_all(3.0)),
        ),
        (
            "/classify",
            json!({"input": "1 2 4 8", "truncate_prompt_tokens": 4, "truncation_side": "left"}),
            "/data/0/probs/0",
            json!(in_all(12.0)),
        ),
        (
            "/classify",
            json!({"input": [[1, 2, 4]], "truncate_prompt_tokens": 2}),
            "/usage/prompt_tokens",
            json!(2),
        ),
        (
            "/classify",
            json!({"input": [vec![1; 100]], "truncate_prompt_tokens": 99}),
            "/usage/prompt_tokens",
            json!(64),
        ),
        (
            "/score?variant=pair",
            json!({"text_1": "1", "text_2": "2 4 8", "truncate_prompt_tokens": 6}),
            "/usage/prompt_tokens",
            json!(6),
        ),
        (
            "/v1/score/evaluation",
            json!({"messages": ["1 2 4", "8"], "max_length": 2}),
            "/scores",
            json!([3.0, 8.0]),
        ),
        // too long, and allowed to be
        (
            "/get_reward?truncation=right",
            json!({"query": [vec!["1"; 100].join(" ")]}),
            "/rewards/0",
            json!(64.0),
        ),
        (
            "/classify",
            json!({"input": [vec![1; 100]], "truncate_prompt_tokens": -1, "truncation_side": "left"}),
            "/data/0/probs/0",
            json!(64.0),
        ),
    ] {
        let answer = ask(path, &body);
        let got = answer.json();
        let is_signed =
            answer.header("x-rewarm-fingerprint").is_some_and(|it| it.starts_with("fingerprint-of-"));
        let is_json = answer.header("content-type") == Some("application/json");
        if answer.status != 200 || got.pointer(pointer) != Some(&expected) || !is_signed || !is_json {
            failures.push(format!("{path} {body}: {} {got}, expected {expected}", answer.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_has_no_reward_fails_the_call_by_its_name() {
    let long = vec!["1"; 100].join(" ");
    let mut failures = Vec::new();
    for (path, body, status, fragments) in [
        ("/get_reward", json!({"query": ["1", "999"]}), 500, &["query[1]: "][..]),
        (
            "/get_reward",
            json!({"query": ["1", long, ""]}),
            400,
            &["query[1]: the sample has 100 tokens", "query[2]: "],
        ),
        ("/classify", json!({"input": [[1], [5000]]}), 400, &["input[1]: ", "5000"]),
        ("/classify", json!({"messages": [{"role": "user"}]}), 400, &["messages", "says nothing"]),
        ("/rm", json!({"prompt": "1", "response": "999"}), 500, &["response: "]),
        (
            "/score?variant=none",
            json!({"text_1": "1", "text_2": ["2", "3"]}),
            400,
            &["text_2[0]: ", "how this model joins"],
        ),
        // fields
        ("/get_reward", json!({"prompts": ["1"]}), 400, &["query"]),
        ("/get_reward", json!({"query": ["1", 2]}), 400, &["query[1]: invalid type: integer"]),
        ("/get_reward", json!([]), 400, &["body: "]),
        ("/classify", json!({}), 400, &["`input`", "`text`"]),
        ("/classify", json!({"input": "1", "text": "2"}), 400, &["two dialects"]),
        (
            "/classify",
            json!({"input": "1", "use_activation": "yes"}),
            400,
            &["use_activation: invalid type: string, expected"],
        ),
        (
            "/classify",
            json!({"input": "1", "truncate_prompt_tokens": 0}),
            400,
            &["truncate_prompt_tokens: is 0"],
        ),
        ("/classify", json!({"input": "1", "truncate_prompt_tokens": 1}), 400, &["input: "]),
        (
            "/classify",
            json!({"input": "1", "priority": 1, "normalize": true}),
            400,
            &["priority: ", "normalize: "],
        ),
        (
            "/classify",
            json!({"messages": [], "add_generation_prompt": true}),
            400,
            &["add_generation_prompt: "],
        ),
        ("/classify", json!({"input": vec!["1"; 65]}), 400, &["input: has 65 samples, the limit is 64"]),
        ("/pooling", json!({"input": "1", "task": "embed"}), 400, &["task: "]),
        (
            "/score",
            json!({"text_1": ["1", "2"], "text_2": ["1", "2", "3"]}),
            400,
            &["text_1: has 2 texts", "3"],
        ),
        ("/score", json!({"text_1": "1"}), 400, &["body: has no pair"]),
        ("/rerank", json!({"query": "1"}), 400, &["`documents`", "`texts`"]),
        ("/rerank", json!({"documents": ["1"]}), 400, &["query: "]),
        (
            "/rerank",
            json!({"query": "1".repeat(20000), "documents": vec!["1"; 64]}),
            400,
            &["64 times", "1280000 bytes"],
        ),
        ("/predict", json!({"inputs": ["1", "2", "3"]}), 400, &["inputs: ", "one text or two"]),
        (
            "/predict",
            json!({"inputs": "1", "parameters": {"function_to_apply": "softmax"}}),
            400,
            &["function_to_apply: "],
        ),
        ("/rm", json!({"prompt": 1, "response": "2"}), 400, &["prompt: "]),
        ("/rm", json!({"input_ids": [1], "sampling_params": {}}), 400, &["prompt"]),
        ("/v1/score/evaluation", json!({"messages": ["1"], "max_length": -10}), 400, &["max_length: is -10"]),
        ("/rewarm/v1/score", json!({"samples": [{"formatted": "1"}], "truncaton": 1}), 400, &["truncaton"]),
        (
            "/rewarm/v1/score",
            json!({"samples": [{}, {"formatted": "1", "token_ids": [1]}]}),
            400,
            &["samples[1]: has several inputs"],
        ),
        (
            "/rewarm/v1/score",
            json!({"samples": [{"formatted": "1"}], "priority": "soon"}),
            400,
            &["priority: "],
        ),
        // what stands beside the body
        ("/get_reward?varient=ens", json!({"query": ["1"]}), 400, &["varient: ", "expected-fingerprint"]),
        ("/get_reward?variant=gone", json!({"query": ["1"]}), 400, &["variant", "ens, none, pair, warm"]),
        (
            "/get_reward?expected_fingerprint=old",
            json!({"query": ["1"]}),
            412,
            &["fingerprint-of-warm", "old"],
        ),
    ] {
        let answer = ask(path, &body);
        let got = answer.json();
        let error = got["error"].as_str().unwrap_or_default();
        if answer.status != status || !fragments.iter().all(|fragment| error.contains(fragment)) {
            failures.push(format!("{path} {body}: {} {got}", answer.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let samples = ask("/get_reward", &json!({"query": ["1", "999"]})).json();
    assert_eq!(samples["samples"][0]["index"], 1);
    assert_eq!(samples["code"], "INTERNAL");
}

#[test]
fn options_come_in_headers_and_answers_say_who_scored() {
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("x-rewarm-variant", "ens"),
        ("x-rewarm-request-id", "r 1"),
        ("x-rewarm-expected-fingerprint", "fingerprint-of-ens"),
        ("x-rewarm-priority", "background"),
        ("x-rewarm-timeout-ms", "20000"),
    ];
    let answer = post(address(), "/get_reward?variant=warm", &headers, br#"{"query": ["4"]}"#);
    assert_eq!(answer.json(), json!({"rewards": [8.0]}));
    for (name, value) in [("variant", "ens"), ("fingerprint", "fingerprint-of-ens"), ("request-id", "r 1")] {
        assert_eq!(answer.header(&format!("x-rewarm-{name}")), Some(value));
    }
    let series = r#"rewarm_requests_total{method="/get_reward",code="OK",variant="ens"}"#;
    let count = SHARED._runtime.block_on(SHARED.server.metric(series));
    assert!(count >= 1.0);
}

/// Every path and every example of the document, as the server tells it.
#[test]
fn the_openapi_document_describes_what_is_answered() {
    let document = get(address(), "/openapi.json").json();
    let mut num_examples = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (verb, operation) in operations.as_object().unwrap() {
            let named = path.replace("{model}", "warm").replace("{version}", "1");
            let Some(content) = operation["responses"].get("200") else {
                assert_eq!(ask(&named, &json!({})).status, 400, "{path} is always refused");
                continue;
            };
            let shown = &content["content"]["application/json"]["examples"];
            if verb == "get" {
                let answer = get(address(), &named);
                assert_eq!(answer.status, 200, "{path}");
                if let Some(example) = shown.pointer("/answer/value") {
                    assert_alike(path, example, &answer.json());
                }
                continue;
            }
            let body = &operation["requestBody"]["content"]["application/json"];
            for (name, example) in body["examples"].as_object().unwrap() {
                let answer = ask(&format!("{named}?variant=warm"), &example["value"]);
                assert_eq!(answer.status, 200, "{path} {name}: {}", answer.json());
                let shown = shown.get(name).unwrap_or(&shown["answer"]);
                assert_alike(path, &shown["value"], &answer.json());
                num_examples += 1;
            }
        }
    }
    assert!(num_examples >= 20, "{num_examples}");
    // whoever is lost is told of all of them
    let told = get(address(), "/nothing").json()["paths"].as_array().unwrap().len();
    let described = document["paths"].as_object().unwrap();
    assert_eq!(told, described.len());
    assert!(described.keys().filter(|path| path.starts_with("/v2/models/{model}")).count() >= 10);
    for path in get(address(), "/nothing").json()["paths"].as_array().unwrap() {
        let (verb, path) = path.as_str().unwrap().split_once(' ').unwrap();
        assert!(described[path].get(verb.to_lowercase()).is_some(), "{verb} {path}");
    }
}

#[test]
fn what_a_model_reads_is_told() {
    let text = |prompt: &str, response: &str| json!({"text": {"prompt": prompt, "response": response}});
    let samples =
        json!([text("1", "2"), {"formatted": "5 </s>"}, {"token_ids": [7, 8]}, text("1", &"2 ".repeat(99))]);
    let answer = ask("/rewarm/v1/tokens", &json!({"samples": samples, "variant": "warm"}));
    let mut told = answer.json();
    let error = told["results"].as_array_mut().unwrap().pop().unwrap()["error"].take();
    assert_eq!(error["code"], "INVALID_ARGUMENT");
    assert!(error["message"].as_str().unwrap().contains("the limit is 64"), "{error}");
    let read = |rendered: &str, ids: &[u32]| {
        let tokens: Vec<&str> = rendered.split(' ').collect();
        json!({"rendered": rendered, "tokens": tokens, "token_ids": ids, "truncated_tokens": 0})
    };
    let expected = [read("<s> 1 2", &[1001, 1, 2]), read("5 </s>", &[5, 1002]), read("7 8", &[7, 8])];
    assert_eq!(told["results"], json!(expected));

    // cut as a reward's sample is
    let long = json!({"samples": [text("1", &"2 ".repeat(99))], "variant": "warm", "truncation": "right"});
    let told = ask("/rewarm/v1/tokens", &long).json();
    assert_eq!(told["results"][0]["token_ids"].as_array().unwrap().len(), 64);
    assert_eq!(told["results"][0]["truncated_tokens"], 101 - 64);
    let scored = ask("/rewarm/v1/score", &long).json();
    assert_eq!(scored["results"][0]["score"]["truncated_tokens"], 101 - 64);

    assert_eq!(ask("/rewarm/v1/tokens?variant=nobody", &json!({"samples": []})).status, 400);
    assert_eq!(get(address(), "/rewarm/v1/tokens").status, 405);
}

#[test]
fn the_page_for_people_asks_what_is_answered_and_nobody_asks_through_it() {
    let server = Server::start(&["--ui", "127.0.0.1:0"]);
    let listening = server.log.iter().find(|line| line["message"] == "listening").unwrap();
    let address: SocketAddr = listening["ui"].as_str().unwrap().parse().unwrap();
    let page = get(address, "/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let text = page.text();
    let asked: BTreeSet<&str> = text.split('"').filter(|part| part.starts_with("/rewarm/")).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    let samples = json!({"samples": [{"text": {"prompt": "What happened today?", "response": "I won."}}]});
    for path in asked {
        let ask = |more: &[(&str, &str)]| {
            let headers = [&[("Content-Type", "application/json")], more].concat();
            post(address, path, &headers, samples.to_string().as_bytes())
        };
        let is_read = path.ends_with("/info");
        let answer = if is_read { get(address, path) } else { ask(&[("Sec-Fetch-Site", "same-origin")]) };
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        if !is_read {
            let refused = ask(&[("Sec-Fetch-Site", "cross-site")]);
            assert_eq!(refused.status, 403, "{path}");
        }
    }
}

/// The same keys, and the same kinds of values; of lists the first element counts.
fn assert_alike(place: &str, example: &Value, actual: &Value) {
    match (example, actual) {
        (Value::Object(fields), Value::Object(actual)) => {
            for (name, value) in fields {
                let of_variants = ["warm"].contains(&name.as_str()) && !actual.contains_key(name);
                assert!(of_variants || actual.contains_key(name), "{place} lacks {name}");
                actual.get(name).inspect(|actual| assert_alike(&format!("{place}.{name}"), value, actual));
            }
            let is_free = place.ends_with("weights");
            assert!(is_free || fields.len() >= actual.len(), "{place} has more than the document says");
        }
        (Value::Array(items), Value::Array(actual)) => {
            if let (Some(item), Some(actual)) = (items.first(), actual.first()) {
                assert_alike(&format!("{place}[0]"), item, actual);
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(example),
            std::mem::discriminant(actual),
            "{place}: {example} is not like {actual}"
        ),
    }
}

/// The page's own commands, in place of curl.
#[test]
fn the_pages_examples_are_answered() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pages/trainers.md")).unwrap();
    let mut num_examples = 0;
    for line in readme.lines().filter_map(|line| line.strip_prefix("curl --json '")) {
        let (body, url) = line.split_once("' ").unwrap();
        let path = url.trim_matches('\'').strip_prefix("127.0.0.1:8080").unwrap();
        let answer = ask(path, &serde_json::from_str(body).unwrap());
        assert_eq!(answer.status, 200, "{line}: {}", answer.text());
        num_examples += 1;
    }
    assert!(num_examples >= 3, "{num_examples}");
}

/// What trainers and clients were seen to send (`tests/clients` recorded it), and the rewards that transformers gives.
#[test]
fn what_real_clients_send_gets_the_right_rewards() {
    const F32_ATOL: f64 = 1e-5;
    let server = Server::of_model("llama");
    let address = server.http();

    let mut seen = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/data/clients")).unwrap() {
        let path = entry.unwrap().path();
        let recorded: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let (request, name) = (&recorded["request"], path.file_stem().unwrap().to_str().unwrap());
        let is_ours = request["path"].as_str().is_some_and(|path| !path.starts_with("/v2"));
        let (true, Some(body)) = (is_ours, request["body"].as_str()) else { continue };
        assert_eq!(recorded["model"], "tests/data/models/llama", "{name}");
        let headers = request["headers"].as_object().unwrap().iter();
        let headers: Vec<(&str, &str)> =
            headers.map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
        let answer = post(address, request["path"].as_str().unwrap(), &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let places = recorded["rewards_at"].as_array().unwrap();
        for (place, expected) in places.iter().zip(recorded["rewards"].as_array().unwrap()) {
            let reward = answer.json().pointer(place.as_str().unwrap()).and_then(Value::as_f64);
            let difference = reward.unwrap() - expected.as_f64().unwrap();
            assert!(difference.abs() < F32_ATOL, "{name}: {reward:?}, expected {expected}");
        }
        seen.push(name.to_owned());
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

// ---- hostile and clumsy ----

#[test]
fn what_is_no_request_is_told_why() {
    let json = ("Content-Type", "application/json");
    let gzipped = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let good = br#"{"query": ["1 2"]}"#;
    let bomb = gzipped(&vec![b' '; 8 << 20]);
    let large = vec![b' '; (1 << 20) + 1];
    let deep = format!("{{\"query\": {}", "[".repeat(5000));
    let many = format!("{{\"query\": [\"1\"], \"labels\": [{}0]}}", "{},".repeat(40000));
    let nan = br#"{"query": [NaN]}"#;
    let mut failures = Vec::new();
    for (what, headers, body, status, fragment) in [
        ("no content type", &[][..], &good[..], 200, "rewards"),
        ("a type with a suffix", &[("content-type", "application/vnd.x+json")], good, 200, "rewards"),
        ("a form", &[("content-type", "application/x-www-form-urlencoded")], good, 415, "application/json"),
        ("gzip", &[json, ("content-encoding", "gzip")], &gzipped(good)[..], 200, "rewards"),
        ("half of gzip", &[json, ("content-encoding", "gzip")], &gzipped(good)[..20], 400, "gzip"),
        ("no gzip", &[json, ("content-encoding", "gzip")], good, 400, "gzip"),
        ("brotli", &[json, ("content-encoding", "br")], good, 415, "gzip"),
        ("a bomb", &[json, ("content-encoding", "gzip")], &bomb[..], 413, "1048576"),
        ("too large", &[json], &large[..], 413, "1048576"),
        ("empty", &[json], &b""[..], 400, "body: is not JSON"),
        ("no json", &[json], &b"query=1"[..], 400, "body: is not JSON"),
        ("no UTF-8", &[json], &b"{\"query\": [\"\xff\"]}"[..], 400, "body: "),
        ("deep", &[json], deep.as_bytes(), 400, "levels"),
        ("many", &[json], many.as_bytes(), 400, "strings, lists and objects"),
        ("NaN", &[json], &nan[..], 400, "body: is not JSON"),
        ("a lone surrogate", &[json], &br#"{"query": ["\ud800"]}"#[..], 400, "body: "),
        ("twice", &[json], &br#"{"query": ["1"], "query": ["2"]}"#[..], 400, "duplicate field"),
        ("an unknown header of ours", &[json, ("x-rewarm-varient", "ens")], good, 400, "x-rewarm-varient"),
    ] {
        let answer = post(address(), "/get_reward", headers, body);
        let text = answer.text();
        let is_object =
            answer.json().is_object() && answer.header("content-type") == Some("application/json");
        if answer.status != status || !text.contains(fragment) || !is_object {
            failures.push(format!("{what}: {} {text}", answer.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(ask("/get_reward", &json!({"query": ["1"]})).json(), json!({"rewards": [1.0]}), "it lives");
}

#[test]
fn verbs_and_paths_that_are_none_have_a_way_out() {
    assert_eq!(get(address(), "/health?from=balancer").status, 200);
    let lost = ask("/getreward", &json!({}));
    assert_eq!((lost.status, lost.json()["code"].as_str()), (404, Some("NOT_FOUND")));
    assert!(lost.json()["paths"].as_array().unwrap().contains(&"POST /get_reward".into()));
    let wrong = get(address(), "/get_reward");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST, OPTIONS")));
    assert!(wrong.json()["error"].as_str().unwrap().contains("send POST"));
    let mut connection = Connection::open(address());
    for (verb, path, status, allow) in [
        ("OPTIONS", "/get_reward", 200, Some("POST, OPTIONS")),
        ("HEAD", "/health", 200, None),
        ("HEAD", "/get_reward", 405, Some("POST, OPTIONS")),
        ("DELETE", "/health", 405, Some("GET, HEAD, OPTIONS")),
        ("GET", "/health", 200, None),
    ] {
        connection.send(format!("{verb} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let answer = connection.answer_to(verb);
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{verb} {path}");
    }
}

/// By the layer below, which knows no JSON.
#[test]
fn what_is_no_http_is_answered_without_a_body() {
    let many: String = (0..200).map(|name| format!("x-{name}: 1\r\n")).collect();
    let long = "x".repeat(70_000);
    for (head, status) in [
        ("POST /get_reward HTTP/1.1\r\nHost x\r\n\r\n".to_owned(), 400),
        ("nonsense\r\n\r\n".to_owned(), 400),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414),
    ] {
        let mut connection = Connection::open(address());
        connection.send(head.as_bytes());
        let answer = connection.answer();
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{answer:?}");
    }
    assert_eq!(get(address(), "/health").status, 200);
}

#[test]
fn pages_and_paths_that_are_none_are_counted() {
    let count = |method: &str, code: &str| {
        let series = format!("rewarm_requests_total{{method=\"{method}\",code=\"{code}\",variant=\"\"}}");
        SHARED._runtime.block_on(SHARED.server.metric(&series))
    };
    let counts = || {
        [
            count("page", "OK"),
            count("page", "NOT_FOUND"),
            count("unknown", "NOT_FOUND"),
            count("unknown", "UNIMPLEMENTED"),
        ]
    };
    let before = counts();
    for path in
        ["/health", "/v2", "/v2/models/x", "/v2/nothing", "/nothing", "/get_reward", "/v2/models/warm/infer"]
    {
        get(address(), path);
    }
    let added: Vec<f64> = counts().iter().zip(before).map(|(now, before)| now - before).collect();
    // other tests ask at the same time
    assert!(added.iter().zip([2.0, 1.0, 2.0, 2.0]).all(|(added, at_least)| *added >= at_least), "{added:?}");
}

#[test]
fn bodies_come_in_chunks_after_100_continue_slowly_or_not_at_all() {
    let head = "POST /get_reward HTTP/1.1\r\nHost: x\r\n";
    let mut connection = Connection::open(address());
    connection.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n9\r\n{{\"query\":\r\n").as_bytes());
    connection.send(b"6\r\n [\"4\"]\r\n1\r\n}\r\n0\r\n\r\n");
    assert_eq!(connection.answer().json(), json!({"rewards": [4.0]}));
    // the same connection goes on
    connection.send(format!("{head}Expect: 100-continue\r\nContent-Length: 16\r\n\r\n").as_bytes());
    assert_eq!(connection.answer().status, 100);
    connection.send(br#"{"query": ["4"]}"#);
    assert_eq!(connection.answer().json(), json!({"rewards": [4.0]}));
    // what is refused is not asked for
    let lost = "POST /lost HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n";
    connection.send(lost.as_bytes());
    assert_eq!(connection.answer().status, 404);

    let mut slow = Connection::open(address());
    slow.send(format!("{head}Content-Length: 100\r\n\r\n{{\"query\"").as_bytes());
    let answer = slow.answer();
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert!(answer.json()["error"].as_str().unwrap().contains("400ms"));
}

#[test]
fn many_short_connections_are_served() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for id in 0..150 {
                    let number = thread * 150 + id;
                    let answer = ask("/get_reward", &json!({"query": [number.to_string()]}));
                    assert_eq!(answer.json(), json!({"rewards": [f64::from(number)]}));
                }
            });
        }
    });
}

/// As OpenRLHF connects: once for each sample, one after the other.
#[test]
#[ignore = "four thousand connections: .ci/run has the time"]
fn thousands_of_short_connections_leave_nothing_behind() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    ask("/get_reward", &json!({"query": ["1"]}));
    let before = descriptors();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in (0..1000).map(|number| number % 600) {
                    let answer = ask("/get_reward", &json!({"query": [number.to_string()]}));
                    assert_eq!(answer.json(), json!({"rewards": [f64::from(number)]}));
                }
            });
        }
    });
    SHARED._runtime.block_on(eventually("all are closed", async || descriptors() <= before));
}

// ---- load, deadlines, the end ----

fn http_port(server: &TestServer) -> SocketAddr {
    server.running.ports.get(Port::Http).unwrap()
}

async fn ask_aside(address: SocketAddr, path: &'static str, query: String) -> Answer {
    let body = json!({"query": [query]});
    let json = [("Content-Type", "application/json")];
    let ask = move || post(address, path, &json, body.to_string().as_bytes());
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_503_deadlines_are_504_and_a_drain_loses_nothing() {
    let model = Fake::new(1.0);
    let mut config = config(models(&[("warm", 1.0)]));
    config.engine = engine::Config { max_batch_tokens: 16, max_queue_tokens: 64, ..config.engine };
    config.connections.idle = Duration::from_millis(150); // who waits for an answer is not idle
    let loaded = model.clone();
    let mut server = start_with(config, move |name| Ok(variant(name, &loaded))).await;
    server.ready().await;
    let address = http_port(&server);
    model.close();
    let before = model.samples.load(Ordering::SeqCst);
    let held: Vec<_> =
        (0..3).map(|_| tokio::spawn(ask_aside(address, "/get_reward", support::long_text(16)))).collect();
    eventually("they wait", async || server.metric(r#"rewarm_queue_tokens{variant="warm"}"#).await >= 32.0)
        .await;

    let full = ask_aside(address, "/get_reward", support::long_text(60)).await;
    assert_eq!(full.status, 503, "{}", full.text());
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(full.json()["code"], "RESOURCE_EXHAUSTED");
    assert!(full.json()["retry_after_seconds"].as_f64().is_some());

    let late = ask_aside(address, "/get_reward?timeout-ms=400", "1".to_owned()).await;
    assert_eq!(
        (late.status, late.json()["code"].as_str()),
        (504, Some("DEADLINE_EXCEEDED")),
        "{}",
        late.text()
    );

    // who leaves takes his work with him
    let mut leaver = Connection::open(address);
    let body = json!({"query": ["7"]}).to_string();
    leaver.send(
        format!("POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .as_bytes(),
    );
    let waits = |count: f64| {
        let server = &server;
        async move || server.metric(r#"rewarm_queue_samples{variant="warm"}"#).await == count
    };
    eventually("the leaver waits", waits(3.0)).await;
    drop(leaver);
    eventually("the leaver has left", waits(2.0)).await;

    server.running.drain();
    eventually("it drains", async || {
        ask_aside(address, "/get_reward?timeout-ms=200", "1".to_owned()).await.status == 503
    })
    .await;
    model.open();
    for held in held {
        assert_eq!(held.await.unwrap().json(), json!({"rewards": [16.0]}));
    }
    tokio::time::timeout(support::SOON, server.running.stopped()).await.unwrap().unwrap();
    assert_eq!(model.samples.load(Ordering::SeqCst) - before, 3, "each once, and nobody else");
}
