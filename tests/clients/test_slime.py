"""slime's `--rm-type remote_rm --rm-url URL`: one sample a request, a bare number back."""
import asyncio
import types

import aiohttp
import pytest
import rewarm
import rewarm.slime
from conftest import F32_ATOL, TEXTS, recorded
from slime.rollout import rm_hub
from slime.utils.types import Sample

CLIENT = "slime (main, 624b824)"


def args(url):
    return types.SimpleNamespace(rm_url=url, rm_type="remote_rm", custom_rm_path=None)


def ask(url, *samples):
    """In one event loop, as a rollout does: the client's session lives as long."""
    async def run():
        return await rm_hub.batched_async_rm(args(url), [Sample(**sample, label="a label") for sample in samples])
    return asyncio.run(run())


def test_what_it_sends(recorder):
    seen = recorder(0.5)
    text = TEXTS[0]
    messages = [{"role": "user", "content": text["prompt"]}]
    prompt, ending, _ = text["rendered"].partition("Put it in")
    for name, sample, note in [
        ("slime-rm-string", {"prompt": text["prompt"], "response": text["response"]}, ""),
        ("slime-rm-messages", {"prompt": messages, "response": text["response"]}, ""),
        ("slime-rm-rendered", {"prompt": prompt, "response": ending + text["rendered"][len(prompt + ending):]},
         "with --apply-chat-template: prompt and response are one text as it stands, which only the URL can say"),
    ]:
        rm_hub._shared_session = None
        assert ask(f"http://{seen.address}/rm", sample) == [0.5]
        recorded(name, CLIENT, seen.requests.pop(), [""], [text["reward"]], note)


def samples(texts):
    return [{"prompt": text["prompt"], "response": text["response"]} for text in texts]


def rewards(server, texts):
    rm_hub._shared_session = None
    return ask(f"http://{server.http}/rm", *samples(texts))


def expected(texts):
    return pytest.approx([text["reward"] for text in texts], abs=F32_ATOL)


def test_rewards_are_right_and_in_order(server):
    assert rewards(server, TEXTS * 25) == expected(TEXTS * 25)


def test_a_token_in_the_url(closed):
    assert rewards(closed, TEXTS) == expected(TEXTS)


def test_a_full_queue(busy):
    """Ten tries, which wait longer and longer: all of them get their reward."""
    assert rewards(busy, TEXTS * 5) == expected(TEXTS * 5)


def test_a_server_that_restarts(server):
    with server.away():
        assert rewards(server, TEXTS * 5) == expected(TEXTS * 5)


def test_a_bad_sample_ends_the_rollout(server):
    async def run():
        rm_hub._shared_session = None
        sample = Sample(prompt="a", response="too long " * 100)
        # not all ten tries, which take 157 s
        return await rm_hub.remote_rm(args(f"http://{server.http}/rm"), sample, max_retries=2)

    with pytest.raises(aiohttp.ClientResponseError) as caught:
        asyncio.run(run())
    assert caught.value.status == 400


def test_the_adapter(server, tmp_path, monkeypatch):
    """`--custom-rm-path`, found as slime finds it."""
    (tmp_path / "my_reward.py").write_text(
        f"import rewarm.slime\nreward = rewarm.slime.reward_func({server.grpc!r}, timeout=20)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    options = types.SimpleNamespace(custom_rm_path="my_reward.reward", apply_chat_template=False, group_rm=True)

    def run(texts):
        return asyncio.run(rm_hub.batched_async_rm(options, [Sample(**sample) for sample in samples(texts)]))

    assert run(TEXTS * 25) == expected(TEXTS * 25)
    with server.away():
        assert run(TEXTS) == expected(TEXTS)
    with pytest.raises(rewarm.SamplesFailed, match=r"samples\[1\]"):
        run([TEXTS[0], {"prompt": "a", "response": "too long " * 100}])
