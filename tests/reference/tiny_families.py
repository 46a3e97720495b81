"""More tiny checkpoints for make_tiny.py: one function for each family, with its nasty options on."""
import transformers

from make_tiny import (LOOSE_EPS, SMALL, WIDE, edit_config, finish, plain_samples, randomise, rope, rope_to, save_classifier, set_to,
                       token_samples)
from transformers import AutoModelForSequenceClassification

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


def persimmon(path):
    decoder(path, "PersimmonConfig", 84, "q, k and v of a head follow each other in one tensor; layer norms of queries and keys; squared ReLU; half of a head turns",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.25))], base=WIDE, layer_norm_eps=1e-2, rope_parameters=rope(partial_rotary_factor=0.5))


def gpt_neox(path):
    decoder(path, "GPTNeoXConfig", 85, "q, k and v of a head follow each other in one tensor; attention and MLP beside each other, each with its norm; a quarter of a head turns",
            [LOOSE_LAYER_EPS, ("rope share", rope_to(partial_rotary_factor=0.5)), ("one after the other", set_to(use_parallel_residual=False))], base=WIDE,
            layer_norm_eps=1e-2, rope_parameters=rope(partial_rotary_factor=0.25))


def deberta_like(path, kind, seed, note, wrong, lengths=(1, 2, 5, 9, 17, 33, 58), types=False, **options):
    """Distances count by tables; `hidden_size` is split among heads of 6."""
    config = getattr(transformers, kind)(vocab_size=80, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
                                         max_position_embeddings=64, layer_norm_eps=1e-2, num_labels=1, **dict(relative_attention=True) | options)
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


def deberta(path):
    deberta_like(path, "DebertaConfig", 103, "q, k and v of a head follow each other in one tensor, k without bias; distances up to 20",
                 [("p2c alone", set_to(pos_att_type=["p2c"]))], types=True, pos_att_type="c2p|p2c", max_relative_positions=20, position_biased_input=False,
                 type_vocab_size=2)


def deberta_keys(path):
    deberta_like(path, "DebertaConfig", 104, "keys alone are multiplied with the table, whose distances go as far as positions",
                 [("distances", set_to(relative_attention=False))], pos_att_type=["p2c"], type_vocab_size=0)


CHECKPOINTS = [gemma3_text, gemma3, olmo, olmo3, phi, phi3, phi3_longrope, glm, glm4, helium, hunyuan_v1_dense, nemotron, starcoder2, stablelm, persimmon, gpt_neox,
               deberta_v2, deberta_v2_apart, deberta_v2_plain, deberta, deberta_keys]
