"""verl's reward loop with a discriminative reward model: `/classify` of vLLM, or `/v1/embeddings` of SGLang."""
import asyncio

import aiohttp
import numpy as np
import pytest
import rewarm
import torch
from conftest import F32_ATOL, MODEL, TEXTS, TOKEN, recorded
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
MODEL_NAME = "reward-model"
#: verl takes the end of a sequence by its length, so a response has a token.
SOME = [text for text in TEXTS if text["response"]]


def data(texts):
    """A batch as the rollout leaves it: responses padded on the right, their end of turn included."""
    responses = [TOKENIZER(text["response"].strip(), add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, responses)) + 2
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in responses])
    mask = torch.tensor([[0, 1, 1] + [1] * len(ids) + [0] * (width - len(ids)) for ids in responses])
    columns = {"raw_prompt": [[{"role": "user", "content": text["prompt"]}] for text in texts],
               "data_source": ["demo"] * len(texts), "reward_model": [{"ground_truth": None}] * len(texts)}
    arrays = {name: np.fromiter(values, dtype=object, count=len(texts)) for name, values in columns.items()}
    return DataProto.from_dict(tensors={"prompts": torch.zeros(len(texts), 3, dtype=torch.long), "responses": padded,
                                        "attention_mask": mask}, non_tensors=arrays)


class Worker(RewardLoopWorker):
    """verl's worker, with the tokenizers of a local folder."""

    def _init_reward_fn(self):
        self.input_tokenizer = self.reward_model_tokenizer = TOKENIZER


def worker(engine, address):
    config = OmegaConf.create({"reward": {
        "custom_reward_function": {"path": None},
        "reward_model": {"enable": True, "model_path": MODEL_NAME, "rollout": {"name": engine}},
    }})
    return Worker(config, address)


def scores(engine, address, texts):
    async def run():
        return await worker(engine, address).compute_score_batch(data(texts))
    return [output["reward_score"] for output in asyncio.run(run())]


def test_what_it_sends(recorder):
    for engine, name, answer, pointer in [
        ("vllm", "verl-classify", {"data": [{"index": 0, "label": "LABEL_0", "probs": [0.5], "num_classes": 1}]},
         "/data/0/probs/0"),
        ("sglang", "verl-v1-embeddings", {"data": [{"index": 0, "embedding": [0.5]}]}, "/data/0/embedding/0"),
    ]:
        seen = recorder(answer)
        assert scores(engine, seen.address, TEXTS[:1]) == [0.5]
        [request] = seen.requests
        recorded(name, "verl", request, [pointer], [TEXTS[0]["reward"]])


@pytest.fixture(params=["vllm", "sglang"])
def engine(request):
    return request.param


def expected(texts):
    return pytest.approx([text["reward"] for text in texts], abs=F32_ATOL)


def test_rewards_are_right_and_in_order(server, engine):
    assert scores(engine, server.http, SOME * 20) == expected(SOME * 20)


def test_a_token_in_the_url(closed, engine):
    assert scores(engine, closed.http, SOME) == expected(SOME)


def test_a_full_queue(busy, engine):
    """Sixteen tries that wait longer and longer: all of them get their reward."""
    assert scores(engine, busy.http, SOME * 5) == expected(SOME * 5)


def test_a_server_that_restarts(server, engine):
    with server.away():
        assert scores(engine, server.http, SOME * 5) == expected(SOME * 5)


def test_a_bad_sample_ends_the_run(server, engine):
    with pytest.raises(aiohttp.ClientResponseError) as caught:
        scores(engine, server.http, [TEXTS[0], {"prompt": "a", "response": "too long " * 100}])
    assert caught.value.status == 400


def managed(texts, **options):
    """Rewards by `rewarm.verl.reward_loop`, through gRPC, as verl finds it."""
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    config = OmegaConf.create({"reward": {
        "reward_manager": {"source": "importlib", "name": "RewardManager", "module": {"path": "pkg://rewarm.verl.reward_loop"}},
        "rewarm": {"timeout": 20, **options},
    }})

    async def run():
        manager = resolve_reward_manager_cls(config)(config=config, tokenizer=TOKENIZER)
        batch = data(texts)
        outputs = await asyncio.gather(*(manager.run_single(batch[i:i + 1]) for i in range(len(texts))))
        return [output["reward_score"] for output in outputs]

    return asyncio.run(run())


def test_its_own_reward_manager(server):
    assert managed(SOME * 20, addresses=server.grpc) == expected(SOME * 20)
    with server.away():
        assert managed(SOME, addresses=server.grpc) == expected(SOME)
    with pytest.raises(rewarm.SamplesFailed):
        managed([{"prompt": "a", "response": "too long " * 100}], addresses=server.grpc)


def test_its_own_reward_manager_with_a_token(closed, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n", encoding="utf-8")
    assert managed(SOME, addresses=closed.grpc, token=TOKEN) == expected(SOME)
    assert managed(SOME, addresses=closed.grpc, token_file=str(file)) == expected(SOME)
    with pytest.raises(rewarm.AccessDenied, match="token"):
        managed(SOME[:1], addresses=closed.grpc)
