#!/usr/bin/env bash
# transformers 5.23.0: a Falcon with ALiBi has other rewards in eager attention than in sdpa, the default.
#
# With `"alibi": true` (Falcon-RW) the bias by distance goes into the mask, for sdpa; eager attention adds that mask and then the bias
# itself once more. Weights, ids and precision (f32) are the same, nothing is padded, and no warning is written. What was trained under
# one of the two is another model under the other.
#
# Seen: the rewards of a small random Falcon with ALiBi differ by more than a hundredth; without ALiBi they agree to 1e-5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import torch
from transformers import AutoModelForSequenceClassification
from transformers import FalconConfig

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=False,
             new_decoder_architecture=False, pad_token_id=0, num_labels=1)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@torch.no_grad()
def reward(attention, alibi):
    torch.manual_seed(0)
    config = FalconConfig(**SIZES, alibi=alibi)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        noise = 0.3 * torch.randn_like(parameter)
        parameter.data = noise if parameter.ndim > 1 else 1 + noise
    return model(input_ids=IDS).logits.item()


seen = {alibi: [reward(attention, alibi) for attention in ("eager", "sdpa")] for alibi in (True, False)}
print(seen)
assert abs(seen[True][0] - seen[True][1]) > 1e-2, seen
assert abs(seen[False][0] - seen[False][1]) < 1e-5, seen
PYTHON
