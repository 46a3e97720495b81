"""Writes tests/data/labels: checkpoints with five labels, and what transformers 5.23.0 makes of some tokens: five logits each.

    python tests/reference/labels.py
"""

import json
import pathlib
import shutil

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

DATA = pathlib.Path(__file__).parent.parent / "data"
NAMES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
IDS = [[3], [5, 8, 13], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8], list(range(20, 50))]


def make(name, model):
    torch.manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model = model.eval().float()
    out = DATA / "labels" / name
    model.save_pretrained(out)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(DATA / "models" / name / file, out / file)
    with torch.no_grad():
        samples = [{"token_ids": ids, "logits": model(torch.tensor([ids])).logits[0].tolist()} for ids in IDS]
    (out / "golden.json").write_text(json.dumps({"samples": samples}) + "\n")


def main():
    torch.set_num_threads(1)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    llama = json.loads((DATA / "models/llama/config.json").read_text())
    bert = json.loads((DATA / "models/bert/config.json").read_text())
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    keep = lambda config, keys: {key: config[key] for key in keys}
    llama = keep(llama, ["vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"])
    bert = keep(bert, ["vocab_size", "pad_token_id", "type_vocab_size"])
    make("llama", LlamaForSequenceClassification(LlamaConfig(**llama, **small, num_key_value_heads=1, **labels)))
    make("bert", BertForSequenceClassification(BertConfig(**bert, **small, max_position_embeddings=64, **labels)))


if __name__ == "__main__":
    main()
