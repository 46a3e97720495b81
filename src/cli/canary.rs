//! `rewarm canary`: moves traffic to a variant while what Prometheus says of it holds, and back when it does not.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use clap::Args;

use crate::canary;
use crate::canary::Ending;
use crate::canary::Guards;
use crate::canary::Judgement;
use crate::canary::NotSet;
use crate::canary::Plan;
use crate::canary::Prometheus;
use crate::canary::Replicas;
use crate::canary::Weights;
use crate::canary::World;
use crate::cli::AskArgs;
use crate::cli::stop;
use crate::client;
use crate::client::AdminClient;
use crate::disk;
use crate::offline::Stop;

/// How long a wait for the clock is at most, before it is asked whether it shall end.
const STOP_POLL: Duration = Duration::from_millis(200);

/// Moves traffic to a variant in steps, on all servers alike, and back by itself when a guard is broken.
///
/// Reads Prometheus and calls the admin service of every server; it runs beside them, once, until the last step has held
/// (exit code 0; the configuration's weights should then say the same) or all is as before (exit code 1, with
/// the reason). Ctrl-C and SIGTERM make it go back, too; a second one ends it at once (exit code 130) and says which servers may not
/// be as before. It sets its shares again at every look, for servers that have started anew. Weights that somebody else has set
/// meanwhile stay, and end it: the servers that still have its own go back.
///
/// While the share rises, a routing key moves at most once and only to the canary, and a request that has pinned a
/// fingerprint stays with the variant that has it.
#[derive(Debug, Args)]
pub(super) struct CanaryArgs {
    /// The variant whose share shall rise; every server has it, with any weight or none.
    #[arg(value_name = "VARIANT")]
    variant: String,
    /// The admin service of a server, http://HOST:PORT; again for each server, or a name that stands for all.
    #[arg(long, value_name = "URL", required = true)]
    admin: Vec<String>,
    /// Where Prometheus is.
    #[arg(long, value_name = "URL", env = "REWARM_PROMETHEUS")]
    prometheus: String,
    /// A file with a bearer token for Prometheus.
    #[arg(long, value_name = "FILE")]
    prometheus_token_file: Option<PathBuf>,
    /// Who signs Prometheus' certificate, in PEM, for a URL with https:// [default: the public roots].
    #[arg(long, value_name = "FILE", env = "REWARM_PROMETHEUS_CA")]
    prometheus_ca: Option<PathBuf>,
    /// Which series are the servers', in PromQL's words, for example job="rewarm".
    #[arg(long, value_name = "MATCHERS", default_value = "")]
    matchers: String,
    /// Its shares, in percent.
    #[arg(long, value_name = "PERCENT,PERCENT", value_delimiter = ',', default_value = "1,5,25,50,100")]
    steps: Vec<f64>,
    /// How long each share must hold.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pause: u64,
    /// Between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    poll: u64,
    /// What each look covers; of several scrapes.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    window: u64,
    /// How long too little may be known, or a server may not answer, before it goes back.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    patience: u64,
    /// Fewer requests of the canary within the window say nothing.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    min_requests: u32,
    /// By how many percentage points its failed requests, and samples without a reward, may exceed the others'.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = bound)]
    max_errors: f64,
    /// How many times as long its 99th percentile may be as the others'; an ensemble of N takes about N times as long.
    #[arg(long, value_name = "TIMES", default_value_t = 1.5, value_parser = bound)]
    max_slowdown: f64,
    /// How many percent of the pairs in shadow traffic it may order otherwise; needs routing.shadow.
    #[arg(long, value_name = "PERCENT", value_parser = bound)]
    max_disagreement: Option<f64>,
    /// A query in PromQL; when it finds anything, all goes back, as an alert would say. May be given several times. One that finds
    /// something before the start is an error.
    #[arg(long, value_name = "PROMQL")]
    alert: Vec<String>,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) fn run(args: &CanaryArgs) -> anyhow::Result<()> {
    let steps = steps(&args.steps)?;
    let seconds = Duration::from_secs;
    let plan = Plan {
        canary: args.variant.clone(),
        steps,
        pause: seconds(args.pause),
        poll: seconds(args.poll),
        patience: seconds(args.patience),
    };
    let guards = Guards {
        canary: args.variant.clone(),
        matchers: args.matchers.clone(),
        window: seconds(args.window),
        min_requests: args.min_requests.into(),
        max_errors: args.max_errors / 100.0,
        max_slowdown: args.max_slowdown,
        max_disagreement: args.max_disagreement.map(|percent| percent / 100.0),
        alerts: args.alert.clone(),
    };
    let read = |path: &PathBuf| {
        disk::read_to_string(path, disk::HAND_WRITTEN_BYTES)
            .with_context(|| format!("read {}", path.display()))
    };
    let token = args.prometheus_token_file.as_ref().map(read).transpose()?;
    let ca = args.prometheus_ca.as_deref().map(client::read_ca).transpose()?;
    let prometheus = Prometheus::new(&args.prometheus, token.as_deref(), ca.as_deref());
    let server = args.ask.server("")?;
    let admin = AdminClient::new(&args.admin, server.timeout, server.credentials)?;
    let replicas = Replicas::new(admin, args.matchers.clone());
    let moved = replicas.moved();
    let stop = stop::on_signal_or(move || last_words(&moved.servers()))?;
    let mut real = Real { begun: Instant::now(), stop, prometheus, replicas, guards };
    match canary::run(&plan, &mut real)? {
        Ending::Done => {
            let share = 100.0 * plan.steps.last().copied().unwrap_or_default();
            real.say(&format!(
                "`{}` holds at {share:.1}%: write it to [routing] weights, for servers that start anew",
                plan.canary
            ));
            Ok(())
        }
        Ending::Back { reason } => bail!("all is as before: {reason}"),
        Ending::Taken { by } => {
            bail!("weights that others have set were left, and all other servers are as before: {by}")
        }
        Ending::Stuck { reason, problem } => {
            bail!("it should be as before ({reason}), and not every server answers: {problem}")
        }
    }
}

/// Of somebody who does not wait until all is as before.
fn last_words(moved: &[SocketAddr]) {
    let servers: Vec<String> = moved.iter().map(SocketAddr::to_string).collect();
    let line = match servers.is_empty() {
        true => "ended at once: all servers are as before".to_owned(),
        false => format!(
            "ended at once: these servers may not be as before, which a reload (SIGHUP) mends: {}",
            servers.join(", ")
        ),
    };
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What a guard may be at most: a number that something can exceed.
fn bound(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bound) if bound.is_finite() && bound >= 0.0 => Ok(bound),
        _ => Err("give a number, 0 or above".to_owned()),
    }
}

/// Shares, from percent.
fn steps(percent: &[f64]) -> anyhow::Result<Vec<f64>> {
    let mut last = 0.0;
    for &step in percent {
        ensure!(step > last && step <= 100.0, "--steps must rise, above 0 and up to 100: {percent:?}");
        last = step;
    }
    Ok(percent.iter().map(|step| step / 100.0).collect())
}

/// Servers, a Prometheus and a clock.
struct Real {
    begun: Instant,
    stop: Stop,
    prometheus: Prometheus,
    replicas: Replicas,
    guards: Guards,
}

impl World for Real {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.stop.is_set() {
            std::thread::sleep(STOP_POLL.min(end.saturating_duration_since(Instant::now())));
        }
        self.stop.is_set()
    }

    fn wait(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn weights(&mut self) -> anyhow::Result<Weights> {
        self.replicas.weights(&self.prometheus, &self.guards.canary)
    }

    fn set(&mut self, weights: &Weights, known: &[Weights]) -> Result<(), NotSet> {
        self.replicas.set(weights, known)
    }

    fn alert(&mut self) -> anyhow::Result<Option<String>> {
        self.guards.alert(&self.prometheus)
    }

    fn judge(&mut self) -> Judgement {
        self.guards.judge(&self.prometheus)
    }

    fn say(&mut self, line: &str) {
        // whoever watches may have gone: the work goes on
        let _ = writeln!(std::io::stdout(), "{:>7.0}s  {line}", self.begun.elapsed().as_secs_f64());
    }
}
