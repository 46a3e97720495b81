"""The reward of what a policy said, by verl's reward loop with `rewarm.verl` as its custom reward function.

    python examples/grpo/through_verl.py examples/grpo/runs        needs verl (its reward loop; no engine)

verl starts the reward models that it knows itself; a server of one's own fits in through a custom reward function.
"""
from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import tempfile

import numpy as np
import policy
import rewarm
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

FAMILY = pathlib.Path(__file__).resolve().parents[2] / "deploy/demo"
VARIANT = {"mode": "warm", "members": [str(FAMILY / f"member-{index}") for index in range(3)]}


def batch(said: list[dict[str, str]], tokenizer: object) -> DataProto:
    """What a rollout leaves behind: responses padded on the right."""
    responses = [tokenizer(one["response"])["input_ids"] for one in said]
    width = max(map(len, responses))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in responses])
    mask = torch.tensor([[1] + [1] * len(ids) + [0] * (width - len(ids)) for ids in responses])
    columns = {"data_source": ["experiences"] * len(said), "reward_model": [{"ground_truth": None}] * len(said),
               "extra_info": [{"prompt": one["prompt"]} for one in said]}
    return DataProto.from_dict(
        tensors={"prompts": torch.zeros(len(said), 1, dtype=torch.long), "responses": padded, "attention_mask": mask},
        non_tensors={name: np.fromiter(values, dtype=object, count=len(said)) for name, values in columns.items()})


def main(runs: pathlib.Path) -> None:
    said = json.loads((runs / "warm-0.said.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, rewarm.serve({"variants": {"warm": VARIANT}}) as server:
        # for its tokenizer, which needs no training
        policy.make(pathlib.Path(folder), steps=2)
        client = rewarm.Client(server.address)
        config = OmegaConf.create({
            "actor_rollout_ref": {"model": {"path": folder, "tokenizer_path": folder}},
            "reward": {
                "reward_model": {"enable": False},
                "reward_manager": {"source": "register", "name": "naive"},
                "custom_reward_function": {"path": "pkg://rewarm.verl", "name": "compute_score", "reward_kwargs": {
                    "addresses": server.address, "variant": "warm",
                    "expected_fingerprint": client.info().variants["warm"].fingerprint}},
            }})

        async def ask() -> list[float]:
            found = await RewardLoopWorker(config).compute_score_batch(batch(said, AutoTokenizer.from_pretrained(folder)))
            return [output["reward_score"] for output in found]

        rewards = asyncio.run(ask())
        same = client.score([one["prompt"] for one in said], [one["response"] for one in said])
    for one, reward in zip(said, rewards):
        print(f"{reward:8.4f}  {one['prompt']} {one['response']}")
    assert rewards == same, (rewards, same)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
