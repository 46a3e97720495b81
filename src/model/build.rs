//! Builds a transformer as its plan says.

use crate::model::ModelError;
use crate::model::embedding::Embedding;
use crate::model::layer::Layer;
use crate::model::norm::Norm;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeTable;
use crate::model::transformer::End;
use crate::model::transformer::Transformer;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::Precision::Working;

/// Reads what the plan names.
pub fn transformer<O: Ops>(
    weights: &mut Weights<'_, O>,
    plan: &BackbonePlan,
) -> Result<Transformer<O>, ModelError> {
    let embedding = weights.part(&(&plan.embedding, &plan.ropes), |weights| {
        Ok(Box::new(Embedding::load(weights, &plan.embedding)?) as _)
    })?;
    let mut layers = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        layers.push(weights.part(layer, |weights| Ok(Box::new(Layer::load(weights, layer)?) as _))?);
    }
    let end = weights.part(&(&plan.norm, &plan.projection), |weights| {
        let norm = plan.norm.as_ref().map(|norm| Norm::load(weights, norm)).transpose()?;
        let projection = plan.projection.as_ref().map(|plan| weights.linear(plan, Working)).transpose()?;
        Ok(End { norm, projection })
    })?;
    Ok(Transformer {
        embedding,
        ropes: plan.ropes.iter().cloned().map(RopeTable::new).collect(),
        layers,
        width: plan.hidden(),
        end,
    })
}
