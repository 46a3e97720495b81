#!/usr/bin/env python3
"""Makes the tiny random checkpoints under tests/data/models, each with golden rewards by transformers.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_tiny.py [--out tests/data/models] [NAME ...]

Each directory is an ordinary Hugging Face checkpoint plus `golden.json`:

    {"made_with": {"python", "torch", "transformers"}, "pooling": "...", "note": "...",
     "samples": [{"token_ids", "type_ids" (encoders that use them), "reward", "reward_low" (f16 and bf16 only)}],
     "texts": [{"prompt", "response", "rendered" (chat template only), "token_ids", "type_ids", "reward"}]}

`reward` is the raw float32 logit of one sample alone, eager attention, weights as f32; `reward_low` is the same in the
stored dtype. `pooling` is `cls`, `last_token`, or `last_non_pad` (transformers' rule: the rightmost id that is not
pad; index 0 when all are). A `config_v4.json` beside `config.json` says the same in transformers 4.x words.

Every checkpoint has an option that is easy to get wrong. The script loads the same weights with that option off (or off
by one) and insists that rewards move by more than 1e-3; it also insists that a sample alone scores as it does in a
left- or right-padded batch, within 1e-5. So a parity test on these files can fail, and says why.
"""
import argparse
import copy
import json
import math
import pathlib
import platform
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (ArceeConfig, AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification,
                          BertConfig, Exaone4Config, Gemma2Config, GemmaConfig, LlamaConfig, MinistralConfig, MistralConfig,
                          Olmo2Config, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config, RobertaConfig, SeedOssConfig,
                          SmolLM3Config, XLMRobertaConfig)

PADDING_ATOL = 1e-5  # one sample alone against the same sample in a padded batch
CONDITION = 3e-6  # float32 against float64: golden rewards must leave room for another order of summation
SENSITIVITY = 1e-3  # what a wrong option must move the worst reward by
GELU_SENSITIVITY = 5e-5  # the erf and tanh forms are at most 5e-4 apart themselves

SENTENCES = [
    "The kettle sings while the rain falls on the tin roof.",
    "Could you tell me how to mend a bicycle tyre with a spoon?",
    "Take the wheel off first, then lift the edge of the tyre with the spoon.",
    "My neighbour grows tomatoes, beans and three kinds of mint.",
    "How far is it from the harbour to the old lighthouse?",
    "It is about four kilometres; the path along the cliff is the nicer one.",
    "Write a short note that thanks a teacher.",
    "Dear Ms. Okafor, thank you for the patience you had with us this year.",
    "The train was late, so we counted the blue cars in the street: 17 of them!",
    "I don't know the answer, but I can help you look for it.",
]
PAIRS = [
    ("How do I boil an egg?", "Put it in boiling water for seven minutes."),
    ("How do I boil an egg?", ""),
    ("Tell me about the harbour.", "The harbour is old; ships came here for tea and tin. 🚢"),
    ("  Two\nlines ", "Ünïcode, tabs\tand “quotes”."),
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


# -- weights, samples, rewards -----------------------------------------------------------------------------------------


def randomise(model, seed, gain=1.0):
    """Large random weights, so that every norm, bias and projection shows in the reward."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("weight") and weight.ndim == 1:  # of a norm
            # these multiply by (1 + w)
            offset = 0.0 if type(model).__name__.startswith(("Gemma", "Nemotron", "Qwen3Next", "Qwen3_5")) else 1.0
            weight.data = offset + 0.3 * noise
        elif name.endswith("bias"):
            weight.data = 0.3 * noise
        elif "embed" in name:
            weight.data = 0.6 * noise
        else:
            weight.data = gain * noise / math.sqrt(weight.shape[-1])
    return model.eval()


def token_samples(vocab, seed, lengths=(1, 2, 5, 9, 17, 33, 58)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


class OpenRlhfRewardModel(torch.nn.Module):
    """OpenRLHF's RewardModel: a backbone, a linear head without bias, the last position of the attention mask.

    Source: OpenRLHF `openrlhf/models/model.py`, `_get_reward_model`. Normalised only when the config asks.
    """

    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        self.model = load_backbone(config, weights)
        self.register_buffer("head", weights[config.value_head_prefix + ".weight"])

    def forward(self, input_ids, attention_mask):
        positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state
        reward = last_of_mask((hidden @ self.head.T).squeeze(-1), attention_mask)
        if self.config.normalize_reward:
            reward = (reward - self.config.mean) / self.config.std
        return reward


class ValueHeadModel(torch.nn.Module):
    """TRL's AutoModelForCausalLMWithValueHead: `v_head.summary` (with bias) on the final hidden state.

    Source: TRL `trl/models/modeling_value_head.py` (`ValueHead`, `nn.Linear(hidden_size, 1)`); read at the last position
    of the attention mask, as LLaMA-Factory's PPO does. A plain `v_head.weight` (no bias) is read the same way.
    """

    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        self.model = load_backbone(config, weights)
        self.register_buffer("head", weights["v_head.weight" if "v_head.weight" in weights else "v_head.summary.weight"])
        self.register_buffer("bias", weights.get("v_head.summary.bias", torch.zeros(1)))

    def forward(self, input_ids, attention_mask):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return last_of_mask((hidden @ self.head.T + self.bias).squeeze(-1), attention_mask)


def last_of_mask(values, mask):
    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1, keepdim=True)
    return values.gather(1, last).squeeze(1)


def load_backbone(config, weights):
    model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
    trunk = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    model.load_state_dict(trunk, strict=True)
    return model.eval()


def all_weights(path):
    weights = {}
    for shard in sorted(path.glob("*.safetensors")):  # value_head.safetensors as well
        weights |= load_file(shard)
    return weights


def load(path, dtype=torch.float32, config_file="config.json", edit=None):
    """The checkpoint as a function `(input_ids, attention_mask, [token_type_ids]) → rewards`; `edit` changes its config."""
    config = AutoConfig.from_pretrained(path / config_file)
    if edit:
        edit(config)
    kind = config.architectures[0]
    if kind == "RewardModel":
        return OpenRlhfRewardModel(config, all_weights(path)).to(dtype)
    if kind.endswith("ForCausalLM"):
        return ValueHeadModel(config, all_weights(path)).to(dtype)
    # Falcon's eager attention adds ALiBi twice: to the scores, and with the mask
    attention = "sdpa" if getattr(config, "alibi", False) and config.model_type == "falcon" else "eager"
    # the other ways of computing experts have no float64
    model = AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype=dtype, attn_implementation=attention, experts_implementation="eager")
    return model.eval()


@torch.no_grad()
def reward_alone(model, sample):
    model = copy.deepcopy(model)  # dynamic rope remembers the longest sample it has seen
    ids = torch.tensor([sample["token_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "type_ids" in sample:
        inputs["token_type_ids"] = torch.tensor([sample["type_ids"]])
    out = model(**inputs)
    return float(getattr(out, "logits", out).flatten()[0])


def rewards(path, samples, **options):
    model = load(path, **options)
    return [reward_alone(model, sample) for sample in samples]


@torch.no_grad()
def rewards_padded(path, samples, side, pad):
    """The same samples in one batch; position ids count real tokens, as generation code makes them for left padding."""
    model, width = load(path), max(len(s["token_ids"]) for s in samples)

    def pad_to(values, fill):
        gap = [fill] * (width - len(values))
        return values + gap if side == "right" else gap + values

    inputs = {"input_ids": torch.tensor([pad_to(s["token_ids"], pad) for s in samples]),
              "attention_mask": torch.tensor([pad_to([1] * len(s["token_ids"]), 0) for s in samples])}
    if any("type_ids" in s for s in samples):
        inputs["token_type_ids"] = torch.tensor([pad_to(s.get("type_ids", [0] * len(s["token_ids"])), 0) for s in samples])
    out = model(**inputs)
    return getattr(out, "logits", out).flatten().tolist()


def distance(left, right):
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


# -- one checkpoint, checked -------------------------------------------------------------------------------------------


def finish(path, samples, pooling, note, wrong=(), sides=("right", "left"), pad=0, v4=None, texts=None, low=None):
    """Writes golden.json once every check has passed.

    `wrong` lists (what, edit): config edits under which rewards must move. `v4` turns config.json's dict into 4.x words.
    """
    golden = rewards(path, samples)
    assert all(math.isfinite(r) and 1e-3 < abs(r) < 30 for r in golden), golden
    assert len({round(r, 4) for r in golden}) >= len(golden) / 2, golden
    gap = distance(golden, rewards(path, samples, dtype=torch.float64))
    assert gap < CONDITION, f"{path.name}: float32 and float64 differ by {gap}"
    for side in sides:
        # a pad id inside a sample that is itself padded is fine: only ids and mask decide
        gap = distance(golden, rewards_padded(path, samples, side, pad))
        assert gap < PADDING_ATOL, f"{path.name}: {side}-padded differs by {gap}"
    moved = {}
    for what, edit in wrong:
        moved[what] = distance(golden, rewards(path, samples, edit=edit))
        assert moved[what] > (GELU_SENSITIVITY if "gelu" in what else SENSITIVITY), f"{path.name}: {what} moves the reward by {moved[what]} only"
    if v4:
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config_v4.json", to_v4(config, v4))
        gap = distance(golden, rewards(path, samples, config_file="config_v4.json"))
        assert gap == 0, f"{path.name}: config_v4.json differs by {gap}"
    for sample, reward in zip(samples, golden):
        sample["reward"] = reward
    if low:
        for sample, reward in zip(samples, rewards(path, samples, dtype=low)):
            sample["reward_low"] = reward
    made_with = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                 "transformers": transformers.__version__}
    document = {"made_with": made_with, "pooling": pooling, "note": note, "samples": samples}
    if texts:
        for text, reward in zip(texts, rewards(path, texts)):
            text["reward"] = reward
        document["texts"] = texts
    write_golden(path / "golden.json", document)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path.name:20} {size:7} bytes  rewards {min(golden):+.3f}..{max(golden):+.3f}  "
          + "  ".join(f"{what} {gap:.1e}" for what, gap in moved.items()), flush=True)


def to_v4(config, drop):
    """config.json in transformers 4.x words: rope_theta and rope_scaling at the top, torch_dtype, no `drop` keys."""
    rope = dict(config.pop("rope_parameters", {}))
    theta, kind = rope.pop("rope_theta", None), rope.pop("rope_type", "default")
    if theta is not None:
        config["rope_theta"] = theta
        # the oldest files say "type"; llama3 came with "rope_type"
        config["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    return {key: value for key, value in sorted(config.items()) if key not in drop}


def write_json(path, document):
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_golden(path, document):
    """One line for each sample."""
    lists = {key: document.pop(key) for key in ("samples", "texts") if key in document}
    parts = [f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in document.items()]
    for key, rows in lists.items():
        parts.append(f'  "{key}": [\n' + ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n  ]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


# -- the families ------------------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=80, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1)
WIDE = SMALL | dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)


def rope(kind="default", theta=10000.0, **options):
    return {"rope_type": kind, "rope_theta": theta, **options}


def save_classifier(path, config, seed, **options):
    model = randomise(AutoModelForSequenceClassification.from_config(config), seed)
    model.to(options.pop("dtype", torch.float32)).save_pretrained(path, **options)


def set_to(**changes):
    def edit(config):
        for key, value in changes.items():
            setattr(config, key, value)
    return edit


def rope_to(**changes):
    def edit(config):
        config.rope_parameters = {key: value for key, value in {**config.rope_parameters, **changes}.items() if value is not None}
    return edit


PLAIN_ROPE = ("plain rope", lambda config: setattr(config, "rope_parameters", rope(theta=config.rope_parameters["rope_theta"])))
LOOSE_EPS = ("norm eps", set_to(rms_norm_eps=1e-6))


def plain_samples(config, seed):
    return [{"token_ids": ids} for ids in token_samples(config.vocab_size, seed)]


def chat_llama(path, seed, note, wrong, jinja_file, **options):
    """A llama with a tokenizer, and texts scored through its chat template."""
    tokenizer = llama_tokenizer()
    bos, eos, pad = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "pad"))
    config = LlamaConfig(**options | dict(vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=eos, pad_token_id=pad), rope_parameters=rope())
    save_classifier(path, config, seed)
    tokenizer.save_pretrained(path, save_jinja_files=jinja_file)
    texts = []
    for prompt, response in PAIRS:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert tokenizer(rendered)["input_ids"] == [bos] + encoded, "the trap: a doubled BOS"
        texts.append({"prompt": prompt, "response": response, "rendered": rendered, "token_ids": encoded})
    finish(path, plain_samples(config, seed + 10), "last_non_pad", note, wrong=wrong, pad=pad, texts=texts)


def llama(path):
    chat_llama(path, 1, "GQA, untied; byte-level BPE that adds a BOS, llama3-like chat template in tokenizer_config.json",
               [LOOSE_EPS, ("rope theta", rope_to(rope_theta=1000.0))], jinja_file=False, **WIDE, rms_norm_eps=1e-2)


def llama_tied_bias(path):
    chat_llama(path, 2, "attention_bias (q, k, v, o), mlp_bias, tie_word_embeddings; the chat template is chat_template.jinja",
               [], jinja_file=True, **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    biases = [name for name in all_weights(path) if name.endswith(".bias")]
    assert len(biases) == 2 * 7, biases


def llama_head_dim(path):
    config = LlamaConfig(**SMALL | dict(pad_token_id=None), head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope())
    save_classifier(path, config, 3)
    finish(path, plain_samples(config, 13), "last_token", "head_dim 12, hidden / heads is 8; no pad id: transformers takes the last token",
           wrong=[LOOSE_EPS], sides=())


def llama_rope_llama3(path):
    # theta 100: one frequency untouched, two in the smooth part, one divided by the factor
    config = LlamaConfig(**WIDE, rope_parameters=rope("llama3", theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                      original_max_position_embeddings=64))
    save_classifier(path, config, 4)
    finish(path, plain_samples(config, 14), "last_non_pad", "llama3 rope with frequencies in all three parts",
           wrong=[PLAIN_ROPE, ("high_freq_factor", rope_to(high_freq_factor=3.0))], v4=("head_dim",))


def llama_rope_linear(path):
    config = LlamaConfig(**SMALL, rope_parameters=rope("linear", factor=4.0))
    save_classifier(path, config, 5)
    finish(path, plain_samples(config, 15), "last_non_pad", 'linear rope; config_v4.json has the old key "type"', wrong=[PLAIN_ROPE], v4=("head_dim",))


def llama_rope_dynamic(path):
    config = LlamaConfig(**SMALL | dict(max_position_embeddings=32), rope_parameters=rope("dynamic", factor=2.0))
    save_classifier(path, config, 6)
    samples = [{"token_ids": ids} for ids in token_samples(80, 16, (1, 7, 31, 32, 33, 45, 58))]
    finish(path, samples, "last_non_pad", "dynamic NTK rope; samples longer than 32 stretch the base by their own length. Padded batches "
           "differ by design: transformers stretches all by the longest, and remembers it", wrong=[PLAIN_ROPE], sides=(), v4=("head_dim",))


def llama_rope_yarn(path):
    # head_dim 16, 512 original positions: the ramp goes 0, 1/4, 1/2, 3/4, 1; attention_factor defaults to 0.1 ln(4) + 1
    config = LlamaConfig(**WIDE | dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048),
                         rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=512))
    save_classifier(path, config, 7)
    finish(path, plain_samples(config, 17), "last_non_pad", "yarn rope, attention_factor by default",
           wrong=[PLAIN_ROPE, ("attention factor", rope_to(attention_factor=1.0)), ("beta_fast", rope_to(beta_fast=16))], v4=("head_dim",))


def llama_pad_eos(path):
    config = LlamaConfig(**SMALL | dict(pad_token_id=2), rope_parameters=rope())
    save_classifier(path, config, 8)
    a, b = token_samples(80, 18, (9, 20))
    samples = [a, b, a + [2], b + [2], a + [2, 2, 2], a[:4] + [2] + a[4:], a[:4] + [2, 2] + a[4:] + [2], [2], [2, 2, 2], [2] + a]
    finish(path, [{"token_ids": ids} for ids in samples], "last_non_pad", "pad == eos: trailing eos are not pooled, a pad in the middle "
           "is an ordinary token, and all-pad pools index 0", wrong=[("last token", set_to(pad_token_id=None))], pad=2)


def mistral(path):
    config = MistralConfig(**SMALL, head_dim=8, sliding_window=8, rope_parameters=rope())
    save_classifier(path, config, 9)
    finish(path, plain_samples(config, 19), "last_non_pad", "sliding_window 8: a token sees itself and the 7 before it",
           wrong=[("no window", set_to(sliding_window=None)), ("window 7", set_to(sliding_window=7)), ("window 9", set_to(sliding_window=9))],
           v4=("head_dim", "layer_types"))


def qwen2(path):
    config = Qwen2Config(**SMALL | dict(num_hidden_layers=3), use_sliding_window=True, sliding_window=6, max_window_layers=2, rope_parameters=rope())
    assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"], config.layer_types
    save_classifier(path, config, 10)
    finish(path, plain_samples(config, 20), "last_non_pad", "qkv bias; only layers from max_window_layers on slide",
           wrong=[("all full", set_to(layer_types=["full_attention"] * 3)), ("all slide", set_to(layer_types=["sliding_attention"] * 3)),
                  ("window 5", set_to(sliding_window=5))], v4=("layer_types",))


def qwen3(path):
    config = Qwen3Config(**SMALL, head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope(theta=1e6))
    save_classifier(path, config, 11)
    finish(path, plain_samples(config, 21), "last_non_pad", "q_norm and k_norm over head_dim 12", wrong=[LOOSE_EPS, ("rope theta", rope_to(rope_theta=1e4))],
           v4=("layer_types",))


def gemma2(path):
    config = Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=20, sliding_window=6, attn_logit_softcapping=2.0,
                          final_logit_softcapping=5.0, rms_norm_eps=1e-3, rope_parameters=rope(), hidden_activation="gelu_pytorch_tanh")
    assert config.layer_types == ["sliding_attention", "full_attention"], config.layer_types
    save_classifier(path, config, 12)
    finish(path, plain_samples(config, 22), "last_non_pad", "softcap 2, query_pre_attn_scalar 20, layers alternate sliding and full, (1 + w) norms, "
           "tanh GeGLU, embeddings times sqrt(hidden); final_logit_softcapping does not apply to a reward",
           wrong=[LOOSE_EPS, ("no softcap", set_to(attn_logit_softcapping=None)), ("scalar", set_to(query_pre_attn_scalar=8)),
                  ("all full", set_to(layer_types=["full_attention"] * 2)), ("other parity", set_to(layer_types=["full_attention", "sliding_attention"])),
                  ("window 5", set_to(sliding_window=5)), ("erf gelu", set_to(hidden_activation="gelu"))],
           v4=("layer_types", "use_bidirectional_attention"))


def gemma(path):
    # files of the first release say "gelu"
    config = GemmaConfig(**SMALL, head_dim=12, rms_norm_eps=3e-2, rope_parameters=rope(), hidden_act="gelu", attention_bias=True)
    save_classifier(path, config, 40)
    finish(path, plain_samples(config, 50), "last_non_pad", "(1 + w) norms, embeddings times sqrt(hidden), head_dim 12, biases of attention, "
           "tanh GeGLU", wrong=[LOOSE_EPS, ("erf gelu", set_to(hidden_act="gelu_python"))])
    edit_config(path, hidden_act="gelu")


def olmo2(path):
    config = Olmo2Config(**WIDE, rms_norm_eps=1e-3, rope_parameters=rope(), attention_bias=True)
    save_classifier(path, config, 41)
    finish(path, plain_samples(config, 51), "last_non_pad", "norms after attention and MLP, none before; q_norm and k_norm over all heads "
           "together; biases of attention", wrong=[LOOSE_EPS, ("rope theta", rope_to(rope_theta=100.0))])


def smollm3(path):
    config = SmolLM3Config(**SMALL | dict(num_hidden_layers=4), rms_norm_eps=1e-3, rope_parameters=rope(theta=5e6), no_rope_layers=[1, 0, 1, 0],
                           use_sliding_window=True, sliding_window=6, attention_bias=True, mlp_bias=True)
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2, config.layer_types
    save_classifier(path, config, 42)
    finish(path, plain_samples(config, 52), "last_non_pad", "layers 1 and 3 have no rope, and a window of 6; biases of attention and MLP",
           wrong=[LOOSE_EPS, ("all rope", set_to(no_rope_layers=[1] * 4)), ("window 5", set_to(sliding_window=5)),
                  ("all full", set_to(layer_types=["full_attention"] * 4))])


def seed_oss(path):
    config = SeedOssConfig(**SMALL, head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope(), attention_out_bias=True, mlp_bias=True)
    save_classifier(path, config, 43)
    finish(path, plain_samples(config, 53), "last_non_pad", "biases of q, k and v by default, of o and MLP because it says so; head_dim 12", wrong=[LOOSE_EPS])


def ministral(path):
    config = MinistralConfig(**SMALL, head_dim=12, sliding_window=6, layer_types=["full_attention", "sliding_attention"], rope_parameters=rope())
    save_classifier(path, config, 44)
    finish(path, plain_samples(config, 54), "last_non_pad", "one layer sees all, the other 6 tokens",
           wrong=[("all slide", set_to(layer_types=["sliding_attention"] * 2)), ("window 5", set_to(sliding_window=5))])


def exaone4(path):
    config = Exaone4Config(**SMALL | dict(num_hidden_layers=3), rms_norm_eps=1e-3, rope_parameters=rope(), sliding_window=6, sliding_window_pattern=2)
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"], config.layer_types
    save_classifier(path, config, 45)
    finish(path, plain_samples(config, 55), "last_non_pad", "norms after attention and MLP, none before; q_norm and k_norm per head; every second "
           "layer sees all and has no rope", wrong=[LOOSE_EPS, ("window 5", set_to(sliding_window=5)), ("all slide", set_to(layer_types=["sliding_attention"] * 3))])


def exaone4_full(path):
    config = Exaone4Config(**SMALL, rms_norm_eps=1e-3, rope_parameters=rope(), sliding_window=None, layer_types=["full_attention"] * 2)
    save_classifier(path, config, 46)
    finish(path, plain_samples(config, 56), "last_non_pad", "no window: all layers have rope", wrong=[LOOSE_EPS, ("rope theta", rope_to(rope_theta=100.0))])


def arcee(path):
    config = ArceeConfig(**SMALL, head_dim=12, rms_norm_eps=1e-3, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32),
                         attention_bias=True, mlp_bias=True)
    save_classifier(path, config, 47)
    finish(path, plain_samples(config, 57), "last_non_pad", "a plain MLP with squared ReLU; biases of all; yarn", wrong=[LOOSE_EPS, ("silu", set_to(hidden_act="silu"))])


def edit_config(path, **changes):
    """What the library says in other words when it saves."""
    config = json.loads((path / "config.json").read_text())
    before = rewards(path, plain_samples(AutoConfig.from_pretrained(path), 1))
    write_json(path / "config.json", config | changes)
    assert before == rewards(path, plain_samples(AutoConfig.from_pretrained(path), 1)), changes


def bert_like(path, seed, hidden_act, note, wrong):
    tokenizer = bert_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
                        max_position_embeddings=64, type_vocab_size=2, hidden_act=hidden_act, layer_norm_eps=1e-2, num_labels=1)
    save_classifier(path, config, seed)
    tokenizer.save_pretrained(path)
    samples = []
    for i, ids in enumerate(token_samples(len(tokenizer), seed + 10)):
        first = len(ids) // 2 if i % 2 else len(ids)
        samples.append({"token_ids": ids} | ({"type_ids": [0] * first + [1] * (len(ids) - first)} if i % 2 else {}))
    no_types = [{"token_ids": s["token_ids"]} for s in samples]
    assert distance(rewards(path, samples), rewards(path, no_types)) > SENSITIVITY, "token types do not show"
    texts = []
    for prompt, response in PAIRS:
        # in lists: with two bare strings transformers takes an empty response for "no pair" and drops its [SEP]
        encoded = tokenizer([prompt], [response])
        texts.append({"prompt": prompt, "response": response, "token_ids": encoded["input_ids"][0], "type_ids": encoded["token_type_ids"][0]})
    finish(path, samples, "cls", note, wrong=wrong + [("norm eps", set_to(layer_norm_eps=1e-12))], sides=("right",), texts=texts)


def bert(path):
    bert_like(path, 36, "gelu", "erf GELU, pooler (tanh) and classifier, token types, WordPiece pairs", [("tanh gelu", set_to(hidden_act="gelu_new"))])


def bert_gelu_new(path):
    bert_like(path, 14, "gelu_new", "tanh GELU", [("erf gelu", set_to(hidden_act="gelu"))])


def roberta(path):
    roberta_like(path, RobertaConfig, 15)


def xlm_roberta(path):
    roberta_like(path, XLMRobertaConfig, 48)


def roberta_like(path, kind, seed):
    config = kind(vocab_size=80, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
                           max_position_embeddings=70, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=1)
    save_classifier(path, config, seed)
    samples = token_samples(80, seed + 10)
    samples += [samples[3][:4] + [1] + samples[3][4:], samples[4] + [1]]
    # Position ids come from ids: a pad inside a sample takes position 1 and does not count, yet it is attended to.
    finish(path, [{"token_ids": ids} for ids in samples], "cls", "position ids start at pad + 1 and skip pads; two-layer head (dense, tanh, out_proj); "
           "a pad (1) inside a sample is attended to", wrong=[("position offset", set_to(pad_token_id=0))], sides=("right",), pad=1)


# -- other heads -------------------------------------------------------------------------------------------------------


def save_with_head(path, seed, architecture, head, lm_head=False, separate_head=False, config_extra={}, **config):
    """A llama trunk under `model.`, and a head under its own names."""
    config = LlamaConfig(**SMALL | dict(pad_token_id=2) | config, rope_parameters=rope())
    model = randomise(AutoModelForCausalLM.from_config(config), seed)
    model.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    if not lm_head:
        weights.pop("lm_head.weight", None)
    generator = torch.Generator().manual_seed(seed + 100)
    head = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in head.items()}
    if separate_head:
        save_file(head, path / "value_head.safetensors", metadata={"format": "pt"})
    save_file(weights if separate_head else weights | head, path / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((path / "config.json").read_text())
    for key in ("id2label", "label2id"):
        document.pop(key, None)
    write_json(path / "config.json", document | {"architectures": [architecture]} | config_extra)


def eos_samples(seed):
    """Some end in eos == pad: these heads pool it, transformers' rule would not."""
    a, b, c = token_samples(80, seed, (9, 20, 50))
    return [{"token_ids": ids} for ids in (a, b, c, a + [2], b + [2], a + [2, 2], a[:4] + [2] + a[4:], [5])]


def openrlhf_raw(path):
    save_with_head(path, 16, "RewardModel", {"value_head.weight": (1, 16)},
                   config_extra=dict(value_head_prefix="value_head", normalize_reward=False, mean=0.7, std=2.5))
    finish(path, eos_samples(26), "last_token", "value_head; mean and std are there but normalize_reward is false; the eos is pooled although pad == eos",
           wrong=[("normalised", set_to(normalize_reward=True))], pad=2)


def openrlhf_normalized(path):
    save_with_head(path, 17, "RewardModel", {"score.weight": (1, 16)},
                   config_extra=dict(value_head_prefix="score", normalize_reward=True, mean=0.7, std=2.5))
    finish(path, eos_samples(27), "last_token", "prefix score, (reward - mean) / std, the eos is pooled although pad == eos",
           wrong=[("raw", set_to(normalize_reward=False))], pad=2)


def trl_v_head(path):
    save_with_head(path, 18, "LlamaForCausalLM", {"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,)}, lm_head=True)
    finish(path, eos_samples(28), "last_token", "v_head.summary with bias inside model.safetensors, beside an lm_head that is not used", pad=2)


def trl_v_head_file(path):
    save_with_head(path, 19, "LlamaForCausalLM", {"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,)}, separate_head=True,
                   tie_word_embeddings=True)
    finish(path, eos_samples(29), "last_token", "v_head.summary in value_head.safetensors, as LLaMA-Factory saves it; tied, so no lm_head", pad=2)


def v_head(path):
    save_with_head(path, 20, "LlamaForCausalLM", {"v_head.weight": (1, 16)}, lm_head=True)
    finish(path, eos_samples(30), "last_token", "v_head.weight, no bias", pad=2)


# -- other files -------------------------------------------------------------------------------------------------------


def llama_sharded(path):
    config = LlamaConfig(**SMALL, rope_parameters=rope())
    save_classifier(path, config, 21, max_shard_size="14KB")
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(shards) == 2 and (path / "model.safetensors.index.json").exists(), shards
    finish(path, plain_samples(config, 31), "last_non_pad", "two shards and an index")


def llama_low(path, seed, dtype):
    config = LlamaConfig(**SMALL, rope_parameters=rope())
    save_classifier(path, config, seed, dtype=dtype)
    assert {tensor.dtype for tensor in all_weights(path).values()} == {dtype}
    finish(path, plain_samples(config, seed + 10), "last_non_pad", f"weights stored as {dtype}; reward is the f32 forward of the widened weights, "
           "reward_low the forward in that dtype (for information)", low=dtype)


def llama_f16(path):
    llama_low(path, 22, torch.float16)


def llama_bf16(path):
    llama_low(path, 23, torch.bfloat16)


def llama_old_config(path):
    """The `llama-head-dim` weights under a 4.x config.json and nothing else."""
    source = path.parent / "llama-head-dim"
    assert source.exists(), "make llama-head-dim first"
    shutil.copy(source / "model.safetensors", path)
    config = to_v4(json.loads((source / "config.json").read_text()), drop=())
    write_json(path / "config.json", config)
    golden = json.loads((source / "golden.json").read_text())
    samples = [{"token_ids": sample["token_ids"]} for sample in golden["samples"]]
    finish(path, samples, "last_token", "llama-head-dim with config.json in 4.x words: rope_theta, rope_scaling null, torch_dtype", sides=())
    assert [s["reward"] for s in samples] == [s["reward"] for s in golden["samples"]]


# -- tokenizers --------------------------------------------------------------------------------------------------------


def llama_tokenizer():
    """A byte-level BPE of 300 tokens that adds a BOS, as Llama 3's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    bpe.train_from_iterator(SENTENCES, trainer)
    bos = special[0]
    bpe.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bpe.token_to_id(bos))])])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=special[1], pad_token=special[5],
                                   chat_template=CHAT_TEMPLATE, model_max_length=128, clean_up_tokenization_spaces=False)


def bert_tokenizer():
    """A lower-casing WordPiece with BERT's [CLS] A [SEP] B [SEP], token types 0 and 1."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = " ".join(SENTENCES).lower()
    letters, words = sorted(set(text) - {" "}), sorted({word for word in text.split() if word.isalpha() and len(word) > 4})
    # built by hand: the trainer breaks ties differently in each run
    vocab = special + letters + ["##" + letter for letter in letters] + words
    piece = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    piece.normalizer = normalizers.BertNormalizer(lowercase=True)
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.decoder = decoders.WordPiece()
    piece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=piece, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
                                   mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


CHECKPOINTS = [llama, llama_tied_bias, llama_head_dim, llama_old_config, llama_rope_llama3, llama_rope_linear, llama_rope_dynamic, llama_rope_yarn,
               llama_pad_eos, mistral, qwen2, qwen3, gemma2, bert, bert_gelu_new, roberta, openrlhf_raw, openrlhf_normalized, trl_v_head,
               trl_v_head_file, v_head, llama_sharded, llama_f16, llama_bf16,
               gemma, olmo2, smollm3, seed_oss, ministral, exaone4, exaone4_full, arcee, xlm_roberta]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "data" / "models")
    parser.add_argument("names", nargs="*", metavar="NAME", help="checkpoints to make (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from tiny_families import CHECKPOINTS as MORE  # which is made with what is above
    known = [make.__name__.replace("_", "-") for make in CHECKPOINTS + MORE]
    if unknown := set(args.names) - set(known):
        parser.error(f"no such checkpoint: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for make in CHECKPOINTS + MORE:
        name = make.__name__.replace("_", "-")
        if args.names and name not in args.names:
            continue
        path = args.out / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        make(path)


if __name__ == "__main__":
    main()
