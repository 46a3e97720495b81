"""The forms in which trainers hand over prompts and responses: strings, or messages."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarm.errors import InvalidInput


def call(prompts: Sequence[Any], responses: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """The method of a client that scores them, and its arguments.

    A prompt is a string, or a list of messages; then its response is a list of messages too, or the assistant's text.
    """
    if len(prompts) != len(responses):
        raise InvalidInput(f"there are {len(prompts)} prompts and {len(responses)} responses")
    if all(isinstance(prompt, str) for prompt in prompts):
        return "score", (list(prompts), list(responses))
    conversations = []
    for index, (prompt, response) in enumerate(zip(prompts, responses)):
        turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        if isinstance(prompt, str) or prompt is None or turns is None:
            raise InvalidInput(f"prompts[{index}] or its response is no list of messages, as others are", index=index)
        conversations.append([*prompt, *turns])
    return "score_messages", (conversations,)
