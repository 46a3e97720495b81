//! The command line. A flag's doc comment is its manual.

mod bench;
mod calibrate;
mod canary;
mod evaluate;
mod fetch;
mod load;
mod merge;
mod progress;
mod score;
mod serve;
mod stop;
mod supervised;
mod train;
mod trial;

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

use crate::cli::bench::BenchArgs;
use crate::cli::calibrate::CalibrateArgs;
use crate::cli::canary::CanaryArgs;
use crate::cli::evaluate::EvaluateArgs;
use crate::cli::merge::MergeArgs;
use crate::cli::train::TrainArgs;
use crate::client;
use crate::config::MAX_THREADS;
use crate::config::Overrides;
use crate::model::ModelError;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::scorer::Reduction;
use crate::model::variant::Mode;
use crate::service::LoadError;
use crate::service::Port;
use crate::service::Ports;
use crate::telemetry;
use crate::text;

/// Scores (prompt, response) samples with reward models: a gRPC server for RL trainers, and offline commands.
///
/// A variant is one way to turn a sample into a reward: WARM is one model, whose weights may be the average of
/// N members; ENS runs N members and reduces their rewards to one.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rewarm serve                                 serve the demo family
  rewarm serve --config rewarm.toml --check    validate a configuration
  echo '{\"prompt\": \"Hi\", \"response\": \"Hello!\"}' | rewarm score --model path/to/checkpoint
  rewarm score --server http://127.0.0.1:50051 --variant ens < samples.jsonl
  rewarm train --config train.toml             preference pairs to a family of reward models
  rewarm merge member-0 member-1 --output warm average their weights
  rewarm bench model --shape minilm            what a forward costs on this machine

Exit codes: 0 success, 1 failure, 2 a command line that cannot be understood, 3 a GPU failed: only a new process can use
it again.";

/// Nothing in a process brings a card back that has failed: a supervisor should start another.
const EXIT_DEVICE_LOST: u8 = 3;

/// What the process tells whoever started it.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let fault = error.chain().find_map(|cause| {
        let of_load = cause.downcast_ref::<LoadError>().and_then(LoadError::fault);
        of_load.or_else(|| cause.downcast_ref::<ModelError>().and_then(ModelError::fault))
    });
    if fault.is_some() { EXIT_DEVICE_LOST } else { 1 }
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(ServeArgs),
    Score(ScoreArgs),
    Train(TrainArgs),
    Merge(MergeArgs),
    Evaluate(EvaluateArgs),
    Calibrate(CalibrateArgs),
    Bench(BenchArgs),
    Canary(CanaryArgs),
    Health(HealthArgs),
    /// Tries what standard input names, for a process that is about to load it.
    #[command(name = trial::COMMAND, hide = true)]
    Trial,
}

/// Serves rewards over gRPC.
///
/// Without --config, serves the demo family: `deploy/demo` in the current directory, or in one above the program.
///
/// A checkpoint with golden rewards (see `rewarm calibrate`) is tested before it serves: it has to give them again.
///
/// SIGTERM and SIGINT stop the server in good order: it says that it is not ready, waits for load balancers,
/// finishes what it has admitted, and exits 0; a second one stops it at once. SIGHUP reads the configuration
/// again and replaces the models without losing a request; during a reload it asks for one more after it.
///
/// A fault of a GPU is final for the process: it answers what it holds with UNAVAILABLE, says so in health and log, and
/// ends with exit code 3, for its supervisor to start it anew.
#[derive(Debug, Args)]
#[command(after_long_help = CONFIG_MANUAL)]
struct ServeArgs {
    /// The configuration, a TOML file; flags and variables win over it.
    #[arg(long, value_name = "FILE", env = "REWARM_CONFIG")]
    config: Option<PathBuf>,
    /// Validates the configuration and the checkpoints it names, short of reading weights, prints every problem,
    /// and exits 0 or 1. Models of the hub are fetched.
    #[arg(long)]
    check: bool,
    /// Where gRPC listens [default: 0.0.0.0:50051].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where HTTP listens, for trainers that speak JSON [default: nowhere].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_HTTP")]
    http: Option<SocketAddr>,
    /// Where the admin service (reload, routing, drain) listens [default: 127.0.0.1:50052].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_ADMIN")]
    admin: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_METRICS")]
    metrics: Option<SocketAddr>,
    /// The server's certificate and those between it and a root, in PEM: its ports speak TLS then.
    #[arg(long, value_name = "FILE", env = "REWARM_TLS_CERTIFICATE")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    #[arg(long, value_name = "FILE", env = "REWARM_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Who signs client certificates, in PEM: every call but health needs one then.
    #[arg(long, value_name = "FILE", env = "REWARM_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// The tokens that callers need, a TOML file: see below.
    #[arg(long, value_name = "FILE", env = "REWARM_TOKENS")]
    tokens: Option<PathBuf>,
    /// Writes where it listens to this file, as JSON and all at once, with an id of this start: for port 0.
    #[arg(long, value_name = "FILE", env = "REWARM_ADDRESSES")]
    addresses: Option<PathBuf>,
    /// Stops as on SIGTERM when its parent has ended, whose process id this is.
    #[arg(long, value_name = "PID", env = "REWARM_END_WITH_PARENT")]
    end_with_parent: Option<NonZeroU32>,
    /// In place of every variant's device: auto, cpu, cuda, cuda:N, or several cards with commas.
    #[arg(long, value_name = "DEVICE", env = "REWARM_DEVICE")]
    device: Option<DeviceName>,
    /// Threads that compute, that tokenize and that serve: so many of each [default: one for each CPU].
    #[arg(long, value_name = "COUNT", env = "REWARM_THREADS", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS as i64))]
    threads: Option<u16>,
    /// The fraction of the requests and pages that has a line in the access log; above 0, those that fail all have one, but of calls
    /// that were not let in the fraction [default: 0].
    #[arg(long, value_name = "FRACTION", env = "REWARM_ACCESS_LOG", value_parser = parse_fraction)]
    access_log: Option<f64>,
    /// A collector of spans and metrics (OTLP over gRPC), for example http://127.0.0.1:4317 [default: none].
    #[arg(long, value_name = "URL", env = "REWARM_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// How log lines look [default: text].
    #[arg(long, value_name = "FORMAT", env = "REWARM_LOG_FORMAT")]
    log_format: Option<telemetry::Format>,
    /// What is logged: a level, of rewarm's own crates (others are heard from warn on), or directives such as info,h2=debug
    /// [default: info].
    #[arg(long, value_name = "LEVEL", env = "REWARM_LOG_LEVEL")]
    log_level: Option<telemetry::Level>,
}

const CONFIG_MANUAL: &str = "\
The configuration, with its defaults (unknown keys are errors; paths are relative to the file):

  [server]
  listen  = \"0.0.0.0:50051\"
  http    = \"0.0.0.0:8080\"            # not there unless it is set
  admin   = \"127.0.0.1:50052\"
  metrics = \"127.0.0.1:9090\"
  tokens  = \"tokens.toml\"            # every call but health needs one of them: see below
  max_message_bytes = 33554432        # a larger request is refused
  message_seconds = 60                # for a message to arrive, from its first byte to its last
  max_in_flight_bytes = 536870912     # of all requests together, from first byte to answer; more are refused
  max_connections = 8192              # to listen, and to http; fewer where ulimit -n allows no more
  max_connections_per_peer = 0        # from one address to one port; 0: no bound of its own
  first_bytes_seconds = 10            # a connection that has not begun to speak by then is closed
  idle_seconds = 75                   # and so is one of HTTP/1 on which nothing moves
  keepalive_seconds = 30              # a silent gRPC connection is asked whether it lives
  keepalive_timeout_seconds = 20      # and closed if it does not answer by then; else it stays
  reload = \"beside\"                   # the old models serve while others are loaded; or \"replace\", where memory
                                      # holds only one generation: nothing serves meanwhile, and if the new
                                      # ones cannot, the old ones are loaded again
  drain_grace_seconds = 5             # after SIGTERM: time for load balancers to look elsewhere
  drain_seconds = 30                  # after that: time for admitted work to finish
  threads = 0                         # that compute, tokenize, serve: of each; 0: one for each CPU

  [server.connections]
  max_age_seconds = 0                 # an older one (a tenth more or less) ends when its calls are
                                      # answered: callers find servers that came later; 0: never

  [server.access_log]
  fraction = 0                        # of the requests and pages with an answer, one line each; above 0,
                                      # those that fail all have one, and of calls that were not let in
                                      # the fraction. Texts are never logged

  [server.otlp]
  endpoint = \"http://127.0.0.1:4317\"  # spans and metrics go there, over gRPC; none unless it is set.
                                      # OpenTelemetry's own variables count, too: its endpoint,
                                      # headers, timeout, service name, attributes, sampler

  [server.tls]                        # none unless certificate and key are given
  certificate = \"tls.crt\"             # PEM, as the others; all are read again when they change
  key = \"tls.key\"
  client_ca = \"ca.crt\"                # every call but health needs a certificate that it signed
  plain = [\"metrics\"]                 # ports that stay without TLS: listen, http, admin, metrics

  [batching]
  max_batch_tokens = 16384            # a batch takes samples up to this many tokens
  max_step_tokens = 1024              # a longer sample is computed in steps, and others between
  max_queue_tokens = 1048576          # what waits for one variant, at most, as a request sees it: what is
                                      # less urgent does not count, so background work shuts nobody out
  max_samples_per_request = 1024
  share_prefixes = true               # what samples of a batch begin with alike is computed once

  [variants.NAME]                     # NAME: 1 to 64 of a-z, 0-9, _ and -
  mode = \"warm\"                       # warm: one model, or members merged at load; ens: members
  model = \"path\"                      # or: members = [\"path\", \"path\"]; a path is a directory, or else a model of
                                      # the hub: \"org/name\", \"org/name@revision\"
  base = \"path\"                       # what members that are LoRA adapters (PEFT directories) were trained on
  coefficients = [0.5, 0.5]           # warm: members' shares, summing to 1 (equal when absent)
  reduction = \"mean\"                  # ens: \"mean\", \"min\", \"median\", { mean-std = { beta = 0.5 } },
                                      #      { uwo = { lambda = 0.5 } }
  dtype = \"f32\"                       # f32, bf16, f16, or auto: bf16 where this machine is faster in it (and the
                                      # weights are not f16), else f32; the log and GetServerInfo say which
  device = \"auto\"                     # auto: the first card that can, else the CPU (the log says why)
                                      # cpu, cuda, cuda:1, or several: [\"cuda:0\", \"cuda:1\"], with a copy
                                      # on each, or an ensemble's members among them if none fits
  max_tokens = 4096                   # in place of the model's own limit
  pooling = \"last_token\"              # overrides the checkpoint's: cls, mean, last_token,
                                      # last_non_pad, first_eos

  [routing]                           # needed with several variants
  weights = { warm = 9, ens = 1 }     # for requests that name no variant
  shadow = { variant = \"ens\", fraction = 0.01 }
                                      # scores so many of what others answer too, when the device has nothing
                                      # else to do, for metrics alone; by routing key, else by prompt

  [log]
  format = \"text\"                     # text or json
  level = \"info\"

A flag wins over its variable, a variable over the file.

The file of tokens, which is read again when it changes (at most 32 names; they are labels of metrics):

  [tokens.NAME]
  sha256 = \"<64 hexadecimal digits>\"  # of the token (sha256sum); or token = \"...\" itself;
                                      # a list while one takes the other's place
  allow = [\"score\"]                   # of score, metrics, admin
  max_requests = 64                   # in flight together; more are refused, with when to try again
  max_tokens = 262144                 # of their texts, in flight together
  max_priority = \"interactive\"        # requests that ask for more are treated like this; it and the
                                      # limits may be absent: there are none then

A caller sends `authorization: Bearer TOKEN`, or the token in the URL, http://any:TOKEN@host.

Models of the hub are kept in the cache that Python's libraries use, and HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and
HF_HUB_OFFLINE mean what they mean there. A reload asks again which commit a branch is.";

/// Scores JSON lines, with models in this process or with a server.
///
/// Each input line is one of {"prompt", "response"}, {"messages": [{"role", "content"}]}, {"formatted"} and
/// {"token_ids"}, with an optional "id" (a string or a number; else the line's number, from 1). Each gets one
/// output line, in the same order: {"id", "reward", "tokens"}, with "truncated_tokens" when some were dropped and
/// "member_rewards" and "reward_std" for an ensemble; or {"id", "error"}. Blank lines are skipped. Exits 1 when a
/// line had an error.
#[derive(Debug, Args)]
struct ScoreArgs {
    #[command(flatten)]
    by: ScoreBy,
    #[command(flatten)]
    ask: AskArgs,
    /// How members become one reward.
    #[arg(long, conflicts_with_all = ["model", "server"])]
    mode: Option<Mode>,
    /// Mode ens: mean, min, median, mean-std=BETA or uwo=LAMBDA [default: mean].
    #[arg(long, conflicts_with_all = ["model", "server"], value_parser = parse_reduction)]
    reduction: Option<Reduction>,
    /// Mode warm: the members' shares, summing to 1 [default: equal].
    #[arg(long, conflicts_with_all = ["model", "server"], value_delimiter = ',', value_name = "SHARE,SHARE")]
    coefficients: Option<Vec<f64>>,
    /// What --model or --members were trained on, where they are LoRA adapters (PEFT directories).
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    base: Option<String>,
    /// What to compute in [default: f32].
    #[arg(long, conflicts_with = "server")]
    dtype: Option<Dtype>,
    /// auto, cpu, cuda, cuda:N, or several cards with commas; auto is the first card that can, else the CPU [default: auto].
    #[arg(long, conflicts_with = "server", value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// The limit for tokens, in place of the model's own.
    #[arg(long, conflicts_with = "server")]
    max_tokens: Option<usize>,
    /// A batch takes samples up to this many tokens [default: 16384].
    #[arg(long, conflicts_with = "server", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
    /// The server's variant that shall score [default: by the server's routing].
    #[arg(long, conflicts_with_all = ["model", "members"])]
    variant: Option<String>,
    /// What to do with a sample that is longer than the limit.
    #[arg(long, default_value = "reject")]
    truncation: TruncationArg,
    /// JSON lines to score; - is standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Where the rewards go; - is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ScoreBy {
    /// A checkpoint: a Hugging Face directory, or a model of the hub, org/name or org/name@revision.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Several checkpoints of one family; say with --mode what becomes of them.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',', requires = "mode")]
    members: Option<Vec<String>>,
    /// A running server, for example http://127.0.0.1:50051.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

/// How a command asks a server.
#[derive(Debug, Args)]
struct AskArgs {
    /// Gives up on a server that accepts a connection and then says nothing for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = client::TIMEOUT.as_secs() as u32, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
    /// A file with the token that the server asks for; or the token itself in REWARM_TOKEN.
    #[arg(long, value_name = "FILE", env = "REWARM_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Who signs the server's certificate, in PEM, for a URL with https:// [default: the public roots].
    #[arg(long, value_name = "FILE", env = "REWARM_CA")]
    ca: Option<PathBuf>,
    /// A client certificate, in PEM.
    #[arg(long, value_name = "FILE", env = "REWARM_CERTIFICATE")]
    certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", env = "REWARM_KEY")]
    key: Option<PathBuf>,
    /// Whose the server's certificate shall be [default: the URL's host].
    #[arg(long, value_name = "NAME", env = "REWARM_SERVER_NAME")]
    server_name: Option<String>,
}

/// A secret, which other users of the machine would see among the arguments of a process.
const TOKEN_VARIABLE: &str = "REWARM_TOKEN";

impl AskArgs {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    fn server(&self, url: &str) -> anyhow::Result<client::Server> {
        let Self { timeout: _, token_file, ca, certificate, key, server_name } = self;
        let token = match std::env::var(TOKEN_VARIABLE) {
            Ok(token) if !token.is_empty() => Some(token.into()),
            _ => None,
        };
        let files = client::CredentialFiles {
            token,
            token_file: token_file.clone(),
            ca: ca.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
            server_name: server_name.clone(),
        };
        Ok(client::Server { url: url.to_owned(), timeout: self.timeout(), credentials: files.read()? })
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse::<f64>().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
    fraction.ok_or_else(|| format!("`{text}` is not a number from 0 to 1"))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TruncationArg {
    /// It gets an error.
    Reject,
    /// Drop tokens from the start, the prompt's first.
    Left,
    /// Drop tokens from the end, the prompt's first.
    Right,
}

/// Asks a server whether it serves: exit code 0, or 1 with the reason.
#[derive(Debug, Args)]
struct HealthArgs {
    /// The server [default: the port of --listen on this machine, with TLS or without, whatever its certificate says].
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The server's own --listen, for a check beside it.
    #[arg(long, value_name = "ADDRESS", env = "REWARM_LISTEN", default_value = "0.0.0.0:50051")]
    listen: SocketAddr,
    /// Asks for one variant instead of the server as a whole.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(&args),
            Command::Score(args) => score::run(args),
            Command::Calibrate(args) => calibrate::run(&args),
            Command::Merge(args) => merge::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Canary(args) => canary::run(&args),
            Command::Train(args) => train::run(&args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Trial => trial::run(),
            Command::Health(args) => {
                let (variant, ask) = (args.variant.as_deref(), &args.ask);
                match &args.server {
                    Some(url) => client::check_health(&ask.server(url)?, variant),
                    None => client::check_health_here(args.address(), variant, ask.timeout()),
                }
            }
        }
    }
}

impl ServeArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            ports: Ports::new([
                (Port::Reward, self.listen),
                (Port::Http, self.http),
                (Port::Admin, self.admin),
                (Port::Metrics, self.metrics),
            ]),
            tls_certificate: self.tls_certificate.clone(),
            tls_key: self.tls_key.clone(),
            tls_client_ca: self.tls_client_ca.clone(),
            tokens: self.tokens.clone(),
            device: self.device.clone(),
            threads: self.threads.map(usize::from),
            access_log: self.access_log,
            otlp: self.otlp_endpoint.clone(),
            otlp_variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .filter(|(name, _)| name.starts_with("OTEL_"))
                .collect(),
            log_format: self.log_format,
            log_level: self.log_level.clone(),
        }
    }
}

impl HealthArgs {
    /// Of the server on this machine.
    fn address(&self) -> SocketAddr {
        let mut address = self.listen;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        address
    }
}

impl From<TruncationArg> for text::Truncation {
    fn from(truncation: TruncationArg) -> Self {
        match truncation {
            TruncationArg::Reject => Self::Reject,
            TruncationArg::Left => Self::Left,
            TruncationArg::Right => Self::Right,
        }
    }
}

fn parse_reduction(text: &str) -> Result<Reduction, String> {
    let (name, cost) = match text.split_once('=') {
        Some((name, cost)) => (name, Some(cost.parse().map_err(|_| format!("`{cost}` is not a number"))?)),
        None => (text, None),
    };
    match (name, cost) {
        ("mean", None) => Ok(Reduction::Mean),
        ("min", None) => Ok(Reduction::Min),
        ("median", None) => Ok(Reduction::Median),
        ("mean-std", Some(beta)) => Ok(Reduction::MeanStd { beta }),
        ("uwo", Some(lambda)) => Ok(Reduction::Uwo { lambda }),
        _ => Err("give mean, min, median, mean-std=BETA or uwo=LAMBDA".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let refused = [
            "score",
            "score --model a --server http://b",
            "score --members a,b",
            "score --model a --mode ens",
            "score --server http://b --dtype f16",
            "score --model a --variant warm",
            "score --model a --batch-tokens 0",
            "score --members a,b --mode ens --reduction mean-std",
            "serve --listen nowhere",
            "serve --log-level a=b=c",
        ];
        for line in refused {
            assert!(Cli::try_parse_from(["rewarm"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
        let accepted =
            ["score --members a,b --mode ens --reduction uwo=0.5", "score --model a --dtype bf16", "serve"];
        for line in accepted {
            assert!(Cli::try_parse_from(["rewarm"].into_iter().chain(line.split(' '))).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_health_check_beside_a_server_that_listens_everywhere_asks_this_machine() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Health(args) => args.address().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("rewarm health --listen 0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(parse("rewarm health --listen 10.0.0.1:7"), "10.0.0.1:7");
    }
}
