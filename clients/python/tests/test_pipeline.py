"""What is sent where and when, by a clock of ours."""
import pytest

import rewarm
from rewarm.pipeline import CONCURRENT_REQUESTS, Pipeline
from rewarm.plan import Request


def pipeline(requests=1, addresses=("a:1",), timeout=100.0):
    return Pipeline([Request(index, index * 64) for index in range(requests)], addresses, 0, timeout, timeout)


def fail(calls, sending, now, code="UNAVAILABLE", message="why", pushback=None):
    calls.failed(sending, now, code=code, message=message, pushback=pushback)


def test_a_few_are_on_their_way_at_a_time_and_responses_are_in_order():
    calls = pipeline(requests=20)
    sent = calls.due(0.0)
    assert [sending.index for sending in sent] == list(range(CONCURRENT_REQUESTS)) and not calls.due(0.0)
    while sent:
        calls.answered(sent[-1], f"answer {sent.pop().index}")
        sent += calls.due(0.0)
    assert calls.is_done and calls.responses == [f"answer {index}" for index in range(20)]


def test_a_pushback_is_kept_to_the_millisecond():
    calls = pipeline()
    [sending] = calls.due(1.0)
    fail(calls, sending, 2.0, "RESOURCE_EXHAUSTED", pushback="1500")
    assert calls.pause(2.0) == pytest.approx(1.5) and not calls.due(3.499)
    assert calls.due(3.5) == [sending] and sending.attempts == 2


def test_elsewhere_at_once_and_here_later():
    calls = pipeline(addresses=("a:1", "b:1", "c:1"))
    [sending] = calls.due(0.0)
    fail(calls, sending, 0.0, pushback="1000")
    assert calls.due(0.0) == [sending] and sending.address == "b:1"
    fail(calls, sending, 0.1, pushback="200")
    assert calls.due(0.1) == [sending] and sending.address == "c:1"
    fail(calls, sending, 0.2, pushback="5000")
    # all have said when: the soonest of them, then
    assert sending.address == "b:1" and not calls.due(0.25) and calls.due(0.31) == [sending]


def test_a_server_that_is_not_there_is_asked_less_and_less_often():
    calls, now, pauses = pipeline(timeout=1000.0), 0.0, []
    for _ in range(12):
        [sending] = calls.due(now)
        fail(calls, sending, now)
        pauses.append(calls.pause(now))
        now += pauses[-1]
    assert 0.03 < pauses[0] < 0.07 and max(pauses) < 2.5 and min(pauses[8:]) > 1.5, pauses


@pytest.mark.parametrize(("code", "pushback", "kind"), [
    ("INVALID_ARGUMENT", None, rewarm.InvalidRequest),
    ("OUT_OF_RANGE", None, rewarm.InvalidRequest),
    ("FAILED_PRECONDITION", None, rewarm.FingerprintMismatch),
    ("INTERNAL", None, rewarm.ServerError),
    ("DEADLINE_EXCEEDED", None, rewarm.DeadlineExceeded),
    # a limit of size, made by something between
    ("RESOURCE_EXHAUSTED", None, rewarm.Overloaded),
    # do not try again
    ("RESOURCE_EXHAUSTED", "-1", rewarm.Overloaded),
    ("UNAVAILABLE", "soon", rewarm.Unavailable),
    # too late
    ("RESOURCE_EXHAUSTED", "200000", rewarm.Overloaded),
])
def test_what_does_not_help_is_not_tried_again(code, pushback, kind):
    calls = pipeline()
    [sending] = calls.due(0.0)
    with pytest.raises(kind, match=f"a:1 answered {code}: why") as caught:
        fail(calls, sending, 0.0, code, pushback=pushback)
    assert (caught.value.code, caught.value.address, caught.value.attempts) == (code, "a:1", 1)


def test_samples_are_named_as_they_were_passed():
    calls = pipeline(requests=3)
    sent = calls.due(0.0)
    with pytest.raises(rewarm.InvalidRequest, match=r"samples\[131\]\.input: is not set; samples\[132\]: x"):
        fail(calls, sent[2], 0.0, "INVALID_ARGUMENT", "samples[3].input: is not set; samples[4]: x")


def test_the_deadline_ends_it():
    calls = pipeline(requests=20, timeout=5.0)
    sent = calls.due(0.0)
    assert calls.pause(3.0) == 2.0
    fail(calls, sent[0], 3.0, "RESOURCE_EXHAUSTED", "the queue is full", pushback="500")
    with pytest.raises(rewarm.DeadlineExceeded, match="5 s passed; 20 of 20 .*: the queue is full"):
        calls.due(5.0)


def test_what_waits_for_an_address_that_has_gone_goes_elsewhere_at_once():
    calls = pipeline(addresses=("a:1",))
    [sending] = calls.due(0.0)
    fail(calls, sending, 0.0, pushback="60000")
    assert not calls.due(1.0)
    calls.follow(("a:1", "b:1"), 1.0)
    assert calls.due(1.0) == [sending] and sending.address == "b:1"
    # it fails there after that address has gone, and the old one's time has not come
    calls.follow(("a:1",), 2.0)
    fail(calls, sending, 2.0)
    assert not calls.due(2.0) and calls.pause(2.0) == pytest.approx(58.0)
    calls.follow(("c:1",), 3.0)
    assert calls.due(3.0) == [sending] and sending.address == "c:1"
    calls.answered(sending, "answer")
    assert calls.is_done


def test_without_an_address_a_call_waits_for_one_and_says_so():
    calls = pipeline(requests=2, addresses=(), timeout=5.0)
    assert not calls.due(0.0) and calls.pause(0.0) == 5.0
    calls.follow(("a:1",), 1.0)
    sent = calls.due(1.0)
    assert [(sending.index, sending.address) for sending in sent] == [(0, "a:1"), (1, "a:1")]
    calls.follow((), 2.0)
    fail(calls, sent[0], 2.0)
    assert not calls.due(2.0)
    with pytest.raises(rewarm.Unavailable, match="no server was there when the deadline of 5 s passed; a:1 answered"):
        calls.due(5.0)


def test_more_addresses_take_more_requests_at_a_time_and_fewer_take_fewer():
    calls = pipeline(requests=100)
    sent = calls.due(0.0)
    calls.follow(("a:1", "b:1"), 1.0)
    sent += calls.due(1.0)
    assert len(sent) == 2 * CONCURRENT_REQUESTS and {sending.address for sending in sent} == {"a:1", "b:1"}
    calls.follow(("b:1",), 2.0)
    for sending in sent[:CONCURRENT_REQUESTS]:
        calls.answered(sending, "answer")
    assert not calls.due(2.0)
    calls.answered(sent[-1], "answer")
    assert [sending.address for sending in calls.due(2.0)] == ["b:1"]
