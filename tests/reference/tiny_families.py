"""More tiny checkpoints for make_tiny.py: one function for each family, with its nasty options on."""
import json

import torch
import transformers
from safetensors.torch import save_file

from make_tiny import (LOOSE_EPS, SMALL, WIDE, all_weights, edit_config, finish, plain_samples, randomise, rope, rope_to, save_classifier, set_to,
                       token_samples, write_json)

LOOSE_LAYER_EPS = ("norm eps", set_to(layer_norm_eps=1e-6))
BY_TYPE = {"full_attention": rope(theta=1000.0), "sliding_attention": rope(theta=50.0)}


def decoder(path, kind, seed, note, wrong=(), base=SMALL, samples=None, sides=("right", "left"), **options):
    config = getattr(transformers, kind)(**base | options)
    save_classifier(path, config, seed)
    finish(path, samples or plain_samples(config, seed + 10), "last_non_pad", note, wrong=list(wrong), sides=sides)


def ropes(**changes):
    """Changes of the ropes by layer type: `full=...`, `sliding=...`."""
    names = {"full": "full_attention", "sliding": "sliding_attention"}

    def edit(config):
        config.rope_parameters = config.rope_parameters | {names[key]: value for key, value in changes.items()}
    return edit


def gemma3_text(path):
    decoder(path, "Gemma3TextConfig", 70, "q_norm and k_norm, (1 + w) norms on both sides, layer 1 of 2 slides, a rope for each type, one scaled; "
            "scalar 20; attn_logit_softcapping, which the class does not read", [LOOSE_EPS, ("one rope", ropes(sliding=rope("linear", theta=1000.0, factor=4.0))), ("window 5", set_to(sliding_window=5)),
            ("scalar", set_to(query_pre_attn_scalar=8))],
            head_dim=8, rms_norm_eps=1e-3, sliding_window=6, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=20,
            attn_logit_softcapping=2.0, attention_bias=True,
            rope_parameters=BY_TYPE | {"full_attention": rope("linear", theta=1000.0, factor=4.0)})


def gemma3(path):
    """The composite, whose vision tower no reward of a text depends on."""
    text = dict(SMALL, head_dim=8, rms_norm_eps=1e-3, sliding_window=6, layer_types=["sliding_attention", "full_attention"], rope_parameters=BY_TYPE)
    del text["num_labels"]
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, num_labels=1, mm_tokens_per_image=4)
    save_classifier(path, config, 71)
    finish(path, plain_samples(config.text_config, 81), "last_non_pad", "the text model inside the composite, with tensors of a vision tower beside it", sides=("right",))


def olmo(path):
    decoder(path, "OlmoConfig", 72, "layer norms without weight and bias; biases of attention", [("rope theta", rope_to(rope_theta=100.0))], base=WIDE,
            rope_parameters=rope(), attention_bias=True)


def olmo3(path):
    decoder(path, "Olmo3Config", 73, "norms after attention and MLP; layers 0 to 2 slide; the full one's rope is scaled by yarn",
            [LOOSE_EPS, ("one rope", ropes(sliding=rope("yarn", theta=1000.0, factor=4.0, original_max_position_embeddings=32))), ("window 5", set_to(sliding_window=5))],
            base=WIDE | dict(num_hidden_layers=4), rms_norm_eps=1e-3, sliding_window=6, attention_bias=True,
            rope_parameters=BY_TYPE | {"full_attention": rope("yarn", theta=1000.0, factor=4.0, original_max_position_embeddings=32)})


def phi(path):
    decoder(path, "PhiConfig", 74, "attention and MLP read one norm and are added together; half of a head turns; norms of queries and keys",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.25))], base=WIDE, layer_norm_eps=1e-2, qk_layernorm=True,
            rope_parameters=rope(partial_rotary_factor=0.5))


def phi3(path):
    decoder(path, "Phi3Config", 75, "qkv_proj and gate_up_proj in one tensor each; half of a head turns; a window of 6",
            [LOOSE_EPS, ("window 5", set_to(sliding_window=5)), ("rope share", rope_to(partial_rotary_factor=0.25))], base=WIDE, rms_norm_eps=1e-3,
            sliding_window=6, rope_parameters=rope(partial_rotary_factor=0.5))


def phi3_longrope(path):
    factors = dict(short_factor=[1.0, 1.3, 1.7, 2.2], long_factor=[1.0, 4.0, 9.0, 30.0])
    samples = [{"token_ids": [3 + (7 * i + n) % 70 for i in range(n)]} for n in (1, 7, 31, 32, 33, 45, 58)]
    decoder(path, "Phi3Config", 76, "longrope: samples of more than 32 tokens take the long factors. Padded batches differ by design", base=WIDE, samples=samples, sides=(),
            wrong=[("long as short", rope_to(long_factor=factors["short_factor"]))], original_max_position_embeddings=32, max_position_embeddings=128,
            rope_parameters=rope("longrope", **factors))


def glm(path):
    decoder(path, "GlmConfig", 77, "neighbours turn in pairs, in half of a head; biases of q, k and v; head_dim 12",
            [("rope share", rope_to(partial_rotary_factor=0.34)), LOOSE_EPS], head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope(partial_rotary_factor=0.7))


def glm4(path):
    decoder(path, "Glm4Config", 78, "four norms for each layer; neighbours turn in pairs, in half of a head; no biases because it says so",
            [("rope share", rope_to(partial_rotary_factor=0.25)), LOOSE_EPS], base=WIDE, head_dim=8, rms_norm_eps=1e-3, attention_bias=False,
            rope_parameters=rope(partial_rotary_factor=0.5))


def helium(path):
    decoder(path, "HeliumConfig", 79, "neighbours turn in pairs; biases of q, k, v and MLP, not of o",
            [LOOSE_EPS, ("rope theta", rope_to(rope_theta=100.0))], head_dim=8, rms_norm_eps=1e-3, attention_bias=True, mlp_bias=True, rope_parameters=rope())


def hunyuan_v1_dense(path):
    decoder(path, "HunYuanDenseV1Config", 80, "norms of queries and keys after they are turned, so that absolute positions count; biases of attention", sides=("right",), wrong=
            [LOOSE_EPS, ("rope theta", rope_to(rope_theta=100.0))], head_dim=12, rms_norm_eps=1e-3, attention_bias=True, rope_parameters=rope())


def nemotron(path):
    decoder(path, "NemotronConfig", 81, "layer norms that multiply by 1 + weight; squared ReLU; half of a head turns; biases",
            [("norm eps", set_to(norm_eps=1e-6)), ("rope share", rope_to(partial_rotary_factor=0.25))], base=WIDE, norm_eps=1e-2, attention_bias=True, mlp_bias=True,
            rope_parameters=rope(partial_rotary_factor=0.5))


def starcoder2(path):
    decoder(path, "Starcoder2Config", 82, "layer norms, a plain MLP with tanh GELU, biases everywhere, a window of 6",
            [("norm eps", set_to(norm_epsilon=1e-6)), ("window 5", set_to(sliding_window=5)), ("erf gelu", set_to(hidden_act="gelu"))], base=WIDE, norm_epsilon=1e-2,
            sliding_window=6, rope_parameters=rope())


def stablelm(path):
    decoder(path, "StableLmConfig", 83, "layer norms; attention and MLP read one of them and are added together; a quarter of a head turns; biases of q, k and v",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.5))], base=WIDE, layer_norm_eps=1e-2, use_qkv_bias=True, use_parallel_residual=True,
            rope_parameters=rope(partial_rotary_factor=0.25))


def stablelm_heads(path):
    decoder(path, "StableLmConfig", 128, "as StableLM-2-12B: norms of queries and keys, with factors of each head's own; attention and MLP beside each other; half of a head turns", base=WIDE,
            wrong=[LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.25))], layer_norm_eps=1e-2, qk_layernorm=True, use_parallel_residual=True,
            rope_parameters=rope(partial_rotary_factor=0.5))


def stablelm_after(path):
    decoder(path, "StableLmConfig", 129, "the same, one after the other", base=WIDE, wrong=[LOOSE_LAYER_EPS], layer_norm_eps=1e-2, qk_layernorm=True,
            rope_parameters=rope(partial_rotary_factor=0.5))


def persimmon(path):
    decoder(path, "PersimmonConfig", 84, "q, k and v of a head follow each other in one tensor; layer norms of queries and keys; squared ReLU; half of a head turns",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.25))], base=WIDE, layer_norm_eps=1e-2, rope_parameters=rope(partial_rotary_factor=0.5))


def gpt_neox(path):
    decoder(path, "GPTNeoXConfig", 85, "q, k and v of a head follow each other in one tensor; attention and MLP beside each other, each with its norm; a quarter of a head turns",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.5)), ("one after the other", set_to(use_parallel_residual=False))], base=WIDE,
            layer_norm_eps=1e-2, rope_parameters=rope(partial_rotary_factor=0.25))


# -- decoders with experts ---------------------------------------------------------------------------------------------

ROUTER = [LOOSE_EPS, ("one expert less", lambda config: setattr(config, "num_experts_per_tok", config.num_experts_per_tok - 1))]


def normed(value):
    return ("norm_topk_prob", set_to(norm_topk_prob=value))


def qwen3_moe(path):
    decoder(path, "Qwen3MoeConfig", 150, "experts in layers 0 and 2, whose weights do not add up to one; an MLP in layer 1; a window of 6 in all; q_norm and k_norm; head_dim 12; biases of attention",
            ROUTER + [normed(True), ("window 5", set_to(sliding_window=5))], base=SMALL | dict(num_hidden_layers=3), head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope(),
            moe_intermediate_size=12, num_experts=6, num_experts_per_tok=3, mlp_only_layers=[1], use_sliding_window=True, sliding_window=6, attention_bias=True)


def qwen2_moe(path):
    decoder(path, "Qwen2MoeConfig", 151, "experts in layers 1 and 3, whose weights add up to one, beside one with a gate for all rows; of the layers before the third every second one has a window of 6",
            ROUTER + [normed(False), ("window 5", set_to(sliding_window=5)), ("Qwen2's windows", set_to(layer_types=["full_attention"] * 2 + ["sliding_attention"] * 2))],
            base=SMALL | dict(num_hidden_layers=4), rms_norm_eps=1e-3, rope_parameters=rope(), moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts=5, num_experts_per_tok=2,
            norm_topk_prob=True, decoder_sparse_step=2, use_sliding_window=True, sliding_window=6, max_window_layers=2)
    edit_config(path, layer_types=None)  # what it is without


MIXTRAL = dict(rms_norm_eps=1e-3, rope_parameters=rope(), num_local_experts=5, num_experts_per_tok=3, sliding_window=6, router_jitter_noise=0.3)


def mixtral(path):
    decoder(path, "MixtralConfig", 152, "experts, whose weights always add up to one; a window of 6; noise that is for training alone", ROUTER + [("window 5", set_to(sliding_window=5))], **MIXTRAL)


def mixtral_stacked(path):
    """The names and shapes that transformers has in memory, as mergekit writes them."""
    config = transformers.MixtralConfig(**SMALL | MIXTRAL)
    model = randomise(transformers.AutoModelForSequenceClassification.from_config(config), 153)
    model.save_pretrained(path)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.experts.gate_up_proj" in all_weights(path)
    finish(path, plain_samples(config, 163), "last_non_pad", "all experts of a layer in two tensors, [experts, 2 * intermediate, hidden] and [experts, hidden, intermediate]", wrong=ROUTER)


def gpt_oss(path):
    decoder(path, "GptOssConfig", 154, "a sink for each head; experts are chosen by logits, with a bias, and have biases; gates are clamped; a window in layer 0; yarn whose ramp is not rounded",
            ROUTER + [("limit", set_to(swiglu_limit=7.0)), ("alpha", set_to(swiglu_alpha=1.702)), ("window 5", set_to(sliding_window=5)), ("rounded ramp", rope_to(truncate=True))],
            base=WIDE, head_dim=16, rms_norm_eps=1e-3, intermediate_size=12, num_local_experts=5, num_experts_per_tok=3, sliding_window=6, swiglu_alpha=1.1, swiglu_limit=0.6,
            rope_parameters=rope("yarn", theta=1000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=1.0, truncate=False))


def hunyuan_v1_moe(path):
    decoder(path, "HunYuanMoEV1Config", 155, "experts beside an MLP for all rows; norms of queries and keys after they are turned, so that absolute positions count; a number of experts for each "
            "layer; biases of attention", [LOOSE_EPS, ("one expert less", set_to(moe_topk=[1, 1]))], sides=("right",), head_dim=12, rms_norm_eps=1e-3, attention_bias=True, num_experts=5,
            moe_topk=[2, 2], rope_parameters=rope())


PHIMOE = dict(rms_norm_eps=1e-2, num_local_experts=5, num_experts_per_tok=1, router_jitter_noise=0.3, attention_bias=True)


def phimoe(path):
    decoder(path, "PhimoeConfig", 156, "two experts whatever num_experts_per_tok says, one after the other; layer norms; biases; a window of 6",
            [LOOSE_EPS, ("noise", set_to(router_jitter_noise=0.01)), ("window 5", set_to(sliding_window=5))], **PHIMOE, sliding_window=6, rope_parameters=rope())


def phimoe_longrope(path):
    factors = dict(short_factor=[1.0, 1.3, 1.7, 2.2], long_factor=[1.0, 4.0, 9.0, 30.0], short_mscale=1.2, long_mscale=1.2)
    decoder(path, "PhimoeConfig", 157, "longrope, of which it takes the short factors for any text", [LOOSE_EPS, ("factors", rope_to(short_factor=[1.0] * 4)), ("mscale", rope_to(short_mscale=1.0, long_mscale=1.0))],
            **PHIMOE, rope_parameters=rope("longrope", original_max_position_embeddings=32, **factors))


# -- decoders with latent attention ------------------------------------------------------------------------------------

LATENT = WIDE | dict(num_key_value_heads=4, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=7, kv_lora_rank=10, q_lora_rank=12, rms_norm_eps=1e-3)
DEEPSEEK = LATENT | dict(moe_intermediate_size=12, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=1.7)
LONG = rope("yarn", theta=1000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=1.0, mscale=0.7, mscale_all_dim=1.3)


def corrected(path, kind, seed, note, wrong, also=None, **options):
    """Of routers with a correction, which is no parameter: it is of the size of scores, so weights that had it would show. `also` changes the tensors on disk."""
    config = getattr(transformers, kind)(**options)
    model = randomise(transformers.AutoModelForSequenceClassification.from_config(config), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.6 * torch.randn(buffer.shape, generator=generator))
    model.save_pretrained(path)
    if also:
        tensors = all_weights(path)
        also(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    finish(path, plain_samples(config, seed + 10), "last_non_pad", note, wrong=wrong)


def deepseek_v3(path):
    corrected(path, "DeepseekV3Config", 180, "queries, keys and values by way of narrower rows, whose norms have an eps of their own; one key part that turns for all heads, neighbours in pairs; values are "
              "narrower than keys; yarn with a factor on scores too; biases where they are; layer 0 has an MLP; of 4 groups of experts 2 are seen, by their best two with a correction; a tensor of layer 61, "
              "which predicts tokens",
              ROUTER + [normed(False), ("half a head apart", set_to(rope_interleave=False)), ("score factor", rope_to(mscale_all_dim=1.0, mscale=0.7 * 1.13 / 1.18)),
                        ("one group", set_to(topk_group=1, n_group=2)), ("weights' factor", set_to(routed_scaling_factor=1.0))],
              lambda tensors: tensors.update({"model.layers.61.eh_proj.weight": torch.ones(2, 2)}),
              **DEEPSEEK | dict(num_hidden_layers=3), n_group=4, topk_group=2, attention_bias=True, rope_parameters=LONG)


def deepseek_v3_direct(path):
    corrected(path, "DeepseekV3Config", 181, "queries are made directly; pairs that turn are half a head apart; values are wider than keys; weights of experts do not add up to one; one group",
              ROUTER + [normed(True), ("neighbours", set_to(rope_interleave=True))],
              **DEEPSEEK | dict(q_lora_rank=None, v_head_dim=13, first_k_dense_replace=0), n_group=1, topk_group=1, norm_topk_prob=False, rope_interleave=False, rope_parameters=rope())


def deepseek_v2(path):
    decoder(path, "DeepseekV2Config", 182, "of 4 groups of experts 2 are seen, by their best; weights do not add up to one whatever norm_topk_prob says; biases of attention and MLPs, that of all rows too",
            ROUTER + [("one group", set_to(topk_group=1)), ("greedy", set_to(topk_method="greedy")), ("score factor", rope_to(mscale_all_dim=1.0, mscale=0.7 * 1.13 / 1.18))],
            base=DEEPSEEK | dict(num_hidden_layers=3), n_group=4, topk_group=2, topk_method="group_limited_greedy", norm_topk_prob=True, attention_bias=True, mlp_bias=True, rope_parameters=LONG)


def deepseek_v2_lite(path):
    decoder(path, "DeepseekV2Config", 183, "as V2-Lite: queries are made directly, and groups do not count", ROUTER, base=DEEPSEEK, q_lora_rank=None, n_group=4, topk_group=1, topk_method="greedy", rope_parameters=rope())


MINICPM = LATENT | dict(rms_norm_eps=5e-2, scale_emb=3, scale_depth=1.1)
SCALES = [LOOSE_EPS, ("scale_emb", set_to(scale_emb=1)), ("scale_depth", set_to(scale_depth=1.4))]


def minicpm3(path):
    decoder(path, "MiniCPM3Config", 184, "embeddings and what layers add have factors; pairs that turn are half a head apart; values are as wide as hidden_size / heads; biases of attention and MLP",
            SCALES, base=MINICPM | dict(v_head_dim=None), attention_bias=True, mlp_bias=True, rope_parameters=rope())


def minicpm3_yarn(path):
    decoder(path, "MiniCPM3Config", 185, "queries are made directly; yarn with a factor on scores too; values are wider than keys; what layers add has no factor because it says so",
            [("score factor", rope_to(mscale_all_dim=1.0, mscale=0.7 * 1.13 / 1.18))], base=MINICPM | dict(v_head_dim=13, q_lora_rank=None, scale_depth=None), rope_parameters=LONG)


def mistral4(path):
    decoder(path, "Mistral4Config", 186, "queries grow with their positions, what does not turn too; of 4 groups of experts 2 are seen, whose softmax goes over all; experts of a layer in two tensors on disk",
            ROUTER + [normed(False), ("growth", rope_to(llama_4_scaling_beta=0.1)), ("half a head apart", set_to(rope_interleave=False)), ("one group", set_to(topk_group=1))], sides=("right",),
            base=DEEPSEEK, n_group=4, topk_group=2, rope_parameters=LONG | dict(original_max_position_embeddings=8, llama_4_scaling_beta=0.8))


def axk1(path):
    def as_published(tensors):
        for name in [name for name in tensors if name.endswith("e_score_correction_bias")]:
            del tensors[name]
        tensors["model.layers.1.post_mlp_layernorm.weight"] = torch.ones(32)

    corrected(path, "AXK1Config", 187, "a norm of what experts add, in layers that have them; layer 1 has none, and a norm on disk that nobody reads; no corrections on disk",
              ROUTER + [normed(False), ("one group", set_to(topk_group=1))], as_published,
              **{k: v for k, v in DEEPSEEK.items() if k != "first_k_dense_replace"} | dict(num_hidden_layers=3), mlp_layer_types=["sparse", "dense", "sparse"], n_group=4, topk_group=2, rope_parameters=rope())


# -- decoders with a gated delta rule ----------------------------------------------------------------------------------

DELTA = SMALL | dict(num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], head_dim=12, rms_norm_eps=1e-3, attention_bias=True,
                     linear_conv_kernel_dim=4, linear_key_head_dim=6, linear_value_head_dim=5, linear_num_key_heads=2, linear_num_value_heads=4,
                     rope_parameters=rope(theta=1000.0, partial_rotary_factor=0.5))
# more than one chunk of 64
LONGER = (1, 2, 3, 5, 9, 33, 63, 64, 65, 140)
HALF = ("rope share", rope_to(partial_rotary_factor=0.34))


def with_deltas(config, seed):
    """Rates and offsets such that memories fade slowly in some heads and at once in others."""
    model = randomise(transformers.AutoModelForSequenceClassification.from_config(config), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith("A_log"):
            parameter.data = torch.randn(parameter.shape, generator=generator) - 1.0
        elif name.endswith("dt_bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def delta(path, kind, seed, note, wrong, **options):
    config = getattr(transformers, kind)(**DELTA | options)
    with_deltas(config, seed).save_pretrained(path)
    samples = [{"token_ids": ids} for ids in token_samples(80, seed + 10, LONGER)]
    finish(path, samples, "last_non_pad", note, wrong=[LOOSE_EPS, HALF] + wrong, sides=("left", "right"))


def qwen3_next(path):
    delta(path, "Qwen3NextConfig", 190, "layers 0 and 2 have a gated delta rule, whose four projections are kept head by head in two tensors; attention has a gate; 1 + weight norms, but not that of the rule's "
          "output; half of a head turns; experts whose weights add up to one, beside one with a gate, but for layer 1", ROUTER + [normed(False)],
          moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts=5, num_experts_per_tok=2, mlp_only_layers=[1])


def qwen3_5_text(path):
    delta(path, "Qwen3_5TextConfig", 191, "layers 0 and 2 have a gated delta rule with a convolution over 3 positions; attention has a gate; 1 + weight norms, but not that of the rule's output; half of a head turns",
          [], linear_conv_kernel_dim=3)


def qwen3_5(path):
    """The composite, whose vision tower no reward of a text depends on."""
    text = {key: value for key, value in DELTA.items() if key not in ("num_labels", "layer_types", "attention_bias")} | dict(num_hidden_layers=4, linear_num_key_heads=4)
    vision = dict(hidden_size=8, intermediate_size=8, depth=1, num_heads=1, patch_size=8, out_hidden_size=16, num_position_embeddings=4)
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, num_labels=1)
    with_deltas(config, 192).save_pretrained(path)
    samples = [{"token_ids": ids} for ids in token_samples(80, 202, LONGER)]
    finish(path, samples, "last_non_pad", "the text model inside the composite, of whose layers the fourth attends, with tensors of a vision tower beside it", sides=("right",))


# -- decoders with positions of their own ------------------------------------------------------------------------------

GPT = dict(vocab_size=80, n_embd=32, n_layer=2, n_head=4, n_positions=128, n_inner=40, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1)
LOOSE_EPSILON = ("norm eps", set_to(layer_norm_epsilon=1e-6))
# positions count from the left end, whatever stands there
RIGHT = ("right",)


def gpt2(path):
    decoder(path, "GPT2Config", 90, "linear layers are [input, output], one for q, k and v; learned positions; scores of layer 1 are halved; n_inner", [LOOSE_EPSILON,
            ("same scores", set_to(scale_attn_by_inverse_layer_idx=False)), ("erf gelu", set_to(activation_function="gelu"))], base=GPT, sides=RIGHT,
            layer_norm_epsilon=1e-2, scale_attn_by_inverse_layer_idx=True)


def gpt_bigcode(path):
    decoder(path, "GPTBigCodeConfig", 91, "one key and value head, in one tensor with the queries; learned positions", [LOOSE_EPSILON], base=GPT, sides=RIGHT,
            layer_norm_epsilon=1e-2)


def gpt_bigcode_mha(path):
    decoder(path, "GPTBigCodeConfig", 92, "q, k and v of a head follow each other", [LOOSE_EPSILON], base=GPT, sides=RIGHT, layer_norm_epsilon=1e-2, multi_query=False)


def gptj(path):
    decoder(path, "GPTJConfig", 93, "neighbours turn in pairs, 4 columns of 8; attention and MLP read one norm and are added together",
            [LOOSE_EPSILON], base=GPT, layer_norm_epsilon=1e-2, rotary_dim=4)


def gpt_neo(path):
    decoder(path, "GPTNeoConfig", 94, "scores are not scaled; layer 1 sees a window of 6; learned positions", [LOOSE_EPSILON, ("window 5", set_to(window_size=5))],
            base=dict(vocab_size=80, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128, intermediate_size=40, bos_token_id=1, eos_token_id=2,
                      pad_token_id=0, num_labels=1), sides=RIGHT, layer_norm_epsilon=1e-2, window_size=6, attention_types=[[["global", "local"], 1]])


OPT = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
           pad_token_id=0, num_labels=1, word_embed_proj_dim=32)


def opt(path):
    decoder(path, "OPTConfig", 95, "positions from row 2 on; layer norms before; relu", [("one norm after", set_to(_remove_final_layer_norm=True))], base=OPT)


def opt_after(path):
    decoder(path, "OPTConfig", 96, "layer norms without weights after the sums, none at the end; no biases", base=OPT, do_layer_norm_before=False, enable_bias=False,
            layer_norm_elementwise_affine=False)


def opt_narrow(path):
    decoder(path, "OPTConfig", 145, "as OPT-350m: words of width 12 are projected to the layers, and what the head reads back; norms after the sums", base=OPT,
            word_embed_proj_dim=12, do_layer_norm_before=False)


FALCON = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
              num_labels=1, layer_norm_epsilon=1e-2, ffn_hidden_size=40)


def falcon(path):
    decoder(path, "FalconConfig", 97, "the new architecture: two key and value heads, each after its queries; two norms; attention beside the MLP; biases",
            [LOOSE_EPSILON, ("one norm", set_to(num_ln_in_parallel_attn=1))][:1], base=FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True, rope_parameters=rope())


def falcon_multi_query(path):
    decoder(path, "FalconConfig", 98, "one key and value head, as in Falcon-7B; one norm; attention beside the MLP", [LOOSE_EPSILON], base=FALCON, rope_parameters=rope())


def falcon_rw(path):
    decoder(path, "FalconConfig", 99, "q, k and v of a head follow each other; attention before the MLP, as in Falcon-RW, but without ALiBi", [LOOSE_EPSILON], base=FALCON,
            multi_query=False, parallel_attn=False, rope_parameters=rope())


def falcon_alibi(path):
    samples = [{"token_ids": ids} for ids in token_samples(80, 140, (1, 2, 5, 9, 17, 33, 58, 300))]
    decoder(path, "FalconConfig", 130, "as Falcon-RW: ALiBi for 9 heads, whose slopes, positions and products are rounded to bfloat16; attention before the MLP", [LOOSE_EPSILON,
            ("rope", set_to(alibi=False))], base=FALCON, samples=samples, hidden_size=36, num_attention_heads=9, multi_query=False, parallel_attn=False, bias=True, alibi=True)


def bloom(path):
    decoder(path, "BloomConfig", 100, "ALiBi for 6 heads, which is no power of two; a norm of the embeddings; q, k and v of a head follow each other", [LOOSE_EPSILON],
            base=dict(vocab_size=80, hidden_size=24, n_layer=2, n_head=6, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1), layer_norm_epsilon=1e-2)


def mpt(path):
    decoder(path, "MptConfig", 101, "ALiBi for 6 heads in MPT's order; norms without bias", [LOOSE_EPSILON],
            base=dict(vocab_size=80, d_model=24, n_layers=2, n_heads=6, max_seq_len=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1), layer_norm_epsilon=1e-2)


def openai_gpt(path):
    decoder(path, "OpenAIGPTConfig", 133, "GPT-2's tensors, norms of the sums, none at the end; tanh GELU, which it calls gelu", [LOOSE_EPSILON], sides=RIGHT, layer_norm_epsilon=1e-2,
            base={key: value for key, value in GPT.items() if key != "n_inner"})


def biogpt(path):
    decoder(path, "BioGptConfig", 134, "words times sqrt(hidden), and then positions from row 2 on; layer norms before, whose eps it does not read", [("unscaled", set_to(scale_embedding=False))],
            base={key: value for key, value in WIDE.items() if key != "num_key_value_heads"}, sides=RIGHT, layer_norm_eps=1e-2)


def cohere_compass_text(path):
    decoder(path, "CohereCompassTextConfig", 135, "attention and MLP beside each other, of one norm without bias; layers 0 and 2 see 6 tokens and turn, the others do neither; biases of attention",
            [LOOSE_LAYER_EPS, ("window 5", set_to(sliding_window=5)), ("rope everywhere", ropes(full=rope()))], base=WIDE | dict(num_hidden_layers=4), layer_norm_eps=1e-2, sliding_window=6,
            attention_bias=True, layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters={"sliding_attention": rope(theta=100.0), "full_attention": None})


def ministral3(path):
    decoder(path, "Ministral3Config", 102, "yarn; queries grow at positions 16, 32 and 48, so that absolute positions count; a window of 20", [LOOSE_EPS, ("window 19", set_to(sliding_window=19)),
            ("no growth", rope_to(llama_4_scaling_beta=0.0))], sides=RIGHT, head_dim=8, rms_norm_eps=1e-3, sliding_window=20,
            rope_parameters=rope("yarn", theta=100.0, factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.4))


def internlm2(path):
    """Not in transformers: a Llama whose tensors are renamed as the published code of InternLM2 lays them out, read at the last token."""
    config = transformers.LlamaConfig(**WIDE | dict(pad_token_id=None), rms_norm_eps=1e-3, rope_parameters=rope(theta=1e6))
    save_classifier(path, config, 103)
    finish(path, plain_samples(config, 113), "last_token", "InternLM2's names and its fused wqkv: of each key and value head its queries, key and value", wrong=[LOOSE_EPS], sides=())
    weights, heads, groups, width = all_weights(path), config.num_attention_heads, config.num_key_value_heads, config.head_dim
    names = {"model.embed_tokens": "model.tok_embeddings", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "score.": "v_head."}
    renamed = {}
    for name, tensor in weights.items():
        if "_proj" in name and "self_attn.o" not in name and "self_attn" in name:
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    for layer in range(config.num_hidden_layers):
        q, k, v = (weights[f"model.layers.{layer}.self_attn.{which}_proj.weight"].view(groups, -1, width, config.hidden_size) for which in "qkv")
        assert q.shape[1] == heads // groups
        renamed[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, config.hidden_size).contiguous()
    save_file(renamed, path / "model.safetensors")
    edited = json.loads((path / "config.json").read_text()) | {"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"], "bias": False}
    write_json(path / "config.json", edited)


def modernbert_decoder(path):
    decoder(path, "ModernBertDecoderConfig", 104, "layers 1 and 2 see 8 tokens, half of local_attention; a rope for each kind; no norm in front of layer 0; a head of two layers with a norm, whose "
            "dense layer and last layer have biases", [("norm eps", set_to(norm_eps=1e-6)), ("one rope", ropes(sliding=rope(theta=1000.0)))],
            base=MODERN | dict(classifier_bias=True), rope_parameters=BY_TYPE)


# -- encoders ----------------------------------------------------------------------------------------------------------

MODERN = dict(vocab_size=80, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=40, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
              cls_token_id=1, sep_token_id=2, pad_token_id=0, num_labels=1, local_attention=16, norm_eps=1e-2)
BERT = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=70, type_vocab_size=2,
            layer_norm_eps=1e-2, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=1)
ROBERTA = BERT | dict(type_vocab_size=1, pad_token_id=1, bos_token_id=0)


def encoder(path, kind, seed, note, wrong=(), base=BERT, pooling="cls", sides=RIGHT, **options):
    """The second sample has other token types where the model has some, the last a pad in its middle."""
    config = getattr(transformers, kind)(**base | options)
    save_classifier(path, config, seed)
    samples = plain_samples(config, seed + 10)
    if (base | options).get("type_vocab_size", 0) > 1:
        for sample in samples[1::2]:
            half = len(sample["token_ids"]) // 2
            sample["type_ids"] = [0] * half + [1] * (len(sample["token_ids"]) - half)
    pad = config.pad_token_id
    samples.append({"token_ids": samples[3]["token_ids"][:4] + [pad] + samples[3]["token_ids"][4:]})
    finish(path, samples, pooling, note, wrong=list(wrong), sides=sides, pad=pad)


def modernbert(path):
    encoder(path, "ModernBertConfig", 110, "layers 1 and 2 see 8 tokens to either side; a rope for each kind; no norm in front of layer 0; fused Wqkv and Wi; a head with a norm; biases of attention "
            "and MLP", [("norm eps", set_to(norm_eps=1e-6)), ("one rope", ropes(sliding=rope(theta=1000.0)))], base=MODERN, attention_bias=True, mlp_bias=True, rope_parameters=BY_TYPE)


def modernbert_mean(path):
    encoder(path, "ModernBertConfig", 111, "the mean over tokens; norms with bias", [("cls", set_to(classifier_pooling="cls"))], base=MODERN, classifier_pooling="mean", norm_bias=True,
            classifier_bias=True, rope_parameters=BY_TYPE, pooling="mean")


EURO = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, max_position_embeddings=128, bos_token_id=1,
            eos_token_id=2, pad_token_id=0, num_labels=1, rms_norm_eps=1e-3, rope_parameters=rope())


def eurobert(path):
    encoder(path, "EuroBertConfig", 112, "the head reads every token, and the mean of its logits is the reward", [("mean first", set_to(classifier_pooling="mean")), LOOSE_EPS], base=EURO,
            pooling="mean")


def eurobert_bos(path):
    encoder(path, "EuroBertConfig", 113, "the first token; biases", [LOOSE_EPS], base=EURO, classifier_pooling="bos", attention_bias=True, mlp_bias=True)


def distilbert(path):
    config = dict(vocab_size=80, dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=70, pad_token_id=0, num_labels=1)
    encoder(path, "DistilBertConfig", 114, "no token types; a head with relu", base=config)


def electra(path):
    encoder(path, "ElectraConfig", 115, "embeddings of width 12, projected; a head of two layers with erf GELU", [LOOSE_LAYER_EPS], embedding_size=12)


def albert(path):
    encoder(path, "AlbertConfig", 116, "embeddings of width 12, projected; 4 layers of 2 groups of 2 inner layers each, which share their tensors; tanh GELU", [LOOSE_LAYER_EPS],
            embedding_size=12, num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2)


def rembert(path):
    encoder(path, "RemBertConfig", 117, "embeddings of width 12, projected", [LOOSE_LAYER_EPS], input_embedding_size=12, output_embedding_size=16)


def ernie(path):
    encoder(path, "ErnieConfig", 118, "an embedding of tasks, of which all tokens have the first", [LOOSE_LAYER_EPS], use_task_id=True, task_type_vocab_size=3)


def roformer(path):
    """Sines of all positions are in the checkpoint, and are not for training."""
    config = transformers.RoFormerConfig(**BERT | dict(embedding_size=12, hidden_act="relu"))
    save_classifier(path, config, 136)
    weights = all_weights(path)
    width = config.hidden_size // config.num_attention_heads
    angles = torch.arange(config.max_position_embeddings)[:, None] / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    weights["roformer.encoder.embed_positions.weight"] = torch.cat([angles.sin(), angles.cos()], 1).float()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    samples = plain_samples(config, 146)
    for sample in samples[1::2]:
        half = len(sample["token_ids"]) // 2
        sample["type_ids"] = [0] * half + [1] * (len(sample["token_ids"]) - half)
    finish(path, samples, "cls", "neighbours turn in pairs; embeddings of width 12, projected; a head with the layers' activation", wrong=[LOOSE_LAYER_EPS], sides=RIGHT)


def ultrabert(path):
    encoder(path, "UltrabertConfig", 137, "Llama seen from both sides; layers 0, 1 and 3 see 4 tokens to either side; a rope for each kind; the mean; biases", [LOOSE_EPS, ("window 5", set_to(sliding_window=5)),
            ("one rope", ropes(sliding=rope(theta=1000.0))), ("cls", set_to(classifier_pooling="cls"))], base=EURO | dict(num_hidden_layers=4), sliding_window=4, rope_parameters=BY_TYPE, attention_bias=True,
            mlp_bias=True, classifier_pooling="mean", pooling="mean")


def megatron_bert(path):
    encoder(path, "MegatronBertConfig", 119, "norms before attention and MLP, and after the last layer; none of the embeddings", [LOOSE_LAYER_EPS])


def roberta_prelayernorm(path):
    encoder(path, "RobertaPreLayerNormConfig", 120, "norms before attention and MLP, of the embeddings, and after the last layer", [LOOSE_LAYER_EPS], base=ROBERTA)


def camembert(path):
    encoder(path, "CamembertConfig", 121, "RoBERTa by another name", [LOOSE_LAYER_EPS], base=ROBERTA)


def data2vec_text(path):
    encoder(path, "Data2VecTextConfig", 122, "RoBERTa under another prefix", [LOOSE_LAYER_EPS], base=ROBERTA)


def xlm_roberta_xl(path):
    encoder(path, "XLMRobertaXLConfig", 123, "norms before attention and MLP, and after the last layer; none of the embeddings", [LOOSE_LAYER_EPS], base=ROBERTA)


def nomic_bert(path):
    encoder(path, "NomicBertConfig", 124, "a rope, a gate with silu, no biases but those of norms and head; fused Wqkv", [LOOSE_LAYER_EPS, ("rope theta", rope_to(rope_theta=50.0))],
            rope_parameters=rope(theta=1000.0))


def gte(path):
    encoder(path, "GteConfig", 125, "a rope, a gate with erf GELU, whose tensor has up before gate; fused qkv; no token types", [LOOSE_LAYER_EPS, ("rope theta", rope_to(rope_theta=50.0))],
            type_vocab_size=0, rope_parameters=rope(theta=1000.0))


def jina_embeddings_v3(path):
    encoder(path, "JinaEmbeddingsV3Config", 126, "RoBERTa with a rope in place of positions; fused Wqkv", [LOOSE_LAYER_EPS, ("rope theta", rope_to(rope_theta=50.0))], base=ROBERTA,
            rope_parameters=rope(theta=1000.0))


def mpnet(path):
    """Its class computes 32 buckets whatever the config says of the table: with 40 rows the last 8 are of no token."""
    config = transformers.MPNetConfig(**BERT | dict(pad_token_id=0, max_position_embeddings=220), relative_attention_num_buckets=40)
    save_classifier(path, config, 127)
    # a pad (1) inside a sample takes position 1 and does not count, yet it is attended to; 1 is what the class takes whatever pad_token_id is
    ids = token_samples(80, 137, (1, 2, 5, 9, 17, 33, 58, 170))
    samples = [{"token_ids": ids} for ids in ids + [ids[3][:4] + [1] + ids[3][4:]]]
    finish(path, samples, "cls", "a number for each head and distance, of one table for all layers; far distances share rows, up to 128; positions count from 2 on whatever the "
           "pad id is", [LOOSE_LAYER_EPS], sides=RIGHT, pad=1)


def deberta_like(path, kind, seed, note, wrong, lengths=(1, 2, 5, 9, 17, 33, 58), types=False, **options):
    """Distances count by tables; `hidden_size` is split among heads of 6."""
    config = getattr(transformers, kind)(vocab_size=80, hidden_size=24, num_attention_heads=4, intermediate_size=40, max_position_embeddings=64,
                                         layer_norm_eps=1e-2, num_labels=1, **dict(num_hidden_layers=2, relative_attention=True) | options)
    save_classifier(path, config, seed)
    samples = [{"token_ids": ids} for ids in token_samples(80, seed + 10, lengths)]
    for sample in samples if types else []:
        sample["type_ids"] = [i % 2 for i in range(len(sample["token_ids"]))]
    finish(path, samples, "cls", note, wrong=[LOOSE_LAYER_EPS] + wrong, sides=("right",))


def deberta_v2(path):
    deberta_like(path, "DebertaV2Config", 100, "as v3: the layers' projections of the normed table; far distances share rows, up to 40; no positions, no types",
                 [("no norm", set_to(norm_rel_ebd="none")), ("largest distance", set_to(max_relative_positions=60)), ("c2p alone", set_to(pos_att_type=["c2p"]))],
                 lengths=(1, 2, 5, 9, 17, 33, 58, 90), share_att_key=True, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_buckets=16,
                 max_relative_positions=40, position_biased_input=False, type_vocab_size=0)


def deberta_v2_apart(path):
    deberta_like(path, "DebertaV2Config", 101, "projections of their own for the table, whose rows are distances up to 12; positions and types",
                 [("no positions", set_to(position_biased_input=False))], types=True, pos_att_type="C2P | p2c", max_relative_positions=12,
                 type_vocab_size=2, pooler_hidden_act="gelu_new")


def deberta_v2_plain(path):
    deberta_like(path, "DebertaV2Config", 102, "distances do not count, and yet scores are scaled as if they did, by queries",
                 [("scale", set_to(pos_att_type=[]))], pos_att_type=["p2c"], type_vocab_size=0, relative_attention=False)


def deberta_v2_conv(path):
    deberta_like(path, "DebertaV2Config", 131, "as v2-xlarge: a convolution of the embeddings over 3 positions beside the first layer",
                 [("other activation", set_to(conv_act="gelu"))], lengths=(1, 2, 3, 9, 17, 33, 58), conv_kernel_size=3, conv_act="tanh", share_att_key=True,
                 pos_att_type=["p2c", "c2p"], position_buckets=16, max_relative_positions=40, position_biased_input=False, type_vocab_size=0)


def deberta_v2_groups(path):
    deberta_like(path, "DebertaV2Config", 132, "over 5 positions, in 3 groups of columns, in a model of one layer; distances do not count", [("relu", set_to(conv_act="relu"))],
                 conv_kernel_size=5, conv_act="gelu", conv_groups=3, num_hidden_layers=1, relative_attention=False, type_vocab_size=0)


def deberta(path):
    deberta_like(path, "DebertaConfig", 103, "q, k and v of a head follow each other in one tensor, k without bias; distances up to 20",
                 [("p2c alone", set_to(pos_att_type=["p2c"]))], types=True, pos_att_type="c2p|p2c", max_relative_positions=20, position_biased_input=False,
                 type_vocab_size=2)


def deberta_keys(path):
    deberta_like(path, "DebertaConfig", 104, "keys alone are multiplied with the table, whose distances go as far as positions",
                 [("distances", set_to(relative_attention=False))], pos_att_type=["p2c"], type_vocab_size=0)


CHECKPOINTS = [gemma3_text, gemma3, olmo, olmo3, phi, phi3, phi3_longrope, glm, glm4, helium, hunyuan_v1_dense, nemotron, starcoder2, stablelm, stablelm_heads, stablelm_after, persimmon, gpt_neox,
               qwen3_moe, qwen2_moe, mixtral, mixtral_stacked, gpt_oss, hunyuan_v1_moe, phimoe, phimoe_longrope,
               deepseek_v3, deepseek_v3_direct, deepseek_v2, deepseek_v2_lite, minicpm3, minicpm3_yarn, mistral4, axk1,
               qwen3_next, qwen3_5_text, qwen3_5,
               gpt2, gpt_bigcode, gpt_bigcode_mha, gptj, gpt_neo, openai_gpt, biogpt, cohere_compass_text, opt, opt_after, opt_narrow, falcon, falcon_multi_query, falcon_rw, falcon_alibi, bloom, mpt, ministral3, internlm2, modernbert_decoder,
               modernbert, modernbert_mean, eurobert, eurobert_bos, distilbert, electra, albert, rembert, ernie, roformer, ultrabert, megatron_bert, roberta_prelayernorm, camembert, data2vec_text,
               xlm_roberta_xl, mpnet, nomic_bert, gte, jina_embeddings_v3, deberta_v2, deberta_v2_apart, deberta_v2_plain, deberta_v2_conv, deberta_v2_groups, deberta, deberta_keys]
