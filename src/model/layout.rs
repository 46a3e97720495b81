//! Fits a plan to the files of a checkpoint: under which names it keeps the backbone, whose head it has, and whether all
//! tensors are there, of the right shape, and none besides.

use std::collections::HashSet;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::IGNORED_PREFIXES;
use crate::checkpoint::IGNORED_SUFFIXES;
use crate::model::ModelError;
use crate::model::config::CheckpointConfig;
use crate::model::plan::BackbonePlan;
use crate::model::plan::FeedForwardPlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::ModelPlan;
use crate::model::plan::Part;
use crate::model::plan::TensorPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;

/// What stands before the backbone's tensor names in a checkpoint, for example "model.".
pub fn prefix_in(checkpoint: &Checkpoint, backbone: &BackbonePlan) -> &'static str {
    let words = &backbone.embedding.words.name;
    let mut prefixes = backbone.prefixes.iter();
    prefixes.find(|prefix| checkpoint.contains(&format!("{prefix}{words}"))).unwrap_or(&backbone.prefixes[0])
}

/// The model of a checkpoint with its head; fails where there is none, or several.
pub fn plan(checkpoint: &Checkpoint, config: &CheckpointConfig) -> Result<ModelPlan, ModelError> {
    let head = find_head(checkpoint, config)?;
    Ok(plan_with(checkpoint, config, head))
}

/// The same with the head that transformers puts on the backbone, of which the checkpoint may lack tensors.
pub fn plan_with_native_head(checkpoint: &Checkpoint, config: &CheckpointConfig) -> ModelPlan {
    plan_with(checkpoint, config, config.backbone.head.clone())
}

/// Under the names that the checkpoint has, where there are several.
fn plan_with(checkpoint: &Checkpoint, config: &CheckpointConfig, head: HeadPlan) -> ModelPlan {
    let mut backbone = config.backbone.clone();
    let prefix = prefix_in(checkpoint, &backbone);
    for layer in &mut backbone.layers {
        let FeedForwardPlan::Experts(experts) = &mut layer.feed_forward else { continue };
        if let Some(stacked) = experts.stacked.take()
            && checkpoint.contains(&format!("{prefix}{}", stacked.experts[0].down.weight.name))
        {
            *experts = stacked;
        }
        let is_there = |name: &String| checkpoint.contains(&format!("{prefix}{name}"));
        if experts.may_lack_correction {
            experts.correction = experts.correction.take().filter(is_there);
        }
    }
    ModelPlan::new(prefix, backbone, head)
}

/// Refuses checkpoints in which a tensor of the plan is missing or has another shape, or that have tensors which the plan
/// does not name: they would be left out of the reward in silence.
pub fn check<'c>(
    plan: &ModelPlan,
    checkpoints: impl IntoIterator<Item = &'c Checkpoint>,
) -> Result<(), ModelError> {
    for checkpoint in checkpoints {
        check_shapes(plan, checkpoint, |_| false)?;
        check_unused(plan, checkpoint)?;
    }
    Ok(())
}

/// The same of a base that may lack tensors of the head.
pub fn check_base(plan: &ModelPlan, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    check_shapes(plan, checkpoint, |part| matches!(part, Part::Dense | Part::Output))?;
    check_unused(plan, checkpoint)
}

fn check_shapes(
    plan: &ModelPlan,
    checkpoint: &Checkpoint,
    may_lack: impl Fn(Part) -> bool,
) -> Result<(), ModelError> {
    for TensorPlan { name, shape, part, .. } in &plan.tensors {
        match checkpoint.info(name) {
            None if may_lack(*part) => {}
            None => return Err(CheckpointError::MissingTensor { name: name.clone() }.into()),
            Some(info) if info.shape != *shape => {
                return Err(ModelError::Shape {
                    name: name.clone(),
                    expected: shape.clone(),
                    found: info.shape.clone(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_unused(plan: &ModelPlan, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    let is_ignored = |name: &str| {
        let in_backbone = name.strip_prefix(&*plan.prefix);
        let is_unused = |name: &str| {
            let is = |unused: &&str| {
                name.starts_with(unused) || (unused.starts_with('.') && name.ends_with(unused))
            };
            plan.backbone.unused.iter().any(is)
        };
        IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || IGNORED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            || is_unused(name)
            || in_backbone.is_some_and(is_unused)
            || is_ignored_bias(plan, name)
    };
    let used: HashSet<&str> = plan.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let unused: Vec<&str> =
        checkpoint.names().filter(|name| !used.contains(name) && !is_ignored(name)).collect();
    match unused.first() {
        None => Ok(()),
        Some(&first) => Err(ModelError::UnusedTensors {
            path: checkpoint.dir().to_owned(),
            count: unused.len(),
            first: first.to_owned(),
        }),
    }
}

/// The bias of a last layer whose class has none: transformers leaves it out with a warning.
fn is_ignored_bias(plan: &ModelPlan, name: &str) -> bool {
    let HeadPlan { kind, output, .. } = &plan.head;
    let is_left_out = matches!(kind, HeadKind::Score | HeadKind::OpenRlhf) && output.bias.is_none();
    let is_ignored = is_left_out && name.strip_suffix(".bias") == Some(plan.head.last_layer());
    if is_ignored {
        let why = "the class of the model has no bias there";
        tracing::warn!(tensor = name, why, "this tensor is left out, as transformers does");
    }
    is_ignored
}

/// The head that a checkpoint has.
fn find_head(checkpoint: &Checkpoint, config: &CheckpointConfig) -> Result<HeadPlan, ModelError> {
    let native = &config.backbone.head;
    let features = config.backbone.features();
    let of_others = |kind: HeadKind, name: &str, has_bias: bool| {
        HeadPlan::linear(kind, name, features, has_bias, Pooling::LastToken)
    };
    let is_openrlhf = config.architecture == "RewardModel" || config.value_head_prefix.is_some();
    let heads = match &config.value_head_prefix {
        _ if !config.backbone.is_causal() => vec![native.clone()],
        Some(name) => vec![of_others(HeadKind::OpenRlhf, name, false)],
        // files that OpenRLHF wrote before it wrote the prefix
        None if is_openrlhf => {
            ["score", "value_head"].map(|name| of_others(HeadKind::OpenRlhf, name, false)).into()
        }
        None => {
            let has_bias = checkpoint.contains("v_head.bias"); // of nobody's class
            let others = [
                of_others(HeadKind::TrlValueHead, "v_head.summary", true),
                of_others(HeadKind::ValueHead, "v_head", has_bias),
            ];
            let others = others.into_iter().filter(|head| head.last_layer() != native.last_layer());
            std::iter::once(native.clone()).chain(others).collect()
        }
    };
    let names = |heads: &[&HeadPlan]| {
        heads.iter().map(|head| head.output.weight.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let found: Vec<&HeadPlan> =
        heads.iter().filter(|head| checkpoint.contains(&head.output.weight.name)).collect();
    let head = match found.as_slice() {
        [head] => (*head).clone(),
        [] => return Err(ModelError::NoHead { looked_for: names(&heads.iter().collect::<Vec<_>>()) }),
        several => {
            let problem = format!("the checkpoint has several heads: {}", names(several));
            return Err(ModelError::Unsupported(problem));
        }
    };
    let shape = checkpoint.info(&head.output.weight.name).map(|info| info.shape.as_slice());
    let outputs = shape.and_then(<[usize]>::first).copied().unwrap_or(1);
    match &config.labels {
        None if outputs == 1 => Ok(head),
        Some(labels) if labels.fits(outputs) => Ok(head.with_labels(labels, outputs)),
        labels => Err(ModelError::Unsupported(format!(
            "the head `{}` has {outputs} labels, {}",
            head.last_layer(),
            match labels {
                None => "a reward is one number: say in rewarm.json which of them it is, {\"label\": 0}",
                Some(_) => "config.json and rewarm.json tell of another number",
            }
        ))),
    }
}
