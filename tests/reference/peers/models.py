"""Writes the models that all peers run, with random weights of a fixed seed, in every peer's format; runs in the venv `torch`.

    python models.py checkpoint SHAPE DIR     a Hugging Face directory; weights are bfloat16 numbers, so that every precision starts equal
    python models.py reference DIR ROW FILE   rewards by transformers in f32, eager attention, one sample at a time
    python models.py openvino DIR OUT         OUT/plain.xml takes ids of even length, OUT/masked.xml ids and a mask
    python models.py onnx DIR OUT             the same, plain.onnx and masked.onnx, with ONNX Runtime's own fusions where they apply
    python models.py members DIR COUNT        COUNT random Llama-shaped members of 579 MB for the merge
"""
import json
import math
import pathlib
import sys

import rows
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def write_tokenizer(path, words):
    """That nobody asks: samples are token ids."""
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{index}": index for index in range(words)}, "unk_token": "w0"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def checkpoint(shape, path):
    family, sizes = rows.SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes, num_labels=1, pad_token_id=0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    head = getattr(model, "score", None) or model.classifier
    # Rewards that differ by about 1 between samples: initialised as usual they would all agree whatever is wrong.
    torch.nn.init.normal_(head.weight, std=2 / math.sqrt(head.in_features))
    model.bfloat16().save_pretrained(path)
    write_tokenizer(path, 1)


def load(path, is_eager=False):
    # DeBERTa has an attention of its own, and takes no other.
    attention = None if "deberta" in path.name else "eager" if is_eager else "sdpa"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, attn_implementation=attention).eval()
    model.config.use_cache = False
    return model


@torch.inference_mode()
def reference(path, name, output):
    model = load(path, is_eager=True)
    [row] = [row for row in rows.ROWS + rows.MORE if row.name == name]
    rewards = [model(input_ids=torch.tensor([ids])).logits.item() for ids in row.samples()]
    output.write_text(json.dumps(rewards))


class Plain(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).logits


class Masked(Plain):
    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def forms(model):
    """(name, module, inputs to try it on, what of them is free)."""
    longest = min(4096, model.config.max_position_embeddings)
    free = {0: torch.export.Dim("samples", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=longest)}
    ids = torch.randint(1000, 5000, (3, 24))
    yield "plain", Plain(model).eval(), {"input_ids": ids}, {"input_ids": free}
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    yield "masked", Masked(model).eval(), both, {name: free for name in both}


@torch.no_grad()
def openvino(path, output):
    import openvino

    output.mkdir(exist_ok=True)
    for name, module, inputs, free in forms(load(path)):
        program = torch.export.export(module, (), inputs, dynamic_shapes=free)
        openvino.save_model(openvino.convert_model(program), output / f"{name}.xml", compress_to_fp16=False)


@torch.no_grad()
def onnx(path, output):
    from onnxruntime.transformers import optimizer

    output.mkdir(exist_ok=True)
    model = load(path)
    for name, module, inputs, free in forms(model):
        file = output / f"{name}.onnx"
        torch.onnx.export(module, (), file, kwargs=inputs, input_names=list(inputs), dynamo=True, dynamic_shapes=free, opset_version=20, external_data=True)
        if model.config.model_type == "bert":
            fused = optimizer.optimize_model(str(file), "bert", num_heads=model.config.num_attention_heads, hidden_size=model.config.hidden_size)
            print(name, fused.get_fused_operator_statistics(), file=sys.stderr)
            fused.save_model_to_file(str(output / f"{name}-fused.onnx"), use_external_data_format=True)


HIDDEN, INTERMEDIATE, LAYERS, VOCAB, HEADS = 1024, 2816, 20, 32_000, 16


def members(folder, count):
    from safetensors.torch import save_file

    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "score.weight": (1, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name, shape in (("gate", (INTERMEDIATE, HIDDEN)), ("up", (INTERMEDIATE, HIDDEN)), ("down", (HIDDEN, INTERMEDIATE))):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    config = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "pad_token_id": 0, "id2label": {"0": "LABEL_0"}, "dtype": "bfloat16"}
    for index in range(count):
        start, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(index + 1)
        weights = {}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=start) * 0.02
            weights[name] = (weight + 0.001 * torch.randn(shape, generator=noise)).bfloat16()
        path = folder / f"member-{index}"
        path.mkdir(parents=True, exist_ok=True)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
        write_tokenizer(path, VOCAB)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "checkpoint":
        checkpoint(words[0], pathlib.Path(words[1]))
    elif what == "reference":
        reference(pathlib.Path(words[0]), words[1], pathlib.Path(words[2]))
    elif what == "members":
        members(pathlib.Path(words[0]), int(words[1]))
    else:
        {"openvino": openvino, "onnx": onnx}[what](*map(pathlib.Path, words))
