"""TRL's trainers with `rewarm.trl.reward_func`: GRPO, RLOO, and the worker of AsyncGRPO."""
import asyncio
import collections
import pickle

import pytest
import rewarm
import rewarm.trl
import trl
from conftest import F32_ATOL, MODEL, TEXTS
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, _AsyncRolloutLoop

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
TRAINERS = [(trl.GRPOConfig, trl.GRPOTrainer), (trl.RLOOConfig, trl.RLOOTrainer)]
Seen = collections.namedtuple("Seen", "prompts completions rewards")


class Watched(rewarm.trl.RewardFunc):
    """Notes what it was asked and what it answered."""

    seen: list

    def __call__(self, *arguments, **columns):
        rewards = super().__call__(*arguments, **columns)
        self.seen.append(Seen(columns["prompts"], columns["completions"], rewards))
        return rewards


def train(config, trainer, function, folder, steps=2, length=8):
    """A policy that says noise, in conversations."""
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=16,
                                          num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
    policy.save_pretrained(folder / "policy")
    TOKENIZER.save_pretrained(folder / "policy")
    prompts = [[{"role": "user", "content": text["prompt"]}] for text in TEXTS] * 4
    run = trainer(
        model=str(folder / "policy"), reward_funcs=function, processing_class=TOKENIZER,
        args=config(output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, num_generations=4,
                    max_completion_length=length, report_to=[], use_cpu=True, logging_steps=1, save_strategy="no",
                    disable_tqdm=True),
        train_dataset=Dataset.from_dict({"prompt": prompts}))
    run.train()
    return [log for log in run.state.log_history if "reward" in log]


@pytest.mark.parametrize(("config", "trainer"), TRAINERS)
def test_rewards_are_right_and_in_order(server, tmp_path, config, trainer):
    function = Watched(server.grpc, "rewarm", {"timeout": 30})
    function.seen = []
    logs = train(config, trainer, function, tmp_path)
    assert len(function.seen) == len(logs) == 2
    with rewarm.Client(server.grpc) as client:
        for seen, log in zip(function.seen, logs):
            right = client.score_messages([p + c for p, c in zip(seen.prompts, seen.completions)])
            assert seen.rewards == right and len(set(right)) > 1
            assert log["reward"] == pytest.approx(sum(right) / len(right), abs=1e-4)


def test_a_full_queue(busy, tmp_path):
    assert len(train(*TRAINERS[0], rewarm.trl.reward_func(busy.grpc, timeout=60), tmp_path)) == 2


def test_a_server_that_restarts_between_steps(server, tmp_path):
    inner = rewarm.trl.reward_func(server.grpc, timeout=30)

    class Interrupted:
        __name__ = "interrupted"
        calls = 0

        def __call__(self, **columns):
            self.calls += 1
            if self.calls != 2:
                return inner(**columns)
            with server.away():
                return inner(**columns)

    assert len(train(*TRAINERS[0], Interrupted(), tmp_path, steps=3)) == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_bad_sample_and_a_model_that_is_another_end_the_training(server, tmp_path, asynchronous):
    with pytest.raises(rewarm.SamplesFailed, match="tokens"):
        train(*TRAINERS[0], rewarm.trl.reward_func(server.grpc, asynchronous=asynchronous), tmp_path, length=120)
    with pytest.raises(rewarm.FingerprintMismatch):
        pinned = rewarm.trl.reward_func(server.grpc, asynchronous=asynchronous, expected_fingerprint="another")
        train(*TRAINERS[0], pinned, tmp_path)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_worker_of_async_grpo(server, asynchronous):
    """It gets the function by pickle, as its process does, and makes advantages of the rewards."""
    function = rewarm.trl.reward_func(server.grpc, asynchronous=asynchronous, timeout=30)
    loop = object.__new__(_AsyncRolloutLoop)
    loop.reward_funcs = [pickle.loads(pickle.dumps(function))]
    loop.reward_func_names = ["rewarm"]
    loop._env_reward_types, loop._provides_rollout_reward = [], False
    group = RolloutGroup(
        prompts=[[{"role": "user", "content": text["prompt"]}] for text in TEXTS],
        reward_kwargs={"answer": ["a column"] * len(TEXTS)},
        completions=[[{"role": "assistant", "content": text["response"]}] for text in TEXTS],
        completions_ids=[[1]] * len(TEXTS), completions_sequences=[[]] * len(TEXTS), tool_call_counts=[0] * len(TEXTS),
        tool_failure_counts=[0] * len(TEXTS), model_version=0, group_id=0, env_rewards=[None] * len(TEXTS),
        rollout_rewards=[None] * len(TEXTS))
    asked = []
    inner = loop.reward_funcs[0]

    def noted(**columns):
        found = inner(**columns)
        asked.append(asyncio.run(found) if asynchronous else found)
        return asked[-1]

    loop.reward_funcs = [noted]
    asyncio.run(loop._score_group(group))
    assert asked == [pytest.approx([text["reward"] for text in TEXTS], abs=F32_ATOL)]
