"""Models that measurements in Python serve, as variants of a configuration."""

import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parents[2]

DEMO = {"mode": "warm", "members": [str(ROOT / f"deploy/demo/member-{index}") for index in range(4)]}


def minilm(folder: pathlib.Path) -> dict[str, object]:
    """Six layers of 384, random: rewards mean nothing, and cost what those of a MiniLM do. Takes torch and transformers."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                        num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    # texts are not what is measured: any tokenizer will do
    for file in (ROOT / "deploy/demo/member-0").glob("*token*"):
        shutil.copy(file, folder)
    return {"mode": "warm", "model": str(folder)}
