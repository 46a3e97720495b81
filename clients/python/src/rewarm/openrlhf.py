"""An agent for OpenRLHF: a file of two lines, named by `--train.agent_func_path my_agent.py`.

    import rewarm.openrlhf
    AgentExecutor = rewarm.openrlhf.agent_executor("host:50051", variant="warm")

An error ends the rollout. (What OpenRLHF does itself with `--reward.remote_url` is to log it and go on without a reward.)
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewarm.aio import AsyncClient
from rewarm.types import ClientOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


def agent_executor(addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> type[Any]:
    """OpenRLHF's single turn, rewarded: prompt and response with their special tokens, as the policy saw and wrote them."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._client = AsyncClient(addresses, **options)

        async def execute(self, prompt: Any, label: Any, sampling_params: Any, max_length: int, hf_tokenizer: Any,
                          llm_engine: Any, **rest: Any) -> Any:
            output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, **rest)
            text = hf_tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
            [reward] = await self._client.score_texts([text])
            return {**output, "reward": reward, "scores": reward}

    return AgentExecutor
