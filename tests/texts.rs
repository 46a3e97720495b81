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
    assert!(check().ends_with("it serves tiny (text_rule: none)\n"), "{}", check());

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
    assert!(check().ends_with("it serves tiny (text_rule: concatenation)\n"), "{}", check());
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
