//! Experts: several MLPs, of which each row goes through the few that a router chooses for it.
//!
//! ```text
//! a block   input → router → read → choices [rows, top_k]
//! all rows  for each expert, those that chose it → MLP             experts beside each other
//! a block   for each row, its experts' outputs · weights → sum     in the order of the experts
//! ```
//!
//! An expert reads its weights once for all rows of a batch that chose it, and not once for each block; else few rows of a block
//! would fall to each of many experts. What a row gets does not depend on who else chose its experts.
//!
//! The router is computed in `f32` whatever the variant's precision is, as [heads](crate::ops::Precision) are: rounding would let
//! rows go to other experts. An expert that all rows go through is one more, with a weight of its own.

use std::sync::Arc;

use crate::model::ModelError;
use crate::model::mlp::Mlp;
use crate::model::plan::ExpertsPlan;
use crate::model::routing::Choice;
use crate::model::routing::Routing;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::Precision;
use crate::ops::Term;
use crate::ops::error::Result;

/// Rows that go through an expert at a time, at most.
const MAX_ROWS: usize = 192;

/// What an [`ExpertsPlan`] describes.
#[derive(Debug)]
pub struct Experts<O: Ops> {
    router: Arc<O::Linear>,
    routing: Routing,
    /// See [`ExpertsPlan::correction`].
    correction: Option<Arc<Vec<f32>>>,
    /// Those that are chosen, and then the one that all rows go through.
    experts: Vec<Mlp<O>>,
    shared: Option<Shared<O>>,
    /// Multiplications for one row in each.
    products: Vec<usize>,
}

#[derive(Debug)]
struct Shared<O: Ops> {
    gate: Option<Arc<O::Linear>>,
}

/// Some rows that go through one expert.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub expert: usize,
    /// Among those that were assigned.
    pub rows: Vec<usize>,
}

impl<O: Ops> Experts<O> {
    /// Reads what the plan names.
    pub fn load(weights: &mut Weights<'_, O>, plan: &ExpertsPlan) -> std::result::Result<Self, ModelError> {
        let ExpertsPlan { router, routing, correction, experts, shared, .. } = plan;
        let router = weights.linear(router, Precision::F32)?;
        let correction = correction.as_ref().map(|name| weights.numbers(name)).transpose()?;
        let load_shared = |weights: &mut Weights<'_, O>| {
            let gate = shared.as_ref()?.gate.as_ref();
            Some(gate.map(|gate| weights.linear(gate, Precision::F32)).transpose())
        };
        let gate = load_shared(weights).transpose()?;
        let all = || experts.iter().chain(shared.iter().map(|shared| &shared.mlp));
        Ok(Self {
            router,
            routing: routing.clone(),
            correction,
            shared: gate.map(|gate| Shared { gate }),
            experts: all().map(|plan| Mlp::load(weights, plan)).collect::<std::result::Result<_, _>>()?,
            products: all().map(|plan| plan.products()).collect(),
        })
    }

    /// Multiplications for one row.
    pub fn products(&self) -> usize {
        let shared = self.shared.as_ref().and_then(|_| self.products.last());
        self.routing.top_k * self.products[0] + shared.unwrap_or(&0)
    }

    /// The same in one of the experts.
    pub fn products_of(&self, expert: usize) -> usize {
        self.products[expert]
    }

    /// How many experts a row goes through.
    pub fn of_row(&self) -> usize {
        self.routing.top_k + usize::from(self.shared.is_some())
    }

    /// The experts of rows, [so many](Self::of_row) for each in ascending order.
    pub fn choose(&self, ops: &O, input: &O::Rows) -> Result<Vec<Choice>> {
        let mut results = vec![vec![ops.linear(input, &self.router)?]];
        if let Some(Shared { gate: Some(gate) }) = &self.shared {
            results.push(vec![ops.linear(input, gate)?]);
        }
        let read = ops.read(&results)?;
        let experts = self.experts.len() - usize::from(self.shared.is_some());
        let rows = read[0].chunks_exact(experts);
        let mut choices = Vec::with_capacity(rows.len() * self.of_row());
        for (row, logits) in rows.enumerate() {
            let correction = self.correction.as_deref().map(Vec::as_slice);
            self.routing.choose(logits, correction, &mut choices);
            if self.shared.is_some() {
                let weight = read.get(1).map_or(1.0, |gates| 1.0 / (1.0 + (-gates[row]).exp()));
                choices.push(Choice { expert: experts, weight });
            }
        }
        Ok(choices)
    }

    /// Groups rows by the experts that they chose. Tells for each choice, in their order, where the row's output will be
    /// among those of the groups.
    pub fn assign(&self, choices: &[Choice]) -> (Vec<Group>, Vec<Term>) {
        let mut rows_of = vec![Vec::new(); self.experts.len()];
        for (place, choice) in choices.iter().enumerate() {
            rows_of[choice.expert].push(place / self.of_row());
        }
        let mut first_group = Vec::with_capacity(rows_of.len());
        let mut groups = Vec::new();
        for (expert, rows) in rows_of.iter().enumerate() {
            first_group.push(groups.len());
            groups.extend(rows.chunks(MAX_ROWS).map(|rows| Group { expert, rows: rows.to_vec() }));
        }
        let mut taken = vec![0; rows_of.len()];
        let term = |&Choice { expert, weight }: &Choice| {
            let place = taken[expert];
            taken[expert] += 1;
            Term { block: first_group[expert] + place / MAX_ROWS, row: place % MAX_ROWS, weight }
        };
        let terms = choices.iter().map(term).collect();
        (groups, terms)
    }

    /// What an expert makes of rows.
    pub fn forward(&self, ops: &O, expert: usize, rows: &O::Rows) -> Result<O::Rows> {
        let mlp = &self.experts[expert];
        ops.linear(&mlp.inside(ops, rows)?, &mlp.down)
    }
}
