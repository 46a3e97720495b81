//! PhiMoE: Mixtral with layer norms, and two experts that are chosen one after the other.
//!
//! Its rope, where it is `longrope`, is not Phi-3's: transformers never asks it for the long factors, however long a text is, and the
//! factor on sine and cosine is the file's.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::NormStyle;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::experts;
use crate::model::families::experts::Experts;
use crate::model::families::experts::ExpertsNames;
use crate::model::families::mixtral;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeScaling;
use crate::model::routing::Routing;
use crate::model::routing::Scores;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "phimoe",
    class: "Phimoe",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    intermediate: 6400,
    kv_heads: Some(8),
    max_positions: 131_072,
    norm_eps: ("rms_norm_eps", 1e-5),
    rope_theta: 1_000_000.0,
    ..LLAMA
};

/// Whatever `num_experts_per_tok` says.
const TOP_K: usize = 2;

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read_without_rope(fields, &DEFAULTS)?;
    let rope = RopeConfig::parse(fields, decoder::rope_defaults(&config, &DEFAULTS))?;
    let rope = RopeConfig { scaling: scaling(fields, rope.scaling)?, ..rope };
    let mut as_it_is = fields.0.clone();
    as_it_is.insert("num_experts_per_tok".to_owned(), TOP_K.into());
    let [count, top_k] = experts::sizes(
        &Fields(&as_it_is),
        config.num_layers,
        ("num_local_experts", 16),
        ("num_experts_per_tok", TOP_K),
    )?;
    let noise = fields.number_or("router_jitter_noise", 0.01, |noise| noise >= 0.0)?;
    let scores = Scores::Mixer { reach: 2.0 * noise };
    let routing = Routing { scores, ..Routing::softmax(top_k, false) };
    let experts = Experts {
        names: mixtral::NAMES,
        in_memory: Some(ExpertsNames { router: "mlp.router", ..experts::IN_MEMORY }),
        ..Experts::new(config.num_layers, [count, config.intermediate], routing)
    };
    let attention_bias = fields.or_default("attention_bias", false)?;
    let window = decoder::sliding_window(fields, None)?;
    Ok(Blueprint {
        norm: NormStyle::layer(config.norm.eps),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        windows: vec![window; config.num_layers],
        experts: Some(experts),
        ..config.with_rope(rope)
    }
    .into())
}

/// As its class takes it.
fn scaling(fields: &Fields<'_>, scaling: RopeScaling) -> Result<RopeScaling, String> {
    match scaling {
        RopeScaling::None => Ok(scaling),
        RopeScaling::Longrope { factor, short, original_max_positions, .. } => {
            let rope = ["rope_scaling", "rope_parameters"].into_iter();
            let rope = rope.filter_map(|key| fields.0.get(key)?.as_object()).next();
            let rope = Fields(rope.ok_or("`rope_parameters` is missing")?);
            let [of_short, of_long] = ["short_mscale", "long_mscale"].map(|key| rope.required::<f64>(key));
            let (of_short, of_long) = (of_short?, of_long?);
            if of_short != of_long {
                return Err(format!(
                    "`long_mscale` is {of_long} and `short_mscale` {of_short}: they must be the same"
                ));
            }
            let long = short.clone();
            let attention_factor = of_short;
            Ok(RopeScaling::Longrope { factor, attention_factor, short, long, original_max_positions })
        }
        _ => Err("the rope of PhiMoE is `default` or `longrope`".to_owned()),
    }
}
