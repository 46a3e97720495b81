#!/usr/bin/env bash
# transformers 5.23.0: `attn_logit_softcapping` of a Gemma-3 config changes nothing.
#
# The key is a field of Gemma3TextConfig, is kept by the attention module, and is saved again. Gemma-2's attention passes it on to the
# function that makes scores; Gemma-3's does not. So a reward model of Gemma-3 that says 0.5 scores as one that says null, and code that
# follows the config file instead of the library gets other rewards.
#
# Seen: the rewards of a small random Gemma-2 differ between a cap of 0.5 and none, those of a Gemma-3 are equal to the last bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import torch
from transformers import AutoModelForSequenceClassification
from transformers import Gemma2Config, Gemma3TextConfig

SIZES = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, pad_token_id=0, num_labels=1)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@torch.no_grad()
def reward(kind, cap):
    torch.manual_seed(0)
    config = kind(**SIZES, attn_logit_softcapping=cap)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model(input_ids=IDS).logits.item()


seen = {kind.__name__: [reward(kind, 0.5), reward(kind, None)] for kind in (Gemma2Config, Gemma3TextConfig)}
print(seen)
assert abs(seen["Gemma2Config"][0] - seen["Gemma2Config"][1]) > 1e-3, seen
assert seen["Gemma3TextConfig"][0] == seen["Gemma3TextConfig"][1], seen
PYTHON
