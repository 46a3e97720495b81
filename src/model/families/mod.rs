//! The families: what `config.json` of each says, as a [plan](crate::model::plan).
//!
//! A family is one file and one row of [`FAMILIES`]. Its file holds what its class of transformers 5.23 takes for keys
//! that are absent (`configuration_*.py`), and in what it differs from the plain `decoder` or `encoder`: norms,
//! biases, windows, scales. See CONTRIBUTING.md for how to add one.

mod arcee;
mod bert;
mod deberta;
mod deberta_v2;
mod decoder;
mod disentangled;
mod encoder;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod glm;
mod glm4;
mod gpt_neox;
mod helium;
mod hunyuan_v1_dense;
mod llama;
mod ministral;
mod mistral;
mod nemotron;
mod olmo;
mod olmo2;
mod olmo3;
mod persimmon;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod xlm_roberta;

use crate::checkpoint::fields::Fields;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

/// What no model is larger than, many times what is known today. Numbers in a file are anybody's: products of those
/// below fit 64 bits, and nothing is allocated by a number before tensors of that size were found.
mod at_most {
    pub(super) const LAYERS: usize = 10_000;
    pub(super) const WIDTH: usize = 1 << 24;
    pub(super) const HEADS: usize = 1 << 16;
    pub(super) const HEAD_DIM: usize = 1 << 16;
    pub(super) const VOCABULARY: usize = 1 << 28;
    pub(super) const TOKEN_TYPES: usize = 1 << 16;
    pub(super) const POSITIONS: usize = 1 << 40;
    /// Of those with an embedding of their own.
    pub(super) const DISTANCES: usize = 1 << 16;
}

/// A family of transformers.
#[derive(Debug)]
pub struct Family {
    /// As `config.json` says it.
    pub model_type: &'static str,
    /// What the names of its classes in transformers begin with.
    pub class: &'static str,
    /// What its class takes where `pad_token_id` is absent.
    pub pad_token_id: Option<u32>,
    /// What its class takes where `eos_token_id` is absent.
    pub eos_token_id: Option<u32>,
    /// What `AutoTokenizer` takes for it.
    pub tokenizer: FamilyTokenizer,
    /// The key of `config.json` that holds the text model's config, in a model that is more than text.
    pub nested: Option<&'static str>,
    /// Reads `config.json`, or what is nested in it; the error names field and value.
    pub parse: fn(&Fields<'_>) -> Result<BackbonePlan, String>,
}

/// All that run here.
pub const FAMILIES: [Family; 32] = [
    llama::FAMILY,
    mistral::FAMILY,
    ministral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3_text::FAMILY,
    gemma3::FAMILY,
    olmo::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    smollm3::FAMILY,
    seed_oss::FAMILY,
    exaone4::FAMILY,
    arcee::FAMILY,
    helium::FAMILY,
    hunyuan_v1_dense::FAMILY,
    nemotron::FAMILY,
    starcoder2::FAMILY,
    stablelm::FAMILY,
    persimmon::FAMILY,
    gpt_neox::FAMILY,
    bert::FAMILY,
    roberta::FAMILY,
    xlm_roberta::FAMILY,
    deberta::FAMILY,
    deberta_v2::FAMILY,
];

/// The family that `config.json` names.
pub fn find(model_type: &str) -> Result<&'static Family, String> {
    FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        format!("model_type `{model_type}` is not supported: supported are {}", names.join(", "))
    })
}

fn parse_activation(key: &str, name: &str) -> Result<Activation, String> {
    Ok(match name {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        other => {
            return Err(format!(
                "`{key}` is `{other}`: supported are gelu, gelu_new, gelu_pytorch_tanh, silu, relu, relu2"
            ));
        }
    })
}
