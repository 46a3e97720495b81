//! MiniCPM3: Llama with latent attention, and factors on embeddings and on what layers add.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::decoder::Defaults;
use crate::model::families::decoder::LLAMA;
use crate::model::families::latent_decoder;
use crate::model::families::latent_decoder::LatentDefaults;
use crate::model::plan::BackbonePlan;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "minicpm3",
    class: "MiniCPM3",
    pad_token_id: None,
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Always("TokenizersBackend"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 73_448,
    hidden: 2560,
    intermediate: 6400,
    num_layers: 62,
    heads: 40,
    max_positions: 32_768,
    norm_eps: ("rms_norm_eps", 1e-5),
    ..LLAMA
};

const LATENT: LatentDefaults =
    LatentDefaults { query_rank: 768, rank: 256, still: 64, turning: 32, value_dim: None };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = latent_decoder::read_with_rope(fields, &DEFAULTS, &LATENT, false)?;
    let depth = match fields.0.get("scale_depth") {
        None => Some(1.4),
        Some(_) => fields.number("scale_depth", |_| true)?, // null: none
    };
    Ok(Blueprint {
        embedding_scale: Some(fields.number_or("scale_emb", 12.0, |_| true)?),
        added_scale: depth.map(|depth| depth / (config.num_layers as f64).sqrt()),
        mlp_bias: fields.or_default("mlp_bias", false)?,
        ..config
    }
    .into())
}
