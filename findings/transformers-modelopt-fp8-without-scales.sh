#!/usr/bin/env bash
# transformers 5.23.0: an FP8 checkpoint of NVIDIA's ModelOpt loads as if it were not quantized, and its scales are dropped.
#
# `quant_method: modelopt` is what ModelOpt's exports say. transformers does not know it: it warns that it skips the quantization, and
# loads the bare FP8 numbers into a plain model, which computes rewards as any other. `weight_scale` is reported among unexpected
# keys, as a warning. A reward model that was scaled by 1/448 answers something else entirely, and nothing fails.
#
# Seen: the weights of the model are the stored FP8 numbers, 1.00 times, where the file's scale is 0.01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' venv/bin/python - <<'PYTHON' 2> /dev/null
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                     vocab_size=32, num_labels=1, pad_token_id=0)
folder = pathlib.Path("model")
LlamaForSequenceClassification(config).save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
for name in [name for name in tensors if name.endswith("_proj.weight")]:
    tensors[name] = (tensors[name] / 0.01).to(torch.float8_e4m3fn)
    tensors[name.replace(".weight", ".weight_scale")] = torch.tensor(0.01)
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
said = json.loads((folder / "config.json").read_text())
said["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8", "producer": {"name": "modelopt", "version": "0.47.0"}}
(folder / "config.json").write_text(json.dumps(said))

model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
weight = model.model.layers[0].mlp.up_proj.weight.detach().float()
stored = tensors["model.layers.0.mlp.up_proj.weight"].float()
seen = round((weight / stored)[stored != 0].median().item(), 2)
print(seen, weight.dtype)
assert seen == 1.0, seen
PYTHON
