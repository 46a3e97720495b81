#!/usr/bin/env bash
# transformers 5.23.0: an MPT has ALiBi, an MLP four times as wide and no biases, whatever its config says.
#
# `attn_config.alibi`, `attn_config.qk_ln`, `expansion_ratio` and `no_bias` are fields with checked types, which the published models
# set; the model's code reads none of them. A file that says `"alibi": false` (with learned positions, which such models of MosaicML's own
# code have) loads without a word and is computed with ALiBi and without positions.
#
# Seen: the reward of a small random MPT is the same to the last bit under each of them, and it has the same tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import torch
from transformers import AutoModelForSequenceClassification
from transformers import MptConfig

SIZES = dict(vocab_size=40, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, pad_token_id=0, num_labels=1)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
SAID = [{}, {"attn_config": {"alibi": False}}, {"attn_config": {"qk_ln": True}}, {"expansion_ratio": 2}, {"no_bias": False}]


@torch.no_grad()
def reward(said):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(MptConfig(**SIZES, **said), attn_implementation="eager").eval()
    for parameter in model.parameters():
        noise = 0.3 * torch.randn_like(parameter)
        parameter.data = noise if parameter.ndim > 1 else 1 + noise
    return model(input_ids=IDS).logits.item(), sorted(name for name, _ in model.named_parameters())


seen = [reward(said) for said in SAID]
print([reward for reward, _ in seen])
assert all(one == seen[0] for one in seen), seen
PYTHON
