"""The client for asyncio."""
from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import grpc
import grpc.aio

from rewarm import channels, plan
from rewarm.client import INFO_SECONDS, Common
from rewarm.pipeline import Pipeline, Sending
from rewarm.types import ClientOptions, Options, Score, ServerInfo
from rewarm.v1 import reward_pb2 as proto
from rewarm.v1 import reward_pb2_grpc as service

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AsyncClient(Common):
    """`Client` for asyncio: the same calls, awaited. One may be used in several event loops; a call that is cancelled is
    cancelled in the server too."""

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        super().__init__(addresses, **options)
        # a channel belongs to the loop that it was made in
        self._pools: dict[asyncio.AbstractEventLoop, channels.Pool] = {}

    @overload
    async def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: Literal[False] = False,
                    **options: Unpack[Options]) -> list[float]: ...
    @overload
    async def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: Literal[True],
                    **options: Unpack[Options]) -> list[Score]: ...
    async def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: bool = False,
                    **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each response, in order; one string is the prompt of all. With `members`, a `Score` of each."""
        return await self._score(plan.texts(prompts, responses), members, options)

    @overload
    async def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                             chat_template_kwargs: Mapping[str, Any] | None = None, members: Literal[False] = False,
                             **options: Unpack[Options]) -> list[float]: ...
    @overload
    async def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                             chat_template_kwargs: Mapping[str, Any] | None = None, members: Literal[True],
                             **options: Unpack[Options]) -> list[Score]: ...
    async def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                             chat_template_kwargs: Mapping[str, Any] | None = None, members: bool = False,
                             **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each conversation, rendered through the model's chat template without a generation prompt."""
        return await self._score(plan.conversations(conversations, tools, chat_template_kwargs), members, options)

    @overload
    async def score_texts(self, texts: Iterable[str], *, members: Literal[False] = False,
                          **options: Unpack[Options]) -> list[float]: ...
    @overload
    async def score_texts(self, texts: Iterable[str], *, members: Literal[True],
                          **options: Unpack[Options]) -> list[Score]: ...
    async def score_texts(self, texts: Iterable[str], *, members: bool = False,
                          **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each text that is rendered already: tokenized without adding special tokens."""
        return await self._score(plan.formatted(texts), members, options)

    @overload
    async def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: Literal[False] = False,
                              **options: Unpack[Options]) -> list[float]: ...
    @overload
    async def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: Literal[True],
                              **options: Unpack[Options]) -> list[Score]: ...
    async def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: bool = False,
                              **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each sequence of the model's own token ids, as it is."""
        return await self._score(plan.token_ids(token_ids), members, options)

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """What is served, asked anew."""
        return await self._info(time.monotonic(), timeout or self._settings.timeout)

    async def close(self) -> None:
        """Lets go of this event loop's connections; a later call makes new ones."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        for channel in pool.clear() if pool else []:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    async def _score(self, samples: list[proto.Sample], members: bool,
                     options: Options) -> list[float] | list[Score]:
        started = time.monotonic()
        settings = replace(self._settings, **options)
        if not samples:
            return []
        info = self._known_info(started) or await self._info(started, settings.timeout)
        sent = plan.requests(samples, settings, info, members)
        responses = await self._run("Score", self._pipeline(sent, started, settings.timeout))
        return (plan.scores if members else plan.rewards)(sent, responses, settings)

    async def _info(self, started: float, timeout: float) -> ServerInfo:
        asked = [plan.Request(proto.GetServerInfoRequest())]
        [response] = await self._run("GetServerInfo", self._pipeline(asked, started, timeout))
        info = plan.server_info(response)
        self._told = (started + INFO_SECONDS, info)
        return info

    async def _run(self, method: str, pipeline: Pipeline) -> list[Any]:
        pool = self._pool()
        flying: dict[asyncio.Task[Any], Sending] = {}
        pool.begin()
        try:
            while not pipeline.is_done:
                pipeline.follow(self._places(), time.monotonic())
                for sending in pipeline.due(time.monotonic()):
                    call = getattr(pool.stub(sending.address), method)
                    future = asyncio.create_task(_answer(call(
                        pipeline.requests[sending.index].message, timeout=pipeline.deadline - time.monotonic(),
                        metadata=self._credentials.metadata(sending.address))))
                    flying[future] = sending
                pause = self._pause(pipeline)
                if not flying:
                    await asyncio.sleep(pause)
                    continue
                done, _ = await asyncio.wait(flying, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    sending, error = flying.pop(future), future.exception()
                    if error is None:
                        pipeline.answered(sending, future.result())
                    elif isinstance(error, grpc.aio.AioRpcError):
                        failure = channels.failure(error, self._credentials)
                        if failure["is_distrusted"]:
                            pool.distrust(sending.address)
                        pipeline.failed(sending, time.monotonic(), **failure)
                    else:
                        raise error
            return pipeline.responses
        finally:
            for future in flying:
                future.cancel()
            for channel in pool.end(self._places()):
                await channel.close(None)

    def _pool(self) -> channels.Pool:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # channels hold their loop, so a weak dictionary would keep every loop of a program that runs many
            for ended in [other for other in list(self._pools) if other.is_closed()]:
                self._pools.pop(ended, None)
            self._pools[loop] = channels.Pool(self._credentials, _connect)
        return self._pools[loop]


def _connect(address: str, secure: grpc.ChannelCredentials | None,
             options: list[tuple[str, Any]]) -> tuple[grpc.aio.Channel, Any]:
    channel = grpc.aio.secure_channel(address, secure, options) if secure else grpc.aio.insecure_channel(address, options)
    return channel, service.RewardServiceStub(channel)  # type: ignore[no-untyped-call]


async def _answer(call: Any) -> Any:
    return await call
