//! What is told of the server and its models, in either form.

use std::collections::HashMap;

use crate::metrics;
use crate::metrics::Totals;
use crate::model::variant::Mode;
use crate::model::variant::VariantInfo;
use crate::proto;
use crate::proto::inference;
use crate::proto::inference::DataType;
use crate::proto::inference::StatisticDuration;
use crate::proto::inference::model_metadata_response::TensorMetadata;
use crate::service::models::ServedVariant;
use crate::service::models::Serving;
use crate::service::oip::ROUTED;
use crate::service::oip::VERSION;
use crate::service::oip::tensors::quoted;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::text::TextRule;

const PLATFORM: &str = "rewarm";
/// Of the protocol that are there; Triton's `perf_analyzer` asks for statistics only where they are listed.
const EXTENSIONS: [&str; 5] =
    ["model_configuration", "model_repository", "statistics", "binary_tensor_data", "parameters"];
/// Name, datatype, and shape behind the batch's.
const INPUTS: [(&str, DataType, &[i64]); 6] = [
    ("text", DataType::TypeString, &[1]),
    ("prompt", DataType::TypeString, &[1]),
    ("response", DataType::TypeString, &[1]),
    ("input_ids", DataType::TypeInt64, &[-1]),
    ("attention_mask", DataType::TypeInt64, &[-1]),
    ("sequence_lengths", DataType::TypeInt64, &[1]),
];

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Rewards,
    MemberRewards,
    RewardStd,
}

impl Output {
    pub(super) const ALL: [Self; 3] = [Self::Rewards, Self::MemberRewards, Self::RewardStd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rewards => "rewards",
            Self::MemberRewards => "member_rewards",
            Self::RewardStd => "reward_std",
        }
    }
}

/// Who a request asks.
pub(super) enum Model<'a> {
    /// A variant by its name.
    Variant(&'a ServedVariant),
    /// Whom routing finds.
    Routed(&'a Serving),
}

impl<'a> Model<'a> {
    pub(super) fn find(serving: &'a Serving, name: &str, version: &str) -> Result<Self, ServiceError> {
        if !["", VERSION].contains(&version) {
            let problem =
                format!("{} has no version {}: the one is \"{VERSION}\"", quoted(name), quoted(version));
            return Err(ServiceError::UnknownModel { problem });
        }
        match serving.variants.get(name) {
            Some(served) => Ok(Self::Variant(served)),
            None if name == ROUTED => Ok(Self::Routed(serving)),
            None => {
                let known = names(serving).join(", ");
                let problem = format!("{} is unknown, the models are {known}", quoted(name));
                Err(ServiceError::UnknownModel { problem })
            }
        }
    }

    /// Who may score.
    pub(super) fn served(&self) -> impl Iterator<Item = &'a ServedVariant> {
        let (one, serving) = match self {
            Self::Variant(served) => (Some(*served), None),
            Self::Routed(serving) => (None, Some(*serving)),
        };
        let weights = serving.into_iter().flat_map(|serving| serving.routing.weights());
        let routed = weights.filter(|(_, weight)| **weight > 0.0).filter_map(move |(name, _)| {
            serving.and_then(|serving| serving.variants.get(name)).map(|served| &**served)
        });
        one.into_iter().chain(routed)
    }

    fn infos(&self) -> Vec<&'a VariantInfo> {
        self.served().map(|served| &served.info).collect()
    }
}

/// Columns of the members' rewards.
pub(super) fn members(info: &VariantInfo) -> usize {
    match info.mode {
        Mode::Warm => 1,
        Mode::Ens => info.members.len(),
    }
}

fn names(serving: &Serving) -> Vec<&str> {
    let variants = serving.variants.keys().map(String::as_str);
    let routed = (!serving.variants.contains_key(ROUTED)).then_some(ROUTED);
    variants.chain(routed).collect()
}

pub(super) fn server() -> inference::ServerMetadataResponse {
    inference::ServerMetadataResponse {
        name: PLATFORM.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).into(),
    }
}

/// Whether callers should come for it.
pub(super) fn is_ready(state: &State, name: &str, version: &str) -> Result<bool, ServiceError> {
    let serving = state.serving()?;
    let health = state.variants_health();
    Ok(match Model::find(&serving, name, version)? {
        Model::Variant(served) => health.get(&served.info.name).copied().unwrap_or(false),
        Model::Routed(_) => health.values().any(|is_healthy| *is_healthy),
    })
}

pub(super) fn metadata(
    serving: &Serving,
    name: &str,
    version: &str,
) -> Result<inference::ModelMetadataResponse, ServiceError> {
    let model = Model::find(serving, name, version)?;
    let tensor = |name: &str, datatype: &str, shape: &[i64]| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: [&[-1], shape].concat(),
    };
    let outputs = outputs(&model).into_iter();
    Ok(inference::ModelMetadataResponse {
        name: name.to_owned(),
        versions: vec![VERSION.to_owned()],
        platform: PLATFORM.to_owned(),
        inputs: INPUTS
            .iter()
            .map(|(name, datatype, shape)| {
                let datatype = if *datatype == DataType::TypeString { "BYTES" } else { "INT64" };
                tensor(name, datatype, shape)
            })
            .collect(),
        outputs: outputs.map(|(output, columns)| tensor(output.name(), "FP32", &[columns])).collect(),
    })
}

/// What can be asked for, with the columns of each; -1 where that depends on who scores.
fn outputs(model: &Model<'_>) -> Vec<(Output, i64)> {
    let infos = model.infos();
    let mut outputs = vec![(Output::Rewards, 1)];
    let columns: Vec<i64> = infos.iter().map(|info| i64::from(proto::count(members(info)))).collect();
    let is_one = columns.windows(2).all(|two| two[0] == two[1]);
    outputs.push((Output::MemberRewards, columns.first().copied().filter(|_| is_one).unwrap_or(-1)));
    if infos.iter().all(|info| info.reduction.is_some()) {
        outputs.push((Output::RewardStd, 1));
    }
    outputs
}

pub(super) fn config(
    serving: &Serving,
    max_samples: usize,
    name: &str,
    version: &str,
) -> Result<inference::ModelConfig, ServiceError> {
    let model = Model::find(serving, name, version)?;
    let input = |(name, datatype, dims): &(&str, DataType, &[i64])| inference::ModelInput {
        name: (*name).to_owned(),
        data_type: (*datatype).into(),
        dims: dims.to_vec(),
        optional: true,
    };
    let output = |(output, columns): (Output, i64)| inference::ModelOutput {
        name: output.name().to_owned(),
        data_type: DataType::TypeFp32.into(),
        dims: vec![columns],
    };
    let batching = inference::ModelDynamicBatching { priority_levels: 3, default_priority_level: 2 };
    let parameters = match model {
        Model::Variant(served) => parameters(&served.info),
        Model::Routed(serving) => {
            let weights = serving.routing.weights().iter();
            weights.map(|(name, weight)| (format!("weight.{name}"), weight.to_string())).collect()
        }
    };
    let parameter = |(name, string_value)| (name, inference::ModelParameter { string_value });
    Ok(inference::ModelConfig {
        name: name.to_owned(),
        platform: PLATFORM.to_owned(),
        backend: PLATFORM.to_owned(),
        max_batch_size: i32::try_from(max_samples).unwrap_or(i32::MAX),
        input: INPUTS.iter().map(input).collect(),
        output: outputs(&model).into_iter().map(output).collect(),
        scheduling_choice: Some(inference::model_config::SchedulingChoice::DynamicBatching(batching)),
        parameters: parameters.into_iter().map(parameter).collect::<HashMap<_, _>>(),
    })
}

fn parameters(info: &VariantInfo) -> Vec<(String, String)> {
    [
        ("mode", info.mode.name().to_owned()),
        ("members", info.members.len().to_string()),
        ("reduction", info.reduction_name()),
        ("dtype", info.dtype.name().to_owned()),
        ("device", info.placement.to_string()),
        ("max_tokens", info.max_tokens.to_string()),
        ("fingerprint", info.fingerprint.clone()),
        ("architecture", info.architecture.clone()),
        ("pooling", info.pooling.name().to_owned()),
        ("text_rule", TextRule::name_of(info.text_rule).to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Of one model, or of every variant where there is no name.
pub(super) fn statistics(
    serving: &Serving,
    name: &str,
    version: &str,
) -> Result<inference::ModelStatisticsResponse, ServiceError> {
    let of = |name: &str, infos: &[&VariantInfo]| {
        let totals = infos.iter().map(|info| metrics::totals(&info.name)).sum();
        statistics_of(name, &totals)
    };
    let model_stats = match name {
        "" => serving.infos().map(|info| of(&info.name, &[info])).collect(),
        _ => {
            let infos = match Model::find(serving, name, version)? {
                Model::Variant(served) => vec![&served.info],
                Model::Routed(serving) => serving.infos().collect(),
            };
            vec![of(name, &infos)]
        }
    };
    Ok(inference::ModelStatisticsResponse { model_stats })
}

fn statistics_of(name: &str, totals: &Totals) -> inference::ModelStatistics {
    let duration = |count, ns| Some(StatisticDuration { count, ns });
    inference::ModelStatistics {
        name: name.to_owned(),
        version: VERSION.to_owned(),
        last_inference: totals.last_answer_ms,
        inference_count: totals.samples,
        execution_count: totals.batches,
        inference_stats: Some(inference::InferStatistics {
            success: duration(totals.answered, totals.answered_ns),
            fail: duration(totals.failed, totals.failed_ns),
            queue: duration(totals.scored, totals.queue_ns),
            // the same count for all three, read once: perf_analyzer ends where they differ
            compute_input: duration(totals.scored, totals.tokenize_ns),
            compute_infer: duration(totals.scored, totals.compute_ns),
            compute_output: duration(totals.scored, totals.reduce_ns),
        }),
    }
}

/// Every variant, or those that serve.
pub(super) fn index(state: &State, only_ready: bool) -> inference::RepositoryIndexResponse {
    let model = |(name, is_healthy): (String, bool)| {
        let (state, reason) = match is_healthy {
            true => ("READY", ""),
            false => ("UNAVAILABLE", "its forwards fail, or the server stops"),
        };
        inference::repository_index_response::ModelIndex {
            name,
            version: VERSION.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
        }
    };
    let variants = state.variants_health().into_iter().filter(|(_, is_healthy)| *is_healthy || !only_ready);
    inference::RepositoryIndexResponse { models: variants.map(model).collect() }
}
