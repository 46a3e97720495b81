//! The first minutes with one's own members: `rewarm serve` without a file, and the file that `rewarm init` writes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use program::Server;
use program::rewarm;
use program::root;
use program::run;
use program::score;
use program::text;

const SAMPLES: &str = "{\"prompt\": \"Is it raining?\", \"response\": \"It is.\"}\n{\"prompt\": \"Really?\", \"response\": \"No.\"}\n";

fn member(index: usize) -> String {
    root().join(format!("deploy/demo/member-{index}")).display().to_string()
}

fn rewards(args: &[&str]) -> Vec<f64> {
    let output = score(args, SAMPLES);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let reward =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["reward"].as_f64().unwrap();
    text(&output.stdout).lines().map(reward).collect()
}

fn served(server: &Server, variant: &str) -> Vec<f64> {
    rewards(&["--server", &format!("http://{}", server.listen), "--variant", variant])
}

#[test]
fn a_server_needs_no_file() {
    let members = format!("{},{}", member(0), member(1));
    let ensemble = ["--members", &members, "--mode", "ens", "--reduction", "min"];
    let expected = rewards(&ensemble);
    let by_flags = Server::start(&ensemble);
    assert_eq!(served(&by_flags, "ens"), expected);
    drop(by_flags);

    let by_variables = Server::start_as(&[], |command| {
        command.env("REWARM_VARIANTS__LOW__MODE", "ens").env("REWARM_VARIANTS__LOW__MEMBERS", &members);
        command.env("REWARM_VARIANTS__LOW__REDUCTION", "min").env("REWARM_BATCHING__MAX_BATCH_TOKENS", "100");
    });
    assert_eq!(served(&by_variables, "low"), expected);
    let batching = by_variables.log.iter().find(|line| line["message"] == "settings: batching").unwrap();
    assert_eq!(batching["max_batch_tokens"], 100, "{batching}");
    drop(by_variables);

    let one = Server::start(&["--model", &member(2), "--dtype", "bf16"]);
    assert_eq!(served(&one, "warm"), rewards(&["--model", &member(2), "--dtype", "bf16"]));
}

#[test]
fn init_writes_what_serves_and_says_what_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    // a name that must be quoted
    let own = folder.path().join("my \"best\" members");
    std::os::unix::fs::symlink(root().join("deploy/demo"), &own).unwrap();
    let names = [0, 1].map(|index| own.join(format!("member-{index}")).display().to_string());
    let path = folder.path().join("rewarm.toml");
    let init = || run(&["init", &names[0], &names[1], "--output", path.to_str().unwrap()]);
    let output = init();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("serve it with: rewarm serve --config"),
        "{}",
        text(&output.stdout)
    );
    let again = init();
    let told = text(&again.stderr);
    assert!(!again.status.success() && told.contains("name another with --output"), "{told}");
    assert!(told.contains("File exists"), "{told}");

    let written = std::fs::read_to_string(&path).unwrap();
    let server = Server::start(&["--config", path.to_str().unwrap()]);
    let members = names.join(",");
    assert_eq!(served(&server, "warm"), rewards(&["--members", &members, "--mode", "warm"]));
    assert_eq!(served(&server, "ens"), rewards(&["--members", &members, "--mode", "ens"]));
    assert_eq!(served(&server, ""), served(&server, "warm"), "by its routing");

    // whoever takes a comment away has a setting
    let is_setting = |line: &str| {
        line.starts_with("# [") || line.split_once('=').is_some_and(|(key, _)| !key[2..].trim().contains(' '))
    };
    let settings: Vec<&str> =
        written.lines().filter(|line| line.starts_with("# ")).filter(|line| is_setting(line)).collect();
    let open: String = written
        .lines()
        .map(|line| if settings.contains(&line) { &line[2..] } else { line })
        .fold(String::new(), |all, line| all + line + "\n");
    let open: toml::Table = open.parse().unwrap_or_else(|error| panic!("{error}\n{open}"));
    assert_eq!(open["batching"]["max_step_tokens"].as_integer(), Some(1024));
    assert!(open["server"]["connections"]["max_age_seconds"].is_integer() && open["log"]["level"].is_str());
    assert!(settings.len() > 35, "{settings:#?}");
}

#[test]
fn init_looks_at_members_and_serves_one_as_it_is() {
    let other = root().join("tests/data/models");
    let other = std::fs::read_dir(other)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("config.json").is_file());
    let refused = run(&["init", &member(0), other.unwrap().to_str().unwrap(), "--output", "-"]);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    let output = run(&["init", &member(3), "--output", "-"]);
    let written = text(&output.stdout);
    assert!(
        written.contains("[variants.warm]")
            && !written.contains("[variants.ens]")
            && !written.contains("[routing]"),
        "{written}"
    );
    let missing = run(&["init", "missing", "--output", "-"]);
    assert!(text(&missing.stderr).contains("missing` is not a directory"), "{}", text(&missing.stderr));
}

/// What is cut out of the manual is TOML, in whatever window it was read.
#[test]
fn the_configuration_in_the_manual_can_be_cut_out() {
    for (command, from) in [("serve", "  [server]"), ("train", "  base = ")] {
        for columns in ["40", "80", "200"] {
            let output = rewarm(&[command, "--help"]).env("COLUMNS", columns).output().unwrap();
            let manual = text(&output.stdout);
            let block: Vec<&str> = manual
                .lines()
                .skip_while(|line| !line.starts_with(from))
                .take_while(|line| line.is_empty() || line.starts_with("  "))
                .collect();
            let block: toml::Table =
                block.join("\n").parse().unwrap_or_else(|error| panic!("{command} {columns}: {error}"));
            assert!(block.len() >= 5, "{command} {columns}: {block}");
        }
    }
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(&["completions", shell]).stdout);
        assert!(script.contains("calibrate") && script.contains("max-tokens"), "{shell}: {script}");
        assert!(
            !script.contains("standard input names"),
            "{shell} knows what is between two processes: {script}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["man", folder.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(page("rewarm.1").contains("rewarm\\-serve(1)"), "{}", page("rewarm.1"));
    assert!(page("rewarm-bench-model.1").contains("\\-\\-shape"), "{}", page("rewarm-bench-model.1"));
    let serve = page("rewarm-serve.1");
    let (_, configuration) = serve.split_once(".SH CONFIGURATION\n.nf\n").unwrap();
    assert!(
        configuration.contains("\n  [batching]\n") && configuration.ends_with(".fi\n"),
        "{configuration}"
    );
}

#[test]
fn an_empty_variable_is_as_if_it_were_not_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = rewarm(&["serve", "--check", "--model", &member(0)]);
    for name in [
        "REWARM_CONFIG",
        "REWARM_LISTEN",
        "REWARM_DTYPE",
        "REWARM_THREADS",
        "REWARM_LOG_LEVEL",
        "REWARM_BATCHING__MAX_BATCH_TOKENS",
    ] {
        command.env(name, "");
    }
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = rewarm(&["health"]).env("REWARM_LISTEN", "nowhere at all").output().unwrap();
    assert!(text(&output.stderr).contains("nowhere at all"), "one that is not empty is read: {output:?}");
}

#[test]
fn what_is_not_utf_8_is_an_error_and_not_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let bad = std::ffi::OsStr::from_bytes(b"bad\xff");
    let output = rewarm(&["serve", "--check", "--model"]).arg(bad).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let mut by_variable = rewarm(&["serve", "--check"]);
    let output = by_variable.env("REWARM_VARIANTS__WARM__MODEL", bad).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("is not a directory"), "{told}");
}

#[test]
fn a_configuration_with_variants_and_a_model_contradict_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rewarm.toml");
    std::fs::write(&path, format!("[variants.a]\nmode = 'warm'\nmodel = '{}'\n", member(0))).unwrap();
    let output = run(&["serve", "--check", "--config", path.to_str().unwrap(), "--model", &member(1)]);
    let told = text(&output.stderr);
    assert!(
        !output.status.success()
            && told.contains("rewarm.toml:1: --model and --members name the only variant"),
        "{told}"
    );
}
