//! What a model is made of, as data: which tensors it reads, in what order, of what shape, and what is done with them.
//!
//! ```text
//! config.json → families → BackbonePlan ┐
//! tensor names of the checkpoint → head ┴→ ModelPlan → checked, frozen, counted, read ahead, saved, benched
//!                                                  └→ loaded: transformer, head
//! ```
//!
//! A plan is all that tells one family from another. Whoever needs to know what a checkpoint is made of asks the plan,
//! which costs nothing; nobody builds a model to find out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Serialize;

use crate::merge::experts::ExpertTensors;
use crate::model::labels::Labels;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::model::routing::Routing;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Clamp;
use crate::ops::Gate;
use crate::ops::source::RowMap;

/// Rows of a tensor that a layer takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowsPlan {
    /// Of the tensor.
    pub name: String,
    /// Those of the layer, among them.
    pub rows: RowMap,
}

/// A linear layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearPlan {
    /// `[output, input]`
    pub weight: RowsPlan,
    /// `[output]`
    pub bias: Option<RowsPlan>,
    /// Width of the output.
    pub output: usize,
    /// Width of the input.
    pub input: usize,
}

impl LinearPlan {
    /// A layer with tensors of its own, `name.weight` and, if it has one, `name.bias`.
    pub fn new(name: &str, output: usize, input: usize, has_bias: bool) -> Self {
        Self::of_rows(name, RowMap::all(output), output, input, has_bias)
    }

    /// A layer that takes `rows` of such tensors.
    pub fn of_rows(name: &str, rows: RowMap, output: usize, input: usize, has_bias: bool) -> Self {
        let of = |end: &str| RowsPlan { name: format!("{name}.{end}"), rows };
        Self { weight: of("weight"), bias: has_bias.then(|| of("bias")), output, input }
    }

    /// Multiplications for one row.
    pub fn products(&self) -> usize {
        self.input * self.output
    }
}

/// An embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TablePlan {
    /// Of the tensor, `[rows, width]`.
    pub name: String,
    /// How many ids it has a row for.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
}

/// What a norm does before its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / rms(x)`
    Rms,
    /// The same; then it multiplies by `1 + weight` (Gemma).
    RmsUnitOffset,
    /// `(x - mean) / std`
    Layer,
    /// The same; then it multiplies by `1 + weight` (Nemotron).
    LayerUnitOffset,
}

/// A norm: of rows, or, where `width` is a head's, of each head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NormPlan {
    /// Which.
    pub kind: NormKind,
    /// Factors, `[width]`.
    pub weight: Option<String>,
    /// Factors of each head, of which each has its own (StableLM).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights_of_heads: Vec<String>,
    /// Offsets, `[width]`.
    pub bias: Option<String>,
    /// How many columns are normed together.
    pub width: usize,
    /// Added to the mean square, or the variance.
    pub eps: f64,
}

impl NormPlan {
    /// Of `name.weight`.
    pub fn rms(kind: NormKind, name: &str, width: usize, eps: f64) -> Self {
        let weight = Some(format!("{name}.weight"));
        Self { kind, weight, weights_of_heads: Vec::new(), bias: None, width, eps }
    }

    /// Of `name.weight` and `name.bias`.
    pub fn layer(name: &str, width: usize, eps: f64) -> Self {
        Self { bias: Some(format!("{name}.bias")), ..Self::rms(NormKind::Layer, name, width, eps) }
    }
}

/// From tokens to hidden states.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingPlan {
    /// By token id.
    pub words: TablePlan,
    /// By token type.
    pub types: Option<TablePlan>,
    /// By task, of which there is but the first (ERNIE).
    pub tasks: Option<TablePlan>,
    /// By position; a model without has no end of positions.
    pub positions: Option<PositionsPlan>,
    /// Factor on the sum.
    pub scale: Option<f64>,
    /// Of the sum.
    pub norm: Option<NormPlan>,
    /// From the width of the tables to that of the layers (ELECTRA, ALBERT).
    pub projection: Option<LinearPlan>,
    /// Whether positions are added after all that (OPT-350m, BioGPT), and not before.
    #[serde(rename = "projects_words")]
    pub adds_positions_last: bool,
}

/// An embedding of positions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionsPlan {
    /// By position.
    pub table: TablePlan,
    /// Which row a token takes.
    pub rule: PositionRule,
}

/// Which row of the position embedding a token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionRule {
    /// The first token this one, and so on: 0 in BERT, 2 in OPT.
    From(u32),
    /// Tokens that are not this padding count from the row after it, and padding takes its own (RoBERTa).
    AfterPadding(u32),
}

/// The norms of a layer; `None`: it has none there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NormsPlan {
    /// Of what attention reads.
    pub attention_input: Option<NormPlan>,
    /// Of what attention adds.
    pub attention_output: Option<NormPlan>,
    /// Of the sum (BERT).
    pub attention_sum: Option<NormPlan>,
    /// Of what the MLP reads.
    pub mlp_input: Option<NormPlan>,
    /// Of what the MLP adds.
    pub mlp_output: Option<NormPlan>,
    /// Of the sum (BERT).
    pub mlp_sum: Option<NormPlan>,
}

/// Attention with its projections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionPlan {
    /// `[heads · head_dim, hidden]`
    pub query: LinearPlan,
    /// `[kv_heads · head_dim, hidden]`
    pub key: LinearPlan,
    /// `[kv_heads · value_dim, hidden]`
    pub value: LinearPlan,
    /// What makes a memory of keys and values, in the place of a softmax over scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaPlan>,
    /// What the output is multiplied with before its layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<OutputGatePlan>,
    /// What these three read in the place of the layer's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentPlan>,
    /// `[hidden, heads · value_dim]`
    pub output: LinearPlan,
    /// Of queries and keys.
    pub qk_norms: Option<[NormPlan; 2]>,
    /// Whether that is done after they are turned (HunYuan) and not before.
    pub norms_turned: bool,
    /// By which of the plan's ropes queries and keys are turned.
    pub ropes: Option<[usize; 2]>,
    /// By which of them all columns of queries grow then, those too that do not turn (Mistral-4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<usize>,
    /// What a query sees, and how scores are made.
    pub spec: AttentionSpec,
    /// One score more for each query head, `[heads]`, whose weight goes to nobody (GPT-OSS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sinks: Option<String>,
    /// What scores have for distances, where `spec` says [`Distance::Buckets`](crate::ops::Distance::Buckets) or
    /// [`Distance::Biases`](crate::ops::Distance::Biases).
    pub relative: Option<RelativePlan>,
}

/// A gated delta rule (Qwen3-Next): see [`Ops::delta`](crate::ops::Ops::delta). Queries and keys have `kv_heads` heads of `head_dim`
/// columns, values `heads` of `value_dim`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeltaPlan {
    /// Over positions, of queries, keys and values: `[their columns, 1, kernel]`.
    pub convolution: String,
    /// How many positions it sees.
    pub kernel: usize,
    /// After it.
    pub activation: Activation,
    /// How much is learned, `[heads, hidden]`.
    pub learning: LinearPlan,
    /// How much is forgotten, `[heads, hidden]`.
    pub forgetting: LinearPlan,
    /// `[heads]`
    pub rates: String,
    /// `[heads]`
    pub offsets: String,
}

/// A gate of what attention puts out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputGatePlan {
    /// Of each head of the output first.
    pub norm: Option<NormPlan>,
    /// `[heads · value_dim, hidden]`, of the layer's input.
    pub linear: LinearPlan,
    /// What becomes of that.
    pub function: Gate,
}

/// Latent attention: queries, keys and values by way of narrower rows (DeepSeek-V2).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatentPlan {
    /// What queries are made of; without, they read the layer's input.
    pub query: Option<NarrowPlan>,
    /// What values are made of, and keys but for the part below.
    pub key_value: NarrowPlan,
    /// `[columns that turn, hidden]`: the first columns of a key, the same in all heads.
    pub shared_key: LinearPlan,
}

/// Rows that are narrower than the layer's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NarrowPlan {
    /// `[rank, hidden]`
    pub linear: LinearPlan,
    /// Of its output.
    pub norm: NormPlan,
}

/// An embedding of distances, and what a layer makes of it (DeBERTa); or, without norm and projections, what scores have
/// themselves (MPNet).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RelativePlan {
    /// A row for each bucket; of all layers the same.
    pub table: TablePlan,
    /// Of the rows.
    pub norm: Option<NormPlan>,
    /// To what queries are multiplied with.
    pub key: Option<LinearPlan>,
    /// To what keys are multiplied with.
    pub query: Option<LinearPlan>,
}

/// What an MLP does before its last layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly all have a gate")]
pub enum InsidePlan {
    /// `activation(gate) · up`
    Gated {
        /// What the activation is applied to.
        gate: LinearPlan,
        /// What the gate lets through.
        up: LinearPlan,
    },
    /// `activation(up)`
    Plain(LinearPlan),
}

/// An MLP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MlpPlan {
    /// Before the last layer.
    pub inside: InsidePlan,
    /// Of the gate, or between the two layers.
    pub activation: Activation,
    /// What a gate lets through at most, in the place of the activation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp: Option<Clamp>,
    /// The last layer.
    pub down: LinearPlan,
}

impl MlpPlan {
    /// Multiplications for one row.
    pub fn products(&self) -> usize {
        let inside = match &self.inside {
            InsidePlan::Gated { gate, up } => gate.products() + up.products(),
            InsidePlan::Plain(up) => up.products(),
        };
        inside + self.down.products()
    }
}

/// Several MLPs, of which each row goes through a few.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsPlan {
    /// What tells how well an expert fits a row, `[experts, hidden]`.
    pub router: LinearPlan,
    /// What becomes of that.
    pub routing: Routing,
    /// What is added to scores for the choice alone, `[experts]` (DeepSeek-V3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correction: Option<String>,
    /// Whether checkpoints may be without: then it is zero (A.X-K1).
    #[serde(skip)]
    pub may_lack_correction: bool,
    /// All alike.
    pub experts: Vec<MlpPlan>,
    /// What every row goes through beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedPlan>,
    /// The same where a checkpoint stacks experts into one tensor, as transformers has them in memory and mergekit writes
    /// them.
    #[serde(skip)]
    pub stacked: Option<Box<Self>>,
}

/// An MLP that all rows go through, beside experts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SharedPlan {
    /// As one of them.
    pub mlp: MlpPlan,
    /// `[1, hidden]`, whose sigmoid is its weight; else that is one.
    pub gate: Option<LinearPlan>,
}

/// What a layer does after attention.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "nearly all layers have an MLP")]
pub enum FeedForwardPlan {
    /// The same for all rows.
    Mlp(MlpPlan),
    /// For each row that of a few experts.
    Experts(Box<ExpertsPlan>),
}

/// A convolution over positions of what a layer reads: its output is added to the layer's, and the sum normed (DeBERTa-v2-xlarge).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConvolutionPlan {
    /// Of each group of columns, on those columns at `kernel` positions.
    pub groups: Vec<LinearPlan>,
    /// How many positions it sees; the middle one is the token's own.
    pub kernel: usize,
    /// After it.
    pub activation: Activation,
    /// Of the sum.
    pub norm: NormPlan,
}

/// A layer of a transformer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerPlan {
    /// Around attention and MLP.
    pub norms: NormsPlan,
    /// Attention.
    pub attention: AttentionPlan,
    /// MLP.
    #[serde(rename = "mlp")]
    pub feed_forward: FeedForwardPlan,
    /// Beside both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convolution: Option<ConvolutionPlan>,
    /// Factor on what attention adds, and on what the MLP adds (MiniCPM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added_scale: Option<f64>,
    /// Whether attention and MLP both read the layer's input (GPT-NeoX), and not one after the other.
    pub is_parallel: bool,
}

/// A transformer below its head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackbonePlan {
    /// What stands before the names below in checkpoints, by likelihood: first what transformers writes.
    #[serde(skip)]
    pub prefixes: &'static [&'static str],
    /// What names of tensors that no reward depends on begin with, with the prefix or without; or, from a dot on, end with.
    #[serde(skip)]
    pub unused: &'static [&'static str],
    /// Tokens → hidden states.
    pub embedding: EmbeddingPlan,
    /// Rotary position embeddings, which layers name by their index.
    pub ropes: Vec<RopeConfig>,
    /// In order, never empty.
    pub layers: Vec<LayerPlan>,
    /// After the last layer.
    pub norm: Option<NormPlan>,
    /// From the width of the layers to what heads read (OPT-350m).
    pub projection: Option<LinearPlan>,
    /// The longest sequence that the model was made for.
    pub max_tokens: usize,
    /// What transformers' `*ForSequenceClassification` puts on it.
    pub head: HeadPlan,
}

impl BackbonePlan {
    /// Rows of the words' embedding.
    pub fn vocab_size(&self) -> usize {
        self.embedding.words.rows
    }

    /// Width of the layers.
    pub fn hidden(&self) -> usize {
        self.layers[0].attention.output.output
    }

    /// Width of what heads read.
    pub fn features(&self) -> usize {
        self.projection.as_ref().map_or_else(|| self.hidden(), |projection| projection.output)
    }

    /// Rows of the token type embedding, of a model that has one.
    pub fn type_vocab_size(&self) -> Option<usize> {
        self.embedding.types.as_ref().map(|types| types.rows)
    }

    /// Whether longer sequences than `max_tokens` can be computed: no table of positions ends.
    pub fn has_endless_positions(&self) -> bool {
        self.embedding.positions.is_none()
    }

    /// Whether tokens see only what is before them: a decoder.
    pub fn is_causal(&self) -> bool {
        self.layers.iter().all(|layer| layer.attention.spec.causal)
    }

    /// Whether rows go through experts in some layer.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForwardPlan::Experts(_)))
    }

    /// What it has, if anything, that is computed on a CPU alone and not trained.
    pub fn on_cpu_alone(&self) -> Option<&'static str> {
        let has = |what: fn(&AttentionPlan) -> bool| self.layers.iter().any(|layer| what(&layer.attention));
        let found = [
            (self.has_experts(), "experts"),
            (has(|attention| attention.latent.is_some()), "latent attention"),
            (has(|attention| attention.delta.is_some()), "linear attention"),
            (has(|attention| attention.gate.is_some()), "a gate of attention"),
        ];
        found.into_iter().find(|(is_there, _)| *is_there).map(|(_, what)| what)
    }
}

/// The layer before the last of a head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DensePlan {
    /// `[hidden, hidden]`
    pub linear: LinearPlan,
    /// Whether its names are below the backbone's prefix (BERT's pooler).
    pub is_in_backbone: bool,
    /// After it.
    pub activation: Activation,
    /// After that (ModernBERT).
    pub norm: Option<NormPlan>,
    /// Whether training drops what it reads (RoBERTa).
    pub drops_input: bool,
}

/// A reward head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeadPlan {
    /// Whose it is.
    pub kind: HeadKind,
    /// Before the last layer.
    pub dense: Option<DensePlan>,
    /// The last layer.
    pub output: LinearPlan,
    /// Which hidden states it reads, where nobody says otherwise.
    pub pooling: Pooling,
    /// Whether `dense` reads every token, and pooling is of what it makes of them (EuroBERT).
    pub pools_late: bool,
    /// The token that the model's own code appends to texts, and at which it reads the reward (InternLM2).
    pub appended_token: Option<u32>,
    /// Weights of the last layer's rows, whose sum is the reward; none where it has one row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_weights: Option<Vec<f64>>,
}

impl HeadPlan {
    /// A linear layer alone.
    pub fn linear(kind: HeadKind, name: &str, hidden: usize, has_bias: bool, pooling: Pooling) -> Self {
        let output = LinearPlan::new(name, 1, hidden, has_bias);
        Self {
            kind,
            dense: None,
            output,
            pooling,
            pools_late: false,
            appended_token: None,
            label_weights: None,
        }
    }

    /// The same head where its last layer has several outputs.
    pub(super) fn with_labels(mut self, labels: &Labels, outputs: usize) -> Self {
        let (name, has_bias) = (self.last_layer().to_owned(), self.output.bias.is_some());
        let (rows, taken) = match labels {
            Labels::One { index, .. } => (RowMap::from(*index, outputs), 1),
            Labels::Sum(weights) => {
                self.label_weights = Some(weights.clone());
                (RowMap::all(outputs), outputs)
            }
        };
        self.output = LinearPlan::of_rows(&name, rows, taken, self.output.input, has_bias);
        self
    }

    /// The name of the last layer, without `.weight` and `.bias`.
    pub fn last_layer(&self) -> &str {
        let name = &self.output.weight.name;
        name.strip_suffix(".weight").unwrap_or(name)
    }
}

/// The part of a model that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Tokens → hidden states, with its norm.
    Embedding,
    /// A layer, by its index.
    Layer(usize),
    /// What comes after the last layer.
    End,
    /// The head but for its last layer.
    Dense,
    /// The last layer of the head.
    Output,
}

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An embedding.
    Table,
    /// The weights of linear layers.
    Weight,
    /// Their offsets.
    Bias,
    /// The factors of a norm.
    NormWeight,
    /// The offsets of a norm.
    NormBias,
}

impl Role {
    /// Whether it is a matrix, and not a vector.
    pub fn is_matrix(self) -> bool {
        matches!(self, Self::Table | Self::Weight)
    }
}

/// A tensor that a model reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// In the checkpoint.
    pub name: String,
    /// As it must be.
    pub shape: Vec<usize>,
    /// What it belongs to; of several, the first.
    pub part: Part,
    /// What it is.
    pub role: Role,
    /// Whether its name begins with the backbone's prefix.
    pub is_in_backbone: bool,
    /// How many layers read it: several where each takes some of its rows, or all are one layer (ALBERT).
    pub uses: usize,
}

/// Lists tensors in the order in which a model is loaded.
#[derive(Debug, Default)]
struct Listing {
    prefix: String,
    tensors: Vec<TensorPlan>,
    /// Where each is among them.
    places: HashMap<String, usize>,
}

impl Listing {
    fn add(&mut self, name: &str, shape: Vec<usize>, part: Part, role: Role, is_in_backbone: bool) {
        let name = if is_in_backbone { format!("{}{name}", self.prefix) } else { name.to_owned() };
        match self.places.entry(name) {
            Entry::Occupied(place) => self.tensors[*place.get()].uses += 1,
            Entry::Vacant(place) => {
                let name = place.key().clone();
                place.insert(self.tensors.len());
                self.tensors.push(TensorPlan { name, shape, part, role, is_in_backbone, uses: 1 });
            }
        }
    }

    fn linear(&mut self, plan: &LinearPlan, part: Part, is_in_backbone: bool) {
        let weight = &plan.weight;
        self.add(&weight.name, weight.rows.shape(plan.input), part, Role::Weight, is_in_backbone);
        if let Some(bias) = &plan.bias {
            self.add(&bias.name, bias.rows.shape_of_bias(), part, Role::Bias, is_in_backbone);
        }
    }

    fn table(&mut self, plan: &TablePlan, part: Part) {
        self.add(&plan.name, vec![plan.rows, plan.width], part, Role::Table, true);
    }

    fn norm(&mut self, plan: &NormPlan, part: Part, is_in_backbone: bool) {
        let weights = plan.weight.iter().chain(&plan.weights_of_heads).map(|name| (name, Role::NormWeight));
        for (name, role) in weights.chain(plan.bias.iter().map(|name| (name, Role::NormBias))) {
            self.add(name, vec![plan.width], part, role, is_in_backbone);
        }
    }

    fn norms<'p>(&mut self, plans: impl IntoIterator<Item = &'p Option<NormPlan>>, part: Part) {
        plans.into_iter().flatten().for_each(|norm| self.norm(norm, part, true));
    }

    fn head(&mut self, plan: &HeadPlan) {
        if let Some(dense) = &plan.dense {
            self.linear(&dense.linear, Part::Dense, dense.is_in_backbone);
            if let Some(norm) = &dense.norm {
                self.norm(norm, Part::Dense, dense.is_in_backbone);
            }
        }
        self.linear(&plan.output, Part::Output, false);
    }

    fn backbone(&mut self, plan: &BackbonePlan) {
        let EmbeddingPlan { words, types, tasks, positions, norm, projection, .. } = &plan.embedding;
        self.table(words, Part::Embedding);
        types.iter().chain(tasks).for_each(|table| self.table(table, Part::Embedding));
        positions.iter().for_each(|positions| self.table(&positions.table, Part::Embedding));
        self.norms([norm], Part::Embedding);
        projection.iter().for_each(|projection| self.linear(projection, Part::Embedding, true));
        for (index, layer) in plan.layers.iter().enumerate() {
            self.layer(layer, Part::Layer(index));
        }
        self.norms([&plan.norm], Part::End);
        plan.projection.iter().for_each(|projection| self.linear(projection, Part::End, true));
    }

    fn convolution(&mut self, ConvolutionPlan { groups, kernel, norm, .. }: &ConvolutionPlan, part: Part) {
        for LinearPlan { weight, bias, input, .. } in groups {
            self.add(&weight.name, vec![weight.rows.of, input / kernel, *kernel], part, Role::Weight, true);
            if let Some(bias) = bias {
                self.add(&bias.name, vec![bias.rows.of], part, Role::Bias, true);
            }
        }
        self.norm(norm, part, true);
    }

    fn mlp(&mut self, plan: &MlpPlan, part: Part) {
        match &plan.inside {
            InsidePlan::Gated { gate, up } => {
                self.linear(gate, part, true);
                self.linear(up, part, true);
            }
            InsidePlan::Plain(up) => self.linear(up, part, true),
        }
        self.linear(&plan.down, part, true);
    }

    fn experts(&mut self, ExpertsPlan { router, correction, experts, shared, .. }: &ExpertsPlan, part: Part) {
        self.linear(router, part, true);
        correction.iter().for_each(|name| self.add(name, vec![experts.len()], part, Role::Bias, true));
        let gate = shared.as_ref().and_then(|shared| shared.gate.as_ref());
        gate.iter().for_each(|gate| self.linear(gate, part, true));
        experts.iter().chain(shared.iter().map(|shared| &shared.mlp)).for_each(|mlp| self.mlp(mlp, part));
    }

    fn projections(
        &mut self,
        AttentionPlan { query, key, value, latent, delta, gate, spec, .. }: &AttentionPlan,
        part: Part,
    ) {
        if let Some(LatentPlan { query: narrow, key_value, shared_key }) = latent {
            let of_queries = narrow.as_ref().map_or(query, |narrow| &narrow.linear);
            for plan in [of_queries, &key_value.linear, shared_key] {
                self.linear(plan, part, true);
            }
            if let Some(narrow) = narrow {
                self.norm(&narrow.norm, part, true);
                self.linear(query, part, true);
            }
            self.norm(&key_value.norm, part, true);
        } else {
            self.linear(query, part, true);
        }
        self.linear(key, part, true);
        self.linear(value, part, true);
        if let Some(DeltaPlan { convolution, kernel, learning, forgetting, rates, offsets, .. }) = delta {
            self.linear(learning, part, true);
            self.linear(forgetting, part, true);
            let columns = query.output + key.output + value.output;
            self.add(convolution, vec![columns, 1, *kernel], part, Role::Weight, true);
            for name in [rates, offsets] {
                self.add(name, vec![spec.heads], part, Role::Bias, true);
            }
        }
        if let Some(OutputGatePlan { norm, linear, .. }) = gate {
            self.norms([norm], part);
            self.linear(linear, part, true);
        }
    }

    fn layer(&mut self, plan: &LayerPlan, part: Part) {
        let LayerPlan { norms, attention, feed_forward, convolution, .. } = plan;
        let AttentionPlan { output, qk_norms, relative, sinks, .. } = attention;
        self.norms([&norms.attention_input, &norms.attention_output, &norms.attention_sum], part);
        self.norms([&norms.mlp_input, &norms.mlp_output, &norms.mlp_sum], part);
        self.projections(attention, part);
        qk_norms.iter().flatten().for_each(|norm| self.norm(norm, part, true));
        if let Some(RelativePlan { table, norm, key, query }) = relative {
            self.table(table, Part::Embedding);
            self.norms([norm], Part::Embedding);
            [key, query].into_iter().flatten().for_each(|plan| self.linear(plan, part, true));
        }
        sinks.iter().for_each(|name| self.add(name, vec![attention.spec.heads], part, Role::Bias, true));
        self.linear(output, part, true);
        match feed_forward {
            FeedForwardPlan::Mlp(mlp) => self.mlp(mlp, part),
            FeedForwardPlan::Experts(experts) => self.experts(experts, part),
        }
        convolution.iter().for_each(|convolution| self.convolution(convolution, part));
    }
}

/// A model of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// What stands before the backbone's names, for example "model.".
    pub prefix: String,
    /// Below the head; names without the prefix.
    pub backbone: BackbonePlan,
    /// Names as they are, but for a dense layer that [is in the backbone](DensePlan::is_in_backbone).
    pub head: HeadPlan,
    /// All that the model reads, each once, in the order in which it is loaded.
    pub tensors: Vec<TensorPlan>,
}

impl ModelPlan {
    /// Of a backbone whose names begin with `prefix`, and a head.
    pub fn new(prefix: &str, backbone: BackbonePlan, head: HeadPlan) -> Self {
        let mut listing = Listing { prefix: prefix.to_owned(), ..Listing::default() };
        listing.head(&head);
        listing.backbone(&backbone);
        let Listing { prefix, tensors, .. } = listing;
        Self { prefix, backbone, head, tensors }
    }

    /// The tensors of its experts.
    pub fn expert_tensors(&self) -> ExpertTensors {
        let mut tensors = ExpertTensors::default();
        for layer in &self.backbone.layers {
            let FeedForwardPlan::Experts(plan) = &layer.feed_forward else { continue };
            let ExpertsPlan { router, experts, .. } = &**plan;
            let full = |plan: &LinearPlan| format!("{}{}", self.prefix, plan.weight.name);
            tensors.routers.push(full(router));
            tensors.experts.extend(experts.iter().map(|expert| full(&expert.down)));
        }
        tensors.experts.dedup(); // of those that are stacked
        tensors
    }
}
