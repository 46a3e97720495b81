"""From samples to requests, and from responses to rewards. No I/O: both clients share it.

A call may have any number of samples. They are cut into requests that are large enough to fill a batch of the server and
small enough that a refusal costs little, within the limits that it told; a response has the samples' order, and so has
the result.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rewarm.errors import Failure, FingerprintMismatch, InvalidInput, SamplesFailed, ServerError
from rewarm.types import Priority, Score, ServerInfo, Truncation, Variant
from rewarm.v1 import reward_pb2 as proto

#: Samples in one request, where the server takes as many.
REQUEST_SAMPLES = 64
#: Bytes of samples in one request, unless one sample has more. A token has a byte at least, and a server refuses a request
#: with more tokens than its queue holds, 1,048,576 unless configured.
REQUEST_BYTES = 1 << 20
#: How many failed samples an exception's message quotes; `failures` has all.
QUOTED_FAILURES = 3

# google.rpc.Code, which a sample's error carries as a number
CODES = ("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
         "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
         "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED")


@dataclass(frozen=True)
class Settings:
    """`Options`, checked."""

    variant: str | None = None
    routing_key: str | None = None
    priority: Priority = "normal"
    truncation: Truncation = "reject"
    expected_fingerprint: str | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("variant", "routing_key", "expected_fingerprint"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise InvalidInput(f"{name} is {value!r}, not a string")
        for name, known in (("priority", get_args(Priority)), ("truncation", get_args(Truncation))):
            if getattr(self, name) not in known:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}, not one of {', '.join(known)}")
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < math.inf):
            raise InvalidInput(f"timeout is {self.timeout!r}, not a number of seconds above 0")


@dataclass(frozen=True)
class Request:
    """A message on its way, and where its samples begin in what was passed."""

    message: Any
    start: int = 0


def texts(prompts: str | Iterable[str], responses: Iterable[str]) -> list[proto.Sample]:
    """Prompts and responses, as many; one string is the prompt of all responses."""
    answers = _items("responses", responses)
    questions = [prompts] * len(answers) if isinstance(prompts, str) else _items("prompts", prompts)
    if len(questions) != len(answers):
        raise InvalidInput(f"there are {len(questions)} prompts and {len(answers)} responses")
    samples = []
    for index, (prompt, response) in enumerate(zip(questions, answers)):
        _check_string("prompts", index, prompt)
        _check_string("responses", index, response)
        samples.append(_encode("responses", index, lambda: proto.Sample(text=proto.Text(prompt=prompt, response=response))))
    return samples


def formatted(strings: Iterable[str]) -> list[proto.Sample]:
    """Texts that are rendered already."""
    samples = []
    for index, text in enumerate(_items("texts", strings)):
        _check_string("texts", index, text)
        samples.append(_encode("texts", index, lambda: proto.Sample(formatted=text)))
    return samples


def token_ids(sequences: Iterable[Iterable[int]]) -> list[proto.Sample]:
    """Token ids of the model's own vocabulary: lists, or arrays and tensors of integers."""
    samples = []
    for index, ids in enumerate(_items("token_ids", sequences)):
        kept = ids.tolist() if hasattr(ids, "tolist") else ids
        # a bool is an int to Python, a string would be taken letter by letter
        if isinstance(kept, (str, bytes)) or not isinstance(kept, Iterable) or any(isinstance(i, bool) for i in kept):
            raise InvalidInput(f"token_ids[{index}] is {_brief(ids)}, not a sequence of integers", index=index)
        samples.append(_encode("token_ids", index, lambda: proto.Sample(token_ids=proto.TokenIds(ids=kept))))
    return samples


def conversations(
    messages: Iterable[Sequence[Mapping[str, Any]]],
    tools: Sequence[Any] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[proto.Sample]:
    """Conversations as transformers' `apply_chat_template` takes them, with tools and arguments for all."""
    shared = {}
    if tools is not None:
        shared["tools_json"] = _encode("tools", None, lambda: _json(list(tools)))
    if chat_template_kwargs is not None:
        shared["chat_template_kwargs_json"] = _encode("chat_template_kwargs", None, lambda: _json(chat_template_kwargs))
    samples = []
    for index, conversation in enumerate(_items("conversations", messages)):
        is_list = isinstance(conversation, Iterable) and not isinstance(conversation, (str, Mapping))
        if not is_list or not all(isinstance(turn, Mapping) for turn in conversation):
            raise InvalidInput(f"conversations[{index}] is {_brief(conversation)}, not a list of messages", index=index)
        samples.append(_encode("conversations", index, lambda: proto.Sample(
            conversation=proto.Conversation(messages=[_message(turn) for turn in conversation], **shared))))
    return samples


def requests(samples: Sequence[proto.Sample], settings: Settings, info: ServerInfo, members: bool) -> list[Request]:
    """The samples, cut."""
    # Where routing decides, it does so for a whole request by its first prompt: each prompt gets its own, so that a group
    # has one variant whatever it is sent with. With one variant there is nothing to decide.
    is_routed = settings.variant is None and settings.routing_key is None
    by_group = is_routed and sum(share > 0 for share in info.routing.values()) > 1
    limit = min(REQUEST_SAMPLES, info.max_samples_per_request or REQUEST_SAMPLES)
    max_bytes = min(REQUEST_BYTES, info.max_message_bytes or REQUEST_BYTES)
    # A longer sample is cut, or an error of its own; and one has hardly more tokens than bytes.
    longest = max((variant.max_tokens for variant in info.variants.values()), default=0)
    cut: list[Request] = []
    size, tokens, group = 0, 0, None
    for index, sample in enumerate(samples):
        own_size, own_group = sample.ByteSize(), _group(sample) if by_group else None
        own_tokens = min(own_size, longest)
        size, tokens = size + own_size, tokens + own_tokens
        is_full = cut and (len(cut[-1].message.samples) >= limit or size > max_bytes
                           or 0 < info.max_queue_tokens < tokens)
        if not cut or is_full or own_group != group:
            message = proto.ScoreRequest(
                variant=settings.variant or "",
                routing_key=settings.routing_key or "",
                priority=f"PRIORITY_{settings.priority.upper()}",
                truncation=f"TRUNCATION_{settings.truncation.upper()}",
                return_members=members,
                expected_fingerprint=settings.expected_fingerprint or "",
            )
            cut.append(Request(message, index))
            size, tokens, group = own_size, own_tokens, own_group
        cut[-1].message.samples.append(sample)
    return cut


def rewards(sent: Sequence[Request], responses: Sequence[proto.ScoreResponse], settings: Settings) -> list[float]:
    """One for each sample; raises if one has none."""
    return [score.reward for score in scores(sent, responses, settings)]


def scores(sent: Sequence[Request], responses: Sequence[proto.ScoreResponse], settings: Settings) -> list[Score]:
    """One for each sample; raises if one has none."""
    _check_fingerprints(responses, settings)
    found: list[Score | None] = []
    failures = []
    for request, response in zip(sent, responses):
        expected = len(request.message.samples)
        if len(response.results) != expected:
            raise ServerError(f"the server answered {len(response.results)} of {expected} samples")
        for index, result in enumerate(response.results, request.start):
            score = result.score
            if result.WhichOneof("outcome") == "score" and math.isfinite(score.reward):
                found.append(Score(
                    reward=score.reward,
                    tokens=score.tokens,
                    truncated_tokens=score.truncated_tokens,
                    variant=response.variant,
                    fingerprint=response.fingerprint,
                    member_rewards=tuple(score.member_rewards),
                    reward_std=score.reward_std if score.HasField("reward_std") else None,
                ))
                continue
            found.append(None)
            if result.WhichOneof("outcome") == "error":
                code = CODES[result.error.code] if 0 <= result.error.code < len(CODES) else "UNKNOWN"
                failures.append(Failure(index, code, result.error.message))
            else:
                failures.append(Failure(index, "INTERNAL", "the server answered without a finite reward"))
    if failures:
        quoted = [f"samples[{failure.index}]: {failure.message}" for failure in failures[:QUOTED_FAILURES]]
        more = [f"and {len(failures) - QUOTED_FAILURES} more"] if len(failures) > QUOTED_FAILURES else []
        raise SamplesFailed(
            f"{len(failures)} of {len(found)} samples have no reward: {'; '.join(quoted + more)}",
            failures=tuple(failures), scores=tuple(found))
    return [score for score in found if score is not None]


def server_info(response: proto.GetServerInfoResponse) -> ServerInfo:
    """The message as plain data."""
    return ServerInfo(
        version=response.version,
        variants={variant.name: Variant(
            name=variant.name,
            mode=variant.mode,
            fingerprint=variant.fingerprint,
            members=tuple(member.path for member in variant.members),
            max_tokens=variant.max_tokens,
            text_rule=variant.text_rule,
            notes=tuple(variant.notes),
        ) for variant in response.variants},
        routing=dict(response.routing.weights),
        max_samples_per_request=response.max_samples_per_request,
        max_message_bytes=response.max_message_bytes,
        max_queue_tokens=response.max_queue_tokens,
    )


def _check_fingerprints(responses: Iterable[proto.ScoreResponse], settings: Settings) -> None:
    """Servers behind one call have one model: two would answer with rewards that do not compare."""
    seen: dict[str, str] = {}
    for response in responses:
        expected = settings.expected_fingerprint or seen.setdefault(response.variant, response.fingerprint)
        if response.fingerprint != expected:
            raise FingerprintMismatch(
                f"variant `{response.variant}` has fingerprint {response.fingerprint}, not {expected}"
                + ("" if settings.expected_fingerprint else ", as another answer to this call: servers differ, or reloaded"),
                code="FAILED_PRECONDITION")


def _group(sample: proto.Sample) -> bytes:
    """What the server routes by, or something finer."""
    kind = sample.WhichOneof("input")
    if kind == "text":
        return sample.text.prompt.encode()
    if kind == "conversation" and sample.conversation.messages:
        *prefix, last = sample.conversation.messages
        turns = prefix + [last] if last.role == "user" else prefix
        return b"".join(turn.SerializeToString() for turn in turns)
    return sample.SerializeToString()


def _message(turn: Mapping[str, Any]) -> proto.Message:
    """A role and a text, or the whole as JSON, in the order of its keys."""
    if turn.keys() == {"role", "content"} and all(isinstance(value, str) for value in turn.values()):
        return proto.Message(role=turn["role"], content=turn["content"])
    return proto.Message(json=_json(turn))


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _items(name: str, values: Any) -> list[Any]:
    """The elements of a list, an array, a Series, ..."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name} is {_brief(values)}, not a list")
    return list(values)


def _check_string(name: str, index: int, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"{name}[{index}] is {_brief(value)}, not a string", index=index)


def _encode(name: str, index: int | None, build: Callable[[], Any]) -> Any:
    """What `build` makes; what protobuf or JSON cannot hold is named by its place."""
    try:
        return build()
    except (TypeError, ValueError, OverflowError) as error:
        where = name if index is None else f"{name}[{index}]"
        raise InvalidInput(f"{where} cannot be sent: {error}", index=index) from None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
