"""The client for threads that wait."""
from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import grpc

from rewarm import access, channels, plan
from rewarm.pipeline import Pipeline, Sending
from rewarm.types import ClientOptions, Options, Score, ServerInfo
from rewarm.v1 import reward_pb2 as proto
from rewarm.v1 import reward_pb2_grpc as service

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

#: For how long limits and routing that a server told are believed.
INFO_SECONDS = 10.0


class Common:
    """What both clients are made of: addresses and options. Connections are made when they are needed, for each process
    its own, and are left behind by `pickle` and by `fork`."""

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self.addresses, scheme = channels.parse(addresses)
        self._places = channels.places(self.addresses)
        self._options = options
        entry, defaults = access.split(options)
        self._credentials = access.Credentials(entry, scheme)
        self._settings = plan.Settings(**defaults)
        if scheme:
            self._options = {**options, "tls": scheme == "https"}
        self._turns = itertools.count()
        self._told: tuple[float, ServerInfo] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.addresses, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.addresses)!r}{access.shown(self._options)})"

    def _pipeline(self, requests: Sequence[plan.Request], started: float, timeout: float) -> Pipeline:
        # the next request goes where this one's turn ends, so that small calls spread too
        first = next(self._turns) if len(requests) == 1 else 0
        return Pipeline(requests, self._places(), first, started + timeout, timeout)

    def _pause(self, pipeline: Pipeline) -> float:
        pause = pipeline.pause(time.monotonic())
        return min(pause, channels.FOLLOW_SECONDS) if channels.is_followed(self.addresses) else pause

    def _known_info(self, now: float) -> ServerInfo | None:
        return self._told[1] if self._told is not None and now < self._told[0] else None


def _restore(kind: type[Common], addresses: Sequence[str], options: ClientOptions) -> Common:
    return kind(addresses, **options)


class Client(Common):
    """Scores samples with the reward models of a rewarm server, or of several alike.

    `addresses` is `"host:50051"`, a list of such, a DNS name with many servers behind it, or the name of a deployment of
    `rewarm.ray`, whose servers may come and go; calls take turns between them. `options` are the defaults of all calls, and
    how to get in: a token, TLS. Safe to share between threads.
    """

    def __init__(self, addresses: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        super().__init__(addresses, **options)
        self._pools: dict[int, channels.Pool] = {}

    @overload
    def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: Literal[False] = False,
              **options: Unpack[Options]) -> list[float]: ...
    @overload
    def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: Literal[True],
              **options: Unpack[Options]) -> list[Score]: ...
    def score(self, prompts: str | Iterable[str], responses: Iterable[str], *, members: bool = False,
              **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each response, in order; one string is the prompt of all. With `members`, a `Score` of each."""
        return self._score(plan.texts(prompts, responses), members, options)

    @overload
    def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                       chat_template_kwargs: Mapping[str, Any] | None = None, members: Literal[False] = False,
                       **options: Unpack[Options]) -> list[float]: ...
    @overload
    def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                       chat_template_kwargs: Mapping[str, Any] | None = None, members: Literal[True],
                       **options: Unpack[Options]) -> list[Score]: ...
    def score_messages(self, conversations: Iterable[Sequence[Mapping[str, Any]]], *, tools: Sequence[Any] | None = None,
                       chat_template_kwargs: Mapping[str, Any] | None = None, members: bool = False,
                       **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each conversation, rendered through the model's chat template without a generation prompt."""
        return self._score(plan.conversations(conversations, tools, chat_template_kwargs), members, options)

    @overload
    def score_texts(self, texts: Iterable[str], *, members: Literal[False] = False,
                    **options: Unpack[Options]) -> list[float]: ...
    @overload
    def score_texts(self, texts: Iterable[str], *, members: Literal[True],
                    **options: Unpack[Options]) -> list[Score]: ...
    def score_texts(self, texts: Iterable[str], *, members: bool = False,
                    **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each text that is rendered already: tokenized without adding special tokens."""
        return self._score(plan.formatted(texts), members, options)

    @overload
    def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: Literal[False] = False,
                        **options: Unpack[Options]) -> list[float]: ...
    @overload
    def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: Literal[True],
                        **options: Unpack[Options]) -> list[Score]: ...
    def score_token_ids(self, token_ids: Iterable[Iterable[int]], *, members: bool = False,
                        **options: Unpack[Options]) -> list[float] | list[Score]:
        """The reward of each sequence of the model's own token ids, as it is."""
        return self._score(plan.token_ids(token_ids), members, options)

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """What is served, asked anew."""
        return self._info(time.monotonic(), timeout or self._settings.timeout)

    def close(self) -> None:
        """Lets go of this process's connections; a later call makes new ones."""
        pool = self._pools.pop(channels.process(), None)
        for channel in pool.clear() if pool else []:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _score(self, samples: list[proto.Sample], members: bool, options: Options) -> list[float] | list[Score]:
        started = time.monotonic()
        settings = replace(self._settings, **options)
        if not samples:
            return []
        info = self._known_info(started) or self._info(started, settings.timeout)
        sent = plan.requests(samples, settings, info, members)
        responses = self._run("Score", self._pipeline(sent, started, settings.timeout))
        return (plan.scores if members else plan.rewards)(sent, responses, settings)

    def _info(self, started: float, timeout: float) -> ServerInfo:
        asked = [plan.Request(proto.GetServerInfoRequest())]
        [response] = self._run("GetServerInfo", self._pipeline(asked, started, timeout))
        info = plan.server_info(response)
        self._told = (started + INFO_SECONDS, info)
        return info

    def _run(self, method: str, pipeline: Pipeline) -> list[Any]:
        pool = self._pool()
        flying: dict[grpc.Future[Any], Sending] = {}
        done: queue.SimpleQueue[grpc.Future[Any]] = queue.SimpleQueue()
        pool.begin()
        try:
            while not pipeline.is_done:
                pipeline.follow(self._places(), time.monotonic())
                for sending in pipeline.due(time.monotonic()):
                    call = getattr(pool.stub(sending.address), method)
                    future = call.future(pipeline.requests[sending.index].message,
                                         timeout=pipeline.deadline - time.monotonic(),
                                         metadata=self._credentials.metadata(sending.address))
                    flying[future] = sending
                    future.add_done_callback(done.put)
                try:
                    future = done.get(timeout=self._pause(pipeline))
                except queue.Empty:
                    continue
                sending, error = flying.pop(future), future.exception()
                if error is None:
                    pipeline.answered(sending, future.result())
                else:
                    failure = channels.failure(error, self._credentials)
                    if failure["is_distrusted"]:
                        pool.distrust(sending.address)
                    pipeline.failed(sending, time.monotonic(), **failure)
            return pipeline.responses
        finally:
            for future in flying:
                future.cancel()
            for channel in pool.end(self._places()):
                channel.close()

    def _pool(self) -> channels.Pool:
        # of two threads that come first at once one wins
        return self._pools.get(channels.process()) or self._pools.setdefault(
            channels.process(), channels.Pool(self._credentials, _connect))


def _connect(address: str, secure: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> tuple[grpc.Channel, Any]:
    channel = grpc.secure_channel(address, secure, options) if secure else grpc.insecure_channel(address, options)
    return channel, service.RewardServiceStub(channel)  # type: ignore[no-untyped-call]
