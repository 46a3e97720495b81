#!/usr/bin/env bash
# transformers 5.23.0: FP8 weights whose last block of rows is smaller are dequantized with other blocks than the file has.
#
# A checkpoint of `quant_method: fp8` says its block in `weight_block_size`, and has a scale for each block, the last one of which may be
# smaller. transformers does not use that size when it dequantizes (on a CPU, always): it divides rows by rows of scales. 192 rows in blocks
# of 128 have two rows of scales, so it takes blocks of 96, and rows 96 to 127 get the scale of the block behind theirs. No
# warning, no error; every width that is no multiple of the block is wrong.
#
# Seen: of rows 0, 95, 96, 127, 128, 191 with scales 1 (the first 128 rows) and 4: weight / stored is 1, 1, 4, 4, 4, 4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' venv/bin/python - <<'PYTHON' 2> /dev/null
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

config = LlamaConfig(hidden_size=192, intermediate_size=192, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3,
                     vocab_size=32, num_labels=1, pad_token_id=0)
folder = pathlib.Path("model")
LlamaForSequenceClassification(config).save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
for name in [name for name in tensors if name.endswith("_proj.weight")]:
    tensors[name] = (tensors[name] * 8).to(torch.float8_e4m3fn)
    tensors[name.replace(".weight", ".weight_scale_inv")] = torch.tensor([[1.0, 1.0], [4.0, 4.0]])
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
said = json.loads((folder / "config.json").read_text())
said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
(folder / "config.json").write_text(json.dumps(said))

model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
weight = model.model.layers[0].mlp.up_proj.weight.detach().float()
stored = tensors["model.layers.0.mlp.up_proj.weight"].float()
seen = [round((weight[row] / stored[row])[stored[row] != 0].median().item(), 2) for row in (0, 95, 96, 127, 128, 191)]
print(seen)
assert seen == [1.0, 1.0, 4.0, 4.0, 4.0, 4.0], seen
PYTHON
