//! A transformer in words that its tensors follow from: what families differ in. Most take [`decoder`](super::decoder)'s or
//! [`encoder`](super::encoder)'s and say what is different.

use crate::checkpoint::fields::Fields;
use crate::model::families::delta::Delta;
use crate::model::families::experts::Experts;
use crate::model::families::latent::Latent;
use crate::model::plan::AttentionPlan;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::EmbeddingPlan;
use crate::model::plan::FeedForwardPlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::LayerPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::MlpPlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::model::plan::NormsPlan;
use crate::model::plan::OutputGatePlan;
use crate::model::plan::PositionRule;
use crate::model::plan::PositionsPlan;
use crate::model::plan::TablePlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::Gate;
use crate::ops::source::RowMap;

/// A transformer, in words.
#[derive(Clone)]
pub(super) struct Blueprint {
    pub(super) vocab_size: usize,
    /// Rows of the token type embedding, if there is one.
    pub(super) type_vocab_size: Option<usize>,
    /// Rows of an embedding of tasks, of which all tokens have the first (ERNIE).
    pub(super) task_vocab_size: Option<usize>,
    /// Rows of the position embedding, if there is one, and which a token takes.
    pub(super) positions: Option<(usize, PositionRule)>,
    /// Width of the embeddings; where it is not `hidden`, a projection follows.
    pub(super) embedding_width: usize,
    /// Factor on the embeddings.
    pub(super) embedding_scale: Option<f64>,
    /// Whether the sum of the embeddings is normed.
    pub(super) norms_embedding: bool,
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Width inside the MLP.
    pub(super) intermediate: usize,
    pub(super) num_layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Not always hidden / heads.
    pub(super) head_dim: usize,
    /// The longest sequence that the model was made for.
    pub(super) max_tokens: usize,
    pub(super) norm: NormStyle,
    pub(super) norms: Norms,
    /// Whether there is a norm after the last layer.
    pub(super) norms_output: bool,
    pub(super) qk_norm: Option<QkNorm>,
    /// Of the gate, or between the two layers of a plain MLP.
    pub(super) activation: Activation,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// Whether attention and MLP read the same.
    pub(super) is_parallel: bool,
    /// Whether tokens see only what is before them.
    pub(super) is_causal: bool,
    pub(super) ropes: Vec<RopeConfig>,
    /// By which of the ropes a layer turns queries and keys.
    pub(super) rope_of: Vec<Option<usize>>,
    /// Whether the pairs that turn are neighbours, and not half a head apart.
    pub(super) turns_neighbours: bool,
    /// Of what is fewer positions away than this a query of a layer sees; `None`: all.
    pub(super) windows: Vec<Option<usize>>,
    /// Factor on the attention scores.
    pub(super) attention_scale: f64,
    /// `cap · tanh(score / cap)`.
    pub(super) attention_softcap: Option<f64>,
    /// What scores have for how far a key is away.
    pub(super) distance: Distance,
    pub(super) names: Names,
    /// What each layer's names begin with, where several are one (ALBERT).
    pub(super) shared_layers: Option<Vec<String>>,
    /// One score more for each query head.
    pub(super) sinks: Option<&'static str>,
    /// What layers have in the place of an MLP.
    pub(super) experts: Option<Experts>,
    /// How queries, keys and values are made, where they do not read the layer's input; then `qkv` names nothing.
    pub(super) latent: Option<Latent>,
    /// What layers have in the place of attention.
    pub(super) delta: Option<Delta>,
    /// Whether each head of queries is followed by a gate of its output, in one tensor.
    pub(super) gates_attention: bool,
    /// Factor on what attention adds, and on what the MLP adds.
    pub(super) added_scale: Option<f64>,
    /// What transformers puts on it.
    pub(super) head: HeadPlan,
}

/// How all norms of a transformer are.
#[derive(Clone, Copy)]
pub(super) struct NormStyle {
    pub(super) kind: NormKind,
    pub(super) has_weight: bool,
    pub(super) has_bias: bool,
    pub(super) eps: f64,
}

impl NormStyle {
    /// Layer norms with weight and bias.
    pub(super) const fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, has_weight: true, has_bias: true, eps }
    }

    pub(super) fn plan(self, name: &str, width: usize) -> NormPlan {
        let Self { kind, has_weight, has_bias, eps } = self;
        let of = |has: bool, end: &str| has.then(|| format!("{name}.{end}"));
        let (weight, bias) = (of(has_weight, "weight"), of(has_bias, "bias"));
        NormPlan { kind, weight, weights_of_heads: Vec::new(), bias, width, eps }
    }
}

/// Where a layer has norms, and their names within it.
#[derive(Clone, Copy)]
pub(super) struct Norms {
    /// What attention reads.
    pub(super) before_attention: Option<&'static str>,
    /// What attention adds.
    pub(super) after_attention: Option<&'static str>,
    /// The sum of the two.
    pub(super) attention_sum: Option<&'static str>,
    /// What the MLP reads.
    pub(super) before_mlp: Option<&'static str>,
    /// What the MLP adds.
    pub(super) after_mlp: Option<&'static str>,
    /// The sum of the two.
    pub(super) mlp_sum: Option<&'static str>,
    /// Whether the first layer has none before attention (ModernBERT).
    pub(super) skips_first: bool,
}

impl Norms {
    const NONE: Self = Self {
        before_attention: None,
        after_attention: None,
        attention_sum: None,
        before_mlp: None,
        after_mlp: None,
        mlp_sum: None,
        skips_first: false,
    };
    /// Before attention and MLP: Llama and most others.
    pub(super) const BEFORE: Self = Self::before("input_layernorm", "post_attention_layernorm");
    /// After them: OLMo-2, Exaone-4.
    pub(super) const AFTER: Self = Self {
        after_attention: Some("post_attention_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
        ..Self::NONE
    };
    /// On both sides: Gemma-2.
    pub(super) const AROUND: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
        ..Self::NONE
    };

    pub(super) const fn before(attention: &'static str, mlp: &'static str) -> Self {
        Self { before_attention: Some(attention), before_mlp: Some(mlp), ..Self::NONE }
    }

    /// One norm that both read, which run beside each other.
    pub(super) const fn shared(name: &'static str) -> Self {
        Self::before(name, name)
    }

    /// Of the sums: BERT.
    pub(super) const fn of_sums(attention: &'static str, mlp: &'static str) -> Self {
        Self { attention_sum: Some(attention), mlp_sum: Some(mlp), ..Self::NONE }
    }
}

/// Norms of queries and keys, as the others are.
#[derive(Clone, Copy)]
pub(super) struct QkNorm {
    pub(super) names: [&'static str; 2],
    /// Of all heads together, and not of each.
    pub(super) is_whole: bool,
    /// After they are turned, and not before.
    pub(super) is_turned: bool,
}

impl QkNorm {
    pub(super) const HEADS: Self =
        Self { names: ["self_attn.q_norm", "self_attn.k_norm"], is_whole: false, is_turned: false };
    pub(super) const WHOLE: Self = Self { is_whole: true, ..Self::HEADS };
}

/// What a transformer calls its tensors.
#[derive(Clone)]
pub(super) struct Names {
    /// See [`BackbonePlan::prefixes`].
    pub(super) prefixes: &'static [&'static str],
    /// See [`BackbonePlan::unused`].
    pub(super) unused: &'static [&'static str],
    pub(super) words: &'static str,
    pub(super) types: &'static str,
    pub(super) tasks: &'static str,
    pub(super) positions: &'static str,
    pub(super) embedding_norm: &'static str,
    pub(super) embedding_projection: &'static str,
    /// Of layers, without an index.
    pub(super) layers: &'static str,
    pub(super) qkv: QkvNames,
    /// Of attention.
    pub(super) output: &'static str,
    pub(super) inside: InsideNames,
    pub(super) down: &'static str,
    /// After the last layer.
    pub(super) norm: &'static str,
    /// Whether linear layers are `[input, output]` (GPT-2).
    pub(super) are_transposed: bool,
}

/// How queries, keys and values are kept.
#[derive(Clone, Copy)]
pub(super) enum QkvNames {
    /// Each in a tensor of its own.
    Apart([&'static str; 3]),
    /// In one tensor: all queries, all keys, all values.
    Together(&'static str),
    /// In one tensor: of each key and value head its queries, its key, its value.
    ByHead(&'static str),
}

/// How the MLP's first layers are kept.
#[derive(Clone, Copy)]
pub(super) enum InsideNames {
    /// Each in a tensor of its own.
    Gated { gate: &'static str, up: &'static str },
    /// In one tensor, the gate first.
    GateUp(&'static str),
    /// In one tensor, the gate last.
    UpGate(&'static str),
    /// There is no gate.
    Plain(&'static str),
}

impl From<Blueprint> for BackbonePlan {
    fn from(blueprint: Blueprint) -> Self {
        let Blueprint { hidden, embedding_width, norm, names, .. } = &blueprint;
        let table = |name: &str, rows: usize| TablePlan {
            name: format!("{name}.weight"),
            rows,
            width: *embedding_width,
        };
        let positions = |(rows, rule)| PositionsPlan { table: table(names.positions, rows), rule };
        let is_projected = embedding_width != hidden;
        let embedding = EmbeddingPlan {
            words: table(names.words, blueprint.vocab_size),
            types: blueprint.type_vocab_size.map(|rows| table(names.types, rows)),
            tasks: blueprint.task_vocab_size.map(|rows| table(names.tasks, rows)),
            positions: blueprint.positions.map(positions),
            scale: blueprint.embedding_scale,
            norm: blueprint.norms_embedding.then(|| norm.plan(names.embedding_norm, *embedding_width)),
            projection: is_projected
                .then(|| LinearPlan::new(names.embedding_projection, *hidden, *embedding_width, true)),
            adds_positions_last: false,
        };
        Self {
            prefixes: names.prefixes,
            unused: names.unused,
            embedding,
            layers: (0..blueprint.num_layers).map(|layer| blueprint.layer(layer)).collect(),
            norm: blueprint.norms_output.then(|| norm.plan(names.norm, *hidden)),
            projection: None,
            max_tokens: blueprint.max_tokens,
            head: blueprint.head,
            ropes: blueprint.ropes,
        }
    }
}

impl Blueprint {
    /// Turns queries and keys of every layer.
    pub(super) fn with_rope(self, rope: RopeConfig) -> Self {
        Self {
            max_tokens: rope.max_positions(self.max_tokens),
            ropes: vec![rope],
            rope_of: vec![Some(0); self.num_layers],
            ..self
        }
    }

    /// A rope for layers without a window, and one for those with one, each with its defaults. `scales_both`: so does a
    /// `rope_scaling` of transformers 4, which else is of the first.
    pub(super) fn with_ropes_by_type(
        self,
        fields: &Fields<'_>,
        scales_both: bool,
        [full, local]: [RopeDefaults; 2],
    ) -> Result<Self, String> {
        let full = RopeConfig::parse_of("full_attention", true, fields, full)?;
        let local = RopeConfig::parse_of("sliding_attention", scales_both, fields, local)?;
        Ok(Self {
            max_tokens: full.max_positions(self.max_tokens),
            ropes: vec![full, local],
            rope_of: self.windows.iter().map(|window| Some(usize::from(window.is_some()))).collect(),
            ..self
        })
    }

    fn layer(&self, index: usize) -> LayerPlan {
        let Self { hidden, norms, names, .. } = self;
        let prefix = match &self.shared_layers {
            Some(prefixes) => prefixes[index].clone(),
            None => format!("{}.{index}", names.layers),
        };
        let of = |name: &str| format!("{prefix}.{name}");
        let norm = |name: Option<&str>| name.map(|name| self.norm.plan(&of(name), *hidden));
        LayerPlan {
            norms: NormsPlan {
                attention_input: norm(norms.before_attention.filter(|_| index > 0 || !norms.skips_first)),
                attention_output: norm(norms.after_attention),
                attention_sum: norm(norms.attention_sum),
                mlp_input: norm(norms.before_mlp),
                mlp_output: norm(norms.after_mlp),
                mlp_sum: norm(norms.mlp_sum),
            },
            attention: match self.delta.as_ref().filter(|delta| delta.in_layers[index]) {
                Some(delta) => delta.plan(&of, *hidden, (self.activation, self.norm.eps)),
                None => self.attention(&of, index),
            },
            feed_forward: match self.experts.as_ref().filter(|experts| experts.in_layers[index]) {
                Some(experts) => {
                    FeedForwardPlan::Experts(Box::new(experts.plan(&of, *hidden, self.activation)))
                }
                None => FeedForwardPlan::Mlp(self.mlp(&of)),
            },
            convolution: None,
            added_scale: self.added_scale,
            is_parallel: self.is_parallel,
        }
    }

    fn attention(&self, of: &impl Fn(&str) -> String, index: usize) -> AttentionPlan {
        let Self { hidden, heads, kv_heads, head_dim, names, .. } = self;
        let rope = self.rope_of[index];
        let (qkv, latent) = match &self.latent {
            None => (self.qkv(of, rope), None),
            Some(latent) => {
                let (qkv, latent) =
                    latent.plan([*hidden, *heads, *head_dim], self.qkv_bias, self.turns_neighbours, of);
                (qkv, Some(latent))
            }
        };
        let [query, key, value] = qkv;
        let value_dim = self.latent.map_or(*head_dim, |latent| latent.value_dim);
        let qk_norms = self.qk_norm.map(|QkNorm { names: [q, k], is_whole, .. }| {
            let width = |heads: usize| if is_whole { heads * head_dim } else { *head_dim };
            [self.norm.plan(&of(q), width(*heads)), self.norm.plan(&of(k), width(*kv_heads))]
        });
        let gate = self.gates_attention.then(|| OutputGatePlan {
            norm: None,
            linear: self.of_gated_queries(of, 1),
            function: Gate::Sigmoid,
        });
        let query = if self.gates_attention { self.of_gated_queries(of, 0) } else { query };
        AttentionPlan {
            query,
            key,
            value,
            latent,
            delta: None,
            gate,
            output: self.linear(
                &of(names.output),
                RowMap::all(*hidden),
                *hidden,
                heads * value_dim,
                self.output_bias,
            ),
            qk_norms,
            norms_turned: self.qk_norm.is_some_and(|norm| norm.is_turned),
            ropes: rope.map(|rope| [rope, rope]),
            growth: None,
            spec: AttentionSpec {
                heads: *heads,
                kv_heads: *kv_heads,
                head_dim: *head_dim,
                value_dim,
                causal: self.is_causal,
                window: self.windows[index],
                scale: self.attention_scale,
                distance: self.distance.clone(),
                softcap: self.attention_softcap,
            },
            sinks: self.sinks.map(of),
            relative: None,
        }
    }

    /// Queries (0), or the gates that follow those of each head (1).
    fn of_gated_queries(&self, of: &impl Fn(&str) -> String, which: usize) -> LinearPlan {
        let Self { hidden, heads, head_dim, names, qkv_bias, .. } = self;
        let QkvNames::Apart([name, ..]) = names.qkv else {
            unreachable!("queries with gates have a tensor of their own")
        };
        let rows = RowMap::from(which * head_dim, 2 * heads * head_dim).in_runs(*head_dim, 2 * head_dim);
        self.linear(&of(name), rows, heads * head_dim, *hidden, *qkv_bias)
    }

    fn linear(&self, name: &str, rows: RowMap, output: usize, input: usize, has_bias: bool) -> LinearPlan {
        let mut plan = LinearPlan::of_rows(name, rows, output, input, has_bias);
        if self.names.are_transposed {
            plan.weight.rows = rows.transposed();
        }
        plan
    }

    fn qkv(&self, of: &impl Fn(&str) -> String, rope: Option<usize>) -> [LinearPlan; 3] {
        let Self { hidden, heads, kv_heads, head_dim, .. } = *self;
        let widths @ [q, kv, _] = [heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
        let together = q + 2 * kv;
        let (tensors, rows) = match self.names.qkv {
            QkvNames::Apart(names) => (names, widths.map(RowMap::all)),
            QkvNames::Together(name) => {
                ([name; 3], [0, q, q + kv].map(|first| RowMap::from(first, together)))
            }
            QkvNames::ByHead(name) => {
                let (of_head, queries) = (together / kv_heads, q / kv_heads);
                let rows = |first: usize, run: usize| RowMap::from(first, together).in_runs(run, of_head);
                let keys = rows(queries, head_dim);
                ([name; 3], [rows(0, queries), keys, rows(queries + head_dim, head_dim)])
            }
        };
        let pairs = rope.filter(|_| self.turns_neighbours).map(|rope| self.ropes[rope].head_dim / 2);
        [0, 1, 2].map(|which| {
            let rows = match pairs {
                Some(pairs) if which < 2 => rows[which].with_neighbours(head_dim, pairs),
                _ => rows[which],
            };
            self.linear(&of(tensors[which]), rows, widths[which], hidden, self.qkv_bias)
        })
    }

    fn mlp(&self, of: &impl Fn(&str) -> String) -> MlpPlan {
        let Self { hidden, intermediate, mlp_bias, names, .. } = self;
        let layer = |name: &str, rows| self.linear(&of(name), rows, *intermediate, *hidden, *mlp_bias);
        let all = RowMap::all(*intermediate);
        let both =
            |name: &str| [0, *intermediate].map(|first| layer(name, RowMap::from(first, 2 * intermediate)));
        MlpPlan {
            inside: match names.inside {
                InsideNames::Gated { gate, up } => {
                    InsidePlan::Gated { gate: layer(gate, all), up: layer(up, all) }
                }
                InsideNames::GateUp(name) => {
                    let [gate, up] = both(name);
                    InsidePlan::Gated { gate, up }
                }
                InsideNames::UpGate(name) => {
                    let [up, gate] = both(name);
                    InsidePlan::Gated { gate, up }
                }
                InsideNames::Plain(up) => InsidePlan::Plain(layer(up, all)),
            },
            activation: self.activation,
            clamp: None,
            down: self.linear(&of(names.down), RowMap::all(*hidden), *hidden, *intermediate, *mlp_bias),
        }
    }
}

/// A head of two layers, as encoders have: `dense`, then an activation, then `output`.
pub(super) fn head_of_two_layers(
    [dense, output]: [&str; 2],
    hidden: usize,
    activation: Activation,
) -> HeadPlan {
    let dense = DensePlan {
        linear: LinearPlan::new(dense, hidden, hidden, true),
        is_in_backbone: false,
        activation,
        norm: None,
        drops_input: true,
    };
    let output = HeadPlan::linear(HeadKind::Classifier, output, hidden, true, Pooling::Cls);
    HeadPlan { dense: Some(dense), ..output }
}

/// BERT's: the same, where `dense` is the backbone's pooler.
pub(super) fn head_on_pooler(pooler: &str, hidden: usize) -> HeadPlan {
    let head = head_of_two_layers([pooler, "classifier"], hidden, Activation::Tanh);
    let in_backbone = |dense| DensePlan { is_in_backbone: true, drops_input: false, ..dense };
    HeadPlan { dense: head.dense.map(in_backbone), ..head }
}
