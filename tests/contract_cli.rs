//! The command line and the wire contract, held by golden files in `tests/data`, and the real program where
//! only the real program will do: exit codes and signals. `UPDATE_GOLDEN=1 cargo test --test contract_cli`
//! rewrites the files: a difference is a change that users see, and belongs in the README's "Changes".

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use prost::Message;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares `actual` with `tests/data/{name}`, or writes it there.
fn assert_golden(name: &str, actual: &str) {
    let path = root().join("tests/data").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, golden, "{name} differs: if that is meant, run with UPDATE_GOLDEN=1");
}

/// The program, without the variables of whoever runs the tests.
fn rewarm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rewarm"));
    command.args(args).current_dir(root()).env_remove("COLUMNS");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REWARM_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(args: &[&str]) -> Output {
    rewarm(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

// ---- golden ----

#[test]
fn the_manual_is_what_it_was() {
    let mut manual = String::new();
    for command in
        [vec!["--help"], vec!["serve", "--help"], vec!["score", "--help"], vec!["health", "--help"]]
    {
        let output = run(&command);
        assert!(output.status.success());
        manual.push_str(&format!("$ rewarm {}\n{}\n", command.join(" "), text(&output.stdout)));
    }
    assert_golden("help.txt", &manual);
}

#[test]
fn the_wire_contract_is_what_it_was() {
    let descriptors = prost_types::FileDescriptorSet::decode(rewarm::proto::DESCRIPTOR).unwrap();
    let mut lines = Vec::new();
    for file in descriptors.file.iter().filter(|file| file.package() == "rewarm.v1") {
        for service in &file.service {
            for method in &service.method {
                let stream = |is_stream| if is_stream { "stream " } else { "" };
                lines.push(format!(
                    "rpc {}.{}({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                ));
            }
        }
        for message in &file.message_type {
            for field in &message.field {
                lines.push(format!(
                    "{}.{} = {} {:?} {:?} {}{}",
                    message.name(),
                    field.name(),
                    field.number(),
                    field.label(),
                    field.r#type(),
                    field.type_name(),
                    if field.proto3_optional() { " optional" } else { "" },
                ));
            }
        }
        for values in &file.enum_type {
            for value in &values.value {
                lines.push(format!("{}.{} = {}", values.name(), value.name(), value.number()));
            }
        }
    }
    assert_golden("proto.txt", &(lines.join("\n") + "\n"));
}

// ---- exit codes ----

/// A configuration that serves `model` of `tests/data/models` on free ports.
fn config_file(folder: &Path, model: &str) -> PathBuf {
    let path = folder.join("rewarm.toml");
    let model = root().join("tests/data/models").join(model);
    let ports: Vec<u16> = free_ports();
    let text = format!(
        "[server]\nlisten = '127.0.0.1:{}'\nadmin = '127.0.0.1:{}'\nmetrics = '127.0.0.1:{}'\ndrain_grace_seconds = 0\n\
         [variants.tiny]\nmode = 'warm'\nmodel = '{}'\n",
        ports[0],
        ports[1],
        ports[2],
        model.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

#[test]
fn check_accepts_a_good_configuration_and_names_every_problem_of_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let good = config_file(folder.path(), "llama");
    let output = run(&["serve", "--check", "--config", good.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "the configuration is valid: 1 variants\n");

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
fn a_server_lives_from_health_through_sighup_to_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "llama");
    let server = Server::start(&config);
    let url = format!("http://{}", server.address);

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

    assert_eq!(server.terminate(), Some(0));
    assert_eq!(run(&["health", "--server", &url]).status.code(), Some(1));
}

fn score(args: &[&str], lines: &str) -> Output {
    let mut command = rewarm(&[&["score"], args].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A running `rewarm serve`; killed when a test fails.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Returns once it is ready, by its log.
    fn start(config: &Path) -> Self {
        let mut command = rewarm(&["serve", "--log-format", "json", "--config", config.to_str().unwrap()]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = String::new();
        for line in log.by_ref() {
            let line: serde_json::Value =
                serde_json::from_str(&line.unwrap()).expect("each log line is JSON");
            if line["message"] == "listening" {
                address = line["listen"].as_str().unwrap().to_owned();
            }
            if line["message"] == "readiness changed" {
                break;
            }
        }
        // Whoever closes the pipe of a process that logs ends it.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, address }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends SIGTERM and returns the exit code.
    fn terminate(mut self) -> Option<i32> {
        self.signal("-TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
