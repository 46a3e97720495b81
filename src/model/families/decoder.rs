//! Llama's keys, tensors and order, which most decoders keep.

use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::is_no;
use crate::model::families::parse_activation;
use crate::model::plan::HeadPlan;
use crate::model::plan::NormKind;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeDefaults;
use crate::ops::Distance;

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

pub(super) const LLAMA_NAMES: Names = Names {
    prefixes: &["model.", "", "pretrained_model.model."],
    unused: &[],
    words: "embed_tokens",
    types: "embed_types",
    tasks: "embed_tasks",
    positions: "embed_positions",
    embedding_norm: "embed_norm",
    embedding_projection: "embed_projection",
    layers: "layers",
    qkv: QkvNames::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    output: "self_attn.o_proj",
    inside: InsideNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj" },
    down: "mlp.down_proj",
    norm: "norm",
    are_transposed: false,
};

/// A decoder as Llama is one: norms before attention and MLP, a gate, rotary positions, no biases, no windows.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
    let decoder = read_without_rope(fields, defaults)?;
    let rope = RopeConfig::parse(fields, rope_defaults(&decoder, defaults))?;
    Ok(decoder.with_rope(rope))
}

/// The same without positions, of a class that reads neither `num_key_value_heads` nor `head_dim`.
pub(super) fn read_with_plain_heads(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
    let mut fields = fields.0.clone();
    fields.remove("num_key_value_heads");
    fields.remove("head_dim");
    read_without_rope(&Fields(&fields), defaults)
}

/// The same without positions.
pub(super) fn read_without_rope(fields: &Fields<'_>, defaults: &Defaults) -> Result<Blueprint, String> {
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
        is_no,
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
    Ok(Blueprint {
        vocab_size: fields.size("vocab_size", defaults.vocab_size, at_most::VOCABULARY)?,
        type_vocab_size: None,
        task_vocab_size: None,
        positions: None,
        embedding_width: hidden,
        embedding_scale: None,
        norms_embedding: false,
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
        norms_output: true,
        qk_norm: None,
        activation: parse_activation(key, &activation)?,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        is_parallel: false,
        is_causal: true,
        ropes: Vec::new(),
        rope_of: vec![None; num_layers],
        turns_neighbours: false,
        windows: vec![None; num_layers],
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_softcap: None,
        distance: Distance::Ignored,
        names: LLAMA_NAMES,
        shared_layers: None,
        sinks: None,
        experts: None,
        latent: None,
        delta: None,
        gates_attention: false,
        added_scale: None,
        head: score(hidden),
    })
}

/// The fields with an MLP four times as wide as the layer, where they name no width of their own.
pub(super) fn with_mlp_or_fourfold(
    fields: &Fields<'_>,
    defaults: &Defaults,
) -> Result<Map<String, Value>, String> {
    match fields.0.get("intermediate_size") {
        None | Some(Value::Null) => with_fourfold_mlp(fields, defaults),
        Some(_) => Ok(fields.0.clone()),
    }
}

/// The fields with an MLP four times as wide as the layer, whatever they say.
pub(super) fn with_fourfold_mlp(
    fields: &Fields<'_>,
    defaults: &Defaults,
) -> Result<Map<String, Value>, String> {
    let hidden = fields.size("hidden_size", defaults.hidden, at_most::WIDTH)?;
    let mut fields = fields.0.clone();
    fields.insert("intermediate_size".to_owned(), (4 * hidden).into());
    Ok(fields)
}

/// The head of a decoder's `*ForSequenceClassification`.
pub(super) fn score(hidden: usize) -> HeadPlan {
    HeadPlan::linear(HeadKind::Score, "score", hidden, false, Pooling::LastNonPad)
}

/// What the rope of a decoder is where the file does not say.
pub(super) fn rope_defaults(decoder: &Blueprint, defaults: &Defaults) -> RopeDefaults {
    RopeDefaults {
        head_dim: decoder.head_dim,
        max_positions: decoder.max_tokens,
        theta: ("rope_theta", defaults.rope_theta),
        share: defaults.rope_share,
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

/// The same of a class some of whose layers slide, whatever it says: null is for a file whose `layer_types` has none.
pub(super) fn sliding_window_of_some(fields: &Fields<'_>, default: usize) -> Result<Option<usize>, String> {
    match fields.0.get("layer_types") {
        None | Some(Value::Null) => fields.size("sliding_window", default, at_most::POSITIONS).map(Some),
        Some(_) => sliding_window(fields, Some(default)),
    }
}
