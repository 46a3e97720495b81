"""The adapters, called as the trainers call them; by the trainers themselves where they are installed."""
import asyncio
import importlib.util
import inspect
import pickle
import re
import sys
import types

import numpy as np
import pytest
from conftest import PROMPT, ROOT, sentences

import rewarm
import rewarm.openrlhf
import rewarm.slime
import rewarm.trl
import rewarm.verl

RESPONSES = sentences(6)
CONVERSATIONS = [[{"role": "user", "content": "hello"}]] * 6
TURNS = [[{"role": "assistant", "content": response}] for response in RESPONSES]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def trl_func(request, server):
    """A TRL reward function, and how TRL calls it."""
    def make(**options):
        found = rewarm.trl.reward_func(server.address, asynchronous=request.param, timeout=30, **options)
        assert inspect.iscoroutinefunction(found.__call__) == request.param
        if request.param:
            return lambda **call: asyncio.run(found(**call))
        return found
    return make


def as_trl_calls(prompts, completions, **columns):
    return {"prompts": prompts, "completions": completions, "completion_ids": [[1]] * len(prompts),
            "trainer_state": object(), "log_extra": lambda *_: None, **columns}


def test_trl_strings_and_conversations(trl_func, server):
    with rewarm.Client(server.address) as client:
        logged = []
        call = as_trl_calls([PROMPT] * 6, RESPONSES, answer=["a column"] * 6, log_metric=lambda *pair: logged.append(pair))
        assert trl_func(variant="ens")(**call) == client.score(PROMPT, RESPONSES, variant="ens")
        assert [name for name, _ in logged] == ["rewarm/reward_std"]
        call = as_trl_calls(CONVERSATIONS, TURNS)
        assert trl_func(variant="chat")(**call) == client.score("hello", RESPONSES, variant="chat")


def test_trl_is_stopped_by_what_has_no_reward(trl_func):
    with pytest.raises(rewarm.InvalidInput, match=r"responses\[1\]"):
        trl_func()(**as_trl_calls([PROMPT] * 2, ["fine", None]))
    with pytest.raises(rewarm.InvalidInput, match=r"prompts\[1\]"):
        trl_func()(**as_trl_calls(CONVERSATIONS[:2], [TURNS[0], None]))
    with pytest.raises(rewarm.SamplesFailed, match=r"samples\[1\]"):
        trl_func()(**as_trl_calls([PROMPT] * 2, ["fine", "too long " * 5000]))
    with pytest.raises(rewarm.FingerprintMismatch):
        trl_func(expected_fingerprint="another")(**as_trl_calls([PROMPT], ["fine"]))


def test_trl_functions_pickle_and_have_a_name(server):
    for asynchronous in [False, True]:
        func = rewarm.trl.reward_func(server.address, name="warm", asynchronous=asynchronous, variant="ens")
        copy = pickle.loads(pickle.dumps(func))
        assert type(copy) is type(func) and copy.__name__ == "warm"
        assert copy._client._options == {"variant": "ens"}


def test_trl_itself(server, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", "I", "won", "lost", "it", "happily"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2))
    policy = str(tmp_path / "policy")
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    seen = []

    class Watched(rewarm.trl.RewardFunc):
        def __call__(self, *arguments, **columns):
            seen.extend(super().__call__(*arguments, **columns))
            return seen[-len(columns["completions"]):]

    def train(config, trainer, *functions):
        arguments = config(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2,
                           max_completion_length=4, report_to=[], use_cpu=True, logging_steps=1)
        run = trainer(model=policy, reward_funcs=list(functions), args=arguments, processing_class=tokenizer,
                      train_dataset=Dataset.from_dict({"prompt": ["I won", "I lost"] * 4}))
        run.train()
        return run.state.log_history[0]

    watched = Watched(server.address, "warm", {"variant": "warm"})
    other = rewarm.trl.reward_func(server.address, name="ens", asynchronous=True, variant="ens")
    for config, trainer in [(trl.GRPOConfig, trl.GRPOTrainer), (trl.RLOOConfig, trl.RLOOTrainer)]:
        seen.clear()
        log = train(config, trainer, watched, other)
        assert log["rewards/warm/mean"] == pytest.approx(np.mean(seen), abs=1e-4)
        assert "rewards/ens/mean" in log and "ens/reward_std" in log
    for asynchronous in [False, True]:
        wrong = rewarm.trl.reward_func(server.address, asynchronous=asynchronous, expected_fingerprint="another")
        with pytest.raises(rewarm.FingerprintMismatch):
            train(trl.GRPOConfig, trl.GRPOTrainer, wrong)


def test_verl_custom_function(server):
    with rewarm.Client(server.address) as client:
        expected = client.score(PROMPT, RESPONSES[:1], variant="ens")[0]
        chat = client.score("hello", RESPONSES[:1], variant="chat")[0]
    call = {"data_source": "demo", "solution_str": RESPONSES[0], "ground_truth": None, "addresses": server.address}
    options = {"variant": "ens", "timeout": 30}
    info = {"prompt": PROMPT, "num_turns": 2}
    assert asyncio.run(rewarm.verl.compute_score(extra_info=info, **call, **options)) == {"score": expected}
    assert rewarm.verl.compute_score_sync(extra_info=info, **call, **options) == {"score": expected}
    messages = {"question": np.array(CONVERSATIONS[0], dtype=object)}
    found = rewarm.verl.compute_score(extra_info=messages, prompt_key="question", variant="chat", **call)
    assert asyncio.run(found) == {"score": chat}
    with pytest.raises(rewarm.InvalidInput, match="prompt_key"):
        asyncio.run(rewarm.verl.compute_score(extra_info={}, **call))
    with pytest.raises(TypeError, match="varient"):
        rewarm.verl.compute_score_sync(extra_info=info, varient="ens", **call)


def test_verl_itself(server):
    pytest.importorskip("verl")
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls

    class Letters:
        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return "".join(chr(i) for i in ids)

    def data(response):
        ids = [ord(letter) for letter in response]
        tensors = {"prompts": torch.zeros(1, 3, dtype=torch.long), "responses": torch.tensor([ids + [0] * 2]),
                   "attention_mask": torch.tensor([[0, 1, 1] + [1] * len(ids) + [0] * 2])}
        columns = {"data_source": ["demo"], "reward_model": [{"ground_truth": None}], "extra_info": [{"prompt": "hello"}],
                   "raw_prompt": [CONVERSATIONS[0]]}
        arrays = {}
        for name, values in columns.items():
            arrays[name] = np.empty(1, dtype=object)
            arrays[name][0] = values[0]
        return DataProto.from_dict(tensors=tensors, non_tensors=arrays)

    config = OmegaConf.create({"reward": {
        "custom_reward_function": {"path": "pkg://rewarm.verl", "name": "compute_score", "reward_kwargs": {
            "addresses": [server.address], "variant": "chat"}},
        "reward_manager": {"source": "importlib", "name": "RewardManager",
                           "module": {"path": "pkg://rewarm.verl.reward_loop"}},
        "rewarm": {"addresses": [server.address], "variant": "chat"},
    }})
    [expected] = rewarm.Client(server.address).score("hello", RESPONSES[:1], variant="chat")

    async def run(make):
        return await make().run_single(data(RESPONSES[0]))

    naive = asyncio.run(run(lambda: NaiveRewardManager(config, Letters(), get_custom_reward_fn(config))))
    assert naive["reward_score"] == expected
    own = asyncio.run(run(lambda: resolve_reward_manager_cls(config)(
        config=config, tokenizer=Letters(), compute_score=None, reward_router_address=None, reward_model_tokenizer=None)))
    assert own == {"reward_score": expected, "reward_extra_info": {}}
    config.reward.rewarm.expected_fingerprint = "another"
    with pytest.raises(rewarm.FingerprintMismatch):
        asyncio.run(run(lambda: resolve_reward_manager_cls(config)(config=config, tokenizer=Letters())))


class Args:
    apply_chat_template = False


def sample(prompt, response):
    """A Sample of slime, as far as a reward function reads it."""
    return types.SimpleNamespace(prompt=prompt, response=response)


def test_slime(server):
    with rewarm.Client(server.address) as client:
        expected = client.score("hello", RESPONSES, variant="chat")
        rendered = client.score_texts(["<s>hello" + response for response in RESPONSES], variant="chat")
    reward = rewarm.slime.reward_func(server.address, variant="chat", timeout=30)
    assert asyncio.run(reward(Args(), sample("hello", RESPONSES[0]))) == expected[0]
    group = [sample(CONVERSATIONS[0], response) for response in RESPONSES]
    assert asyncio.run(reward(Args(), group, evaluation=True)) == expected
    args = Args()
    args.apply_chat_template = True
    assert asyncio.run(reward(args, [sample("<s>hello", response) for response in RESPONSES])) == rendered
    with pytest.raises(rewarm.InvalidInput):
        asyncio.run(reward(Args(), sample(None, "fine")))
    with pytest.raises(rewarm.SamplesFailed):
        asyncio.run(reward(Args(), sample("hello", "too long " * 5000)))


class Letters:
    """As much of a tokenizer as OpenRLHF's executor asks for."""

    def __call__(self, text, **_):
        return {"input_ids": [types.SimpleNamespace(tolist=lambda: [ord(letter) for letter in text])]}

    def decode(self, ids, skip_special_tokens):
        assert not skip_special_tokens
        return "".join(chr(i) for i in ids)


class Engine:
    """A policy that always says the same."""

    def __init__(self, text):
        self.text = text

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(
            token_ids=[ord(letter) for letter in self.text], text=self.text, finish_reason="stop", logprobs=None)])


@pytest.fixture
def openrlhf(monkeypatch):
    """The module, or as much of it as the adapter stands on: a single turn without a reward of its own."""
    if importlib.util.find_spec("openrlhf") is None:
        class SingleTurnAgentExecutor:
            async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
                answer = (await llm_engine.generate([], sampling_params)).outputs[0]
                tokens = hf_tokenizer(prompt)["input_ids"][0].tolist() + answer.token_ids
                return {"prompt": prompt, "observation_tokens": tokens, "reward": None, "scores": None, "extra_logs": {}}

        agent = types.ModuleType("openrlhf.utils.agent")
        agent.SingleTurnAgentExecutor = SingleTurnAgentExecutor
        for name in ["openrlhf", "openrlhf.utils"]:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "openrlhf.utils.agent", agent)


def turn(agent, prompt, response):
    """One turn of a rollout."""
    params = types.SimpleNamespace(max_tokens=100, logprobs=None)
    return asyncio.run(agent().execute(prompt, None, params, 200, Letters(), Engine(response)))


def test_openrlhf(server, openrlhf, tmp_path):
    file = tmp_path / "my_agent.py"
    file.write_text("import rewarm.openrlhf\n"
                    f"AgentExecutor = rewarm.openrlhf.agent_executor({server.address!r}, variant='chat', timeout=30)\n")
    spec = importlib.util.spec_from_file_location("agent_module", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    output = turn(module.AgentExecutor, "hello ", "well")
    [expected] = rewarm.Client(server.address).score_texts(["hello well"], variant="chat")
    assert (output["reward"], output["scores"], output["extra_logs"]) == (expected, expected, {})
    with pytest.raises(rewarm.SamplesFailed):
        turn(module.AgentExecutor, "hello ", "too long " * 5000)


def documented(module, address):
    """The names that the example of a module's documentation makes, with `...` for what it leaves to the reader."""
    lines = [line[4:] for line in module.__doc__.splitlines() if line.startswith("    ")]
    names = {"rewarm": rewarm, "GRPOTrainer": lambda *_, **given: given}
    exec("\n".join(lines).replace("host:50051", address), names)
    return names


def test_what_the_documentation_shows(server, openrlhf):
    with rewarm.Client(server.address, variant="warm") as client:
        expected = client.score(PROMPT, RESPONSES)
        rendered = client.score_texts([PROMPT + RESPONSES[0]])
    reward = documented(rewarm.trl, server.address)["trainer"]["reward_funcs"]
    assert reward(**as_trl_calls([PROMPT] * 6, RESPONSES)) == expected
    reward = documented(rewarm.slime, server.address)["reward"]
    assert asyncio.run(reward(Args(), [sample(PROMPT, response) for response in RESPONSES])) == expected
    agent = documented(rewarm.openrlhf, server.address)["AgentExecutor"]
    assert [turn(agent, PROMPT, RESPONSES[0])["reward"]] == rendered
    # settings of verl, as its command line takes them
    lines = [line.strip().lstrip("+") for line in rewarm.verl.__doc__.splitlines() if line.startswith("    ")]
    settings = dict(line.removeprefix("reward.custom_reward_function.").split("=", 1) for line in lines)
    function = getattr(importlib.import_module(settings.pop("path").removeprefix("pkg://")), settings.pop("name"))
    options = {name.removeprefix("reward_kwargs."): value.replace("host:50051", server.address) for name, value in settings.items()}
    assert set(options) == {"addresses", "variant"}
    found = asyncio.run(function("a source", RESPONSES[0], None, {"prompt": PROMPT}, **options))
    assert found == {"score": expected[0]}


def test_what_the_readme_shows(server, openrlhf):
    """Of the table of trainers: each makes what its trainer takes."""
    table = (ROOT / "clients/python/README.md").read_text(encoding="utf-8").split("## In a trainer")[1].split("\n## ")[0]
    shown = re.findall(r"(rewarm\.\w+\.\w+\(\"host:50051\".*?\))", table)
    assert len(shown) == 3
    for expression in shown:
        assert callable(eval(expression.replace("host:50051", server.address), {"rewarm": rewarm})), expression
    for module, name in re.findall(r"path=pkg://([\w.]+)`, `\.name=(\w+)", table):
        assert inspect.iscoroutinefunction(getattr(importlib.import_module(module), name))
