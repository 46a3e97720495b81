"""Writes tests/data/pickles: what torch saves, beside the same tensors as safetensors; and files that are refused.

    python tests/reference/pickles.py        (torch 2.15.0)
"""

import argparse
import collections
import io
import json
import pathlib
import zipfile

import torch
from safetensors.torch import load_file, save_file

DATA = pathlib.Path(__file__).parent.parent / "data"
OUT = DATA / "pickles"


def values(*shape, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    return (torch.arange(count, dtype=torch.float64) * 0.37 - 1.1).reshape(shape).to(dtype)


def dtypes():
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    return collections.OrderedDict((name, values(3, 2, dtype=getattr(torch, name))) for name in names)


def views():
    whole = values(4, 6)
    cube = values(2, 3, 4, dtype=torch.bfloat16)
    return {
        "whole": whole,
        "shared": whole,
        "transposed": whole.T,
        "rows": whole[1:3],
        "columns": whole[:, 2:5],
        "steps": whole[::2, ::3],
        "one_column": whole[:, 1:2],
        "one_row_transposed": whole[1:2].T,
        "expanded": values(1, 3).expand(4, 3),
        "permuted": cube.permute(2, 0, 1),
        "inner": cube[1, :, 1:3],
        "square_transposed": values(3, 3).T,
        "vector": whole[1, 2:],
        "scalar": whole[2, 3],
        "empty": values(0, 4),
    }


def parameters():
    """A module's own state dict, with its metadata; parameters as such, one with an attribute of its own."""
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()
    for name in state:
        state[name].copy_(values(*state[name].shape))
    state["parameter"] = torch.nn.Parameter(values(2, 2))
    state["marked"] = torch.nn.Parameter(values(2, 2))
    state["marked"].is_special = True
    state["buffer"] = torch.nn.Buffer(values(2))
    return state


def zipped_again(tensors):
    """The same with compressed entries."""
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(tensors, first)
    with zipfile.ZipFile(first) as old, zipfile.ZipFile(second, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return second.getvalue()


def main():
    OUT.mkdir(exist_ok=True)
    for make in [dtypes, views, parameters]:
        torch.save(make(), OUT / f"{make.__name__}.bin")
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in make().items()}
        save_file(tensors, OUT / f"{make.__name__}.safetensors")
    # a model, whole and in two parts; an adapter and its head
    model = load_file(DATA / "models/llama-bf16/model.safetensors")
    torch.save(model, OUT / "model.bin")
    names, half = sorted(model), len(model) // 2
    index = {"metadata": {}, "weight_map": {}}
    for number, part in enumerate([names[:half], names[half:]], 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: model[name] for name in part}, OUT / file)
        index["weight_map"] |= {name: file for name in part}
    (OUT / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name in ["adapter_model", "value_head"]:
        torch.save(load_file(DATA / f"adapters/value-head/{name}.safetensors"), OUT / f"{name}.bin")

    plain = {"a": values(2, 2)}
    refused = {
        "training": {"model": plain, "optimizer": {"state": {}}, "epoch": 3},
        "numbers": plain | {"step": 7},
        "arguments": plain | {"args": argparse.Namespace(lr=1e-5)},
        "complex": {"a": torch.view_as_complex(values(2, 2))},
        "negative": {"a": torch.view_as_complex(values(2, 2)).conj().imag},
        "float8": {"a": values(2, 2).to(torch.float8_e4m3fn)},
        "sparse": {"a": values(2, 2).to_sparse()},
        "quantized": {"a": torch.quantize_per_tensor(values(2, 2), 0.1, 0, torch.qint8)},
        "list": [values(2, 2)],
        "tensor": values(2, 2),
    }
    for name, content in refused.items():
        torch.save(content, OUT / f"refused-{name}.bin")
    torch.save(plain, OUT / "refused-legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(plain, OUT / "refused-protocol.bin", pickle_protocol=4)
    (OUT / "refused-compressed.bin").write_bytes(zipped_again(plain))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), OUT / "refused-script.bin")


if __name__ == "__main__":
    main()
