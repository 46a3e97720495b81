//! The Open Inference Protocol over gRPC and HTTP: a real server with fake models, asked as Triton's and KServe's clients do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/http.rs"]
mod http;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;
#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::get;
use http::post;
use program::Server;
use program::root;
use prost::Message;
use rewarm::engine;
use rewarm::proto::inference::InferParameter;
use rewarm::proto::inference::InferTensorContents;
use rewarm::proto::inference::ModelConfigRequest;
use rewarm::proto::inference::ModelInferRequest;
use rewarm::proto::inference::ModelInferResponse;
use rewarm::proto::inference::ModelReadyRequest;
use rewarm::proto::inference::ModelStatisticsRequest;
use rewarm::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use rewarm::proto::inference::infer_parameter::ParameterChoice;
use rewarm::proto::inference::model_infer_request::InferInputTensor;
use rewarm::proto::inference::model_infer_request::InferRequestedOutputTensor;
use rewarm::service::Limits;
use rewarm::service::Port;
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
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

/// `warm` is one fake; `ens` is two, whose rewards are once and three times the sum of the ids. All is routed to `warm`.
async fn server() -> (TestServer, SocketAddr) {
    let mut config = config(models(&[("warm", 1.0), ("ens", 0.0)]));
    let any_port = Some(([127, 0, 0, 1], 0).into());
    let more =
        config.ports.iter().map(|(port, address)| (port, Some(address))).chain([(Port::Http, any_port)]);
    config.ports = rewarm::service::Ports::new(more.collect::<Vec<_>>());
    let server = start_with(config, |name| {
        let models = [Fake::new(1.0), Fake::new(3.0)];
        Ok(ensemble(name, if name == "ens" { &models } else { &models[..1] }))
    })
    .await;
    server.ready().await;
    let address = server.running.ports.get(Port::Http).unwrap();
    (server, address)
}

async fn client(server: &TestServer) -> GrpcInferenceServiceClient<Channel> {
    GrpcInferenceServiceClient::new(server.channel().await)
}

fn tensor(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    let (name, datatype, shape) = (name.to_owned(), datatype.to_owned(), shape.to_vec());
    InferInputTensor { name, datatype, shape, ..Default::default() }
}

fn request(model: &str, inputs: Vec<(InferInputTensor, Vec<u8>)>) -> ModelInferRequest {
    let (inputs, raw): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs,
        raw_input_contents: raw.into_iter().map(Into::into).collect(),
        ..Default::default()
    }
}

fn lengths_and(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()).collect()
}

fn longs(ids: &[i64]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Their rewards are 3 and 7.
fn texts(model: &str) -> ModelInferRequest {
    request(model, vec![(tensor("text", "BYTES", &[2, 1]), lengths_and(&["1 2", "7"]))])
}

fn outputs(names: &[&str]) -> Vec<InferRequestedOutputTensor> {
    let output = |name: &&str| InferRequestedOutputTensor { name: (*name).to_owned(), ..Default::default() };
    names.iter().map(output).collect()
}

#[tokio::test]
async fn every_form_of_a_sample_gets_its_reward() {
    let (server, _) = server().await;
    let mut client = client(&server).await;
    let mut typed = texts("rewarm");
    typed.raw_input_contents.clear();
    let list = ["1 2", "7"].map(|text| text.as_bytes().to_vec().into());
    typed.inputs[0].contents =
        Some(InferTensorContents { bytes_contents: list.into(), ..Default::default() });
    let ids = || (tensor("input_ids", "INT64", &[2, 3]), longs(&[1, 2, 0, 0, 0, 7]));
    let narrow: Vec<u8> = [1_i32, 2, 900, 7, 900, 900].iter().flat_map(|id| id.to_le_bytes()).collect();
    let prompts = vec![
        (tensor("prompt", "BYTES", &[2]), lengths_and(&["1 ", "7"])),
        (tensor("response", "BYTES", &[2]), lengths_and(&["2", ""])),
    ];
    for request in [
        texts("warm"),
        typed,
        request("warm", prompts),
        request(
            "warm",
            vec![ids(), (tensor("attention_mask", "INT64", &[2, 3]), longs(&[1, 1, 0, 0, 0, 1]))],
        ),
        // as NeMo sends it
        request(
            "warm",
            vec![
                (tensor("tokens", "INT32", &[2, 3]), narrow),
                (tensor("sequence_lengths", "INT64", &[2, 1]), longs(&[2, 1])),
            ],
        ),
    ] {
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!((answer.outputs[0].name.as_str(), &answer.outputs[0].shape[..]), ("rewards", &[2, 1][..]));
        assert_eq!(floats(&answer.raw_output_contents[0]), [3.0, 7.0]);
        let text = |name: &str| answer.parameters[name].parameter_choice.clone().unwrap();
        assert_eq!(text("variant"), ParameterChoice::StringParam("warm".to_owned()));
        assert_eq!(text("fingerprint"), ParameterChoice::StringParam("fingerprint-of-warm".to_owned()));
    }

    let asked = ModelInferRequest {
        id: "7".to_owned(),
        outputs: outputs(&["member_rewards", "rewards", "reward_std"]),
        ..texts("ens")
    };
    let answer = client.model_infer(asked).await.unwrap().into_inner();
    assert_eq!(answer.id, "7");
    let shapes: Vec<&[i64]> = answer.outputs.iter().map(|output| &output.shape[..]).collect();
    assert_eq!(shapes, [[2, 2], [2, 1], [2, 1]]);
    let rewards: Vec<Vec<f32>> = answer.raw_output_contents.iter().map(|raw| floats(raw)).collect();
    assert_eq!(rewards, [vec![3.0, 9.0, 7.0, 21.0], vec![6.0, 14.0], vec![3.0, 7.0]]);
}

#[tokio::test]
async fn what_is_no_request_is_refused_by_name_and_nothing_dies() {
    let (server, _) = server().await;
    let mut client = client(&server).await;
    let one = |datatype: &str, shape: &[i64], raw: Vec<u8>| {
        request("warm", vec![(tensor("text", datatype, shape), raw)])
    };
    let parameter = |name: &str, choice| {
        let value = InferParameter { parameter_choice: Some(choice) };
        ModelInferRequest { parameters: HashMap::from([(name.to_owned(), value)]), ..texts("warm") }
    };
    let ids = || (tensor("input_ids", "INT64", &[1, 2]), longs(&[1, 2]));
    let mut short = texts("warm");
    short.inputs.push(tensor("prompt", "BYTES", &[1]));
    let unknown = "model \"other\" is unknown, the models are ens, warm, rewarm";
    let bad = Code::InvalidArgument;
    for (request, code, told) in [
        (texts("other"), Code::NotFound, unknown),
        (
            ModelInferRequest { model_version: "2".into(), ..texts("warm") },
            Code::NotFound,
            "has no version \"2\"",
        ),
        (one("BYTES", &[1], vec![9, 0, 0, 0, b'1']), bad, "text: says that element 0 has 9 bytes"),
        (one("BYTES", &[1_000_000_000, 1], vec![]), bad, "text: has 1000000000 rows"),
        (one("FP32", &[1], vec![0; 4]), bad, "text: has datatype \"FP32\""),
        (request("warm", vec![ids(), ids()]), bad, "input_ids: comes twice"),
        (
            request("warm", vec![(tensor("input_ids", "INT64", &[4, i64::MAX]), vec![])]),
            bad,
            "input_ids: has shape [4, 9223372036854775807], which no tensor has",
        ),
        (
            request("warm", vec![(tensor("input_ids", "INT64", &[1, 2]), vec![0; 8])]),
            bad,
            "input_ids: has 8 bytes, where shape [1, 2] needs 2 elements of 8 bytes each",
        ),
        (short, bad, "raw_input_contents: are 1, and the inputs are 2"),
        (parameter("timeout", ParameterChoice::DoubleParam(f64::NAN)), bad, "parameters.timeout: is NaN"),
        (
            ModelInferRequest { outputs: outputs(&["logits"]), ..texts("warm") },
            bad,
            "outputs: \"logits\" is not known",
        ),
        (
            ModelInferRequest { outputs: outputs(&["reward_std"]), ..texts("rewarm") },
            bad,
            "outputs: reward_std is of ensembles, and `warm` is none",
        ),
        (request("warm", vec![(tensor("text", "BYTES", &[2]), lengths_and(&["1", ""]))]), bad, "sample[1]: "),
        (
            parameter("expected_fingerprint", ParameterChoice::StringParam("other".into())),
            Code::FailedPrecondition,
            "fingerprint-of-warm",
        ),
    ] {
        let status: Status = client.model_infer(request).await.expect_err(told);
        assert_eq!(status.code(), code, "{told}: {status}");
        assert!(status.message().contains(told), "{told}: {status}");
    }
    assert_eq!(
        floats(&client.model_infer(texts("warm")).await.unwrap().into_inner().raw_output_contents[0]),
        [3.0, 7.0]
    );
}

#[tokio::test]
async fn models_are_told_as_triton_tells_them() {
    let (server, _) = server().await;
    let mut client = client(&server).await;
    let ready = |name: &str| ModelReadyRequest { name: name.to_owned(), version: "1".to_owned() };
    assert!(client.model_ready(ready("ens")).await.unwrap().into_inner().ready);
    assert!(client.model_ready(ready("rewarm")).await.unwrap().into_inner().ready);
    assert_eq!(client.model_ready(ready("x")).await.unwrap_err().code(), Code::NotFound);
    let asked = ModelConfigRequest { name: "warm".to_owned(), ..Default::default() };
    let config = client.model_config(asked).await.unwrap().into_inner().config.unwrap();
    assert_eq!((config.max_batch_size, config.input.len(), config.output.len()), (1024, 6, 2));

    let statistics = async |client: &mut GrpcInferenceServiceClient<Channel>| {
        let asked = ModelStatisticsRequest { name: "ens".to_owned(), ..Default::default() };
        client.model_statistics(asked).await.unwrap().into_inner().model_stats.remove(0)
    };
    let before = statistics(&mut client).await;
    client.model_infer(texts("ens")).await.unwrap();
    client
        .model_infer(request("ens", vec![(tensor("text", "BYTES", &[1]), lengths_and(&[""]))]))
        .await
        .unwrap_err();
    let after = statistics(&mut client).await;
    // other tests of this process ask `ens` too
    assert!(after.inference_count >= before.inference_count + 2);
    assert!(after.execution_count > before.execution_count);
    let (before, after) = (before.inference_stats.unwrap(), after.inference_stats.unwrap());
    assert!(after.success.unwrap().count > before.success.unwrap().count);
    assert!(after.fail.unwrap().count > before.fail.unwrap().count);
    // perf_analyzer ends where these differ: "Server side statistics compute counts must be the same"
    let count = after.compute_infer.as_ref().unwrap().count;
    let counts = [&after.compute_input, &after.compute_output].map(|of| of.as_ref().unwrap().count);
    assert_eq!(counts, [count; 2]);
    // counted a moment after the answer
    let before = before.compute_infer.unwrap().ns;
    eventually("the time of forwards is counted", async || {
        let now = statistics(&mut client.clone()).await;
        now.inference_stats.unwrap().compute_infer.unwrap().ns > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_has_json_and_binary_both_ways() {
    let (_server, address) = server().await;
    tokio::task::spawn_blocking(move || {
        let live = get(address, "/v2/health/live");
        assert_eq!((live.status, live.json()), (200, json!({"live": true})));
        assert_eq!(get(address, "/v2/health/ready").json(), json!({"ready": true}));
        assert_eq!(get(address, "/v2").json()["name"], "rewarm");
        assert_eq!(get(address, "/v2/models/warm/versions/1").json()["outputs"][0]["datatype"], "FP32");
        assert_eq!(get(address, "/v2/models/warm/config").json()["input"][0]["data_type"], "TYPE_STRING");
        assert_eq!(get(address, "/v2/models/warm/stats").json()["model_stats"][0]["name"], "warm");
        assert_eq!(get(address, "/v2/models/warm/ready").status, 200);
        let unknown = get(address, "/v2/models/other");
        assert_eq!((unknown.status, unknown.json()["error"].is_string()), (404, true));
        assert_eq!(get(address, "/v2/models/warm/infer").json()["error"], "this path is for another method");
        let index = post(address, "/v2/repository/index", &[], b"");
        assert_eq!(index.json()[1]["state"], "READY");
        assert_eq!(post(address, "/v2/repository/models/warm/load", &[], b"{}").status, 400);

        let path = "/v2/models/warm/infer";
        let request = json!({"id": "9", "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["1 2"], ["7"]]}
        ]})
        .to_string();
        let answer = post(address, path, &[], request.as_bytes());
        for (name, value) in [("variant", "warm"), ("fingerprint", "fingerprint-of-warm"), ("request-id", "9")] {
            assert_eq!(answer.header(&format!("x-rewarm-{name}")), Some(value));
        }
        let json = answer.json();
        assert_eq!((json["model_name"].as_str(), json["id"].as_str()), (Some("warm"), Some("9")));
        assert_eq!(json["outputs"][0], json!({"name": "rewards", "datatype": "FP32", "shape": [2, 1], "data": [3.0, 7.0]}));

        let raw = lengths_and(&["1 2", "7"]);
        let head = json!({
            "parameters": {"binary_data_output": true},
            "inputs": [
                {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": raw.len()}}
            ],
        })
        .to_string();
        let length = head.len().to_string();
        let body = [head.as_bytes(), &raw].concat();
        let binary = [("Inference-Header-Content-Length", length.as_str())];
        let answer = post(address, path, &binary, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let head: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
        assert_eq!(floats(&answer.body[head..]), [3.0, 7.0]);
        let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&body).unwrap();
        let coded = [binary[0], ("Content-Encoding", "deflate")];
        let answer = post(address, path, &coded, &deflate.finish().unwrap());
        assert_eq!(answer.status, 200, "{}", answer.text());

        for (headers, body, told) in [
            (&binary[..], &body[..body.len() - 1], "text: has a binary_data_size of 12, where 11 bytes are left"),
            (&binary, &[&body[..], b"x"].concat(), "body: has 1 bytes behind the last of its tensors"),
            (&[("Inference-Header-Content-Length", "9999")], &body, "is 9999, and the body has"),
            (&[("Inference-Header-Content-Length", "-1")], &body, "no number of bytes"),
            (&[], b"[1]", "invalid type: integer"),
            (&[], br#"{"inputs": [{"name": "text", "data": [null]}]}"#, "inputs[0].data[0]: invalid type: null"),
            (&[], br#"{"parameters": {"timeout": 1.5}}"#, "parameters.timeout: is 1.5"),
        ] {
            let answer = post(address, path, headers, body);
            assert_eq!(answer.status, 400, "{told}: {}", answer.text());
            let error = answer.json()["error"].as_str().unwrap().to_owned();
            assert!(error.contains(told), "{told}: {error}");
        }
    })
    .await
    .unwrap();
}

/// Small enough to be filled: batches of 16 tokens, a queue of 64.
async fn small_server(model: &Arc<Fake>) -> TestServer {
    let mut config = config(models(&[("warm", 1.0)]));
    config.engine = engine::Config { max_batch_tokens: 16, max_queue_tokens: 64, ..config.engine };
    config.limits = Limits { max_message_bytes: 64 << 10, max_in_flight_bytes: 128 << 10, ..config.limits };
    let model = model.clone();
    let server = start_with(config, move |name| Ok(variant(name, &model))).await;
    server.ready().await;
    server
}

/// Of one sample with so many tokens, each 1.
fn long(tokens: usize) -> ModelInferRequest {
    request("warm", vec![(tensor("text", "BYTES", &[1]), lengths_and(&[&support::long_text(tokens)]))])
}

/// As [`long`], one token, with Triton's parameter for how long it may take.
fn in_time(milliseconds: i64) -> ModelInferRequest {
    let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1000 * milliseconds)) };
    ModelInferRequest { parameters: HashMap::from([("timeout".to_owned(), timeout)]), ..long(1) }
}

async fn post_long(address: SocketAddr, query: &'static str, tokens: usize) -> http::Answer {
    let data = [support::long_text(tokens)];
    let body =
        json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": data}]}).to_string();
    let path = format!("/v2/models/warm/infer{query}");
    tokio::task::spawn_blocking(move || post(address, &path, &[], body.as_bytes())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_deadlines_and_a_drain_are_those_of_every_door() {
    let model = Fake::new(1.0);
    let mut server = small_server(&model).await;
    let address = server.address(Port::Http);
    let client = client(&server).await;
    model.close();
    let before = model.samples.load(Ordering::SeqCst);
    let grpc = |request: ModelInferRequest| {
        let mut client = client.clone();
        tokio::spawn(async move { client.model_infer(request).await.map(tonic::Response::into_inner) })
    };
    let held = [grpc(long(16)), grpc(long(16))];
    let held_over_http = tokio::spawn(post_long(address, "", 16));
    let waiting = |count: f64| {
        let server = &server;
        async move || server.metric(r#"rewarm_queue_samples{variant="warm"}"#).await == count
    };
    eventually("one runs, two wait", waiting(2.0)).await;

    // no room: when to come again is told
    let full = grpc(long(60)).await.unwrap().unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let pushback = full.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert!(pushback.to_str().unwrap().parse::<u64>().unwrap() > 0);
    let full = post_long(address, "", 60).await;
    assert_eq!((full.status, full.json()["code"].as_str()), (503, Some("RESOURCE_EXHAUSTED")));
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let never = grpc(long(65)).await.unwrap().unwrap_err();
    assert_eq!(never.code(), Code::InvalidArgument, "{never}");

    // too late: by gRPC's own deadline, by Triton's parameter, by ours
    let mut by_grpc = tonic::Request::new(long(1));
    by_grpc.set_timeout(Duration::from_millis(400));
    let late = client.clone().model_infer(by_grpc).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let late = grpc(in_time(400)).await.unwrap().unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(post_long(address, "?timeout-ms=400", 1).await.status, 504);

    // who leaves takes his work with him
    let leaver = grpc(long(1));
    eventually("it waits", waiting(3.0)).await;
    leaver.abort();
    eventually("it has left", waiting(2.0)).await;
    let mut leaver = http::Connection::open(address);
    let body = r#"{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["1"]}]}"#;
    let head =
        format!("POST /v2/models/warm/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    leaver.send(format!("{head}{body}").as_bytes());
    eventually("it waits", waiting(3.0)).await;
    drop(leaver);
    eventually("it has left", waiting(2.0)).await;

    // what was admitted is finished, what comes now is refused
    server.running.drain();
    eventually("it drains", async || {
        let refused = grpc(in_time(200)).await.unwrap().unwrap_err();
        refused.code() == Code::Unavailable
    })
    .await;
    let refused = post_long(address, "", 1).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("UNAVAILABLE")));
    model.open();
    for held in held {
        assert_eq!(floats(&held.await.unwrap().unwrap().raw_output_contents[0]), [16.0]);
    }
    let answer = held_over_http.await.unwrap();
    assert_eq!(answer.json()["outputs"][0]["data"], json!([16.0]));
    drop(client);
    tokio::time::timeout(support::SOON, server.running.stopped()).await.unwrap().unwrap();
    assert_eq!(model.samples.load(Ordering::SeqCst) - before, 3, "each once, and nobody else");
}

/// What a few bytes can say costs a few bytes, and all of it is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_are_only_said_cost_nothing() {
    let server = small_server(&Fake::new(1.0)).await;
    let address = server.address(Port::Http);
    let mut client = client(&server).await;
    let empty = |shape: &[i64]| request("warm", vec![(tensor("input_ids", "INT64", shape), vec![])]);
    let many = (0..2000).map(|index| (tensor(&format!("t{index}"), "BYTES", &[1]), vec![]));
    let bombs = [
        (empty(&[1 << 31, 1 << 31]), Code::InvalidArgument),
        (empty(&[i64::MAX, 1]), Code::InvalidArgument),
        (empty(&[-1, 4]), Code::InvalidArgument),
        (empty(&[1; 1000]), Code::InvalidArgument),
        (request("warm", many.collect()), Code::InvalidArgument),
        (
            request("warm", vec![(tensor("text", "BYTES", &[1]), u32::MAX.to_le_bytes().to_vec())]),
            Code::InvalidArgument,
        ),
        (request("warm", vec![(tensor("text", "BYTES", &[1]), vec![0; 70 << 10])]), Code::OutOfRange),
    ];
    let infer = |inputs: Value| json!({ "inputs": inputs }).to_string();
    let one = |shape: Value| json!({"name": "input_ids", "datatype": "INT64", "shape": shape, "data": []});
    let binary = |size: Value| {
        infer(
            json!([{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}]),
        )
    };
    let bodies = [
        (infer(json!([one(json!([1_u64 << 40, 1_u64 << 40]))])), 400),
        (infer(json!([one(json!([i64::MAX, 1]))])), 400),
        (infer(json!([one(json!([-1, 1]))])), 400),
        (infer(json!([one(json!(vec![1; 1000]))])), 400),
        (infer(Value::from(vec![one(json!([1])); 500])), 400),
        (binary(json!(u64::MAX)), 400),
        (binary(json!(-1)), 400),
        (format!("{{\"inputs\": {}", "[".repeat(5000)), 400),
        (format!("{{\"inputs\": [{}", " ".repeat(70 << 10)), 413),
    ];
    for _ in 0..5 {
        for (bomb, code) in &bombs {
            let status = client.model_infer(bomb.clone()).await.unwrap_err();
            assert_eq!(status.code(), *code, "{status}");
        }
        let bodies = bodies.clone();
        let asked = tokio::task::spawn_blocking(move || {
            for (body, status) in bodies {
                let answer = post(address, "/v2/models/warm/infer", &[], body.as_bytes());
                let start: String = body.chars().take(100).collect();
                assert_eq!(answer.status, status, "{start}: {}", answer.text());
                assert!(answer.json()["error"].is_string());
            }
        });
        asked.await.unwrap();
    }
    // as large as may be, which needs most of what all together may hold
    let padded = format!("1{}", " ".repeat(50 << 10));
    let large = request("warm", vec![(tensor("text", "BYTES", &[1]), lengths_and(&[&padded]))]);
    assert_eq!(floats(&client.model_infer(large).await.unwrap().into_inner().raw_output_contents[0]), [1.0]);
}

/// The bytes in `tests/data/clients`, noted by `tests/clients/record_inference.py`: what came over HTTP is posted as it was,
/// and what came over gRPC is decoded, which the descriptors of both sides have made the same.
#[test]
fn what_real_clients_send_gets_transformers_rewards() {
    const F32_ATOL: f64 = 1e-5;
    let server = Server::of_model("llama");
    let address = server.http();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = format!("http://{}", server.listen);

    for name in [
        "tritonclient-grpc",
        "tritonclient-http",
        "kserve-grpc-typed",
        "kserve-grpc-raw",
        "kserve-http-json",
        "kserve-http-binary",
        "trlx-grpc",
        "nemo-grpc",
    ] {
        let recorded = std::fs::read(root().join(format!("tests/data/clients/{name}.json"))).unwrap();
        let recorded: Value = serde_json::from_slice(&recorded).unwrap();
        let request = &recorded["request"];
        let body = unhex(request["body_hex"].as_str().unwrap());
        let rewards: Vec<f64> = match request["headers"].as_object() {
            None => {
                let request = ModelInferRequest::decode(&body[..]).unwrap();
                let answer: ModelInferResponse = runtime.block_on(async {
                    let mut client = GrpcInferenceServiceClient::connect(url.clone()).await.unwrap();
                    client.model_infer(request).await.unwrap().into_inner()
                });
                floats(&answer.raw_output_contents[0]).into_iter().map(f64::from).collect()
            }
            Some(headers) => {
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
                let answer = post(address, request["path"].as_str().unwrap(), &headers, &body);
                assert_eq!(answer.status, 200, "{name}: {}", answer.text());
                match answer.header("inference-header-content-length") {
                    Some(head) => {
                        floats(&answer.body[head.parse().unwrap()..]).into_iter().map(f64::from).collect()
                    }
                    None => serde_json::from_value(answer.json()["outputs"][0]["data"].clone()).unwrap(),
                }
            }
        };
        let expected: Vec<f64> = serde_json::from_value(recorded["rewards"].clone()).unwrap();
        assert_eq!(rewards.len(), expected.len(), "{name}");
        let worst = rewards.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
        assert!(
            worst.clone().all(|difference| difference < F32_ATOL),
            "{name}: {rewards:?}, expected {expected:?}"
        );
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}
