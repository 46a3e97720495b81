"""OpenRLHF's single-turn executor with `--reward.remote_url`: one sample a request, the text as the policy wrote it."""
import asyncio
import types

import pytest
import rewarm.openrlhf
from conftest import F32_ATOL, MODEL, TEXTS, recorded
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


class Engine:
    """A policy that says what it is told, and ends its turn."""

    def __init__(self, response):
        self.ids = TOKENIZER(response.strip() + "<|eot_id|>", add_special_tokens=False)["input_ids"]

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(
            token_ids=self.ids, text=TOKENIZER.decode(self.ids), finish_reason="stop", logprobs=None)])


async def execute(urls, prompt, response):
    """One rollout, as the trainer runs it."""
    rendered = TOKENIZER.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                             add_generation_prompt=True)
    params = types.SimpleNamespace(max_tokens=100, logprobs=None)
    return await SingleTurnAgentExecutor(urls).execute(rendered, "a label", params, 1000, TOKENIZER, Engine(response))


def test_what_it_sends(recorder):
    seen = recorder({"rewards": [0.5]})
    for text in TEXTS[:1]:
        output = asyncio.run(execute(f"http://{seen.address}/get_reward", text["prompt"], text["response"]))
        assert output["reward"] == [0.5]
    [request] = seen.requests
    recorded("openrlhf-get_reward", "openrlhf", request, ["/rewards/0"], [TEXTS[0]["reward"]])


def rewards(urls, texts):
    async def run():
        return await asyncio.gather(*(execute(urls, text["prompt"], text["response"]) for text in texts))
    return [output["reward"] for output in asyncio.run(run())]


def expected(texts):
    return [[pytest.approx(text["reward"], abs=F32_ATOL)] for text in texts]


def test_rewards_are_right_and_in_order(server):
    assert rewards(f"http://{server.http}/get_reward", TEXTS * 25) == expected(TEXTS * 25)
    # several URLs, as `--reward.remote_url A,B` has them
    assert rewards([f"http://{server.http}/get_reward"] * 2, TEXTS) == expected(TEXTS)


def test_a_token_in_the_url(closed):
    assert rewards(f"http://{closed.http}/get_reward", TEXTS) == expected(TEXTS)


def test_a_full_queue(busy):
    """Tried five times, a second apart; then there is no reward, which is OpenRLHF's way. Never a wrong one."""
    found = rewards(f"http://{busy.http}/get_reward", TEXTS * 5)
    assert sum(reward is not None for reward in found) > 10
    assert all(reward in (None, right) for reward, right in zip(found, expected(TEXTS * 5)))


def test_a_server_that_restarts(server):
    with server.away():
        assert rewards(f"http://{server.http}/get_reward", TEXTS * 5) == expected(TEXTS * 5)


def test_a_bad_sample_has_no_reward(server):
    found = rewards(f"http://{server.http}/get_reward", [TEXTS[0], {"prompt": "a", "response": "too long " * 100}])
    assert found == [*expected(TEXTS[:1]), None]


def test_the_agent(server, tmp_path):
    """`--train.agent_func_path`: through gRPC, and an error ends the rollout."""
    agent = rewarm.openrlhf.agent_executor(server.grpc, timeout=20)()

    async def run(text):
        rendered = TOKENIZER.apply_chat_template([{"role": "user", "content": text["prompt"]}], tokenize=False,
                                                 add_generation_prompt=True)
        params = types.SimpleNamespace(max_tokens=100, logprobs=None)
        output = await agent.execute(rendered, None, params, 1000, TOKENIZER, Engine(text["response"]))
        return [output["reward"]]

    assert [asyncio.run(run(text)) for text in TEXTS] == expected(TEXTS)
    with server.away():
        assert [asyncio.run(run(text)) for text in TEXTS] == expected(TEXTS)
    with pytest.raises(rewarm.SamplesFailed):
        asyncio.run(run({"prompt": "a", "response": "too long " * 100}))
