//! The real program under load, while it is told to reload checkpoints that are hostile: it serves on, and says what
//! is wrong. Issue 19, B1.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "of what several tests share, this one needs a part")]
mod checkpoints;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "of what several tests share, this one needs a part")]
mod program;

use std::fs;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use checkpoints::TinyCheckpoint;
use program::Server;
use program::rewarm;
use rewarm::proto;
use rewarm::proto::admin_service_client::AdminServiceClient;
use rewarm::proto::reward_service_client::RewardServiceClient;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

/// One way to make a checkpoint hostile.
struct Hostile {
    name: &'static str,
    spoil: fn(&mut TinyCheckpoint),
    then: fn(&Path),
    /// Parts of the error, beside the directory.
    says: &'static [&'static str],
}

const NOTHING: fn(&mut TinyCheckpoint) = |_| ();
const NOTHING_MORE: fn(&Path) = |_| ();

fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// A file of so many bytes that takes no room on the disk.
fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// A sound checkpoint whose weights are a hole of 8 TiB.
fn huge(dir: &Path) {
    const VOCAB: usize = 1 << 27;
    const HIDDEN: usize = 1 << 14;
    let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("vocab_size", VOCAB),
        ("hidden_size", HIDDEN),
        ("intermediate_size", 32),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 4),
    ] {
        config[key] = json!(value);
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut header = Map::new();
    let mut end = 0;
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    for (name, shape) in [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        (layer("self_attn.q_proj"), vec![16, HIDDEN]),
        (layer("self_attn.k_proj"), vec![8, HIDDEN]),
        (layer("self_attn.v_proj"), vec![8, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, 16]),
        (layer("mlp.gate_proj"), vec![32, HIDDEN]),
        (layer("mlp.up_proj"), vec![32, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, 32]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("score.weight".to_owned(), vec![1, HIDDEN]),
    ] {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let path = dir.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

fn template(checkpoint: &mut TinyCheckpoint, source: &str) {
    checkpoint.tokenizer_config["chat_template"] = json!(source);
}

/// Shards of the names that `index` gives to some tensors, instead of the one file.
fn index(dir: &Path, weight_map: Value) {
    fs::rename(dir.join("model.safetensors"), dir.join("shard.safetensors")).unwrap();
    let index = json!({"weight_map": weight_map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

const PIPE: &str = "it is a named pipe, not a regular file";

const CASES: &[Hostile] = &[
    Hostile {
        name: "config is a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("config.json")),
        says: &["config.json", PIPE],
    },
    Hostile {
        name: "tokenizer is a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("tokenizer.json")),
        says: &["tokenizer.json", PIPE],
    },
    Hostile {
        name: "weights are a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("model.safetensors")),
        says: &["model.safetensors", PIPE],
    },
    Hostile {
        name: "manifest is a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("rewarm.json")),
        says: &["rewarm.json", PIPE],
    },
    Hostile {
        name: "golden rewards are a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("rewarm.golden.json")),
        says: &["rewarm.golden.json", PIPE],
    },
    Hostile {
        name: "template is a pipe",
        spoil: NOTHING,
        then: |d| pipe(&d.join("chat_template.jinja")),
        says: &["chat_template.jinja", PIPE],
    },
    Hostile {
        name: "config is a link to itself",
        spoil: NOTHING,
        then: |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            symlink("config.json", d.join("config.json")).unwrap();
        },
        says: &["config.json", "ymbolic link"],
    },
    Hostile {
        name: "tokenizer is a device",
        spoil: NOTHING,
        then: |d| {
            fs::remove_file(d.join("tokenizer.json")).unwrap();
            symlink("/dev/zero", d.join("tokenizer.json")).unwrap();
        },
        says: &["tokenizer.json", "it is a device"],
    },
    Hostile {
        name: "template is a link to nothing",
        spoil: NOTHING,
        then: |d| symlink("nowhere", d.join("chat_template.jinja")).unwrap(),
        says: &["chat_template.jinja", "a link to a file that does not exist"],
    },
    Hostile {
        name: "tokenizer is a folder",
        spoil: NOTHING,
        then: |d| {
            fs::remove_file(d.join("tokenizer.json")).unwrap();
            fs::create_dir(d.join("tokenizer.json")).unwrap();
        },
        says: &["tokenizer.json", "it is a directory"],
    },
    Hostile {
        name: "config of 1 GB",
        spoil: NOTHING,
        then: |d| sparse(&d.join("config.json"), 1 << 30),
        says: &["config.json", "1073741824 bytes, the limit"],
    },
    Hostile {
        name: "tokenizer of 10 GB",
        spoil: NOTHING,
        then: |d| sparse(&d.join("tokenizer.json"), 10 << 30),
        says: &["tokenizer.json", "bytes, the limit"],
    },
    Hostile {
        name: "weights larger than any memory",
        spoil: NOTHING,
        then: huge,
        says: &["8796.", " GB in f32", " GB of memory are left", "dtype = \"bf16\"", "reload = \"replace\""],
    },
    Hostile {
        name: "absurd layers",
        spoil: |c| c.config["num_hidden_layers"] = json!(1_u64 << 60),
        then: NOTHING_MORE,
        says: &["config.json", "`num_hidden_layers` is 1152921504606846976: the limit is 1000"],
    },
    Hostile {
        name: "many layers",
        spoil: |c| c.config["num_hidden_layers"] = json!(1000),
        then: NOTHING_MORE,
        says: &["`model.layers.2.", "is missing"],
    },
    Hostile {
        name: "sizes whose product wraps to zero",
        spoil: |c| {
            c.config["num_attention_heads"] = json!(1_u64 << 32);
            c.config["num_key_value_heads"] = json!(1_u64 << 32);
            c.config["head_dim"] = json!(1_u64 << 32);
        },
        then: NOTHING_MORE,
        says: &["config.json", "`num_attention_heads` is 4294967296: the limit is"],
    },
    Hostile {
        name: "absurd vocabulary",
        spoil: |c| c.config["vocab_size"] = json!(u64::MAX),
        then: NOTHING_MORE,
        says: &["config.json", "`vocab_size` is 18446744073709551615: the limit is"],
    },
    Hostile {
        name: "a rope of zero",
        spoil: |c| c.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 0.0}),
        then: NOTHING_MORE,
        says: &["config.json", "`factor`", " 0"],
    },
    Hostile {
        name: "deep JSON",
        spoil: NOTHING,
        then: |d| fs::write(d.join("config.json"), "[".repeat(1 << 20)).unwrap(),
        says: &["config.json"],
    },
    Hostile {
        name: "deep JSON in the tokenizer",
        spoil: NOTHING,
        then: |d| fs::write(d.join("tokenizer.json"), "{\"model\":".repeat(1 << 20)).unwrap(),
        says: &["tokenizer.json"],
    },
    Hostile {
        name: "a header longer than the file",
        spoil: NOTHING,
        then: |d| {
            let mut bytes = fs::read(d.join("model.safetensors")).unwrap();
            bytes[..8].copy_from_slice(&99_000_000_u64.to_le_bytes());
            fs::write(d.join("model.safetensors"), bytes).unwrap();
        },
        says: &["model.safetensors", "the header has 99000000 bytes, the file"],
    },
    Hostile {
        name: "a header without an end",
        spoil: NOTHING,
        then: |d| fs::write(d.join("model.safetensors"), [0xFF; 4096]).unwrap(),
        says: &["model.safetensors", "the header has 18446744073709551615 bytes, the limit"],
    },
    Hostile {
        name: "truncated weights",
        spoil: NOTHING,
        then: |d| {
            let bytes = fs::read(d.join("model.safetensors")).unwrap();
            fs::write(d.join("model.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
        },
        says: &["model.safetensors", "truncated or damaged"],
    },
    Hostile {
        name: "a shard elsewhere",
        spoil: NOTHING,
        then: |d| index(d, json!({"score.weight": "../../../../etc/passwd"})),
        says: &["model.safetensors.index.json", "`../../../../etc/passwd` is not a plain file name"],
    },
    Hostile {
        name: "one shard many times",
        spoil: NOTHING,
        then: |d| {
            let names = (0..300_000).map(|i| (format!("tensor.{i}"), json!("shard.safetensors")));
            index(d, Value::Object(names.collect()));
        },
        says: &["model.safetensors.index.json", "`tensor.0` is not in shard `shard.safetensors`"],
    },
    Hostile {
        name: "many shards",
        spoil: NOTHING,
        then: |d| {
            let names = (0..5000).map(|i| (format!("tensor.{i}"), json!(format!("{i}.safetensors"))));
            index(d, Value::Object(names.collect()));
        },
        says: &["model.safetensors.index.json", "names 5000 files, the limit is 1000"],
    },
    Hostile {
        name: "NaN weights",
        spoil: |c| c.tensors.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN,
        then: NOTHING_MORE,
        says: &["model.norm.weight", "not finite"],
    },
    Hostile {
        name: "a template that is nested",
        spoil: |c| template(c, &format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000))),
        then: NOTHING_MORE,
        says: &["template"],
    },
    Hostile {
        name: "a template that is one long sum",
        spoil: |c| template(c, &format!("{{{{ {}'a' }}}}", "'a' ~ ".repeat(200_000))),
        then: NOTHING_MORE,
        says: &["template"],
    },
    Hostile {
        name: "a template that grows",
        spoil: |c| {
            template(
                c,
                "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            )
        },
        then: NOTHING_MORE,
        says: &["template"],
    },
    Hostile {
        name: "a template that loops",
        spoil: |c| {
            template(
                c,
                "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            )
        },
        then: NOTHING_MORE,
        says: &["template"],
    },
    Hostile {
        name: "a tokenizer whose texts double",
        spoil: |c| {
            let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
            c.tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double; 60]});
        },
        then: NOTHING_MORE,
        says: &["tokeniz"],
    },
    Hostile {
        name: "infinite golden rewards",
        spoil: NOTHING,
        then: |d| {
            let golden = json!({"format": 1, "pooling": "last_non_pad", "samples": [
                {"input": {"formatted": "w1"}, "tokens": 1, "token_digest": "0", "reward": 1e39}]});
            fs::write(d.join("rewarm.golden.json"), golden.to_string()).unwrap();
        },
        says: &["rewarm.golden.json", "`samples[0].reward` is inf in f32"],
    },
];

/// A configuration that serves one directory.
fn serve(config: &Path, dir: &Path) {
    let text = format!("[variants.warm]\nmode = 'warm'\nmodel = {:?}\n", dir.display().to_string());
    let partial = config.with_extension("partial");
    fs::write(&partial, text).unwrap();
    fs::rename(partial, config).unwrap();
}

fn request() -> proto::ScoreRequest {
    let text = proto::Text { prompt: "w1 w2 w3".to_owned(), response: "w4 w5".to_owned() };
    let sample = proto::Sample { input: Some(proto::sample::Input::Text(text)), ..Default::default() };
    proto::ScoreRequest { samples: vec![sample; 3], ..Default::default() }
}

fn rewards(response: &proto::ScoreResponse) -> Vec<u32> {
    let outcomes = response.results.iter().map(|result| result.outcome.as_ref().unwrap());
    outcomes
        .map(|outcome| match outcome {
            proto::sample_result::Outcome::Score(score) => score.reward.to_bits(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_reload_finds_the_old_models_serve_on_and_no_request_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (config, good) = (folder.path().join("rewarm.toml"), folder.path().join("good"));
    TinyCheckpoint::llama(1).write(&good);
    serve(&config, &good);
    let server = Server::start(&["--config", config.to_str().unwrap()]);

    let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
    let first = client.score(request()).await.unwrap().into_inner();
    let expected = rewards(&first);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stop, expected) = (client.clone(), stop.clone(), expected.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    let response = client.score(request()).await.expect("no request is lost").into_inner();
                    assert_eq!(rewards(&response), expected);
                    answered += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                answered
            })
        })
        .collect();

    let mut admin = AdminServiceClient::connect(format!("http://{}", server.admin)).await.unwrap();
    let mut failures = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let dir = folder.path().join(format!("case-{number}"));
        let mut checkpoint = TinyCheckpoint::llama(2);
        (case.spoil)(&mut checkpoint);
        checkpoint.write(&dir);
        (case.then)(&dir);
        serve(&config, &dir);
        let started = Instant::now();
        match admin.reload(proto::ReloadRequest {}).await {
            Ok(_) => failures.push(format!("{}: accepted", case.name)),
            Err(status) => {
                println!("{} ({:.1} s): {}", case.name, started.elapsed().as_secs_f64(), status.message());
                let dir = dir.display().to_string();
                for part in case.says.iter().chain(&[dir.as_str()]) {
                    if !status.message().contains(*part) {
                        failures.push(format!("{}: `{part}` is not in: {}", case.name, status.message()));
                    }
                }
            }
        }
        let response = client.score(request()).await.expect(case.name).into_inner();
        assert_eq!(
            (rewards(&response), &response.fingerprint),
            (expected.clone(), &first.fingerprint),
            "{}",
            case.name
        );
    }

    // the configuration itself
    pipe(&config);
    let status = admin.reload(proto::ReloadRequest {}).await.unwrap_err();
    if !(status.message().contains("rewarm.toml") && status.message().contains(PIPE)) {
        failures.push(status.message().to_owned());
    }

    stop.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    println!("{} reloads, {answered} requests answered meanwhile", CASES.len());
    assert!(answered > 2 * CASES.len(), "{answered} requests");
    assert!(failures.is_empty(), "{}", failures.join("\n"));

    // and what is good is still taken
    TinyCheckpoint::llama(3).write(&folder.path().join("other"));
    serve(&config, &folder.path().join("other"));
    admin.reload(proto::ReloadRequest {}).await.unwrap();
    let response = client.score(request()).await.unwrap().into_inner();
    assert_ne!(response.fingerprint, first.fingerprint);
}

#[test]
fn weights_that_do_not_fit_are_refused_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (config, dir) = (folder.path().join("rewarm.toml"), folder.path().join("huge"));
    TinyCheckpoint::llama(1).write(&dir);
    huge(&dir);
    serve(&config, &dir);
    let [config, dir] = [&config, &dir].map(|path| path.to_str().unwrap());
    for command in [&["serve", "--config", config][..], &["score", "--model", dir]] {
        let output = program::run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        for part in [dir, "the weights of the model take 8796.", " GB of memory are left", "dtype = \"bf16\""]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    let pairs = folder.path().join("pairs.jsonl");
    fs::write(&pairs, "{\"prompt\": \"w1\", \"chosen\": \"w2\", \"rejected\": \"w3\"}\n").unwrap();
    let (pairs, family) = (pairs.display().to_string(), folder.path().join("family"));
    let output = program::run(&[
        "train",
        "--base",
        dir,
        "--pairs",
        &pairs,
        "--validation-fraction",
        "0",
        "--output",
        family.to_str().unwrap(),
    ]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in [
        dir,
        "training takes 35184.",
        "8796.1 GB of parameters",
        "AdamW's moments",
        " GB of memory are left",
        "frozen_layers",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!family.exists());
    // what it will do elsewhere can be checked here
    assert!(program::run(&["serve", "--check", "--config", config]).status.success());
}

// ---- every command ----

#[test]
fn a_checkpoint_that_ends_a_process_ends_no_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    TinyCheckpoint::llama(1).write(&path("good"));
    let mut spoiled = TinyCheckpoint::llama(2);
    template(&mut spoiled, &format!("{{{{ {}'a' }}}}", "'a' ~ ".repeat(200_000)));
    spoiled.write(&path("spoiled"));
    serve(&path("rewarm.toml"), &path("spoiled"));
    fs::write(path("pairs.jsonl"), "{\"prompt\": \"w1\", \"chosen\": \"w2\", \"rejected\": \"w3\"}\n")
        .unwrap();
    let text = |name: &str| path(name).display().to_string();
    let (good, bad, pairs) = (text("good"), text("spoiled"), text("pairs.jsonl"));
    let commands: [(&str, Vec<String>); 6] = [
        (
            "serve",
            [
                "serve",
                "--config",
                &text("rewarm.toml"),
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--metrics",
                "127.0.0.1:0",
            ]
            .map(str::to_owned)
            .to_vec(),
        ),
        ("check", ["serve", "--check", "--config", &text("rewarm.toml")].map(str::to_owned).to_vec()),
        ("score", ["score", "--model", &bad, "--input", &pairs].map(str::to_owned).to_vec()),
        ("merge", ["merge", &good, &bad, "--output", &text("out-merge")].map(str::to_owned).to_vec()),
        (
            "evaluate",
            [
                "evaluate",
                "--members",
                &good,
                &bad,
                "--pairs",
                &format!("p={pairs}"),
                "--output",
                &text("out-evaluate"),
            ]
            .map(str::to_owned)
            .to_vec(),
        ),
        (
            "train",
            ["train", "--base", &bad, "--pairs", &pairs, "--output", &text("out-train")]
                .map(str::to_owned)
                .to_vec(),
        ),
    ];
    let mut failures = Vec::new();
    for (name, args) in commands {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = rewarm(&args).output().unwrap();
        let error = program::text(&output.stderr);
        println!("{name}: {error}");
        let has_ended_well = output.status.code() == Some(1);
        if !has_ended_well || !error.contains(&bad) || !error.contains("template") {
            failures.push(format!("{name}: {:?}: {error}", output.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What the child is told and answers; it limits itself, and reads no weights.
#[test]
fn a_trial_says_how_far_it_came() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let dir: PathBuf = folder.path().join("a");
    TinyCheckpoint::llama(1).write(&dir);
    let ask = |memory_bytes: u64| {
        let subject =
            json!({"Checkpoint": {"dir": {"Unix": dir.as_os_str().as_encoded_bytes()}, "base": null}});
        let limits = json!({"memory_bytes": memory_bytes, "cpu_seconds": 10, "wait_seconds": 10});
        let mut command = rewarm(&["trial"]);
        command.env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let task = json!({"limits": limits, "subjects": [subject]});
        child.stdin.take().unwrap().write_all(task.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = ask(512 << 20);
    let lines: Vec<Value> =
        program::text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(output.status.success(), "{output:?}");
    let steps: Vec<&str> = lines.iter().filter_map(|line| line["step"].as_str()).collect();
    for doing in ["config.json: reading it", "compiling the chat template", "a conversation of 20 turns"] {
        assert!(steps.iter().any(|step| step.contains(doing)), "{doing}: {steps:?}");
    }
    let proved = lines.last().unwrap()["proved"]["files"].as_array().unwrap();
    let names: Vec<String> = proved
        .iter()
        .map(|file| {
            let bytes = file[0]["Unix"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8);
            String::from_utf8(bytes.collect()).unwrap()
        })
        .collect();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "rewarm.json"]
    {
        assert!(names.iter().any(|name| name.ends_with(&format!("/{file}"))), "{file}: {names:?}");
    }
}
