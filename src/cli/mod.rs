//! The command line. A flag's doc comment is its manual.

mod bench;
mod calibrate;
mod canary;
mod evaluate;
mod fetch;
mod info;
mod init;
mod load;
mod merge;
mod progress;
mod score;
mod serve;
mod shell;
mod stop;
mod supervised;
mod train;
mod trial;

use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Arg;
use clap::ArgGroup;
use clap::Args;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::builder::Resettable;
use clap::error::ErrorKind;

use crate::cli::bench::BenchArgs;
use crate::cli::calibrate::CalibrateArgs;
use crate::cli::canary::CanaryArgs;
use crate::cli::evaluate::EvaluateArgs;
use crate::cli::info::InfoArgs;
use crate::cli::init::InitArgs;
use crate::cli::merge::MergeArgs;
use crate::cli::shell::CompletionsArgs;
use crate::cli::shell::ManArgs;
use crate::cli::train::TrainArgs;
use crate::client;
use crate::config;
use crate::config::MAX_THREADS;
use crate::config::Overrides;
use crate::config::Variable;
use crate::config::VariantOptions;
use crate::model::ModelError;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::scorer::Reduction;
use crate::model::variant::Mode;
use crate::ops::cpu::Isa;
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
  rewarm serve --model path/to/checkpoint      serve a reward model
  rewarm init a b c                            write rewarm.toml, which serves members as WARM and as ENS
  rewarm serve --config rewarm.toml --check    validate it
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
    Init(InitArgs),
    Info(InfoArgs),
    Score(ScoreArgs),
    Train(TrainArgs),
    Merge(MergeArgs),
    Evaluate(EvaluateArgs),
    Calibrate(CalibrateArgs),
    Bench(BenchArgs),
    Canary(CanaryArgs),
    Health(HealthArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    /// Tries what standard input names, for a process that is about to load it.
    #[command(name = trial::COMMAND, hide = true)]
    Trial,
}

/// Serves rewards over gRPC.
///
/// One variant is named by --model, or by --members and --mode; several by a configuration, which `rewarm init` writes. Without
/// any, serves the demo family: `deploy/demo` in the current directory, or in one above the program, else the one that the
/// program carries.
///
/// A checkpoint with golden rewards (see `rewarm calibrate`) is tested before it serves: it has to give them again.
///
/// SIGTERM and SIGINT stop the server in good order: it says that it is not ready, waits for load balancers,
/// finishes what it has admitted, and exits 0; a second one stops it at once. SIGHUP reads the configuration
/// again and replaces models, weights and shadow without losing a request (other settings wait for the next start); during a
/// reload it asks for one more after it.
///
/// A fault of a GPU is final for the process: it answers what it holds with UNAVAILABLE, says so in health and log, and
/// ends with exit code 3, for its supervisor to start it anew.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("by").args(["model", "members"])))]
#[command(group(ArgGroup::new("of_variant").args(["base", "max_tokens"]).multiple(true).requires("by")))]
struct ServeArgs {
    /// The configuration, a TOML file; flags and variables win over it.
    #[arg(long, value_name = "FILE", env = "REWARM_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    variant: VariantArgs,
    /// In place of every variant's dtype: f32, bf16, f16 or auto.
    #[arg(long, env = "REWARM_DTYPE")]
    dtype: Option<Dtype>,
    /// Validates the configuration and the checkpoints it names, short of reading weights, prints every problem,
    /// and exits 0 or 1. Models of the hub are fetched.
    #[arg(long)]
    check: bool,
    /// Where gRPC listens [default: 0.0.0.0:50051].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_LISTEN", value_parser = config::address)]
    listen: Option<SocketAddr>,
    /// Where HTTP listens, for trainers that speak JSON [default: nowhere].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_HTTP", value_parser = config::address)]
    http: Option<SocketAddr>,
    /// Where the admin service (reload, routing, drain) listens [default: 127.0.0.1:50052].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_ADMIN", value_parser = config::address)]
    admin: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_METRICS", value_parser = config::address)]
    metrics: Option<SocketAddr>,
    /// Where a page for people is: rewards of all variants and members side by side, and what the models read
    /// [default: nowhere; without an address: 127.0.0.1:50080].
    #[arg(long, value_name = "ADDRESS", env = "REWARM_UI", value_parser = config::address, num_args = 0..=1, default_missing_value = "127.0.0.1:50080")]
    ui: Option<SocketAddr>,
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

/// Scores JSON lines, with models in this process or with a server.
///
/// Each input line is one of {"prompt", "response"}, {"messages": [{"role", "content"}]}, {"formatted"} and
/// {"token_ids"}, with an optional "id" (a string or a number; else the line's number, from 1). Each gets one
/// output line, in the same order: {"id", "reward", "tokens"}, with "truncated_tokens" when some were dropped and
/// "member_rewards" and "reward_std" for an ensemble; or {"id", "error"}. Blank lines are skipped. Exits 1 when a
/// line had an error.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("by").args(["model", "members", "server"]).required(true)))]
#[command(group(ArgGroup::new("local").args(["base", "max_tokens", "dtype", "device", "batch_tokens"]).multiple(true).conflicts_with("server")))]
struct ScoreArgs {
    /// A running server, for example http://127.0.0.1:50051.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    variant: VariantArgs,
    /// What to compute in [default: f32].
    #[arg(long)]
    dtype: Option<Dtype>,
    /// auto, cpu, cuda, cuda:N, or several cards with commas; auto is the first card that can, else the CPU [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// A batch takes samples up to this many tokens [default: 16384].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
    /// The server's variant that shall score [default: by the server's routing].
    #[arg(long = "variant", id = "of_server", value_name = "NAME", conflicts_with_all = ["model", "members"])]
    of_server: Option<String>,
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

/// What is loaded, as flags say it.
#[derive(Clone, Debug, Args)]
struct VariantArgs {
    /// A checkpoint: a Hugging Face directory, or a model of the hub, org/name or org/name@revision.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Several checkpoints of one family; say with --mode what becomes of them.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',', requires = "mode", conflicts_with = "model")]
    members: Option<Vec<String>>,
    /// How --members become one reward: warm averages their weights, ens their rewards.
    #[arg(long, requires = "members", conflicts_with = "model")]
    mode: Option<Mode>,
    /// Mode ens: mean, min, median, mean-std=BETA or uwo=LAMBDA [default: mean].
    #[arg(long, requires = "members", conflicts_with = "model")]
    reduction: Option<Reduction>,
    /// Mode warm: the members' shares, summing to 1 [default: equal].
    #[arg(
        long,
        requires = "members",
        conflicts_with = "model",
        value_delimiter = ',',
        value_name = "SHARE,SHARE"
    )]
    coefficients: Option<Vec<f64>>,
    /// What --model or --members were trained on, where they are LoRA adapters (PEFT directories).
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    /// The limit for tokens, in place of the model's own.
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<usize>,
}

impl VariantArgs {
    /// If a checkpoint is named.
    fn options(self) -> Option<VariantOptions> {
        let Self { model, members, mode, reduction, coefficients, base, max_tokens } = self;
        (model.is_some() || members.is_some()).then(|| VariantOptions {
            mode,
            model,
            members,
            base,
            coefficients,
            reduction,
            max_tokens,
            ..VariantOptions::default()
        })
    }
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
    #[arg(long, value_name = "ADDRESS", env = "REWARM_LISTEN", value_parser = config::address, default_value = "0.0.0.0:50051")]
    listen: SocketAddr,
    /// Asks for one variant instead of the server as a whole.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

/// What follows the help of a command: configurations, which somebody may cut out. clap would wrap their lines, and what was
/// cut out would be no TOML any more.
const MANUALS: [(&str, &str); 2] =
    [("serve", include_str!("manual/serve.txt")), ("train", include_str!("manual/train.txt"))];

/// Empty variables of flags are as if they were not set, which is what compose files mean by them.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    let forget = |arg: Arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg };
    command.mut_args(forget).mut_subcommands(without_empty_variables)
}

/// The lines of a manual's configuration.
fn configuration(manual: &str) -> impl Iterator<Item = &str> {
    manual.lines().skip(2).take_while(|line| line.is_empty() || line.starts_with("  "))
}

impl Cli {
    /// What was typed; help, the version and mistakes are printed, and end the process.
    pub fn typed() -> Self {
        let mut command = without_empty_variables(Self::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        let typed = matches.and_then(|matches| Self::from_arg_matches(&matches));
        typed.map_err(|error| error.format(&mut command)).unwrap_or_else(|error| {
            let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
            let words: Vec<String> = words.collect();
            let is_long =
                words.iter().any(|word| word == "--help") || words.first().is_some_and(|word| word == "help");
            let manual = MANUALS.iter().find(|(command, _)| words.iter().any(|word| word == command));
            match manual {
                Some((_, manual)) if error.kind() == ErrorKind::DisplayHelp && is_long => {
                    // whoever has closed standard output has read enough
                    let _ = error.print();
                    let _ = write!(std::io::stdout(), "\n{manual}");
                    std::process::exit(0)
                }
                _ => error.exit(),
            }
        })
    }

    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        prefer_instructions()?;
        match self.command {
            Command::Serve(args) => serve::run(&args),
            Command::Init(args) => init::run(&args),
            Command::Score(args) => score::run(args),
            Command::Calibrate(args) => calibrate::run(&args),
            Command::Merge(args) => merge::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Canary(args) => canary::run(&args),
            Command::Train(args) => train::run(&args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Info(args) => info::run(&args),
            Command::Completions(args) => shell::completions(&args),
            Command::Man(args) => shell::man(&args),
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

/// Machines of several kinds have rewards that differ in their last bits, unless all use what all have.
const ISA: &str = "REWARM_ISA";

/// The instruction set of `REWARM_ISA`, where it is set.
fn prefer_instructions() -> anyhow::Result<()> {
    let name = std::env::var_os(ISA).unwrap_or_default();
    if name.is_empty() {
        return Ok(());
    }
    let all = Isa::all();
    let Some(isa) = all.iter().find(|isa| name == isa.name()) else {
        let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
        bail!("{ISA} is {name:?}: this CPU has {}", names.join(", "));
    };
    assert!(isa.prefer(), "nothing has computed yet");
    Ok(())
}

impl ServeArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            variables: Variable::of_environment(),
            variant: self.variant.clone().options(),
            ports: Ports::new([
                (Port::Reward, self.listen),
                (Port::Http, self.http),
                (Port::Admin, self.admin),
                (Port::Metrics, self.metrics),
                (Port::Ui, self.ui),
            ]),
            tls_certificate: self.tls_certificate.clone(),
            tls_key: self.tls_key.clone(),
            tls_client_ca: self.tls_client_ca.clone(),
            tokens: self.tokens.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The manual's configuration, with other values than the defaults, set line by line in a file and by variables alone.
    #[test]
    fn every_setting_of_the_manual_has_a_variable() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["path", "other"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (_, manual) = MANUALS[0];
        let block =
            configuration(manual).collect::<Vec<_>>().join("\n").replace("[variants.NAME]", "[variants.ens]");
        let mut settings: toml::Table = block.parse().unwrap();
        let ens = settings["variants"]["ens"].as_table_mut().unwrap();
        let paths = || toml::Value::Array(vec!["path".into(), "other".into()]);
        // warm's alone, and what needs real adapters
        let of_warm: Vec<_> = ["model", "coefficients", "base"].map(|key| ens.remove(key).unwrap()).into();
        ens.insert("members".to_owned(), paths());
        ens["mode"] = "ens".into();
        let warm = [("mode", "warm".into()), ("members", paths()), ("coefficients", of_warm[1].clone())];
        let warm = toml::Value::Table(warm.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
        settings["variants"].as_table_mut().unwrap().insert("warm".to_owned(), warm);
        settings["server"]["connections"]["max_age_seconds"] = 7.into();

        let mut variables = Vec::new();
        change(&mut settings, "REWARM_", &mut |name, value| {
            match value {
                toml::Value::Integer(number) => *number += 1,
                toml::Value::Boolean(value) => *value = !*value,
                _ => {}
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            variables.push(Variable::new(&name, &text).expect("below a table"));
        });
        let file = folder.path().join("rewarm.toml");
        let load = |text: &str, variables: Vec<Variable>| {
            std::fs::write(&file, text).unwrap();
            config::load(&Overrides { config: Some(file.clone()), variables, ..Overrides::default() })
        };
        assert!(variables.len() > 40, "{variables:?}");
        let by_file = load(&settings.to_string(), Vec::new()).unwrap();
        assert_eq!(load("", variables).unwrap(), by_file);
    }

    /// Every key below a table, by the name of its variable; tables that are one value are taken apart, too.
    fn change(table: &mut toml::Table, prefix: &str, each: &mut impl FnMut(String, &mut toml::Value)) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.to_uppercase());
            match value {
                toml::Value::Table(table) => change(table, &format!("{name}__"), each),
                value => each(name, value),
            }
        }
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
            "score --server http://b --base c",
            "serve --listen nowhere",
            "serve --model a --members b,c --mode ens",
            "serve --members a,b",
            "serve --model a --mode ens",
            "serve --base a",
            "init",
            "serve --log-level a=b=c",
        ];
        for line in refused {
            assert!(Cli::try_parse_from(["rewarm"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
        let accepted = [
            "score --members a,b --mode ens --reduction uwo=0.5",
            "score --model a --dtype bf16",
            "serve",
            "serve --model a --base b",
            "serve --members a,b --mode ens --reduction min",
        ];
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
