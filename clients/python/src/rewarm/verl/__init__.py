"""A reward function for verl; an error ends the run (not in its manager `rate_limited`, which turns it into 0).

    reward.custom_reward_function.path=pkg://rewarm.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.addresses=host:50051
    +reward.custom_reward_function.reward_kwargs.variant=warm

verl gives such a function no prompt but what is in the dataset's `extra_info`. `rewarm.verl.reward_loop` has a reward manager
that knows the prompt.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rewarm import forms
from rewarm.aio import AsyncClient
from rewarm.client import Client
from rewarm.errors import InvalidInput


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    addresses: str | Sequence[str],
    prompt_key: str = "prompt",
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **options: Any,
) -> dict[str, float]:
    """The reward of `solution_str` as a response to `extra_info[prompt_key]`, a string or a list of messages."""
    method, arguments = forms.call([_prompt(extra_info, prompt_key)], [solution_str])
    [reward] = await getattr(async_client(addresses, options), method)(*arguments)
    return {"score": reward}


def compute_score_sync(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    addresses: str | Sequence[str],
    prompt_key: str = "prompt",
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **options: Any,
) -> dict[str, float]:
    """The same for verl's manager `remote`, which takes no asynchronous function."""
    method, arguments = forms.call([_prompt(extra_info, prompt_key)], [solution_str])
    [reward] = getattr(_client(_listed(addresses), tuple(options.items())), method)(*arguments)
    return {"score": reward}


def async_client(addresses: str | Sequence[str], options: Mapping[str, Any]) -> AsyncClient:
    """One for each place and set of options, for connections that last."""
    return _async_client(_listed(addresses), tuple(options.items()))


@functools.lru_cache(maxsize=None)
def _async_client(addresses: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> AsyncClient:
    return AsyncClient(addresses, **dict(options))


@functools.lru_cache(maxsize=None)
def _client(addresses: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> Client:
    return Client(addresses, **dict(options))


def _listed(addresses: str | Sequence[str]) -> tuple[str, ...]:
    return (addresses,) if isinstance(addresses, str) else tuple(addresses)


def _prompt(extra_info: Mapping[str, Any] | None, key: str) -> Any:
    if extra_info is None or extra_info.get(key) is None:
        raise InvalidInput(f"extra_info has no {key!r}, the prompt: name another key with prompt_key, or use the reward "
                           "manager of rewarm.verl.reward_loop")
    return extra_info[key]
