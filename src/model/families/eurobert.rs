//! EuroBERT: Llama that sees both sides, and a head that may read every token and average what it makes of them.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::decoder;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::plan::BackbonePlan;
use crate::model::plan::DensePlan;
use crate::model::plan::HeadPlan;
use crate::model::pooling::Pooling;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "eurobert",
    class: "EuroBert",
    pad_token_id: Some(128_001),
    eos_token_id: Some(128_001),
    tokenizer: FamilyTokenizer::AsFilesSay,
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden: 768,
    intermediate: 3072,
    num_layers: 12,
    heads: 12,
    max_positions: 8192,
    norm_eps: ("rms_norm_eps", 1e-5),
    ..LLAMA
};

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = decoder::read(fields, &DEFAULTS)?;
    let attention_bias = fields.or_default("attention_bias", false)?;
    let (pooling, pools_late) = match fields.or_default("classifier_pooling", "late".to_owned())?.as_str() {
        "late" => (Pooling::Mean, true),
        "mean" => (Pooling::Mean, false),
        "bos" => (Pooling::Cls, false),
        other => return Err(format!("`classifier_pooling` is `{other}`: expected late, mean or bos")),
    };
    let head = head_of_two_layers(["dense", "classifier"], config.hidden, Activation::GeluErf);
    let dense = head.dense.map(|dense| DensePlan { drops_input: false, ..dense });
    Ok(Blueprint {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.or_default("mlp_bias", false)?,
        is_causal: false,
        head: HeadPlan { dense, pooling, pools_late, ..head },
        ..config
    }
    .into())
}
