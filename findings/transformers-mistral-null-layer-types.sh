#!/usr/bin/env bash
# transformers 5.23.0: a `"layer_types": null` in the config.json of a Mistral makes it a Ministral.
#
# AutoConfig looks whether the key is there, not what it says: the same file without it is a MistralConfig, with null or a list
# a MinistralConfig (model_type "ministral"). Null elsewhere means what an absent key means. The two classes do not have the
# same defaults: `head_dim`, which Mistral derives from hidden size and heads where it is absent, stays None in the other.
#
# Seen: without the key MistralConfig, head_dim 8; with null MinistralConfig, head_dim None, all layers sliding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import json
import pathlib

from transformers import AutoConfig

base = {"model_type": "mistral", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "sliding_window": 8}


def read(**more):
    pathlib.Path("config.json").write_text(json.dumps(base | more))
    config = AutoConfig.from_pretrained(".")
    return [type(config).__name__, config.model_type, config.head_dim, getattr(config, "layer_types", None)]


seen = [read(), read(layer_types=None)]
print(seen)
assert seen == [["MistralConfig", "mistral", 8, None],
                ["MinistralConfig", "ministral", None, ["sliding_attention", "sliding_attention"]]], seen
PYTHON
