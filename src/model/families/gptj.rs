//! GPT-J: layer norms, a plain MLP beside attention, both of one norm, neighbours turned in pairs at the start of each head.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder::Defaults;
use crate::model::families::gpt2;
use crate::model::plan::BackbonePlan;
use crate::model::rope::RopeConfig;
use crate::model::rope::RopeScaling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "gptj",
    class: "GPTJ",
    pad_token_id: None,
    eos_token_id: Some(50_256),
    tokenizer: FamilyTokenizer::Unless("GPT2Tokenizer"),
    nested: None,
    parse,
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = gpt2::read(fields, &DEFAULTS)?;
    let rotary_dim = fields.size("rotary_dim", 64, at_most::HEAD_DIM)?;
    if rotary_dim > config.head_dim || !rotary_dim.is_multiple_of(2) {
        let head_dim = config.head_dim;
        return Err(format!(
            "`rotary_dim` is {rotary_dim}: expected an even number up to {head_dim}, a head's width"
        ));
    }
    let rope = RopeConfig { head_dim: rotary_dim, theta: 10_000.0, scaling: RopeScaling::None, growth: None };
    let config = Blueprint {
        positions: None,
        norms: Norms::shared("ln_1"),
        qkv_bias: false,
        output_bias: false,
        is_parallel: true,
        turns_neighbours: true,
        names: Names {
            qkv: QkvNames::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
            output: "attn.out_proj",
            inside: InsideNames::Plain("mlp.fc_in"),
            down: "mlp.fc_out",
            ..config.names
        },
        ..config
    };
    Ok(config.with_rope(rope).into())
}

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_400,
    hidden: 4096,
    intermediate: 16_384,
    num_layers: 28,
    heads: 16,
    max_positions: 2048,
    ..gpt2::DEFAULTS
};
