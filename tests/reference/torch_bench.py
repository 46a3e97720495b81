#!/usr/bin/env python3
"""Lets torch and `rewarm bench model` take turns on the same checkpoints and token ids, by hand: not part of CI.

    python tests/reference/torch_bench.py --rewarm target/release/rewarm [--rounds 5] [--workloads minilm-32x128 ..]
        [--checkpoint minilm=DIR] [--onnx] [--json torch_bench.json]

Each workload is a checkpoint and a list of samples. The checkpoint has random weights and the shape of `rewarm bench
--shape`, or is the one that --checkpoint names (a bare BertModel gets a head, as in real_parity.py). In each round
each configuration scores all samples once, one configuration after the other, so that a machine that changes its speed
changes all; figures are medians over the rounds, after a warm-up. Loading is never timed; padding and packing are.

torch runs in workers of their own, which stay alive between rounds and wait without burning a core:

    f32          as installed: no variable set, transformers' default attention (sdpa)
    f32 tuned    the variables in TUNED, denormals flushed to zero
    bf16 tuned   the same in bfloat16

each *padded* (all samples in one batch, as long as the longest) and, when lengths differ, *bucketed* (sorted by
length, --bucket-samples in a batch). Left out: OMP_WAIT_POLICY=active, whose idle threads would
take the cores from whoever has the turn, and torch.compile, which compiles anew for each length.

With --onnx, ONNX Runtime takes turns too, in f32, padded, on torch's export of the same model for any number and length
of samples (pip install onnx onnxscript onnxruntime).

rewarm is started anew for each turn, with one warm-up round of its own before the one that counts. Its f32 rewards are
compared with torch's first: a faster answer to another question is no answer.
"""
import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

# glibc would give large buffers back to the kernel after each operation, and fault them in again: keep them.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Room for another order of summation in f32, relative to the larger of 1 and the reward.
F32_RTOL = 1e-3

SHAPES = {  # as in `rewarm bench --shape`
    "minilm": ("bert", dict(vocab_size=30522, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12, max_position_embeddings=512)),
    "bert-base": ("bert", dict(vocab_size=30522, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=512)),
    "smollm2": ("llama", dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192)),
    "deberta-v3-base": ("deberta-v2", dict(vocab_size=128100, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=512,
                                           layer_norm_eps=1e-7, type_vocab_size=0, position_biased_input=False, relative_attention=True, position_buckets=256,
                                           norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"])),
    "modernbert-base": ("modernbert", dict(vocab_size=50368, hidden_size=768, intermediate_size=1152, num_hidden_layers=22, num_attention_heads=12, max_position_embeddings=8192, classifier_pooling="mean")),
    "llama-512x8": ("llama", dict(vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096)),
}


def mixed(count, shortest, longest):
    """Log-uniform lengths, the same in every run."""
    noise = random.Random(0)
    return [round(math.exp(noise.uniform(math.log(shortest), math.log(longest)))) for _ in range(count)]


WORKLOADS = {  # checkpoint, tokens of each sample
    "minilm-32x128": ("minilm", [128] * 32),
    "minilm-64-mixed": ("minilm", mixed(64, 16, 512)),
    "llama-512x8-8x256": ("llama-512x8", [256] * 8),
    "smollm2-8x256": ("smollm2", [256] * 8),
    "bert-base-8x128": ("bert-base", [128] * 8),
    "bert-base-4x512": ("bert-base", [512] * 4),
    "modernbert-base-2x512": ("modernbert-base", [512] * 2),
    "modernbert-base-1x2048": ("modernbert-base", [2048]),
    "modernbert-base-8-mixed": ("modernbert-base", mixed(8, 32, 1024)),
    "deberta-v3-base-1x512": ("deberta-v3-base", [512]),
    "deberta-v3-base-8x512": ("deberta-v3-base", [512] * 8),
}


@dataclasses.dataclass
class Configuration:
    """One of those that take turns."""

    name: str
    dtype: str
    is_rewarm: bool = False
    is_tuned: bool = False
    is_onnx: bool = False
    batching: str = "packed"
    seconds: list = dataclasses.field(default_factory=list)

    def kind(self):
        """Of the worker that runs it."""
        return self.dtype, self.is_tuned, self.is_onnx


def configurations(lengths, dtypes, has_onnx):
    """rewarm first; then ONNX Runtime and torch, bucketed only where that makes a difference."""
    ways = ["padded"] if len(set(lengths)) == 1 else ["padded", "bucketed"]
    found = [Configuration(f"rewarm {dtype}", dtype, is_rewarm=True) for dtype in dtypes]
    if has_onnx and "f32" in dtypes:
        found.append(Configuration("onnx f32", "f32", is_onnx=True, batching="padded"))
    for dtype, is_tuned in [("f32", False), ("f32", True), ("bf16", True)]:
        if dtype in dtypes:
            name = f"torch {dtype}{' tuned' if is_tuned else ''}"
            found += [Configuration(name, dtype, is_tuned=is_tuned, batching=way) for way in ways]
    return found


# ---- torch ----


def write_checkpoint(shape, path):
    """Random weights and a tokenizer that nobody asks."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    family, sizes = SHAPES[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).half().save_pretrained(path)
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def worker():
    """Loads what the first line asks for, then scores all samples once for each further line."""
    import torch
    import transformers

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    task = json.loads(sys.stdin.readline())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    if task["is_tuned"]:
        torch.set_flush_denormal(True)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[task["dtype"]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(task["checkpoint"], dtype=dtype).eval()
    model.config.use_cache = False
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__}
    if task["is_onnx"]:
        forward, about["onnxruntime"] = onnx_session(model, task["checkpoint"] + ".onnx", task["threads"])
    else:
        def forward(ids, mask):
            return model(input_ids=ids, attention_mask=mask).logits
    pad, samples = model.config.pad_token_id or 0, task["samples"]
    by_length = sorted(range(len(samples)), key=lambda index: len(samples[index]))
    size = task["bucket_samples"]
    batches = {
        "padded": [list(range(len(samples)))],
        "bucketed": [by_length[start:start + size] for start in range(0, len(samples), size)],
    }

    @torch.inference_mode()
    def score(batching):
        rewards = [0.0] * len(samples)
        for batch in batches[batching]:
            longest = max(len(samples[index]) for index in batch)
            ids = torch.tensor([samples[index] + [pad] * (longest - len(samples[index])) for index in batch])
            # Without padding there is no mask to apply.
            is_even = all(len(samples[index]) == longest for index in batch)
            mask = None if is_even and not task["is_onnx"] else torch.tensor([[1] * len(samples[i]) + [0] * (longest - len(samples[i])) for i in batch])
            logits = forward(ids, mask)[:, 0].float().tolist()
            for index, reward in zip(batch, logits):
                rewards[index] = reward
        return rewards

    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        rewards = score(line.strip())
        print(json.dumps({"seconds": time.perf_counter() - started, "rewards": rewards}), flush=True)


def onnx_session(model, path, threads):
    """The model by ONNX Runtime, exported for any number and length of samples; and which versions did it."""
    import contextlib

    import onnx
    import onnxruntime
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    if not os.path.exists(path):
        sizes = {0: torch.export.Dim("samples", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=4096)}
        ids = torch.full((2, 64), 5)
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(Logits().eval(), (ids, torch.ones_like(ids)), path, input_names=["input_ids", "attention_mask"], dynamo=True,
                              dynamic_shapes={"input_ids": sizes, "attention_mask": sizes}, opset_version=20)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(ids, mask):
        [logits] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(logits)

    return forward, f"{onnxruntime.__version__}, onnx {onnx.__version__}"


class Worker:
    """torch or ONNX Runtime, in a process that stays alive."""

    def __init__(self, args, checkpoint, samples, dtype, is_tuned, is_onnx):
        environment = {**os.environ, **(TUNED if is_tuned else {})}
        if args.threads:
            environment["OMP_NUM_THREADS"] = str(args.threads)
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        task = {"checkpoint": str(checkpoint), "samples": samples, "dtype": dtype, "is_tuned": is_tuned, "is_onnx": is_onnx, "threads": args.threads, "bucket_samples": args.bucket_samples}
        self.about = self.ask(json.dumps(task))

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a torch worker ended: see above")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- rewarm ----


class Rewarm:
    """The binary on one workload."""

    def __init__(self, args, checkpoint, samples, scratch):
        self.args, self.checkpoint, self.scratch = args, checkpoint, scratch
        self.lines = scratch / "samples.jsonl"
        self.lines.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in samples))
        self.environment = {**os.environ, **({"RAYON_NUM_THREADS": str(args.threads)} if args.threads else {})}

    def run(self, *arguments):
        command = [self.args.rewarm, *map(str, arguments)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=self.environment).stdout

    def rewards(self):
        lines = self.run("score", "--model", self.checkpoint, "--input", self.lines).splitlines()
        return [json.loads(line)["reward"] for line in lines]

    def round(self, dtype):
        """Seconds, and what the run says of machine and version."""
        path = self.scratch / "rewarm.json"
        self.run("bench", "model", "--model", self.checkpoint, "--dtype", dtype, "--lengths", self.lines, "--rounds", 1,
                 "--warmup-rounds", 1, "--max-batch-tokens", self.args.max_batch_tokens, "--json", path)
        document = json.loads(path.read_text())
        [variant] = document["report"]["variants"]
        return variant["seconds"][0], document


# ---- turns ----


def show(what):
    """How far it is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{what:79}\r", end="", file=sys.stderr, flush=True)


def measure(args, name, checkpoint, samples, scratch):
    """All configurations on one workload; stops early on Ctrl-C, with the finished rounds."""
    lengths = [len(ids) for ids in samples]
    rewarm = Rewarm(args, checkpoint, samples, scratch)
    turns = configurations(lengths, args.dtypes, args.onnx)
    kinds = {turn.kind() for turn in turns if not turn.is_rewarm}
    workers = {kind: Worker(args, checkpoint, samples, *kind) for kind in sorted(kinds)}
    about, document, is_interrupted, difference, ours = None, None, False, 0.0, None
    try:
        for turn in turns:
            if not turn.is_rewarm:
                theirs = workers[turn.kind()].ask(turn.batching)["rewards"]
                if turn.dtype == "f32" and not turn.is_tuned:
                    ours = ours or rewarm.rewards()
                    difference = max([difference] + [abs(a - b) / max(1, abs(b)) for a, b in zip(ours, theirs)])
                    assert difference < F32_RTOL, f"{name}: rewards differ by {difference}"
        for count in range(args.rounds):
            seconds = []
            for turn in turns:
                show(f"{name}: round {count + 1} of {args.rounds}, {turn.name} {turn.batching}")
                if turn.is_rewarm:
                    elapsed, document = rewarm.round(turn.dtype)
                else:
                    elapsed = workers[turn.kind()].ask(turn.batching)["seconds"]
                seconds.append(elapsed)
            for turn, elapsed in zip(turns, seconds):
                turn.seconds.append(elapsed)
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        show("")
        about = [worker.about for worker in workers.values()]
        for other in workers.values():
            other.close()
    result = {
        "workload": name, "samples": len(samples), "tokens": sum(lengths), "lengths": lengths, "is_interrupted": is_interrupted,
        "f32_difference": difference, "torch": about,
        "rewarm": document and {key: document[key] for key in ("version", "machine")},
        "configurations": [{**dataclasses.asdict(turn), "median_seconds": statistics.median(turn.seconds)} for turn in turns if turn.seconds],
    }
    for row in result["configurations"]:
        row["samples_per_second"] = len(samples) / row["median_seconds"]
        row["tokens_per_second"] = sum(lengths) / row["median_seconds"]
    of_rewarm = {row["dtype"]: row["median_seconds"] for row in result["configurations"] if row["is_rewarm"]}
    for row in result["configurations"]:
        if not row["is_rewarm"] and row["dtype"] in of_rewarm:
            row["rewarm_over_it"] = row["median_seconds"] / of_rewarm[row["dtype"]]
    return result


def table(results):
    """In Markdown; the ratio is of speeds: above 1, rewarm is the faster one, in the same precision."""
    yield "| workload | tokens | who | ms (least to most) | samples/s | tokens/s | rewarm / it |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for result in results:
        for row in result["configurations"]:
            ms = [1e3 * value for value in (row["median_seconds"], min(row["seconds"]), max(row["seconds"]))]
            ratio = f"{row['rewarm_over_it']:.2f}" if "rewarm_over_it" in row else ""
            yield (f"| {result['workload']} | {result['tokens']} | {row['name']}, {row['batching']} | {ms[0]:.1f} ({ms[1]:.1f} to {ms[2]:.1f}) "
                   f"| {row['samples_per_second']:.1f} | {row['tokens_per_second']:.0f} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewarm", default="target/release/rewarm", help="the binary (target/release/rewarm)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--checkpoint", action="append", default=[], metavar="SHAPE=DIR", help="a real checkpoint in the place of a random one")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime takes turns too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of each; 0: as each decides")
    parser.add_argument("--bucket-samples", type=int, default=8, help="samples in a bucketed batch")
    parser.add_argument("--max-batch-tokens", type=int, default=16384, help="of rewarm")
    parser.add_argument("--json", type=pathlib.Path, help="writes every figure")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 0 or args.bucket_samples < 1:
        parser.error("--rounds and --bucket-samples are at least 1, --threads at least 0")
    real = dict(item.split("=", 1) if "=" in item else parser.error(f"--checkpoint {item}: expected SHAPE=DIR") for item in args.checkpoint)
    if unknown := set(real) - set(SHAPES):
        parser.error(f"--checkpoint {unknown.pop()}: expected one of {', '.join(SHAPES)}")
    if not shutil.which(args.rewarm):
        parser.error(f"--rewarm {args.rewarm}: no such program: build it with cargo build --release")
    tei = shutil.which("text-embeddings-router")
    print("text-embeddings-inference: " + ("skipped, since it takes texts, not token ids: no same inputs" if tei else "not on PATH, skipped"), file=sys.stderr)

    import torch  # noqa: F401  fails here, with its own words, rather than in a worker
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder, checkpoints = pathlib.Path(folder), {}
        for name in args.workloads:
            shape, lengths = WORKLOADS[name]
            if shape not in checkpoints:
                checkpoints[shape] = folder / shape
                if shape in real:
                    from real_parity import with_head

                    checkpoints[shape] = with_head(pathlib.Path(real[shape]), checkpoints[shape])
                else:
                    write_checkpoint(shape, checkpoints[shape])
            noise, vocab = random.Random(1), SHAPES[shape][1]["vocab_size"]
            samples = [[noise.randrange(3, vocab) for _ in range(tokens)] for tokens in lengths]  # never a special token
            results.append(measure(args, name, checkpoints[shape], samples, folder))
            if results[-1]["is_interrupted"]:
                break
    print("\n".join(table(results)))
    if args.json:
        settings = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(args).items()}
        args.json.write_text(json.dumps({"command_line": sys.argv, "settings": settings, "tuned": TUNED, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["--worker"] else main()
