"""Reward functions for TRL's GRPOTrainer, RLOOTrainer and AsyncGRPOTrainer.

    trainer = GRPOTrainer(..., reward_funcs=rewarm.trl.reward_func("host:50051", variant="warm"))

An error of a sample or of the server ends the training: TRL would take None or NaN for "no reward" and train on.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewarm import forms
from rewarm.aio import AsyncClient
from rewarm.client import Client
from rewarm.types import ClientOptions, Score

if TYPE_CHECKING:
    from typing_extensions import Unpack


def reward_func(addresses: str | Sequence[str], *, name: str = "rewarm", asynchronous: bool = False,
                **options: Unpack[ClientOptions]) -> RewardFunc | AsyncRewardFunc:
    """A reward function, to be passed in `reward_funcs`; `name` is its name in TRL's log.

    Conversations go through the reward model's chat template, strings are prompt and response. `asynchronous` lets it
    run beside other asynchronous ones. How far the members of an ensemble disagree is logged as `{name}/reward_std`.
    It pickles, as AsyncGRPOTrainer wants it.
    """
    return (AsyncRewardFunc if asynchronous else RewardFunc)(addresses, name, options)


class _Named:
    def __init__(self, addresses: str | Sequence[str], name: str, options: ClientOptions) -> None:
        self.__name__ = name  # where TRL looks for it
        self._arguments = (addresses, name, options)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _rewards(self, scores: list[Score], log_metric: Callable[[str, float], None] | None) -> list[float]:
        spreads = [score.reward_std for score in scores if score.reward_std is not None]
        if log_metric is not None and spreads:
            log_metric(f"{self.__name__}/reward_std", sum(spreads) / len(spreads))
        return [score.reward for score in scores]


class RewardFunc(_Named):
    """What `reward_func` makes."""

    def __init__(self, addresses: str | Sequence[str], name: str, options: ClientOptions) -> None:
        super().__init__(addresses, name, options)
        self._client = Client(addresses, **options)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any],
                 log_metric: Callable[[str, float], None] | None = None, **columns: Any) -> list[float]:
        method, arguments = forms.call(prompts, completions)
        return self._rewards(getattr(self._client, method)(*arguments, members=True), log_metric)


class AsyncRewardFunc(_Named):
    """What `reward_func(asynchronous=True)` makes."""

    def __init__(self, addresses: str | Sequence[str], name: str, options: ClientOptions) -> None:
        super().__init__(addresses, name, options)
        self._client = AsyncClient(addresses, **options)

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any],
                       log_metric: Callable[[str, float], None] | None = None, **columns: Any) -> list[float]:
        method, arguments = forms.call(prompts, completions)
        return self._rewards(await getattr(self._client, method)(*arguments, members=True), log_metric)
