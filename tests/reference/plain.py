"""What `tokenizer(text)` of transformers 5.23.0 gives: the expected ids of `a_plain_text_has_the_tokenizers_own_special_tokens`
in src/text/mod.rs.

    python tests/reference/plain.py
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]

for path, texts in {
    "tests/data/models/llama": ["a b", "<|begin_of_text|>a b", ""],
    "deploy/demo/member-0": ["It is warm.", "[CLS] It is warm. [SEP]", ""],
}.items():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / path)
    for text in texts:
        print(path, repr(text), tokenizer(text)["input_ids"])
