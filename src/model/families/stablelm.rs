//! StableLM: Llama with layer norms, a quarter of each head turned, and, if it says so, attention and MLP beside each other.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::AttentionPlan;
use crate::model::plan::BackbonePlan;
use crate::model::plan::NormKind;
use crate::model::plan::NormPlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "stablelm",
    class: "StableLm",
    pad_token_id: None,
    eos_token_id: Some(0),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    hidden: 2560,
    intermediate: 6912,
    kv_heads: Some(32),
    kv_heads_may_be_null: false,
    max_positions: 4096,
    norm_eps: ("layer_norm_eps", 1e-5),
    rope_share: Some(("partial_rotary_factor", 0.25)),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let eps = config.norm.eps;
    let is_parallel = fields.or_default("use_parallel_residual", false)?;
    let mut plan = BackbonePlan::from(Blueprint {
        norm: NormStyle::layer(config.norm.eps),
        // beside each other, they read the same
        norms: if is_parallel { Norms::shared("input_layernorm") } else { Norms::BEFORE },
        qkv_bias: fields.or_default("use_qkv_bias", false)?,
        is_parallel,
        ..config
    });
    if fields.or_default("qk_layernorm", false)? {
        for (index, AttentionPlan { spec, qk_norms, .. }) in
            plan.layers.iter_mut().map(|layer| &mut layer.attention).enumerate()
        {
            let norm = |name: &str, heads: usize| NormPlan {
                kind: NormKind::Layer,
                weight: None,
                weights_of_heads: (0..heads)
                    .map(|head| format!("layers.{index}.self_attn.{name}.norms.{head}.weight"))
                    .collect(),
                bias: None,
                width: spec.head_dim,
                eps,
            };
            *qk_norms = Some([norm("q_layernorm", spec.heads), norm("k_layernorm", spec.kv_heads)]);
        }
    }
    Ok(plan)
}
