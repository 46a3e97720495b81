"""Holds tests/layouts.rs to the libraries: sentence-transformers 6.2.0, transformers 5.23.0.

    pip install -r tests/reference/requirements.txt && pip install sentence-transformers==6.2.0
    python tests/reference/layouts.py target/debug/rewarm

A cross-encoder that is saved and scored by both; norms named gamma and beta; a pad_token_id of -1.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification

DATA = pathlib.Path(__file__).parent.parent / "data/models"
IDS = [3, 5, 8, 13]


def rewarm(model, sample):
    run = subprocess.run([sys.argv[1], "score", "--model", str(model)], input=json.dumps(sample), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["reward"]


def copy(name, folder):
    for source in ["llama", name]:  # some have no tokenizer; any will do for token ids
        for path in (DATA / source).iterdir():
            shutil.copy(path, folder)


def close(theirs, ours, what):
    assert abs(theirs - ours) <= 1e-5 * max(1, abs(theirs)), (what, theirs, ours)
    print(f"{what}: {theirs:.6f}, {ours:.6f}")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in ["bert"]:
        with tempfile.TemporaryDirectory() as folder:
            source, saved = pathlib.Path(folder) / "source", pathlib.Path(folder) / "saved"
            source.mkdir()
            copy(name, source)
            encoder = CrossEncoder(str(source), device="cpu")
            encoder.save_pretrained(str(saved))
            pair = ("a b c", "d e")
            theirs = float(encoder.predict([pair], activation_fn=torch.nn.Identity())[0])
            close(theirs, rewarm(saved, {"prompt": pair[0], "response": pair[1]}), f"cross-encoder {name}")
    changes = {
        "bert": ("gamma and beta", {}),
        "roberta": ("gamma and beta", {}),
        "llama": ("pad_token_id -1", {"pad_token_id": -1}),
    }
    for name, (what, config) in changes.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            copy(name, folder)
            tensors = load_file(folder / "model.safetensors")
            old = lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            save_file({old(key): value for key, value in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
            theirs = model(torch.tensor([IDS])).logits.item()
            close(theirs, rewarm(folder, {"token_ids": IDS}), f"{what} {name}")


if __name__ == "__main__":
    main()
