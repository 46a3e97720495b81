//! InternLM2, by its published code (it is not in transformers): Llama under names of its own, with all three projections of a
//! head in one tensor.
//!
//! Its reward models read the last token, which has to be `reward_token_id`: `get_score` of the published
//! `modeling_internlm2.py` (also in xtuner, `tools/model_converters/modeling_internlm2_reward`) renders the chat template,
//! tokenizes without special tokens, and appends the token unless it is the last one already. So do texts here.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::InsideNames;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::decoder::LLAMA_NAMES;
use crate::model::plan::BackbonePlan;
use crate::model::plan::HeadPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "internlm2",
    class: "InternLM2",
    pad_token_id: Some(2),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

/// Of `InternLM2Config` in the code of its reward models: `[UNUSED_TOKEN_130]`.
const REWARD_TOKEN_ID: u32 = 92_527;

const DEFAULTS: Defaults = Defaults { vocab_size: 103_168, ..LLAMA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let has_bias = fields.or_default("bias", true)?;
    let head = HeadPlan::linear(HeadKind::ValueHead, "v_head", config.hidden, false, Pooling::LastToken);
    Ok(Blueprint {
        norms: Norms::before("attention_norm", "ffn_norm"),
        qkv_bias: has_bias,
        output_bias: has_bias,
        head: HeadPlan {
            appended_token: Some(fields.or_default("reward_token_id", REWARD_TOKEN_ID)?),
            ..head
        },
        names: NAMES,
        ..config
    }
    .into())
}

const NAMES: Names = Names {
    prefixes: &["model.", ""],
    words: "tok_embeddings",
    qkv: QkvNames::ByHead("attention.wqkv"),
    output: "attention.wo",
    inside: InsideNames::Gated { gate: "feed_forward.w1", up: "feed_forward.w3" },
    down: "feed_forward.w2",
    ..LLAMA_NAMES
};
