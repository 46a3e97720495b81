#!/usr/bin/env python3
"""Makes tests/data/quantized: tiny checkpoints as libraries quantize them, each with the weights that the library makes of it.

    pip install -r tests/reference/requirements.txt -r tests/reference/requirements-quantized.txt
    python tests/reference/quantized.py [NAME ...]

Each directory is a checkpoint, `expected.safetensors` with what its quantized tensors are when the library dequantizes them (in
the type in which it does), and `golden.json` with rewards of transformers' f32 forward of those weights. `wrong` weights are what
a good guess makes of the same file: the script insists that they differ, so that the test can fail for the guess.
"""
import argparse
import json
import pathlib
import shutil
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

from make_tiny import randomise, token_samples, write_json

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "quantized"
# 40 is not a multiple of the blocks below, nor of what a word of most widths holds
TINY = dict(vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, pad_token_id=0, num_labels=1)
ATTENTION = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkvo"]
MLP = [f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up", "down")]


def plain_model(seed, dtype=torch.float32):
    return randomise(AutoModelForSequenceClassification.from_config(LlamaConfig(**TINY), dtype=torch.float32), seed).to(dtype)


def same(one, other):
    """Bit for bit; NaN is NaN."""
    as_bits = {4: torch.int32, 2: torch.int16}
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(
        one.contiguous().view(as_bits[one.element_size()]), other.contiguous().view(as_bits[one.element_size()]))


def finish(path, tensors, config, settings, expected, note, wrong=(), metadata=None):
    """`tensors` are what is stored of the quantized modules, `expected` what they mean; the rest is `config`'s model's."""
    model, config = config
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in expected}
    save_file({**plain, **{name: tensor.contiguous() for name, tensor in tensors.items()}}, path / "model.safetensors",
              metadata={"format": "pt"} | (metadata or {}))
    document = config.to_dict() | {"architectures": [type(model).__name__], "quantization_config": settings}
    document.pop("transformers_version", None)
    if settings is None:
        document.pop("quantization_config")
    write_json(path / "config.json", document)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, path / "expected.safetensors")
    for file in path.glob("*.safetensors"):
        file.chmod(0o644)
    for guess, weights in wrong:
        assert any(not same(weights[name], expected[name]) for name in weights), f"{path.name}: {guess} is not told apart"
    model = type(model)(config)
    model.load_state_dict({name: tensor.float() for name, tensor in (plain | expected).items()})
    model = model.float().eval()
    model.set_attn_implementation("eager")
    samples = []
    with torch.no_grad():
        for ids in token_samples(config.vocab_size, 5, (1, 4, 17)):
            samples.append({"token_ids": ids, "reward": model(torch.tensor([ids])).logits[0, 0].item()})
    write_json(path / "golden.json", {"note": note, "samples": samples})


def loaded(path, names, dtype, **options):
    """What transformers makes of the directory, in this type."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, **options)
    return {name: model.get_parameter(name).data for name in names}


# -- fp8 ---------------------------------------------------------------------------------------------------------------


def to_fp8(weight, block, scale_dtype=torch.float32):
    """Padded to whole blocks, as publishers do."""
    rows, columns = weight.shape
    high, wide = block or weight.shape
    down, across = -(-rows // high), -(-columns // wide)
    padded = torch.zeros(down * high, across * wide)
    padded[:rows, :columns] = weight
    blocks = padded.view(down, high, across, wide)
    scale = (blocks.abs().amax(dim=(1, 3)) / 448.0).to(scale_dtype)
    if scale_dtype == torch.uint8:
        scale = (127 + torch.ceil(torch.log2(blocks.abs().amax(dim=(1, 3)).clamp(min=1e-30) / 448.0))).clamp(0, 254).to(torch.uint8)
    power = torch.exp2(scale.float() - 127.0) if scale_dtype == torch.uint8 else scale.float()
    codes = (blocks / power.clamp(min=1e-30)[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.view(down * high, across * wide), scale


def dequantized_fp8(codes, scale, shape):
    """transformers' own, of whole blocks, and then cut."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    return Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)[:shape[0], :shape[1]].contiguous()


def fp8_of(model, settings, make):
    tensors, expected, guess = {}, {}, {}
    for number, name in enumerate(ATTENTION + MLP + ["score"]):
        weight = model.get_parameter(f"{name}.weight").data.float()
        block, dtype, suffix = make(number, name)
        codes, scale = to_fp8(weight, block, dtype)
        if number == 1 and dtype != torch.uint8:
            scale[0, 0] = 0  # a block of zeros, whatever the codes
        rows, columns = weight.shape
        tensors[f"{name}.weight"] = codes[:rows, :columns]
        if block is None:
            scale = scale.reshape([])
        tensors[f"{name}.{suffix}"] = scale
        expected[f"{name}.weight"] = dequantized_fp8(codes, scale, weight.shape)
        if block and (rows % scale.shape[0] == 0 and columns % scale.shape[1] == 0):
            guess[f"{name}.weight"] = dequantized_fp8(codes[:rows, :columns], scale, weight.shape)
    return tensors, expected, guess


def fp8_blocks(path):
    config = LlamaConfig(**TINY)
    model = plain_model(1, torch.bfloat16)
    # [40, 32] in blocks of [16, 16] has three rows of scales and cannot be divided; [40, 32] in [12, 16] has four, of 12 and not of 10
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [12, 16]}
    suffixes = ["weight_scale_inv"] * 5 + ["scale", "qscale_weight", "weight_scale_inv"]
    tensors, expected, guess = fp8_of(model, settings, lambda number, name: (
        None if number == 3 else (12, 16), torch.bfloat16 if number == 2 else torch.float32, suffixes[number]))
    tensors["model.layers.0.self_attn.q_proj.activation_scale"] = torch.tensor(0.5)
    tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
    finish(path, tensors, (model, config), settings, expected, "blocks of 12 by 16, the last ones smaller; a scale of zero; scales in bf16, by "
           "other names, and one for a whole tensor", wrong=[("blocks as large as rows over rows of scales", guess)])
    # whole blocks go through the library's own load, in both types
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder)
        settings = settings | {"weight_block_size": [8, 8]}
        # the head is none that the library dequantizes in this version: it is plain here
        tensors, expected, _ = fp8_of(model, settings, lambda number, name: ((1, 8) if name == "score" else (8, 8), torch.float32, "weight_scale_inv"))
        for name in [name for name in tensors if name.startswith("score")]:
            tensors.pop(name), expected.pop(name, None)
        finish(whole, tensors, (model, config), settings, expected, "")
        for dtype in (torch.bfloat16,):
            got = loaded(whole, expected, dtype)
            assert all(same(got[name], expected[name].to(dtype)) for name in expected), dtype


def fp8_powers(path):
    config = LlamaConfig(**TINY)
    model = plain_model(2, torch.bfloat16)
    settings = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    tensors, expected, _ = fp8_of(model, settings, lambda number, name: ((1, 32), torch.uint8, "weight_scale_inv"))
    as_integers = {}
    for name in expected:
        scale = tensors[f"{name}_scale_inv"]
        as_integers[name] = tensors[name].float() * scale.float().repeat_interleave(32, 1)[:, :expected[name].shape[1]]
    for name in ATTENTION[:2]:  # the same bytes under their own type
        tensors[f"{name}.weight_scale_inv"] = tensors[f"{name}.weight_scale_inv"].view(torch.float8_e8m0fnu)
    # and two FP4 codes a byte
    name = MLP[0] + ".weight"
    generator = torch.Generator().manual_seed(3)
    tensors[name] = torch.randint(-128, 128, (40, 16), generator=generator, dtype=torch.int8)
    tensors[f"{name}_scale_inv"] = torch.randint(118, 127, (40, 1), generator=generator, dtype=torch.uint8)
    expected[name] = dequantized_fp8(tensors[name], tensors[f"{name}_scale_inv"], (40, 32))
    swapped = tensors[name].view(torch.uint8)
    swapped = ((swapped << 4) | (swapped >> 4)).view(torch.int8)
    finish(path, tensors, (model, config), settings, expected, "scales are powers of two, as bytes and as F8_E8M0; one weight in packed FP4",
           wrong=[("the bytes themselves", as_integers), ("the high nibble first", {name: dequantized_fp8(swapped, tensors[f"{name}_scale_inv"], (40, 32))})])


# -- compressed-tensors ------------------------------------------------------------------------------------------------


def compressed(path, seed, groups, scale_dtype, note, ignore=(), wrong=None, config=TINY, of_scales=None):
    """`groups`: name → (targets, modules, format, QuantizationArgs as a dictionary)."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
    config = LlamaConfig(**config)
    model = plain_model(seed, torch.bfloat16)
    tensors, expected, documents = {}, {}, {}
    for key, (targets, modules, form, args) in groups.items():
        args = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=targets, weights=args, format=form)
        documents[key] = scheme.model_dump(mode="json")
        compressor = BaseCompressor.get_value_from_registry(form)
        for name in modules:
            weight = model.get_parameter(f"{name}.weight").data
            state = parameters_of(weight, args, (of_scales or {}).get(name, scale_dtype), calculate_qparams, generate_gparam)
            state = compressor.compress(state, scheme)
            state = {part: tensor.clone() for part, tensor in state.items() if tensor is not None}
            tensors |= {f"{name}.{part}": tensor for part, tensor in state.items()}
            expected[f"{name}.weight"] = compressor.decompress(state, scheme)["weight"].contiguous()
    forms = {form for _, _, form, _ in groups.values()}
    settings = {"quant_method": "compressed-tensors", "config_groups": documents, "ignore": list(ignore), "quantization_status": "compressed",
                "format": forms.pop() if len(forms) == 1 else "mixed-precision", "kv_cache_scheme": None, "global_compression_ratio": None}
    finish(path, tensors, (model, config), settings, expected, note, wrong=wrong(tensors, expected) if wrong else ())
    return model


def parameters_of(weight, args, scale_dtype, calculate_qparams, generate_gparam):
    """Scales by the library's own rule of least and largest."""
    rows, columns = weight.shape
    strategy, weight = str(getattr(args.strategy, "value", args.strategy)), weight.float()
    global_scale = None
    if strategy == "tensor":
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    elif strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    elif strategy == "block":
        tall, wide = args.block_structure
        padded = torch.zeros(-(-rows // tall) * tall, -(-columns // wide) * wide)
        padded[:rows, :columns] = weight
        blocks = padded.view(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        groups = weight.view(rows, columns // args.group_size, args.group_size)
        low, high = groups.amin(2), groups.amax(2)
        if strategy == "tensor_group":
            global_scale = generate_gparam(weight.amin().reshape(1), weight.amax().reshape(1))
    scale, zero = calculate_qparams(low, high, args, global_scale=global_scale)
    state = {"weight": weight.to(torch.bfloat16), "weight_scale": scale if global_scale is not None else scale.to(scale_dtype)}
    if args.symmetric is False:
        state["weight_zero_point"] = zero
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
    return state


FLOAT8 = dict(num_bits=8, type="float", symmetric=True)


def ct_bytes(path):
    """FP8 and int8: a tensor, rows, blocks; with zeros."""
    groups = {
        "group_0": (["re:.*(q|k)_proj$"], ATTENTION[:2], "float-quantized", FLOAT8 | dict(strategy="tensor")),
        "group_1": ([ATTENTION[2], ATTENTION[3]], ATTENTION[2:], "float-quantized", FLOAT8 | dict(strategy="channel")),
        "group_2": (["re:model.layers.0.mlp.(gate|up)"], MLP[:2], "naive-quantized", FLOAT8 | dict(strategy="block", block_structure=[12, 16])),
        "group_3": (["Linear"], MLP[2:] + ["score"], "int-quantized", dict(num_bits=8, type="int", symmetric=False, strategy="channel")),
    }

    def wrong(tensors, expected):
        name = MLP[2] + ".weight"
        no_zero = tensors[name].to(torch.bfloat16) * tensors[f"{name}_scale"]
        name_f32 = ATTENTION[2] + ".weight"
        exact = {name_f32: tensors[name_f32].float() * tensors[f"{name_f32}_scale"].float()}
        return [("no zero", {name: no_zero}), ("f32, where scales are bf16", exact)]
    compressed(path, 11, groups, torch.bfloat16, "FP8 with one scale, one per row, and in blocks of which the last are smaller; int8 with zeros, the head "
               "too; scales in bf16, and in f32 for one", wrong=wrong, of_scales={MLP[0]: torch.float32})


def ct_packed(path):
    integer = dict(type="int", strategy="group")
    groups = {
        "group_0": (["re:.*self_attn.(q|k)_proj"], ATTENTION[:2], "pack-quantized", integer | dict(num_bits=4, symmetric=True, group_size=16)),
        "group_1": (["re:.*self_attn.v_proj"], ATTENTION[2:3], "pack-quantized", integer | dict(num_bits=4, symmetric=False, group_size=8)),
        "group_2": ([ATTENTION[3]], ATTENTION[3:], "pack-quantized", integer | dict(num_bits=3, symmetric=False, group_size=8)),
        "group_3": ([MLP[0]], MLP[:1], "pack-quantized", integer | dict(num_bits=5, symmetric=False, group_size=16)),
        "group_4": ([MLP[1]], MLP[1:2], "pack-quantized", dict(type="int", num_bits=8, symmetric=False, strategy="channel")),
        "group_5": (["Linear"], MLP[2:] + ["score"], "pack-quantized", dict(type="int", num_bits=6, symmetric=True, strategy="channel")),
    }

    def wrong(tensors, expected):
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
        name = ATTENTION[2] + ".weight"
        scale, packed, shape = (tensors[f"{name}_{part}"] for part in ("scale", "packed", "shape"))
        codes = unpack_from_int32(packed, 4, shape).to(scale.dtype)
        symmetric = codes * scale.repeat_interleave(8, 1)
        along = tensors[f"{name}_zero_point"].contiguous().view(torch.uint8)
        nibbles = torch.stack([along & 15, along >> 4], -1).view(-1)[:scale.numel()].view(scale.shape).to(torch.int16) - 8
        along = (codes - nibbles.to(scale.dtype).repeat_interleave(8, 1)) * scale.repeat_interleave(8, 1)
        return [("no zeros", {name: symmetric}), ("zeros packed along rows", {name: along})]
    compressed(path, 12, groups, torch.bfloat16, "streams of 3, 4, 5, 6 and 8 bits, with and without zeros, whose settings are found by name, pattern and "
               "class; rows of 40 codes end within a word", wrong=wrong)


def ct_fours(path):
    four = dict(num_bits=4, type="float", symmetric=True)
    groups = {
        "group_0": (["re:.*self_attn.*"], ATTENTION, "nvfp4-pack-quantized", four | dict(strategy="tensor_group", group_size=16)),
        "group_1": (["Linear"], MLP[:2], "mxfp4-pack-quantized", four | dict(strategy="group", group_size=32)),
    }

    def wrong(tensors, expected):
        name = ATTENTION[0] + ".weight"
        scale, global_scale = tensors[f"{name}_scale"].float(), tensors[f"{name}_global_scale"]
        return [("the global scale multiplies", {name: (expected[name].float() * global_scale * global_scale).to(torch.bfloat16)})]
    compressed(path, 13, groups, torch.bfloat16, "NVFP4, whose global scale divides, and MXFP4", wrong=wrong, ignore=["score", "re:.*down_proj"])


# -- bitsandbytes ------------------------------------------------------------------------------------------------------


def by_bitsandbytes(path, seed, dtype, note, wrong=None, **options):
    """Quantized, saved and dequantized by the library, through transformers."""
    import bitsandbytes.functional
    from transformers import BitsAndBytesConfig
    config = LlamaConfig(**TINY | dict(hidden_size=64, intermediate_size=80))
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), seed).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save_pretrained(folder / "plain")
        quantized = AutoModelForSequenceClassification.from_pretrained(folder / "plain", dtype=dtype, quantization_config=BitsAndBytesConfig(**options))
        quantized.save_pretrained(folder / "quantized")
        tensors = load_file(folder / "quantized/model.safetensors")
        settings = json.loads((folder / "quantized/config.json").read_text())["quantization_config"]
        again = AutoModelForSequenceClassification.from_pretrained(folder / "quantized", dtype=dtype).dequantize()
    names = {name.split(".weight.quant_state")[0] for name in tensors if ".weight.quant_state" in name}
    names |= {name.removesuffix(".SCB") for name in tensors if name.endswith(".SCB")}
    expected = {f"{name}.weight": again.get_submodule(name).weight.data.clone() for name in sorted(names)}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(tuple(f"{module}." for module in names))}
    for name in expected:
        shape = expected[name].shape
        if f"{name}.absmax" in tensors and shape[1] % 64 and shape.numel() > 64:
            # bitsandbytes 0.50.2 on a CPU with AVX-512 takes the scales of other blocks where a block ends within a row: its quantizer
            # and its other devices count along all rows, so it is asked for rows of one block each
            parts = {part.removeprefix(f"{name}."): tensor for part, tensor in tensors.items() if part.startswith(f"{name}.")}
            state = bitsandbytes.functional.QuantState.from_dict(parts, device="cpu")
            state.shape = torch.Size([shape.numel() // 64, 64])
            whole = bitsandbytes.functional.dequantize_4bit(tensors[name].view(torch.uint8).view(-1, 1), state).view(shape)
            assert not same(whole, expected[name]), "the library counts along all rows now"
            expected[name] = whole
    finish(path, tensors, (model, config), settings, expected, note, wrong=wrong(tensors, expected) if wrong else ())


def nf4_of(tensors, name, high_first=True, table=None):
    state = json.loads(bytes(tensors[next(key for key in tensors if key.startswith(f"{name}.quant_state"))].tolist()))
    codes = tensors[name].flatten().view(torch.uint8)
    halves = [codes >> 4, codes & 15] if high_first else [codes & 15, codes >> 4]
    codes = torch.stack(halves, -1).flatten().long()
    table = tensors[f"{name}.quant_map"] if table is None else table
    absmax = tensors[f"{name}.absmax"]
    if absmax.dtype == torch.uint8:
        absmax = tensors[f"{name}.nested_quant_map"][absmax.long()] * tensors[f"{name}.nested_absmax"][torch.arange(len(absmax)) // 256] + state["nested_offset"]
    scale = absmax.repeat_interleave(state["blocksize"])[:len(codes)]
    return (table[codes] * scale).view(state["shape"]).to(getattr(torch, state["dtype"]))


def bnb_nf4(path):
    def wrong(tensors, expected):
        name = MLP[2] + ".weight"
        assert same(nf4_of(tensors, name), expected[name]), "the formula itself"
        return [("the low nibble first", {name: nf4_of(tensors, name, high_first=False)})]
    by_bitsandbytes(path, 21, torch.bfloat16, "NF4, whose scales are quantized in turn", wrong=wrong, load_in_4bit=True, bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)


def bnb_fp4(path):
    def wrong(tensors, expected):
        name = ATTENTION[0] + ".weight"
        e2m1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6]) / 6
        return [("e2m1", {name: nf4_of(tensors, name, table=torch.cat([e2m1, -e2m1]))})]
    by_bitsandbytes(path, 22, torch.float32, "FP4 in the library's own order of codes, stored as bf16 pairs of bytes; the head too, which is less than one block",
                    wrong=wrong, load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.bfloat16, llm_int8_skip_modules=["q_proj_none"])


def bnb_int8(path):
    def wrong(tensors, expected):
        name = ATTENTION[0]
        return [("SCB/127 first", {f"{name}.weight": tensors[f"{name}.weight"].float() * (tensors[f"{name}.SCB"] / 127)[:, None]})]
    by_bitsandbytes(path, 23, torch.float32, "LLM.int8()", wrong=wrong, load_in_8bit=True)


# -- gptq and awq ------------------------------------------------------------------------------------------------------

# their kernels take widths that are multiples of 32
THIRTY_TWOS = TINY | dict(num_key_value_heads=4, intermediate_size=64)


def stream(codes, bits):
    """Codes `[rows, columns]` as a stream of bits down each column, in int32 words."""
    rows, columns = codes.shape
    planes = (codes[:, None, :] >> torch.arange(bits)[None, :, None]) & 1
    planes = planes.reshape(rows * bits, columns)
    words = (planes.view(-1, 32, columns) << torch.arange(32)[None, :, None]).sum(1)
    return words.to(torch.int32)


def random_codes(shape, bits, seed):
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed))


def gptq_module(bits, group_size, zeros_of, act_order, seed, rows, columns):
    groups = rows // group_size
    codes, zeros = random_codes((rows, columns), bits, seed), zeros_of(random_codes((groups, columns), bits, seed + 1), bits)
    order = torch.arange(rows) // group_size
    if act_order:
        order = order[torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 2))]
    scales = (0.02 + 0.05 * torch.rand(groups, columns, generator=torch.Generator().manual_seed(seed + 3))).half()
    return {"qweight": stream(codes, bits), "qzeros": zeros, "scales": scales, "g_idx": order.to(torch.int32)}, codes


def zeros_v2(zeros, bits):
    return stream(zeros.T.contiguous(), bits).T.contiguous()


def zeros_v1(zeros, bits):
    """As GPTQModel writes them: one less in each whole word, borrowing; of 3 bits one less in each code."""
    if bits == 3:
        return zeros_v2((zeros - 1) & 7, bits)
    ones = 0xFFFFFFFF // ((1 << bits) - 1)
    words = zeros_v2(zeros, bits).long() - ones
    return (((words + (1 << 31)) % (1 << 32)) - (1 << 31)).to(torch.int32)


def dequantized_gptq(state, bits, group_size, version):
    """By GPTQModel's own module, transposed to how a linear layer has it."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
    rows, columns = len(state["g_idx"]), state["scales"].shape[1]
    module = TorchLinear(bits=bits, group_size=group_size, sym=False, desc_act=True, in_features=rows, out_features=columns, bias=False,
                         pack_dtype=torch.int32, register_buffers=True)
    for name, tensor in state.items():
        getattr(module, name).data = tensor.clone()
    if version == 1:
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    module.post_init()
    return module.dequantize_weight().T.contiguous()


def gptq(path, version, seed, of_modules, note, group_size=16):
    config = LlamaConfig(**THIRTY_TWOS)
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), seed).half()
    tensors, expected, each_nibble, by_position = {}, {}, {}, {}
    for number, (name, (bits, act_order, has_order)) in enumerate(of_modules.items()):
        columns, rows = model.get_parameter(f"{name}.weight").shape
        zeros_of = zeros_v1 if version == 1 else zeros_v2
        state, _ = gptq_module(bits, group_size, zeros_of, act_order, seed + 10 * number, rows, columns)
        expected[f"{name}.weight"] = dequantized_gptq(state, bits, group_size, version)
        assert expected[f"{name}.weight"].dtype == torch.float16
        if version == 1 and bits == 4:
            words = state["qzeros"].long() & 0xFFFFFFFF
            nibbles = ((words[:, :, None] >> (4 * torch.arange(8))) & 15) + 1  # 16 stays 16
            again = stream((nibbles & 15).reshape(len(words), -1).T.contiguous(), 4).T.contiguous()
            each_nibble[f"{name}.weight"] = dequantized_gptq(state | {"qzeros": again}, bits, group_size, 2)
        if act_order:
            by_position[f"{name}.weight"] = dequantized_gptq(state | {"g_idx": torch.sort(state["g_idx"]).values}, bits, group_size, version)
        if not has_order:
            state.pop("g_idx")
        tensors |= {f"{name}.{part}": tensor for part, tensor in state.items()}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": True, "sym": False, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
                "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
    wrong = [("rows in their order", by_position)] + ([("one more in each nibble", each_nibble)] if each_nibble else [])
    finish(path, tensors, (model, config), settings, expected, note, wrong=wrong)


def gptq_v1(path):
    gptq(path, 1, 41, {ATTENTION[0]: (4, True, True), ATTENTION[1]: (2, True, True), ATTENTION[2]: (3, True, True), ATTENTION[3]: (8, False, True),
                       MLP[0]: (4, False, False), MLP[2]: (4, True, True)},
         "2, 3, 4 and 8 bits, rows in any order, zeros of 15 that borrow; one without g_idx")


def gptq_v2(path):
    gptq(path, 2, 42, {ATTENTION[0]: (4, True, True), ATTENTION[1]: (3, True, True)}, "zeros as they are")
    # through transformers, which takes one width for all
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder)
        gptq(whole, 2, 43, {name: (4, True, True) for name in ATTENTION + MLP}, "")
        from transformers import GPTQConfig
        model = AutoModelForSequenceClassification.from_pretrained(whole, dtype=torch.float32, quantization_config=GPTQConfig(bits=4, backend="torch"))
        expected = load_file(whole / "expected.safetensors")
        for name, weight in expected.items():
            got = model.get_submodule(name.removesuffix(".weight")).dequantize_weight().T
            assert torch.equal(got.half(), weight), name


def awq(path):
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    config = LlamaConfig(**THIRTY_TWOS)
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), 44).half()
    tensors, expected, in_order, as_gptq = {}, {}, {}, {}
    for number, name in enumerate(ATTENTION + MLP):
        columns, rows = model.get_parameter(f"{name}.weight").shape
        words = [torch.randint(-2**31, 2**31, shape, generator=torch.Generator().manual_seed(50 + number), dtype=torch.int32)
                 for shape in ((rows, columns // 8), (rows // 16, columns // 8))]
        scales = (0.02 + 0.05 * torch.rand(rows // 16, columns, generator=torch.Generator().manual_seed(70 + number))).half()
        state = {"qweight": words[0], "qzeros": words[1], "scales": scales}
        tensors |= {f"{name}.{part}": tensor for part, tensor in state.items()}
        nibbles = [((word.long() & 0xFFFFFFFF)[:, :, None] >> (4 * torch.arange(8))) & 15 for word in words]
        guess = [codes.reshape(len(codes), -1) for codes in nibbles]
        in_order[f"{name}.weight"] = ((guess[0] - guess[1].repeat_interleave(16, 0)) * scales.repeat_interleave(16, 0)).half().T
    settings = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 16, "zero_point": True}
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AwqConfig
        whole = pathlib.Path(folder)
        finish(whole, tensors, (model, config), settings, {f"{name}.weight": model.get_parameter(f"{name}.weight").data for name in ATTENTION + MLP}, "")
        got = AutoModelForSequenceClassification.from_pretrained(whole, dtype=torch.float32, quantization_config=AwqConfig(bits=4, group_size=16, backend="torch_awq"))
        for name in ATTENTION + MLP:
            module = got.get_submodule(name)
            assert isinstance(module, AwqTorchLinear), type(module)
            identity = torch.eye(module.in_features)
            with torch.no_grad():
                weight = module(identity).T.contiguous()
            expected[f"{name}.weight"] = weight.half()
            assert torch.equal(weight, weight.half().float())
    finish(path, tensors, (model, config), settings, expected, "4 bits, all codes and zeros", wrong=[("nibbles in the order of columns", in_order)])


# -- mxfp4, torchao, modelopt ------------------------------------------------------------------------------------------


def mxfp4(path):
    from transformers import GptOssConfig
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    options = {key: value for key, value in TINY.items() if key not in ("intermediate_size", "hidden_size")}
    config = GptOssConfig(**options, hidden_size=64, intermediate_size=32, head_dim=16, num_local_experts=3, num_experts_per_tok=2, sliding_window=6)
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), 81).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(82)
    tensors, expected, as_stored, swapped = {}, {}, {}, {}
    for name in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{name}"
        experts, columns, rows = model.get_parameter(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 126, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        scales[0, 0, 0], scales[1, 0, 0] = 0, 1  # numbers below the smallest normal one
        blocks[2, 3, 0] &= 0x11
        scales[2, 3, 0] = 0  # halves of the smallest power
        blocks[0, 2, 0] = 0x80
        scales[0, 2, 0] = 255  # 2^128 is no number, and nothing of it is nothing
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = convert_moe_packed_tensors(blocks, scales)
        swapped[name] = convert_moe_packed_tensors((blocks << 4) | (blocks >> 4), scales)
        if rows == columns:
            as_stored[name] = expected[name].transpose(1, 2)
        product = (convert_moe_packed_tensors(blocks, torch.full_like(scales, 127)).float() *
                   torch.exp2(scales.float() - 127).repeat_interleave(32, 2).transpose(1, 2)).to(torch.bfloat16)
        assert not same(product, expected[name]), "a product with 2^128 is not told apart"
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "score"]}
    finish(path, tensors, (model, config), settings, expected, "GPT-OSS's experts; the smallest powers of two, and the largest times nothing",
           wrong=[("the high nibble first", swapped)])
    got = loaded(path, expected, torch.bfloat16)
    assert all(same(got[name], expected[name]) for name in expected)


def torchao(path):
    """One file of several kinds: that of each is in the header's metadata."""
    import torchao.quantization as quantization
    from safetensors import safe_open
    from transformers import TorchAoConfig
    config = LlamaConfig(**TINY | dict(intermediate_size=48))
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), 61).to(torch.bfloat16)
    group = quantization.granularity.PerGroup(16)
    asymmetric = quantization.MappingType.ASYMMETRIC
    kinds = [(ATTENTION[:2], quantization.Int8WeightOnlyConfig(version=2)), (ATTENTION[2:], quantization.Float8WeightOnlyConfig()),
             (MLP[:1], quantization.Int8DynamicActivationInt8WeightConfig(version=2)),
             (MLP[1:], quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group, mapping_type=asymmetric))]
    tensors, expected, metadata, exact, no_zero, settings = {}, {}, {}, {}, {}, None
    for modules, kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model.save_pretrained(folder / "plain")
            made = AutoModelForSequenceClassification.from_pretrained(folder / "plain", dtype=torch.bfloat16, quantization_config=TorchAoConfig(kind))
            made.save_pretrained(folder / "quantized")
            again = AutoModelForSequenceClassification.from_pretrained(folder / "quantized", dtype=torch.bfloat16)
            settings = settings or json.loads((folder / "quantized/config.json").read_text())["quantization_config"]
            with safe_open(folder / "quantized/model.safetensors", "pt") as file:
                for name in modules:
                    metadata[f"{name}.weight"] = file.metadata()[f"{name}.weight"]
                    parts = [part for part in file.keys() if part.startswith(f"{name}.")]
                    tensors |= {part: file.get_tensor(part) for part in parts}
                    expected[f"{name}.weight"] = again.get_submodule(name).weight.dequantize().contiguous()
                    assert expected[f"{name}.weight"].dtype == torch.bfloat16
                    scale = tensors[f"{name}._weight_scale"].float()
                    scale = scale.repeat_interleave(expected[f"{name}.weight"].shape[1] // scale.shape[1], 1)
                    if name in MLP[1:]:
                        no_zero[f"{name}.weight"] = (tensors[f"{name}._weight_qdata"].float() * scale).to(torch.bfloat16)
    finish(path, tensors, (model, config), settings, expected, "int8, FP8 and 4 bits with zeros in groups", wrong=[("no zeros", no_zero)], metadata=metadata)


def modelopt_fp8(path):
    """No library dequantizes it on a CPU: NVIDIA's files say f8 · scale."""
    config = LlamaConfig(**TINY)
    model = plain_model(91, torch.bfloat16)
    tensors, expected, dropped = {}, {}, {}
    for name in ATTENTION + MLP + ["score"]:
        codes, scale = to_fp8(model.get_parameter(f"{name}.weight").data.float(), None)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": scale.reshape([]), f"{name}.input_scale": torch.tensor(0.5)}
        expected[f"{name}.weight"] = codes.float() * scale
        dropped[f"{name}.weight"] = codes.float()
    tensors[f"{ATTENTION[1]}.k_scale"] = torch.tensor(0.25)
    settings = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}, "producer": {"name": "modelopt", "version": "0.47.0"}}
    finish(path, tensors, (model, config), settings, expected, "FP8 with one scale each, the head too", wrong=[("scales left out, as transformers does", dropped)])


def modelopt_nvfp4(path):
    """Against ModelOpt's own tensor, and settings in its own file."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    config = LlamaConfig(**TINY | dict(intermediate_size=48))
    model = randomise(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), 92).to(torch.bfloat16)
    tensors, expected, divided = {}, {}, {}
    for name in ATTENTION + MLP:
        weight = model.get_parameter(f"{name}.weight").data.float()
        made, scale, double_scale = NVFP4QTensor.quantize(weight, 16)
        parts = {"weight": made._quantized_data, "weight_scale": scale.view(weight.shape[0], -1), "weight_scale_2": double_scale.reshape([])}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()} | {f"{name}.input_scale": torch.tensor(0.5)}
        whole = made.dequantize(dtype=torch.float32, scale=scale, double_scale=double_scale, block_sizes={-1: 16})
        expected[f"{name}.weight"] = whole
        divided[f"{name}.weight"] = whole / double_scale / double_scale
    settings = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["score"]}}
    finish(path, tensors, (model, config), None, expected, "NVFP4, whose second scale multiplies; settings in hf_quant_config.json alone", wrong=[("the second scale divides", divided)])
    write_json(path / "hf_quant_config.json", settings)


CHECKPOINTS = [fp8_blocks, fp8_powers, ct_bytes, ct_packed, ct_fours, bnb_nf4, bnb_fp4, bnb_int8, gptq_v1, gptq_v2, awq, mxfp4, torchao,
               modelopt_fp8, modelopt_nvfp4]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("names", nargs="*", metavar="NAME", help="checkpoints to make (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = {make.__name__.replace("_", "-"): make for make in CHECKPOINTS}
    if unknown := set(args.names) - set(known):
        parser.error(f"no such checkpoint: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in args.names or known:
        path = args.out / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        known[name](path)


if __name__ == "__main__":
    main()
