//! What the configuration and OpenTelemetry's own variables say.
//!
//! | variable | |
//! | --- | --- |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | goes before `server.otlp.endpoint`, and turns export on by itself |
//! | `.._HEADERS`, `.._TIMEOUT`, `.._COMPRESSION`, `.._CERTIFICATE`, `.._PROTOCOL` | of the exporter; the protocol is `grpc` |
//! | `OTEL_EXPORTER_OTLP_TRACES_..`, `.._METRICS_..` | the same, of one signal |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` | `none` turns a signal off |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | what the collector is told of this process |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | `parentbased_always_on` unless set |
//! | `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | of spans |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | of metrics |
//! | `OTEL_SDK_DISABLED` | `true` turns all off |
//!
//! Source: OpenTelemetry specification, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Uri;

/// Where spans and metrics go, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// None: there are no spans.
    pub(super) traces: Option<Target>,
    /// None: no metrics are sent.
    pub(super) metrics: Option<Target>,
    pub(super) resource: BTreeMap<String, String>,
    pub(super) sampler: Sampler,
    pub(super) span_delay: Duration,
    pub(super) max_traces: usize,
    pub(super) max_spans: usize,
    pub(super) metric_interval: Duration,
}

/// A collector.
#[derive(Clone, PartialEq)]
pub(super) struct Target {
    pub(super) endpoint: String,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) is_gzip: bool,
    /// A file with the certificate authority of a collector that speaks TLS.
    pub(super) certificate: Option<String>,
}

/// Headers may hold a key: their values are not shown.
impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        let mut told = formatter.debug_struct("Target");
        told.field("endpoint", &self.endpoint).field("headers", &headers).finish_non_exhaustive()
    }
}

/// Which requests have spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    /// The caller's decision counts, where there is one.
    pub(super) follows_parent: bool,
    /// Of the others.
    pub(super) ratio: f64,
}

/// OpenTelemetry's own variables, by their names; what is empty is not there.
pub type Variables = BTreeMap<String, String>;

impl Settings {
    /// None where nothing is exported. `endpoint` is the configuration's, and `first` goes before the variables'.
    pub fn read(
        first: Option<&str>,
        endpoint: Option<&str>,
        variables: &Variables,
    ) -> Result<Option<Self>, Vec<String>> {
        let mut reader = Reader { variables, problems: Vec::new() };
        let endpoint = first.or(reader.text("OTEL_EXPORTER_OTLP_ENDPOINT")).or(endpoint);
        let traces = reader.target("TRACES", endpoint);
        let metrics = reader.target("METRICS", endpoint);
        let is_off = reader.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if is_off || (traces.is_none() && metrics.is_none() && reader.problems.is_empty()) {
            return Ok(None);
        }
        let settings = Self {
            traces,
            metrics,
            resource: reader.resource(),
            sampler: reader.sampler(),
            span_delay: reader.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
            max_traces: reader.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
            max_spans: reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
            metric_interval: reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
        };
        if reader.problems.is_empty() { Ok(Some(settings)) } else { Err(reader.problems) }
    }

    /// Where spans go, for who tells of it.
    pub fn told(&self) -> String {
        let one =
            |target: &Option<Target>| target.as_ref().map_or("none", |target| &target.endpoint).to_owned();
        format!("traces: {}, metrics: {}", one(&self.traces), one(&self.metrics))
    }
}

struct Reader<'v> {
    variables: &'v Variables,
    problems: Vec<String>,
}

impl<'v> Reader<'v> {
    fn text(&self, name: &str) -> Option<&'v str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Of one signal, or else of all; and the name that it was found under.
    fn of_signal(&self, signal: &str, what: &str) -> Option<(String, &'v str)> {
        let names = [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
        names.into_iter().find_map(|name| self.text(&name).map(|value| (name, value)))
    }

    fn target(&mut self, signal: &str, endpoint: Option<&str>) -> Option<Target> {
        if self.text(&format!("OTEL_{signal}_EXPORTER")) == Some("none") {
            return None;
        }
        let own = self.text(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
        let endpoint = own.or(endpoint)?;
        let uri = endpoint.parse::<Uri>().ok();
        let is_url = |uri: &Uri| ["http", "https"].contains(&uri.scheme_str().unwrap_or_default());
        if uri.as_ref().and_then(Uri::authority).is_some_and(|authority| authority.as_str().contains('@')) {
            // it is told in the log, and what is in it would be, too
            let expected = "one without: OTEL_EXPORTER_OTLP_HEADERS takes what the collector asks for";
            self.problem("server.otlp.endpoint", "a URL with a name or a password in it", expected);
            return None;
        }
        if !uri.as_ref().is_some_and(is_url) {
            self.problem("server.otlp.endpoint", endpoint, "a URL such as http://127.0.0.1:4317");
        }
        if let Some((name, protocol)) = self.of_signal(signal, "PROTOCOL")
            && protocol != "grpc"
        {
            self.problem(
                &name,
                protocol,
                "grpc, the protocol that is spoken here (port 4317 of most collectors)",
            );
        }
        let timeout = match self.of_signal(signal, "TIMEOUT") {
            Some((name, _)) => self.milliseconds(&name, 10_000),
            None => Duration::from_secs(10),
        };
        let is_gzip = match self.of_signal(signal, "COMPRESSION") {
            None | Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((name, other)) => {
                self.problem(&name, other, "gzip or none");
                false
            }
        };
        let mut headers = HeaderMap::new();
        if let Some((variable, list)) = self.of_signal(signal, "HEADERS") {
            for (name, value) in pairs(list) {
                match (name.parse::<HeaderName>(), value.and_then(|value| HeaderValue::try_from(value).ok()))
                {
                    (Ok(name), Some(value)) => {
                        headers.append(name, value);
                    }
                    // the value may be a key
                    _ => self.problem(&variable, name, "name=value,name=value"),
                }
            }
        }
        let certificate = self.of_signal(signal, "CERTIFICATE").map(|(_, path)| path.to_owned());
        Some(Target { endpoint: endpoint.to_owned(), headers, timeout, is_gzip, certificate })
    }

    fn resource(&mut self) -> BTreeMap<String, String> {
        let mut resource = BTreeMap::from([
            ("service.name".to_owned(), "rewarm".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        for (name, value) in self.text("OTEL_RESOURCE_ATTRIBUTES").map(pairs).into_iter().flatten() {
            match value {
                Some(value) => drop(resource.insert(name.to_owned(), value)),
                None => self.problem("OTEL_RESOURCE_ATTRIBUTES", name, "name=value,name=value"),
            }
        }
        if let Some(name) = self.text("OTEL_SERVICE_NAME") {
            resource.insert("service.name".to_owned(), name.to_owned());
        }
        resource
    }

    fn sampler(&mut self) -> Sampler {
        let name = self.text("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_always_on");
        let (follows_parent, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let text = self.text("OTEL_TRACES_SAMPLER_ARG").unwrap_or("1");
                match text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio)) {
                    Some(ratio) => ratio,
                    None => {
                        self.problem("OTEL_TRACES_SAMPLER_ARG", text, "a number from 0 to 1");
                        1.0
                    }
                }
            }
            _ => {
                let known = "always_on, always_off or traceidratio, or one of these behind parentbased_";
                self.problem("OTEL_TRACES_SAMPLER", name, known);
                1.0
            }
        };
        Sampler { follows_parent, ratio }
    }

    fn milliseconds(&mut self, name: &str, default: usize) -> Duration {
        Duration::from_millis(self.number(name, default) as u64)
    }

    fn number(&mut self, name: &str, default: usize) -> usize {
        let Some(text) = self.text(name) else { return default };
        match text.parse::<u32>() {
            Ok(number) if number > 0 => number as usize,
            _ => {
                self.problem(name, text, "a whole number above 0");
                default
            }
        }
    }

    fn problem(&mut self, name: &str, value: &str, expected: &str) {
        let problem = format!("{name}: `{value}` is not {expected}");
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Of `name=value,name=value`, with values in percent-encoding; none where there is no value.
fn pairs(list: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| match part.split_once('=') {
        Some((name, value)) => (name.trim(), decoded(value.trim())),
        None => (part, None),
    })
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Settings>, Vec<String>> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(None, endpoint, &variables.collect())
    }

    #[test]
    fn nothing_is_exported_unless_somebody_says_where() {
        assert_eq!(read(None, &[("OTEL_SERVICE_NAME", "x")]), Ok(None));
        assert_eq!(read(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert_eq!(read(Some("http://a:1"), &[("OTEL_SDK_DISABLED", "true")]), Ok(None));
        let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
        assert_eq!(read(Some("http://a:1"), &none), Ok(None));
        assert!(read(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1")]).unwrap().is_some());
    }

    #[test]
    fn variables_go_before_the_file_and_those_of_a_signal_before_all() {
        let settings = read(
            Some("http://file:1"),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1"),
                ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics:2"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b%3D, x=1"),
                ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x=2"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=b"),
                ("OTEL_SERVICE_NAME", "c"),
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ],
        );
        let settings = settings.unwrap().unwrap();
        let (traces, metrics) = (settings.traces.unwrap(), settings.metrics.unwrap());
        assert_eq!((&*traces.endpoint, &*metrics.endpoint), ("http://all:1", "https://metrics:2"));
        assert_eq!(
            (&traces.headers["api-key"], &metrics.headers["x"]),
            (&"a b=".parse().unwrap(), &"2".parse().unwrap())
        );
        assert!(traces.is_gzip && traces.timeout == Duration::from_millis(250));
        assert_eq!(settings.resource["service.name"], "c");
        assert_eq!(settings.resource["deployment.environment.name"], "b");
        assert_eq!(settings.sampler, Sampler { follows_parent: false, ratio: 0.25 });
        assert!(!format!("{traces:?}").contains("a b="), "{traces:?}");
    }

    #[test]
    fn what_cannot_be_is_named_at_once() {
        let problems = read(
            Some("127.0.0.1:4317"),
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "nothing"),
                ("OTEL_TRACES_SAMPLER", "sometimes"),
                ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ],
        );
        let problems = problems.unwrap_err().join("\n");
        for told in [
            "server.otlp.endpoint: `127.0.0.1:4317` is not a URL",
            "OTEL_EXPORTER_OTLP_PROTOCOL: `http/protobuf` is not grpc",
            "OTEL_EXPORTER_OTLP_HEADERS: `nothing` is not name=value",
            "OTEL_TRACES_SAMPLER: `sometimes` is not always_on",
            "OTEL_BSP_SCHEDULE_DELAY: `-1` is not a whole number",
        ] {
            assert!(problems.contains(told), "{told}: {problems}");
        }
        assert_eq!(problems.lines().count(), 5, "{problems}");

        let problems = read(Some("https://me:hidden@collector:4317"), &[]).unwrap_err().join("\n");
        assert!(
            problems.contains("OTEL_EXPORTER_OTLP_HEADERS takes") && !problems.contains("hidden"),
            "{problems}"
        );
    }
}
