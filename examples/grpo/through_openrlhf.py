"""The reward of what a policy said, as OpenRLHF asks for it: its own client of `--reward.remote_url`, at `/get_reward`.

    python examples/grpo/through_openrlhf.py examples/grpo/runs        needs openrlhf (pip install --no-deps is enough)

OpenRLHF sends one text, the policy's prompt and response with their special tokens; so does `score_texts` over gRPC, and
both get the same reward.
"""
from __future__ import annotations

import asyncio
import json
import pathlib
import sys

import rewarm
from openrlhf.utils.agent import SingleTurnAgentExecutor

FAMILY = pathlib.Path(__file__).resolve().parents[2] / "deploy/demo"
VARIANT = {"mode": "warm", "members": [str(FAMILY / f"member-{index}") for index in range(3)]}


def main(runs: pathlib.Path) -> None:
    said = json.loads((runs / "warm-0.said.json").read_text(encoding="utf-8"))
    texts = [f"[CLS] {one['prompt']} [SEP] {one['response']} [SEP]" for one in said]
    with rewarm.serve({"variants": {"warm": VARIANT}}, http="127.0.0.1:0") as server:
        executor = SingleTurnAgentExecutor(f"http://{server.http}/get_reward")

        async def ask() -> list[float]:
            # one text a request, all at once, as its rollouts do
            found = await asyncio.gather(*(executor._fetch_rewards_via_http([text], [one["prompt"]], [None])
                                           for text, one in zip(texts, said)))
            return [answer["rewards"][0] for [answer] in found]

        rewards = asyncio.run(ask())
        over_grpc = rewarm.Client(server.address).score_texts(texts)
    for text, reward, same in zip(texts, rewards, over_grpc):
        print(f"{reward:8.4f}  {text}")
        # JSON writes a reward with as many digits as f32 has
        assert abs(reward - same) < 1e-6 * max(1.0, abs(same)), (reward, same)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
