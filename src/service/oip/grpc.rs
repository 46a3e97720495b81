//! `inference.GRPCInferenceService`, beside `RewardService` on its port.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::LazyLock;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http::Request;
use http::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::codegen::BoxFuture;
use tonic::codegen::StdError;
use tonic::server::Grpc;
use tonic::server::NamedService;
use tonic::server::UnaryService;
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::metrics::Method;
use crate::proto::inference;
use crate::proto::inference::InferParameter;
use crate::proto::inference::ModelInferRequest;
use crate::proto::inference::ModelInferResponse;
use crate::proto::inference::grpc_inference_service_server::SERVICE_NAME;
use crate::proto::inference::infer_parameter::ParameterChoice;
use crate::proto::inference::model_infer_request::InferInputTensor;
use crate::proto::inference::model_infer_response::InferOutputTensor;
use crate::service::grpc::inbound::Wire;
use crate::service::grpc::scan::Schema;
use crate::service::grpc::unary::Asked;
use crate::service::grpc::unary::unary;
use crate::service::oip::VERSION;
use crate::service::oip::about;
use crate::service::oip::infer;
use crate::service::oip::infer::Answer;
use crate::service::oip::infer::Form;
use crate::service::oip::infer::Infer;
use crate::service::oip::parameters::Parameter;
use crate::service::oip::parameters::refuse;
use crate::service::oip::tensors::Elements;
use crate::service::oip::tensors::Tensor;
use crate::service::oip::tensors::quoted;
use crate::service::request::Violations;
use crate::service::state::State;
use crate::service::status::ServiceError;

/// Of what is not an inference: names.
const MAX_REQUEST_BYTES: usize = 4096;
/// Inputs that there are, with some room for what is refused by its name.
const MAX_INPUTS: usize = 16;

/// The handlers; all they know is in [`State`].
#[derive(Clone)]
pub(in crate::service) struct Inference(pub(in crate::service) Arc<State>);

impl NamedService for Inference {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<Request<B>> for Inference
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self(state) = self.clone();
        let request = request.map(Body::new);
        let path = request.uri().path();
        let method =
            path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)).unwrap_or_default();
        match method {
            "/ModelInfer" => Box::pin(async { Ok(model_infer(state, request).await) }),
            "/ServerLive" => small(request, |_: inference::ServerLiveRequest| {
                Ok(inference::ServerLiveResponse { live: true })
            }),
            "/ServerReady" => small(request, move |_: inference::ServerReadyRequest| {
                Ok(inference::ServerReadyResponse { ready: state.is_ready() })
            }),
            "/ModelReady" => small(request, move |asked: inference::ModelReadyRequest| {
                let ready = match about::is_ready(&state, &asked.name, &asked.version) {
                    Err(ServiceError::Loading | ServiceError::Draining) => false,
                    known => known?,
                };
                Ok(inference::ModelReadyResponse { ready })
            }),
            "/ServerMetadata" => small(request, |_: inference::ServerMetadataRequest| Ok(about::server())),
            "/ModelMetadata" => small(request, move |asked: inference::ModelMetadataRequest| {
                let serving = state.serving()?;
                about::metadata(&serving, &asked.name, &asked.version)
            }),
            "/ModelConfig" => small(request, move |asked: inference::ModelConfigRequest| {
                let (serving, max_samples) = (state.serving()?, state.limits.max_samples_per_request);
                let config = about::config(&serving, max_samples, &asked.name, &asked.version)?;
                Ok(inference::ModelConfigResponse { config: Some(config) })
            }),
            "/ModelStatistics" => small(request, move |asked: inference::ModelStatisticsRequest| {
                let serving = state.serving()?;
                about::statistics(&serving, &asked.name, &asked.version)
            }),
            "/RepositoryIndex" => small(request, move |asked: inference::RepositoryIndexRequest| {
                Ok(about::index(&state, asked.ready))
            }),
            method => Box::pin(ready(Ok(Status::unimplemented(not_here(method)).into_http()))),
        }
    }
}

/// Why a method of the protocol is not there.
fn not_here(method: &str) -> &'static str {
    match method {
        "/ModelStreamInfer" => {
            "ModelStreamInfer is not here: a request has one answer, so send it with ModelInfer; calls on one \
             connection are served at the same time"
        }
        "/RepositoryModelLoad" | "/RepositoryModelUnload" => {
            "models are what the server's configuration says: change it, and send SIGHUP or AdminService.Reload"
        }
        _ => "GRPCInferenceService has no such method here",
    }
}

/// A method whose request and answer are small.
fn small<Q, A>(
    request: Request<Body>,
    handle: impl FnMut(Q) -> Result<A, ServiceError> + Send + 'static,
) -> BoxFuture<Response<Body>, Infallible>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
{
    let grpc = Grpc::new(ProstCodec::<A, Q>::default());
    let mut grpc = grpc
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    Box::pin(async move { Ok(grpc.unary(Handler(handle), request).await) })
}

struct Handler<F>(F);

impl<Q, A, F> UnaryService<Q> for Handler<F>
where
    F: FnMut(Q) -> Result<A, ServiceError>,
{
    type Response = A;
    type Future = std::future::Ready<Result<tonic::Response<A>, Status>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(tonic::Response::new).map_err(Status::from))
    }
}

// ---- ModelInfer ----

impl Wire for ModelInferRequest {
    const LIST: &'static str = "inputs";

    fn schema() -> &'static Schema {
        static SCHEMA: LazyLock<Schema> =
            LazyLock::new(|| Schema::of(".inference.ModelInferRequest", None, "id"));
        &SCHEMA
    }
}

async fn model_infer(state: Arc<State>, request: Request<Body>) -> Response<Body> {
    let answer = |state: Arc<State>, (read, deadline, origin): Asked<ModelInferRequest>| async move {
        let (answer, mut room) = infer::answer(&state, read, deadline, origin).await?;
        let response = response(answer);
        room.shrink_to(prost::Message::encoded_len(&response));
        Ok((response, room))
    };
    unary(state, Method::ModelInfer, request, answer).await
}

impl Form for ModelInferRequest {
    fn bytes(&self) -> usize {
        self.raw_input_contents.iter().map(Bytes::len).sum::<usize>()
            + self.inputs.iter().map(prost::Message::encoded_len).sum::<usize>()
    }

    fn infer(&self) -> Result<Infer<'_>, ServiceError> {
        let mut violations = Violations::default();
        if self.inputs.len() > MAX_INPUTS {
            violations.add("inputs", format!("are {}: no model has so many", self.inputs.len()));
        }
        let (raw, inputs) = (self.raw_input_contents.len(), self.inputs.len());
        if raw > 0 && raw != inputs {
            violations.add("raw_input_contents", format!("are {raw}, and the inputs are {inputs}"));
        }
        violations.none()?;
        let mut violations = Violations::default();
        refuse_shared_memory(self, &mut violations);
        let mut tensors = Vec::with_capacity(inputs);
        for (index, input) in self.inputs.iter().enumerate() {
            match elements(input, self.raw_input_contents.get(index)) {
                Ok(elements) => tensors.push(Tensor {
                    name: &input.name,
                    datatype: &input.datatype,
                    shape: &input.shape,
                    elements,
                }),
                Err(problem) => violations.add(&quoted(&input.name), problem),
            }
        }
        violations.none()?;
        Ok(Infer {
            model: &self.model_name,
            version: &self.model_version,
            id: &self.id,
            parameters: self
                .parameters
                .iter()
                .map(|(name, value)| (name.as_str(), parameter(value)))
                .collect(),
            inputs: tensors,
            outputs: self.outputs.iter().map(|output| output.name.as_str()).collect(),
        })
    }
}

fn refuse_shared_memory(request: &ModelInferRequest, violations: &mut Violations) {
    let inputs = request.inputs.iter().map(|input| (&input.name, &input.parameters));
    let outputs = request.outputs.iter().map(|output| (&output.name, &output.parameters));
    for (name, parameters) in inputs.chain(outputs) {
        refuse(&quoted(name), |parameter| parameters.contains_key(parameter), violations);
    }
}

/// Where a tensor's elements are.
fn elements<'a>(input: &'a InferInputTensor, raw: Option<&'a Bytes>) -> Result<Elements<'a>, String> {
    let contents = match (raw, &input.contents) {
        (Some(raw), None) => return Ok(Elements::Raw(raw)),
        (Some(_), Some(_)) => return Err("has contents, and raw_input_contents are there too".to_owned()),
        (None, Some(contents)) => contents,
        // what is empty may be left out
        (None, None) => return Ok(Elements::Raw(&[])),
    };
    let inference::InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let lists = [
        ("bool_contents", bool_contents.len(), Elements::Bools(bool_contents)),
        ("int_contents", int_contents.len(), Elements::Ints(int_contents)),
        ("int64_contents", int64_contents.len(), Elements::Longs(int64_contents)),
        ("uint_contents", uint_contents.len(), Elements::Uints(uint_contents)),
        ("uint64_contents", uint64_contents.len(), Elements::Ulongs(uint64_contents)),
        ("fp32_contents", fp32_contents.len(), Elements::Floats),
        ("fp64_contents", fp64_contents.len(), Elements::Floats),
        ("bytes_contents", bytes_contents.len(), Elements::Bytes(bytes_contents)),
    ];
    let expected = match input.datatype.as_str() {
        "BOOL" => "bool_contents",
        "INT8" | "INT16" | "INT32" => "int_contents",
        "INT64" => "int64_contents",
        "UINT8" | "UINT16" | "UINT32" => "uint_contents",
        "UINT64" => "uint64_contents",
        "BYTES" => "bytes_contents",
        // refused by whoever reads it
        _ => return Ok(Elements::Floats),
    };
    if let Some((other, ..)) = lists.iter().find(|(list, len, _)| *len > 0 && *list != expected) {
        return Err(format!("has {other}, and of datatype {} {expected} are needed", input.datatype));
    }
    let list = lists.into_iter().find(|(list, ..)| *list == expected);
    Ok(list.map_or(Elements::Floats, |(.., elements)| elements))
}

fn parameter(value: &InferParameter) -> Parameter<'_> {
    match &value.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(*value),
        Some(ParameterChoice::Int64Param(value)) => Parameter::Integer(*value),
        Some(ParameterChoice::Uint64Param(value)) => {
            Parameter::Integer(i64::try_from(*value).unwrap_or(i64::MAX))
        }
        Some(ParameterChoice::DoubleParam(value)) => Parameter::Number(*value),
        Some(ParameterChoice::StringParam(value)) => Parameter::Text(value),
        None => Parameter::Other,
    }
}

fn response(answer: Answer) -> ModelInferResponse {
    let text = |text| InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) };
    let mut parameters = HashMap::from([
        ("variant".to_owned(), text(answer.variant)),
        ("fingerprint".to_owned(), text(answer.fingerprint)),
    ]);
    if answer.truncated_samples > 0 {
        let count = i64::try_from(answer.truncated_samples).unwrap_or(i64::MAX);
        let count = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(count)) };
        parameters.insert("truncated_samples".to_owned(), count);
    }
    let (mut outputs, mut raw_output_contents) = (Vec::new(), Vec::new());
    for tensor in &answer.tensors {
        outputs.push(InferOutputTensor {
            name: tensor.output.name().to_owned(),
            datatype: "FP32".to_owned(),
            shape: tensor.shape(),
            ..Default::default()
        });
        raw_output_contents.push(tensor.raw().into());
    }
    ModelInferResponse {
        model_name: answer.model,
        model_version: VERSION.to_owned(),
        id: answer.id,
        parameters,
        outputs,
        raw_output_contents,
    }
}
