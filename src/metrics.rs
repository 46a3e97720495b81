//! Every metric: its name, unit, buckets and help, and the functions that record.
//!
//! Code says what happened ([`request_finished`], [`VariantMetrics::batch_scored`]); names and labels stay in
//! here. Labels come from small closed sets: variants and members as configured, methods, status codes, stages,
//! outcomes, reasons. Never a run, a user or a request. Whatever exists is visible at zero from the start, so
//! that a `rate()` sees the first event too.
//!
//! # What a reader of the numbers should know
//!
//! - The stages `queue`, `compute` and `reduce` have one observation for each request that was answered, like the
//!   timing in its response; batches have `rewarm_batch_*` and `rewarm_device_seconds_total`.
//! - Each admitted sample is counted in `rewarm_samples_total` exactly once: `scored`, `not_finite` or `failed`
//!   by the model, or `expired` or `withdrawn` before the model saw it. `invalid` ones were never admitted.
//! - What a server asks a variant before it serves, a first forward and its golden rewards, counts nowhere.
//! - Rewards can be negative, so `rewarm_reward_sum` may fall and `rate()` over it lies. The mean reward is
//!   `(rate(rewarm_reward_positive_sum_total[5m]) - rate(rewarm_reward_negative_sum_total[5m])) /
//!   rate(rewarm_reward_count[5m])`.
//! - What a variant scores as a shadow of another counts in `rewarm_shadow_*` and in its `rewarm_device_seconds_total`, and
//!   nowhere else: `rewarm_samples_total`, batches and rewards are of what was asked for.
//! - `rewarm_model_info` is 1 for what serves. The exporter forgets no series, so what was replaced stays, at 0:
//!   select with `== 1`.
//!
//! # Why gauges that are called counters?
//!
//! The exporter's counters are integers, and seconds and sums of rewards are not. They are kept as gauges that
//! only ever rise, and [`Exporter::render`] declares them as the counters they are.

pub mod drift;
mod shadow;
mod totals;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use ::metrics::Counter;
use ::metrics::Gauge;
use ::metrics::Histogram;
use ::metrics::Unit;
use ::metrics::counter;
use ::metrics::describe_counter;
use ::metrics::describe_gauge;
use ::metrics::describe_histogram;
use ::metrics::gauge;
use ::metrics::histogram;
use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;

pub use self::shadow::Shadowing;
use self::totals::Count;
use self::totals::Counters;
pub use self::totals::Totals;
pub use self::totals::totals;

// ---- what exists ----

const REQUESTS: &str = "rewarm_requests_total";
const REQUEST_DURATION: &str = "rewarm_request_duration_seconds";
const REQUEST_SAMPLES: &str = "rewarm_request_samples";
const STAGE_DURATION: &str = "rewarm_stage_duration_seconds";
const SAMPLES: &str = "rewarm_samples_total";
const REJECTIONS: &str = "rewarm_rejections_total";
const QUEUE_SAMPLES: &str = "rewarm_queue_samples";
const QUEUE_TOKENS: &str = "rewarm_queue_tokens";
const BATCH_SAMPLES: &str = "rewarm_batch_samples";
const BATCH_TOKENS: &str = "rewarm_batch_tokens";
const SHARED_PREFIX_TOKENS: &str = "rewarm_shared_prefix_tokens_total";
const DEVICE_SECONDS: &str = "rewarm_device_seconds_total";
const REWARD: &str = "rewarm_reward";
const REWARD_STD: &str = "rewarm_reward_std";
const REWARD_POSITIVE_SUM: &str = "rewarm_reward_positive_sum_total";
const REWARD_NEGATIVE_SUM: &str = "rewarm_reward_negative_sum_total";
const SHADOW_SAMPLES: &str = "rewarm_shadow_samples_total";
const SHADOW_PAIRS: &str = "rewarm_shadow_pairs_total";
const SHADOW_DIFFERENCE: &str = "rewarm_shadow_abs_difference";
const SHADOW_CORRELATION: &str = "rewarm_shadow_correlation";
const SHADOW_WINDOW_SAMPLES: &str = "rewarm_shadow_window_samples";
const WINDOW_SAMPLES: &str = "rewarm_window_samples";
const WINDOW_REWARD_MEAN: &str = "rewarm_window_reward_mean";
const WINDOW_REWARD_STD: &str = "rewarm_window_reward_std";
const WINDOW_TOKENS_MEAN: &str = "rewarm_window_tokens_mean";
const WINDOW_TRUNCATED_RATIO: &str = "rewarm_window_truncated_ratio";
const WINDOW_LENGTH_CORRELATION: &str = "rewarm_window_length_correlation";
const WINDOW_DISAGREEMENT_MEAN: &str = "rewarm_window_disagreement_mean";
const REFERENCE_REWARD_MEAN: &str = "rewarm_reference_reward_mean";
const REFERENCE_REWARD_STD: &str = "rewarm_reference_reward_std";
const REFERENCE_TOKENS_MEAN: &str = "rewarm_reference_tokens_mean";
const REFERENCE_LENGTH_CORRELATION: &str = "rewarm_reference_length_correlation";
const REFERENCE_DISAGREEMENT_MEAN: &str = "rewarm_reference_disagreement_mean";
const DRIFT: &str = "rewarm_drift";
const TRUNCATED_SAMPLES: &str = "rewarm_truncated_samples_total";
const DOUBLE_BOS: &str = "rewarm_double_bos_total";
const NON_FINITE: &str = "rewarm_non_finite_total";
const DEVICE_MEMORY: &str = "rewarm_device_memory_bytes";
const DEVICE_MEMORY_LEFT: &str = "rewarm_device_memory_left_bytes";
const MODEL_INFO: &str = "rewarm_model_info";
const ROUTE_WEIGHT: &str = "rewarm_route_weight";
const RELOADS: &str = "rewarm_reloads_total";
const READY: &str = "rewarm_ready";
const CONNECTIONS: &str = "rewarm_connections";
const CONNECTIONS_CLOSED: &str = "rewarm_connections_closed_total";
const CERTIFICATE_EXPIRES: &str = "rewarm_certificate_expires_timestamp_seconds";
const RENEWALS: &str = "rewarm_renewals_total";
const CALLS_REFUSED: &str = "rewarm_authentication_failures_total";
const TOKEN_REQUESTS: &str = "rewarm_token_requests_total";
const TOKEN_SAMPLES: &str = "rewarm_token_samples_total";
const TOKEN_REQUESTS_IN_FLIGHT: &str = "rewarm_token_requests_in_flight";
const TOKEN_TOKENS_IN_FLIGHT: &str = "rewarm_token_tokens_in_flight";
const ADMIN_ACTIONS: &str = "rewarm_admin_actions_total";
const EXPORTER_FAILURES: &str = "rewarm_exporter_failures_total";
const BUILD_INFO: &str = "rewarm_build_info";
/// Without our prefix: dashboards and `resets()` habits know it by this name.
const PROCESS_START_TIME: &str = "process_start_time_seconds";

enum Kind {
    Counter,
    /// A counter of a real number: see the module docs.
    RealCounter,
    Gauge,
    /// With its buckets: the exporter makes a summary of a histogram that has none.
    Histogram(&'static [f64]),
}

struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, help }
}

/// Seconds. The same for every duration and variant, so that WARM and ENS compare in one query.
const DURATION_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0,
    60.0,
];
const SAMPLE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
const TOKEN_BUCKETS: &[f64] = &[
    16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0,
    131072.0,
];
/// Fine around zero, where Bradley–Terry rewards live, and wide enough for heads that were never normalised.
const REWARD_BUCKETS: &[f64] = &[
    -50.0, -20.0, -10.0, -5.0, -2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0,
    50.0,
];
const REWARD_STD_BUCKETS: &[f64] = &[0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

#[rustfmt::skip] // a table: one metric per line, help below it where it is long
const METRICS: &[Metric] = &[
    metric(REQUESTS, Kind::Counter, Unit::Count,
        "Requests that were answered, by gRPC status; an empty variant means that none was chosen."),
    metric(REQUEST_DURATION, Kind::Histogram(DURATION_BUCKETS), Unit::Seconds,
        "From a request's arrival to its answer."),
    metric(REQUEST_SAMPLES, Kind::Histogram(SAMPLE_BUCKETS), Unit::Count, "Samples in a request."),
    metric(STAGE_DURATION, Kind::Histogram(DURATION_BUCKETS), Unit::Seconds,
        "Where the time of an answered request went."),
    metric(SAMPLES, Kind::Counter, Unit::Count, "Samples by what became of them, each counted once."),
    metric(REJECTIONS, Kind::Counter, Unit::Count, "Requests that were refused as a whole."),
    metric(QUEUE_SAMPLES, Kind::Gauge, Unit::Count, "Samples that wait for the device."),
    metric(QUEUE_TOKENS, Kind::Gauge, Unit::Count, "Tokens that wait for the device."),
    metric(BATCH_SAMPLES, Kind::Histogram(SAMPLE_BUCKETS), Unit::Count, "Samples in a batch."),
    metric(BATCH_TOKENS, Kind::Histogram(TOKEN_BUCKETS), Unit::Count,
        "Tokens in a batch, those that were not computed included."),
    metric(SHARED_PREFIX_TOKENS, Kind::Counter, Unit::Count,
        "Tokens that were not computed, since samples of a batch begin alike."),
    metric(DEVICE_SECONDS, Kind::RealCounter, Unit::Seconds,
        "Time the device spent on forwards, by member; in mode warm there is one."),
    metric(REWARD, Kind::Histogram(REWARD_BUCKETS), Unit::Count,
        "Rewards. Its sum may fall: use rewarm_reward_positive_sum_total and rewarm_reward_negative_sum_total."),
    metric(REWARD_STD, Kind::Histogram(REWARD_STD_BUCKETS), Unit::Count,
        "Population standard deviation of the member rewards of a sample; ensembles only."),
    metric(REWARD_POSITIVE_SUM, Kind::RealCounter, Unit::Count, "Sum of the rewards above zero."),
    metric(REWARD_NEGATIVE_SUM, Kind::RealCounter, Unit::Count,
        "Sum of the absolute values of the rewards below zero."),
    metric(SHADOW_SAMPLES, Kind::Counter, Unit::Count,
        "Samples of the fraction of requests that another variant scores too, by what became of that."),
    metric(SHADOW_PAIRS, Kind::Counter, Unit::Count,
        "Pairs of samples of a request that both variants order, by whether alike."),
    metric(SHADOW_DIFFERENCE, Kind::Histogram(REWARD_STD_BUCKETS), Unit::Count,
        "How far the rewards of who answered and who shadowed are apart."),
    metric(SHADOW_CORRELATION, Kind::Gauge, Unit::Count,
        "Of both variants' rewards over the last thousand samples or so; NaN before there are some."),
    metric(SHADOW_WINDOW_SAMPLES, Kind::Gauge, Unit::Count,
        "Samples that both have scored since the models are served."),
    metric(WINDOW_SAMPLES, Kind::Gauge, Unit::Count,
        "Samples with a reward since the models are served; the other rewarm_window metrics are there from 100 on, and are of the last thousand or so."),
    metric(WINDOW_REWARD_MEAN, Kind::Gauge, Unit::Count,
        "Mean reward."),
    metric(WINDOW_REWARD_STD, Kind::Gauge, Unit::Count,
        "Standard deviation of the rewards."),
    metric(WINDOW_TOKENS_MEAN, Kind::Gauge, Unit::Count,
        "Mean tokens of a sample."),
    metric(WINDOW_TRUNCATED_RATIO, Kind::Gauge, Unit::Count,
        "Share of the samples that lost tokens to fit."),
    metric(WINDOW_LENGTH_CORRELATION, Kind::Gauge, Unit::Count,
        "Correlation of rewards and tokens."),
    metric(WINDOW_DISAGREEMENT_MEAN, Kind::Gauge, Unit::Count,
        "Mean of the standard deviations of the members' rewards of a sample; ensembles only."),
    metric(REFERENCE_REWARD_MEAN, Kind::Gauge, Unit::Count,
        "Mean reward on the references of `rewarm calibrate`."),
    metric(REFERENCE_REWARD_STD, Kind::Gauge, Unit::Count,
        "Standard deviation of the rewards on the references."),
    metric(REFERENCE_TOKENS_MEAN, Kind::Gauge, Unit::Count,
        "Mean tokens of a reference."),
    metric(REFERENCE_LENGTH_CORRELATION, Kind::Gauge, Unit::Count,
        "Correlation of rewards and tokens on the references."),
    metric(REFERENCE_DISAGREEMENT_MEAN, Kind::Gauge, Unit::Count,
        "Mean of the standard deviations of the members' rewards on the references; ensembles only."),
    metric(DRIFT, Kind::Gauge, Unit::Count,
        "How far the window is from the references, in their standard deviations; of the correlation, the difference of Fisher's z."),
    metric(TRUNCATED_SAMPLES, Kind::Counter, Unit::Count, "Samples that lost tokens to fit the model's limit."),
    metric(DOUBLE_BOS, Kind::Counter, Unit::Count,
        "Samples that start with two beginning-of-sequence tokens: usually a template applied twice."),
    metric(NON_FINITE, Kind::Counter, Unit::Count, "Samples whose reward was NaN or infinite."),
    metric(DEVICE_MEMORY, Kind::Gauge, Unit::Bytes, "Memory of a GPU."),
    metric(DEVICE_MEMORY_LEFT, Kind::Gauge, Unit::Bytes,
        "Memory that was left when the models had been loaded, of a GPU or of the machine or container."),
    metric(MODEL_INFO, Kind::Gauge, Unit::Count, "1 for the model that serves a variant, 0 for what it replaced."),
    metric(ROUTE_WEIGHT, Kind::Gauge, Unit::Count,
        "Share of the requests that name no variant; the shares sum to 1."),
    metric(RELOADS, Kind::Counter, Unit::Count, "Reloads by result."),
    metric(READY, Kind::Gauge, Unit::Count, "1 once the server takes requests, 0 while it loads or drains."),
    metric(CONNECTIONS, Kind::Gauge, Unit::Count, "Connections that are open."),
    metric(CONNECTIONS_CLOSED, Kind::Counter, Unit::Count,
        "Connections that ended or were refused, by reason; peer: by whoever connected, or in good order."),
    metric(CERTIFICATE_EXPIRES, Kind::Gauge, Unit::Seconds,
        "Until when the server's certificate holds, in seconds since 1970."),
    metric(RENEWALS, Kind::Counter, Unit::Count, "Certificates or tokens that were read again since their files had changed."),
    metric(CALLS_REFUSED, Kind::Counter, Unit::Count, "Calls that were not let in, by what was wrong with their credentials."),
    metric(TOKEN_REQUESTS, Kind::Counter, Unit::Count, "Requests for rewards by the name of their token and gRPC status."),
    metric(TOKEN_SAMPLES, Kind::Counter, Unit::Count, "Samples in requests that were answered, by the name of their token."),
    metric(TOKEN_REQUESTS_IN_FLIGHT, Kind::Gauge, Unit::Count, "Requests of a token that are in the server."),
    metric(TOKEN_TOKENS_IN_FLIGHT, Kind::Gauge, Unit::Count, "Tokens of text of a token's requests that are in the server."),
    metric(ADMIN_ACTIONS, Kind::Counter, Unit::Count, "What operators asked for, by result."),
    metric(EXPORTER_FAILURES, Kind::Counter, Unit::Count,
        "Exports over OTLP that failed, and traces that found no room in the queue."),
    metric(BUILD_INFO, Kind::Gauge, Unit::Count, "Always 1; the version is a label."),
    metric(PROCESS_START_TIME, Kind::Gauge, Unit::Seconds, "When the process started, in seconds since 1970."),
];

// ---- the closed sets of label values ----

/// gRPC status names by code.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A fieldless enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it stands in the label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }
    };
}

label! {
    /// An RPC of the reward service, or a path of HTTP: of several paths for the same the first.
    Method {
        /// One request, one answer.
        Score = "Score",
        /// One message of a stream and its answer.
        ScoreStream = "ScoreStream",
        /// What is served.
        GetServerInfo = "GetServerInfo",
        /// `Score` in JSON.
        HttpScore = "/rewarm/v1/score",
        /// OpenRLHF's.
        GetReward = "/get_reward",
        /// vLLM's and SGLang's.
        Classify = "/classify",
        /// vLLM's.
        Pooling = "/pooling",
        /// vLLM's, of pairs.
        PairScore = "/score",
        /// vLLM's and TEI's.
        Rerank = "/rerank",
        /// SGLang's.
        Embeddings = "/v1/embeddings",
        /// slime's.
        Rm = "/rm",
        /// LLaMA-Factory's.
        Evaluation = "/v1/score/evaluation",
        /// TEI's.
        Predict = "/predict",
        /// One request of the Open Inference Protocol, over gRPC or HTTP.
        ModelInfer = "ModelInfer",
        /// What is told without a reward over HTTP: health, models, documents.
        Page = "page",
        /// A path, or a method of one, that HTTP does not have here.
        Unknown = "unknown",
    }
}

impl Method {
    /// Whether a variant may have a part in it.
    fn has_variant(self) -> bool {
        !matches!(self, Self::GetServerInfo | Self::Page | Self::Unknown)
    }
}

label! {
    /// What became of a sample.
    Outcome {
        /// It has a reward.
        Scored = "scored",
        /// Its reward was NaN or infinite.
        NotFinite = "not_finite",
        /// The model failed on it.
        Failed = "failed",
        /// Its deadline passed while it waited.
        Expired = "expired",
        /// Its caller left while it waited.
        Withdrawn = "withdrawn",
        /// It could not be tokenized, or was too long: the model's queue never saw it.
        Invalid = "invalid",
    }
}

label! {
    /// Why a request was refused as a whole.
    Rejection {
        /// Malformed, or too many samples.
        InvalidArgument = "invalid_argument",
        /// It names a variant that does not exist.
        UnknownVariant = "unknown_variant",
        /// The expected fingerprint is another.
        FingerprintMismatch = "fingerprint_mismatch",
        /// More tokens than the queue can ever hold.
        TooLarge = "too_large",
        /// No room now.
        QueueFull = "queue_full",
        /// The estimated wait exceeds the time left.
        WouldExpire = "would_expire",
        /// The server has not loaded its models yet.
        Loading = "loading",
        /// The server stops.
        Draining = "draining",
        /// Its token has as much in flight as it may.
        TokenLimit = "token_limit",
        /// A card failed, and the process ends.
        DeviceLost = "device_lost",
    }
}

label! {
    /// What a port is for.
    Port {
        /// The reward service, over gRPC.
        Reward = "reward",
        /// The same over HTTP.
        Http = "http",
        /// The admin service.
        Admin = "admin",
        /// Metrics and health over HTTP.
        Metrics = "metrics",
        /// The page for people.
        Ui = "ui",
    }
}

label! {
    /// Why a connection ended.
    Closed {
        /// Its peer left, or both agreed.
        ByPeer = "peer",
        /// It did not begin in time.
        Silent = "silent",
        /// No byte moved for too long, on a port of HTTP/1.
        Idle = "idle",
        /// It did not answer when it was asked whether it lives, or read nothing of what it was sent.
        KeepAlive = "keepalive",
        /// It began with something else than the port speaks.
        OtherProtocol = "other_protocol",
        /// It began with TLS, which the port does not speak.
        Tls = "tls",
        /// It began without TLS, which the port asks for.
        WithoutTls = "without_tls",
        /// Its handshake of TLS failed.
        Handshake = "tls_handshake",
        /// It broke the rules of the protocol.
        ProtocolError = "protocol_error",
        /// It had not made a call yet when the port was full, and another came.
        Displaced = "displaced",
        /// The port was full: it was refused.
        Full = "full",
        /// Its peer had as many as one may have: it was refused.
        PeerFull = "peer_full",
        /// It was as old as a connection may become, and its calls were answered.
        Aged = "aged",
        /// The server stopped, and it did not go by itself.
        Drained = "drained",
        /// The server stopped at its limit, with calls of this connection unanswered or unread.
        DrainLimit = "drain_limit",
    }
}

label! {
    /// A part of a request's time.
    Stage {
        /// Rendering and tokenizing.
        Tokenize = "tokenize",
        /// Waiting for the device.
        Queue = "queue",
        /// Forwards of the batches that held its samples.
        Compute = "compute",
        /// Calibrating and reducing the members' rewards of these batches.
        Reduce = "reduce",
    }
}

label! {
    /// Why a call was not let in.
    Refused {
        /// It has no token, or no client certificate.
        Missing = "missing",
        /// Its token is not one of the server's.
        Unknown = "unknown",
        /// Its token lacks the permission.
        Forbidden = "forbidden",
    }
}

label! {
    /// What is read again when its files change.
    Renewed {
        /// Certificate, key, and who signs client certificates.
        Tls = "tls",
        /// The tokens.
        Tokens = "tokens",
    }
}

label! {
    /// What an operator may ask for.
    Action {
        /// Other models.
        Reload = "reload",
        /// Other weights.
        SetRouting = "set_routing",
        /// An orderly stop.
        Drain = "drain",
    }
}

label! {
    /// What is exported over OTLP.
    Signal {
        /// Spans of requests.
        Traces = "traces",
        /// These metrics.
        Metrics = "metrics",
    }
}

label! {
    /// What became of a sample that another variant was to score too.
    ShadowOutcome {
        /// It has two rewards.
        Scored = "scored",
        /// The device had something else to do.
        Dropped = "dropped",
        /// The other variant has no reward for it.
        Failed = "failed",
    }
}

label! {
    /// How a reload ended.
    Reload {
        /// The new variants serve.
        Succeeded = "success",
        /// The old ones serve on.
        Failed = "failure",
    }
}

// ---- install and render ----

/// Renders what was recorded.
#[derive(Clone, Debug)]
pub struct Exporter {
    handle: PrometheusHandle,
}

impl Exporter {
    /// All metrics in the Prometheus text format, by their names and labels: two pages of one state are one text.
    pub fn render(&self) -> String {
        drift::show();
        let mut text = self.handle.render();
        for metric in METRICS {
            if let Kind::RealCounter = metric.kind {
                let (gauge, counter) =
                    (format!("# TYPE {} gauge\n", metric.name), format!("# TYPE {} counter\n", metric.name));
                text = text.replace(&gauge, &counter);
            }
        }
        in_order(&text)
    }

    /// Folds what histograms have collected into their buckets. Call it every few seconds: until somebody does,
    /// or renders, each observation stays in memory.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Makes this process record, describes every metric, and shows those that need no variant. Later calls return
/// the same exporter. What was recorded before the first call is lost, and so is what goes through a
/// [`VariantMetrics`] that was made before it.
pub fn install() -> Exporter {
    static EXPORTER: OnceLock<Exporter> = OnceLock::new();
    EXPORTER
        .get_or_init(|| {
            let mut builder = PrometheusBuilder::new();
            for metric in METRICS {
                if let Kind::Histogram(buckets) = metric.kind {
                    builder = builder
                        .set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)
                        .expect("every list of buckets in the table has elements");
                }
            }
            let recorder = builder.build_recorder();
            let exporter = Exporter { handle: recorder.handle() };
            if ::metrics::set_global_recorder(recorder).is_err() {
                // only a program that embeds this library can have been first
                tracing::warn!("another metrics recorder is installed: the metrics of rewarm go there");
            }
            describe();
            register_process();
            exporter
        })
        .clone()
}

fn describe() {
    for &Metric { name, ref kind, unit, help } in METRICS {
        match kind {
            Kind::Counter => describe_counter!(name, unit, help),
            Kind::RealCounter | Kind::Gauge => describe_gauge!(name, unit, help),
            Kind::Histogram(_) => describe_histogram!(name, unit, help),
        }
    }
}

fn register_process() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!(PROCESS_START_TIME).set(now.as_secs_f64());
    gauge!(READY).set(0.0);
    for reason in Rejection::ALL {
        counter!(REJECTIONS, "reason" => reason.as_str()).increment(0);
    }
    for result in Reload::ALL {
        counter!(RELOADS, "result" => result.as_str()).increment(0);
    }
    for action in Action::ALL {
        for result in Reload::ALL {
            counter!(ADMIN_ACTIONS, "action" => action.as_str(), "result" => result.as_str()).increment(0);
        }
    }
    for what in Renewed::ALL {
        for result in Reload::ALL {
            counter!(RENEWALS, "what" => what.as_str(), "result" => result.as_str()).increment(0);
        }
    }
    for signal in Signal::ALL {
        counter!(EXPORTER_FAILURES, "signal" => signal.as_str()).increment(0);
    }
    for port in Port::ALL {
        for reason in Refused::ALL {
            counter!(CALLS_REFUSED, "port" => port.as_str(), "reason" => reason.as_str()).increment(0);
        }
        connections(*port).set(0.0);
        for reason in Closed::ALL {
            connections_closed(*port, *reason).increment(0);
        }
    }
    register_requests("");
}

fn register_requests(variant: &str) {
    for method in Method::ALL.iter().filter(|method| variant.is_empty() || method.has_variant()) {
        for code in CODES {
            requests(*method, code, variant).increment(0);
        }
        let _ = request_duration(*method, variant);
    }
}

/// Shows every series of a variant at zero: call it before the variant takes requests.
pub fn register_variant(variant: &str, num_members: usize) {
    register_requests(variant);
    let _ = histogram!(REQUEST_SAMPLES, "variant" => variant.to_owned());
    let _ = stage_duration(variant, Stage::Tokenize);
    samples(variant, Outcome::Invalid).increment(0);
    counter!(TRUNCATED_SAMPLES, "variant" => variant.to_owned()).increment(0);
    counter!(DOUBLE_BOS, "variant" => variant.to_owned()).increment(0);
    gauge!(ROUTE_WEIGHT, "variant" => variant.to_owned()).increment(0.0);
    let _ = VariantMetrics::new(variant, num_members);
}

// ---- what happens to requests ----

/// A request was answered, with the gRPC status `code`. `variant` is empty when none was chosen; what a caller
/// sent never becomes a label.
pub fn request_finished(method: Method, code: i32, variant: &str, elapsed: Duration) {
    requests(method, code_name(code), variant).increment(1);
    request_duration(method, variant).record(elapsed);
    if variant.is_empty() {
        return;
    }
    let counters = totals::of(variant);
    if code == 0 {
        counters.add(Count::Answered, 1);
        counters.add_time(Count::AnsweredNs, elapsed);
        counters.answered_now();
    } else {
        counters.add(Count::Failed, 1);
        counters.add_time(Count::FailedNs, elapsed);
    }
}

/// The name of a gRPC status.
pub fn code_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| CODES.get(code)).copied().unwrap_or(CODES[2])
}

/// A request for `variant` came with so many samples.
pub fn request_received(variant: &str, samples: usize) {
    histogram!(REQUEST_SAMPLES, "variant" => variant.to_owned()).record(samples as f64);
}

/// A request was refused as a whole. The engine counts what it refuses itself.
pub fn request_rejected(reason: Rejection) {
    counter!(REJECTIONS, "reason" => reason.as_str()).increment(1);
}

/// All samples of a request were rendered and tokenized.
pub fn request_tokenized(variant: &str, elapsed: Duration) {
    stage_duration(variant, Stage::Tokenize).record(elapsed);
    totals::of(variant).add_time(Count::TokenizeNs, elapsed);
}

/// So many samples of a request could not become token ids.
pub fn samples_invalid(variant: &str, count: usize) {
    samples(variant, Outcome::Invalid).increment(count as u64);
}

/// So many samples of a request lost tokens to fit.
pub fn samples_truncated(variant: &str, count: usize) {
    counter!(TRUNCATED_SAMPLES, "variant" => variant.to_owned()).increment(count as u64);
}

/// So many samples of a request start with two beginning-of-sequence tokens.
pub fn double_bos_seen(variant: &str, count: usize) {
    counter!(DOUBLE_BOS, "variant" => variant.to_owned()).increment(count as u64);
}

fn requests(method: Method, code: &'static str, variant: &str) -> Counter {
    counter!(REQUESTS, "method" => method.as_str(), "code" => code, "variant" => variant.to_owned())
}

fn request_duration(method: Method, variant: &str) -> Histogram {
    histogram!(REQUEST_DURATION, "method" => method.as_str(), "variant" => variant.to_owned())
}

fn stage_duration(variant: &str, stage: Stage) -> Histogram {
    histogram!(STAGE_DURATION, "stage" => stage.as_str(), "variant" => variant.to_owned())
}

fn samples(variant: &str, outcome: Outcome) -> Counter {
    counter!(SAMPLES, "variant" => variant.to_owned(), "outcome" => outcome.as_str())
}

// ---- what happens to the server ----

/// What `rewarm_model_info` tells of a variant that serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// As configured.
    pub variant: String,
    /// "warm" or "ens".
    pub mode: String,
    /// How many models it was made from.
    pub num_members: usize,
    /// "f32", "f16" or "bf16".
    pub dtype: String,
    /// For example "cpu" or "cuda:0".
    pub device: String,
    /// Of everything that determines a reward.
    pub fingerprint: String,
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
}

/// What is known of a device's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// "cpu" or "cuda:N".
    pub device: String,
    /// All of it.
    pub total: Option<u64>,
    /// What is left.
    pub left: Option<u64>,
}

/// The devices that serve, once all models are there.
pub fn device_memory(devices: &[DeviceMemory]) {
    for DeviceMemory { device, total, left } in devices {
        if let Some(total) = total {
            gauge!(DEVICE_MEMORY, "device" => device.clone()).set(*total as f64);
        }
        if let Some(left) = left {
            gauge!(DEVICE_MEMORY_LEFT, "device" => device.clone()).set(*left as f64);
        }
    }
}

/// These variants, and no others, serve from now on.
pub fn models_served(models: &[ModelInfo]) {
    static SHOWN: Mutex<Vec<ModelInfo>> = Mutex::new(Vec::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for replaced in shown.iter() {
        model_info(replaced).set(0.0);
    }
    for model in models {
        model_info(model).set(1.0);
    }
    *shown = models.to_vec();
}

fn model_info(model: &ModelInfo) -> Gauge {
    gauge!(
        MODEL_INFO,
        "variant" => model.variant.clone(),
        "mode" => model.mode.clone(),
        "members" => model.num_members.to_string(),
        "dtype" => model.dtype.clone(),
        "device" => model.device.clone(),
        "fingerprint" => model.fingerprint.clone(),
        "architecture" => model.architecture.clone()
    )
}

/// Requests without a variant are spread like this from now on; what is not named gets none.
pub fn routing_changed(weights: &BTreeMap<String, f64>) {
    static SHOWN: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for variant in shown.keys() {
        gauge!(ROUTE_WEIGHT, "variant" => variant.clone()).set(0.0);
    }
    let sum: f64 = weights.values().sum();
    for (variant, weight) in weights {
        gauge!(ROUTE_WEIGHT, "variant" => variant.clone()).set(weight / sum);
    }
    shown.clone_from(weights);
}

/// The server takes requests, or does not any more.
pub fn readiness_changed(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

/// A connection was accepted and found a place.
pub fn connection_opened(port: Port) {
    connections(port).increment(1.0);
}

/// A connection ended that had a place.
pub fn connection_left(port: Port) {
    connections(port).decrement(1.0);
}

/// A connection ended or was refused, for this reason.
pub fn connection_closed(port: Port, reason: Closed) {
    connections_closed(port, reason).increment(1);
}

fn connections(port: Port) -> Gauge {
    gauge!(CONNECTIONS, "port" => port.as_str())
}

fn connections_closed(port: Port, reason: Closed) -> Counter {
    counter!(CONNECTIONS_CLOSED, "port" => port.as_str(), "reason" => reason.as_str())
}

/// The server's certificate holds until so long after 1970.
pub fn certificate_expires(end: Duration) {
    gauge!(CERTIFICATE_EXPIRES).set(end.as_secs_f64());
}

/// Files had changed and were read again, and can be used or not.
pub fn renewed(what: Renewed, is_good: bool) {
    counter!(RENEWALS, "what" => what.as_str(), "result" => result(is_good)).increment(1);
}

/// A call was not let in.
pub fn call_refused(port: Port, reason: Refused) {
    counter!(CALLS_REFUSED, "port" => port.as_str(), "reason" => reason.as_str()).increment(1);
}

/// Shows the series of a token at zero; `name` is from a file with few names.
pub fn register_token(name: &str) {
    for code in CODES {
        counter!(TOKEN_REQUESTS, "token" => name.to_owned(), "code" => code).increment(0);
    }
    counter!(TOKEN_SAMPLES, "token" => name.to_owned()).increment(0);
    gauge!(TOKEN_REQUESTS_IN_FLIGHT, "token" => name.to_owned()).increment(0.0);
    gauge!(TOKEN_TOKENS_IN_FLIGHT, "token" => name.to_owned()).increment(0.0);
}

/// A request of a token ended, with the gRPC status `code`, and rewards for so many samples.
pub fn token_request_finished(name: &str, code: i32, samples: usize) {
    counter!(TOKEN_REQUESTS, "token" => name.to_owned(), "code" => code_name(code)).increment(1);
    counter!(TOKEN_SAMPLES, "token" => name.to_owned()).increment(samples as u64);
}

/// What a token's requests hold now.
pub fn token_holds(name: &str, requests: usize, tokens: usize) {
    gauge!(TOKEN_REQUESTS_IN_FLIGHT, "token" => name.to_owned()).set(requests as f64);
    gauge!(TOKEN_TOKENS_IN_FLIGHT, "token" => name.to_owned()).set(tokens as f64);
}

/// An operator asked for something, and it was done or not.
pub fn admin_acted(action: Action, is_done: bool) {
    counter!(ADMIN_ACTIONS, "action" => action.as_str(), "result" => result(is_done)).increment(1);
}

fn result(is_good: bool) -> &'static str {
    if is_good { Reload::Succeeded.as_str() } else { Reload::Failed.as_str() }
}

/// Something did not reach the collector, or found no room on its way there.
pub fn export_failed(signal: Signal) {
    counter!(EXPORTER_FAILURES, "signal" => signal.as_str()).increment(1);
}

/// A reload ended.
pub fn reload_finished(result: Reload) {
    counter!(RELOADS, "result" => result.as_str()).increment(1);
}

// ---- what happens to samples in the engine ----

/// The series of one variant that are recorded for each batch and sample: looked up once, then only counted.
///
/// Two lanes may bear one variant's name while one replaces the other. They share the series, so gauges here
/// rise and fall by what enters and leaves, and are never set.
#[derive(Clone, Debug)]
pub struct VariantMetrics {
    queue_samples: Gauge,
    queue_tokens: Gauge,
    queue_seconds: Histogram,
    compute_seconds: Histogram,
    reduce_seconds: Histogram,
    scored: Counter,
    not_finite: Counter,
    failed: Counter,
    expired: Counter,
    withdrawn: Counter,
    non_finite: Counter,
    batch_samples: Histogram,
    batch_tokens: Histogram,
    shared_prefix_tokens: Counter,
    member_seconds: Vec<Gauge>,
    reward: Histogram,
    reward_std: Histogram,
    reward_positive_sum: Gauge,
    reward_negative_sum: Gauge,
    totals: Arc<Counters>,
}

impl VariantMetrics {
    /// Looks up the series of a variant, which shows them at zero.
    pub fn new(variant: &str, num_members: usize) -> Self {
        let member_seconds = |member: usize| gauge!(DEVICE_SECONDS, "variant" => variant.to_owned(), "member" => member.to_string());
        Self {
            queue_samples: gauge!(QUEUE_SAMPLES, "variant" => variant.to_owned()),
            queue_tokens: gauge!(QUEUE_TOKENS, "variant" => variant.to_owned()),
            queue_seconds: stage_duration(variant, Stage::Queue),
            compute_seconds: stage_duration(variant, Stage::Compute),
            reduce_seconds: stage_duration(variant, Stage::Reduce),
            scored: samples(variant, Outcome::Scored),
            not_finite: samples(variant, Outcome::NotFinite),
            failed: samples(variant, Outcome::Failed),
            expired: samples(variant, Outcome::Expired),
            withdrawn: samples(variant, Outcome::Withdrawn),
            non_finite: counter!(NON_FINITE, "variant" => variant.to_owned()),
            batch_samples: histogram!(BATCH_SAMPLES, "variant" => variant.to_owned()),
            batch_tokens: histogram!(BATCH_TOKENS, "variant" => variant.to_owned()),
            shared_prefix_tokens: counter!(SHARED_PREFIX_TOKENS, "variant" => variant.to_owned()),
            member_seconds: (0..num_members).map(member_seconds).collect(),
            reward: histogram!(REWARD, "variant" => variant.to_owned()),
            reward_std: histogram!(REWARD_STD, "variant" => variant.to_owned()),
            reward_positive_sum: gauge!(REWARD_POSITIVE_SUM, "variant" => variant.to_owned()),
            reward_negative_sum: gauge!(REWARD_NEGATIVE_SUM, "variant" => variant.to_owned()),
            totals: totals::of(variant),
        }
    }

    /// Counts nothing, and shows nothing.
    pub fn muted() -> Self {
        let muted = ::metrics::with_local_recorder(&::metrics::NoopRecorder, || Self::new("", 0));
        Self { totals: Arc::default(), ..muted }
    }

    /// Counts the device's seconds, and nothing else.
    pub fn of_device_only(&self) -> Self {
        Self { member_seconds: self.member_seconds.clone(), ..Self::muted() }
    }

    /// Samples were admitted to the queue.
    pub fn queue_entered(&self, samples: usize, tokens: usize) {
        self.queue_samples.increment(samples as f64);
        self.queue_tokens.increment(tokens as f64);
    }

    /// Samples left the queue, for the device or for good.
    pub fn queue_left(&self, samples: usize, tokens: usize) {
        self.queue_samples.decrement(samples as f64);
        self.queue_tokens.decrement(tokens as f64);
    }

    /// The deadline of so many samples passed while they waited.
    pub fn samples_expired(&self, count: usize) {
        self.expired.increment(count as u64);
    }

    /// The caller of so many samples left while they waited.
    pub fn samples_withdrawn(&self, count: usize) {
        self.withdrawn.increment(count as u64);
    }

    /// One member's forward ended, well or not.
    pub fn member_ran(&self, member: usize, elapsed: Duration) {
        if let Some(seconds) = self.member_seconds.get(member) {
            seconds.increment(elapsed);
        }
    }

    /// A batch went through the model.
    pub fn batch_scored(&self, samples: usize, tokens: usize) {
        self.batch_samples.record(samples as f64);
        self.batch_tokens.record(tokens as f64);
        self.totals.add(Count::Batches, 1);
    }

    /// So many tokens of a batch were not computed, since others begin with them too.
    pub fn prefix_tokens_shared(&self, tokens: usize) {
        self.shared_prefix_tokens.increment(tokens as u64);
    }

    /// A sample has a reward.
    pub fn sample_scored(&self, reward: f32, reward_std: Option<f32>) {
        self.scored.increment(1);
        self.totals.add(Count::Samples, 1);
        self.reward.record(reward);
        if reward > 0.0 {
            self.reward_positive_sum.increment(reward);
        } else {
            self.reward_negative_sum.increment(-reward);
        }
        if let Some(reward_std) = reward_std {
            self.reward_std.record(reward_std);
        }
    }

    /// The reward of a sample, or of one of its members, was NaN or infinite.
    pub fn sample_not_finite(&self) {
        self.not_finite.increment(1);
        self.non_finite.increment(1);
    }

    /// So many samples have no reward, by no fault of theirs.
    pub fn samples_failed(&self, count: usize) {
        self.failed.increment(count as u64);
    }

    /// All samples of a request went through the model.
    pub fn request_scored(&self, queue: Duration, compute: Duration, reduce: Duration) {
        self.queue_seconds.record(queue);
        self.compute_seconds.record(compute);
        self.reduce_seconds.record(reduce);
        self.totals.add(Count::Scored, 1);
        self.totals.add_time(Count::QueueNs, queue);
        self.totals.add_time(Count::ComputeNs, compute);
        self.totals.add_time(Count::ReduceNs, reduce);
    }
}

/// A page in the text format with metrics and their series in order; of a histogram, its lines stay as they are.
fn in_order(page: &str) -> String {
    let mut metrics: Vec<Vec<&str>> = page
        .split("\n\n")
        .map(|metric| metric.lines().filter(|line| !line.is_empty()).collect())
        .filter(|lines: &Vec<&str>| !lines.is_empty())
        .collect();
    // "# HELP name ...", or "# TYPE name ..." where there is no help
    metrics.sort_by_key(|lines| lines[0].split(' ').nth(2));
    let mut text = String::with_capacity(page.len());
    for mut lines in metrics {
        let comments = lines.iter().take_while(|line| line.starts_with('#')).count();
        lines[comments..].sort_by_key(|line| series(line)); // stable: buckets stay in order
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// The labels of a line that its series has, so without the bound of a bucket.
fn series(line: &str) -> &str {
    let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
    let labels = labels.map_or("", |(labels, _)| labels);
    match labels.rfind("le=\"") {
        Some(bound) if labels[..bound].is_empty() || labels[..bound].ends_with(',') => {
            labels[..bound].trim_end_matches(',')
        }
        _ => labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_order_of_names_and_labels() {
        let series = |variant: &str| {
            let bucket = |le: &str| format!("b_bucket{{variant=\"{variant}\",le=\"{le}\"}} 1\n");
            ["0.5", "1", "10", "+Inf"].map(bucket).concat()
                + &format!("b_sum{{variant=\"{variant}\"}} 2\nb_count{{variant=\"{variant}\"}} 1\n")
        };
        let (first, second) = (series("a"), series("b"));
        let b = |one: &str, other: &str| format!("# HELP b B.\n# TYPE b histogram\n{one}{other}\n");
        let a = |lines: &str| format!("# TYPE a counter\n{lines}\n");
        let expected = a("a 0\na{code=\"1\"} 3\na{code=\"2\",role=\"x\"} 4\n") + &b(&first, &second);
        let mixed = b(&second, &first) + &a("a{code=\"2\",role=\"x\"} 4\na 0\na{code=\"1\"} 3\n");
        assert_eq!(in_order(&mixed), expected);
        assert_eq!(in_order(&expected), expected);
    }
}
