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
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::Request;
use axum::routing::get;
use axum::routing::post;
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
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;

use crate::engine::Priority;
use crate::metrics::Method;
use crate::proto::inference::DataType;
use crate::proto::inference::ModelConfig;
use crate::service::aside::aside;
use crate::service::budget::Room;
use crate::service::call;
use crate::service::http::answer;
use crate::service::http::body;
use crate::service::http::options::Asked;
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
use crate::service::request::Violations;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::text::Truncation;

/// Of the JSON before raw tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// A smaller answer is not compressed: it would become larger, or nearly so.
const MIN_COMPRESSED_BYTES: usize = 1024;

type Known = Path<BTreeMap<String, String>>;

/// All paths below `/v2` that are the protocol's.
pub(in crate::service) fn routes(state: &Arc<State>) -> Router {
    let asked = |about: fn(&State, &str, &str) -> Result<Value, ServiceError>| {
        let state = state.clone();
        get(move |Path(known): Known| async move {
            let (name, version) = (part(&known, "model"), part(&known, "version"));
            about(&state, name, version).map_or_else(|error| answer::failed(&error), told)
        })
    };
    let mut router = Router::new();
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        let of_infer = state.clone();
        let infer = post(move |Path(known): Known, request: Request| infer(of_infer, known, request));
        let of_ready = state.clone();
        let ready = get(move |Path(known): Known| async move { is_ready(&of_ready, &known) });
        router = router
            .route(model, asked(metadata))
            .route(&format!("{model}/config"), asked(config))
            .route(&format!("{model}/stats"), asked(statistics))
            .route(&format!("{model}/ready"), ready)
            .route(&format!("{model}/infer"), infer);
    }
    let of_index = state.clone();
    let index = post(move |request: Request| async move { index(&of_index, request).await });
    let of_ready = state.clone();
    let ready = move || async move { health("ready", of_ready.is_ready()) };
    let refused = || async { answer::failed(&ServiceError::field("model", NOT_LOADED)) };
    router
        .route("/v2", get(|| async { told(json!(about::server())) }))
        .route("/v2/health/live", get(|| async { health("live", true) }))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", asked(statistics))
        .route("/v2/repository/index", index)
        .route("/v2/repository/models/{model}/load", post(refused))
        .route("/v2/repository/models/{model}/unload", post(refused))
        .method_not_allowed_fallback(async || {
            let problem = json!({"error": "this path is for another method", "code": "UNIMPLEMENTED"});
            answer::json(StatusCode::METHOD_NOT_ALLOWED, &problem)
        })
}

const NOT_LOADED: &str =
    "is what the server's configuration says: change it, and send SIGHUP or AdminService.Reload";

fn part<'a>(known: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    known.get(name).map_or("", String::as_str)
}

fn told(value: Value) -> Response<Body> {
    answer::json(StatusCode::OK, &value)
}

/// The status decides for Triton's clients, the body for KServe's.
fn health(name: &str, is_so: bool) -> Response<Body> {
    match is_so {
        true => told(json!({ name: true })),
        false => {
            answer::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ name: false, "error": "no models serve" }))
        }
    }
}

fn is_ready(state: &State, known: &BTreeMap<String, String>) -> Response<Body> {
    let name = part(known, "model");
    match about::is_ready(state, name, part(known, "version")) {
        Ok(true) => told(json!({"name": name, "ready": true})),
        Ok(false) => answer::json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"name": name, "ready": false, "error": "the model's forwards fail, or the server stops"}),
        ),
        Err(error) => answer::failed(&error),
    }
}

fn metadata(state: &State, name: &str, version: &str) -> Result<Value, ServiceError> {
    let serving = state.serving()?;
    Ok(json!(about::metadata(&serving, name, version)?))
}

fn statistics(state: &State, name: &str, version: &str) -> Result<Value, ServiceError> {
    let serving = state.serving()?;
    Ok(json!(about::statistics(&serving, name, version)?))
}

fn config(state: &State, name: &str, version: &str) -> Result<Value, ServiceError> {
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
        let (bytes, _room) = body::read(state, &head.headers, body).await?;
        if bytes.is_empty() {
            return Ok(Wanted::default());
        }
        let wanted = serde_json::from_slice(&bytes);
        wanted.map_err(|error| ServiceError::field("body", error.to_string()))
    };
    match wanted.await {
        Ok(Wanted { ready }) => told(json!(about::index(state, ready).models)),
        Err(error) => answer::failed(&error),
    }
}

// ---- /infer ----

async fn infer(state: Arc<State>, known: BTreeMap<String, String>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let span = call::span(Method::ModelInfer.as_str(), &head.headers);
    let options = Asked::read(&head);
    let deadline = options.as_ref().ok().and_then(|options| options.deadline);
    let headers = head.headers;
    let accepts_gzip = accepts_gzip(&headers);
    let answer = |state: Arc<State>| async move {
        let read =
            crate::service::score::before(deadline, read(&state, options, &known, &headers, body)).await;
        answered(&state, read, deadline).await
    };
    match state.run(answer).instrument(span).await {
        Ok((head_bytes, bytes, room)) => respond(head_bytes, bytes, room, accepts_gzip),
        Err(error) => answer::failed(&error),
    }
}

async fn read(
    state: &State,
    options: Result<Asked, ServiceError>,
    known: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Rest, Room), ServiceError> {
    let options = options.and_then(|options| {
        // Who cannot be served need not be listened to.
        state.serving()?;
        body::check_type(headers, "application/json or application/octet-stream", |essence| {
            ["application/json", "application/octet-stream"].contains(&essence)
        })?;
        Ok((options, header_length(headers)?))
    });
    let ((options, length), bytes, mut room) = body::read_if(options, state, headers, body).await?;
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
            Priority::Background => 3,
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

/// The bytes of an answer, and how many of them are its JSON, if others follow.
async fn answered(
    state: &State,
    read: Result<(Rest, Room), ServiceError>,
    deadline: Option<Instant>,
) -> Result<(Option<usize>, Vec<u8>, Room), ServiceError> {
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
    let (answer, mut room) = infer::answer(state, read, deadline).await?;
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
    Ok((has_tail.then_some(head), bytes, room))
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

fn respond(head: Option<usize>, bytes: Vec<u8>, room: Room, accepts_gzip: bool) -> Response<Body> {
    let is_compressed = accepts_gzip && bytes.len() >= MIN_COMPRESSED_BYTES;
    let bytes = if is_compressed { gzip(&bytes) } else { bytes };
    let content_type = if head.is_some() { BINARY } else { answer::JSON };
    let mut response = answer::bytes(content_type, bytes.into(), room);
    let headers = response.headers_mut();
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
