"""Right rewards in the right order, of every kind of input; what is wrong is named by its place."""
import json
import math
import random

import numpy as np
import pytest
from conftest import CHAT, GOLDEN, PROMPT, sentences, start

import rewarm
from rewarm import plan
from rewarm.v1 import reward_pb2

# Room for another order of summation in f32, and nothing else.
F32_ATOL = 1e-5
PROMPTS = [golden["prompt"] for golden in GOLDEN]
RESPONSES = [golden["response"] for golden in GOLDEN]


def test_rewards_are_those_of_transformers(client):
    for golden, score in zip(GOLDEN, client.score(PROMPTS, RESPONSES, variant="ens", members=True)):
        assert score.reward == pytest.approx(golden["ens"], abs=F32_ATOL)
        assert score.member_rewards == pytest.approx(golden["member_rewards"], abs=F32_ATOL)
        assert score.reward_std == pytest.approx(np.std(golden["member_rewards"]), abs=F32_ATOL)
        assert (score.tokens, score.truncated_tokens, score.variant) == (len(golden["token_ids"]), 0, "ens")
    warm = client.score(PROMPTS, RESPONSES, members=True)
    assert {(score.variant, score.reward_std, len(score.member_rewards)) for score in warm} == {("warm", None, 1)}
    assert client.score(PROMPTS, RESPONSES) == [score.reward for score in warm]


def test_five_thousand_keep_their_order(client, expected):
    responses = sentences(5000)
    assert client.score(PROMPT, responses) == expected
    mixed = random.Random(1).sample(range(5000), 500)
    assert client.score(PROMPT, [responses[i] for i in mixed]) == [expected[i] for i in mixed]


def test_messages_texts_and_token_ids(client):
    golden = json.loads((CHAT / "golden.json").read_text(encoding="utf-8"))["samples"][3]
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]
    [text] = client.score("hello", ["well"], variant="chat")
    assert client.score_messages([messages], variant="chat") == [text]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}, messages[1]]
    assert client.score_messages([messages, parts], variant="chat", chat_template_kwargs={"a": 1})[0] == text
    assert client.score_texts(["hello well"], variant="chat") != [text]
    [reward] = client.score_token_ids([golden["token_ids"]], variant="chat")
    assert reward == pytest.approx(golden["reward"], abs=F32_ATOL)


def test_arrays_in(client):
    expected = client.score(PROMPTS, RESPONSES)
    assert client.score(np.array(PROMPTS), np.array(RESPONSES, dtype=object)) == expected
    assert client.score(tuple(PROMPTS), (response for response in RESPONSES)) == expected
    assert all(type(reward) is float for reward in expected)
    ids = [golden["token_ids"] for golden in GOLDEN]
    rewards = client.score_token_ids(ids)
    assert client.score_token_ids([np.array(row, dtype=np.int32) for row in ids]) == rewards
    assert client.score_token_ids(np.array([ids[0]] * 2)) == [rewards[0]] * 2
    assert client.score_token_ids([np.array(ids[0], dtype=object)]) == [rewards[0]]


def test_nothing_is_scored_of_nothing(client):
    assert client.score([], []) == client.score("a prompt", []) == client.score_texts([]) == []


@pytest.mark.parametrize("bad", [None, math.nan, 3, b"bytes", ["nested"], "lone \ud800 surrogate"])
def test_a_sample_that_is_no_text_is_refused_by_its_index(client, bad):
    for call in [
        lambda: client.score(PROMPT, ["fine", "fine", bad]),
        lambda: client.score(["fine", "fine", bad], ["fine"] * 3),
        lambda: client.score_texts(np.array(["fine", "fine", bad], dtype=object)),
    ]:
        with pytest.raises(rewarm.InvalidInput, match=r"\[2\]") as caught:
            call()
        assert caught.value.index == 2


@pytest.mark.parametrize("bad", [None, [1.5], [-1], [2**32], [True], "12", 7, [None], np.array([1.0]), [[1]], [math.nan]])
def test_token_ids_that_are_none_are_refused_by_their_index(client, bad):
    with pytest.raises(rewarm.InvalidInput, match=r"token_ids\[1\]") as caught:
        client.score_token_ids([[1, 2], bad])
    assert caught.value.index == 1


@pytest.mark.parametrize("bad", [None, "text", [None], {"role": "user"}, [{"role": "user", "content": math.nan}],
                                 [{"role": "user", "content": {1, 2}}]])
def test_conversations_that_are_none_are_refused_by_their_index(client, bad):
    with pytest.raises(rewarm.InvalidInput, match=r"conversations\[1\]") as caught:
        client.score_messages([[{"role": "user", "content": "hello"}], bad])
    assert caught.value.index == 1


def test_lists_that_do_not_fit_and_options_that_are_none_are_refused(client):
    for call in [
        lambda: client.score(["one"], ["one", "two"]),
        lambda: client.score("a prompt", "letters"),
        lambda: client.score("a prompt", None),
        lambda: client.score_texts(7),
        lambda: client.score("a prompt", ["one"], priority="urgent"),
        lambda: client.score("a prompt", ["one"], truncation="middle"),
        lambda: client.score("a prompt", ["one"], timeout=0),
        lambda: client.score("a prompt", ["one"], variant=7),
        lambda: rewarm.Client("no-port"),
        lambda: rewarm.Client([]),
        lambda: rewarm.Client("https://host"),
    ]:
        with pytest.raises(rewarm.InvalidInput):
            call()
    with pytest.raises(TypeError, match="varient"):
        client.score("a prompt", ["one"], varient="warm")


def test_bad_samples_are_named_and_the_others_kept(client):
    ids = [[2, 100, 3]] * 300
    ids[70], ids[200] = [2, 999_999, 3], []
    with pytest.raises(rewarm.SamplesFailed, match=r"2 of 300 samples have no reward: samples\[70\].*samples\[200\]") as caught:
        client.score_token_ids(ids)
    error = caught.value
    assert [(failure.index, failure.code) for failure in error.failures] == [(70, "INVALID_ARGUMENT"),
                                                                             (200, "INVALID_ARGUMENT")]
    assert "999999" in error.failures[0].message
    assert [index for index, score in enumerate(error.scores) if score is None] == [70, 200]


def test_a_long_sample_is_an_error_unless_truncation_is_asked_for(client):
    long = "again and " * 5000
    with pytest.raises(rewarm.SamplesFailed, match=r"samples\[1\]"):
        client.score(PROMPT, ["short", long])
    for truncation in ["left", "right"]:
        short, cut = client.score(PROMPT, ["short", long], truncation=truncation, members=True)
        assert short.truncated_tokens == 0 < cut.truncated_tokens


def test_what_the_server_refuses_is_told_in_its_words(client):
    with pytest.raises(rewarm.InvalidRequest, match="the variants are chat, ens, warm") as caught:
        client.score("a", ["b"], variant="nobody")
    assert caught.value.code == "INVALID_ARGUMENT" and caught.value.attempts == 1


def test_a_pinned_fingerprint_must_match(client):
    info = client.info()
    warm, ens = info.variants["warm"].fingerprint, info.variants["ens"].fingerprint
    assert len(client.score(PROMPT, ["one"] * 100, variant="warm", expected_fingerprint=warm)) == 100
    with pytest.raises(rewarm.FingerprintMismatch, match=f"{warm}.*{ens}"):
        client.score(PROMPT, ["one"] * 100, variant="warm", expected_fingerprint=ens)


def test_info_tells_what_is_served(client):
    info = client.info()
    assert set(info.variants) == {"warm", "ens", "chat"} and info.routing["warm"] == 1.0
    assert info.max_samples_per_request == 1024 and info.version
    assert info.variants["ens"].mode == "ens" and len(info.variants["ens"].members) == 4
    assert info.variants["chat"].text_rule == "chat_template"


def test_a_group_is_never_split_between_variants_and_a_key_keeps_a_call_together(kind):
    prompts = [f"prompt {i % 40}" for i in range(400)]
    with start(["warm", "ens"], {"warm": 1, "ens": 1}) as server, kind(server.address) as client:
        scores = client.score(prompts, ["a response"] * 400, members=True)
        chosen = {}
        for prompt, score in zip(prompts, scores):
            assert chosen.setdefault(prompt, score.variant) == score.variant
        assert set(chosen.values()) == {"warm", "ens"}
        again = client.score(prompts[:1] + prompts, ["a response"] * 401, members=True)
        assert again[1:] == scores, "a prompt keeps its variant whatever it is sent with"
        keyed = client.score(prompts, ["a response"] * 400, members=True, routing_key="one")
        assert len({score.variant for score in keyed}) == 1


def test_a_small_limit_of_samples_is_kept(kind):
    with start(batching={"max_samples_per_request": 7}) as server, kind(server.address) as client:
        assert len(client.score(PROMPT, sentences(100))) == 100


def test_a_small_queue_gets_small_requests(kind):
    with start(batching={"max_batch_tokens": 64, "max_queue_tokens": 128}) as server, kind(server.address) as client:
        assert client.info().max_queue_tokens == 128
        assert len(client.score(PROMPT, sentences(100))) == 100


def test_long_samples_travel_in_small_requests():
    sample = reward_pb2.Sample(formatted="x" * 100_000)
    settings, info = plan.Settings(), rewarm.ServerInfo("", {}, {"warm": 1.0}, 1024)
    cut = plan.requests([sample] * 25, settings, info, False)
    assert [(request.start, len(request.message.samples)) for request in cut] == [(0, 10), (10, 10), (20, 5)]
    whole = reward_pb2.Sample(formatted="x" * 3_000_000)
    cut = plan.requests([sample, whole, sample], settings, info, False)
    assert [request.start for request in cut] == [0, 1, 2]
