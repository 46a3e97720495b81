//! Commands as a user runs them: exit codes, errors, signals, and a server beside the local form.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;

use program::Server;
use program::rewarm;
use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::bench::shape::Family;
use rewarm::bench::shape::Sizes;
use rewarm::ops::cpu::Isa;

/// A configuration that serves `model` of `tests/data/models`.
fn config_file(folder: &Path, model: &str) -> PathBuf {
    let path = folder.join("rewarm.toml");
    let model = root().join("tests/data/models").join(model);
    let text = format!(
        "[server]\ndrain_grace_seconds = 0\n[variants.tiny]\nmode = 'warm'\nmodel = '{}'\n",
        model.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn check_accepts_a_good_configuration_and_names_every_problem_of_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let good = config_file(folder.path(), "llama");
    let output = run(&["serve", "--check", "--config", good.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let answer = text(&output.stdout);
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!(lines[0], "the configuration is valid: it serves tiny (text_rule: chat_template)");
    assert!(lines.len() == 3 && lines[1].starts_with("device auto: c"), "{answer}");
    assert!(
        lines[2].starts_with("warning: listen 0.0.0.0:50051 (the reward service) is open without TLS"),
        "{answer}"
    );
    let on_loopback = ["--device", "cpu", "--listen", "127.0.0.1:50051", "--config", good.to_str().unwrap()];
    let on_cpu = run(&[&["serve", "--check"][..], &on_loopback].concat());
    assert!(text(&on_cpu.stdout).ends_with("\ndevice cpu: cpu: as configured\n"), "{on_cpu:?}");
    let on_card = run(&["serve", "--check", "--device", "cuda:99", "--config", good.to_str().unwrap()]);
    assert_eq!(on_card.status.code(), Some(1), "{on_card:?}");

    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, "[server]\ncolour = 1\n[variants.a]\nmode = 'warm'\nmodel = 'nowhere'\n").unwrap();
    let output = run(&["serve", "--check", "--config", bad.to_str().unwrap()]);
    let problems = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(problems.contains("bad.toml:2: unknown key `server.colour`"), "{problems}");
    assert!(problems.contains("nowhere` is not a directory"), "{problems}");
}

/// Members of which each has a fault of its own, beside one that is good.
fn faulty_family(folder: &Path) {
    let copy = |name: &str, files: &[(&str, &str)]| {
        let from = root().join("tests/data/evaluate/member-0");
        let to = folder.join(name);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        files.iter().for_each(|(file, content)| std::fs::write(to.join(file), content).unwrap());
    };
    copy("good", &[]);
    copy("no-config", &[("config.json", "{")]);
    copy("no-tokenizer", &[("tokenizer.json", "{}")]);
    copy("no-limit", &[("rewarm.json", r#"{"max_tokens": 0}"#)]);
    copy("no-template", &[("chat_template.jinja", "{% if %}")]);
    copy("shorter", &[("rewarm.json", r#"{"max_tokens": 7}"#)]);
}

#[test]
fn check_start_and_merge_name_all_that_is_wrong_with_all_members_of_all_variants() {
    let folder = tempfile::tempdir().unwrap();
    faulty_family(folder.path());
    let listeners = "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nmetrics = '127.0.0.1:0'\n";
    let write = |name: &str, variants: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{listeners}{variants}")).unwrap();
        path.display().to_string()
    };
    let warm = "[variants.a]\nmode = 'warm'\nmembers = ['good', 'no-config', 'no-tokenizer', 'no-limit']\n";
    let ens = "[variants.b]\nmode = 'ens'\nmembers = ['no-template', 'good', 'shorter'";
    let of_checkpoints = [
        "variants.a: load no-config: no-config/config.json: EOF while parsing an object",
        "variants.a: load no-tokenizer: ",
        "variants.a: load no-limit: no-limit/rewarm.json: `max_tokens` is 0: expected a number above zero",
        "variants.b: load no-template: ",
        "variants.b: models that are given the same tokens must make the same ones of a text",
    ];
    let also_named = |output: &Output, named: &[&str]| {
        let problems = text(&output.stderr).replace(&format!("{}/", folder.path().display()), "");
        assert_eq!(output.status.code(), Some(1), "{problems}");
        for problem in named {
            assert_eq!(problems.matches(problem).count(), 1, "`{problem}`: {problems}");
        }
    };
    let weights = "[routing]\nweights = { a = 1, b = 1 }\n";
    let readable = write("readable.toml", &format!("{warm}{ens}]\n{weights}"));
    also_named(&run(&["serve", "--check", "--config", &readable]), &of_checkpoints);
    let at_start = of_checkpoints.map(|problem| {
        let (variant, problem) = problem.strip_prefix("variants.").unwrap().split_once(": ").unwrap();
        format!("load variant `{variant}`: {problem}")
    });
    let at_start = at_start.each_ref().map(String::as_str);
    also_named(&run(&["serve", "--log-level", "error", "--config", &readable]), &at_start);

    // what is no directory hides nothing
    let unreadable = write(
        "unreadable.toml",
        &format!("{warm}{ens}, './gone']\n[variants.c]\nmode = 'warm'\nmodel = './c'\n"),
    );
    let all = [
        &of_checkpoints[..],
        &[
            "variants.b: members: `./gone` is not a directory: there is nothing of that name",
            "variants.c: model: `./c` is not a directory",
        ],
    ]
    .concat();
    also_named(&run(&["serve", "--check", "--config", &unreadable]), &all);
    also_named(&run(&["serve", "--config", &unreadable]), &all);

    let member = |name: &str| folder.path().join(name).display().to_string();
    let members = ["good", "no-config", "no-tokenizer", "no-limit"].map(member);
    let merge: Vec<&str> = ["merge"].into_iter().chain(members.iter().map(String::as_str)).collect();
    let output = folder.path().join("merged").display().to_string();
    let merged = run(&[&merge[..], &["--output", &output]].concat());
    also_named(&merged, &["load no-config: ", "load no-tokenizer: ", "load no-limit: "]);
}

#[test]
fn a_port_that_is_taken_is_an_error_line_and_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output =
        run(&["serve", "--log-level", "error", "--config", config.to_str().unwrap(), "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with(&format!("error: listen on {address} for the reward service: ")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn an_output_that_cannot_be_written_is_an_error_line_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let check = ["serve", "--check", "--config", config.to_str().unwrap()];

    let output = rewarm(&check).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("error: write the answer: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");

    // nor is standard error itself, and then the exit code is all there is
    let status = rewarm(&["serve", "--check", "--config", "nowhere"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn an_input_is_never_overwritten_by_its_own_rewards() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("samples.jsonl"), folder.path().join("link.jsonl"));
    let lines = "{\"token_ids\":[5,6,7]}\n";
    std::fs::write(&file, lines).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let model = root().join("tests/data/models/llama");
    for output in [&file, &link] {
        let [model, file, output] = [&model, &file, output].map(|path| path.to_str().unwrap());
        let result = run(&["score", "--model", model, "--input", file, "--output", output]);
        assert_eq!(result.status.code(), Some(1));
        assert!(text(&result.stderr).contains("is both input and output"), "{result:?}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), lines);
}

#[test]
fn a_server_whose_log_nobody_reads_any_more_still_drains() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let server = Server::start_unread(&["--config", config.to_str().unwrap()]);
    server.signal("-HUP");
    let lines = "{\"token_ids\":[5,6,7]}\n";
    assert!(score(&["--server", &server.url()], lines).status.success());
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn info_tells_what_checkpoints_are_and_how_they_lie_to_each_other() {
    let member = |name: &str| root().join("tests/data/evaluate").join(name).display().to_string();
    let (first, second) = (member("member-0"), member("member-1"));
    let output = run(&["info", &first, &second]);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for expected in [
        "  family        bert\n",
        "  architecture  BertForSequenceClassification\n",
        "  head          classifier\n",
        "  pooling       cls\n",
        "  text rule     sentence_pair\n",
        "  limit         64 tokens\n",
        "  calibration   none\n",
        "  calibration   mean 0.25, std 0.5\n",
        "kinship\n  fine-tuned from one pretrain, and no two of them are the same\n",
    ] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    let served = run(&["info", &first, &first]);
    assert!(text(&served.stdout).contains("is a duplicate of member 0"), "{served:?}");
    let llama = root().join("tests/data/models/llama").display().to_string();
    let strangers = run(&["info", &first, &llama]);
    let told = text(&strangers.stdout);
    assert!(strangers.status.success() && told.contains("kinship\n  none: "), "{strangers:?}");
    let mixed = run(&["info", &first, "http://127.0.0.1:1"]);
    assert!(text(&mixed.stderr).contains("give the URL of one server, or checkpoints"), "{mixed:?}");
}

#[test]
fn a_server_lives_from_health_through_sighup_to_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let url = server.url();

    assert!(run(&["health", "--server", &url]).status.success());
    let info = run(&["info", &url]);
    let told = text(&info.stdout);
    for expected in [
        "server\n",
        "tiny\n  mode          warm\n",
        "  dtype         f32 on cpu\n",
        "  routing       tiny 1\n",
        "fingerprint",
    ] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    let bare = run(&["health", "--server", &server.listen]);
    let told = format!("`{0}` is not a URL: write http://{0}", server.listen);
    assert!(text(&bare.stderr).contains(&told), "{bare:?}");
    assert!(run(&["health", "--server", &url, "--variant", "tiny"]).status.success());
    assert_eq!(run(&["health", "--server", &url, "--variant", "cold"]).status.code(), Some(1));

    let lines = "{\"token_ids\":[5,6,7]}\n{\"id\":\"b\",\"formatted\":\"\"}\n{\"prompt\":\"Hi\",\"response\":\"Hello\"}\nx\n";
    let model = root().join("tests/data/models/llama");
    let remote = score(&["--server", &url, "--variant", "tiny"], lines);
    let local = score(&["--model", model.to_str().unwrap()], lines);
    assert_eq!(remote.status.code(), Some(1), "two lines have no reward");
    assert_eq!(text(&remote.stdout), text(&local.stdout), "a server and this process agree");
    assert_eq!(text(&remote.stdout).lines().count(), 4);
    assert!(text(&local.stderr).contains("2 of 4 lines have no reward"), "{local:?}");

    let text_of_config = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text_of_config.replace("variants.tiny", "variants.renamed")).unwrap();
    server.signal("-HUP");
    let is_renamed = || run(&["health", "--server", &url, "--variant", "renamed"]).status.success();
    assert!((0..1000).any(|_| is_renamed()), "SIGHUP reloads");

    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(run(&["health", "--server", &url]).status.code(), Some(1));
}

#[test]
fn a_server_ends_in_good_order_when_its_parent_is_killed_and_tells_where_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let published = folder.path().join("addresses.json");
    let any = "127.0.0.1:0";
    let serve = rewarm(&["serve", "--log-format", "json", "--config", config.to_str().unwrap()]);
    let mut parent = std::process::Command::new("sh");
    parent
        .args(["-c", "\"$0\" \"$@\" --end-with-parent $$ & wait"])
        .arg(serve.get_program())
        .args(serve.get_args());
    parent.args(["--listen", any, "--admin", any, "--metrics", any, "--addresses"]).arg(&published);
    for (name, _) in serve.get_envs() {
        parent.env_remove(name);
    }
    let mut parent = parent.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(parent.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let ready = log.by_ref().find(|line| line.contains("readiness changed"));
    assert!(ready.is_some(), "it is ready");

    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&published).unwrap()).unwrap();
    let listen = told["listen"].as_str().unwrap();
    assert!(run(&["health", "--server", &format!("http://{listen}")]).status.success());
    let (status, _) = program::get(told["metrics"].as_str().unwrap(), "/readyz");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(told["pid"].as_u64().unwrap() > 1 && told["start"].as_str().unwrap().len() > 8, "{told}");

    parent.kill().unwrap();
    parent.wait().unwrap();
    // The pipe closes when the server has ended; what it said until then is in the order of a drain.
    let rest: Vec<String> = log.collect();
    let place = |text: &str| rest.iter().position(|line| line.contains(text));
    assert!(place("the parent has ended").is_some_and(|first| place("stopped") > Some(first)), "{rest:#?}");
    assert!(std::net::TcpStream::connect(listen).is_err(), "its port is free");
}

#[test]
fn a_server_with_no_such_parent_or_no_such_file_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let any = "127.0.0.1:0";
    let serve =
        ["serve", "--config", config.to_str().unwrap(), "--listen", any, "--admin", any, "--metrics", any];
    let own = std::process::id().to_string();
    let nowhere = folder.path().join("none/addresses.json");
    let cases = [
        (["--end-with-parent", "1"], "the parent of this process is", 1),
        (["--end-with-parent", "0"], "'--end-with-parent <PID>'", 2),
        (["--end-with-parent", "x"], "'--end-with-parent <PID>'", 2),
        (["--addresses", nowhere.to_str().unwrap()], "write --addresses", 1),
    ];
    for (args, expected, code) in cases {
        let output = run(&[&serve[..], &args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {output:?}");
    }
    let output = run(&[&serve[..], &["--end-with-parent", &own, "--check"]].concat());
    assert!(output.status.success(), "{output:?}");
}

// ---- bench: no timed assertions, only that the figures agree with each other ----

/// Runs `rewarm bench` and reads what it wrote.
fn bench(folder: &Path, args: &[&str]) -> (String, serde_json::Value) {
    let json = folder.join("bench.json");
    let output = run(&[&["bench"], args, &["--json", json.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "", "nothing but the table, where there is no terminal");
    (text(&output.stdout), serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap())
}

/// Two members of one family, in `folder`.
fn members(folder: &Path) -> String {
    let sizes = Sizes {
        family: Family::Llama,
        vocab: 64,
        hidden: 16,
        intermediate: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_tokens: 64,
    };
    let members = [0, 1].map(|member| folder.join(format!("member-{member}")));
    members.iter().zip(0..).for_each(|(dir, member)| sizes.write(dir, member).unwrap());
    format!("{},{}", members[0].display(), members[1].display())
}

#[test]
fn bench_model_shows_warm_beside_ens_and_its_figures_agree() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "model",
        "--members",
        &members(folder.path()),
        "--lengths",
        "4..16x6",
        "--rounds",
        "3",
        "--max-batch-tokens",
        "30",
    ];
    let (table, json) = bench(folder.path(), &args);
    assert!(table.contains("\n| warm    | warm of 2 | f32 "), "{table}");
    assert!(table.contains("\n| ens     | ens of 2  | f32 "), "{table}");
    assert!(table.contains("ens costs ") && table.contains(" times warm"), "{table}");
    assert_eq!((&json["bench"], &json["settings"]["lengths"]), (&"model".into(), &"4..16x6".into()));
    assert!(json["command_line"].as_array().unwrap().iter().any(|word| word == "--members"));
    assert!(json["machine"]["cpus"].as_u64().unwrap() > 0);
    let report = &json["report"];
    assert_eq!((&report["rounds"], &report["is_interrupted"]), (&3.into(), &false.into()));
    let mut medians = Vec::new();
    for variant in report["variants"].as_array().unwrap() {
        let mut seconds: Vec<f64> =
            variant["seconds"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        seconds.sort_by(f64::total_cmp);
        assert_eq!(seconds.len(), 3);
        let figure = |name: &str, which: &str| variant[name][which].as_f64().unwrap();
        let (samples, tokens) = (variant["samples"].as_f64().unwrap(), variant["tokens"].as_f64().unwrap());
        let batches = variant["batches"].as_f64().unwrap();
        assert!(samples == 6.0 && batches >= tokens / 30.0, "{variant}");
        for (found, expected) in [
            (figure("samples_per_second", "median"), samples / seconds[1]),
            (figure("samples_per_second", "max"), samples / seconds[0]),
            (figure("tokens_per_second", "min"), tokens / seconds[2]),
            (figure("ms_per_batch", "median"), seconds[1] * 1e3 / batches),
        ] {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} for {expected} in {variant}");
        }
        medians.push(seconds[1]);
    }
    let cost = report["costs"][0]["ens_over_warm"].as_f64().unwrap();
    assert!((cost - medians[1] / medians[0]).abs() < 1e-9, "{cost} of {medians:?}");
}

#[test]
fn bench_model_reads_recorded_samples_and_lists_of_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("tests/data/models/llama");
    let count = |lines: &str| {
        let file = folder.path().join("samples");
        std::fs::write(&file, lines).unwrap();
        let model = format!("{0},{0}", model.display());
        let lengths = file.to_str().unwrap();
        let args = ["model", "--model", &model, "--lengths", lengths, "--rounds", "1", "--dtype", "f32,bf16"];
        let (_, json) = bench(folder.path(), &args);
        let variants = json["report"]["variants"].as_array().unwrap();
        let names: Vec<&str> = variants.iter().map(|variant| variant["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["llama-f32", "llama-bf16", "llama-2-f32", "llama-2-bf16"]);
        (variants[0]["samples"].as_u64().unwrap(), variants[0]["tokens"].as_u64().unwrap())
    };
    assert_eq!(count("7\n11\n"), (2, 18));
    assert_eq!(count("{\"token_ids\":[5,6,7]}\n{\"id\":\"b\",\"token_ids\":[8]}\n"), (2, 4));
}

#[test]
fn bench_without_a_model_measures_the_demo_family_in_the_precisions_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["model", "--lengths", "4x1", "--rounds", "1", "--warmup-rounds", "0", "--dtype", "f32,bf16"];
    let (_, json) = bench(folder.path(), &args);
    let costs: Vec<String> = (json["report"]["costs"].as_array().unwrap().iter())
        .map(|cost| format!("{} {}", cost["ens"].as_str().unwrap(), cost["warm"].as_str().unwrap()))
        .collect();
    assert_eq!(costs, ["ens-f32 warm-f32", "ens-bf16 warm-bf16"]);
}

#[test]
fn an_instruction_set_is_computed_with_or_refused_by_name() {
    let told = |isa: &str| {
        let args = ["bench", "model", "--lengths", "4x1", "--rounds", "1", "--warmup-rounds", "0"];
        rewarm(&args).env("REWARM_ISA", isa).output().unwrap()
    };
    for (isa, kernels) in [("portable", "portable"), ("", Isa::best().name())] {
        let printed = text(&told(isa).stdout);
        assert!(printed.contains(&format!("; kernels {kernels}")), "{printed}");
    }
    let refused = told("sse9");
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("REWARM_ISA is \"sse9\": this CPU has portable"), "{said}");

    // another order of additions, and the same rewards up to it
    let rewards = |isa: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"prompt": "Name a prime.", "response": "Seven."}"#).unwrap();
        let file = file.path().to_str().unwrap();
        let args = ["score", "--model", "deploy/demo/member-0", "--dtype", "f32", "--input", file];
        let output = rewarm(&args).env("REWARM_ISA", isa).output().unwrap();
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        line["reward"].as_f64().unwrap()
    };
    assert!((rewards("portable") - rewards("")).abs() < 1e-5);
}

#[test]
fn bench_server_puts_bare_beside_served() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "server",
        "--members",
        &members(folder.path()),
        "--lengths",
        "8x10",
        "--rounds",
        "2",
        "--callers",
        "3",
        "--samples-per-request",
        "3",
        "--rate",
        "1000",
        "--singles",
        "2",
        "--single-tokens",
        "4",
    ];
    let (table, json) = bench(folder.path(), &args);
    for part in ["Closed loop", "Open loop", "One small sample", "ens costs "] {
        assert!(table.contains(part), "{part} is not in {table}");
    }
    for variant in json["report"]["variants"].as_array().unwrap() {
        for kind in ["closed", "open"] {
            let of = &variant[kind];
            assert_eq!((&of["requests"], &of["latency_ms"]["requests"]), (&8.into(), &8.into()), "{of}");
            assert_eq!((&of["failed_samples"], &of["errors"]), (&0.into(), &serde_json::json!({})), "{of}");
            let latency = |name: &str| of["latency_ms"][name].as_f64().unwrap();
            let rising = [latency("p50"), latency("p90"), latency("p99"), latency("p99.9"), latency("max")];
            assert!(rising.is_sorted() && rising[0] > 0.0, "{of}");
        }
        let median = |value: &serde_json::Value| value["median"].as_f64().unwrap();
        let (bare, served) =
            (median(&variant["bare_samples_per_second"]), median(&variant["closed"]["samples_per_second"]));
        assert!((variant["served_over_bare"].as_f64().unwrap() - served / bare).abs() < 1e-9, "{variant}");
        assert_eq!((&variant["single"]["samples"], &variant["single"]["tokens"]), (&4.into(), &4.into()));
        assert!(variant["single"]["bare_p50_ms"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn bench_server_measures_a_server_elsewhere_and_counts_what_it_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let small = std::fs::read_to_string(&config).unwrap()
        + "[batching]\nmax_batch_tokens = 16\nmax_queue_tokens = 40\nmax_samples_per_request = 3\n";
    std::fs::write(&config, small).unwrap();
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let url = server.url();
    let base = ["server", "--server", &url, "--rounds", "1", "--warmup-rounds", "0", "--vocab-size", "200"];
    let (table, json) = bench(folder.path(), &[&base[..], &["--lengths", "4x9", "--callers", "1"]].concat());
    let variant = &json["report"]["variants"][0];
    assert_eq!(
        (&variant["name"], &variant["bare_samples_per_second"]),
        (&"tiny".into(), &serde_json::Value::Null)
    );
    // Four samples are more than this server takes in one request: two requests are refused, the last has one.
    assert_eq!(variant["closed"]["errors"]["INVALID_ARGUMENT"], 2, "{variant}");
    assert_eq!(
        (&variant["closed"]["requests"], &variant["closed"]["latency_ms"]["requests"]),
        (&3.into(), &1.into())
    );
    assert!(table.contains("2 of 3: INVALID_ARGUMENT 2"), "{table}");

    // All at once: a queue that holds one request refuses the next while a forward runs.
    let args = ["--lengths", "32x1", "--requests", "200", "--samples-per-request", "1", "--callers", "0"];
    let (_, json) =
        bench(folder.path(), &[&base[..], &args, &["--rate", "1000000", "--singles", "0"]].concat());
    let open = &json["report"]["variants"][0]["open"];
    let refused = open["errors"]["RESOURCE_EXHAUSTED"].as_u64().unwrap_or(0);
    assert!(refused > 0, "{open}");
    assert_eq!(open["latency_ms"]["requests"].as_u64().unwrap(), 200 - refused, "{open}");

    let output = run(&["bench", "server", "--server", &url, "--variant", "cold", "--lengths", "4x1"]);
    assert!(
        text(&output.stderr).contains("--variant cold: the server has tiny: name one of them"),
        "{output:?}"
    );
}

#[test]
fn bench_group_reports_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("tests/data/models/llama");
    let args = [
        "group",
        "--model",
        model.to_str().unwrap(),
        "--prompt-tokens",
        "20",
        "--responses",
        "4",
        "--response-tokens",
        "5",
        "--groups",
        "2",
        "--rounds",
        "2",
    ];
    let (table, json) = bench(folder.path(), &args);
    assert!(
        table.contains("200 tokens a round, 80 when each prompt counts once: 2.50 times fewer"),
        "{table}"
    );
    let variant = &json["report"]["variants"][0];
    assert_eq!(variant["shares_prefixes"], true, "a decoder");
    let seconds = |way: &str| variant[way]["median"].as_f64().unwrap();
    let speedup = seconds("unshared_seconds") / seconds("shared_seconds");
    assert!((variant["speedup"].as_f64().unwrap() - speedup).abs() < 1e-9, "{variant}");

    let args =
        ["group", "--prompt-tokens", "4", "--responses", "2", "--response-tokens", "2", "--rounds", "1"];
    let (table, json) = bench(folder.path(), &args);
    assert!(table.contains("warm cannot share prefixes"), "the demo's encoders: {table}");
    assert_eq!(json["report"]["variants"][0]["shares_prefixes"], false);
}

#[test]
fn bench_names_what_it_cannot_measure() {
    let model = root().join("tests/data/models/llama");
    let model = model.to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (
            &["model", "--model", model, "--lengths", "200x1"],
            "--lengths: a sample has 200 tokens, variant `llama` takes 128 at most: ask for shorter ones",
        ),
        (
            &["server", "--model", model, "--lengths", "8x1", "--single-tokens", "129"],
            "--single-tokens: a sample has 129 tokens",
        ),
        (
            &["group", "--model", model, "--prompt-tokens", "100"],
            "--prompt-tokens and --response-tokens: a sample has 228 tokens",
        ),
        (
            &["model", "--model", model, "--lengths", "nowhere"],
            "--lengths nowhere: neither lengths such as 128x32",
        ),
        (&["model", "--model", "nowhere"], "`nowhere` is not a directory"),
        (&["model", "--variant", "cold"], "--variant cold: there is ens, warm: name one of them"),
        (&["model", "--dtype", "f32,f32", "--model", model], "--dtype names f32 twice"),
        (&["model", "--mode", "ens"], "--mode says what becomes of --members or of --shape"),
        (
            &["server", "--server", "http://127.0.0.1:1", "--max-batch-tokens", "9"],
            "--max-batch-tokens does not go with --server",
        ),
        (&["server", "--server", "http://127.0.0.1:1"], "connect to http://127.0.0.1:1"),
        (&["model", "--json", "nowhere/out.json"], "--json nowhere/out.json: No such file"),
        (
            &["server", "--model", model, "--samples-per-request", "2000"],
            "--samples-per-request 2000: the server takes 1024 at most",
        ),
        (&["server", "--callers", "0", "--singles", "0"], "leave nothing to measure"),
        (&["group", "--groups", "65536", "--responses", "65536"], "the limit is 268435456: lower --groups"),
    ];
    for (args, expected) in cases {
        let output = run(&[&["bench"], *args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {output:?}");
    }
}

#[test]
fn an_interrupted_bench_ends_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("lengths");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let model = root().join("tests/data/models/llama");
    let lengths = fifo.to_str().unwrap();
    let args =
        ["bench", "model", "--model", model.to_str().unwrap(), "--lengths", lengths, "--rounds", "10000"];
    let child = rewarm(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Opening returns once the program reads its lengths: from then on it listens to signals.
    let mut writer = File::options().write(true).open(&fifo).unwrap();
    std::io::Write::write_all(&mut writer, b"8\n").unwrap();
    drop(writer);
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    // Which of the two it is depends on how far it came.
    match output.status.code() {
        Some(0) => assert!(text(&output.stdout).contains("Stopped early"), "{output:?}"),
        Some(1) => {
            assert!(text(&output.stderr).contains("stopped before a round was finished"), "{output:?}")
        }
        _ => panic!("{output:?}"),
    }
}
