//! `rewarm serve`: configuration, log, runtime, signals. The rest is the service.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::cli::ServeArgs;
use crate::cli::load;
use crate::cli::supervised;
use crate::cli::supervised::Parent;
use crate::config;
use crate::config::Overrides;
use crate::config::ServeConfig;
use crate::model::variant::Checked;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;
use crate::ops::cpu::Isa;
use crate::service;
use crate::service::LoadError;
use crate::service::Loaded;
use crate::service::Models;
use crate::service::Port;
use crate::service::Source;
use crate::telemetry;
use crate::text::TextRule;
use crate::values::Format;

/// 128 and the number of the signal, as a shell says it.
const EXIT_SIGTERM: i32 = 128 + 15;

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    supervised::unblock_interrupt()?;
    let parent = args.end_with_parent.map(Parent::new).transpose()?;
    let overrides = args.overrides();
    let config = config::load(&overrides).map_err(load::look_further)?;
    telemetry::start(&config.log);
    if args.check {
        return check(&config);
    }
    let cpu_instructions = Isa::best().name();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cpu_instructions, "starting");
    tell(&config);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.service.threads {
        runtime.worker_threads(threads);
        // the threads that compute are as many as rayon's own
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().context("start the threads that compute")?;
    }
    let runtime = runtime.enable_all().build().context("start the async threads")?;
    let result = runtime.block_on(serve(config, overrides, parent, args.addresses.as_deref()));
    // A thread that still loads a model cannot be interrupted, and is not waited for.
    runtime.shutdown_background();
    result
}

/// Every setting that counts, as the manual calls it, wherever it is from; there are no secrets among them.
fn tell(config: &ServeConfig) {
    let service::Config {
        tls,
        tokens,
        threads,
        access_log,
        otlp,
        limits,
        engine,
        connections,
        drain_grace,
        drain_limit,
        models,
        ..
    } = &config.service;
    let told = |port| config.service.ports.get(port).map(tracing::field::display);
    tracing::info!(
        listen = told(Port::Reward),
        http = told(Port::Http),
        admin = told(Port::Admin),
        metrics = told(Port::Metrics),
        ui = told(Port::Ui),
        tls_certificate = tls.as_ref().map(|tls| tls.certificate.display().to_string()),
        tls_client_ca = tls.as_ref().and_then(|tls| Some(tls.client_ca.as_ref()?.display().to_string())),
        tokens = tokens.as_ref().map(|path| path.display().to_string()),
        max_message_bytes = limits.max_message_bytes,
        message_seconds = limits.message_time.as_secs_f64(),
        max_in_flight_bytes = limits.max_in_flight_bytes,
        max_connections = connections.max,
        max_connections_per_peer = connections.max_per_peer,
        first_bytes_seconds = connections.first_bytes.as_secs_f64(),
        idle_seconds = connections.idle.as_secs_f64(),
        keepalive_seconds = connections.keepalive.as_secs_f64(),
        keepalive_timeout_seconds = connections.keepalive_timeout.as_secs_f64(),
        max_age_seconds = connections.max_age.map(|age| age.as_secs_f64()),
        drain_grace_seconds = drain_grace.as_secs_f64(),
        drain_seconds = drain_limit.as_secs_f64(),
        threads,
        access_log,
        otlp = otlp.as_ref().map(service::OtlpSettings::told),
        "settings: server"
    );
    tracing::info!(
        max_batch_tokens = engine.max_batch_tokens,
        max_step_tokens = engine.max_step_tokens,
        max_queue_tokens = engine.max_queue_tokens,
        max_samples_per_request = limits.max_samples_per_request,
        share_prefixes = engine.share_prefixes,
        "settings: batching"
    );
    for variant in &models.variants {
        let members: Vec<String> =
            variant.members.iter().map(|member| member.display().to_string()).collect();
        tracing::info!(
            variant = variant.name,
            mode = variant.mode.name(),
            members = members.join(", "),
            base = variant.base.as_ref().map(|base| base.display().to_string()),
            coefficients = variant.coefficients.as_ref().map(|coefficients| format!("{coefficients:?}")),
            reduction = (variant.mode == Mode::Ens).then(|| variant.reduction.to_string()),
            dtype = variant.dtype.format().map_or("auto", Format::name),
            device = %variant.device,
            max_tokens = variant.max_tokens,
            pooling = variant.pooling.map(|pooling| pooling.name()),
            weight = models.weights.get(&variant.name),
            "settings: variant"
        );
    }
}

/// Everything that can be checked without reading weights; every variant's problems are named.
fn check(config: &ServeConfig) -> anyhow::Result<()> {
    let variants = &config.service.models.variants;
    let checked = load::check(variants)?;
    let served: Vec<String> = variants
        .iter()
        .zip(&checked)
        .map(|(variant, checked)| {
            format!("{} (text_rule: {})", variant.name, TextRule::name_of(checked.text_rule))
        })
        .collect();
    let mut answer = format!("the configuration is valid: it serves {}", served.join(", "));
    let mut told = HashSet::new(); // mostly one for all
    for (variant, Checked { resolved, .. }) in variants.iter().zip(&checked) {
        if told.insert(&variant.device) {
            answer += &format!("\ndevice {}: {resolved}", variant.device);
        }
    }
    for warning in config.service.check_access()? {
        answer += &format!("\nwarning: {warning}");
    }
    writeln!(std::io::stdout(), "{answer}").context("write the answer")
}

async fn serve(
    config: ServeConfig,
    overrides: Overrides,
    parent: Option<Parent>,
    published: Option<&Path>,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen(parent).context("listen for signals")?;
    let max_batch_tokens = config.service.engine.max_batch_tokens;
    let source = Checkpoints { overrides, max_batch_tokens };
    let mut running = service::start(config.service, source).await?;
    if let Some(path) = published {
        supervised::publish(path, &running.ports)?;
    }
    let mut is_stopping = false;
    loop {
        let asked = tokio::select! {
            stopped = running.stopped() => return Ok(stopped?),
            asked = signals.next() => asked,
        };
        match asked {
            Asked::Reload => running.reload(),
            Asked::Stop if is_stopping => {
                tracing::warn!("asked to stop twice, stopping at once");
                std::process::exit(EXIT_SIGTERM);
            }
            Asked::Stop => {
                is_stopping = true;
                running.drain();
            }
            // not the first of two: whoever ended the parent may send a SIGTERM too
            Asked::StopForParent => {
                tracing::info!("the parent has ended");
                running.drain();
            }
        }
    }
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    /// Until it has ended.
    parent: Option<Parent>,
}

impl Signals {
    fn listen(parent: Option<Parent>) -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent,
        })
    }

    /// The next signal that asks the server to stop, or to reload.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            () = ended(self.parent.as_ref()) => {
                self.parent = None;
                Asked::StopForParent
            }
        }
    }
}

async fn ended(parent: Option<&Parent>) {
    match parent {
        Some(parent) => parent.ended().await,
        None => std::future::pending().await,
    }
}

enum Asked {
    Reload,
    Stop,
    StopForParent,
}

/// The checkpoints that the configuration names.
struct Checkpoints {
    overrides: Overrides,
    /// Of the engine, which a reload leaves as it is.
    max_batch_tokens: usize,
}

impl Source for Checkpoints {
    fn reread(&self) -> Result<Models, String> {
        match config::load(&self.overrides) {
            Ok(config) => Ok(config.service.models),
            Err(error) => Err(load::look_further(error).to_string()),
        }
    }

    fn load(&self, variants: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError> {
        // A loader of its own for each time: what it shares between variants, a reload must read again.
        load::all(&mut Loader::default().for_server(self.max_batch_tokens).from_shelf(), variants)
    }
}
