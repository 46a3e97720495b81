#!/usr/bin/env python3
"""Makes directories that are no checkpoints, and shows that the command in rewarm's refusal makes one of each.

    pip install -r tests/reference/requirements.txt && pip install accelerate==1.15.0 deepspeed==0.19.8
    python tests/reference/foreign.py --rewarm target/debug/rewarm [NAME ...]

For each: `rewarm score --model DIR` refuses and names a command; the command is run as it is written, with OUT filled in
(and config and tokenizer copied, where the refusal says so); then OUT scores as the model that was saved. Ran with torch
2.15.0, transformers 5.23.0, accelerate 1.15.0 and deepspeed 0.19.8.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

DATA = pathlib.Path(__file__).resolve().parent.parent / "data" / "models"
TEXT = ["config.json", "tokenizer.json", "tokenizer_config.json"]


def copy(source, target, names=TEXT):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:  # some have no tokenizer; any will do for token ids
        shutil.copy((source if (source / name).exists() else DATA / "llama") / name, target / name)


def fsdp(source, target):
    import torch.distributed.checkpoint as dcp
    copy(source, target)
    dcp.save({"model": load_file(source / "model.safetensors")}, checkpoint_id=target / "pytorch_model_fsdp_0", no_dist=True)


def fsdp_shards(source, target):
    import torch.distributed.checkpoint as dcp
    dcp.save({"model": load_file(source / "model.safetensors")}, checkpoint_id=target, no_dist=True)


def deepspeed(source, target):
    import deepspeed
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="22299")
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.bfloat16)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True},
              "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), config=config, dist_init_required=True)
    copy(source, target)
    engine.save_checkpoint(str(target), tag="global_step1")


CASES = [(fsdp, "llama", 0), (fsdp_shards, "llama", 0), (deepspeed, "llama-bf16", 0)]


def score(rewarm, model):
    lines = "\n".join(json.dumps({"token_ids": ids}) for ids in ([5, 6, 7], [9, 8, 7, 6]))
    ran = subprocess.run([rewarm, "score", "--model", model], input=lines, capture_output=True, text=True)
    return [json.loads(line)["reward"] for line in ran.stdout.splitlines()], ran.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewarm", default="target/debug/rewarm")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for make, name, which in CASES:
        if args.names and make.__name__ not in args.names:
            continue
        work = pathlib.Path(tempfile.mkdtemp())
        source, target, out = DATA / name, work / "saved", work / "out"
        make(source, target)
        rewards, refusal = score(args.rewarm, target)
        assert not rewards, rewards
        command = re.findall(r"`((?:python|accelerate) .*?)`", refusal)[which].replace("OUT", str(out))
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if "copy config.json" in refusal and out.exists():
            copy(source, out)
        written = out if out.exists() else target
        rewards, problem = score(args.rewarm, written)
        copy(source, work / "source")
        shutil.copy(source / "model.safetensors", work / "source")
        expected, _ = score(args.rewarm, work / "source")
        assert expected and rewards == expected, (make.__name__, rewards, expected, problem)
        print(f"{make.__name__:20} {command[:100]}... {rewards}", flush=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
