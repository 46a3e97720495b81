//! The protocol over HTTP, with the extension for tensors in binary.
//!
//! ```text
//! POST /v2/models/M[/versions/V]/infer
//!   JSON of `Inference-Header-Content-Length` bytes (all, where it is not said) │ raw tensors, as `binary_data_size` says
//! ```
//!
//! A binary answer is laid out in the same way. Options in headers and query parameters hold as on all paths of the HTTP
//! door; what `parameters` say goes before them.

use std::collections::BTreeMap;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Request;
use axum::routing::MethodFilter;
use axum::routing::on;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::ACCEPT_ENCODING;
use http::header::CONTENT_ENCODING;
use http::header::VARY;
use http::request::Parts;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;
use tracing::Instrument;

use crate::engine::Priority;
use crate::metrics::Method;
use crate::proto::inference::DataType;
use crate::proto::inference::ModelConfig;
use crate::service::aside::aside;
use crate::service::budget::Room;
use crate::service::call;
use crate::service::http::answer;
use crate::service::http::answer::Signature;
use crate::service::http::body;
use crate::service::http::options::Asked;
use crate::service::http::table::Elsewhere;
use crate::service::oip::ROUTED;
use crate::service::oip::VERSION;
use crate::service::oip::about;
use crate::service::oip::infer;
use crate::service::oip::infer::Answer;
use crate::service::oip::infer::Form;
use crate::service::oip::infer::Infer;
use crate::service::oip::json::JsonInput;
use crate::service::oip::json::JsonRequest;
use crate::service::oip::parameters::Parameter;
use crate::service::oip::parameters::refuse;
use crate::service::oip::tensors::Elements;
use crate::service::oip::tensors::Tensor;
use crate::service::oip::tensors::quoted;
use crate::service::origin::Origin;
use crate::service::request::Violations;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::text::Truncation;

/// Of the JSON before raw tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// A smaller answer is not compressed: it would become larger, or nearly so.
const MIN_COMPRESSED_BYTES: usize = 1024;

/// What `{..}` stands for in a path.
type Known = BTreeMap<String, String>;

/// One path, told and answered.
struct Route {
    told: Elsewhere,
    handle: Handle,
}

enum Handle {
    /// At once, without a body.
    Page(fn(&State, &Known) -> Page),
    /// With what its body says.
    Body(fn(Arc<State>, Known, Request) -> Answering),
}

type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// A page, and what the metrics call its outcome.
struct Page(Code, Response<Body>);

const OF_MODEL: &[&str] = &["/v2/models/{model}", "/v2/models/{model}/versions/{version}"];
const CONFIG: &[&str] = &["/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"];
const STATISTICS: &[&str] =
    &["/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats", "/v2/models/stats"];
const READY: &[&str] = &["/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"];
const INFER: &[&str] = &["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"];
const LOAD: &[&str] = &["/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"];

const SERVER: &str = r#"{"name": "rewarm", "version": "0.1.0", "extensions": ["statistics"]}"#;
const METADATA: &str = r#"{"name": "warm", "versions": ["1"], "platform": "rewarm", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}], "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}]}"#;
const CONFIGURATION: &str = r#"{"name": "warm", "platform": "rewarm", "backend": "rewarm", "max_batch_size": 1024, "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1], "optional": true}], "output": [{"name": "rewards", "data_type": "TYPE_FP32", "dims": [1]}], "dynamic_batching": {"priority_levels": 3, "default_priority_level": 2}, "parameters": {"mode": {"string_value": ".."}, "members": {"string_value": ".."}, "reduction": {"string_value": ".."}, "dtype": {"string_value": ".."}, "device": {"string_value": ".."}, "max_tokens": {"string_value": ".."}, "fingerprint": {"string_value": ".."}, "architecture": {"string_value": ".."}, "pooling": {"string_value": ".."}, "text_rule": {"string_value": ".."}}}"#;
const COUNTED: &str = r#"{"model_stats": [{"name": "warm", "version": "1", "last_inference": 1, "inference_count": 1, "execution_count": 1, "inference_stats": {"success": {"count": 1, "ns": 1000}, "fail": {"count": 1, "ns": 1000}, "queue": {"count": 1, "ns": 1000}, "compute_input": {"count": 1, "ns": 1000}, "compute_infer": {"count": 1, "ns": 1000}, "compute_output": {"count": 1, "ns": 1000}}}]}"#;

/// All paths below `/v2` that are the protocol's.
const ROUTES: &[Route] = &[
    page(&["/v2"], "The server, as the Open Inference Protocol tells it", SERVER, |_, _| {
        told(Ok(json!(about::server())))
    }),
    page(&["/v2/health/live"], "Whether the process lives", r#"{"live": true}"#, |_, _| health("live", true)),
    page(
        &["/v2/health/ready"],
        "Whether callers should come: 200, or 503",
        r#"{"ready": true}"#,
        |state, _| health("ready", state.is_ready()),
    ),
    page(OF_MODEL, "A model: its inputs and outputs", METADATA, |state, known| told(metadata(state, known))),
    page(CONFIG, "A model, as Triton's clients ask for it", CONFIGURATION, |state, known| {
        told(config(state, known))
    }),
    page(STATISTICS, "What was counted and how long it took, as Triton tells it", COUNTED, |state, known| {
        told(statistics(state, known))
    }),
    page(READY, "Whether a model serves: 200, or 503", r#"{"name": "warm", "ready": true}"#, is_ready),
    Route {
        told: Elsewhere {
            verb: "POST",
            paths: INFER,
            what: "Rewards for tensors, as Triton and KServe answer; with the binary extension",
            request: Some(
                r#"{"id": "1", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["I won the lottery.", "I broke my leg."]}]}"#,
            ),
            answer: Some(
                r#"{"model_name": "warm", "model_version": "1", "id": "1", "parameters": {"variant": "warm", "fingerprint": ".."}, "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [2, 1], "data": [1.25, -0.5]}]}"#,
            ),
        },
        handle: Handle::Body(|state, known, request| Box::pin(infer(state, known, request))),
    },
    Route {
        told: Elsewhere {
            verb: "POST",
            paths: &["/v2/repository/index"],
            what: "The models, as Triton's clients ask for them",
            request: Some(r#"{"ready": true}"#),
            answer: Some(r#"[{"name": "warm", "version": "1", "state": "READY", "reason": ""}]"#),
        },
        handle: Handle::Body(|state, _, request| Box::pin(async move { index(&state, request).await })),
    },
    Route {
        told: Elsewhere {
            verb: "POST",
            paths: LOAD,
            what: "Refused: models are what the server's configuration says",
            request: None,
            answer: None,
        },
        handle: Handle::Page(|_, _| told(Err(ServiceError::field("model", NOT_LOADED)))),
    },
];

const fn page(
    paths: &'static [&'static str],
    what: &'static str,
    answer: &'static str,
    page: fn(&State, &Known) -> Page,
) -> Route {
    let told = Elsewhere { verb: "GET", paths, what, request: None, answer: Some(answer) };
    Route { told, handle: Handle::Page(page) }
}

/// What the documentation of the HTTP door says of them.
pub(in crate::service) fn described() -> Vec<&'static Elsewhere> {
    ROUTES.iter().map(|route| &route.told).collect()
}

/// All of them.
pub(in crate::service) fn routes(state: &Arc<State>) -> Router {
    let mut router = Router::new();
    for Route { told, handle } in ROUTES {
        let verb = if told.verb == "GET" { MethodFilter::GET } else { MethodFilter::POST };
        for path in told.paths {
            let state = state.clone();
            let handler = move |Path(known): Path<Known>, request: Request| async move {
                match handle {
                    Handle::Page(page) => {
                        let begun = Instant::now();
                        let Page(code, response) = page(&state, &known);
                        answer::counted(Method::Page, code, begun, response)
                    }
                    Handle::Body(answer) => answer(state, known, request).await,
                }
            };
            router = router.route(path, on(verb, handler));
        }
    }
    router.method_not_allowed_fallback(async || {
        let begun = Instant::now();
        let problem = json!({"error": "this path is for another method", "code": "UNIMPLEMENTED"});
        let response = answer::json(StatusCode::METHOD_NOT_ALLOWED, &problem);
        answer::counted(Method::Unknown, Code::Unimplemented, begun, response)
    })
}

const NOT_LOADED: &str =
    "is what the server's configuration says: change it, and send SIGHUP or AdminService.Reload";

fn part<'a>(known: &'a Known, name: &str) -> &'a str {
    known.get(name).map_or("", String::as_str)
}

/// Model and version.
fn named(known: &Known) -> (&str, &str) {
    (part(known, "model"), part(known, "version"))
}

fn told(result: Result<Value, ServiceError>) -> Page {
    match result {
        Ok(value) => Page(Code::Ok, answer::json(StatusCode::OK, &value)),
        Err(error) => Page(error.code(), answer::failed(&error)),
    }
}

fn unavailable(value: &Value) -> Page {
    Page(Code::Unavailable, answer::json(StatusCode::SERVICE_UNAVAILABLE, value))
}

/// The status decides for Triton's clients, the body for KServe's.
fn health(name: &str, is_so: bool) -> Page {
    match is_so {
        true => told(Ok(json!({ name: true }))),
        false => unavailable(&json!({ name: false, "error": "no models serve" })),
    }
}

fn is_ready(state: &State, known: &Known) -> Page {
    let (name, version) = named(known);
    match about::is_ready(state, name, version) {
        Ok(true) => told(Ok(json!({"name": name, "ready": true}))),
        Ok(false) => unavailable(
            &json!({"name": name, "ready": false, "error": "the model's forwards fail, or the server stops"}),
        ),
        Err(error) => told(Err(error)),
    }
}

fn metadata(state: &State, known: &Known) -> Result<Value, ServiceError> {
    let (name, version) = named(known);
    let serving = state.serving()?;
    Ok(json!(about::metadata(&serving, name, version)?))
}

fn statistics(state: &State, known: &Known) -> Result<Value, ServiceError> {
    let (name, version) = named(known);
    let serving = state.serving()?;
    Ok(json!(about::statistics(&serving, name, version)?))
}

fn config(state: &State, known: &Known) -> Result<Value, ServiceError> {
    let (name, version) = named(known);
    let serving = state.serving()?;
    let ModelConfig {
        name,
        platform,
        max_batch_size,
        input,
        output,
        scheduling_choice: _,
        parameters,
        backend,
    } = about::config(&serving, state.limits.max_samples_per_request, name, version)?;
    let datatype = |number| DataType::try_from(number).unwrap_or_default().as_str_name();
    let input = input.iter().map(|input| {
        json!({
            "name": input.name,
            "data_type": datatype(input.data_type),
            "dims": input.dims,
            "optional": input.optional,
        })
    });
    let output = output.iter().map(
        |output| json!({"name": output.name, "data_type": datatype(output.data_type), "dims": output.dims}),
    );
    let parameters: BTreeMap<_, _> =
        parameters.iter().map(|(name, value)| (name, json!({"string_value": value.string_value}))).collect();
    Ok(json!({
        "name": name,
        "platform": platform,
        "backend": backend,
        "max_batch_size": max_batch_size,
        "input": input.collect::<Vec<_>>(),
        "output": output.collect::<Vec<_>>(),
        "dynamic_batching": {"priority_levels": 3, "default_priority_level": 2},
        "parameters": parameters,
    }))
}

async fn index(state: &State, request: Request) -> Response<Body> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Wanted {
        ready: bool,
    }
    let (head, body) = request.into_parts();
    let wanted = async {
        let (bytes, _room) = body::read(state, &head, body).await?;
        if bytes.is_empty() {
            return Ok(Wanted::default());
        }
        let wanted = serde_json::from_slice(&bytes);
        wanted.map_err(|error| ServiceError::field("body", error.to_string()))
    };
    let begun = Instant::now();
    let Page(code, response) =
        told(wanted.await.map(|Wanted { ready }| json!(about::index(state, ready).models)));
    answer::counted(Method::Page, code, begun, response)
}

// ---- /infer ----

async fn infer(state: Arc<State>, known: Known, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let span = call::span(Method::ModelInfer.as_str(), &head.headers);
    let origin = Origin::new(&head.headers, &head.extensions);
    let options = Asked::read(&head);
    let deadline = options.as_ref().ok().and_then(|options| options.deadline);
    let accepts_gzip = accepts_gzip(&head.headers);
    let answer = |state: Arc<State>| async move {
        let read = crate::service::score::before(deadline, read(&state, options, &known, &head, body)).await;
        answered(&state, read, deadline, origin).await
    };
    match state.run(answer).instrument(span).await {
        Ok(written) => respond(written, accepts_gzip),
        Err(error) => answer::failed(&error),
    }
}

async fn read(
    state: &State,
    options: Result<Asked, ServiceError>,
    known: &Known,
    head: &Parts,
    body: Body,
) -> Result<(Rest, Room), ServiceError> {
    let options = options.and_then(|options| {
        // Who cannot be served need not be listened to.
        state.serving()?;
        body::check_type(&head.headers, "application/json or application/octet-stream", |essence| {
            ["application/json", "application/octet-stream"].contains(&essence)
        })?;
        Ok((options, header_length(&head.headers)?))
    });
    let ((options, length), bytes, mut room) = body::read_if(options, state, head, body).await?;
    let length = length.unwrap_or(bytes.len());
    if length > bytes.len() {
        let problem = format!("is {length}, and the body has {} bytes", bytes.len());
        return Err(ServiceError::field("Inference-Header-Content-Length", problem));
    }
    room.grow_by(JsonRequest::memory(&bytes[..length]))?;
    let (name, version) = (part(known, "model").to_owned(), part(known, "version").to_owned());
    let parse = move || {
        let request = JsonRequest::read(&bytes[..length])?;
        Ok(Rest { name, version, options, request, tail: Bytes::from(bytes).split_off(length) })
    };
    Ok((aside(length, parse).await?, room))
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, ServiceError> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|value| value.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        let shown = quoted(&String::from_utf8_lossy(value.as_bytes()));
        ServiceError::field("Inference-Header-Content-Length", format!("is {shown}, and no number of bytes"))
    })
}

/// A request over HTTP.
struct Rest {
    name: String,
    version: String,
    options: Asked,
    request: JsonRequest,
    /// Raw tensors.
    tail: Bytes,
}

impl Form for Rest {
    fn bytes(&self) -> usize {
        let elements =
            |input: &JsonInput| input.shape.iter().fold(0_i64, |sum, size| sum.saturating_add(*size));
        let rows = self.request.inputs.0.iter().map(elements).fold(0, i64::saturating_add);
        self.tail.len().saturating_add(usize::try_from(rows).unwrap_or(0))
    }

    fn infer(&self) -> Result<Infer<'_>, ServiceError> {
        let Self { request, options, .. } = self;
        let mut violations = Violations::default();
        let mut inputs = Vec::with_capacity(request.inputs.0.len());
        let mut tail = &self.tail[..];
        for input in &request.inputs.0 {
            match elements(input, &mut tail) {
                Ok(elements) => inputs.push(Tensor {
                    name: &input.name,
                    datatype: &input.datatype,
                    shape: &input.shape,
                    elements,
                }),
                Err(problem) => violations.add(&input.name, problem),
            }
        }
        let of_outputs = request.outputs.0.iter().map(|output| (&output.name, &output.parameters));
        let of_inputs = request.inputs.0.iter().map(|input| (&input.name, &input.parameters));
        for (name, parameters) in of_inputs.chain(of_outputs) {
            refuse(name, |parameter| parameters.get(parameter).is_some(), &mut violations);
        }
        violations.none()?;
        if !tail.is_empty() {
            let problem = format!("has {} bytes behind the last of its tensors", tail.len());
            return Err(ServiceError::field("body", problem));
        }
        let is_named = self.name == ROUTED && !options.variant.is_empty();
        let mut parameters = of_options(options);
        parameters.extend(request.parameters.iter());
        Ok(Infer {
            model: if is_named { &options.variant } else { &self.name },
            version: &self.version,
            id: &request.id,
            parameters,
            inputs,
            outputs: request.outputs.0.iter().map(|output| output.name.as_str()).collect(),
        })
    }
}

/// Options as the parameters that they are.
fn of_options(options: &Asked) -> Vec<(&'static str, Parameter<'_>)> {
    let mut parameters: Vec<(&'static str, Parameter<'_>)> = [
        ("request_id", &options.request_id),
        ("routing_key", &options.routing_key),
        ("expected_fingerprint", &options.expected_fingerprint),
    ]
    .into_iter()
    .filter(|(_, text)| !text.is_empty())
    .map(|(name, text)| (name, Parameter::Text(text)))
    .collect();
    if let Some(priority) = options.priority {
        let number = match priority {
            Priority::Interactive => 1,
            Priority::Normal => 2,
            Priority::Background | Priority::Shadow => 3,
        };
        parameters.push(("priority", Parameter::Integer(number)));
    }
    if let Some(truncation) = options.truncation {
        let name = match truncation {
            Truncation::Reject => "reject",
            Truncation::Left => "left",
            Truncation::Right => "right",
        };
        parameters.push(("truncation", Parameter::Text(name)));
    }
    parameters
}

/// Where a tensor's elements are: in JSON, or the next bytes of `tail`.
fn elements<'a>(input: &'a JsonInput, tail: &mut &'a [u8]) -> Result<Elements<'a>, String> {
    let size = match input.parameters.get("binary_data_size") {
        None => return Ok(input.data.as_ref().map_or(Elements::Raw(&[]), |data| data.elements())),
        Some(Parameter::Integer(size)) => usize::try_from(size).ok(),
        Some(_) => None,
    };
    let size = size.ok_or("has a binary_data_size that is no number of bytes")?;
    if input.data.is_some() {
        return Err("has data, and a binary_data_size too".to_owned());
    }
    let Some((raw, rest)) = tail.split_at_checked(size) else {
        return Err(format!("has a binary_data_size of {size}, where {} bytes are left", tail.len()));
    };
    *tail = rest;
    Ok(Elements::Raw(raw))
}

// ---- the answer ----

#[derive(Serialize)]
struct Reply<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    parameters: BTreeMap<&'a str, Value>,
    outputs: Vec<ReplyOutput<'a>>,
}

#[derive(Serialize)]
struct ReplyOutput<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [f32]>,
}

/// An answer, and who scored.
struct Written {
    /// How many of its bytes are JSON, if others follow.
    head: Option<usize>,
    bytes: Vec<u8>,
    room: Room,
    signature: Signature,
}

async fn answered(
    state: &State,
    read: Result<(Rest, Room), ServiceError>,
    deadline: Option<Instant>,
    origin: Origin,
) -> Result<Written, ServiceError> {
    let is_true = |value| value == Some(Parameter::Bool(true));
    let (by_default, by_name) = match &read {
        Err(_) => (false, Vec::new()),
        Ok((rest, _)) => {
            let outputs = rest.request.outputs.0.iter();
            let by_name = outputs.map(|output| (output.name.clone(), output.parameters.get("binary_data")));
            let by_name = by_name.filter_map(|(name, value)| Some((name, is_true(Some(value?))))).collect();
            (is_true(rest.request.parameters.get("binary_data_output")), by_name)
        }
    };
    let (answer, mut room) = infer::answer(state, read, deadline, origin).await?;
    let is_binary = |name: &str| {
        by_name.iter().find(|(of, _)| of == name).map_or(by_default, |(_, is_binary)| *is_binary)
    };
    let mut bytes = serde_json::to_vec(&reply(&answer, is_binary)).expect("strings and finite numbers");
    let head = bytes.len();
    for tensor in answer.tensors.iter().filter(|tensor| is_binary(tensor.output.name())) {
        bytes.extend(tensor.raw());
    }
    room.shrink_to(bytes.len());
    let has_tail = answer.tensors.iter().any(|tensor| is_binary(tensor.output.name()));
    let Answer { variant, fingerprint, id, .. } = answer;
    let signature = Signature { variant, fingerprint, request_id: id };
    Ok(Written { head: has_tail.then_some(head), bytes, room, signature })
}

fn reply(answer: &Answer, is_binary: impl Fn(&str) -> bool) -> Reply<'_> {
    let mut parameters =
        BTreeMap::from([("variant", json!(answer.variant)), ("fingerprint", json!(answer.fingerprint))]);
    if answer.truncated_samples > 0 {
        parameters.insert("truncated_samples", json!(answer.truncated_samples));
    }
    let outputs = answer.tensors.iter().map(|tensor| {
        let name = tensor.output.name();
        let size = is_binary(name).then(|| json!({"binary_data_size": 4 * tensor.values.len()}));
        let data = size.is_none().then_some(&tensor.values[..]);
        ReplyOutput { name, datatype: "FP32", shape: tensor.shape, parameters: size, data }
    });
    Reply {
        model_name: &answer.model,
        model_version: VERSION,
        id: &answer.id,
        parameters,
        outputs: outputs.collect(),
    }
}

fn respond(written: Written, accepts_gzip: bool) -> Response<Body> {
    let Written { head, bytes, room, signature } = written;
    let is_compressed = accepts_gzip && bytes.len() >= MIN_COMPRESSED_BYTES;
    let bytes = if is_compressed { gzip(&bytes) } else { bytes };
    let content_type = if head.is_some() { BINARY } else { answer::JSON };
    let mut response = answer::bytes(content_type, bytes.into(), room);
    let headers = response.headers_mut();
    signature.sign(headers);
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(head) = head {
        headers.insert(HEADER_LENGTH, head.into());
    }
    response
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("a vector grows")
}

/// Whether the caller asked for it. Source: RFC 9110, section 12.5.3.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.trim().parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight != Some(0.0)
    })
}
