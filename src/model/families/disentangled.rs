//! What DeBERTa and its second version have alike: BERT whose scores count distances by tables.

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::Defaults;
use crate::model::families::parse_activation;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::HeadPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::RelativePlan;
use crate::model::plan::TablePlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::ops::Activation;
use crate::ops::Buckets;
use crate::ops::Distance;

/// What both take for keys that are absent.
pub(super) const DEBERTA: Defaults = Defaults { types: 0, types_may_be_none: true, norm_eps: 1e-7, ..BERT };

/// What `config.json` says.
pub(super) struct Disentangled {
    encoder: Blueprint,
    /// Whether tokens have an embedding of their position.
    has_positions: bool,
    /// Whether queries are multiplied with tables, and keys.
    pub(super) terms: [bool; 2],
    /// How far distances are told apart; `None`: they do not count.
    pub(super) max_distance: Option<usize>,
    pooler_activation: Activation,
}

/// Reads the keys of both.
pub(super) fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Disentangled, String> {
    let encoder = encoder::read(fields, defaults)?;
    let Blueprint { hidden, heads, max_tokens: max_positions, .. } = encoder;
    for (key, width) in
        [("embedding_size", hidden), ("pooler_hidden_size", hidden), ("attention_head_size", hidden / heads)]
    {
        let why = format!("only {width} is supported, as `hidden_size` says");
        fields.refuse_unless(key, |value| value == width, &why)?;
    }
    let max_distance = match fields.or_default("max_relative_positions", -1_i64)? {
        distance @ 1.. => distance as usize,
        _ => max_positions,
    };
    let counts = fields.or_default("relative_attention", false)?;
    if counts && max_distance > at_most::DISTANCES {
        let limit = at_most::DISTANCES;
        return Err(format!("`max_relative_positions` is {max_distance}: the limit is {limit}"));
    }
    let key = "pooler_hidden_act";
    Ok(Disentangled {
        encoder,
        has_positions: fields.or_default("position_biased_input", true)?,
        terms: terms(fields)?,
        max_distance: counts.then_some(max_distance),
        pooler_activation: parse_activation(key, &fields.or_default::<String>(key, "gelu".to_owned())?)?,
    })
}

/// `pos_att_type`: a list, or its names with bars between them.
fn terms(fields: &Fields<'_>) -> Result<[bool; 2], String> {
    let names: Vec<String> = match fields.0.get("pos_att_type") {
        Some(Value::String(names)) => {
            names.to_lowercase().split('|').map(|name| name.trim().to_owned()).collect()
        }
        _ => fields.optional("pos_att_type")?.unwrap_or_default(),
    };
    let mut terms = [false; 2];
    for name in names {
        let which = match name.as_str() {
            "c2p" => 0,
            "p2c" => 1,
            _ => return Err(format!("`pos_att_type` has `{name}`: supported are c2p and p2c")),
        };
        if std::mem::replace(&mut terms[which], true) {
            return Err(format!("`pos_att_type` has `{name}` twice"));
        }
    }
    Ok(terms)
}

/// A table of distances, and what a layer makes of it.
pub(super) struct Relative<F> {
    /// Which row a distance takes.
    pub(super) buckets: Buckets,
    /// Whether its rows are normed.
    pub(super) is_normed: bool,
    /// The names of a layer's projections for queries and for keys, and whether they have a bias.
    pub(super) projections: F,
}

impl Disentangled {
    /// Of the hidden states, and of a head.
    pub(super) fn widths(&self) -> [usize; 2] {
        [self.encoder.hidden, self.encoder.hidden / self.encoder.heads]
    }

    /// As all norms are.
    pub(super) fn norm(&self) -> NormStyle {
        self.encoder.norm
    }

    /// The plan, with the projections of each layer to queries, keys and values; `relative` where distances count.
    pub(super) fn plan(
        self,
        qkv: impl Fn(usize) -> [LinearPlan; 3],
        relative: Option<Relative<impl Fn(usize) -> [LinearPlan; 2]>>,
    ) -> BackbonePlan {
        let Blueprint { hidden, head_dim, norm, .. } = self.encoder;
        // also where distances do not count
        let products = 1 + self.terms.iter().filter(|has| **has).count();
        let dense = DensePlan {
            linear: LinearPlan::new("pooler.dense", hidden, hidden, true),
            is_in_backbone: false,
            activation: self.pooler_activation,
            norm: None,
            drops_input: false,
        };
        let mut plan = BackbonePlan::from(Blueprint {
            positions: self.encoder.positions.filter(|_| self.has_positions),
            attention_scale: ((head_dim * products) as f64).powf(-0.5),
            names: Names {
                prefixes: &["deberta.", ""],
                unused: &[
                    "pooler.",
                    "embeddings.position_embeddings.",
                    "lm_predictions.",
                    "mask_predictions.",
                ],
                ..self.encoder.names
            },
            head: HeadPlan {
                dense: Some(dense),
                ..HeadPlan::linear(HeadKind::Classifier, "classifier", hidden, true, Pooling::Cls)
            },
            ..self.encoder
        });
        for (index, layer) in plan.layers.iter_mut().enumerate() {
            let attention = &mut layer.attention;
            [attention.query, attention.key, attention.value] = qkv(index);
            if let Some(Relative { buckets, is_normed, projections }) = &relative {
                attention.spec.distance = Distance::Buckets(buckets.clone());
                let [key, query] = projections(index);
                attention.relative = Some(RelativePlan {
                    table: TablePlan {
                        name: "encoder.rel_embeddings.weight".to_owned(),
                        rows: buckets.rows(),
                        width: hidden,
                    },
                    norm: is_normed.then(|| norm.plan("encoder.LayerNorm", hidden)),
                    key: self.terms[0].then_some(key),
                    query: self.terms[1].then_some(query),
                });
            }
        }
        plan
    }
}
