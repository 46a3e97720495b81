"""Load goes to all servers alike; one that drains is left without an error; one that is killed costs no answer.

Each way between callers and servers goes through one story, in which every reward is compared with what one server alone
gave, bit for bit.
"""

import http.client
import json
import os
import signal

import grpc
import pytest
import rewarm
from fleet import Fleet, Load, wait
from rewarm.v1 import reward_pb2 as proto
from rewarm.v1 import reward_pb2_grpc as service

# What any client of gRPC can be told; the Python client of ours does it by itself.
POLICY = json.dumps({
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
                                                    "retryableStatusCodes": ["UNAVAILABLE"]}}],
})


def over_grpc(target: str, policy: str | None = POLICY, timeout: float = 30):
    """Callers of plain gRPC that share one channel."""
    options = [("grpc.service_config", policy), ("grpc.enable_retries", 1)] if policy else []
    # A list of addresses becomes the `:authority`, in which commas are a PROTOCOL_ERROR to any server on Rust's h2. A DNS name has none.
    options.append(("grpc.default_authority", "rewarm"))
    stub = service.RewardServiceStub(grpc.insecure_channel(target, options=options))

    def ask(texts):
        request = proto.ScoreRequest(samples=[proto.Sample(id=str(index), formatted=text) for index, text in enumerate(texts)])
        answer = stub.Score(request, timeout=timeout, wait_for_ready=True)
        assert [result.id for result in answer.results] == [str(index) for index in range(len(texts))], "each once, in order"
        return [result.score.reward for result in answer.results]

    return lambda: ask


def over_http(port: int):
    """Callers that keep a connection each and never retry."""

    def caller():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

        def ask(texts):
            body = json.dumps({"samples": [{"formatted": text} for text in texts]})
            connection.request("POST", "/rewarm/v1/score", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            return [result["score"]["reward"] for result in json.loads(text)["results"]]

        return ask

    return caller


def shares(before: list[int], after: list[int]) -> list[float]:
    done = [new - old for old, new in zip(before, after, strict=True)]
    return [part / sum(done) for part in done]


def story(fleet: Fleet, caller) -> None:
    before = fleet.scored()
    with Load(fleet, caller) as load:
        load.more(300)
    after = fleet.scored()
    assert (load.failed, load.wrong) == ([], [])
    assert sum(after) - sum(before) == load.answered * 4, "every sample is scored once"
    assert min(shares(before, after)) > 0.2, f"a hot spot: {shares(before, after)}"

    drained, killed = fleet.servers[1], fleet.servers[2]
    with Load(fleet, caller) as load:
        load.more(50)
        assert drained.end(signal.SIGTERM) == 0
        load.more(50)
        drained.start()
        wait(drained.is_ready, "the new replica is ready")
        # A replica that came later gets its share, of callers that are connected for long.
        wait(lambda: drained.scored() > 50, "the new replica gets work")
    assert (load.failed, load.wrong) == ([], []), "a drain is seen by nobody"

    with Load(fleet, caller) as load:
        load.more(50)
        killed.end(signal.SIGKILL)
        load.more(100)
    assert (load.failed, load.wrong) == ([], []), "a kill costs retries, and no answer"


def test_a_plain_client_that_balances(fleet):
    story(fleet, over_grpc("ipv4:" + ",".join(fleet.addresses())))


def test_our_python_client(fleet):
    with rewarm.Client(fleet.addresses(), timeout=30) as client:
        story(fleet, lambda: client.score_texts)


def test_nginx_before_grpc(fleet, nginx):
    story(fleet, over_grpc(f"127.0.0.1:{nginx[0]}"))


def test_nginx_before_http_and_callers_that_never_retry(fleet, nginx):
    story(fleet, over_http(nginx[1]))


def test_envoy_and_callers_that_never_retry(fleet, envoy):
    story(fleet, over_grpc(f"127.0.0.1:{envoy}", policy=None))


@pytest.mark.parametrize("way", ["nginx", "envoy"])
def test_where_no_server_is_left_a_proxy_says_unavailable(fleet, way, request):
    port = request.getfixturevalue(way)
    for server in fleet.servers:
        server.end(signal.SIGKILL)
    ask = over_grpc(f"127.0.0.1:{port if way == 'envoy' else port[0]}", policy=None)()
    with pytest.raises(grpc.RpcError) as error:
        ask(["I found a wallet."])
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.skipif("REWARM_CABLES" not in os.environ, reason="30 s, by hand, as root: REWARM_CABLES=1")
@pytest.mark.parametrize("way", ["client", "envoy"])
def test_a_machine_that_falls_silent_costs_seconds(apart, way, request):
    """Its cable is pulled: nothing says so, as a killed process does. What was on its way there is asked elsewhere."""
    fleet, pull = apart
    if way == "client":
        client = rewarm.Client(fleet.addresses(), timeout=60)
        load = Load(fleet, lambda: client.score_texts)
    else:
        load = Load(fleet, over_grpc(f"127.0.0.1:{request.getfixturevalue('envoy')}", policy=None, timeout=60))
    with load:
        load.more(100)
        pull(2)
        load.more(100)
    assert (load.failed, load.wrong) == ([], [])
