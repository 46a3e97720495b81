"""LLaMA-Factory's `reward_model_type: api`: one request for a mini-batch, texts with their special tokens."""
import importlib.util
import pathlib
import sys
import types

from conftest import TEXTS, recorded


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
