//! What a user may send as text, and what is refused with a way out: text rules, messages with more than a role and a
//! text, and files that are no JSON lines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::path::Path;
use std::path::PathBuf;

use program::Server;
use program::root;
use program::run;
use program::score;
use program::text;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

/// The tiny llama with this chat template, or none.
fn llama(template: Option<&str>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(root().join("tests/data/models/llama").join(name), folder.path().join(name)).unwrap();
    }
    let config = json!({"bos_token": "<|begin_of_text|>", "tokenizer_class": "TokenizersBackend", "model_max_length": 128});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    folder
}

/// A configuration that serves one checkpoint as `tiny`.
fn config_file(model: &Path) -> PathBuf {
    let path = model.join("serve.toml");
    let text = "[server]\ndrain_grace_seconds = 0\n[variants.tiny]\nmode = 'warm'\nmodel = '.'\n";
    std::fs::write(&path, text).unwrap();
    path
}

/// The lines that `rewarm score` answers.
/// What `rewarm evaluate` tells of one pair.
fn evaluate(model: &Path, pair: &Value) -> Value {
    let (pairs, report) = (model.join("pairs.jsonl"), model.join("report"));
    std::fs::write(&pairs, format!("{pair}\n")).unwrap();
    let [path, pairs, target] = [model, &pairs, &report].map(|path| path.to_str().unwrap());
    let output = run(&["evaluate", "--members", path, "--pairs", pairs, "--output", target]);
    assert!(output.status.success(), "{output:?}");
    let rewards = std::fs::read_to_string(report.join("rewards.jsonl")).unwrap();
    serde_json::from_str(rewards.trim_end()).unwrap()
}

fn score_with(model: &Path, lines: &str) -> Vec<Value> {
    let output = score(&["--model", model.to_str().unwrap()], lines);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_decoder_without_template_and_rule_refuses_text_with_the_ways_out() {
    let model = llama(None);
    let path = model.path().to_str().unwrap();
    let config = config_file(model.path());
    let check = || text(&run(&["serve", "--check", "--config", config.to_str().unwrap()]).stdout).to_owned();
    assert!(check().contains("it serves tiny (text_rule: none)\n"), "{}", check());

    let lines = "{\"prompt\":\"Hi\",\"response\":\"Hello\"}\n{\"formatted\":\"HiHello\"}\n";
    let refused = score_with(model.path(), lines);
    let error = refused[0]["error"].as_str().unwrap();
    for way_out in ["chat_template.jinja", "\"text_rule\"", "rewarm.json", "formatted", "token_ids"] {
        assert!(error.contains(way_out), "{error}");
    }
    assert!(refused[1]["reward"].is_number(), "{refused:?}");

    let pairs = model.path().join("pairs.jsonl");
    std::fs::write(&pairs, "{\"prompt\":\"Hi\",\"chosen\":\"Hello\",\"rejected\":\"No\"}\n".repeat(4))
        .unwrap();
    let pairs = pairs.to_str().unwrap();
    let target = model.path().join("out");
    let target = target.to_str().unwrap();
    for command in [
        &["evaluate", "--members", path, "--pairs", pairs, "--output", target][..],
        &["train", "--base", path, "--pairs", pairs, "--output", target, "--validation-fraction", "0"],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("\"text_rule\""), "{output:?}");
    }

    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let remote = score(&["--server", &server.url()], lines);
    assert_eq!(text(&remote.stdout), text(&score(&["--model", path], lines).stdout));
    drop(server);

    std::fs::write(model.path().join("rewarm.json"), r#"{"text_rule": "concatenation"}"#).unwrap();
    assert!(check().contains("it serves tiny (text_rule: concatenation)\n"), "{}", check());
    let scored = score_with(model.path(), lines);
    // the tokenizer's own special tokens: it begins with a BOS, which formatted text has not
    let tokens = |line: &Value| line["tokens"].as_u64().unwrap();
    assert_eq!(tokens(&scored[0]), tokens(&scored[1]) + 1, "{scored:?}");
}

#[test]
fn train_writes_the_rule_that_its_texts_were_joined_by() {
    let folder = tempfile::tempdir().unwrap();
    let base = root().join("tests/data/models/bert");
    let pairs = folder.path().join("pairs.jsonl");
    let line = |index: usize| format!("{{\"prompt\":\"the\",\"chosen\":\"a {index}\",\"rejected\":\"b\"}}\n");
    std::fs::write(&pairs, (0..8).map(line).collect::<String>()).unwrap();
    let family = folder.path().join("family");
    let [base, pairs, family] = [&base, &pairs, &family].map(|path| path.to_str().unwrap());
    let output = run(&[
        "train",
        "--base",
        base,
        "--pairs",
        pairs,
        "--output",
        family,
        "--validation-fraction",
        "0",
        "--epochs",
        "1",
        "--num-members",
        "1",
    ]);
    assert!(output.status.success(), "{output:?}");
    let manifest = std::fs::read(folder.path().join("family/member-0/rewarm.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest).unwrap(), json!({"text_rule": "sentence_pair"}));
}

/// `tests/reference/messages.py` shows that transformers hands a template these values in this order.
#[test]
fn a_template_sees_all_of_a_message_wherever_it_is_sent() {
    let model = llama(Some("{{ x }}{{ tools | tojson }}{{ messages | tojson }}"));
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": 7, "function": {"name": "tide",
        "arguments": {"z": 1, "a": 2.0}}}]});
    let parts = json!({"content": [{"type": "text", "text": "é"}], "role": "user"});
    let tools = json!([{"name": "tide", "b": 1, "a": null}]);
    let line = json!({"messages": [parts, call], "tools": tools, "chat_template_kwargs": {"x": 5}});
    let rendered = concat!(
        r#"5[{"name": "tide", "b": 1, "a": null}][{"content": [{"type": "text", "text": "é"}], "role": "user"}, "#,
        r#"{"role": "assistant", "tool_calls": [{"id": 7, "function": {"name": "tide", "arguments": {"z": 1, "a": 2.0}}}]}]"#
    );
    let unlike = rendered.replace("2.0", "2");
    let lines = format!("{line}\n{}\n{}\n", json!({"formatted": rendered}), json!({"formatted": unlike}));
    let config = model.path().join("tokenizer_config.json");
    let text_config = std::fs::read_to_string(&config).unwrap().replace("128", "4096");
    std::fs::write(&config, text_config).unwrap();
    let mut model_config: Value =
        serde_json::from_slice(&std::fs::read(model.path().join("config.json")).unwrap()).unwrap();
    model_config["max_position_embeddings"] = json!(4096);
    std::fs::write(model.path().join("config.json"), model_config.to_string()).unwrap();

    let scored = score_with(model.path(), &lines);
    assert!(scored[0]["reward"].is_number(), "{scored:?}");
    assert_eq!((&scored[0]["reward"], &scored[0]["tokens"]), (&scored[1]["reward"], &scored[1]["tokens"]));
    assert_ne!(scored[0]["reward"], scored[2]["reward"]);

    let server = Server::start(&["--config", config_file(model.path()).to_str().unwrap()]);
    let remote = score(&["--server", &server.url()], &lines);
    let local = score(&["--model", model.path().to_str().unwrap()], &lines);
    assert_eq!(text(&remote.stdout), text(&local.stdout));
    drop(server);

    // a pair that differs in its call alone
    let other = json!({"role": "assistant", "tool_calls": [{"id": 8}]});
    let pair = json!({"prompt": [parts], "chosen": [call], "rejected": [other], "tools": tools.to_string(),
        "chat_template_kwargs": {"x": 5}});
    let told = evaluate(model.path(), &pair);
    assert_eq!(told["chosen_tokens"], scored[0]["tokens"], "{told}");
}

/// As transformers chooses: `src/text/mod.rs` compares what is rendered.
#[test]
fn tools_choose_the_template_for_tools_wherever_they_are_sent() {
    let model = llama(Some("{{ messages | tojson }}"));
    std::fs::create_dir(model.path().join("additional_chat_templates")).unwrap();
    let for_tools = "T{{ messages[0].content }}{{ messages[-1].content }}{{ tools | length }}";
    std::fs::write(model.path().join("additional_chat_templates/tool_use.jinja"), for_tools).unwrap();
    let user = json!({"role": "user", "content": "a b"});
    let turn = |content: &str| json!({"role": "assistant", "content": content});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let with = json!({"messages": [user, turn("c")], "tools": tools});
    let without = json!({"messages": [user, turn("c")]});
    let lines = format!("{with}\n{}\n{without}\n", json!({"formatted": "Ta bc1"}));
    let scored = score_with(model.path(), &lines);
    assert!(scored[0]["reward"].is_number(), "{scored:?}");
    assert_eq!((&scored[0]["reward"], &scored[0]["tokens"]), (&scored[1]["reward"], &scored[1]["tokens"]));
    assert_ne!(scored[0]["tokens"], scored[2]["tokens"]);

    let server = Server::start(&["--config", config_file(model.path()).to_str().unwrap()]);
    let remote = score(&["--server", &server.url()], &lines);
    assert_eq!(
        text(&remote.stdout),
        text(&score(&["--model", model.path().to_str().unwrap()], &lines).stdout)
    );
    drop(server);

    let pair = json!({"prompt": [user], "chosen": [turn("c")], "rejected": [turn("d")], "tools": tools});
    let told = evaluate(model.path(), &pair);
    assert_eq!(told["chosen_tokens"], scored[0]["tokens"], "{told}");
}

#[test]
fn what_is_not_understood_is_refused_by_field_name() {
    let model = llama(Some("{{ messages | tojson }}"));
    let user = r#"{"role":"user","content":"a"}"#;
    let image = r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#;
    struct Case {
        line: String,
        reason: &'static str,
    }
    let case = |line: String, reason| Case { line, reason };
    for Case { line, reason } in [
        case(format!(r#"{{"messages":[{user},{image}]}}"#), "messages[1].content[0] is of type image_url"),
        case(
            format!(r#"{{"messages":[{user},{{"role":"assistant","content":null}}]}}"#),
            "messages[1] says nothing",
        ),
        case(format!(r#"{{"messages":[{user}],"functions":[]}}"#), "unknown field `functions`"),
        case(format!(r#"{{"messages":[{user}],"tools":[7]}}"#), "tools[0] is a number"),
        case(
            format!(r#"{{"messages":[{user}],"chat_template_kwargs":{{"chat_template":"x"}}}}"#),
            "chat_template_kwargs.chat_template",
        ),
        case(
            r#"{"prompt":"a","response":"b","tools":[{}]}"#.to_owned(),
            "tools and chat_template_kwargs go with",
        ),
        case(r#"{"formatted":"a","id":NaN}"#.to_owned(), "NaN is no JSON"),
    ] {
        let answer = score_with(model.path(), &(line.clone() + "\n"));
        assert!(answer[0]["error"].as_str().unwrap_or_default().contains(reason), "{line}: {answer:?}");
    }
}

#[test]
fn a_file_that_is_no_json_lines_is_named_with_the_command_that_converts_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("tests/data/models/bert");
    let model = model.to_str().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let utf16: Vec<u8> = "\u{feff}{\"prompt\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, content, command) in [
        ("pairs.parquet", b"PAR1\x15\x04\x15".to_vec(), "pq.read_table"),
        ("pairs.csv", b"prompt,chosen,rejected\na,b,c\n".to_vec(), "csv.DictReader"),
        ("pairs.json", b"[{\"prompt\": \"a\"}]".to_vec(), "json.load(sys.stdin)"),
        ("pairs.jsonl", utf16, "iconv -f UTF-16"),
        ("pairs.jsonl.zst", b"\x28\xb5\x2f\xfd\x04\x00".to_vec(), "zstd -d"),
    ] {
        let (file, target) = (path(name), path("target"));
        std::fs::write(&file, content).unwrap();
        for arguments in [
            &["train", "--base", model, "--pairs", &file, "--output", &target][..],
            &["evaluate", "--members", model, "--pairs", &file, "--output", &target],
            &["merge", model, model, "--greedy", &file, "--output", &target],
            &["score", "--model", model, "--input", &file],
            &["calibrate", model, "--references", &file],
            &["bench", "model", "--model", model, "--lengths", &file],
        ] {
            let output = run(arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
            assert!(text(&output.stderr).contains(command), "{arguments:?}: {output:?}");
        }
    }
    // a byte order mark says nothing
    let marked = path("marked.jsonl");
    std::fs::write(&marked, "\u{feff}{\"prompt\":\"the\",\"response\":\"a\"}\n").unwrap();
    assert!(run(&["score", "--model", model, "--input", &marked]).status.success());
}
