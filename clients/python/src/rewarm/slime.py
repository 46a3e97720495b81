"""A reward function for slime: a module of two lines, named by `--custom-rm-path my_reward.reward`.

    import rewarm.slime
    reward = rewarm.slime.reward_func("host:50051", variant="warm")

An error ends the rollout.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewarm import forms
from rewarm.aio import AsyncClient
from rewarm.types import ClientOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


def reward_func(addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> Callable[..., Awaitable[Any]]:
    """Takes a sample, or with `--group-rm` a list of them, and gives a reward, or a list.

    With `--apply-chat-template` a prompt is rendered already, and scored together with its response as it is. Otherwise it
    goes through the reward model's own template.
    """
    client = AsyncClient(addresses, **options)

    async def reward(args: Any, samples: Any, **_: Any) -> Any:
        batch = samples if isinstance(samples, list) else [samples]
        prompts, responses = [sample.prompt for sample in batch], [sample.response for sample in batch]
        if getattr(args, "apply_chat_template", False) and all(isinstance(prompt, str) for prompt in prompts):
            rewards = await client.score_texts([prompt + response for prompt, response in zip(prompts, responses)])
        else:
            method, arguments = forms.call(prompts, responses)
            rewards = await getattr(client, method)(*arguments)
        return rewards if isinstance(samples, list) else rewards[0]

    return reward
