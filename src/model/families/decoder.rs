//! What decoders can differ in, and how that becomes a plan: by default Llama's keys, tensors and order, which most keep.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::parse_activation;
use crate::model::plan::AttentionPlan;
use crate::model::plan::BackbonePlan;
use crate::model::plan::EmbeddingPlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::InsidePlan;
use crate::model::plan::LayerPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::MlpPlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::model::plan::NormsPlan;
use crate::model::plan::TablePlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::ops::Activation;
use crate::ops::AttentionSpec;
use crate::ops::Distance;
use crate::ops::source::RowMap;

/// What a class takes for keys that are absent, and whether it takes null.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) num_layers: usize,
    pub(super) heads: usize,
    /// `None`: as many as heads.
    pub(super) kv_heads: Option<usize>,
    /// Whether null means as many as heads; else it is refused.
    pub(super) kv_heads_may_be_null: bool,
    /// `None`: hidden / heads.
    pub(super) head_dim: Option<usize>,
    /// Whether null means hidden / heads; else it is refused.
    pub(super) head_dim_may_be_null: bool,
    pub(super) max_positions: usize,
    /// The key of what norms add, and its default.
    pub(super) norm_eps: (&'static str, f64),
    pub(super) rope_theta: f64,
    /// See [`RopeDefaults::share`].
    pub(super) rope_share: Option<(&'static str, f64)>,
    /// The key of the activation, and its default.
    pub(super) activation: (&'static str, &'static str),
}

pub(super) const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    hidden: 4096,
    intermediate: 11_008,
    num_layers: 32,
    heads: 32,
    kv_heads: None,
    kv_heads_may_be_null: true,
    head_dim: None,
    head_dim_may_be_null: true,
    max_positions: 2048,
    norm_eps: ("rms_norm_eps", 1e-6),
    rope_theta: 10_000.0,
    rope_share: None,
    activation: ("hidden_act", "silu"),
};

/// A decoder, in words that its tensors follow from.
#[derive(Clone)]
pub(super) struct Decoder {
    pub(super) vocab_size: usize,
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
    pub(super) qk_norm: Option<QkNorm>,
    /// Of the gate, or between the two layers of a plain MLP.
    pub(super) activation: Activation,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// Whether attention and MLP read the same.
    pub(super) is_parallel: bool,
    pub(super) ropes: Vec<RopeConfig>,
    /// By which of the ropes a layer turns queries and keys.
    pub(super) rope_of: Vec<Option<usize>>,
    /// Whether the pairs that turn are neighbours, and not half a head apart.
    pub(super) turns_neighbours: bool,
    /// How many keys a query of a layer sees, itself included; `None`: all before it.
    pub(super) windows: Vec<Option<usize>>,
    /// Factor on the attention scores.
    pub(super) attention_scale: f64,
    /// `cap · tanh(score / cap)`.
    pub(super) attention_softcap: Option<f64>,
    /// Factor on the embeddings.
    pub(super) embedding_scale: Option<f64>,
    pub(super) names: Names,
}

/// How all norms of a decoder are.
#[derive(Clone, Copy)]
pub(super) struct NormStyle {
    pub(super) kind: NormKind,
    pub(super) has_weight: bool,
    pub(super) has_bias: bool,
    pub(super) eps: f64,
}

impl NormStyle {
    fn plan(self, name: &str, width: usize) -> NormPlan {
        let Self { kind, has_weight, has_bias, eps } = self;
        let of = |has: bool, end: &str| has.then(|| format!("{name}.{end}"));
        NormPlan { kind, weight: of(has_weight, "weight"), bias: of(has_bias, "bias"), width, eps }
    }
}

/// Where a layer has norms, and their names within it.
#[derive(Clone, Copy)]
pub(super) struct Norms {
    /// What attention reads.
    pub(super) before_attention: Option<&'static str>,
    /// What attention adds.
    pub(super) after_attention: Option<&'static str>,
    /// What the MLP reads.
    pub(super) before_mlp: Option<&'static str>,
    /// What the MLP adds.
    pub(super) after_mlp: Option<&'static str>,
}

impl Norms {
    /// Before attention and MLP: Llama and most others.
    pub(super) const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
    /// After them: OLMo-2, Exaone-4.
    pub(super) const AFTER: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// On both sides: Gemma-2.
    pub(super) const AROUND: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
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

/// What a decoder calls its tensors.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) prefixes: &'static [&'static str],
    pub(super) words: &'static str,
    /// What stands before a layer's index.
    pub(super) layers: &'static str,
    pub(super) qkv: QkvNames,
    /// Of attention.
    pub(super) output: &'static str,
    pub(super) inside: InsideNames,
    pub(super) down: &'static str,
    /// After the last layer.
    pub(super) norm: &'static str,
}

impl Names {
    pub(super) const LLAMA: Self = Self {
        prefixes: &["model.", "", "pretrained_model.model."],
        words: "embed_tokens",
        layers: "layers",
        qkv: QkvNames::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        output: "self_attn.o_proj",
        inside: InsideNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj" },
        down: "mlp.down_proj",
        norm: "norm",
    };
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
    /// There is no gate.
    Plain(&'static str),
}

/// A decoder as Llama is one: norms before attention and MLP, a gate, rotary positions, no biases, no windows.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Decoder, String> {
    let decoder = read_without_rope(fields, defaults)?;
    let rope = RopeConfig::parse(fields, decoder.rope_defaults(defaults))?;
    Ok(Decoder {
        max_tokens: rope.max_positions(decoder.max_tokens),
        ropes: vec![rope],
        rope_of: vec![Some(0); decoder.num_layers],
        ..decoder
    })
}

/// The same without positions.
pub(super) fn read_without_rope(fields: &Fields<'_>, defaults: &Defaults) -> Result<Decoder, String> {
    let hidden = fields.size("hidden_size", defaults.hidden, at_most::WIDTH)?;
    let heads = fields.size("num_attention_heads", defaults.heads, at_most::HEADS)?;
    let num_layers = fields.size("num_hidden_layers", defaults.num_layers, at_most::LAYERS)?;
    let kv_heads = match fields.0.get("num_key_value_heads") {
        Some(Value::Null) if defaults.kv_heads_may_be_null => heads,
        _ => fields.size("num_key_value_heads", defaults.kv_heads.unwrap_or(heads), at_most::HEADS)?,
    };
    let head_dim = match fields.0.get("head_dim") {
        Some(Value::Null) if defaults.head_dim_may_be_null => hidden / heads,
        None if defaults.head_dim.is_none() => hidden / heads,
        _ => fields.size("head_dim", defaults.head_dim.unwrap_or(1), at_most::HEAD_DIM)?,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!(
            "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
        ));
    }
    if head_dim == 0 {
        return Err(format!("`num_attention_heads` {heads} is more than `hidden_size` {hidden}"));
    }
    fields.refuse_unless(
        "use_bidirectional_attention",
        |value| matches!(value, Value::Null | Value::Bool(false)),
        "bidirectional attention in a decoder is not supported",
    )?;
    fields.refuse_unless(
        "is_causal",
        |value| *value == Value::Bool(true),
        "transformers makes the attention of a decoder bidirectional then, which is not supported",
    )?;
    let max_positions = fields.size("max_position_embeddings", defaults.max_positions, at_most::POSITIONS)?;
    let (key, default) = defaults.activation;
    let activation: String = fields.or_default(key, default.to_owned())?;
    let (norm_key, norm_eps) = defaults.norm_eps;
    Ok(Decoder {
        vocab_size: fields.size("vocab_size", defaults.vocab_size, at_most::VOCABULARY)?,
        hidden,
        intermediate: fields.size("intermediate_size", defaults.intermediate, at_most::WIDTH)?,
        num_layers,
        heads,
        kv_heads,
        head_dim,
        max_tokens: max_positions,
        norm: NormStyle {
            kind: NormKind::Rms,
            has_weight: true,
            has_bias: false,
            eps: fields.number_or(norm_key, norm_eps, |eps| (0.0..1.0).contains(&eps))?,
        },
        norms: Norms::BEFORE,
        qk_norm: None,
        activation: parse_activation(key, &activation)?,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        is_parallel: false,
        ropes: Vec::new(),
        rope_of: vec![None; num_layers],
        turns_neighbours: false,
        windows: vec![None; num_layers],
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_softcap: None,
        embedding_scale: None,
        names: Names::LLAMA,
    })
}

impl From<Decoder> for BackbonePlan {
    fn from(decoder: Decoder) -> Self {
        let Decoder { vocab_size, hidden, max_tokens, num_layers, embedding_scale, names, norm, .. } =
            decoder;
        Self {
            prefixes: names.prefixes,
            unused: &[],
            embedding: EmbeddingPlan {
                words: TablePlan { name: format!("{}.weight", names.words), rows: vocab_size, width: hidden },
                types: None,
                positions: None,
                scale: embedding_scale,
                norm: None,
                projection: None,
            },
            layers: (0..num_layers).map(|layer| decoder.layer(layer)).collect(),
            norm: Some(norm.plan(names.norm, hidden)),
            max_tokens,
            head: HeadPlan::linear(HeadKind::Score, "score", hidden, false, Pooling::LastNonPad),
            ropes: decoder.ropes,
        }
    }
}

impl Decoder {
    pub(super) fn rope_defaults(&self, defaults: &Defaults) -> RopeDefaults {
        RopeDefaults {
            head_dim: self.head_dim,
            max_positions: self.max_tokens,
            theta: ("rope_theta", defaults.rope_theta),
            share: defaults.rope_share,
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
        let Self { hidden, heads, kv_heads, head_dim, norms, names, .. } = *self;
        let of = |name: &str| format!("{}.{index}.{name}", names.layers);
        let norm = |name: Option<&str>| name.map(|name| self.norm.plan(&of(name), hidden));
        let rope = self.rope_of[index];
        let [query, key, value] = self.qkv(&of, rope);
        let qk_norms = self.qk_norm.map(|QkNorm { names: [q, k], is_whole, .. }| {
            let width = |heads: usize| if is_whole { heads * head_dim } else { head_dim };
            [self.norm.plan(&of(q), width(heads)), self.norm.plan(&of(k), width(kv_heads))]
        });
        LayerPlan {
            norms: NormsPlan {
                attention_input: norm(norms.before_attention),
                attention_output: norm(norms.after_attention),
                attention_sum: None,
                mlp_input: norm(norms.before_mlp),
                mlp_output: norm(norms.after_mlp),
                mlp_sum: None,
            },
            attention: AttentionPlan {
                query,
                key,
                value,
                output: LinearPlan::new(&of(names.output), hidden, heads * head_dim, self.output_bias),
                qk_norms,
                norms_turned: self.qk_norm.is_some_and(|norm| norm.is_turned),
                ropes: rope.map(|rope| [rope, rope]),
                spec: AttentionSpec {
                    heads,
                    kv_heads,
                    head_dim,
                    causal: true,
                    window: self.windows[index],
                    scale: self.attention_scale,
                    distance: Distance::Ignored,
                    softcap: self.attention_softcap,
                },
                relative: None,
            },
            mlp: self.mlp(&of),
            is_parallel: self.is_parallel,
        }
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
            LinearPlan::of_rows(&of(tensors[which]), rows, widths[which], hidden, self.qkv_bias)
        })
    }

    fn mlp(&self, of: &impl Fn(&str) -> String) -> MlpPlan {
        let Self { hidden, intermediate, mlp_bias, names, .. } = *self;
        let layer = |name: &str, rows| LinearPlan::of_rows(&of(name), rows, intermediate, hidden, mlp_bias);
        let all = RowMap::all(intermediate);
        MlpPlan {
            inside: match names.inside {
                InsideNames::Gated { gate, up } => {
                    InsidePlan::Gated { gate: layer(gate, all), up: layer(up, all) }
                }
                InsideNames::GateUp(name) => {
                    let [gate, up] =
                        [0, intermediate].map(|first| layer(name, RowMap::from(first, 2 * intermediate)));
                    InsidePlan::Gated { gate, up }
                }
                InsideNames::Plain(up) => InsidePlan::Plain(layer(up, all)),
            },
            activation: self.activation,
            down: LinearPlan::new(&of(names.down), hidden, intermediate, mlp_bias),
        }
    }
}
/// Which layers see a window only: those that `layer_types` names, or, where it is absent, those that `slides` tells.
pub(super) fn windows(
    fields: &Fields<'_>,
    num_layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, String> {
    let Some(types) = layer_types(fields, num_layers)? else {
        return Ok((0..num_layers).map(|layer| window.filter(|_| slides(layer))).collect());
    };
    let window_of = |slides: bool| match (slides, window) {
        (true, None) => Err("`layer_types` asks for a `sliding_window`, which is null".to_owned()),
        (slides, window) => Ok(window.filter(|_| slides)),
    };
    types.into_iter().map(window_of).collect()
}

/// Of each layer whether it is of the kind that sees a window, where `layer_types` says so.
fn layer_types(fields: &Fields<'_>, num_layers: usize) -> Result<Option<Vec<bool>>, String> {
    let Some(types) = fields.optional::<Vec<String>>("layer_types")? else { return Ok(None) };
    if types.len() != num_layers {
        return Err(format!("`layer_types` has {} entries for {num_layers} layers", types.len()));
    }
    let slides = types.iter().map(|kind| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!("layer type `{other}` is not supported")),
    });
    slides.collect::<Result<_, _>>().map(Some)
}

/// `sliding_window`: a number, null for none, or the class's default where it is absent.
pub(super) fn sliding_window(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>, String> {
    match fields.0.get("sliding_window") {
        None => Ok(default),
        Some(_) => fields.optional_size("sliding_window", at_most::POSITIONS),
    }
}
