//! `rewarm bench`: loads models or connects, lets [`offline::bench`](crate::bench) measure, prints a
//! table and writes JSON.

mod local;
mod variants;

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::bench;
use crate::bench::Control;
use crate::bench::Rounds;
use crate::bench::group;
use crate::bench::lengths::LengthsArg;
use crate::bench::lengths::MAX_ROUND_TOKENS;
use crate::bench::model;
use crate::bench::server;
use crate::cli::AskArgs;
use crate::cli::bench::local::LocalServer;
use crate::cli::bench::variants::VariantArgs;
use crate::cli::progress;
use crate::cli::stop;
use crate::client::LoadClient;
use crate::client::Over;
use crate::offline::Stop;
use crate::ops::machine::Machine;
use crate::service::Port;
use crate::telemetry;

/// Measures what a forward costs, what a server adds, and what shared prefixes save.
///
/// What is compared takes turns, round by round, so that a machine that changes its speed changes both; figures
/// are medians over the rounds, with the smallest and the largest. Warm-up rounds are not counted. Everything
/// random has a seed. Ctrl-C ends a run with what was measured so far, a second one at once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  rewarm bench model --shape minilm --lengths 128x32 --dtype f32,bf16
  rewarm bench server --members a,b,c --lengths samples.jsonl --callers 8 --rate 20
  rewarm bench group --shape smollm2-135m --prompt-tokens 512 --responses 16";

/// A round is held in memory.
const MAX_ROUND_SAMPLES: usize = 10_000_000;

#[derive(Debug, Subcommand)]
enum What {
    Model(ModelArgs),
    Server(Box<ServerArgs>),
    Group(GroupArgs),
}

/// The bare packed forward: samples and tokens a second, milliseconds a batch, one variant beside another.
///
/// Without --model, --members, --shape or --config, measures the demo family. Members without --mode are measured
/// both ways, and the price of the ensemble is told. Loading and tokenizing are not timed; packing is.
#[derive(Debug, Args)]
#[command(after_help = MODEL_EXAMPLES)]
struct ModelArgs {
    #[command(flatten)]
    variants: VariantArgs,
    #[command(flatten)]
    lengths: LengthsArgs,
    #[command(flatten)]
    run: RunArgs,
}

const MODEL_EXAMPLES: &str = "\
Examples:
  rewarm bench model                                            the demo family, WARM beside ENS
  rewarm bench model --shape bert-base --dtype f32,bf16         one precision beside another
  rewarm bench model --model a,b --lengths 16..512x64           one checkpoint beside another
  rewarm bench model --members a,b,c --lengths samples.jsonl    WARM beside ENS, on recorded samples
  rewarm bench model --config rewarm.toml --variant warm --json warm.json";

/// Load on a server: throughput, latencies and refusals, beside the bare forward of the same samples.
///
/// With --server, the load goes there, and there is no bare forward to compare with. Otherwise a server is started
/// in this process, on loopback, with the models that were asked for (without any, the demo family's).
///
/// In the closed loop each of --callers sends its next request when it has its answer. That finds what a server
/// can do; its latencies flatter, since a server that stalls is asked less while it stalls. With --rate there is
/// an open loop too: requests come at random times (a Poisson process), whatever became of the others, and a
/// latency counts from when a request was due. Refused requests (RESOURCE_EXHAUSTED) are counted, not sent again.
#[derive(Debug, Args)]
#[command(after_help = SERVER_EXAMPLES)]
struct ServerArgs {
    #[command(flatten)]
    variants: VariantArgs,
    /// A running server, for example http://127.0.0.1:50051 [default: one in this process].
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "members", "shape", "config", "mode", "dtype", "device"])]
    server: Option<String>,
    /// What the load goes over; with --server over HTTP, the URL is that of its HTTP port.
    #[arg(long, value_enum, default_value_t = OverArg::Grpc)]
    over: OverArg,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    lengths: LengthsArgs,
    /// Callers of the closed loop; 0: no closed loop.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = between(0, 10_000))]
    callers: usize,
    /// Samples in one request.
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = between(1, 1 << 20))]
    samples_per_request: usize,
    /// Requests of a round, which use the samples over again [default: as many as the samples fill].
    #[arg(long, value_name = "N", value_parser = between(1, 1_000_000))]
    requests: Option<usize>,
    /// Adds an open loop with so many requests a second.
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Small samples of a round that are sent alone, one after the other; 0: none.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = between(0, 1_000_000))]
    singles: usize,
    /// Tokens of a small sample.
    #[arg(long, value_name = "T", default_value_t = 32, value_parser = between(1, 1 << 20))]
    single_tokens: usize,
    /// With --server: random token ids are below this.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "server", value_parser = between(1, 1 << 30))]
    vocab_size: usize,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OverArg {
    /// One connection.
    Grpc,
    /// A connection for each caller.
    Http,
    /// A connection for each request, as OpenRLHF has it.
    HttpNew,
}

impl OverArg {
    fn over(self) -> Over {
        match self {
            Self::Grpc => Over::Grpc,
            Self::Http => Over::Http,
            Self::HttpNew => Over::HttpNew,
        }
    }

    fn port(self) -> Port {
        if self == Self::Grpc { Port::Reward } else { Port::Http }
    }
}

const SERVER_EXAMPLES: &str = "\
Examples:
  rewarm bench server                                   the demo family, in this process
  rewarm bench server --shape smollm2-135m --num-members 2 --lengths 64..192x32
  rewarm bench server --config rewarm.toml --lengths samples.jsonl --rate 20 --requests 1000
  rewarm bench server --server http://127.0.0.1:50051 --variant warm --callers 32
  rewarm bench server --over http-new --samples-per-request 1    short connections, as OpenRLHF makes them";

/// Several responses to one prompt, as best-of-n and GRPO send them: the prompt computed once, and each time.
///
/// Only decoders can share a prompt: in an encoder every token sees the response.
#[derive(Debug, Args)]
#[command(after_help = GROUP_EXAMPLES)]
struct GroupArgs {
    #[command(flatten)]
    variants: VariantArgs,
    /// Tokens of a prompt.
    #[arg(long, value_name = "P", default_value_t = 512, value_parser = between(1, 1 << 20))]
    prompt_tokens: usize,
    /// Responses to a prompt.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = between(1, 1 << 16))]
    responses: usize,
    /// Tokens of a response.
    #[arg(long, value_name = "R", default_value_t = 128, value_parser = between(1, 1 << 20))]
    response_tokens: usize,
    /// Prompts of a round.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = between(1, 1 << 16))]
    groups: usize,
    #[command(flatten)]
    run: RunArgs,
}

const GROUP_EXAMPLES: &str = "\
Examples:
  rewarm bench group --shape smollm2-135m
  rewarm bench group --model a --prompt-tokens 1024 --responses 8 --response-tokens 256";

#[derive(Debug, Args)]
struct LengthsArgs {
    /// The samples of a round: 128x32 are 32 samples of 128 tokens; 16..512x64 are 64 samples of 16 to 512 tokens,
    /// log-uniform; FILE has JSON lines as `rewarm score` reads them, or one length a line.
    #[arg(long, value_name = "LENGTHS|FILE", default_value = "128x32")]
    lengths: LengthsArg,
}

#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// A batch takes samples up to this many tokens [default: the configuration's, else 16384].
    #[arg(long, value_name = "N", value_parser = between(1, 1 << 30))]
    max_batch_tokens: Option<usize>,
    /// Rounds that count.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = between(1, 10_000))]
    rounds: usize,
    /// Rounds before them, which do not count.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = between(0, 10_000))]
    warmup_rounds: usize,
    /// Of lengths, token ids and arrivals.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Writes every figure, the settings and the machine.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A whole number between two limits, both included.
fn between(
    least: usize,
    limit: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if (least..=limit).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {least} to {limit}")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    /// More than the clock that paces them can do.
    const FASTEST: f64 = 1e6;
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= FASTEST => Ok(rate),
        _ => Err(format!("expected requests a second, above 0 and at most {FASTEST}")),
    }
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<()> {
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    let stop = stop::on_signal()?;
    match args.what {
        What::Model(args) => run_model(args, stop),
        What::Server(args) => run_server(*args, stop),
        What::Group(args) => run_group(args, stop),
    }
}

fn run_model(args: ModelArgs, stop: Stop) -> anyhow::Result<()> {
    let output = Output::open(&args.run)?;
    let lengths = args.lengths.lengths.read(args.run.seed)?;
    let chosen = args.variants.choose()?;
    let max_batch_tokens = args.run.max_batch_tokens.unwrap_or(chosen.service.engine.max_batch_tokens);
    let variants = chosen.load()?;
    let plan = model::Plan { lengths, seed: args.run.seed, max_batch_tokens };
    let report = measure(&args.run, &stop, |control| model::run(&variants, &plan, control))?;
    let settings = json!({
        "lengths": args.lengths.lengths.to_string(),
        "max_batch_tokens": max_batch_tokens,
        "run": args.run.settings(),
    });
    output.write("model", &report, settings, report.is_interrupted)
}

fn run_group(args: GroupArgs, stop: Stop) -> anyhow::Result<()> {
    let (samples, tokens) = (args.groups * args.responses, args.prompt_tokens + args.response_tokens);
    if samples * tokens > MAX_ROUND_TOKENS {
        let asked = samples * tokens;
        bail!(
            "{samples} samples of {tokens} tokens are {asked} in all, the limit is {MAX_ROUND_TOKENS}: \
             lower --groups or --responses"
        );
    }
    let output = Output::open(&args.run)?;
    let chosen = args.variants.choose()?;
    let plan = group::Plan {
        groups: args.groups,
        prompt_tokens: args.prompt_tokens,
        responses: args.responses,
        response_tokens: args.response_tokens,
        seed: args.run.seed,
        max_batch_tokens: args.run.max_batch_tokens.unwrap_or(chosen.service.engine.max_batch_tokens),
    };
    let variants = chosen.load()?;
    let report = measure(&args.run, &stop, |control| group::run(&variants, &plan, control))?;
    let settings = json!({ "group": plan, "run": args.run.settings() });
    output.write("group", &report, settings, report.is_interrupted)
}

fn run_server(args: ServerArgs, stop: Stop) -> anyhow::Result<()> {
    if args.callers == 0 && args.rate.is_none() && args.singles == 0 {
        bail!("--callers 0 and --singles 0 without --rate leave nothing to measure: give one of them");
    }
    if args.server.is_some() && args.run.max_batch_tokens.is_some() {
        bail!("--max-batch-tokens does not go with --server: that server's own configuration decides");
    }
    let most = args.requests.unwrap_or(0) * args.samples_per_request;
    if most > MAX_ROUND_SAMPLES {
        bail!(
            "--requests times --samples-per-request are {most} samples, the limit is {MAX_ROUND_SAMPLES}: \
             ask for fewer"
        );
    }
    let output = Output::open(&args.run)?;
    let lengths = args.lengths.lengths.read(args.run.seed)?;
    let mut plan = server::Plan {
        variants: args.variants.variant.clone(),
        lengths,
        vocab_size: args.vocab_size,
        seed: args.run.seed,
        max_batch_tokens: 0, // of the bare forwards, which a server elsewhere has none of
        samples_per_request: args.samples_per_request,
        requests: args.requests,
        callers: args.callers,
        rate: args.rate,
        singles: args.singles,
        single_tokens: args.single_tokens,
    };
    let report = match &args.server {
        Some(url) => {
            let mut target = LoadClient::connect(&args.ask.server(url)?, args.over.over())?;
            measure(&args.run, &stop, |control| server::run(&mut target, &[], &plan, control))?
        }
        None => {
            let mut chosen = args.variants.choose()?;
            let service = &mut chosen.service;
            plan.max_batch_tokens = args.run.max_batch_tokens.unwrap_or(service.engine.max_batch_tokens);
            service.engine.max_batch_tokens = plan.max_batch_tokens;
            let (limit, asked) = (service.limits.max_samples_per_request, args.samples_per_request);
            if asked > limit {
                bail!("--samples-per-request {asked}: the server takes {limit} at most: ask for fewer");
            }
            plan.variants = service.models.variants.iter().map(|variant| variant.name.clone()).collect();
            let (variants, server) = LocalServer::start(chosen)?;
            let mut target =
                LoadClient::connect(&args.ask.server(&server.url(args.over.port()))?, args.over.over())?;
            measure(&args.run, &stop, |control| server::run(&mut target, &variants, &plan, control))?
        }
    };
    let settings = json!({
        "server": args.server.as_deref().unwrap_or("in this process"),
        "over": format!("{:?}", args.over),
        "lengths": args.lengths.lengths.to_string(),
        "max_batch_tokens": args.server.is_none().then_some(plan.max_batch_tokens),
        "callers": args.callers,
        "samples_per_request": args.samples_per_request,
        "requests": args.requests,
        "rate": args.rate,
        "singles": args.singles,
        "single_tokens": args.single_tokens,
        "run": args.run.settings(),
    });
    output.write("server", &report, settings, report.is_interrupted)
}

impl RunArgs {
    fn rounds(&self) -> Rounds {
        Rounds { warmup: self.warmup_rounds, counted: self.rounds }
    }

    fn settings(&self) -> Value {
        json!({ "rounds": self.rounds(), "seed": self.seed })
    }
}

/// Measures under a progress bar and a switch for Ctrl-C.
fn measure<R>(
    run: &RunArgs,
    stop: &Stop,
    measure: impl FnOnce(&mut Control<'_>) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let bar = progress::styled("{pos}/{len}");
    let mut progress = |done: usize, total: usize, what: &str| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(what.to_owned());
        bar.tick();
    };
    let stop = stop.clone();
    let report = measure(&mut Control { rounds: run.rounds(), stop, progress: &mut progress });
    bar.finish_and_clear();
    report
}

/// Where a report goes.
struct Output {
    json: Option<(File, PathBuf)>,
}

impl Output {
    /// Opens the file before anything slow: a wrong path is told at once.
    fn open(run: &RunArgs) -> anyhow::Result<Self> {
        let create = |path: &Path| File::create(path).with_context(|| format!("--json {}", path.display()));
        let json =
            run.json.as_deref().map(|path| anyhow::Ok((create(path)?, path.to_owned()))).transpose()?;
        Ok(Self { json })
    }

    fn write(
        self,
        mode: &str,
        report: &(impl Serialize + std::fmt::Display),
        settings: Value,
        is_interrupted: bool,
    ) -> anyhow::Result<()> {
        let machine = Machine::here();
        let stopped = if is_interrupted { "\nStopped early: fewer rounds than asked for.\n" } else { "" };
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("{report}{stopped}\nrewarm {version} on {machine}\n");
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("write the table")?;
        let Some((mut file, path)) = self.json else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let document = json!({
            "bench": mode,
            "version": version,
            "unix_seconds": now,
            "command_line": std::env::args().collect::<Vec<String>>(),
            "machine": machine,
            "settings": settings,
            "report": report,
        });
        bench::write_json(&mut file, &path, &document)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn bad_flags_are_refused_by_name_with_the_limit() {
        let cases = [
            ("bench", "Usage: rewarm bench"),
            ("bench model --lengths 0x4", "--lengths <LENGTHS|FILE>': `0` tokens: expected 1 to"),
            ("bench model --rounds 0", "'0' for '--rounds <N>': expected a whole number from 1 to 10000"),
            ("bench model --model a --shape minilm", "cannot be used with"),
            ("bench model --config a --dtype bf16", "cannot be used with"),
            ("bench model --model a --mode ens", "cannot be used with"),
            ("bench model --shape minilm --num-members 0", "expected a whole number from 1 to 64"),
            ("bench model --num-members 2", "required arguments"),
            ("bench model --shape gpt-5", "[possible values: minilm,"),
            ("bench server --server http://a --model b", "cannot be used with"),
            ("bench server --server http://a --mode ens", "cannot be used with"),
            ("bench server --rate 0", "'0' for '--rate <R>': expected requests a second, above 0"),
            ("bench server --rate inf", "expected requests a second"),
            ("bench server --callers x", "'x' for '--callers <N>': expected a whole number from 0 to 10000"),
            ("bench server --samples-per-request 0", "expected a whole number from 1"),
            ("bench group --responses 0", "'0' for '--responses <N>': expected a whole number from 1"),
        ];
        for (line, expected) in cases {
            let error =
                Cli::try_parse_from(["rewarm"].into_iter().chain(line.split(' '))).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
        for line in [
            "bench model --members a,b --dtype f32,bf16 --mode ens",
            "bench server --server http://a --variant warm,ens --callers 0 --rate 5.5",
            "bench group --shape smollm2-135m --num-members 2 --json out.json",
        ] {
            assert!(Cli::try_parse_from(["rewarm"].into_iter().chain(line.split(' '))).is_ok(), "{line}");
        }
    }
}
