"""slime's `--rm-type remote_rm --rm-url URL`: one sample a request, a bare number back."""
import asyncio
import types

from conftest import TEXTS, recorded
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
