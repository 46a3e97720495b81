#!/usr/bin/env bash
# transformers 5.23.0: the logits of a HunYuan (dense) classifier change with the number of pads on the left, mask and all.
#
# A decoder with rotary positions knows distances only, so that pads on the left, masked, leave a Llama's logits as they are. HunYuan
# norms queries and keys after they are turned, with a weight for each column: what the turn has moved from column to column is
# weighted there, and absolute positions count. Nobody who batches such a reward model with padding on the left and no position ids gets
# the rewards of single samples.
#
# Seen: with 5 pads in front a small random Llama's reward moves by less than 1e-5, HunYuan's by more than 0.01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import torch
from transformers import AutoModelForSequenceClassification
from transformers import HunYuanDenseV1Config, LlamaConfig

SIZES = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, pad_token_id=0, num_labels=1)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
PADDED = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS], dim=1)


@torch.no_grad()
def moves(kind):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(kind(**SIZES), attn_implementation="eager").eval()
    for parameter in model.parameters():
        noise = 0.3 * torch.randn_like(parameter)
        parameter.data = noise if parameter.ndim > 1 else 1 + noise
    alone = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.item()
    return abs(alone - model(input_ids=PADDED, attention_mask=(PADDED != 0).long()).logits.item())


seen = {kind.__name__: moves(kind) for kind in (LlamaConfig, HunYuanDenseV1Config)}
print(seen)
assert seen["LlamaConfig"] < 1e-5, seen
assert seen["HunYuanDenseV1Config"] > 0.01, seen
PYTHON
