"""PyTorch and transformers on the card, for `deploy/gpu/check`: its rates, and what it would take the place of.

    python3 beside.py peak|beside ASKED      ASKED: JSON with shapes, mixed lengths and batches of BERT

Prints one JSON line for each figure as it comes. Random weights, bf16, SDPA; medians by device events.
"""
import json, statistics, sys

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed")


def tell(name, value, unit, note=""):
    print(json.dumps(dict(name=name, value=value, unit=unit, note=note)), flush=True)


def ms(work, rounds=7, warm=2):
    for _ in range(warm):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(), work(), end.record(), torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak(asked):
    one, two = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    tell("peak", 2 * 8192**3 / ms(lambda: torch.mm(one, two), 9) / 1e9, "TFLOP/s", f"bf16 product 8192 cubed, torch {torch.__version__}")
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    tell("copy", 2 * source.numel() / ms(lambda: target.copy_(source)) / 1e9, "TB/s", "read and written")


def ids(samples, tokens):
    return torch.randint(5, 30_000, (samples, tokens), device="cuda")


def made(kind, config):
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = kind(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def qwen3(shape, layers):
    config = transformers.Qwen3Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"], num_hidden_layers=layers,
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
        max_position_embeddings=shape["longest"], num_labels=1, pad_token_id=0)
    return made(transformers.Qwen3ForSequenceClassification, config)


def last(model, batch, mask=None):
    return model.model(input_ids=batch, attention_mask=mask, use_cache=False).last_hidden_state


def bucketed(model, lengths, budget=16_384):
    """Sorted by length, padded, at most so many tokens with padding: as a careful user would."""
    batches, batch = [], []
    for length in sorted(lengths) + [None]:
        if batch and (length is None or (len(batch) + 1) * length > budget):
            most = batch[-1]
            mask = (torch.arange(most, device="cuda")[None] < torch.tensor(batch, device="cuda")[:, None]).long()
            batches.append((ids(len(batch), most), None if batch[0] == most else mask))
            batch = []
        batch.append(length)
    return lambda: [last(model, batch, mask) for batch, mask in batches]


def beside(asked):
    tell("transformers", transformers.__version__, "", f"torch {torch.__version__}, SDPA, bf16")
    large, small, mixed = asked["shapes"]["8B"], asked["shapes"]["0.6B"], asked["mixed"]
    batch, one = ids(32, 512), ids(1, 128)
    model = qwen3(large, large["layers"])
    tell("transformers eager, 8B, 32 x 512", ms(lambda: last(model, batch), 3, 1), "ms")
    tell("transformers eager, 8B, 96 of 64..1024", ms(bucketed(model, mixed), 2, 1), "ms")
    tell("transformers eager, 8B, 1 x 128", ms(lambda: last(model, one)), "ms")
    model = None
    torch.cuda.empty_cache()
    model = qwen3(small, small["layers"])
    tell("transformers eager, 0.6B, 96 of 64..1024", ms(bucketed(model, mixed), 3, 1), "ms")
    tell("transformers eager, 0.6B, 1 x 128", ms(lambda: last(model, one), 9), "ms")
    model = None

    shape = asked["shapes"]["BERT-base"]
    bert = made(transformers.BertForSequenceClassification, transformers.BertConfig(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], max_position_embeddings=shape["longest"], num_labels=1))
    for label, samples, tokens in asked["bert"]:
        of = ids(samples, tokens)
        tell(f"transformers eager, {label}", ms(lambda: bert(input_ids=of).logits, 9, 3), "ms")
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                bert(input_ids=of), bert(input_ids=of)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                bert(input_ids=of)
            tell(f"transformers captured, {label}", ms(graph.replay, 15), "ms")
        except RuntimeError as error:
            tell(f"transformers captured, {label}", "cannot be captured", "", str(error)[:120])

    # four layers, since all of them take longer to compile than there is time; all layers are alike
    model = qwen3(large, 4)
    eager = ms(lambda: last(model, batch), 5)
    compiled = torch.compile(model.model)
    took = ms(lambda: compiled(input_ids=batch, use_cache=False).last_hidden_state, 5)
    tell("transformers compiled, 8B, 32 x 512", took * large["layers"] / 4, "ms", f"4 layers: {took:.1f} ms (eager {eager:.1f}), for all {large['layers']}")


if __name__ == "__main__":
    part, asked = sys.argv[1], json.loads(sys.argv[2])
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no card")
    if part == "beside":
        try:
            import transformers
        except ImportError:
            sys.exit("transformers is not installed")
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        {"peak": peak, "beside": beside}[part](asked)
