//! The families: what `config.json` of each says, as a [plan](crate::model::plan).
//!
//! A family is one file and one row of [`FAMILIES`]. Its file holds what its class of transformers 5.23 takes for keys
//! that are absent (`configuration_*.py`), and in what it differs from the plain `decoder` or `encoder`: norms,
//! biases, windows, scales. See CONTRIBUTING.md for how to add one.

mod albert;
mod arcee;
mod axk1;
mod bert;
mod biogpt;
mod bloom;
mod blueprint;
mod camembert;
mod cohere_compass_text;
mod data2vec_text;
mod deberta;
mod deberta_v2;
mod decoder;
mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod delta;
mod disentangled;
mod distilbert;
mod electra;
mod encoder;
mod ernie;
mod eurobert;
mod exaone4;
mod experts;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3_text;
mod glm;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod gte;
mod helium;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod internlm2;
mod jina_embeddings_v3;
mod latent;
mod latent_decoder;
mod llama;
mod megatron_bert;
mod minicpm3;
mod ministral;
mod ministral3;
mod mistral;
mod mistral4;
mod mixtral;
mod modernbert;
mod modernbert_decoder;
mod mpnet;
mod mpt;
mod nemotron;
mod nomic_bert;
mod olmo;
mod olmo2;
mod olmo3;
mod openai_gpt;
mod opt;
mod persimmon;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_text;
mod qwen3_moe;
mod qwen3_next;
mod rembert;
mod roberta;
mod roberta_prelayernorm;
mod roformer;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod ultrabert;
mod xlm_roberta;
mod xlm_roberta_xl;

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::model::plan::BackbonePlan;
use crate::ops::Activation;
use crate::text::FamilyTokenizer;

/// What no model is larger than, many times what is known today. Numbers in a file are anybody's: products of those
/// below fit 64 bits, and nothing is allocated by a number before tensors of that size were found.
mod at_most {
    pub(super) const LAYERS: usize = 1000;
    pub(super) const WIDTH: usize = 1 << 24;
    pub(super) const HEADS: usize = 1 << 16;
    pub(super) const HEAD_DIM: usize = 1 << 16;
    pub(super) const VOCABULARY: usize = 1 << 28;
    pub(super) const TOKEN_TYPES: usize = 1 << 16;
    /// Of a convolution.
    pub(super) const POSITIONS_OF_KERNELS: usize = 1 << 10;
    pub(super) const POSITIONS: usize = 1 << 40;
    /// Of those with an embedding of their own.
    pub(super) const DISTANCES: usize = 1 << 16;
    /// Of all layers together.
    pub(super) const EXPERTS: usize = 1 << 16;
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

impl Family {
    /// Whether its class, which has no token types, takes those that it is given for words, and adds their embedding.
    pub fn takes_types_for_words(&self) -> bool {
        ["gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt"].contains(&self.model_type)
    }
}

/// All that run here.
pub const FAMILIES: [Family; 78] = [
    llama::FAMILY,
    mistral::FAMILY,
    ministral::FAMILY,
    ministral3::FAMILY,
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
    internlm2::FAMILY,
    mixtral::FAMILY,
    qwen2_moe::FAMILY,
    qwen3_moe::FAMILY,
    gpt_oss::FAMILY,
    hunyuan_v1_moe::FAMILY,
    phimoe::FAMILY,
    deepseek_v2::FAMILY,
    deepseek_v3::FAMILY,
    axk1::FAMILY,
    mistral4::FAMILY,
    minicpm3::FAMILY,
    qwen3_next::FAMILY,
    qwen3_5_text::FAMILY,
    qwen3_5::FAMILY,
    gpt_neox::FAMILY,
    gptj::FAMILY,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neo::FAMILY,
    openai_gpt::FAMILY,
    opt::FAMILY,
    biogpt::FAMILY,
    falcon::FAMILY,
    bloom::FAMILY,
    mpt::FAMILY,
    modernbert_decoder::FAMILY,
    cohere_compass_text::FAMILY,
    bert::FAMILY,
    distilbert::FAMILY,
    electra::FAMILY,
    albert::FAMILY,
    rembert::FAMILY,
    ernie::FAMILY,
    roformer::FAMILY,
    mpnet::FAMILY,
    megatron_bert::FAMILY,
    roberta::FAMILY,
    roberta_prelayernorm::FAMILY,
    camembert::FAMILY,
    xlm_roberta::FAMILY,
    xlm_roberta_xl::FAMILY,
    data2vec_text::FAMILY,
    modernbert::FAMILY,
    eurobert::FAMILY,
    ultrabert::FAMILY,
    nomic_bert::FAMILY,
    gte::FAMILY,
    jina_embeddings_v3::FAMILY,
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

/// A key that a class has under a name of its own: the file's, and ours.
#[derive(Clone, Copy)]
enum Key {
    /// The class reads it under both, by its `attribute_map`.
    Either(&'static str, &'static str),
    /// The class reads the first alone; what stands under ours is not read.
    Only(&'static str, &'static str),
}

/// Reads fields under other names; an error names the file's.
fn renamed<T>(
    fields: &Fields<'_>,
    keys: &[Key],
    read: impl FnOnce(&Fields<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let mut ours = fields.0.clone();
    for key in keys {
        let (Key::Either(theirs, name) | Key::Only(theirs, name)) = *key;
        let value = fields.0.get(theirs);
        match (key, value, fields.0.get(name)) {
            (Key::Only(..), _, _) => drop(ours.remove(name)),
            (Key::Either(..), Some(value), Some(other)) if other != value => {
                return Err(format!("`{theirs}` is {value} and `{name}` is {other}: they mean the same"));
            }
            _ => {}
        }
        if let Some(value) = value {
            ours.insert(name.to_owned(), value.clone());
        }
    }
    read(&Fields(&ours)).map_err(|problem| {
        let named = |problem: String, key: &Key| {
            let (Key::Either(theirs, name) | Key::Only(theirs, name)) = key;
            match fields.0.contains_key(*theirs) {
                true => problem.replace(&format!("`{name}`"), &format!("`{theirs}`")),
                false => problem,
            }
        };
        keys.iter().fold(problem, named)
    })
}

/// Of a switch that must be off.
fn is_no(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// Refuses a `head_dim` of a class that splits its width among the heads and yet reads it elsewhere.
fn check_head_dim(fields: &Fields<'_>, head_dim: usize) -> Result<(), String> {
    fields.refuse_unless(
        "head_dim",
        |value| value.is_null() || *value == head_dim,
        &format!("only {head_dim} is supported in this family, `hidden_size` / `num_attention_heads`"),
    )
}

fn parse_activation(key: &str, name: &str) -> Result<Activation, String> {
    Ok(match name {
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        "tanh" => Activation::Tanh,
        other => {
            return Err(format!(
                "`{key}` is `{other}`: supported are gelu, gelu_new, gelu_pytorch_tanh, silu, relu, relu2, tanh"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::rope::RopeScaling;
    use crate::ops::AttentionSpec;

    fn plan(config: Value) -> Result<BackbonePlan, String> {
        let Value::Object(fields) = config else { unreachable!() };
        let model_type = fields["model_type"].as_str().expect("a case names its family");
        (find(model_type)?.parse)(&Fields(&fields))
    }

    /// What `tests/reference/sweep.py` found: of keys that contradict each other, transformers 5.23 reads this one.
    #[test]
    fn keys_count_as_the_class_reads_them() {
        type Seen = fn(&AttentionSpec) -> f64;
        let window: Seen = |spec| spec.window.map_or(0.0, |window| window as f64);
        let inverse_square_of_scale: Seen = |spec| spec.scale.powi(-2).round();
        let cases = [
            // a width of heads that the class does not read
            (
                json!({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "head_dim": 4}),
                inverse_square_of_scale,
                8.0,
            ),
            (
                json!({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "num_key_value_heads": 3}),
                |spec| spec.kv_heads as f64,
                4.0,
            ),
            (
                json!({"model_type": "bloom", "n_head": 4, "hidden_size": 32, "head_dim": 16}),
                inverse_square_of_scale,
                8.0,
            ),
            (
                json!({"model_type": "mpt", "n_heads": 4, "d_model": 32, "head_dim": 16}),
                inverse_square_of_scale,
                8.0,
            ),
            (
                json!({"model_type": "opt", "num_attention_heads": 4, "hidden_size": 32, "head_dim": 16}),
                inverse_square_of_scale,
                8.0,
            ),
            // what transformers writes beside what it was derived from
            (
                json!({"model_type": "gpt_neo", "num_layers": 2, "window_size": 6, "attention_types": [[["global"], 2]],
                    "attention_layers": ["global", "local"]}),
                window,
                6.0,
            ),
            (
                json!({"model_type": "modernbert-decoder", "local_attention": 16, "sliding_window": 9}),
                window,
                9.0,
            ),
            (json!({"model_type": "modernbert-decoder", "local_attention": 16}), window, 8.0),
            (json!({"model_type": "modernbert", "local_attention": 16, "sliding_window": 4}), window, 5.0),
            (json!({"model_type": "modernbert", "local_attention": 16}), window, 9.0),
        ];
        for (config, seen, expected) in cases {
            let plan = plan(config.clone()).unwrap_or_else(|problem| panic!("{config}: {problem}"));
            assert_eq!(seen(&plan.layers[1].attention.spec), expected, "{config}");
        }
    }

    /// A class reads keys under its own names, and under those of its `attribute_map`; under others they mean nothing.
    #[test]
    fn keys_under_other_names_mean_nothing() {
        for (own, stray) in [
            (
                json!({"model_type": "gpt2"}),
                json!({"hidden_act": "relu", "norm_eps": 0.5, "intermediate_size": 7}),
            ),
            (json!({"model_type": "gpt2", "n_inner": 8}), json!({"intermediate_size": 7})),
            (json!({"model_type": "gptj"}), json!({"hidden_act": "relu", "norm_eps": 0.5})),
            (json!({"model_type": "gpt_bigcode"}), json!({"hidden_act": "relu"})),
            (
                json!({"model_type": "gpt_neo", "intermediate_size": 8}),
                json!({"n_inner": 7, "hidden_act": "relu"}),
            ),
            (json!({"model_type": "opt"}), json!({"hidden_act": "gelu", "intermediate_size": 7})),
            (json!({"model_type": "falcon"}), json!({"hidden_act": "relu", "intermediate_size": 7})),
            (json!({"model_type": "distilbert"}), json!({"hidden_act": "relu", "intermediate_size": 7})),
            (json!({"model_type": "bloom"}), json!({"intermediate_size": 7})),
            (json!({"model_type": "mpt"}), json!({"max_position_embeddings": 7})),
        ] {
            let mut both = own.clone();
            let Value::Object(stray) = stray else { unreachable!() };
            both.as_object_mut().expect("an object").extend(stray);
            assert_eq!(plan(both.clone()), plan(own), "{both}");
        }
        let same = json!({"model_type": "gpt2", "hidden_size": 64, "n_head": 4});
        assert_eq!(plan(same), plan(json!({"model_type": "gpt2", "n_embd": 64, "num_attention_heads": 4})));
    }

    /// `rope_theta · alpha ** (d / (d - 2))`, as `HunYuanDenseV1RotaryEmbedding` computes it; without `alpha` it grows.
    #[test]
    fn an_alpha_stretches_the_base_of_hunyuan() {
        let rope = |alpha: Value| {
            let scaling = json!({"type": "dynamic", "factor": 1.0, "alpha": alpha});
            let plan =
                plan(json!({"model_type": "hunyuan_v1_dense", "head_dim": 128, "rope_scaling": scaling}));
            plan.expect("a config that runs").ropes.remove(0)
        };
        let stretched = rope(json!(1000.0));
        assert_eq!(stretched.scaling, RopeScaling::None);
        assert!((stretched.theta - 11158839.92507748).abs() < 1e-4, "{}", stretched.theta);
        for none in [json!(null), json!(0.0)] {
            assert_eq!(rope(none).theta, 10_000.0);
        }
    }

    /// Of a class with a rope for each kind of layer, which begins with two that are `default`.
    #[test]
    fn a_rope_of_transformers_4_reaches_layer_types_as_their_class_takes_it() {
        let scaling = |rope: Value| {
            let config = json!({"model_type": "modernbert", "rope_scaling": rope,
                "max_position_embeddings": 128, "original_max_position_embeddings": 64});
            plan(config).expect("a config that runs").ropes.remove(0).scaling
        };
        assert_eq!(scaling(json!({"type": "linear", "factor": 2.0})), RopeScaling::None);
        assert_eq!(
            scaling(json!({"rope_type": "linear", "factor": 2.0})),
            RopeScaling::Linear { factor: 2.0 }
        );
        let llama3 =
            json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let RopeScaling::Llama3 { original_max_positions, .. } = scaling(llama3) else { panic!("llama3") };
        assert_eq!(original_max_positions, 128);
    }

    fn yarn(model_type: &str, more: Value) -> Value {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        let Value::Object(more) = more else { unreachable!() };
        rope.as_object_mut().expect("an object").extend(more);
        json!({"model_type": model_type, "num_experts_per_tok": 2, "rope_parameters": rope})
    }

    /// DeepSeek's factor on scores: `yarn_apply_mscale` of its class, in MiniCPM3 too.
    #[test]
    fn what_is_scaled_scales_scores_of_latent_attention() {
        let scale = |config: Value| plan(config).expect("a config that runs").layers[0].attention.spec.scale;
        let rope = |rope: Value| json!({"model_type": "minicpm3", "rope_parameters": rope});
        let plain = scale(json!({"model_type": "minicpm3"}));
        assert_eq!(plain, 96_f64.powf(-0.5));
        let factor = |scaled: f64| ((scaled / plain).sqrt() * 1e6).round() / 1e6;
        assert_eq!(factor(scale(yarn("minicpm3", json!({"mscale_all_dim": 0.5})))), 1.069315);
        for none in [json!({"mscale": 0.5}), json!({"mscale_all_dim": 0.0}), json!({"mscale_all_dim": null})]
        {
            assert_eq!(scale(yarn("minicpm3", none)), plain);
        }
        // whatever scales it
        let linear = json!({"rope_type": "linear", "factor": 4.0, "mscale_all_dim": 0.5});
        assert_eq!(factor(scale(rope(linear))), 1.069315);
        let one = json!({"rope_type": "linear", "factor": 1.0, "mscale_all_dim": 0.5});
        assert_eq!(scale(rope(one)), plain);
        assert_eq!(scale(rope(json!({"rope_type": "default", "factor": 4.0, "mscale_all_dim": 0.5}))), plain);
    }

    /// Numbers of key heads that are no fewer than heads, and widths of heads, say nothing where they do not decide.
    #[test]
    fn what_latent_attention_has_no_use_for_is_not_read() {
        for (own, stray) in [
            (
                json!({"model_type": "deepseek_v3", "num_attention_heads": 4}),
                json!({"num_key_value_heads": 128}),
            ),
            (
                json!({"model_type": "minicpm3", "num_attention_heads": 40}),
                json!({"num_key_value_heads": 39}),
            ),
            (json!({"model_type": "minicpm3"}), json!({"head_dim": 8})),
            (
                json!({"model_type": "deepseek_v2", "num_experts_per_tok": 2}),
                json!({"norm_topk_prob": true, "n_group": 3, "head_dim": 8}),
            ),
            (
                json!({"model_type": "deepseek_v3"}),
                json!({"scoring_func": "softmax", "topk_method": "greedy", "moe_layer_freq": 2}),
            ),
        ] {
            let mut both = own.clone();
            let Value::Object(stray) = stray else { unreachable!() };
            both.as_object_mut().expect("an object").extend(stray);
            assert_eq!(plan(both.clone()), plan(own), "{both}");
        }
    }

    #[test]
    fn what_transformers_does_not_compute_is_refused_by_its_key() {
        for (key, config) in [
            (
                "head_dim",
                json!({"model_type": "nomic_bert", "num_attention_heads": 4, "hidden_size": 32, "head_dim": 16}),
            ),
            ("head_dim", json!({"model_type": "modernbert", "head_dim": 16})),
            ("query_pre_attn_scalar", json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 20.5})),
            ("attention_layers", json!({"model_type": "gpt_neo", "attention_layers": ["global"]})),
            ("sliding_window", json!({"model_type": "modernbert-decoder", "sliding_window": null})),
            ("sliding_window", json!({"model_type": "gemma2", "sliding_window": null})),
            (
                "num_kv_heads",
                json!({"model_type": "falcon", "multi_query": false, "num_attention_heads": 8, "hidden_size": 64,
                    "num_kv_heads": 4}),
            ),
            (
                "llama_4_scaling_beta",
                json!({"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}}),
            ),
            // of narrower rows each head has a key of its own
            ("num_key_value_heads", json!({"model_type": "minicpm3", "num_key_value_heads": 8})),
            ("head_dim", json!({"model_type": "deepseek_v3", "head_dim": 128})),
            ("factor", yarn("deepseek_v2", json!({"factor": null, "mscale_all_dim": 1.0}))),
            ("num_experts_per_tok", json!({"model_type": "deepseek_v2"})),
            (
                "topk_method",
                json!({"model_type": "deepseek_v2", "num_experts_per_tok": 2, "topk_method": "noaux_tc"}),
            ),
            (
                "n_group",
                json!({"model_type": "deepseek_v2", "num_experts_per_tok": 2, "topk_method": "group_limited_greedy"}),
            ),
            ("n_group", json!({"model_type": "deepseek_v3", "n_group": 7})),
            ("n_group", json!({"model_type": "deepseek_v3", "n_group": 256})),
            ("n_group", json!({"model_type": "deepseek_v3", "n_group": null})),
            ("topk_group", json!({"model_type": "deepseek_v3", "topk_group": 9})),
            ("num_experts_per_tok", json!({"model_type": "deepseek_v3", "n_group": 128, "topk_group": 3})),
            ("n_shared_experts", json!({"model_type": "deepseek_v3", "n_shared_experts": 0})),
            ("linear_num_value_heads", json!({"model_type": "qwen3_next", "linear_num_key_heads": 5})),
            (
                "layer_types",
                json!({"model_type": "qwen3_5_text", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}),
            ),
            ("layer_types", json!({"model_type": "qwen3_5_text", "layer_types": ["full_attention"]})),
            ("q_lora_rank", json!({"model_type": "axk1", "q_lora_rank": null})),
            (
                "partial_rotary_factor",
                json!({"model_type": "mistral4", "rope_parameters": {"rope_type": "default"}}),
            ),
            ("partial_rotary_factor", yarn("mistral4", json!({"partial_rotary_factor": 0.25}))),
            ("llama_4_scaling_beta", yarn("mistral4", json!({}))),
            ("head_dim", json!({"model_type": "mistral4", "head_dim": 64})),
        ] {
            let problem = plan(config.clone()).expect_err("refused");
            assert!(problem.contains(&format!("`{key}`")), "{config}: {problem}");
        }
    }
}
