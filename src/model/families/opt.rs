//! OPT: learned positions from the third row on, layer norms, a plain MLP.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::blueprint::Norms;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::PositionRule;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "opt",
    class: "OPT",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_272,
    hidden: 768,
    intermediate: 3072,
    num_layers: 12,
    heads: 12,
    activation: ("hidden_act", "relu"),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let keys = [Key::Only("ffn_dim", "intermediate_size"), Key::Only("activation_function", "hidden_act")];
    let config = renamed(fields, &keys, |fields| decoder::read_with_plain_heads(fields, &DEFAULTS))?;
    let width = fields.optional_size("word_embed_proj_dim", at_most::WIDTH)?.unwrap_or(config.hidden);
    let has_weights = fields.or_default("layer_norm_elementwise_affine", true)?;
    let is_before = fields.or_default("do_layer_norm_before", true)?;
    let [of_attention, of_mlp] = ["self_attn_layer_norm", "final_layer_norm"];
    let has_bias = fields.or_default("enable_bias", true)?;
    let mut plan = BackbonePlan::from(Blueprint {
        positions: Some((config.max_tokens + 2, PositionRule::From(2))),
        norm: NormStyle { has_weight: has_weights, has_bias: has_weights, ..NormStyle::layer(1e-5) },
        norms: if is_before {
            Norms::before(of_attention, of_mlp)
        } else {
            Norms::of_sums(of_attention, of_mlp)
        },
        norms_output: is_before && !fields.or_default("_remove_final_layer_norm", false)?,
        qkv_bias: has_bias,
        output_bias: has_bias,
        mlp_bias: has_bias,
        names: NAMES,
        ..config
    });
    let hidden = plan.hidden();
    if width != hidden {
        // of OPT-350m: words are narrower than layers, and what heads read is as narrow; positions are not
        plan.embedding.words.width = width;
        plan.embedding.projection = Some(LinearPlan::new("project_in", hidden, width, false));
        plan.embedding.adds_positions_last = true;
        plan.projection = Some(LinearPlan::new("project_out", width, hidden, false));
        plan.head = decoder::score(width);
    }
    Ok(plan)
}

const NAMES: Names = Names {
    prefixes: &["model.decoder.", "decoder.", ""],
    output: "self_attn.out_proj",
    inside: InsideNames::Plain("fc1"),
    down: "fc2",
    norm: "final_layer_norm",
    ..LLAMA_NAMES
};
