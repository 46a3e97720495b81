//! The real program, run as a user would.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Lines;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;

/// The folder of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program, in the repository's folder, without the variables of whoever runs the tests.
pub(crate) fn rewarm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rewarm"));
    command.args(args).current_dir(root()).env_remove("COLUMNS");
    for (name, _) in std::env::vars_os() {
        if ["REWARM_", "OTEL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    rewarm(args).output().unwrap()
}

/// Runs `rewarm score` on these lines.
pub(crate) fn score(args: &[&str], lines: impl AsRef<[u8]>) -> Output {
    let mut command = rewarm(&[&["score"], args].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = lines.as_ref().to_vec();
    // the answers of many lines fill their pipe before the last line is read
    let writer = std::thread::spawn(move || stdin.write_all(&lines));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

/// What was printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// GET over HTTP/1.1: status line and body.
pub(crate) fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A running `rewarm serve`; killed when a test fails.
pub(crate) struct Server {
    child: Child,
    /// Of the reward service.
    pub(crate) listen: String,
    /// Of the admin service.
    pub(crate) admin: String,
    /// Of /metrics, /healthz and /readyz.
    pub(crate) metrics: String,
    /// What it logged until it was ready.
    pub(crate) log: Vec<serde_json::Value>,
    /// Collects what it logs after that.
    rest: Option<std::thread::JoinHandle<Vec<String>>>,
}

/// Log lines that can be read, and free ports.
const SERVE: [&str; 9] = [
    "serve",
    "--log-format",
    "json",
    "--listen",
    "127.0.0.1:0",
    "--admin",
    "127.0.0.1:0",
    "--metrics",
    "127.0.0.1:0",
];

impl Server {
    /// Starts `rewarm serve` with these arguments on free ports; returns once it is ready, by its log.
    pub(crate) fn start(args: &[&str]) -> Self {
        let (mut server, log) = Self::start_with_log(args);
        server.rest = Some(std::thread::spawn(move || log.map_while(Result::ok).collect()));
        server
    }

    /// As [`Self::start`], of one of the tiny models in `tests/data/models`, in f32 as `tests/reference` has it, with HTTP.
    pub(crate) fn of_model(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rewarm.toml");
        let dir = root().join("tests/data/models").join(model);
        let config =
            format!("[variants.{model}]\nmode = 'warm'\nmodel = '{}'\ndtype = 'f32'\n", dir.display());
        std::fs::write(&path, config).unwrap();
        Self::start(&["--config", path.to_str().unwrap(), "--http", "127.0.0.1:0"])
    }

    /// As [`Self::start`], with what `set` makes of the command.
    pub(crate) fn start_as(args: &[&str], set: impl FnOnce(&mut Command)) -> Self {
        let mut command = rewarm(&[&SERVE[..], args].concat());
        set(&mut command);
        let (server, log) = Self::of(command);
        std::thread::spawn(move || log.for_each(drop));
        server
    }

    /// As [`Self::start`], with a copy of the program in `folder`, which is its home, and where it is started.
    pub(crate) fn start_in(folder: &Path) -> Self {
        let program = folder.join("rewarm");
        if !program.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_rewarm"), &program).unwrap();
        }
        let mut command = Command::new(program);
        command.args(SERVE).current_dir(folder).env_clear().env("HOME", folder);
        let (server, log) = Self::of(command);
        std::thread::spawn(move || log.for_each(drop));
        server
    }

    /// As [`Self::start`], but the pipe of its log is closed once it is ready.
    pub(crate) fn start_unread(args: &[&str]) -> Self {
        Self::start_with_log(args).0
    }

    /// As [`Self::start`], where no more than `limit` files may be open.
    pub(crate) fn start_limited(limit: u32, args: &[&str]) -> Self {
        let program = rewarm(&[&SERVE[..], args].concat());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]);
        command.arg(program.get_program()).args(program.get_args()).current_dir(root());
        for (name, _) in program.get_envs() {
            command.env_remove(name); // that is all that is ever said of them
        }
        let (server, log) = Self::of(command);
        std::thread::spawn(move || log.for_each(drop));
        server
    }

    fn start_with_log(args: &[&str]) -> (Self, Lines<BufReader<ChildStderr>>) {
        Self::of(rewarm(&[&SERVE[..], args].concat()))
    }

    fn of(mut command: Command) -> (Self, Lines<BufReader<ChildStderr>>) {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut listen, mut admin, mut metrics) = (String::new(), String::new(), String::new());
        let mut until_ready = Vec::new();
        for line in log.by_ref() {
            let line: serde_json::Value =
                serde_json::from_str(&line.unwrap()).expect("each log line is JSON");
            if line["message"] == "listening" {
                listen = line["listen"].as_str().unwrap().to_owned();
                admin = line["admin"].as_str().unwrap().to_owned();
                metrics = line["metrics"].as_str().unwrap().to_owned();
            }
            until_ready.push(line);
            if until_ready[until_ready.len() - 1]["message"] == "readiness changed" {
                break;
            }
        }
        (Self { child, listen, admin, metrics, log: until_ready, rest: None }, log)
    }

    /// Of the reward service.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Where it speaks HTTP.
    pub(crate) fn http(&self) -> std::net::SocketAddr {
        let listening = self.log.iter().find(|line| line["message"] == "listening").unwrap();
        listening["http"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Its resident memory, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The same of what [`Self::start`] gave, with what it logged after it was ready.
    pub(crate) fn wait_with_log(mut self) -> (ExitStatus, Vec<serde_json::Value>) {
        let status = self.child.wait().unwrap();
        let lines = self.rest.take().unwrap().join().unwrap();
        (status, lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
