"""OpenRLHF's single-turn executor with `--reward.remote_url`: one sample a request, the text as the policy wrote it."""
import asyncio
import types

from conftest import MODEL, TEXTS, recorded
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
