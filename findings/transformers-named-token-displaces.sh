#!/usr/bin/env bash
# transformers 5.23.0: any key of tokenizer_config.json that ends in `_token` takes the place of all of
# `model_specific_special_tokens`; and the id that `added_tokens_decoder` states for a token is not the id that it gets.
#
# `model_specific_special_tokens` is where a tokenizer keeps tokens with names of its own (`image_token` and the like), which
# chat templates are given by these names. One more token, named at the top level of the same file, and those are gone: the
# template renders nothing in their place. And a token whose entry says id 900 gets the next id that is free, so an
# embedding row is read by another number than the file says.
#
# Seen: {image_token: a} alone is kept; beside "tool_token": "b" only tool_token is there. Stated 900, got 5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.2
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2> /dev/null
import json
import pathlib

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

words = Tokenizer(models.WordLevel({word: id for id, word in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
words.save("tokenizer.json")


def load(**more):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    pathlib.Path("tokenizer_config.json").write_text(json.dumps(settings | more))
    return AutoTokenizer.from_pretrained(".")


def own(tokenizer):
    return {name: token for name, token in tokenizer.special_tokens_map.items() if name in ("image_token", "tool_token")}


names = {"model_specific_special_tokens": {"image_token": "a"}}
added = {"added_tokens_decoder": {"900": {"content": "<tool>", "special": True}}}
seen = [own(load(**names)), own(load(**names, tool_token="b")), load(**added).convert_tokens_to_ids("<tool>")]
print(seen)
assert seen == [{"image_token": "a"}, {"tool_token": "b"}, 5], seen
PYTHON
