//! From what the user typed to what the program means: flags over variables over a TOML file over defaults.
//!
//! One step that succeeds whole or names every problem, before a port is bound; nothing after it checks again.
//! Each room declares its own settings, and this is where they are put together. The settings are documented
//! in `rewarm serve --help`.

mod demo;
mod file;
pub mod train;
mod variants;

use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::file::Problems;
use crate::config::file::Section;
pub use crate::config::file::Variable;
pub use crate::config::variants::VariantOptions;
pub use crate::config::variants::coefficient_problems;
pub use crate::config::variants::normalised;
use crate::disk;
use crate::engine;
use crate::model::ModelError;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::manifest::MAX_COUNT;
use crate::model::variant::VariantConfig;
use crate::service;
use crate::service::Port;
use crate::service::Ports;
use crate::telemetry;

/// What flags and variables say; they win over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The file.
    pub config: Option<PathBuf>,
    /// Of the environment: any key of the file.
    pub variables: Vec<Variable>,
    /// The only variant, whose paths are relative to the current folder.
    pub variant: Option<VariantOptions>,
    /// `server.listen`, `server.http`, `server.admin`, `server.metrics`.
    pub ports: Ports,
    /// `server.tls.certificate`.
    pub tls_certificate: Option<PathBuf>,
    /// `server.tls.key`.
    pub tls_key: Option<PathBuf>,
    /// `server.tls.client_ca`.
    pub tls_client_ca: Option<PathBuf>,
    /// `server.tokens`.
    pub tokens: Option<PathBuf>,
    /// In place of every variant's.
    pub device: Option<DeviceName>,
    /// In place of every variant's.
    pub dtype: Option<Dtype>,
    /// `server.threads`.
    pub threads: Option<usize>,
    /// `server.access_log.fraction`.
    pub access_log: Option<f64>,
    /// `server.otlp.endpoint`.
    pub otlp: Option<String>,
    /// OpenTelemetry's own variables.
    pub otlp_variables: service::OtlpVariables,
    /// `log.format`.
    pub log_format: Option<telemetry::Format>,
    /// `log.level`.
    pub log_level: Option<telemetry::Level>,
}

/// All that `rewarm serve` must know.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeConfig {
    /// The server.
    pub service: service::Config,
    /// The log.
    pub log: telemetry::Config,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, Default, PartialEq, thiserror::Error)]
#[error("{}", list(.problems))]
pub struct ConfigError {
    /// What, where, and what to do about it.
    pub problems: Vec<String>,
    /// What the configuration names all the same: checkpoints of which something may be wrong, too.
    pub readable: Vec<VariantConfig>,
}

impl ConfigError {
    /// Of what is wrong with variants, by their indices.
    pub fn of_variants(
        variants: &[VariantConfig],
        problems: impl IntoIterator<Item = (usize, ModelError)>,
    ) -> Self {
        let told = problems.into_iter().flat_map(|(index, problem)| {
            let name = &variants[index].name;
            problem.problems().into_iter().map(move |problem| format!("variants.{name}: {problem}"))
        });
        told.collect::<Vec<_>>().into()
    }
}

impl From<Vec<String>> for ConfigError {
    fn from(problems: Vec<String>) -> Self {
        Self { problems, readable: Vec::new() }
    }
}

fn list(problems: &[String]) -> String {
    match problems {
        [problem] => problem.clone(),
        _ => format!("the configuration has {} problems\n  {}", problems.len(), problems.join("\n  ")),
    }
}

/// Reads the file, if there is one, and checks everything.
pub fn load(overrides: &Overrides) -> Result<ServeConfig, ConfigError> {
    match &overrides.config {
        Some(path) => {
            let name = path.display().to_string();
            let text = disk::read_to_string(path, disk::HAND_WRITTEN_BYTES)
                .map_err(|error| ConfigError::from(vec![format!("read {name}: {error}")]))?;
            // Model paths in a file are relative to the file.
            let base = path.parent().unwrap_or(Path::new(""));
            assemble(&name, &text, base, overrides)
        }
        // paths are relative to where the program was started
        None if overrides.variant.is_some()
            || overrides.variables.iter().any(|variable| variable.is_below(variants::TABLE)) =>
        {
            assemble("the environment", "", Path::new(""), overrides)
        }
        None => {
            let folder = demo::folder().map_err(|problem| ConfigError::from(vec![problem]))?;
            assemble("the built-in demo", demo::CONFIG, &folder, overrides)
        }
    }
}

/// About nine hours, more than anybody waits for a connection or a drain; the clock itself overflows later.
const MAX_SECONDS: f64 = 32_767.0;
/// A connection that is given less loses peers that are merely busy, or far.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// Of a kind; more are a mistake.
pub(crate) const MAX_THREADS: usize = 4096;

fn assemble(name: &str, text: &str, base: &Path, overrides: &Overrides) -> Result<ServeConfig, ConfigError> {
    let mut problems = Problems::default();
    let mut file = Section::parse(name, text, &overrides.variables, &mut problems);
    let mut server = file.section("server", &mut problems);
    let mut batching = file.section("batching", &mut problems);
    let mut routing = file.section("routing", &mut problems);
    let mut log = file.section("log", &mut problems);

    let (mut variants, mut partial) = match &overrides.variant {
        Some(options) => variants::only(options, &mut file, &mut problems),
        None => variants::take(&mut file, base, &mut problems),
    };
    for variant in variants.iter_mut().chain(&mut partial) {
        variant.device = overrides.device.clone().unwrap_or_else(|| variant.device.clone());
        variant.dtype = overrides.dtype.unwrap_or(variant.dtype);
    }
    let (limits, engine) = (service::Limits::default(), engine::Config::default());
    let service = service::Config {
        ports: Ports::new(Port::ALL.iter().map(|port| {
            let in_file = server.address(port.key(), &mut problems);
            (*port, overrides.ports.get(*port).or(in_file).or(port.default_address()))
        })),
        tls: tls(&mut server, base, overrides, &mut problems),
        tokens: overrides.tokens.clone().or_else(|| server.path("tokens", base, &mut problems)),
        access_log: access_log(&mut server, overrides, &mut problems),
        otlp: otlp(&mut server, overrides, &mut problems),
        threads: overrides.threads.or_else(|| server.threads(&mut problems)),
        limits: service::Limits {
            max_message_bytes: server.positive("max_message_bytes", limits.max_message_bytes, &mut problems),
            message_time: server.seconds("message_seconds", limits.message_time.as_secs_f64(), &mut problems),
            max_in_flight_bytes: server.positive(
                "max_in_flight_bytes",
                limits.max_in_flight_bytes,
                &mut problems,
            ),
            max_samples_per_request: batching.positive(
                "max_samples_per_request",
                limits.max_samples_per_request,
                &mut problems,
            ),
        },
        engine: engine::Config {
            max_batch_tokens: batching.positive("max_batch_tokens", engine.max_batch_tokens, &mut problems),
            max_step_tokens: batching.positive("max_step_tokens", engine.max_step_tokens, &mut problems),
            max_queue_tokens: batching.positive("max_queue_tokens", engine.max_queue_tokens, &mut problems),
            share_prefixes: batching.take("share_prefixes", &mut problems).unwrap_or(engine.share_prefixes),
        },
        connections: connections(&mut server, &mut problems),
        drain_grace: server.seconds("drain_grace_seconds", 5.0, &mut problems),
        drain_limit: server.seconds("drain_seconds", 30.0, &mut problems),
        reload: server.take("reload", &mut problems).unwrap_or_default(),
        models: service::Models {
            variants,
            weights: routing.take("weights", &mut problems).unwrap_or_default(),
            shadow: routing.take("shadow", &mut problems),
        },
    };
    check_paths(&service, &mut problems);
    let log_format = log.take("format", &mut problems);
    let log_level = log.take::<String>("level", &mut problems).and_then(|level| {
        level.parse().map_err(|problem| problems.add(format!("log.level: {problem}"))).ok()
    });
    let log_config = telemetry::Config {
        format: overrides.log_format.or(log_format).unwrap_or_default(),
        level: overrides.log_level.clone().or(log_level).unwrap_or_default(),
    };
    for section in [server, batching, routing, log, file] {
        section.finish(&mut problems);
    }

    let mut config = ServeConfig { service, log: log_config };
    check_limits(&config.service, &mut problems);
    check_listeners(&config.service, &mut problems);
    // With a variant missing for reasons of its own, routing would be blamed for naming it.
    if problems.0.is_empty() {
        check_routing(&mut config.service.models, &mut problems);
    }
    let readable = std::mem::take(&mut config.service.models.variants);
    if problems.0.is_empty() {
        config.service.models.variants = readable;
        return Ok(config);
    }
    Err(ConfigError { problems: problems.0, readable: readable.into_iter().chain(partial).collect() })
}

fn tls(
    server: &mut Section<'_>,
    base: &Path,
    overrides: &Overrides,
    problems: &mut Problems,
) -> Option<service::TlsConfig> {
    let mut tls = server.section("tls", problems);
    let mut path = |of: &Option<PathBuf>, key: &str| of.clone().or_else(|| tls.path(key, base, problems));
    let certificate = path(&overrides.tls_certificate, "certificate");
    let key = path(&overrides.tls_key, "key");
    let client_ca = path(&overrides.tls_client_ca, "client_ca");
    let place = tls.place_of("plain");
    let named = tls.take::<Vec<String>>("plain", problems);
    let is_named = named.is_some();
    let mut plain = Vec::new();
    for name in named.unwrap_or_default() {
        match Port::ALL.iter().find(|port| port.key() == name) {
            Some(port) => plain.push(*port),
            None => problems
                .add(format!("{place}: server.tls.plain: `{name}` is none of listen, http, admin, metrics")),
        }
    }
    tls.finish(problems);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(service::TlsConfig { certificate, key, client_ca, plain }),
        (None, None) if client_ca.is_none() && !is_named => None,
        (certificate, _) => {
            let missing = if certificate.is_none() { "certificate" } else { "key" };
            problems.add(format!("server.tls: {missing} is missing: TLS needs a certificate and its key"));
            None
        }
    }
}

fn access_log(server: &mut Section<'_>, overrides: &Overrides, problems: &mut Problems) -> f64 {
    let mut section = server.section("access_log", problems);
    let place = section.place_of("fraction");
    let in_file = section.take::<f64>("fraction", problems);
    section.finish(problems);
    if let Some(fraction) = in_file.filter(|fraction| !(0.0..=1.0).contains(fraction)) {
        problems.add(format!("{place}: server.access_log.fraction must be from 0 to 1, not {fraction:?}"));
    }
    overrides.access_log.or(in_file).unwrap_or(0.0)
}

fn otlp(
    server: &mut Section<'_>,
    overrides: &Overrides,
    problems: &mut Problems,
) -> Option<service::OtlpSettings> {
    let mut section = server.section("otlp", problems);
    let in_file = section.take::<String>("endpoint", problems).filter(|endpoint| !endpoint.is_empty());
    section.finish(problems);
    let first = overrides.otlp.as_deref().filter(|endpoint| !endpoint.is_empty());
    let read = service::OtlpSettings::read(first, in_file.as_deref(), &overrides.otlp_variables);
    read.unwrap_or_else(|found| {
        problems.0.extend(found);
        None
    })
}

fn connections(server: &mut Section<'_>, problems: &mut Problems) -> service::Connections {
    let default = service::Connections::default();
    let max = server.positive("max_connections", default.max, problems);
    // 0 is no bound: a proxy is one peer, and so is a trainer that connects for every sample.
    let max_per_peer = server.take("max_connections_per_peer", problems).filter(|max| *max > 0);
    let mut ages = server.section("connections", problems);
    let place = ages.place_of("max_age_seconds");
    // 0 is none.
    let max_age = Some(ages.seconds("max_age_seconds", 0.0, problems)).filter(|age| !age.is_zero());
    if max_age.is_some_and(|age| age < MIN_WAIT) {
        problems.add(format!(
            "{place}: max_age_seconds must be 0, for never, or at least {}",
            MIN_WAIT.as_secs()
        ));
    }
    ages.finish(problems);
    let mut wait = |key: &str, default: Duration| {
        let place = server.place_of(key);
        let wait = server.seconds(key, default.as_secs_f64(), problems);
        if wait < MIN_WAIT {
            problems.add(format!("{place}: {key} must be at least {}", MIN_WAIT.as_secs()));
        }
        wait
    };
    service::Connections {
        max,
        max_per_peer,
        max_age,
        first_bytes: wait("first_bytes_seconds", default.first_bytes),
        idle: wait("idle_seconds", default.idle),
        keepalive: wait("keepalive_seconds", default.keepalive),
        keepalive_timeout: wait("keepalive_timeout_seconds", default.keepalive_timeout),
    }
}

/// Where a port is: an IP address or the name of a host, and a number. Of several addresses that a name has, the first
/// of IPv4, as `localhost` is meant.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let parts = parts.filter(|(host, _)| !host.is_empty() && host.bytes().all(is_plain));
    let (host, port) = parts.ok_or_else(|| {
        format!("`{text}` is not a host and a port, such as 0.0.0.0:50051, [::]:50051 or localhost:50051")
    })?;
    let found =
        (host, port).to_socket_addrs().map_err(|error| format!("the host `{host}` is not found: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
    address.copied().ok_or_else(|| format!("the host `{host}` has no address"))
}

impl Section<'_> {
    fn address(&mut self, key: &str, problems: &mut Problems) -> Option<SocketAddr> {
        let place = self.place_of(key);
        let text = self.take::<String>(key, problems)?;
        address(&text).map_err(|problem| problems.add(format!("{place}: {key}: {problem}"))).ok()
    }

    /// Relative to the file's folder, which is `base`.
    fn path(&mut self, key: &str, base: &Path, problems: &mut Problems) -> Option<PathBuf> {
        self.take::<PathBuf>(key, problems).map(|path| base.join(path))
    }

    /// None: as many as there are CPUs.
    fn threads(&mut self, problems: &mut Problems) -> Option<usize> {
        let place = self.place_of("threads");
        let threads = self.take::<usize>("threads", problems).filter(|threads| *threads > 0)?;
        if threads > MAX_THREADS {
            problems.add(format!("{place}: server.threads is {threads}: the limit is {MAX_THREADS}"));
        }
        Some(threads)
    }

    fn positive(&mut self, key: &str, default: usize, problems: &mut Problems) -> usize {
        let place = self.place_of(key);
        match self.take(key, problems) {
            Some(0) => {
                problems.add(format!("{place}: {key} must be above 0"));
                default
            }
            value => value.unwrap_or(default),
        }
    }

    fn seconds(&mut self, key: &str, default: f64, problems: &mut Problems) -> Duration {
        let place = self.place_of(key);
        let mut seconds = self.take(key, problems).unwrap_or(default);
        if !(0.0..=MAX_SECONDS).contains(&seconds) {
            problems.add(format!("{place}: {key} must be from 0 to {MAX_SECONDS}, not {seconds:?}"));
            seconds = default;
        }
        Duration::from_secs_f64(seconds)
    }
}

/// Who takes a file's content for its path would find a key repeated in an error.
fn check_paths(config: &service::Config, problems: &mut Problems) {
    let tls = config.tls.iter().flat_map(|tls| {
        let service::TlsConfig { certificate, key, client_ca, .. } = tls;
        [
            ("server.tls.certificate", Some(certificate)),
            ("server.tls.key", Some(key)),
            ("server.tls.client_ca", client_ca.as_ref()),
        ]
    });
    for (name, path) in tls.chain([("server.tokens", config.tokens.as_ref())]) {
        if path.is_some_and(|path| path.to_string_lossy().contains('\n')) {
            problems.add(format!("{name} is a file's content: give the path of a file that has it"));
        }
    }
}

fn check_limits(config: &service::Config, problems: &mut Problems) {
    let (batch, queue) = (config.engine.max_batch_tokens, config.engine.max_queue_tokens);
    if queue < batch {
        problems.add(format!(
            "batching: max_queue_tokens {queue} is below max_batch_tokens {batch}: no batch would fill"
        ));
    }
    let samples = config.limits.max_samples_per_request;
    if samples > MAX_COUNT {
        problems.add(format!("batching: max_samples_per_request is {samples}: the limit is {MAX_COUNT}"));
    }
    let (message, in_flight) = (config.limits.max_message_bytes, config.limits.max_in_flight_bytes);
    if in_flight < message {
        problems.add(format!("server: max_in_flight_bytes {in_flight} is below max_message_bytes {message}: a request of that size could never be served"));
    }
}

fn check_listeners(config: &service::Config, problems: &mut Problems) {
    let listeners: Vec<_> = config.ports.iter().map(|(port, address)| (port.key(), address)).collect();
    for (index, (name, address)) in listeners.iter().enumerate() {
        for (other_name, other) in &listeners[..index] {
            let share_a_host =
                address.ip() == other.ip() || address.ip().is_unspecified() || other.ip().is_unspecified();
            // Port 0 asks for a free one: never the same.
            if address.port() != 0 && address.port() == other.port() && share_a_host {
                problems
                    .add(format!("server: {other_name} and {name} both listen on port {}", address.port()));
            }
        }
    }
}

fn check_routing(models: &mut service::Models, problems: &mut Problems) {
    let service::Models { variants, weights, shadow } = models;
    if let Some(shadow) = shadow {
        let names = variants.iter().map(|variant| variant.name.as_str());
        let found = service::shadow_problems(shadow, names);
        problems.0.extend(found.iter().map(|problem| format!("routing.shadow {problem}")));
    }
    match variants.as_slice() {
        [only] if weights.is_empty() => {
            weights.insert(only.name.clone(), 1.0);
        }
        _ if weights.is_empty() => problems.add(
            "routing.weights is missing: with several variants, say which ones answer requests that name none",
        ),
        _ => {
            let names = variants.iter().map(|variant| variant.name.as_str());
            let found = service::weight_problems(weights, names);
            problems.0.extend(found.iter().map(|problem| format!("routing.weights {problem}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::scorer::Reduction;
    use crate::model::variant::Mode;

    /// A folder with the checkpoint directories `a` and `b`.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for member in ["a", "b"] {
            std::fs::create_dir(folder.path().join(member)).unwrap();
        }
        folder
    }

    fn load_text(text: &str, overrides: Overrides) -> Result<ServeConfig, ConfigError> {
        let folder = folder();
        assemble("rewarm.toml", text, folder.path(), &overrides)
    }

    const ONE: &str = "[variants.one]\nmode = 'warm'\nmodel = 'a'\n";

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = load_text(ONE, Overrides::default()).unwrap().service;
        assert_eq!(config.ports.get(Port::Reward), Some(([0, 0, 0, 0], 50051).into()));
        assert_eq!(config.ports.get(Port::Http), None);
        assert_eq!(config.ports.get(Port::Admin), Some(([127, 0, 0, 1], 50052).into()));
        assert_eq!(config.ports.get(Port::Metrics), Some(([127, 0, 0, 1], 9090).into()));
        assert_eq!((&config.tls, &config.tokens), (&None, &None));
        assert_eq!(config.limits.max_message_bytes, 32 << 20);
        assert_eq!((config.connections.max, config.connections.max_per_peer), (8192, None));
        assert_eq!(config.engine.max_batch_tokens, 16_384);
        assert_eq!(config.engine.max_step_tokens, 1024);
        assert!(config.engine.share_prefixes);
        assert_eq!(config.models.weights, BTreeMap::from([("one".to_owned(), 1.0)]));
        assert!(config.models.variants[0].members[0].ends_with("a"));
    }

    #[test]
    fn peers_have_a_bound_when_they_are_given_one() {
        for (value, expected) in [(0, None), (7, Some(7))] {
            let text = format!("{ONE}[server]\nmax_connections_per_peer = {value}");
            let config = load_text(&text, Overrides::default()).unwrap();
            assert_eq!(config.service.connections.max_per_peer, expected);
        }
    }

    #[test]
    fn a_device_is_a_name_or_a_list_and_a_flag_is_in_place_of_every_variants() {
        let device = |value: &str, flag: Option<&str>| {
            let overrides =
                Overrides { device: flag.map(|name| name.parse().unwrap()), ..Overrides::default() };
            let text = format!("{ONE}device = {value}");
            load_text(&text, overrides).map(|config| config.service.models.variants[0].device.to_string())
        };
        let default = load_text(ONE, Overrides::default()).unwrap().service;
        assert_eq!(default.models.variants[0].device, DeviceName::Auto);
        assert_eq!(default.reload, service::Reload::Beside);
        assert_eq!(device("'cuda'", None).unwrap(), "cuda:0");
        assert_eq!(device("['cuda:0', 'cuda:2']", None).unwrap(), "cuda:0,cuda:2");
        assert_eq!(device("'cuda'", Some("cpu")).unwrap(), "cpu");
        for (bad, says) in [
            ("'gpu'", "`gpu` is not auto, cpu, cuda or cuda:N"),
            ("['cpu', 'cuda']", "does not go with"),
            ("1", "device"),
        ] {
            let problems = device(bad, None).unwrap_err().to_string();
            assert!(
                problems.contains("rewarm.toml:4: variants.one.device") && problems.contains(says),
                "{problems}"
            );
        }
        let replace = load_text(&format!("{ONE}[server]\nreload = 'replace'"), Overrides::default()).unwrap();
        assert_eq!(replace.service.reload, service::Reload::Replace);
    }

    #[test]
    fn prefixes_are_computed_again_for_whoever_says_so() {
        let text = format!("{ONE}[batching]\nshare_prefixes = false");
        assert!(!load_text(&text, Overrides::default()).unwrap().service.engine.share_prefixes);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let text =
            format!("{ONE}[server]\nlisten = '127.0.0.1:1'\nadmin = '127.0.0.1:2'\n[log]\nlevel = 'debug'");
        let overrides = Overrides {
            ports: Ports::new([(Port::Reward, Some(([127, 0, 0, 1], 3).into()))]),
            log_format: Some(telemetry::Format::Json),
            ..Overrides::default()
        };
        let config = load_text(&text, overrides).unwrap();
        assert_eq!(config.service.ports.get(Port::Reward).unwrap().port(), 3);
        assert_eq!(config.service.ports.get(Port::Admin).unwrap().port(), 2);
        assert_eq!(
            config.log,
            telemetry::Config { format: telemetry::Format::Json, level: "debug".parse().unwrap() }
        );
    }

    fn variables(all: &[(&str, &str)]) -> Vec<Variable> {
        all.iter().map(|(name, text)| Variable::new(name, text).unwrap_or_else(|| panic!("{name}"))).collect()
    }

    #[test]
    fn a_variable_wins_over_the_file_and_needs_no_quotes() {
        let file = "[variants.ens]\nmode = 'ens'\nmembers = ['a']\n[variants.one]\nmode = 'warm'\nmodel = 'b'\n\
                    [routing]\nweights = { ens = 1, one = 0 }\n[server]\nhttp = '127.0.0.1:7'";
        let given = variables(&[
            ("REWARM_VARIANTS__ENS__MEMBERS", "a, b"),
            ("REWARM_VARIANTS__ENS__REDUCTION", "mean-std=0.5"),
            ("REWARM_VARIANTS__ONE__MODEL", "2024"),
            ("REWARM_VARIANTS__ONE__DEVICE", "cuda:0,cuda:1"),
            ("REWARM_ROUTING__WEIGHTS__ONE", "3"),
            ("REWARM_ROUTING__SHADOW__VARIANT", "ens"),
            ("REWARM_ROUTING__SHADOW__FRACTION", "0.5"),
            ("REWARM_SERVER__LISTEN", "localhost:3"),
            ("REWARM_LOG__LEVEL", "info,h2=debug"),
        ]);
        let folder = folder();
        std::fs::create_dir(folder.path().join("2024")).unwrap();
        let overrides = Overrides { variables: given, ..Overrides::default() };
        let config = assemble("rewarm.toml", file, folder.path(), &overrides).unwrap();
        let service::Config { models, ports, .. } = &config.service;
        let [ens, one] = &models.variants[..] else { panic!("{models:?}") };
        assert_eq!((ens.members.len(), &ens.reduction), (2, &Reduction::MeanStd { beta: 0.5 }));
        assert!(one.members[0].ends_with("2024") && one.device.to_string() == "cuda:0,cuda:1", "{one:?}");
        assert_eq!(models.weights, BTreeMap::from([("ens".to_owned(), 1.0), ("one".to_owned(), 3.0)]));
        assert_eq!(models.shadow.as_ref().map(|shadow| shadow.fraction), Some(0.5));
        assert_eq!(ports.get(Port::Reward), Some(([127, 0, 0, 1], 3).into()));
        assert_eq!(ports.get(Port::Http), Some(([127, 0, 0, 1], 7).into()));
        assert_eq!(config.log.level, "info,h2=debug".parse().unwrap());
    }

    #[test]
    fn what_is_no_setting_is_no_variable_and_a_mistake_is_told_by_its_name() {
        for (name, text) in
            [("REWARM_LISTEN", "x"), ("OTHER_SERVER__LISTEN", "x"), ("REWARM_SERVER__LISTEN", "")]
        {
            assert_eq!(Variable::new(name, text), None, "{name}");
        }
        for (name, text, problem) in [
            ("REWARM_SERVER__LISTEN", "x", "REWARM_SERVER__LISTEN: listen: `x` is not a host and a port"),
            (
                "REWARM_BATCHING__MAX_BATCH_TOKEN",
                "1",
                "REWARM_BATCHING__MAX_BATCH_TOKEN: unknown key `batching.max_batch_token`: did you mean `max_batch_tokens`?",
            ),
            (
                "REWARM_BATCHING__MAX_BATCH_TOKENS",
                "many",
                "REWARM_BATCHING__MAX_BATCH_TOKENS: batching.max_batch_tokens: invalid type: string \"many\"",
            ),
            (
                "REWARM_ROUTING__WEIGHTS__ONE",
                "much",
                "REWARM_ROUTING__WEIGHTS__ONE: routing.weights: invalid type: string \"much\"",
            ),
            (
                "REWARM_SERVER__TLS",
                "x",
                "REWARM_SERVER__TLS: server.tls is a table: give REWARM_SERVER__TLS__KEY",
            ),
            (
                "REWARM_SERVER__TOKENS",
                "[tokens.a]\ntoken = 'secret'",
                "server.tokens is a file's content: give the path",
            ),
            (
                "REWARM_SERVER__LISTEN",
                "nohost.invalid:1",
                "REWARM_SERVER__LISTEN: listen: the host `nohost.invalid` is not found",
            ),
            (
                "REWARM_SERVER__LISTEN",
                ":50051",
                "REWARM_SERVER__LISTEN: listen: `:50051` is not a host and a port",
            ),
            ("REWARM_LOG__LEVEL", "loud", "log.level: `loud` is not a log level"),
            (
                "REWARM_SERVER__DRAIN_SECONDS",
                "-1",
                "REWARM_SERVER__DRAIN_SECONDS: drain_seconds must be from 0",
            ),
            (
                "REWARM_VARIANTS__ONE__MODE",
                "worm",
                "REWARM_VARIANTS__ONE__MODE: variants.one.mode: unknown value `worm`",
            ),
        ] {
            let overrides = Overrides { variables: variables(&[(name, text)]), ..Overrides::default() };
            let ConfigError { problems, .. } = load_text(ONE, overrides).unwrap_err();
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{name}: {problems:?}");
        }
    }

    #[test]
    fn one_setting_is_given_once_and_a_model_by_a_variable_is_in_place_of_members() {
        let ens = "[variants.one]\nmode = 'warm'\nmembers = ['a', 'b']\n";
        let with = |all: &[(&str, &str)]| {
            load_text(ens, Overrides { variables: variables(all), ..Overrides::default() })
        };
        let models = with(&[("REWARM_VARIANTS__ONE__MODEL", "b")]).unwrap().service.models;
        assert_eq!(models.variants[0].members.len(), 1);
        let twice = [("REWARM_ROUTING__WEIGHTS", "{ one = 1 }"), ("REWARM_ROUTING__WEIGHTS__ONE", "2")];
        assert_eq!(
            with(&twice).unwrap_err().problems,
            [
                "REWARM_ROUTING__WEIGHTS and REWARM_ROUTING__WEIGHTS__ONE are the same setting: give one of them"
            ]
        );
        let alone = variables(&[("REWARM_VARIANTS__ONE__MODEL", "b")]);
        let alone = load_text("", Overrides { variables: alone, ..Overrides::default() }).unwrap();
        assert_eq!(alone.service.models.variants[0].mode, Mode::Warm, "one model needs no mode");
    }

    #[test]
    fn shares_that_were_rounded_by_hand_sum_to_one() {
        let shares = "members = ['a', 'b', 'a']\ncoefficients = [0.333, 0.333, 0.333]\n";
        let config = load_text(&format!("[variants.one]\nmode = 'warm'\n{shares}"), Overrides::default());
        let expected = vec![0.333 / (0.333 + 0.333 + 0.333); 3];
        assert_eq!(config.unwrap().service.models.variants[0].coefficients, Some(expected));
        assert_eq!(normalised(vec![0.1; 10]), vec![0.1; 10], "as they were meant");
    }

    #[test]
    fn flags_name_the_only_variant() {
        let folder = folder();
        let options = |model: &str| VariantOptions {
            mode: Some(Mode::Warm),
            model: Some(folder.path().join(model).display().to_string()),
            ..VariantOptions::default()
        };
        let with =
            |config, variant| load(&Overrides { config, variant: Some(variant), ..Overrides::default() });
        let alone = with(None, options("a")).unwrap().service.models;
        assert_eq!((alone.variants[0].name.as_str(), alone.weights["warm"]), ("warm", 1.0));
        let file = folder.path().join("rewarm.toml");
        std::fs::write(&file, "[log]\nlevel = 'debug'\n").unwrap();
        assert_eq!(with(Some(file.clone()), options("b")).unwrap().log.level, "debug".parse().unwrap());
        std::fs::write(&file, ONE).unwrap();
        let error = with(Some(file), options("b")).unwrap_err();
        let [problem] = &error.problems[..] else { panic!("{error}") };
        assert!(problem.contains("rewarm.toml:1: --model and --members name the only variant"), "{problem}");
        assert!(
            with(None, options("missing")).unwrap_err().problems[0].contains("missing` is not a directory")
        );
    }

    #[test]
    fn every_problem_is_named_at_once_with_its_line() {
        let text = "\
[server]
listen = 7
colour = 'red'
[batching]
max_batch_tokens = 0
[variants.Upper]
mode = 'warm'
model = 'a'
members = ['b']
[variants.e]
mode = 'ens'
members = ['a', 'missing', './org/name']
coefficients = [0.5]
reduction = { mean-std = { beta = -1.0 } }
[routing]
shadow = { variant = 'e', fraction = 0.1, colour = 'red' }
[colours]
";
        let ConfigError { problems, .. } = load_text(text, Overrides::default()).unwrap_err();
        let expected = [
            "rewarm.toml:2: server.listen: ",
            "rewarm.toml:5: max_batch_tokens must be above 0",
            "variants.Upper: the name must be 1 to 64 of a-z",
            "variants.Upper: model and members contradict",
            "variants.e: coefficients do not go with mode ens",
            "variants.e: there are 1 coefficients for 3 members",
            "variants.e: coefficients sum to 0.5",
            "variants.e: reduction: -1 must be finite",
            "missing` is not a directory",
            "/./org/name` is not a directory",
            "rewarm.toml:16: routing.shadow: unknown field `colour`",
            "rewarm.toml:3: unknown key `server.colour`",
            "rewarm.toml:17: unknown key `colours`",
        ];
        for problem in expected {
            assert!(
                problems.iter().any(|found| found.contains(problem)),
                "{problem} is not in {problems:#?}"
            );
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    }

    #[test]
    fn a_shadow_is_another_variant_and_a_fraction() {
        let two =
            format!("{ONE}[variants.two]\nmode = 'warm'\nmodel = 'b'\n[routing]\nweights = {{ one = 1 }}\n");
        let with = |shadow: &str| load_text(&format!("{two}shadow = {shadow}\n"), Overrides::default());
        let config = with("{ variant = 'two', fraction = 0.01 }").unwrap();
        let expected = service::ShadowRouting { variant: "two".to_owned(), fraction: 0.01 };
        assert_eq!(config.service.models.shadow, Some(expected));
        for (shadow, problem) in [
            ("{ variant = 'three', fraction = 0.1 }", "routing.shadow names the unknown variant `three`"),
            (
                "{ variant = 'two', fraction = 1.5 }",
                "routing.shadow has the fraction 1.5: it must be from 0 to 1",
            ),
            ("{ variant = 'two', fraction = nan }", "routing.shadow has the fraction NaN"),
            ("{ variant = 'two' }", "missing field `fraction`"),
        ] {
            let error = with(shadow).unwrap_err();
            assert!(error.problems.len() == 1 && error.problems[0].contains(problem), "{error:?}");
        }
        let alone = format!("{ONE}[routing]\nshadow = {{ variant = 'one', fraction = 0.1 }}\n");
        let error = load_text(&alone, Overrides::default()).unwrap_err();
        assert!(error.problems[0].contains("which is the only variant"), "{error:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told_once_and_not_called_missing() {
        let cases = [
            ("mode = 1\nmodel = 'a'", "rewarm.toml:2: variants.one.mode: expected a string, found integer"),
            ("mode = 'x'\nmodel = 'a'", "rewarm.toml:2: variants.one.mode: unknown value `x`"),
            (
                "mode = 'ens'\nmembers = ['a']\nreduction = 'mean-std'",
                "rewarm.toml:4: variants.one.reduction: `mean-std` needs what disagreement costs, such as mean-std=0.5",
            ),
            (
                "mode = 'ens'\nmembers = ['a']\nreduction = { mean-std = { beta = 'x' } }",
                "rewarm.toml:4: variants.one.reduction: invalid type: string \"x\", expected f64",
            ),
            (
                "mode = 'warm'\nmodel = 'a'\ndtype = 'fp32'",
                "rewarm.toml:4: variants.one.dtype: unknown value `fp32`, expected one of `f32`, `bf16`, `f16`, `auto`: did you mean `f32`?",
            ),
            ("mode = 'ens'\nmembers = 'a'", "rewarm.toml:3: variants.one.members: invalid type"),
            ("mode = 'warm'\nmodel = ['a']", "rewarm.toml:3: variants.one.model: invalid type"),
            (
                "mode = 'warm'\nmembers = ['a', 'b']\ncoefficients = []",
                "variants.one: there are 0 coefficients",
            ),
        ];
        for (text, expected) in cases {
            let error = load_text(&format!("[variants.one]\n{text}"), Overrides::default()).unwrap_err();
            let [problem] = &error.problems[..] else { panic!("{text}: {error}") };
            assert!(problem.starts_with(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn contradictions_refuse() {
        struct Case {
            text: &'static str,
            problem: &'static str,
        }
        let two = "[variants.w]\nmode='warm'\nmodel='a'\n[variants.e]\nmode='ens'\nmembers=['a','b']\n";
        let cases = [
            Case { text: "", problem: "routing.weights is missing" },
            Case { text: "[routing]\nweights = { w = 1, x = 1 }", problem: "unknown variant `x`" },
            Case { text: "[routing]\nweights = { w = 0, e = 0 }", problem: "no variant a weight above 0" },
            Case { text: "[routing]\nweights = { w = 1, e = -1 }", problem: "gives `e` the weight -1" },
            Case { text: "[routing]\nweights = { w = nan, e = 1 }", problem: "gives `w` the weight NaN" },
            Case { text: "[routing]\nweights = { w = inf, e = 1 }", problem: "gives `w` the weight inf" },
            Case { text: "[routing]\nweights = { w = 1e308, e = 1e308 }", problem: "whose sum is infinite" },
            Case {
                text: "[server]\nadmin = '127.0.0.1:50051'",
                problem: "listen and admin both listen on port 50051",
            },
            Case {
                text: "[server]\nhttp = '127.0.0.1:9090'",
                problem: "http and metrics both listen on port 9090",
            },
            Case { text: "[server]\nlisten = 'localhost'", problem: "`localhost` is not a host and a port" },
            Case {
                text: "[server]\nkeepalive_seconds = 0.5",
                problem: "keepalive_seconds must be at least 1",
            },
            Case {
                text: "[server]\nfirst_bytes_seconds = 0",
                problem: "rewarm.toml:8: first_bytes_seconds must be at least 1",
            },
            Case {
                text: "[server.connections]\nmax_age_seconds = 0.5",
                problem: "rewarm.toml:8: max_age_seconds must be 0, for never, or at least 1",
            },
            Case {
                text: "[server]\nthreads = 5000",
                problem: "rewarm.toml:8: server.threads is 5000: the limit",
            },
            Case {
                text: "[server.access_log]\nfraction = 1.5",
                problem: "rewarm.toml:8: server.access_log.fraction must be from 0 to 1, not 1.5",
            },
            Case {
                text: "[server.otlp]\nendpoint = 'collector:4317'",
                problem: "server.otlp.endpoint: `collector:4317` is not a URL",
            },
            Case { text: "[server.tls]\nkey = 'k'", problem: "server.tls: certificate is missing" },
            Case { text: "[server.tls]\ncertificate = 'c'", problem: "server.tls: key is missing" },
            Case {
                text: "[server.tls]\ncertificate = 'c'\nkey = 'k'\nplain = ['grpc']",
                problem: "rewarm.toml:10: server.tls.plain: `grpc` is none of listen, http, admin, metrics",
            },
            Case { text: "[server]\nmax_connections = 0", problem: "max_connections must be above 0" },
            Case {
                text: "[server]\nkeepalive_seconds = 40_000",
                problem: "must be from 0 to 32767, not 40000.0",
            },
            Case { text: "[server]\ndrain_seconds = -1", problem: "must be from 0 to 32767, not -1.0" },
            Case { text: "[server]\ndrain_seconds = nan", problem: "must be from 0 to 32767, not NaN" },
            Case { text: "[server]\ndrain_grace_seconds = 1e300", problem: "not 1e300" },
            Case { text: "[server]\nmax_in_flight_bytes = 1", problem: "is below max_message_bytes" },
            Case { text: "[batching]\nmax_queue_tokens = 1", problem: "is below max_batch_tokens" },
            Case {
                text: "[batching]\nmax_samples_per_request = 4294967296",
                problem: "max_samples_per_request is 4294967296: the limit is 4294967295",
            },
            Case {
                text: "[variants.long]\nmode = 'warm'\nmodel = 'a'\nmax_tokens = 4294967296",
                problem: "variants.long: max_tokens is 4294967296: the limit is 4294967295",
            },
            Case { text: "[log]\nformat = 'xml'", problem: "log.format" },
            Case { text: "[log]\nlevel = 'loud=very=loud'", problem: "log.level" },
            Case { text: "[server", problem: "rewarm.toml:7" },
            Case { text: "server = 3", problem: "server" },
        ];
        let mut failures = Vec::new();
        for Case { text, problem } in cases {
            match load_text(&format!("{two}{text}"), Overrides::default()) {
                Err(error) if error.to_string().contains(problem) => {}
                other => failures.push(format!("{text}: {other:?}")),
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn the_demo_is_a_valid_configuration() {
        let folder = tempfile::tempdir().unwrap();
        for member in 0..4 {
            std::fs::create_dir_all(folder.path().join(format!("deploy/demo/member-{member}"))).unwrap();
        }
        let config = assemble("demo", demo::CONFIG, folder.path(), &Overrides::default()).unwrap();
        let names: Vec<&str> =
            config.service.models.variants.iter().map(|variant| variant.name.as_str()).collect();
        assert_eq!(names, ["ens", "warm"]);
    }

    /// Each bracket is a mistake to the parser, and each mistake has a line; and nesting is bounded where it is parsed.
    #[test]
    fn a_file_of_brackets_is_refused_in_good_time_and_on_a_small_stack() {
        let refuse = || {
            for text in [
                format!("[variants.warm]\nmembers = {}", "]".repeat(100_000)),
                format!("[variants.warm]\nmembers = {}", "[".repeat(100_000)),
                format!("members = {}{}", "[".repeat(50_000), "]".repeat(50_000)),
                format!("members = {}1{}", "{a = ".repeat(50_000), "}".repeat(50_000)),
                format!("[{}a]", "a.".repeat(50_000)),
                format!("{}a = 1", "a.".repeat(50_000)),
                "[a]\n".repeat(100_000),
            ] {
                let begun = std::time::Instant::now();
                let ConfigError { problems, .. } = load_text(&text, Overrides::default()).unwrap_err();
                let (start, seconds) = (&text[..30], begun.elapsed().as_secs());
                assert!(problems.len() < 30, "{start}: {} problems", problems.len());
                assert!(problems[0].starts_with("rewarm.toml:"), "{start}: {}", problems[0]);
                assert!(seconds < 10, "{start}: {seconds} s");
            }
        };
        std::thread::Builder::new().stack_size(1 << 20).spawn(refuse).unwrap().join().unwrap();
    }
}
