#!/usr/bin/env python3
"""Compares rewarm with transformers on a real checkpoint, by hand: not part of CI.

    python tests/reference/real_parity.py MODEL_DIR --pairs PAIRS.jsonl.gz [--rewarm target/release/rewarm] [--dtypes f32 bf16]

MODEL_DIR is a reward model, or a bare BertModel (MiniLM), out of which the script first makes a
BertForSequenceClassification with a seeded random pooler and head. PAIRS holds JSON lines with prompt, chosen and
rejected; `--texts` of them (64) become (prompt, response) samples: one user turn and one assistant turn through the chat template,
or, without one, a sentence pair for an encoder and prompt + response for a decoder.

Prints, for each dtype and for samples given as token ids and as text, the largest |difference| / max(1, |reward|) and
Spearman's rank correlation, of rewarm against transformers, eager attention, one sample at a time; and of torch's own bf16
against its f32, the yardstick for ours. Without --rewarm only the transformers half runs.
"""
import argparse
import functools
import gzip
import itertools
import json
import math
import pathlib
import subprocess
import tempfile
import time

import numpy
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def with_head(model_dir, scratch):
    """`model_dir`, or a copy of a bare encoder with a seeded head whose rewards are of order 1."""
    config = AutoConfig.from_pretrained(model_dir)
    if config.architectures[0] != "BertModel":
        return model_dir
    torch.manual_seed(0)
    trunk = AutoModel.from_pretrained(model_dir, dtype=torch.float32)
    config.num_labels, config.architectures = 1, ["BertForSequenceClassification"]
    model = AutoModelForSequenceClassification.from_config(config)
    model.bert.load_state_dict(trunk.state_dict(), strict=False)
    torch.nn.init.normal_(model.bert.pooler.dense.weight, std=2 / math.sqrt(config.hidden_size))
    torch.nn.init.normal_(model.classifier.weight, std=2 / math.sqrt(config.hidden_size))
    model.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(scratch)
    return scratch


def read_samples(path, count, fits):
    """The first `count` texts that fit the model, now a chosen response, now a rejected one."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        pairs = map(json.loads, lines)
        texts = ((pair["prompt"], pair["rejected" if i % 2 else "chosen"]) for i, pair in enumerate(pairs))
        return list(itertools.islice(filter(fits, texts), count))


def encode(tokenizer, config, prompt, response):
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False, return_tensors="pt")
    if config.model_type in ("bert", "roberta"):
        return tokenizer([prompt], [response], return_tensors="pt")  # in lists: an empty response is still a pair
    return tokenizer(prompt + response, return_tensors="pt")


@torch.no_grad()
def reference(path, inputs, dtype, keep_types):
    """`keep_types` off: what a caller who sends bare token ids gets, every token type 0."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
    started, rewards = time.time(), []
    for sample in inputs:
        sample = {key: value for key, value in sample.items() if keep_types or key != "token_type_ids"}
        rewards.append(float(model(**sample).logits))
    return numpy.array(rewards), time.time() - started


def rewarm(binary, path, dtype, rows):
    lines = "".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows))
    command = [binary, "score", "--model", path, "--dtype", dtype]
    output = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout
    answers = {row["id"]: row for row in map(json.loads, output.splitlines())}
    assert len(answers) == len(rows), f"{len(answers)} answers to {len(rows)} samples"
    failed = [row for row in answers.values() if "error" in row]
    assert not failed, failed[:3]
    ordered = [answers[str(i)] for i in range(len(rows))]
    return numpy.array([row["reward"] for row in ordered]), [row["tokens"] for row in ordered]


def compare(what, ours, theirs):
    difference = numpy.abs(ours - theirs) / numpy.maximum(1, numpy.abs(theirs))
    ranks = [values.argsort().argsort() for values in (ours, theirs)]
    print(f"{what:44} max |d|/max(1,|r|) {difference.max():.2e}  mean {difference.mean():.2e}  Spearman {numpy.corrcoef(*ranks)[0, 1]:.6f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    parser.add_argument("--rewarm", type=pathlib.Path, help="the binary; without it only transformers runs")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=512, help="skip longer texts")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["f32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        path = with_head(args.model, pathlib.Path(scratch))
        config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        limit = min(config.max_position_embeddings, args.max_tokens)
        texts = read_samples(args.pairs, args.texts, lambda text: encode(tokenizer, config, *text)["input_ids"].shape[1] <= limit)
        inputs = [encode(tokenizer, config, *text) for text in texts]
        ids = [sample["input_ids"][0].tolist() for sample in inputs]
        print(f"{args.model.name}: {len(ids)} samples, {sum(map(len, ids))} tokens, the longest {max(map(len, ids))}")
        exact = {}
        has_types = "token_type_ids" in inputs[0]  # without them both forms are one forward
        by_transformers = functools.cache(lambda dtype, keep_types: reference(path, inputs, dtype, keep_types))
        for form, keep_types in (("text", True), ("token_ids", False)):
            exact[form], seconds = by_transformers(torch.float32, keep_types and has_types)
            print(f"transformers f32, {form}: rewards {exact[form].min():.3f} to {exact[form].max():.3f}, standard deviation {exact[form].std():.3f}, {seconds:.1f} s")
        for dtype in args.dtypes:
            for form, keep_types in (("text", True), ("token_ids", False)):
                theirs = exact[form]
                if dtype != "f32":
                    theirs, _ = by_transformers(DTYPES[dtype], keep_types and has_types)
                    compare(f"transformers {dtype} against its f32, {form}", theirs, exact[form])
                if args.rewarm is None:
                    continue
                rows = [{"token_ids": row} for row in ids] if form == "token_ids" else [{"prompt": p, "response": r} for p, r in texts]
                ours, tokens = rewarm(args.rewarm, path, dtype, rows)
                assert tokens == [len(row) for row in ids], "another number of tokens"
                compare(f"rewarm {dtype} against transformers {dtype}, {form}", ours, theirs)
                if dtype != "f32":
                    compare(f"rewarm {dtype} against transformers f32, {form}", ours, exact[form])


if __name__ == "__main__":
    main()
