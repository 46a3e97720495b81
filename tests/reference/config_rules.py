#!/usr/bin/env python3
"""Writes tests/data/rules/config_cases.json: what transformers makes of a config.json that says too much or too little.

    pip install -r tests/reference/requirements.txt
    python tests/reference/config_rules.py

Each case changes a model of tests/data/models and has rewards of transformers in f32, eager attention, one sample at a time. A
sample above `limit`, which is ours, has none.
"""
import json
import pathlib
import shutil
import tempfile
import warnings

warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 2.0}
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}


def longrope(half):
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, "factor": 4.0,
            "short_factor": [1.0 + 0.1 * n for n in range(half)], "long_factor": [2.0 + 0.7 * n for n in range(half)]}


def cases():
    """(model, what, keys of config.json; None takes one out, keys that are null, tensors, our limit, asked limit, lengths)"""
    both = {"rope_parameters": DEFAULT, "rope_scaling": LINEAR}
    for model in ("llama", "qwen3", "gemma2"):
        half = json.loads((DATA / "models" / model / "config.json").read_text())["head_dim"] // 2
        yield model, "rope_scaling beside rope_parameters", both, [], {}, 999, None, (7, 40)
        yield model, "rope_scaling with a theta of its own", both | {"rope_scaling": LINEAR | {"rope_theta": 77.0}, "rope_theta": 900.0}, [], {}, 999, None, (40,)
        yield model, "rope_scaling and a theta beside it", both | {"rope_theta": 77.0}, [], {}, 999, None, (40,)
        yield model, "an empty rope_scaling", both | {"rope_scaling": {}, "rope_theta": 77.0}, [], {}, 999, None, (40,)
        yield model, "yarn, positions of the pretraining", {"rope_parameters": YARN, "max_position_embeddings": 64}, [], {}, 256, None, (40, 64, 65, 200, 256, 257)
        yield model, "longrope", {"rope_parameters": longrope(half), "max_position_embeddings": 32}, [], {}, 128, None, (20, 32, 33, 128, 129)
    yield "llama", "yarn, a limit beyond it", {"rope_parameters": YARN, "max_position_embeddings": 64}, [], {}, 300, 300, (257, 300, 301)
    yield "llama", "dynamic", {"rope_parameters": DEFAULT | {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32}, [], {}, 64, None, (20, 32, 33, 64, 65)
    yield "llama", "linear in the words of transformers 4", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 77.0, "max_position_embeddings": 32}, [], {}, 64, None, (32, 64, 65)
    yield "llama", "a theta that is nowhere", {"rope_parameters": None}, [], {}, 999, None, (40,)
    yield "llama", "score.bias", {}, [], {"score.bias": [5.0]}, 999, None, (7, 40)
    yield "mistral", "layers of both kinds", {"layer_types": ["full_attention", "sliding_attention"]}, [], {}, 999, None, (7, 40)
    yield "mistral", "layer_types that say nothing", {}, ["layer_types"], {}, 999, None, (40,)
    yield "gemma2", "no pad_token_id", {"pad_token_id": None}, [], {}, 999, None, (7, 40)
    yield "gemma2", "pad_token_id null", {"pad_token_id": None}, ["pad_token_id"], {}, 999, None, (7, 40)
    yield "roberta", "no pad_token_id", {"pad_token_id": None}, [], {}, 999, None, (7, 40)


def main():
    written = []
    for model, what, config, nulls, tensors, limit, asked, lengths in cases():
        folder = pathlib.Path(tempfile.mkdtemp())
        shutil.copytree(DATA / "models" / model, folder, dirs_exist_ok=True)
        document = json.loads((folder / "config.json").read_text())
        for key, value in config.items():
            document.pop(key, None) if value is None else document.update({key: value})
        document.update(dict.fromkeys(nulls))
        (folder / "config.json").write_text(json.dumps(document))
        if tensors:
            stored = load_file(folder / "model.safetensors") | {name: torch.tensor(value) for name, value in tensors.items()}
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        reference = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        samples = []
        for tokens in lengths:
            generator = torch.Generator().manual_seed(tokens)
            ids = torch.randint(3, document["vocab_size"], (tokens,), generator=generator).tolist()
            ids = ids[:-2] + [0, 0] if what.startswith(("pad", "no pad")) else ids
            with torch.no_grad():
                reward = reference(torch.tensor([ids])).logits[0, 0].item()
            samples.append({"token_ids": ids, "reward": reward if tokens <= limit else None})
        written.append({"model": model, "what": what, "config": config, "nulls": nulls, "tensors": tensors, "max_tokens": asked, "samples": samples})
        shutil.rmtree(folder)
    target = DATA / "rules" / "config_cases.json"
    target.write_text("[\n" + ",\n".join(json.dumps(case) for case in written) + "\n]\n")
    print(f"{len(written)} cases")


if __name__ == "__main__":
    main()
