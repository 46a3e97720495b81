"""A reward manager for verl's reward loop, which scores a conversation as the policy saw it; an error ends the run.

    reward.reward_manager.source=importlib
    reward.reward_manager.name=RewardManager
    reward.reward_manager.module.path=pkg://rewarm.verl.reward_loop
    +reward.rewarm.addresses=host:50051
    +reward.rewarm.variant=warm
"""
from __future__ import annotations

from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rewarm import verl


class RewardManager(RewardManagerBase):  # type: ignore[misc]
    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        options = dict(config.reward.rewarm)
        self._client = verl.async_client(options.pop("addresses"), options)

    async def run_single(self, data: Any) -> dict[str, Any]:
        item = data[-1]  # of several sequences the last is rewarded, as verl's own managers do
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-ids.shape[-1]:].sum())
        response = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        messages = [*item.non_tensor_batch["raw_prompt"], {"role": "assistant", "content": response}]
        [reward] = await self._client.score_messages([messages])
        return {"reward_score": reward, "reward_extra_info": {}}
