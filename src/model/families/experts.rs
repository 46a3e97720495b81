//! Experts in words that their tensors follow from.
//!
//! transformers has all experts of a layer in two tensors in memory, and one tensor for each on disk. Other tools write what is in
//! memory, and transformers reads either: so do we.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::plan::ExpertsPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::MlpPlan;
use crate::model::plan::RowsPlan;
use crate::model::plan::SharedPlan;
use crate::model::routing::Routing;
use crate::ops::Activation;
use crate::ops::Clamp;
use crate::ops::source::RowMap;

/// What layers have in the place of an MLP.
#[derive(Clone)]
pub(super) struct Experts {
    /// Which layers.
    pub(super) in_layers: Vec<bool>,
    /// How many in each of them.
    pub(super) count: usize,
    /// Width inside each.
    pub(super) intermediate: usize,
    pub(super) routing: Routing,
    pub(super) names: ExpertsNames,
    /// Names in files of those who write what transformers has in memory.
    pub(super) in_memory: Option<ExpertsNames>,
    pub(super) shared: Option<Shared>,
    /// What is added to scores for the choice alone.
    pub(super) correction: Option<Correction>,
    /// See [`MlpPlan::clamp`].
    pub(super) clamp: Option<Clamp>,
}

/// An MLP that all rows go through beside them.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    /// Without the last part, which are those of an MLP.
    pub(super) name: &'static str,
    pub(super) intermediate: usize,
    /// Of what its weight is the sigmoid of.
    pub(super) gate: Option<&'static str>,
    /// Whether its layers have biases.
    pub(super) has_bias: bool,
}

/// See [`ExpertsPlan::correction`].
#[derive(Clone, Copy)]
pub(super) struct Correction {
    pub(super) name: &'static str,
    /// See [`ExpertsPlan::may_lack_correction`].
    pub(super) may_lack: bool,
}

/// What experts of a layer are called.
#[derive(Clone, Copy)]
pub(super) struct ExpertsNames {
    pub(super) router: &'static str,
    /// Whether that has a bias.
    pub(super) router_bias: bool,
    pub(super) tensors: ExpertTensors,
}

/// How experts are kept.
#[derive(Clone, Copy)]
pub(super) enum ExpertTensors {
    /// Each in tensors of its own, below its number.
    Apart { experts: &'static str, parts: [&'static str; 3] },
    /// All in two tensors, `[experts, 2 · intermediate, hidden]`, the gate first, and `[experts, hidden, intermediate]`.
    Stacked { gate_up: &'static str, down: &'static str },
    /// The same the other way round, `[experts, hidden, 2 · intermediate]`, gate and up in turn, and `[experts, intermediate,
    /// hidden]`; with biases (GPT-OSS).
    InTurn { gate_up: &'static str, down: &'static str },
}

/// Gate, up and down of an MLP.
pub(super) const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Qwen2-MoE's, which most have taken over.
pub(super) const NAMES: ExpertsNames = ExpertsNames {
    router: "mlp.gate",
    router_bias: false,
    tensors: ExpertTensors::Apart { experts: "mlp.experts", parts: PARTS },
};

/// The same in memory.
pub(super) const IN_MEMORY: ExpertsNames = ExpertsNames { tensors: STACKED, ..NAMES };

pub(super) const STACKED: ExpertTensors =
    ExpertTensors::Stacked { gate_up: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" };

impl Experts {
    /// With Qwen2-MoE's names, in all layers.
    pub(super) fn new(num_layers: usize, [count, intermediate]: [usize; 2], routing: Routing) -> Self {
        Self {
            in_layers: vec![true; num_layers],
            count,
            intermediate,
            routing,
            names: NAMES,
            in_memory: Some(IN_MEMORY),
            shared: None,
            correction: None,
            clamp: None,
        }
    }

    /// Of a layer, with the names that `of` makes of those within it.
    pub(super) fn plan(
        &self,
        of: &impl Fn(&str) -> String,
        hidden: usize,
        activation: Activation,
    ) -> ExpertsPlan {
        let with = |names: &ExpertsNames| ExpertsPlan {
            router: LinearPlan::new(&of(names.router), self.count, hidden, names.router_bias),
            routing: self.routing.clone(),
            experts: (0..self.count)
                .map(|expert| self.expert(&names.tensors, expert, of, hidden, activation))
                .collect(),
            correction: self.correction.map(|correction| of(correction.name)),
            may_lack_correction: self.correction.is_some_and(|correction| correction.may_lack),
            shared: self.shared.map(|Shared { name, intermediate, gate, has_bias }| SharedPlan {
                mlp: apart(&of(name), PARTS, [hidden, intermediate], has_bias, activation),
                gate: gate.map(|gate| LinearPlan::new(&of(gate), 1, hidden, false)),
            }),
            stacked: None,
        };
        let stacked = self.in_memory.as_ref().map(|names| Box::new(with(names)));
        ExpertsPlan { stacked, ..with(&self.names) }
    }

    fn expert(
        &self,
        tensors: &ExpertTensors,
        expert: usize,
        of: &impl Fn(&str) -> String,
        hidden: usize,
        activation: Activation,
    ) -> MlpPlan {
        let (count, inside) = (self.count, self.intermediate);
        match *tensors {
            ExpertTensors::Apart { experts, parts } => {
                apart(&format!("{}.{expert}", of(experts)), parts, [hidden, inside], false, activation)
            }
            ExpertTensors::Stacked { gate_up, down } => {
                let linear = |name: &str, rows: RowMap, output, input| LinearPlan {
                    weight: RowsPlan { name: of(name), rows: rows.stacked(expert, count) },
                    bias: None,
                    output,
                    input,
                };
                let [gate, up] =
                    [0, inside].map(|first| linear(gate_up, RowMap::from(first, 2 * inside), inside, hidden));
                let down = linear(down, RowMap::all(hidden), hidden, inside);
                MlpPlan { inside: InsidePlan::Gated { gate, up }, activation, clamp: self.clamp, down }
            }
            ExpertTensors::InTurn { gate_up, down } => {
                let linear = |name: &str, rows: RowMap, output, input| {
                    let rows = rows.transposed().stacked(expert, count);
                    let bias = Some(RowsPlan { name: of(&format!("{name}_bias")), rows });
                    LinearPlan { weight: RowsPlan { name: of(name), rows }, bias, output, input }
                };
                let [gate, up] = [0, 1].map(|first| {
                    linear(gate_up, RowMap::from(first, 2 * inside).in_runs(1, 2), inside, hidden)
                });
                let down = linear(down, RowMap::all(hidden), hidden, inside);
                MlpPlan { inside: InsidePlan::Gated { gate, up }, activation, clamp: self.clamp, down }
            }
        }
    }
}

/// An MLP with tensors of its own.
fn apart(
    name: &str,
    [gate, up, down]: [&str; 3],
    [hidden, inside]: [usize; 2],
    has_bias: bool,
    activation: Activation,
) -> MlpPlan {
    let linear =
        |part: &str, output, input| LinearPlan::new(&format!("{name}.{part}"), output, input, has_bias);
    let (gate, up) = (linear(gate, inside, hidden), linear(up, inside, hidden));
    let down = linear(down, hidden, inside);
    MlpPlan { inside: InsidePlan::Gated { gate, up }, activation, clamp: None, down }
}

/// How many experts each of so many layers has, and how many of them a row goes to: under these keys, with these defaults.
pub(super) fn sizes(
    fields: &Fields<'_>,
    num_layers: usize,
    (count, default_count): (&str, usize),
    (top_k, default_top_k): (&str, usize),
) -> Result<[usize; 2], String> {
    let experts = fields.size(count, default_count, at_most::EXPERTS)?;
    let chosen = fields.size(top_k, default_top_k, at_most::EXPERTS)?;
    if experts * num_layers > at_most::EXPERTS {
        return Err(format!(
            "`{count}` {experts} times `num_hidden_layers` {num_layers}: the limit is {}",
            at_most::EXPERTS
        ));
    }
    if chosen > experts {
        return Err(format!("`{top_k}` {chosen} is more than `{count}` {experts}"));
    }
    Ok([experts, chosen])
}

/// In which layers Qwen's models have experts: each `decoder_sparse_step`th but those of `mlp_only_layers`.
pub(super) fn sparse_layers(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<bool>, String> {
    let step = fields.size("decoder_sparse_step", 1, at_most::LAYERS)?;
    let dense: Vec<usize> = match fields.0.get("mlp_only_layers") {
        None | Some(Value::Null) => Vec::new(),
        Some(_) => fields.required("mlp_only_layers")?,
    };
    Ok((0..num_layers).map(|layer| !dense.contains(&layer) && (layer + 1).is_multiple_of(step)).collect())
}
