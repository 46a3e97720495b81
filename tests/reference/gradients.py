#!/usr/bin/env python3
"""Makes tests/data/gradients: torch's gradients of the Bradley–Terry loss, by autograd, on the tiny models.

    pip install -r tests/reference/requirements.txt
    python tests/reference/gradients.py [MODEL ...]

For each model MODEL.safetensors holds the gradient of every parameter, computed in float64, stored in float32. Pairs are
neighbours among the samples of its golden.json: (1, 2), (3, 4), (5, 6) as chosen and rejected. Each sequence goes alone.
`gradients.json` has losses and rewards:

    {"made_with": {...}, "models": {MODEL: {"pairs", "centering", "loss", "rewards": [[chosen, rejected], ...]}},
     "steps": {MODEL: {"options", "learning_rate", "rewards": after each of 3 steps}}}

`MODEL.stepped.safetensors` holds the parameters after 3 steps of torch.optim.AdamW in float32; `adamw.json` three steps with
made-up gradients, and a clipping.
"""
import json
import pathlib
import platform
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file

import make_tiny

ROOT = pathlib.Path(__file__).resolve().parents[1] / "data"
OUT = ROOT / "gradients"
MODELS = ["llama", "llama-tied-bias", "mistral", "qwen2", "qwen3", "gemma2", "bert", "bert-gelu-new", "roberta", "v-head",
          "trl-v-head-file", "openrlhf-normalized",
          "gemma", "olmo2", "smollm3", "seed-oss", "ministral", "exaone4", "arcee", "xlm-roberta",
          "gemma3-text", "gemma3", "olmo", "olmo3", "phi", "phi3", "glm", "glm4", "helium", "hunyuan-v1-dense", "nemotron", "starcoder2",
          "stablelm", "stablelm-heads", "persimmon", "gpt-neox",
          "gpt2", "gpt-bigcode", "gptj", "gpt-neo", "opt", "opt-narrow", "falcon", "falcon-alibi", "bloom", "mpt", "ministral3", "modernbert-decoder", "modernbert", "eurobert",
          "distilbert", "electra", "albert", "rembert", "ernie", "megatron-bert", "roberta-prelayernorm", "camembert", "data2vec-text", "xlm-roberta-xl", "mpnet", "openai-gpt", "biogpt", "cohere-compass-text", "roformer", "ultrabert",
          "nomic-bert", "gte", "jina-embeddings-v3", "deberta-v2", "deberta-v2-apart", "deberta-v2-conv", "deberta-v2-groups", "deberta"]
CENTERED = {"llama-tied-bias": 0.01, "bert": 0.01, "trl-v-head-file": 0.1}
STEPPED = ["bert", "llama-tied-bias"]
OPTIONS = dict(betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
LEARNING_RATE = 1e-3
STEPPED_EPS = 1e-6  # above rounding noise, which AdamW would scale to full steps


def load(name, dtype):
    """The model and its parameters by their names in the checkpoint."""
    model = make_tiny.load(ROOT / "models" / name, dtype=dtype)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # else torch keeps the gradient from the padding token's row, which may be the eos in the text
    if isinstance(model, transformers.PreTrainedModel):
        return model, dict(model.named_parameters())
    weights = make_tiny.all_weights(ROOT / "models" / name)
    parameters = {f"model.{key}": tensor for key, tensor in model.model.named_parameters()}
    heads = [key for key in weights if not key.startswith(("model.", "lm_head."))]
    for key in heads:
        tensor = (model.bias if key.endswith(".bias") else model.head).requires_grad_()
        parameters[key] = tensor
    return model, parameters


def as_stored(model, parameters):
    """Gradients by the names, and in the tensors, that the checkpoint has: transformers saves some models otherwise than it holds them."""
    # what no reward depends on is no parameter: a vision tower
    unused = ("model.vision_tower.", "model.multi_modal_projector.")
    gradients = {key: tensor.grad.float() for key, tensor in parameters.items() if tensor.grad is not None and not key.startswith(unused)}
    if not isinstance(model, transformers.PreTrainedModel):
        return gradients
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=gradients)
        return make_tiny.all_weights(pathlib.Path(folder))


def reward(model, sample):
    ids = torch.tensor([sample["token_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "type_ids" in sample:
        inputs["token_type_ids"] = torch.tensor([sample["type_ids"]])
    out = model(**inputs)
    return getattr(out, "logits", out).flatten()[0]


def forward(name, model, pairs):
    samples = json.loads((ROOT / "models" / name / "golden.json").read_text())["samples"]
    return torch.stack([torch.stack([reward(model, samples[i]) for i in pair]) for pair in pairs])


def loss_of(rewards, centering):
    chosen, rejected = rewards.unbind(1)
    return (torch.nn.functional.softplus(rejected - chosen) + centering * (chosen + rejected) ** 2).mean()


def main():
    OUT.mkdir(exist_ok=True)
    names = sys.argv[1:]
    if unknown := set(names) - set(MODELS):
        sys.exit(f"not in MODELS: {', '.join(sorted(unknown))}")
    document = json.loads((OUT / "gradients.json").read_text()) if names else {
        "made_with": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "models": {}, "steps": {}}
    pairs = [(1, 2), (3, 4), (5, 6)]
    for name in names or MODELS:
        model, parameters = load(name, torch.float64)
        centering = CENTERED.get(name, 0.0)
        rewards = forward(name, model, pairs)
        loss = loss_of(rewards, centering)
        loss.backward()
        save_file(as_stored(model, parameters), OUT / f"{name}.safetensors")
        document["models"][name] = {"pairs": pairs, "centering": centering, "loss": loss.item(), "rewards": rewards.tolist()}

    for name in [] if names else STEPPED:
        model, parameters = load(name, torch.float32)
        matrices = [tensor for tensor in parameters.values() if tensor.ndim > 1]
        vectors = [tensor for tensor in parameters.values() if tensor.ndim == 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, foreach=False, **OPTIONS | dict(eps=STEPPED_EPS))
        after = []
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(forward(name, model, pairs), CENTERED[name]).backward()
            optimizer.step()
            after.append(forward(name, model, pairs).tolist())
        save_file({key: tensor.detach().contiguous() for key, tensor in parameters.items()}, OUT / f"{name}.stepped.safetensors")
        document["steps"][name] = {"learning_rate": LEARNING_RATE, "options": OPTIONS | dict(eps=STEPPED_EPS), "rewards": after}
    (OUT / "gradients.json").write_text(json.dumps(document, indent=1) + "\n")
    if names:
        return
    (OUT / "adamw.json").write_text(json.dumps(steps_and_clipping(), indent=1) + "\n")


def steps_and_clipping():
    """Three steps of a matrix that decays and a vector that does not, with gradients of very different sizes."""
    generator = torch.Generator().manual_seed(7)
    start = [torch.randn(shape, generator=generator) for shape in [(3, 5), (4,)]]
    gradients = [[torch.randn(p.shape, generator=generator) * 10.0 ** torch.randint(-9, 3, p.shape, generator=generator) for p in start] for _ in range(3)]
    gradients[1][0][0] = 0.0
    parameters = [p.clone().requires_grad_() for p in start]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, foreach=False, **OPTIONS)
    rates, after = [1e-2, 5e-3, 1e-3], []
    for rate, of_step in zip(rates, gradients):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, of_step):
            parameter.grad = gradient.clone()
        optimizer.step()
        after.append([p.detach().flatten().tolist() for p in parameters])
    clipped = []
    for max_norm in (0.5, 1e6):
        for parameter, gradient in zip(parameters, gradients[0]):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
        clipped.append({"max_norm": max_norm, "norm": norm, "gradients": [p.grad.flatten().tolist() for p in parameters]})
    flat = lambda tensors: [t.flatten().tolist() for t in tensors]
    return {"options": OPTIONS, "rates": rates, "shapes": [list(p.shape) for p in start], "start": flat(start),
            "gradients": [flat(of_step) for of_step in gradients], "after": after, "clipped": clipped}


if __name__ == "__main__":
    main()
