"""LLaMA-Factory's `reward_model_type: api`: one request for a mini-batch, texts with their special tokens."""
import importlib.util
import pathlib
import sys
import types

import pytest
import requests
from conftest import F32_ATOL, TEXTS, recorded, refused


def ppo_utils():
    """The module that asks, without its package, which trains with an older transformers than ours."""
    folder = pathlib.Path(importlib.util.find_spec("llamafactory").origin).parent
    for name in ["train", "train.ppo"]:
        package = types.ModuleType(f"llamafactory.{name}")
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[f"llamafactory.{name}"] = package
    return importlib.import_module("llamafactory.train.ppo.ppo_utils")


def test_what_it_sends(recorder):
    seen = recorder({"scores": [0.5, 1.0]})
    rewards = ppo_utils().get_rewards_from_server(f"http://{seen.address}/v1/score/evaluation",
                                                  [text["rendered"] for text in TEXTS[:3]])
    assert rewards.tolist() == [0.5, 1.0]
    [request] = seen.requests
    recorded("llamafactory-v1-score-evaluation", "llamafactory", request, [f"/scores/{i}" for i in range(3)],
             [text["reward"] for text in TEXTS[:3]])


def rewards(server, texts):
    url = f"http://{server.http}/v1/score/evaluation"
    return ppo_utils().get_rewards_from_server(url, [text["rendered"] for text in texts]).tolist()


def expected(texts):
    return pytest.approx([text["reward"] for text in texts], abs=F32_ATOL)


def test_rewards_are_right_and_in_order(server):
    assert rewards(server, TEXTS * 25) == expected(TEXTS * 25)
    with server.away():
        # it asks once, and does not take an error for rewards
        with pytest.raises(requests.ConnectionError):
            rewards(server, TEXTS)
    assert rewards(server, TEXTS) == expected(TEXTS)


def test_a_token_in_the_url(closed):
    assert rewards(closed, TEXTS) == expected(TEXTS)


def test_a_full_queue_and_a_bad_sample_stop_it(busy):
    """It looks for `scores` and not at the status."""
    outcomes = []
    for _ in range(20):
        try:
            outcomes.append(rewards(busy, TEXTS[:2]) == expected(TEXTS[:2]))
        except KeyError as error:
            outcomes.append(str(error) == "'scores'")
    assert all(outcomes) and refused(busy) > 0
    with pytest.raises(KeyError):
        rewards(busy, [*TEXTS[:1], {"rendered": "too long " * 100}])
