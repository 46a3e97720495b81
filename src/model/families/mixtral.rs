//! Mixtral: Mistral with experts in the place of the MLP, whose weights always add up to one.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::Key;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::experts;
use crate::model::families::experts::ExpertTensors;
use crate::model::families::experts::Experts;
use crate::model::families::experts::ExpertsNames;
use crate::model::families::renamed;
use crate::model::plan::BackbonePlan;
use crate::model::routing::Routing;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "mixtral",
    class: "Mixtral",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    intermediate: 14_336,
    kv_heads: Some(8),
    max_positions: 131_072,
    norm_eps: ("rms_norm_eps", 1e-5),
    rope_theta: 1_000_000.0,
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    renamed(fields, &[Key::Either("num_experts", "num_local_experts")], |fields| {
        let config = decoder::read(fields, &DEFAULTS)?;
        let window = decoder::sliding_window(fields, None)?;
        let [count, top_k] =
            experts::sizes(fields, config.num_layers, ("num_local_experts", 8), ("num_experts_per_tok", 2))?;
        let routing = Routing::softmax(top_k, true);
        let experts = Experts::new(config.num_layers, [count, config.intermediate], routing);
        Ok(Blueprint {
            windows: vec![window; config.num_layers],
            experts: Some(Experts { names: NAMES, ..experts }),
            ..config
        }
        .into())
    })
}

/// PhiMoE's too.
pub(super) const NAMES: ExpertsNames = ExpertsNames {
    router: "block_sparse_moe.gate",
    router_bias: false,
    tensors: ExpertTensors::Apart { experts: "block_sparse_moe.experts", parts: ["w1", "w3", "w2"] },
};
