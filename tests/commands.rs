//! Commands as a user runs them: exit codes, errors, signals, and a server beside the local form.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use program::Server;
use program::rewarm;
use program::root;
use program::run;
use program::score;
use program::text;

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
    assert_eq!(text(&output.stdout), "the configuration is valid: it serves tiny\n");

    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, "[server]\ncolour = 1\n[variants.a]\nmode = 'warm'\nmodel = 'nowhere'\n").unwrap();
    let output = run(&["serve", "--check", "--config", bad.to_str().unwrap()]);
    let problems = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(problems.contains("bad.toml:2: unknown key `server.colour`"), "{problems}");
    assert!(problems.contains("nowhere` is not a directory"), "{problems}");
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
fn a_server_lives_from_health_through_sighup_to_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let url = server.url();

    assert!(run(&["health", "--server", &url]).status.success());
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
