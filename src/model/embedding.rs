//! Token ids → hidden states.
//!
//! ```text
//! ids → words + types + positions → · scale → norm → projection → [rows, hidden]
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::ModelError;
use crate::model::norm::Norm;
use crate::model::plan::EmbeddingPlan;
use crate::model::plan::PositionRule;
use crate::model::transformer;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::Precision::Working;
use crate::ops::batch::PackedBatch;
use crate::ops::error::Result;
use crate::ops::inputs::Which;

/// What an [`EmbeddingPlan`] describes.
#[derive(Debug)]
pub struct Embedding<O: Ops> {
    words: Arc<O::Table>,
    types: Option<Arc<O::Table>>,
    tasks: Option<Arc<O::Table>>,
    positions: Option<(Arc<O::Table>, PositionRule)>,
    scale: Option<f64>,
    norm: Option<Norm<O>>,
    projection: Option<Arc<O::Linear>>,
    adds_positions_last: bool,
}

impl<O: Ops> Embedding<O> {
    /// Reads what the plan names.
    pub fn load(weights: &mut Weights<'_, O>, plan: &EmbeddingPlan) -> std::result::Result<Self, ModelError> {
        let words = weights.table(&plan.words)?;
        let types = plan.types.as_ref().map(|types| weights.table(types)).transpose()?;
        let tasks = plan.tasks.as_ref().map(|tasks| weights.table(tasks)).transpose()?;
        let positions = match &plan.positions {
            Some(positions) => Some((weights.table(&positions.table)?, positions.rule)),
            None => None,
        };
        let norm = plan.norm.as_ref().map(|norm| Norm::load(weights, norm)).transpose()?;
        let projection = plan.projection.as_ref();
        let projection = projection.map(|projection| weights.linear(projection, Working)).transpose()?;
        Ok(Self {
            words,
            types,
            tasks,
            positions,
            scale: plan.scale,
            norm,
            projection,
            adds_positions_last: plan.adds_positions_last,
        })
    }
}

impl<O: Ops> transformer::Embedding<O> for Embedding<O> {
    fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>> {
        let mut ids: Vec<Cow<'_, [u32]>> = vec![batch.token_ids().into()];
        if self.types.is_some() {
            ids.push(batch.type_ids().into());
        }
        if self.tasks.is_some() {
            ids.push(vec![0; batch.num_rows()].into());
        }
        if let Some((_, rule)) = self.positions {
            ids.push(positions(batch, rule).into());
        }
        ids
    }

    fn forward(&self, ops: &O, batch: &O::Batch<'_>, which: &Which) -> Result<O::Rows> {
        let positions = self.positions.as_ref().map(|(table, _)| table);
        let tables = [Some(&self.words), self.types.as_ref(), self.tasks.as_ref(), positions];
        let tables = tables.into_iter().flatten().map(|table| &**table);
        let mut tables: Vec<_> = tables.zip(0..).collect();
        let late = if self.adds_positions_last { tables.split_off(1) } else { Vec::new() };
        let mut x = ops.embed(&tables, self.scale, batch, which)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(ops, &x)?;
        }
        if !late.is_empty() {
            if let Some(projection) = &self.projection {
                x = ops.linear(&x, projection)?;
            }
            return ops.dropout(ops.add(x, &ops.embed(&late, None, batch, which)?)?);
        }
        match &self.projection {
            None => ops.dropout(x),
            Some(projection) => ops.linear(&ops.dropout(x)?, projection),
        }
    }
}

/// For each row of the batch, its row of the position embedding.
fn positions(batch: &PackedBatch, rule: PositionRule) -> Vec<u32> {
    let mut positions = Vec::with_capacity(batch.num_rows());
    for segment in batch.segments() {
        match rule {
            PositionRule::From(first) => {
                let start = first + segment.first_position as u32;
                positions.extend(start..start + segment.rows.len() as u32);
            }
            PositionRule::AfterPadding(padding) => {
                debug_assert_eq!(segment.parent, None, "bidirectional models share no prefixes");
                let mut last = padding;
                positions.extend(batch.token_ids()[segment.rows.clone()].iter().map(|&token| {
                    if token == padding {
                        return padding;
                    }
                    last += 1;
                    last
                }));
            }
        }
    }
    positions
}
