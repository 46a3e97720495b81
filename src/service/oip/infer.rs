//! A request of either form, answered: what `ModelInfer` and `/infer` share.

use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Method;
use crate::model::pooling::Pooling;
use crate::service::aside::aside;
use crate::service::budget::Room;
use crate::service::models::ServedVariant;
use crate::service::models::Serving;
use crate::service::oip::about::Model;
use crate::service::oip::about::Output;
use crate::service::oip::about::members;
use crate::service::oip::parameters::Parameter;
use crate::service::oip::parameters::Parameters;
use crate::service::oip::samples;
use crate::service::oip::samples::Samples;
use crate::service::oip::tensors::Tensor;
use crate::service::oip::tensors::quoted;
use crate::service::origin::Origin;
use crate::service::request::Options;
use crate::service::request::Received;
use crate::service::request::Request;
use crate::service::request::Target;
use crate::service::request::Violations;
use crate::service::score;
use crate::service::score::Score;
use crate::service::score::Scored;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::text::Input;

/// What a sample is called in errors.
const SAMPLES: &str = "sample";

/// A request as it came, whole, in either form.
pub(super) trait Form: Send + 'static {
    /// About how many.
    fn bytes(&self) -> usize;

    /// What it says; nothing is copied.
    fn infer(&self) -> Result<Infer<'_>, ServiceError>;
}

/// What a request says.
pub(super) struct Infer<'a> {
    pub(super) model: &'a str,
    pub(super) version: &'a str,
    pub(super) id: &'a str,
    pub(super) parameters: Vec<(&'a str, Parameter<'a>)>,
    pub(super) inputs: Vec<Tensor<'a>>,
    /// By name; empty: the default.
    pub(super) outputs: Vec<&'a str>,
}

/// What the answer repeats, and holds.
struct Asked {
    model: String,
    id: String,
    outputs: Vec<Output>,
    timeout: Option<Duration>,
}

/// What both forms answer.
pub(super) struct Answer {
    pub(super) model: String,
    pub(super) id: String,
    pub(super) variant: String,
    pub(super) fingerprint: String,
    /// Samples that lost tokens to fit, as the request allowed.
    pub(super) truncated_samples: usize,
    pub(super) tensors: Vec<OutputTensor>,
}

/// FP32, row by row.
pub(super) struct OutputTensor {
    pub(super) output: Output,
    pub(super) shape: [usize; 2],
    pub(super) values: Vec<f32>,
}

impl OutputTensor {
    pub(super) fn shape(&self) -> Vec<i64> {
        self.shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect()
    }

    pub(super) fn raw(&self) -> Vec<u8> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// Answers a request that was read, or could not be. The answer still has the request's room.
pub(super) async fn answer(
    state: &State,
    read: Result<(impl Form, Room), ServiceError>,
    deadline: Option<Instant>,
    origin: Origin,
) -> Result<(Answer, Room), ServiceError> {
    let arrived = Instant::now();
    let mut asked = None;
    let checked = async {
        let (form, room) = read?;
        let form_bytes = form.bytes();
        let (serving, max_samples) = (state.serving()?, state.limits.max_samples_per_request);
        let check = move || check(&form.infer()?, &serving, max_samples);
        let (request, is_asked) = aside(form_bytes, check).await?;
        asked = Some(is_asked);
        Ok((request, room))
    };
    let request = checked.await;
    let timeout = asked.as_ref().and_then(|asked| arrived.checked_add(asked.timeout?));
    let deadline = [deadline, timeout].into_iter().flatten().min();
    let (scored, room) = score::answer(state, Method::ModelInfer, request, deadline, origin).await?;
    let asked = asked.expect("what was served was checked");
    Ok((answered(asked, scored), room))
}

/// Refuses what cannot be served as a whole.
fn check(infer: &Infer<'_>, serving: &Serving, max_samples: usize) -> Result<(Request, Asked), ServiceError> {
    let model = Model::find(serving, infer.model, infer.version)?;
    let mut violations = Violations::default();
    violations.check_length("id", infer.id);
    let parameters = Parameters::read(&infer.parameters, &mut violations);
    let outputs = outputs(infer, &model, parameters.return_members, &mut violations);
    violations.none()?;
    let Samples { inputs, without_ends } = samples::samples(&infer.inputs, max_samples)?;
    if let Some(name) = without_ends {
        has_no_padding(&name, &inputs, &model)?;
    }
    let variant = match model {
        Model::Variant(served) => served.info.name.clone(),
        Model::Routed(_) => String::new(),
    };
    let target = Target::new(variant, parameters.routing_key, inputs.first());
    let options = Options {
        priority: parameters.priority,
        truncation: parameters.truncation,
        max_tokens: None,
        return_members: outputs.contains(&Output::MemberRewards),
        expected_fingerprint: Some(parameters.expected_fingerprint).filter(|expected| !expected.is_empty()),
        all_or_none: Some(SAMPLES),
    };
    let id = if infer.id.is_empty() { parameters.request_id } else { infer.id.to_owned() };
    let asked = Asked { model: infer.model.to_owned(), id, outputs, timeout: parameters.timeout };
    Ok((Request { inputs, target, options }, asked))
}

fn outputs(
    infer: &Infer<'_>,
    model: &Model<'_>,
    return_members: bool,
    violations: &mut Violations,
) -> Vec<Output> {
    let mut outputs = Vec::new();
    for name in &infer.outputs {
        match Output::ALL.into_iter().find(|output| output.name() == *name) {
            None => {
                let known = Output::ALL.map(Output::name).join(", ");
                violations.add("outputs", format!("{} is not known: the outputs are {known}", quoted(name)));
            }
            Some(output) if outputs.contains(&output) => {
                violations.add("outputs", format!("{name} comes twice"))
            }
            Some(Output::RewardStd)
                if let Some(merged) = model.served().find(|served| !has_members(served)) =>
            {
                let variant = &merged.info.name;
                violations.add("outputs", format!("reward_std is of ensembles, and `{variant}` is none"));
            }
            Some(output) => outputs.push(output),
        }
    }
    if infer.outputs.is_empty() {
        outputs.push(Output::Rewards);
        if return_members {
            outputs.push(Output::MemberRewards);
        }
    }
    outputs
}

fn has_members(served: &ServedVariant) -> bool {
    served.info.reduction.is_some()
}

/// Refuses rows of which nobody says where they end, if they look padded and padding would count. Where the last token
/// that is no padding is the one that counts, padding behind it changes nothing.
fn has_no_padding(name: &str, inputs: &[Received], model: &Model<'_>) -> Result<(), ServiceError> {
    for served in model.served() {
        let Some(pad) = served.tokenizer.pad_token_id() else { continue };
        let is_behind_harmless = served.info.pooling == Pooling::LastNonPad;
        let is_padded = |input: &Received| match input {
            Received::Input(Input::TokenIds(ids)) => {
                ids.first() == Some(&pad) || !is_behind_harmless && ids.last() == Some(&pad)
            }
            _ => false,
        };
        if let Some(row) = inputs.iter().position(is_padded) {
            let problem = format!(
                "has the padding token {pad} of `{}` at an end of row {row}, and nothing says whether it counts: send \
                 attention_mask or sequence_lengths",
                served.info.name
            );
            return Err(ServiceError::field(name, problem));
        }
    }
    Ok(())
}

fn answered(asked: Asked, scored: Scored) -> Answer {
    let Scored { served, results, timing: _ } = scored;
    // one that failed has failed the call
    let scores: Vec<Score> = results.into_iter().flatten().collect();
    let tensor = |output| {
        let columns = if output == Output::MemberRewards { members(&served.info) } else { 1 };
        let values = match output {
            Output::Rewards => scores.iter().map(|score| score.reward).collect(),
            Output::MemberRewards => scores.iter().flat_map(|score| score.member_rewards.clone()).collect(),
            Output::RewardStd => scores.iter().filter_map(|score| score.reward_std).collect(),
        };
        OutputTensor { output, shape: [scores.len(), columns], values }
    };
    Answer {
        model: asked.model,
        id: asked.id,
        variant: served.info.name.clone(),
        fingerprint: served.info.fingerprint.clone(),
        truncated_samples: scores.iter().filter(|score| score.truncated_tokens > 0).count(),
        tensors: asked.outputs.into_iter().map(tensor).collect(),
    }
}
